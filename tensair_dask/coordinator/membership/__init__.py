"""Keep as many replicas as are wanted while workers join, leave and fail."""

"""What a run measures of itself, and where people see it."""

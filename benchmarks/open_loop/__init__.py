"""A driver that emits on a schedule, and contenders that learn what it sends."""

"""Ground that every other package stands on: waits, checks, files, plain values."""

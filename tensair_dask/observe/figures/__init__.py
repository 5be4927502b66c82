"""Charts of a run, as pages and as pictures."""

"""Charts of a run: described once, drawn on pages and as pictures."""

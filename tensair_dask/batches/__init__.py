"""What goes into a model and comes out: mini-batches, records, predictions."""

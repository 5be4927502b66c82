"""Words of a text stream as numbers: vocabulary, samples, embeddings, export."""

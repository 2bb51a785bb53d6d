"""Pages on their way to a step: features, keys and values, batches on a mesh."""

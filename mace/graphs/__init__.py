"""From labeled configurations to batches of graphs: neighbors, flat arrays, targets and weights."""

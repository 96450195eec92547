"""From batches and a model to parameters: loss, optimizer, loop, checkpoints, reports."""

"""Training: loss, optimizer, training loop and checkpoints."""

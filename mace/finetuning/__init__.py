"""Training that starts from the weights of another model."""

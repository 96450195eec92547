"""The costly sums of the model, written so that no wide per-edge message and no one-hot product is ever made."""

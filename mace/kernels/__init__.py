"""The costly sums of the model, computed without wide per-edge messages or one-hot products in memory."""

"""A model as a list of kernels: recorded once, connected to a graph's arrays, run in one call for each pass."""

"""A model as a program of compiled kernels."""

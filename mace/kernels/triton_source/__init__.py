"""Kernels of programs in Triton, for graphics processors; each has the arrays and the meaning of its namesake in C."""

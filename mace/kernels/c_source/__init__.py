"""C source of the compiled kernels, written for the model and the processor at hand."""

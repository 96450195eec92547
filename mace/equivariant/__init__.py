"""The mathematics of rotation equivariance: irreps, harmonics, coupling coefficients, symmetric tensors. No atoms."""

"""MACE machine-learning interatomic potentials: training and use."""

__version__ = "0.1.0"

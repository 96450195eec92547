"""MACE machine-learning interatomic potentials: training and use."""

from mace.elsewhere import answer_for_missing_modules

__version__ = "0.1.0"

answer_for_missing_modules()

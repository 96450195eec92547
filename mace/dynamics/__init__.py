"""Molecular dynamics with a trained model: from a structure to a trajectory and a log."""

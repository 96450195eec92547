"""Molecular dynamics with a trained model: a structure goes in, a trajectory and a log come out."""

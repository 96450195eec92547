"""A model file, ready to give energies and forces."""

"""The MACE model: from a graph to atomic energies, and from energies to forces, stress and virials."""

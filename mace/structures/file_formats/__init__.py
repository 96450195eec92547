"""Readers of the formats of structure files, one each, behind `mace.structures.formats`."""

"""A corpus of inputs that are broken or treacherous, each with what must come of it; see `cases`."""

from malformed_inputs import energies, extended_xyz, files, geometry, heads, labels, settings, suspicious, weights
from malformed_inputs.cases import CASES, Case

__all__ = ["CASES", "Case"]

_REGISTERED = (energies, extended_xyz, files, geometry, heads, labels, settings, suspicious, weights)

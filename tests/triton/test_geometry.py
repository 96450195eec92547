"""Do the kernels of the geometry in Triton pass the tests of those in C, and is padding without effect?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from mace.kernels.c_source.geometry import GeometryShape
from mace.kernels.triton_source.geometry import geometry_kernels, harmonics_width
from tests.kernels.conftest import graph  # noqa: F401
from tests.kernels.test_geometry import (  # noqa: F401
    Kernels,
    Maker,
    in_order,
    test_adjoints_of_forces_and_strain,
    test_forces_and_strain_of_a_model,
    test_gradient_of_lengths_in_the_place_of_the_first_harmonic,
    test_graphs,
    test_harmonics,
    test_optional_arrays,
    test_pair_vectors,
    test_radial_coefficients,
    test_radial_functions,
    test_repulsion,
)


class DeviceKernels(Kernels):
    """The same kernels in Triton."""

    def load(self, shape: GeometryShape) -> None:
        """Load the kernels, and note how long rows of harmonics are."""
        self.kernels, self.width = geometry_kernels(shape, self.dtype), harmonics_width(shape.l_max)

    def run(
        self, name: str, arrays: Sequence[Tensor | None], units: int, sizes: Sequence[int] = (), threads: int = 1
    ) -> None:
        """Launch a kernel."""
        if name == "strain_value":
            *arrays, strain = arrays
            assert strain is not None
            of_atoms = self.empty(self.graph.n_atoms, 3, 3)
            self.run("strain_of_atoms", [*arrays, of_atoms], units)
            strain.zero_().index_add_(0, self.graph.structure_of_atom, of_atoms)
            return
        # lengths of another number of pairs are given to the kernel of tables
        n_pairs = arrays[0].shape[0] if name == "radial_coefficients" else self.n_pairs
        dimensions = [self.graph.n_atoms, self.graph.max_neighbors, n_pairs, self.plan.r_max, *sizes]
        self.kernels[name].run([*self.first, *arrays], dimensions)

    def gradient(
        self,
        vectors: Tensor,
        cotangents: Mapping[str, Tensor],
        parts: Sequence[Tensor],
        by_length: bool = False,
        threads: int = 1,
    ) -> Tensor:
        """Run ``geometry_gradient`` with all shares in one array."""
        found, shares = self.empty(self.n_pairs, 3), torch.cat(list(parts)) if parts else None
        arrays = [vectors, *in_order(cotangents)[:3], found, shares]
        sizes = (by_length, 1, 0 if shares is None else len(shares))
        self.run("geometry_gradient", arrays, self.n_pairs, sizes)
        return found


@pytest.fixture
def make() -> Maker:
    """What makes the kernels."""
    return DeviceKernels

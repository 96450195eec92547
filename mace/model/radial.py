"""Functions of distance: cutoff envelope, radial bases, distance transforms and nuclear repulsion."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mace.elements import covalent_radii
from mace.graphs.graph import Graph
from mace.kernels.c_source.radial import (
    AGNESI_A,
    AGNESI_P,
    AGNESI_Q,
    COULOMB,
    SOFT_STEEPNESS,
    ZBL_BOHR,
    ZBL_COEFFICIENTS,
    ZBL_EXPONENTS,
    ZBL_LENGTH,
    ZBL_POWER,
)
from mace.kernels.slopes import along_rows, constants
from mace.model.plan import ModelPlan


def polynomial_envelope(length: Tensor, r_max: float | Tensor, p: int = 5) -> Tensor:
    r"""Switch smoothly from one at zero distance to zero at the cutoff.

    .. math:: u(x) = 1 - \tfrac{(p+1)(p+2)}{2} x^p + p(p+2)\, x^{p+1} - \tfrac{p(p+1)}{2} x^{p+2}, \; x = r/r_\text{max}

    Value and first two derivatives vanish at the cutoff, so forces stay continuous when an atom crosses it.

    Args:
        length: Edge lengths in Angstrom, any shape.
        r_max: Cutoff in Angstrom, one number or one per length.
        p: Order of contact at the origin.

    Returns:
        The envelope of every edge; exactly zero from ``r_max`` on.

    Source:
        Gasteiger et al., ICLR 2020, arXiv:2003.03123.
    """
    x = length / r_max
    power = x**p
    polynomial = 1.0 - power * ((p + 1) * (p + 2) / 2 - p * (p + 2) * x + p * (p + 1) / 2 * x * x)
    return polynomial * (length < r_max)


def envelope_and_slope(length: Tensor, r_max: float, p: int = 5) -> Tensor:
    """Evaluate `polynomial_envelope` and its derivative, ``[edges, 2]``."""
    x = (length / r_max).unsqueeze(1)
    powers = x ** constants([0, p - 1, p, p + 1, p + 2], length)
    a, b, c = (p + 1) * (p + 2) / 2, p * (p + 2), p * (p + 1) / 2
    value, slope = [1.0, 0.0, -a, b, -c], [0.0, *(k / r_max for k in (-p * a, (p + 1) * b, -(p + 2) * c)), 0.0]
    return (powers @ constants([*value, *slope], length).view(2, -1).t()) * (x < 1.0)


def bessel_basis(length: Tensor, r_max: float, n: int) -> Tensor:
    r"""Evaluate :math:`\sqrt{2/r_c}\, \sin(k \pi r / r_c) / r` for k from 1 to n, ``[edges, n]``.

    Source:
        Gasteiger et al., ICLR 2020, arXiv:2003.03123.
    """
    frequency = constants([k * torch.pi / r_max for k in range(1, n + 1)], length)
    return torch.sin(length.unsqueeze(-1) * frequency) * ((2.0 / r_max) ** 0.5 / length.unsqueeze(-1))


def bessel_basis_and_slope(length: Tensor, r_max: float, n: int) -> tuple[Tensor, Tensor]:
    """Evaluate `bessel_basis` and its derivative, both ``[edges, n]``."""
    length = length.unsqueeze(1)
    frequency = constants([k * torch.pi / r_max for k in range(1, n + 1)], length)
    phase, factor = length * frequency, (2.0 / r_max) ** 0.5 / length
    value = phase.sin() * factor
    return value, (phase.cos() * frequency * factor).addcdiv_(value, length, value=-1.0)


def gaussian_basis(length: Tensor, r_max: float, n: int) -> Tensor:
    """Evaluate n Gaussians centered evenly from 0 to the cutoff, as wide as their spacing, ``[edges, n]``."""
    centers = torch.linspace(0.0, r_max, n, dtype=length.dtype, device=length.device)
    width = r_max / max(n - 1, 1)
    return torch.exp(-0.5 * ((length.unsqueeze(-1) - centers) / width) ** 2)


def chebyshev_basis(length: Tensor, r_max: float, n: int) -> Tensor:
    """Evaluate the Chebyshev polynomials of degree 1 to n of the unscaled length, ``[edges, n]``.

    The original does not scale lengths to the interval from -1 to 1; for equal results, they are not scaled here.
    """
    polynomials = [torch.ones_like(length), length]
    while len(polynomials) <= n:
        polynomials.append(2.0 * length * polynomials[-1] - polynomials[-2])
    return torch.stack(polynomials[1 : n + 1], dim=-1)


BASES = {"bessel": bessel_basis, "gaussian": gaussian_basis, "chebyshev": chebyshev_basis}


def agnesi_transform(length: Tensor, sum_of_radii: Tensor) -> Tensor:
    """Map distances to (0, 1], with the highest resolution near the bond length of the two elements.

    Args:
        length: Edge lengths in Angstrom, ``[edges]``.
        sum_of_radii: Sum of the covalent radii of the two atoms in Angstrom, ``[edges]``.

    Source:
        Witt et al., J. Chem. Phys. 159, 164101 (2023), doi 10.1063/5.0158783.
    """
    x = length / (0.5 * sum_of_radii)
    return 1.0 / (1.0 + AGNESI_A * x**AGNESI_Q / (1.0 + x ** (AGNESI_Q - AGNESI_P)))


def soft_transform(length: Tensor, sum_of_radii: Tensor) -> Tensor:
    """Smoothly replace distances below three quarters of the bond length by that value; Angstrom, ``[edges]``."""
    near, far = 0.75 * sum_of_radii, 4.0 / 3.0 * sum_of_radii
    switch = 0.5 * (1.0 + torch.tanh(SOFT_STEEPNESS / (far - near) * (length - 0.5 * (near + far))))
    return near + (length - near) * switch


class RadialEmbedding(nn.Module):
    """Radial basis and cutoff envelope of every pair, after an optional transform of the distance.

    The basis is multiplied by the envelope here, unless the radial weights are to be multiplied by it.

    Args:
        plan: The model's plan.
    """

    covalent_radii: Tensor

    def __init__(self, plan: ModelPlan) -> None:
        super().__init__()
        self.plan = plan
        radii = torch.from_numpy(covalent_radii(plan.atomic_numbers))
        self.register_buffer("covalent_radii", radii, persistent=False)

    def forward(self, lengths: Tensor, graph: Graph) -> tuple[Tensor, Tensor | None]:
        """Evaluate the basis and the envelope.

        Args:
            lengths: Distances in Angstrom, ``[pairs]``.
            graph: The graph.

        Returns:
            The basis, ``[pairs, num_radial_basis]``, and None if it has been multiplied by the envelope, which makes it
            exactly zero for padding; otherwise the envelope, ``[pairs]``, which is zero for padding.
        """
        if self.plan.distance_transform == "None":
            if self.plan.radial_type != "bessel":
                return self.of_length(lengths, lengths)
            basis, *envelope = along_rows(self._of_length, self._bessel_and_slopes, lengths)
            return basis, envelope[0].squeeze(1) if envelope else None
        transform = agnesi_transform if self.plan.distance_transform == "Agnesi" else soft_transform
        return self.of_length(lengths, transform(lengths, sum_of_radii(self.covalent_radii, graph)))

    def _of_length(self, lengths: Tensor) -> tuple[Tensor, ...]:
        basis, envelope = self.of_length(lengths, lengths)
        return (basis,) if envelope is None else (basis, envelope.unsqueeze(1))

    def _bessel_and_slopes(self, lengths: Tensor) -> tuple[Tensor, ...]:
        """Evaluate `of_length`, and then the derivatives by the length."""
        plan = self.plan
        envelope, slope = envelope_and_slope(lengths, plan.r_max, plan.num_cutoff_basis).split(1, dim=1)
        basis, of_basis = bessel_basis_and_slope(lengths, plan.r_max, plan.num_radial_basis)
        if plan.cutoff_after_network:
            return basis, envelope, of_basis, slope
        return basis * envelope, torch.addcmul(of_basis * envelope, basis, slope)

    def of_length(self, lengths: Tensor, transformed: Tensor) -> tuple[Tensor, Tensor | None]:
        """Evaluate the basis at transformed lengths and the envelope at the original ones; see `forward`."""
        plan = self.plan
        envelope = polynomial_envelope(lengths, plan.r_max, plan.num_cutoff_basis)
        basis = BASES[plan.radial_type](transformed, plan.r_max, plan.num_radial_basis)
        return (basis, envelope) if plan.cutoff_after_network else (basis * envelope.unsqueeze(-1), None)


def sum_of_radii(radii: Tensor, graph: Graph) -> Tensor:
    """Return the sum of the radii of the two atoms of every pair, ``[pairs]``."""
    element = graph.element
    return radii[element.index_select(0, graph.pair_sender)] + radii[element.index_select(0, graph.pair_receiver)]


class NuclearRepulsion(nn.Module):
    """Screened nuclear repulsion, switched off at the sum of the covalent radii.

    Args:
        plan: The model's plan.

    Source:
        Ziegler, Biersack, Littmark, The Stopping and Range of Ions in Solids (1985).
    """

    covalent_radii: Tensor
    charges: Tensor

    def __init__(self, plan: ModelPlan) -> None:
        super().__init__()
        self.p, self.r_max = plan.num_cutoff_basis, plan.r_max
        radii = torch.from_numpy(covalent_radii(plan.atomic_numbers))
        self.register_buffer("covalent_radii", radii, persistent=False)
        self.register_buffer("charges", torch.tensor(plan.atomic_numbers, dtype=torch.float64), persistent=False)

    def forward(self, lengths: Tensor, graph: Graph) -> Tensor:
        """Return half the repulsion of each pair in eV, the share of one atom, ``[pairs]``; zero from the cutoff on."""
        z_sender = self.charges[graph.element.index_select(0, graph.pair_sender)]
        z_receiver = self.charges[graph.element.index_select(0, graph.pair_receiver)]
        screening = ZBL_LENGTH * ZBL_BOHR / (z_sender**ZBL_POWER + z_receiver**ZBL_POWER)
        x = lengths / screening
        phi = sum(c * torch.exp(-a * x) for c, a in zip(ZBL_COEFFICIENTS, ZBL_EXPONENTS, strict=True))
        envelope = polynomial_envelope(lengths, sum_of_radii(self.covalent_radii, graph), self.p)
        # two large atoms may touch beyond the cutoff; the padding pair, as long as the cutoff, must stay zero even then
        envelope = envelope * (lengths < self.r_max)
        return 0.5 * COULOMB * z_sender * z_receiver / lengths * phi * envelope

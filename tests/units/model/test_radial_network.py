"""Are the networks of radial weights what their docstrings say?"""

from __future__ import annotations

import pytest
import torch

from mace.kernels.backend import TORCH
from mace.kernels.c_backend import C
from mace.kernels.c_source.parts import lanes
from mace.model.radial_network import EdgeInputs, NormalizedRadialNetwork, RadialNetwork

WIDTHS = (5, 7, 9, 4)


def in_torch(network: NormalizedRadialNetwork) -> torch.nn.Sequential:
    """Build the same from torch's own layers."""
    parts: list[torch.nn.Module] = []
    for i, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        linear = torch.nn.Linear(*weight.shape, dtype=torch.float64)
        linear.load_state_dict({"weight": weight.detach().t(), "bias": bias.detach()})
        parts.append(linear)
        if i < len(network.factors):
            norm = torch.nn.LayerNorm(len(bias), dtype=torch.float64)
            norm.load_state_dict({"weight": network.factors[i].detach(), "bias": network.offsets[i].detach()})
            parts += [norm, torch.nn.SiLU()]
    return torch.nn.Sequential(*parts)


def drawn(kind: type[RadialNetwork]) -> RadialNetwork:
    generator = torch.Generator().manual_seed(1)
    network = kind(WIDTHS).double()
    for parameter in network.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return network


def test_a_network_with_biases_is_that_of_torch() -> None:
    network = drawn(NormalizedRadialNetwork)
    assert isinstance(network, NormalizedRadialNetwork)
    basis = torch.randn(6, WIDTHS[0], dtype=torch.float64)
    envelope = torch.rand(6, dtype=torch.float64)
    expected = in_torch(network)(basis)
    assert torch.allclose(network.without_envelope(EdgeInputs(basis)), expected, atol=1e-13)
    assert torch.allclose(network(EdgeInputs(basis)), expected, atol=1e-13)
    assert torch.allclose(network(EdgeInputs(basis, envelope)), expected * envelope.unsqueeze(1), atol=1e-13)


@pytest.mark.parametrize("kind", [RadialNetwork, NormalizedRadialNetwork])
def test_both_layouts_hold_the_same(kind: type[RadialNetwork]) -> None:
    """Two paths of two channels, in blocks of as many channels as vectors have numbers, the others padding."""
    network, basis = drawn(kind), torch.randn(6, WIDTHS[0], dtype=torch.float64)
    inputs = EdgeInputs(basis, torch.rand(6, dtype=torch.float64))
    blocks, n_lanes = C.radial(*network.last_product(inputs), n_paths=2), lanes(torch.float64)
    assert blocks.shape == (6, 1, 2, n_lanes) and n_lanes >= 2
    assert torch.allclose(blocks[:, 0, :, :2].flatten(1), network(inputs), atol=1e-13)
    assert not blocks[..., 2:].any()
    plain = TORCH.radial(*network.last_product(inputs), n_paths=2)
    assert plain.shape == (6, 2, 2) and torch.allclose(plain.flatten(1), network(inputs), atol=1e-13)


def test_without_biases_nothing_comes_of_nothing() -> None:
    zeros = EdgeInputs(torch.zeros(3, WIDTHS[0], dtype=torch.float64))
    assert not drawn(RadialNetwork)(zeros).any()
    assert drawn(NormalizedRadialNetwork)(zeros).any()


def test_weights_begin_as_torch_draws_them() -> None:
    network = NormalizedRadialNetwork((100, 200, 10))
    network.initialize(torch.Generator().manual_seed(4))
    for weight, bias in zip(network.weights, network.biases, strict=True):
        bound = weight.shape[0] ** -0.5
        assert 0.95 * bound < float(weight.detach().abs().max()) <= bound
        assert float(weight.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.05)
        assert float(bias.detach().abs().max()) <= bound
    assert bool((network.factors[0] == 1).all()) and not network.offsets[0].detach().any()

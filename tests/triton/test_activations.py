"""Do the activation's kernels in Triton give what torch gives, and do they leave alone what is not theirs?"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from mace.kernels.triton_source.activations import activation_kernels
from mace.kernels.triton_source.launching import LANES
from mace.kernels.triton_source.matrices import matrices_kernels

DTYPES = (torch.float32, torch.float64)
GUARD = 7.0
"""What numbers hold that nobody may write."""


def run(name: str, arrays: list[Tensor], count: int) -> None:
    """Launch a kernel."""
    activation_kernels(arrays[0].dtype)[name].run(arrays, [count, 1])


@pytest.mark.filterwarnings("ignore:overflow")  # of an exponential, whose reciprocal is zero, as it should be
@pytest.mark.parametrize("count", [LANES, 32 * LANES, 37 * LANES])
@pytest.mark.parametrize("dtype", DTYPES)
def test_silu(dtype: torch.dtype, count: int) -> None:
    """Value, derivatives, and the second derivative times two tangents."""
    generator = torch.Generator().manual_seed(0)
    z, u, g = (torch.randn(count, generator=generator, dtype=torch.float64) for _ in range(3))
    z[:6] = torch.tensor([0.0, 30.0, -30.0, 5.0, -200.0, 200.0])
    leaf = z.to(dtype).double().requires_grad_(True)
    u, g = (x.to(dtype) for x in (u, g))
    value = torch.nn.functional.silu(leaf)
    (by_z,) = torch.autograd.grad(value, leaf, g.double(), create_graph=True)
    (second,) = torch.autograd.grad(by_z, leaf, u.double())
    (slope,) = torch.autograd.grad(value.sum(), leaf)
    before = torch.randn(count, generator=generator, dtype=torch.float64).to(dtype)

    found = [torch.full((count + LANES,), GUARD, dtype=dtype) for _ in range(5)]
    sigmoid, result, gradient, tangent, of_gradient = found
    added = torch.cat([before, torch.full((LANES,), GUARD, dtype=dtype)])
    z = z.to(dtype)
    run("silu_value", [z, sigmoid, result], count)
    run("silu_gradient", [z, sigmoid, g, gradient], count)
    run("silu_tangent", [z, sigmoid, u, g, tangent, of_gradient], count)
    run("silu_adjoint", [z, sigmoid, g, added], count)
    tolerance = 1e-13 if dtype == torch.float64 else 1e-6
    exact = (leaf.sigmoid(), value, by_z, u.double() * slope, second, before.double() + by_z)
    for values, right in zip([*found, added], exact, strict=True):
        torch.testing.assert_close(values[:count].double(), right.detach(), rtol=tolerance, atol=tolerance)
        assert (values[count:] == GUARD).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros(dtype: torch.dtype) -> None:
    counts = [0, 1, 1024, 200_000]
    arrays = [torch.full((count + 5,), GUARD, dtype=dtype) for count in counts]
    records = torch.tensor([[array.data_ptr(), count] for array, count in zip(arrays, counts, strict=True)])
    matrices_kernels(dtype)["zeros"].run([records], [len(counts), 1])
    for array, count in zip(arrays, counts, strict=True):
        assert not array[:count].any() and (array[count:] == GUARD).all()

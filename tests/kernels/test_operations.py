"""How many operations of torch does a training step take?"""

from __future__ import annotations

import operations
import pytest
import torch

from mace.kernels.backend import TORCH
from mace.kernels.c_backend import C
from mace.kernels.compiler import find_compiler
from mace.model.mace import MACE


def test_what_counts_as_an_operation() -> None:
    matrix = torch.ones(3, 4, requires_grad=True)
    with operations.Operations() as counted:
        product = matrix @ matrix.t()  # a view and a product
        first, _, _ = product.view(9).split(3)  # views
        first.exp().sum().backward()
    # the derivative of the split fills zeros, those of the product are two, and two views of one tensor are added
    assert counted.by_name["mm"] == 3
    assert counted.by_name["exp"] == counted.by_name["sum"] == counted.by_name["mul"] == 1
    assert not counted.by_name.keys() & {"t", "view", "split", "detach", "alias", "expand", "empty"}
    assert counted.total == counted.by_name.total() > 6
    assert counted.table().splitlines()[1].split() == ["3", "mm"]


def test_an_operation_on_a_list_counts_once() -> None:
    values = [torch.ones(2), torch.ones(3)]
    with operations.Operations() as counted:
        torch._foreach_mul_(values, 2.0)
        float(values[0][0])  # reading a number waits for it
    assert counted.by_name == {"_foreach_mul_": 1, "_local_scalar_dense": 1}


@pytest.mark.parametrize(("name", "limit"), [("torch", 800), ("c", 150)])
def test_a_training_step_takes_few_operations(name: str, limit: int) -> None:
    if name == "c" and find_compiler() is None:
        pytest.skip("there is no C compiler on this machine")

    def choose(model: MACE) -> None:
        model.use_backend(C if name == "c" else TORCH)

    counted = operations.count(operations.training_step(choose, n_channels=16))
    assert counted.total < limit, counted.table()

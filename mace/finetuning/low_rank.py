r"""Low-rank corrections of the linear maps of a model, which are trained in place of its weights.

Every map becomes :math:`W + (\alpha / r) A B` with :math:`A` of ``[inputs, r]`` and :math:`B` of ``[r, outputs]``. The
model itself always holds the sums, as ordinary weights: kernels, evaluation and model files need to know nothing of the
corrections, which are merged at any time. A step computes the gradient by the sum, and from it those by both factors,
which is what differentiating through the sum gives.

Source:
    Hu et al., LoRA: Low-rank adaptation of large language models, ICLR 2022, arXiv:2106.09685.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mace.errors import UserError
from mace.model.mace import MACE
from mace.training.optimization import MovedParameters


class LowRankCorrections(MovedParameters):
    """The factors of the corrections of all linear maps of a model; maps that are frozen have corrections of zero.

    Matrices of elements, degrees or paths have a correction each. A map with fewer inputs or outputs than the rank has
    factors of that many, with which any correction can be written.

    Args:
        model: The model, whose parameters that are no maps are frozen; maps that do not require gradients stay frozen.
        rank: Rank of the corrections.
        alpha: Scale of the corrections, which are multiplied by ``alpha / rank``.
        seed: Of the first factors, unit-normal random numbers; the second ones are zero, and so are the corrections.

    Attributes:
        ranks: Ranks of the corrections that are trained, by the name of the weights.

    Raises:
        UserError: If a map to be trained has neither as many inputs nor as many outputs as the rank.
    """

    def __init__(self, model: MACE, rank: int, alpha: float, seed: int) -> None:
        super().__init__(model)
        self._scale = alpha / rank
        self._weights = {n: p for n, p in model.named_parameters() if model.roles[n].is_map and p.numel()}
        self._require_width(rank)
        self.ranks = {n: min(rank, *p.shape[-2:]) for n, p in self._weights.items() if p.requires_grad}
        self._base = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self._factors: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self._weights.items():
            *leading, n_inputs, n_outputs = weight.shape
            own_rank = min(rank, n_inputs, n_outputs)
            first = torch.randn(*leading, n_inputs, own_rank, generator=generator, dtype=torch.float64).to(weight)
            second = weight.new_zeros(*leading, own_rank, n_outputs)
            moves = weight.requires_grad
            self._factors[name] = (nn.Parameter(first, moves), nn.Parameter(second, moves))
        self.roles = {key: model.roles[name] for name in self._factors for key in _names_of_factors(name)}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in self.ranks)

    def _require_width(self, rank: int) -> None:
        widths = {n: max(p.shape[-2:]) for n, p in self._weights.items() if p.requires_grad}
        narrow = [name for name, width in widths.items() if width < rank]
        if narrow:
            n_inputs, n_outputs = self._weights[narrow[0]].shape[-2:]
            raise UserError(
                f"--lora_rank={rank} is above the width of {narrow[0]}, which maps {n_inputs} to {n_outputs} numbers; "
                f"choose at most {min(widths.values())}, or leave the layer out with --freeze."
            )

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the names and the factors."""
        for name, factors in self._factors.items():
            yield from zip(_names_of_factors(name), factors, strict=True)

    def forget_gradients(self) -> None:
        """See `MovedParameters`."""
        super().forget_gradients()
        for parameter in self.parameters():
            parameter.grad = None

    @torch.no_grad()
    def take_gradients(self) -> None:
        """See `MovedParameters`; the gradients by the weights are removed."""
        for name, (first, second) in self._factors.items():
            gradient = self._weights[name].grad
            if gradient is not None:
                first.grad = (gradient @ second.mT).mul_(self._scale)
                second.grad = (first.mT @ gradient).mul_(self._scale)
                self._weights[name].grad = None

    @torch.no_grad()
    def update_model(self) -> None:
        """See `MovedParameters`."""
        for name, factors in self._factors.items():
            _corrected(self._base[name], *factors, self._scale, out=self._weights[name])

    def state_dict(self) -> dict[str, Any]:
        """See `MovedParameters`; the weights without corrections, by name, the factors likewise, and their scale."""
        factors = {name: [factor.detach() for factor in pair] for name, pair in self._factors.items()}
        return {"base": self._base, "factors": factors, "scale": self._scale}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `MovedParameters`."""
        for name, factors in self._factors.items():
            self._base[name].copy_(state["base"][name])
            for factor, saved in zip(factors, state["factors"][name], strict=True):
                factor.copy_(saved)


def _names_of_factors(name: str) -> tuple[str, str]:
    return f"{name}.lora_A", f"{name}.lora_B"


def _corrected(base: Tensor, first: Tensor, second: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
    return torch.add(base, first @ second, alpha=scale, out=out)


def averaged_weights(
    weights: Mapping[str, Tensor], state: Mapping[str, Any], averages: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Return the corrected weights with averaged factors.

    Args:
        weights: The weights of the model, by name.
        state: What `LowRankCorrections.state_dict` returned.
        averages: Averages of all factors, in the order of `LowRankCorrections.named_parameters`.

    Returns:
        The weights of the corrected maps, by name.

    Raises:
        ValueError: If there are not two factors for each map, or they do not have its shape.
    """
    found = {}
    for (name, base), first, second in zip(state["base"].items(), averages[::2], averages[1::2], strict=True):
        *leading, n_inputs, n_outputs = weights[name].shape
        rank = min(first.shape[-1], n_inputs, n_outputs)
        shapes = [weights[name].shape, (*leading, n_inputs, rank), (*leading, rank, n_outputs)]
        if [base.shape, first.shape, second.shape] != shapes:
            raise ValueError(f"the corrections of {name} do not have its shape")
        found[name] = _corrected(base, first, second, float(state["scale"]))
    return found

"""Atomic features as descriptors, for programs that compare or classify atomic environments."""

from __future__ import annotations

import torch
from torch import Tensor

from mace.errors import UserError
from mace.model.prediction import Prediction


def descriptors(prediction: Prediction, num_layers: int = -1, invariants_only: bool = True) -> Tensor:
    """Concatenate the features of the layers.

    The features of a layer are ordered by degree, then by channel, then by the ``2 l + 1`` components in the order of
    `mace.equivariant.spherical_harmonics`. All of them rotate with the structure, except those of degree zero, the
    invariants. The last layer of a model without dipoles has invariants only.

    Args:
        prediction: Prediction for any number of structures, including features.
        num_layers: Number of layers to use, from the first; -1 for all.
        invariants_only: Whether to leave out all degrees but zero.

    Returns:
        ``[atoms, layers * channels]`` for invariants; with the other degrees, a layer with all degrees up to ``L``
        takes ``(L + 1)^2 * channels`` columns.

    Raises:
        UserError: If the model has fewer layers.
    """
    assert prediction.features is not None
    available = len(prediction.features)
    if num_layers != -1 and not 1 <= num_layers <= available:
        raise UserError(f"Descriptors of {num_layers} layers are wanted; choose 1 to {available}, or -1 for all.")
    layers = prediction.features[: available if num_layers == -1 else num_layers]
    columns = [
        features[degree].transpose(1, 2).flatten(1)
        for features in layers
        for degree in sorted(features)
        if degree == 0 or not invariants_only
    ]
    return torch.cat(columns, dim=1).detach()

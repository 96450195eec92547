"""Features of atoms, for programs that compare or classify atomic environments."""

from __future__ import annotations

import torch
from torch import Tensor

from mace.errors import UserError
from mace.model.prediction import Prediction


def descriptors(prediction: Prediction, num_layers: int = -1, invariants_only: bool = True) -> Tensor:
    """Put the features of the layers side by side.

    All features of a layer stand in the order of degrees; within a degree in the order of channels; the ``2 l + 1``
    components of a channel, in the order of `mace.equivariant.spherical_harmonics`, follow each other. They turn with
    the structure, those of degree zero, the invariants, excepted. The last layer of a model without dipoles has
    invariants only.

    Args:
        prediction: What the model predicts, features included, of any number of structures.
        num_layers: Only the first so many layers; -1 for all.
        invariants_only: Leave out all degrees but zero.

    Returns:
        ``[atoms, layers * channels]`` for invariants; with the other degrees, a layer up to degree ``L`` in which all
        occur takes ``(L + 1)^2 * channels`` columns.

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

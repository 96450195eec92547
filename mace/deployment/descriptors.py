"""Features of atoms, for programs that compare or classify atomic environments."""

from __future__ import annotations

import torch
from torch import Tensor

from mace.errors import UserError
from mace.model.derivatives import Prediction


def invariant_descriptors(prediction: Prediction, num_layers: int = -1) -> Tensor:
    """Put the scalar features of the layers side by side; rotations and translations leave them as they are.

    Args:
        prediction: What the model predicts, of any number of structures.
        num_layers: Only the first so many layers; -1 for all.

    Returns:
        ``[atoms, layers * channels]``.

    Raises:
        UserError: If the model has fewer layers.
    """
    available = len(prediction.features)
    if num_layers != -1 and not 1 <= num_layers <= available:
        raise UserError(f"Descriptors of {num_layers} layers are wanted; choose 1 to {available}, or -1 for all.")
    layers = prediction.features[: available if num_layers == -1 else num_layers]
    return torch.cat([features[0].squeeze(1) for features in layers], dim=1).detach()

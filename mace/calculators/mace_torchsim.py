"""The import path by which torch-sim finds the model, ``torch_sim.models.mace.MaceModel`` included."""

from mace.calculators.torch_sim import MaceTorchSimModel

__all__ = ["MaceTorchSimModel"]

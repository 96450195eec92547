"""The module from which torch-sim imports the model, also for ``torch_sim.models.mace.MaceModel``."""

from mace.calculators.torch_sim import MaceTorchSimModel

__all__ = ["MaceTorchSimModel"]

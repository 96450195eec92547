"""Do the compiled kernels give models of dipoles the same values and derivatives as torch?"""

from __future__ import annotations

from typing import Any

import numpy as np

from mace.model.kernel_choice import choose_kernels
from mace.model.prediction import predict
from mace.training.loss import make_loss
from mace.training.step import loss_gradient


def results(case: Any, kernels: str) -> dict[str, np.ndarray]:
    """Return the dipole, what else there is, and the gradient of a loss."""
    model, batch = case.model(), case.dataset().batch([2, 0, 1])
    assert choose_kernels(model, kernels) == kernels
    prediction = predict(model, batch.graph, stress=True)
    word = "energy_forces_dipole" if "energy" in case.plan.outputs else "dipole"
    loss_gradient(model, batch, make_loss(word, {"energy": 1.0, "forces": 10.0, "dipole": 5.0}))
    found = {name: getattr(prediction, name) for name in ("dipole", "atomic_dipoles", "energy", "forces", "virials")}
    found |= {f"gradient of {name}": parameter.grad for name, parameter in model.named_parameters()}
    return {name: value.detach().numpy() for name, value in found.items() if value is not None}


def test_compiled_equals_torch(dipole_case: Any) -> None:
    compiled, reference = results(dipole_case, "c"), results(dipole_case, "torch")
    # the compiled kernels tell of every weight, torch of those only that matter
    gradients = {name: value for name, value in compiled.items() if name.startswith("gradient")}
    scale = max(np.abs(value).max(initial=0.0) for value in gradients.values())
    for name, value in compiled.items():
        expected = reference.get(name, np.zeros_like(value))
        allowed = 1e-10 * (scale if name in gradients else np.abs(expected).max())
        assert np.abs(value - expected).max(initial=0.0) <= allowed, name
    assert {name for name in reference if name not in gradients} <= compiled.keys()

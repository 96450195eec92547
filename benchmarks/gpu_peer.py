"""Worker of mace-torch for `gpu.py`, run by an interpreter that has it; with cuEquivariance if asked for."""

from __future__ import annotations

import itertools
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_timing import Step, device_facts, serve, wait
from peer import build_model, identity, make_loader, read_dataset, training_step


def identify(settings: dict[str, Any]) -> dict[str, Any]:
    """Return versions; an error if a package is missing."""
    facts = identity() | device_facts(settings["device"])
    if settings["cuequivariance"]:
        import_module("cuequivariance_torch")
        facts["cuequivariance"] = version("cuequivariance-torch")
    return facts


def prepare(settings: dict[str, Any], case: dict[str, Any]) -> Step:
    """Build what a case needs; write weights, if there are none yet, and results."""
    torch.set_default_dtype(getattr(torch, case["dtype"]))
    device = torch.device(settings["device"])
    model = build_model(case["model"])
    weights = Path(case["weights"])
    if weights.exists():
        with np.load(weights) as stored:
            model.load_state_dict({name: torch.from_numpy(value) for name, value in stored.items()})
    else:
        np.savez(weights, **{name: value.numpy() for name, value in model.state_dict().items()})
    model = model.to(device)
    if settings["cuequivariance"]:
        convert = import_module("mace.cli.convert_e3nn_cueq").run
        model = convert(model, device=device.type, return_model=True).to(device)
    batches = [batch.to(device) for batch in make_loader(case, read_dataset(case), shuffle=False)]
    _write(case["results"], model, batches[0])
    endless = itertools.cycle(batches)
    wait(device)
    if case["task"] == "training":
        take = training_step(case, model, device)
        return lambda: take(next(endless))
    model.requires_grad_(False)
    return lambda: _evaluated(model, next(endless))


def _evaluated(model: torch.nn.Module, batch: Any) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = model(
        batch.to_dict(), training=False, compute_force=True, compute_virials=False, compute_stress=False
    )
    return found


def _write(file: str, model: torch.nn.Module, batch: Any) -> None:
    found = _evaluated(model, batch)
    energies, forces = (found[name].detach().double().cpu().numpy() for name in ("energy", "forces"))
    np.savez(file, energies=energies, forces=forces)


if __name__ == "__main__":
    serve(prepare, identify)

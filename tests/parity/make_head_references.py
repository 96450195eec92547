"""Make the stored arrays of models with several heads that `make_references` does not make; run it in the same way.

    oracle/bin/python tests/parity/make_head_references.py tests/parity/references

For each of its cases with several heads, the folder ``mixed_heads`` has what every head says of every structure, and of
a batch in which each structure is for another head: every loss with all weights one, its gradients, and parameters
after three steps of Adam; and the losses with one kind of weight at a time, or without some labels.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import make_references as single
import numpy as np
import torch
from mace.tools import AtomicNumberTable

FOLDER = "mixed_heads"
STRIDE = 11
"""Which entries of gradients and parameters are stored, besides all those of readouts."""

UNLABELED = 2
"""The structure that has no label but its energy, where labels are missing."""

PROPERTIES = ("energy", "forces", "stress", "virials")


def mixed_batch(settings: dict, elements: AtomicNumberTable):  # noqa: ANN201 - a type of the original
    """Let each structure be for another head, with all weights one."""
    batch = single.make_batch(settings, elements)
    n_heads = len(settings["options"]["heads"])
    batch.head = torch.arange(len(batch.head)) % n_heads
    for name in ("weight", *(f"{name}_weight" for name in PROPERTIES)):
        batch[name] = torch.ones_like(batch[name])
    return batch


def without_weights(settings: dict, elements: AtomicNumberTable) -> Iterator[tuple[str, object]]:
    """Name batches that differ in weights or labels: all ones, one kind of weight, and labels that are missing."""
    uneven = single.make_batch(settings, elements)
    yield "even", mixed_batch(settings, elements)
    weighted = mixed_batch(settings, elements)
    weighted.weight = uneven.weight
    yield "structures", weighted
    weighted = mixed_batch(settings, elements)
    for name in PROPERTIES:
        weighted[f"{name}_weight"] = uneven[f"{name}_weight"]
    yield "properties", weighted
    partial = mixed_batch(settings, elements)
    # as the original reads a file without them: zeros, with weight zero
    for name in ("forces", "stress", "virials"):
        partial[f"{name}_weight"][UNLABELED] = 0.0
        partial[name][partial.batch == UNLABELED if name == "forces" else UNLABELED] = 0.0
    yield "missing", partial


def flat(named: dict[str, torch.Tensor | None], shapes: dict[str, torch.Size]) -> np.ndarray:
    """Join arrays in the order of the parameters; of those that are not readouts only some entries."""
    whole = {name: torch.zeros(shape) if named[name] is None else named[name] for name, shape in shapes.items()}
    values = {name: value.detach().numpy().reshape(-1) for name, value in whole.items()}
    readouts = [value for name, value in values.items() if name.startswith("readouts.")]
    others = [value for name, value in values.items() if not name.startswith("readouts.")]
    return np.concatenate([np.concatenate(others)[::STRIDE], *readouts])


def losses_of(settings: dict) -> dict[str, torch.nn.Module]:
    """Return all losses that a model can have."""
    return single.LOSSES | single.DIPOLE_LOSSES.get(settings["model"], {})


def three_steps(settings: dict, loss: torch.nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """Return gradients at the start, and parameters after three steps as in `make_references.evaluate`."""
    elements = AtomicNumberTable(sorted(single.ENERGIES))
    model, batch = single.build(settings, elements), mixed_batch(settings, elements)
    shapes = {name: value.shape for name, value in model.named_parameters()}
    groups = [
        {"params": [p for n, p in model.named_parameters() if single.decays(n)], "weight_decay": 5e-3},
        {"params": [p for n, p in model.named_parameters() if not single.decays(n)], "weight_decay": 0.0},
    ]
    optimizer, gradients = torch.optim.Adam(groups, lr=0.01, amsgrad=True), None
    for _ in range(3):
        optimizer.zero_grad()
        loss(pred=single.compute(settings, model, batch), ref=batch).backward()
        if gradients is None:
            gradients = flat({name: value.grad for name, value in model.named_parameters()}, shapes)
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=10.0)
        optimizer.step()
    return gradients, flat(dict(model.named_parameters()), shapes)


def evaluate(settings: dict) -> dict[str, np.ndarray]:
    """Run one case."""
    elements, result = AtomicNumberTable(sorted(single.ENERGIES)), {}
    model, batch = single.build(settings, elements), mixed_batch(settings, elements)
    for i, name in enumerate(settings["options"]["heads"]):
        batch.head = torch.full_like(batch.head, i)
        output = single.compute(settings, model, batch)
        result |= {f"head/{name}/{key}": output[key].detach().numpy() for key in ("energy", "forces")}
    for word, loss in losses_of(settings).items():
        for kind, batch in without_weights(settings, elements):
            output = single.compute(settings, model, batch)
            result[f"{kind}/loss/{word}"] = loss(pred=output, ref=batch).detach().numpy()
        result[f"gradients/{word}"], result[f"stepped/{word}"] = three_steps(settings, loss)
    return result


def main() -> None:
    """Write one file per case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", help="only these cases")
    options = parser.parse_args()
    (options.folder / FOLDER).mkdir(parents=True, exist_ok=True)
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    for settings in single.HEAD_CASES:
        if options.names and settings["name"] not in options.names:
            continue
        model = single.build(settings, AtomicNumberTable(sorted(single.ENERGIES)))
        parameters = {name: list(value.shape) for name, value in model.named_parameters()}
        result = evaluate(settings)
        np.savez_compressed(options.folder / FOLDER / f"{settings['name']}.npz",
                            parameters=json.dumps(parameters), **result)  # fmt: skip
        print(settings["name"], {word: float(result[f"even/loss/{word}"]) for word in losses_of(settings)})


if __name__ == "__main__":
    main()

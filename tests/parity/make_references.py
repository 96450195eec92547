"""Make the stored arrays of this folder with the original, in a virtual environment of its own.

    python -m venv oracle && oracle/bin/pip install torch==2.13.0 mace-torch==0.3.16
    oracle/bin/python tests/parity/make_references.py tests/parity/references

Each case stores the settings, the structures, the random weights of the original model, and what the original computes
from them in float64: energies, forces, stress, dipoles, the loss with its parameter gradients, and parameters and
moving averages after three steps of Adam with amsgrad. Cases of models with dipoles lie in the folder ``dipoles``, of
models with conditions in ``conditions``, of models with several heads in ``heads``; what the others say of single
atoms, virials and features, in ``atoms``. What every head says of every structure, and how batches of mixed heads are
trained on, is made by ``make_head_references.py``.
"""

from __future__ import annotations

import argparse
import json
import sys
import zlib
from pathlib import Path

import mace  # noqa: F401  - the original; must be imported before e3nn
import numpy as np
import torch
from ase import Atoms
from e3nn import o3
from mace import data, modules
from mace.tools import AtomicNumberTable, torch_geometric
from original_inputs import (
    ATTENTION,
    CHANNELS,
    DENSITY,
    DENSITY_RESIDUAL,
    ENERGIES,
    NONLINEAR,
    PLAIN,
    RESIDUAL,
    atoms_arrays,
    structures,
)
from torch_ema import ExponentialMovingAverage

R_MAX = 4.0
LARGEST = 5000
"""Entries of an array that is stored as it is. Larger weights are drawn in a way that can be repeated."""

STRIDE = 61
"""Which entries of other large arrays are stored."""


def case(name: str, hidden: str, l_max: int, correlation: int, layers: int, **more: object) -> dict:
    """Describe one case; see `CASES`."""
    settings = dict(
        name=name, hidden=hidden, l_max=l_max, correlation=correlation, layers=layers, model="MACE",
        first=PLAIN, other=RESIDUAL, radial="bessel", transform="None", repulsion=False, gate="silu", seed=len(name),
        options={},
    )  # fmt: skip
    settings.update(more)
    return settings


CASES = [
    case("scalar_l1_c1_t1", "0e", 1, 1, 1),
    case("scalar_l3_c3_t2", "0e", 3, 3, 2),
    case("vector_l3_c3_t2", "0e+1o", 3, 3, 2),
    case("vector_l2_c2_t3", "0e+1o", 2, 2, 3, model="ScaleShiftMACE", first=RESIDUAL),
    case("vector_l1_c3_t1", "0e+1o", 1, 3, 1, model="ScaleShiftMACE", first=RESIDUAL),
    case("tensor_l3_c2_t2", "0e+1o+2e", 3, 2, 2),
    case("tensor_l2_c3_t2", "0e+1o+2e", 2, 3, 2, model="ScaleShiftMACE", first=RESIDUAL),
    case("tensor_l2_c1_t3", "0e+1o+2e", 2, 1, 3),
    case("density_l2_c2_t2", "0e+1o", 2, 2, 2, model="ScaleShiftMACE", first=DENSITY, other=DENSITY_RESIDUAL),
    case("repulsion_l3_c2_t2", "0e+1o", 3, 2, 2, model="ScaleShiftMACE", first=RESIDUAL,
         transform="Agnesi", repulsion=True),
    case("soft_l1_c2_t2", "0e+1o", 1, 2, 2, radial="gaussian", transform="Soft", gate="tanh"),
    case("chebyshev_l1_c1_t2", "0e+1o", 1, 1, 2, radial="chebyshev", gate="None"),
    case("vector_l1_c4_t2", "0e+1o", 1, 4, 2, gate="abs"),
    case("attention_l2_c2_t2", "0e+1o", 2, 2, 2, model="ScaleShiftMACE", first=RESIDUAL, other=ATTENTION,
         options={"apply_cutoff": False}),
    case("nonlinear_l2_c2_t2", "0e+1o", 2, 2, 2, model="ScaleShiftMACE", first=NONLINEAR, other=NONLINEAR,
         transform="Agnesi", repulsion=True,
         options={"apply_cutoff": False, "edge_irreps": "3x0e+3x1o", "use_edge_irreps_first": True,
                  "use_agnostic_product": True, "use_last_readout_only": True,
                  "readout_cls": "NonLinearBiasReadoutBlock"}),
    case("gates_l3_c2_t2", "0e+1o+2e", 3, 2, 2, model="ScaleShiftMACE", first=NONLINEAR, other=NONLINEAR),
    case("late_l2_c3_t3", "0e+1o", 2, 3, 3, seed=5,
         options={"apply_cutoff": False, "edge_irreps": "3x0e+3x1o", "use_last_readout_only": True}),
    case("late_density_l2_c2_t2", "0e+1o", 2, 2, 2, model="ScaleShiftMACE", first=DENSITY, other=DENSITY_RESIDUAL,
         options={"apply_cutoff": False, "use_agnostic_product": True}),
]  # fmt: skip


ATOMIC, ENERGY = dict(model="AtomicDipolesMACE", vectors=3), dict(model="EnergyDipolesMACE", vectors=3)
DIPOLE_CASES = [
    case("atomic_vector_l2_c2_t1", "0e+1o", 2, 2, 1, **ATOMIC),
    case("atomic_vector_l3_c3_t2", "0e+1o", 3, 3, 2, **ATOMIC),
    case("atomic_tensor_l3_c2_t2", "0e+1o+2e", 3, 2, 2, **ATOMIC, gate="tanh"),
    case("atomic_tensor_l2_c2_t3", "0e+1o+2e", 2, 2, 3, **ATOMIC, first=RESIDUAL),
    case("energy_vector_l1_c3_t1", "0e+1o", 1, 3, 1, **ENERGY),
    case("energy_vector_l3_c3_t2", "0e+1o", 3, 3, 2, **ENERGY),
    case("energy_tensor_l3_c2_t2", "0e+1o+2e", 3, 2, 2, **ENERGY, gate="tanh"),
    case("energy_tensor_l2_c2_t3", "0e+1o+2e", 2, 2, 3, **ENERGY, first=RESIDUAL, gate="None"),
    case("energy_density_l2_c2_t2", "0e+1o", 2, 2, 2, **ENERGY, first=DENSITY, other=DENSITY_RESIDUAL, gate="abs"),
    case("energy_scalars_l2_c2_t2", "0e+1o", 2, 2, 2, model="EnergyDipolesMACE", vectors=0),
]  # fmt: skip
"""Models with dipoles; ``vectors`` is the number of vectors in the hidden layer of the last readout."""


CONDITION_CASES = [
    case("charge_spin_l2_c2_t2", "0e+1o", 2, 2, 2, model="ScaleShiftMACE", first=RESIDUAL,
         options={"use_embedding_readout": True, "embedding_specs": {
             "total_charge": {"type": "categorical", "per": "graph", "num_classes": 9, "emb_dim": 5, "offset": 4},
             "total_spin": {"type": "categorical", "per": "graph", "num_classes": 5, "emb_dim": 3}}}),
    case("temperature_sites_l2_c3_t2", "0e+1o", 2, 3, 2,
         options={"embedding_specs": {
             "elec_temp": {"type": "continuous", "per": "graph", "in_dim": 1, "emb_dim": 4},
             "site": {"type": "categorical", "per": "atom", "num_classes": 3, "emb_dim": 3, "offset": 1},
             "moments": {"type": "continuous", "per": "atom", "in_dim": 2, "emb_dim": 5, "use_bias": False}}}),
]  # fmt: skip
"""Models that know of conditions."""


HEAD_CASES = [
    case("linear_l2_c2_t1", "0e+1o", 2, 2, 1, model="ScaleShiftMACE", first=RESIDUAL,
         options={"heads": ["low", "high"]}),
    case("hidden_l1_c2_t3", "0e+1o", 1, 2, 3, repulsion=True, transform="Agnesi", model="ScaleShiftMACE",
         first=RESIDUAL, options={"heads": ["low", "Default", "high"]}),
    case("biases_l1_c2_t2", "0e+1o", 1, 2, 2, gate="tanh",
         options={"heads": ["low", "high"], "readout_cls": "NonLinearBiasReadoutBlock"}),
    case("conditions_l1_c2_t2", "0e+1o", 1, 2, 2, model="ScaleShiftMACE", first=RESIDUAL,
         options={"heads": ["low", "high"]} | CONDITION_CASES[0]["options"]),
    case("last_l1_c2_t2", "0e+1o", 1, 2, 2,
         options={"heads": ["pt_head", "Default", "high"], "use_last_readout_only": True}),
    case("dipoles_l1_c2_t2", "0e+1o", 1, 2, 2, **ENERGY, options={"heads": ["low", "middle", "high"]}),
]  # fmt: skip
"""Models with several heads; methanol and slab are for the last of them, silicon is for the first.

Those of dipoles have energies of isolated atoms for each head, and nothing else of its own.
"""

FOLDERS = {"dipoles": DIPOLE_CASES, "conditions": CONDITION_CASES, "heads": HEAD_CASES, "atoms": CASES}
"""Where cases lie; of the last there are the atoms only."""


def conditions(settings: dict, atoms: Atoms, i: int) -> dict[str, object]:
    """Make up the conditions of a structure."""
    rng = np.random.default_rng(17 + i)
    everything = {
        "total_charge": [1.0, 0.0, -3.0][i], "total_spin": [2.0, 1.0, 4.0][i], "elec_temp": [0.3, 0.0, 1.7][i],
        "site": rng.integers(-1, 2, len(atoms)), "moments": rng.normal(size=(len(atoms), 2)),
    }  # fmt: skip
    return {name: everything[name] for name in settings.get("options", {}).get("embedding_specs", {})}


def build_dipole_model(settings: dict, elements: AtomicNumberTable) -> torch.nn.Module:
    """Build the original's model of a case with dipoles, with random weights."""
    energies = settings["model"] == "EnergyDipolesMACE"
    hidden = ["5x0e"] * energies + [f"{settings['vectors']}x1o"] * (settings["vectors"] > 0)
    of_atoms = np.array([ENERGIES[z] for z in elements.zs])
    if heads := settings["options"].get("heads"):
        of_atoms = of_atoms + 0.25 * np.arange(len(heads))[:, None]
    torch.manual_seed(settings["seed"])
    return getattr(modules, settings["model"])(
        r_max=R_MAX, num_bessel=6, num_polynomial_cutoff=5, max_ell=settings["l_max"],
        interaction_cls=modules.interaction_classes[settings["other"]],
        interaction_cls_first=modules.interaction_classes[settings["first"]],
        num_interactions=settings["layers"], num_elements=len(elements),
        hidden_irreps=o3.Irreps("+".join(f"{CHANNELS}x{irrep}" for irrep in settings["hidden"].split("+"))),
        MLP_irreps=o3.Irreps("+".join(hidden)), avg_num_neighbors=9.5, atomic_numbers=elements.zs,
        atomic_energies=of_atoms if energies else None, correlation=settings["correlation"],
        gate=modules.gate_dict[settings["gate"]], radial_MLP=[7, 9],
    )  # fmt: skip


def build(settings: dict, elements: AtomicNumberTable) -> torch.nn.Module:
    """Build the original's model of a case with random weights."""
    if "vectors" in settings:
        return build_dipole_model(settings, elements)
    hidden = o3.Irreps("+".join(f"{CHANNELS}x{irrep}" for irrep in settings["hidden"].split("+")))
    torch.manual_seed(settings["seed"])
    options = dict(settings["options"])
    if "edge_irreps" in options:
        options["edge_irreps"] = o3.Irreps(options["edge_irreps"])
    if "readout_cls" in options:
        options["readout_cls"] = getattr(modules.blocks, options["readout_cls"])
    energies, shift = np.array([ENERGIES[z] for z in elements.zs]), 0.3 * (settings["model"] == "ScaleShiftMACE")
    constants = dict(atomic_energies=energies, atomic_inter_scale=0.8, atomic_inter_shift=shift)
    if "heads" in options:
        count = np.arange(len(options["heads"]))
        constants = dict(atomic_energies=energies + 0.25 * count[:, None], atomic_inter_scale=0.8 - 0.1 * count,
                         atomic_inter_shift=shift * (1.0 - count))  # fmt: skip
    model = modules.ScaleShiftMACE(
        r_max=R_MAX, num_bessel=6, num_polynomial_cutoff=5, max_ell=settings["l_max"],
        interaction_cls=modules.interaction_classes[settings["other"]],
        interaction_cls_first=modules.interaction_classes[settings["first"]],
        num_interactions=settings["layers"], num_elements=len(elements), hidden_irreps=hidden,
        MLP_irreps=o3.Irreps("5x0e"),
        avg_num_neighbors=9.5, atomic_numbers=elements.zs, correlation=settings["correlation"],
        gate=modules.gate_dict[settings["gate"]], pair_repulsion=settings["repulsion"], use_reduced_cg=False,
        distance_transform=settings["transform"], radial_MLP=[7, 9], radial_type=settings["radial"],
        **constants, **options,
    )  # fmt: skip
    # the original adds to these in place, which torch 2.13 refuses where there are gradients
    model.node_embedding.register_forward_hook(lambda module, inputs, output: output.clone())
    return stirred(model)


def stirred(model: torch.nn.Module) -> torch.nn.Module:
    """Change weights that begin as zero, one or nearly so, and draw large ones so that they need not be stored."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            usual = name.endswith((".weight", "weights_max")) and "_embedding.weight" not in name
            if not (usual or ".weights." in name or name.startswith("node_embedding")) and value.numel():
                value.add_(torch.randn_like(value), alpha=0.3)
            if value.numel() > LARGEST:
                value.copy_(torch.tensor(drawn(name, value.shape)))
    return model


def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draw a weight from its name; numpy promises the same numbers for ever."""
    return np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape))


def thinned(result: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Leave out large weights, of which the shape is enough, and most entries of other large arrays."""
    small = {key: value for key, value in result.items() if value.size <= LARGEST}
    for key, value in result.items():
        if value.size > LARGEST:
            small[f"shape/{key}"] = np.array(value.shape)
            if not key.startswith("weights/"):
                small[f"some/{key}"] = value.reshape(-1)[::STRIDE]
    return small


def make_batch(settings: dict, elements: AtomicNumberTable):  # noqa: ANN201 - a type of the original
    """Collate the structures with made-up labels, conditions and uneven weights."""
    heads = settings["options"].get("heads", ["Default"])
    rng, rng_of_dipoles = np.random.default_rng(11), np.random.default_rng(13)
    items = []
    for i, atoms in enumerate(structures()):
        configuration = data.Configuration(
            atomic_numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell.array.copy(), pbc=tuple(atoms.pbc),
            properties={
                "energy": sum(ENERGIES[z] for z in atoms.numbers) - 4.0 * len(atoms) + rng.normal(),
                "forces": rng.normal(size=(len(atoms), 3)), "stress": rng.normal(size=(3, 3)) * 0.05,
                "virials": rng.normal(size=(3, 3)), "dipole": rng_of_dipoles.normal(size=3),
                "charges": rng_of_dipoles.normal(size=len(atoms)) * 0.3, **conditions(settings, atoms, i),
            },
            property_weights={"energy": 1.0 + i, "forces": 0.5 + i, "stress": 2.0 - 0.3 * i, "virials": 1.0 + 0.2 * i},
            weight=1.0 + 0.5 * i, head=heads[0 if i == 1 else -1],
        )  # fmt: skip
        items.append(data.AtomicData.from_config(configuration, z_table=elements, cutoff=R_MAX, heads=heads))
    loader = torch_geometric.dataloader.DataLoader(items, batch_size=len(items), shuffle=False)
    return next(iter(loader))


LOSSES = {
    "weighted": modules.WeightedEnergyForcesLoss(2.0, 50.0),
    "stress": modules.WeightedEnergyForcesStressLoss(2.0, 50.0, 10.0),
    "virials": modules.WeightedEnergyForcesVirialsLoss(2.0, 50.0, 10.0),
    "forces_only": modules.WeightedForcesLoss(50.0),
    "huber": modules.WeightedHuberEnergyForcesStressLoss(2.0, 50.0, 10.0, huber_delta=0.3),
    "universal": modules.UniversalLoss(2.0, 50.0, 10.0, huber_delta=0.3),
    "l1l2energyforces": modules.WeightedEnergyForcesL1L2Loss(2.0, 50.0),
}
DIPOLE_LOSSES = {
    "AtomicDipolesMACE": {"dipole": modules.DipoleSingleLoss(3.0)},
    "EnergyDipolesMACE": {"energy_forces_dipole": modules.WeightedEnergyForcesDipoleLoss(2.0, 50.0, 3.0)},
}


def decays(name: str) -> bool:
    """Tell whether the original applies weight decay to a parameter."""
    return name.startswith("products.") or (name.startswith("interactions.") and "linear.weight" in name)


def arrays(prefix: str, tensors) -> dict[str, np.ndarray]:  # noqa: ANN001
    """Name tensors under a prefix."""
    return {f"{prefix}/{key}": value.detach().numpy().copy() for key, value in tensors if value is not None}


def compute(settings: dict, model: torch.nn.Module, batch) -> dict[str, torch.Tensor]:  # noqa: ANN001
    """Let the original predict all it can."""
    if settings["model"] == "AtomicDipolesMACE":
        return model(batch.to_dict(), training=True)
    return model(batch.to_dict(), training=True, compute_force=True, compute_virials=True, compute_stress=True)


def losses_of(settings: dict) -> tuple[dict[str, torch.nn.Module], torch.nn.Module]:
    """Return the losses of a case, and the one that is minimized."""
    losses = DIPOLE_LOSSES.get(settings["model"], LOSSES)
    return losses, next(iter(losses.values()))


def evaluate(settings: dict) -> dict[str, np.ndarray]:
    """Run one case."""
    elements = AtomicNumberTable(sorted(ENERGIES))
    model, batch = build(settings, elements), make_batch(settings, elements)
    losses, minimized = losses_of(settings)
    result = arrays("weights", model.named_parameters())
    output = compute(settings, model, batch)
    predicted = [key for key in ("energy", "forces", "stress", "virials", "node_energy") if key in output]
    # the node energies of EnergyDipolesMACE are those of isolated atoms
    predicted = [key for key in predicted if "vectors" not in settings or key != "node_energy"]
    for key in predicted + ["dipole", "atomic_dipoles"] * ("vectors" in settings):
        result[f"output/{key}"] = output[key].detach().numpy()
    # stress of the slab is compared on its true volume, which the original inflates: store what it divided by
    result["output/volume"] = torch.linalg.det(batch.cell.view(-1, 3, 3)).abs().numpy()
    for key in ("energy", "forces", "stress", "virials") + ("dipole", "charges") * ("vectors" in settings):
        result[f"labels/{key}"] = batch[key].numpy()
    for key, loss in losses.items():
        result[f"loss/{key}"] = loss(pred=output, ref=batch).detach().numpy()
    minimized(pred=output, ref=batch).backward()
    # what does not matter has no gradient here, a zero there
    result |= arrays(
        "gradients", ((n, torch.zeros_like(p) if p.grad is None else p.grad) for n, p in model.named_parameters())
    )
    groups = [
        {"params": [p for n, p in model.named_parameters() if decays(n)], "weight_decay": 5e-3},
        {"params": [p for n, p in model.named_parameters() if not decays(n)], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.Adam(groups, lr=0.01, amsgrad=True)
    average = ExponentialMovingAverage(model.parameters(), decay=0.99)
    for _ in range(3):
        optimizer.zero_grad()
        minimized(pred=compute(settings, model, batch), ref=batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=10.0)
        optimizer.step()
        average.update()
    result |= arrays("stepped", model.named_parameters())
    with average.average_parameters():
        result |= arrays("averaged", model.named_parameters())
    return result


def evaluate_atoms(settings: dict) -> dict[str, np.ndarray]:
    """Let the original say all it can of single atoms, with the weights of `evaluate`."""
    elements = AtomicNumberTable(sorted(ENERGIES))
    wanted = dict(compute_force=True, compute_stress=True, compute_edge_forces=True, compute_atomic_stresses=True)
    output = build(settings, elements)(make_batch(settings, elements).to_dict(), **wanted)
    return {key: output[key].detach().numpy() for key in ("atomic_virials", "node_feats")}


def main() -> None:
    """Write one file per case and one with the structures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", help="only these cases")
    options = parser.parse_args()
    folder = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    provenance = {"torch": torch.__version__, "mace-torch": mace.__version__, "python": sys.version.split()[0],
                  "r_max": R_MAX, "channels": CHANNELS, "energies": ENERGIES}  # fmt: skip
    stored = {f"{i}/{key}": value for i, atoms in enumerate(structures()) for key, value in atoms_arrays(atoms).items()}
    np.savez_compressed(folder / "structures.npz", **stored)
    for name in FOLDERS:
        (folder / name).mkdir(exist_ok=True)
    for settings in CASES + DIPOLE_CASES + CONDITION_CASES + HEAD_CASES:
        if options.names and settings["name"] not in options.names:
            continue
        result = evaluate(settings)
        place = folder / next((name for name, cases in FOLDERS.items() if settings in cases and name != "atoms"), "")
        if "embedding_specs" in settings["options"]:
            for i, atoms in enumerate(structures()):
                values = conditions(settings, atoms, i).items()
                result |= {f"condition/{i}/{name}": np.asarray(value) for name, value in values}
        np.savez_compressed(place / f"{settings['name']}.npz", settings=json.dumps(settings | provenance),
                            **thinned(result))  # fmt: skip
        if settings in CASES:
            np.savez_compressed(folder / "atoms" / f"{settings['name']}.npz", **evaluate_atoms(settings))
        print(settings["name"], float(result[f"loss/{next(iter(losses_of(settings)[0]))}"]))


if __name__ == "__main__":
    main()

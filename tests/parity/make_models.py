"""Model files of mace-torch with random weights, and what it computes from them; run by an interpreter that has it.

    /path/to/environment/bin/python tests/parity/make_models.py FOLDER [NAME ...]

Writes ``<version>/<name>.model`` and ``<version>/<name>.npz`` with structures, energies, forces, stress and dipoles in
float64, for the last head and for each of several.
With the folder named in MACE_COMPAT_FIXTURES the tests of test_original_files.py open them. Any version
from 0.3.4 to 0.3.16 will do: arguments it does not know are left out, and cases that need them are skipped.
"""

from __future__ import annotations

import os

os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # older versions of e3nn need it to be imported at all

import argparse
import inspect
import json
import warnings
from importlib.metadata import version
from pathlib import Path

warnings.filterwarnings("ignore")

import mace  # noqa: F401  - the original; must be imported before e3nn
import numpy as np
import torch
from ase import Atoms
from e3nn import o3
from mace import data, modules
from mace.calculators import MACECalculator
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


def case(hidden: str, l_max: int, correlation: int, layers: int, **more: object) -> dict:
    """Describe one case; see `CASES`."""
    return {
        "hidden": hidden, "l_max": l_max, "correlation": correlation, "layers": layers, "model": "ScaleShiftMACE",
        "first": RESIDUAL, "other": RESIDUAL, "dtype": "float64", "r_max": 4.0, "gate": "silu", "mlp": "5x0e",
        "options": {},
    } | more  # fmt: skip


ATOMIC = {"model": "AtomicDipolesMACE", "first": PLAIN, "mlp": "3x1o"}
ENERGY = {"model": "EnergyDipolesMACE", "first": PLAIN, "mlp": "5x0e+3x1o"}
LATE = {"apply_cutoff": False, "distance_transform": "Agnesi"}
BIASED = "NonLinearBiasReadoutBlock"
FOUNDATION = LATE | {
    "edge_irreps": "3x0e+3x1o+3x2e", "use_edge_irreps_first": True, "use_agnostic_product": True,
    "use_last_readout_only": True, "readout_cls": BIASED, "pair_repulsion": True,
}  # fmt: skip
"""What foundation models with non-linear interactions have together."""

PREDICTED = ("energy", "forces", "stress", "dipole")

TYPES = {"AtomicDipolesMACE": "DipoleMACE", "EnergyDipolesMACE": "EnergyDipoleMACE"}
"""What the original's calculator has to be told of models of dipoles."""

READ = inspect.signature(data.AtomicData.__init__).parameters
"""What this version reads of a structure; with ``extra_data`` anything."""

CHARGE_AND_SPIN = {
    "total_charge": {"type": "categorical", "per": "graph", "num_classes": 21, "emb_dim": 5, "offset": 10},
    "total_spin": {"type": "categorical", "per": "graph", "num_classes": 9, "emb_dim": 3},
}
"""Conditions, as MACE-OMOL-0 has them."""
OF_ATOMS = {
    "temperature": {"type": "continuous", "per": "graph", "in_dim": 1, "emb_dim": 4},
    "site": {"type": "categorical", "per": "atom", "num_classes": 4, "emb_dim": 3, "offset": 1, "key": "kind_of_site"},
    "moments": {"type": "continuous", "per": "atom", "in_dim": 2, "emb_dim": 5, "use_bias": False},
    "potential": {"type": "continuous", "per": "atom", "in_dim": 1, "emb_dim": 2},
}
"""Other conditions, which versions before 0.3.16 do not read."""

CASES = {
    "plain": case("0e+1o", 3, 3, 2, model="MACE", first=PLAIN),
    "scale_shift": case("0e+1o", 3, 3, 2),
    "one_layer": case("0e", 1, 1, 1, model="MACE", first=PLAIN),
    "one_layer_vectors": case("0e+1o", 1, 3, 1),
    "scalars": case("0e", 3, 3, 2, gate="tanh"),
    "tensors": case("0e+1o+2e", 2, 2, 2),
    "three_layers": case("0e+1o", 2, 2, 3, options={"radial_MLP": [7, 9]}),
    "mixed_correlation": case("0e+1o+2e", 2, [3, 1], 2, r_max=3.7),
    "density": case("0e+1o", 2, 2, 2, first=DENSITY, other=DENSITY_RESIDUAL),
    "density_residual": case("0e+1o", 2, 2, 2, first=DENSITY_RESIDUAL, other=DENSITY_RESIDUAL),
    "plain_everywhere": case("0e+1o", 2, 2, 2, first=PLAIN, other=PLAIN),
    "repulsion": case("0e+1o", 2, 2, 2, options={"pair_repulsion": True}),
    "agnesi": case("0e+1o", 3, 2, 2, options={"pair_repulsion": True, "distance_transform": "Agnesi"}),
    "soft": case("0e+1o", 2, 2, 2, options={"distance_transform": "Soft"}),
    "gaussian": case("0e+1o", 2, 2, 2, options={"radial_type": "gaussian"}),
    "reduced": case("0e+1o", 3, 3, 2, options={"use_reduced_cg": True}),
    "two_heads": case("0e+1o", 2, 2, 2, options={"heads": ["low", "high"]}),
    "single": case("0e+1o", 3, 3, 2, dtype="float32", options={"pair_repulsion": True, "distance_transform": "Agnesi"}),
    "attention": case("0e+1o", 2, 2, 2, other=ATTENTION),
    "attention_late": case("0e+1o+2e", 3, 2, 3, other=ATTENTION, options={"apply_cutoff": False}),
    "attention_narrow": case("0e+1o", 2, 2, 2, other=ATTENTION, options={"edge_irreps": "3x0e+3x1o"}),
    "nonlinear": case("0e+1o", 2, 2, 2, other=NONLINEAR, options={"edge_irreps": "4x0e+4x1o"}),
    "nonlinear_plain": case("0e+1o", 2, 2, 2, first=NONLINEAR, other=NONLINEAR, options={"radial_MLP": [7, 9]}),
    "nonlinear_one_layer": case("0e+1o", 2, 3, 1, first=NONLINEAR),
    "nonlinear_late": case("0e+1o+2e", 3, 3, 2, first=NONLINEAR, other=NONLINEAR, options=LATE),
    "nonlinear_foundation": case("0e+1o", 3, 3, 2, first=NONLINEAR, other=NONLINEAR, options=FOUNDATION),
    "nonlinear_heads": case(
        "0e+1o", 2, 2, 2, first=NONLINEAR, other=NONLINEAR, options=FOUNDATION | {"heads": ["low", "high"]}
    ),
    "nonlinear_single": case(
        "0e+1o",
        3,
        2,
        2,
        dtype="float32",
        first=NONLINEAR,
        other=NONLINEAR,
        options=FOUNDATION | {"edge_irreps": "3x0e+3x1o"},
    ),
    "nonlinear_narrow": case(
        "0e+1o",
        2,
        2,
        2,
        first=NONLINEAR,
        other=NONLINEAR,
        options={"edge_irreps": "3x0e+3x1o", "use_edge_irreps_first": True},
    ),
    "nonlinear_without_scalars": case("0e+1o", 2, 2, 2, other=NONLINEAR, options={"edge_irreps": "3x1o"}),
    "nonlinear_last_vectors": case("0e+1o", 2, 2, 2, other=NONLINEAR, options={"keep_last_layer_irreps": True}),
    "wide_edges": case("0e+1o", 3, 2, 2, options={"edge_irreps": "3x0e+3x1o+3x2e+3x3o"}),
    "scalar_edges": case("0e+1o", 2, 2, 2, options={"edge_irreps": "3x0e", "use_edge_irreps_first": True}),
    "last_vectors": case("0e+1o", 2, 2, 2, options={"keep_last_layer_irreps": True}),
    "late_cutoff": case("0e+1o", 2, 2, 2, options={"apply_cutoff": False}),
    "late_cutoff_density": case("0e+1o", 2, 2, 2, first=DENSITY, other=DENSITY_RESIDUAL, options=LATE),
    "last_readout": case("0e+1o", 2, 2, 2, options={"use_last_readout_only": True}),
    "last_readout_three_layers": case("0e+1o", 2, 2, 3, options={"use_last_readout_only": True}),
    "agnostic_product": case("0e+1o", 2, 2, 2, options={"use_agnostic_product": True}),
    "biased_readout": case("0e+1o", 2, 2, 2, options={"readout_cls": BIASED}),
    "biased_readout_heads": case("0e+1o", 2, 2, 2, options={"readout_cls": BIASED, "heads": ["low", "high"]}),
    "heads_plain": case("0e+1o", 2, 2, 2, model="MACE", first=PLAIN, options={"heads": ["low", "high"]}),
    "heads_one_layer": case("0e+1o", 2, 2, 1, options={"heads": ["Default", "high"]}),
    "heads_three": case("0e+1o+2e", 2, 3, 3, options=LATE | {"heads": ["a b", "Default", "c"], "pair_repulsion": True}),
    "heads_last_readout": case(
        "0e+1o", 2, 2, 2, gate="tanh", options={"use_last_readout_only": True, "heads": ["pt_head", "Default"]}
    ),
    "heads_single": case("0e+1o", 2, 2, 2, dtype="float32", options={"heads": ["one", "two", "three"]}),
    "heads_dipoles": case("0e+1o", 2, 2, 2, **ENERGY, unnamed_heads=2),
    "mirror_images": case("0e+1e", 2, 2, 2, options={"use_so3": True}),
    "conditions": case("0e+1o", 2, 2, 2, options={"embedding_specs": CHARGE_AND_SPIN}),
    "conditions_readout": case(
        "0e+1o", 2, 3, 2, options={"embedding_specs": CHARGE_AND_SPIN, "use_embedding_readout": True}
    ),
    "conditions_plain": case(
        "0e+1o",
        2,
        2,
        2,
        model="MACE",
        first=PLAIN,
        options={
            "embedding_specs": CHARGE_AND_SPIN
            | {"elec_temp": {"type": "continuous", "per": "graph", "in_dim": 1, "emb_dim": 4}},
            "use_embedding_readout": True,
        },
    ),
    "conditions_heads": case(
        "0e+1o",
        2,
        2,
        2,
        options={"embedding_specs": CHARGE_AND_SPIN, "use_embedding_readout": True, "heads": ["low", "high"]},
    ),
    "conditions_foundation": case(
        "0e+1o",
        3,
        2,
        2,
        first=NONLINEAR,
        other=NONLINEAR,
        options=FOUNDATION | {"embedding_specs": CHARGE_AND_SPIN, "use_embedding_readout": True},
    ),
    "conditions_of_atoms": case("0e+1o", 2, 2, 2, options={"embedding_specs": OF_ATOMS}),
    "conditions_single": case(
        "0e+1o",
        2,
        2,
        2,
        dtype="float32",
        options={"embedding_specs": CHARGE_AND_SPIN, "use_embedding_readout": True},
    ),
    "dipoles_one_layer": case("0e+1o+2e", 2, 2, 1, **ATOMIC),
    "dipoles_vectors": case("0e+1o", 3, 3, 2, **ATOMIC),
    "dipoles_tensors": case("0e+1o+2e", 2, 2, 3, **ATOMIC | {"first": RESIDUAL}, gate="tanh"),
    "dipoles_gaussian": case("0e+1o", 2, 2, 2, **ATOMIC, options={"radial_type": "gaussian"}),
    "dipoles_single": case("0e+1o", 2, 2, 2, **ATOMIC, dtype="float32"),
    "energy_dipoles_one_layer": case("0e+1o", 1, 3, 1, **ENERGY),
    "energy_dipoles_vectors": case("0e+1o", 3, 3, 2, **ENERGY),
    "energy_dipoles_tensors": case("0e+1o+2e", 2, 2, 2, **ENERGY, gate="tanh"),
    "energy_dipoles_three_layers": case("0e+1o", 2, 2, 3, **ENERGY, gate="None", options={"radial_MLP": [7, 9]}),
    "energy_dipoles_residual": case("0e+1o", 2, 2, 2, **ENERGY | {"first": RESIDUAL}, gate="abs"),
    "energy_dipoles_density": case("0e+1o", 2, 2, 2, **ENERGY | {"first": DENSITY, "other": DENSITY_RESIDUAL}),
    "energy_dipoles_scalars": case("0e+1o", 2, 2, 2, **ENERGY | {"mlp": "5x0e"}),
    "energy_dipoles_single": case("0e+1o+2e", 2, 2, 2, **ENERGY, dtype="float32"),
}


def under_conditions(atoms: Atoms, specs: dict, seed: int) -> list[Atoms]:
    """Return a structure under several conditions, the first time under those that count where none are given."""
    rng, variants = np.random.default_rng(seed), [atoms.copy()]
    for charge, spin in ((0, 1), (-1, 2), (3, 4)):
        variants.append(atoms.copy())
        variants[-1].info |= {"charge": charge, "spin": spin}
    for variant in variants:
        for name, spec in specs.items():
            key = spec.get("key", name)
            if spec["per"] == "atom" and spec["type"] == "categorical":
                variant.set_array(key, rng.integers(-1, 3, len(atoms)))
            elif spec["per"] == "atom":
                variant.set_array(
                    key, rng.normal(size=(len(atoms), spec["in_dim"]) if spec["in_dim"] > 1 else len(atoms))
                )
            elif spec["type"] == "continuous":
                variant.info[key] = float(rng.normal())
    return variants


def build(settings: dict) -> torch.nn.Module:
    """Build the model of a case with random weights, in torch's default precision.

    Raises:
        NotImplementedError: If this version has no such model.
    """
    kind = getattr(modules, settings["model"])
    hidden = "+".join(f"{CHANNELS}x{irrep}" for irrep in settings["hidden"].split("+"))
    options = dict(settings["options"])
    n_heads = settings.get("unnamed_heads", len(options.get("heads", [])))
    numbers = sorted(ENERGIES)
    energies = np.array([ENERGIES[z] for z in numbers])
    arguments = {
        "r_max": settings["r_max"], "num_bessel": 6, "num_polynomial_cutoff": 5, "max_ell": settings["l_max"],
        "num_interactions": settings["layers"], "num_elements": len(numbers), "hidden_irreps": o3.Irreps(hidden),
        "MLP_irreps": o3.Irreps(settings["mlp"]), "avg_num_neighbors": 9.5, "atomic_numbers": numbers,
        "correlation": settings["correlation"], "gate": modules.gate_dict[settings["gate"]],
        "atomic_energies": np.stack([energies + 0.25 * i for i in range(n_heads)]) if n_heads else energies,
    }  # fmt: skip
    for argument, word in (("interaction_cls", "other"), ("interaction_cls_first", "first")):
        if settings[word] not in modules.interaction_classes:
            raise NotImplementedError(settings[word])
        arguments[argument] = modules.interaction_classes[settings[word]]
    if settings["model"] == "ScaleShiftMACE":
        arguments |= {
            "atomic_inter_scale": [0.8, 0.5, 1.1][:n_heads] if n_heads else 0.8,
            "atomic_inter_shift": [0.3, -0.2, 0.1][:n_heads] if n_heads else 0.3,
        }
    if settings["model"] == "AtomicDipolesMACE":
        arguments["atomic_energies"] = None
    if n_heads and "heads" not in inspect.signature(modules.MACE.__init__).parameters:
        raise NotImplementedError("several heads")
    described = kind if settings["model"] in TYPES else modules.MACE
    known = set(inspect.signature(described.__init__).parameters)
    if missing := set(options) - known:
        raise NotImplementedError(", ".join(sorted(missing)))
    if "extra_data" not in READ and "temperature" in options.get("embedding_specs", {}):
        raise NotImplementedError("conditions with names of their own")
    if "extra_data" not in READ and n_heads and options.get("use_embedding_readout"):
        raise NotImplementedError("several heads with a readout of conditions")
    if n_heads and options.get("readout_cls") == BIASED and "mask_head(" not in first_half_of_biased_readout():
        raise NotImplementedError("heads of this readout of their own: here they mix in the second hidden layer")
    for name, value in (("use_reduced_cg", False), ("radial_MLP", [8, 8])):
        if name in known:
            options.setdefault(name, value)
    for name, value in options.items():
        if name == "edge_irreps":
            options[name] = o3.Irreps(value)
        if name == "readout_cls":
            options[name] = getattr(modules.blocks, value)
    torch.manual_seed(5)
    return stirred(kind(**arguments, **options))


def first_half_of_biased_readout() -> str:
    """Return what a readout with biases does before its second hidden layer."""
    return inspect.getsource(getattr(modules.blocks, BIASED).forward).partition("linear_mid")[0]


def stirred(model: torch.nn.Module) -> torch.nn.Module:
    """Change what begins as zero, one or nearly so, as it is after a training."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            usual = name.endswith((".weight", "weights_max")) and "embedding.weight" not in name
            if not usual and ".weights." not in name and value.numel():
                value.add_(torch.randn_like(value), alpha=0.3)
    return model


def in_double_precision(settings: dict, model: torch.nn.Module) -> torch.nn.Module:
    """Give a model of a higher precision the weights of a lower one; constants are exact, weights the rounded ones."""
    torch.set_default_dtype(torch.float64)
    exact = build(settings)
    learned = {"atomic_energies_fn.atomic_energies", "scale_shift.scale", "scale_shift.shift"}
    names = {name for name, _ in model.named_parameters()} | learned
    state = {name: value.double() for name, value in model.state_dict().items() if name in names}
    exact.load_state_dict(state, strict=False)
    return exact


def evaluate(path: Path, settings: dict, head: str | None) -> dict[str, np.ndarray]:
    """Compute all structures for a head with the original's calculator; dipoles are in Debye."""
    kind, specs = settings["model"], settings["options"].get("embedding_specs", {})
    options = {} if head is None or "unnamed_heads" in settings else {"head": head}
    if specs:
        options["info_keys"] = {"total_spin": "spin", "total_charge": "charge"}
        options["arrays_keys"] = {}
        for name, spec in specs.items():
            place = options["arrays_keys" if spec["per"] == "atom" else "info_keys"]
            place.setdefault(name, spec.get("key", name))
    if kind in TYPES:
        options["model_type"] = TYPES[kind]
    calculator = MACECalculator(model_paths=str(path), device="cpu", default_dtype="float64", **options)
    if "unnamed_heads" in settings:
        calculator.available_heads, calculator.head = heads_of(settings), head
    if head is not None and hasattr(calculator, "heads"):
        # older calculators ask for the head Default and take the last one if there is none
        calculator.heads = [*[""] * heads_of(settings).index(head), "Default"]
    result = {}
    for i, bare in enumerate(structures()):
        for j, atoms in enumerate(under_conditions(bare, specs, i) if specs else [bare]):
            # calculators with this attribute, of 0.3.14 and later, never see the charges
            if kind in TYPES and not hasattr(calculator, "arrays_keys"):
                atoms.set_array("Qs", np.random.default_rng(i).normal(size=len(atoms)) * 0.3)
            told = atoms_arrays(atoms)
            told |= {"charges": atoms.arrays["Qs"]} if "Qs" in atoms.arrays else {}
            told |= {f"info/{key}": value for key, value in atoms.info.items() if key not in bare.info}
            told |= {f"arrays/{key}": values for key, values in atoms.arrays.items() if key not in bare.arrays}
            calculator.calculate(atoms)
            told |= {key: calculator.results[key] for key in PREDICTED if key in calculator.results}
            result |= {f"{i}/{f'{j}/' if j else ''}{key}": np.asarray(value) for key, value in told.items()}
    return result


def heads_of(settings: dict) -> list[str]:
    """Return the names of several heads, numbers where they have none."""
    return settings["options"].get("heads", [str(i) for i in range(settings.get("unnamed_heads", 0))])


def write(folder: Path, name: str, settings: dict) -> None:
    """Write one case."""
    torch.set_default_dtype(getattr(torch, settings["dtype"]))
    model = build(settings)
    path = folder / f"{name}.model"
    torch.save(model, path)
    if settings["dtype"] == "float32":
        evaluated = folder / f"{name}.double"
        torch.save(in_double_precision(settings, model), evaluated)
    else:
        evaluated = path
    heads = heads_of(settings)
    result = evaluate(evaluated, settings, heads[-1] if heads else None)
    for head in heads:
        of_head = evaluate(evaluated, settings, head)
        result |= {f"head {head}/{key}": of_head[key] for key in of_head if key.split("/")[-1] in PREDICTED}
    if evaluated != path:
        evaluated.unlink()
    if name in ("scale_shift", "dipoles_vectors", "energy_dipoles_vectors", "conditions_readout"):
        content = {"model": model.state_dict(), "optimizer": {}, "lr_scheduler": {}}
        torch.save(content, folder / f"{name}_run-1_epoch-2.pt")
    told = {key: value if isinstance(value, (str, int, float, list)) else str(value) for key, value in settings.items()}
    provenance = {"version": version("mace-torch"), "torch": torch.__version__, "heads": heads}
    np.savez_compressed(folder / f"{name}.npz", settings=json.dumps(told | provenance), **result)
    print(folder.name, name, *(key for key in result if key.startswith("0/")), path.stat().st_size)


def main() -> None:
    """Write all cases this version has, or the named ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", default=list(CASES))
    options = parser.parse_args()
    folder = options.folder / version("mace-torch")
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name in options.names:
        try:
            write(folder, name, CASES[name])
        except NotImplementedError as error:
            print(folder.name, name, "skipped:", error)


if __name__ == "__main__":
    main()

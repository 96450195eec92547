"""Modules and commands of mace-torch that do not exist here, with what to use instead of each.

Scripts import them from ``mace``, so Python's own answer, that there is no such module, would not tell why. The files
`mace.tools`, `mace.data` and `mace.modules` are there only to give this one.
"""

from __future__ import annotations

_CALCULATOR = "mace.calculators.MACECalculator opens its model files, also those of mace-torch"
_LIBRARIES = "kernels are chosen here without converting models; use model files as they are"
_LAMMPS = (
    "LAMMPS reads what mace-torch converts: write the model for it with 'mace_export --format mace-torch new.model "
    "old.model --python PYTHON_WITH_MACE_TORCH', and convert old.model there with mace_create_lammps_model"
)
_FORMAT = "training reads structure files directly; give them to mace_run_train --train_file"
_SELECTION = "fine-tuning with replay of other data does not exist here"
_HEAD = "take a head out of a model with 'mace_import_model old.model new.model --head NAME'"
_DEVICE = "model files here open on any device; use them as they are"

MODULES = {
    "mace.tools": f"{_CALCULATOR}, and mace.cli.run_train.run(['--name=...', ...]) trains",
    "mace.data": f"{_CALCULATOR}, and its method evaluate(structures) takes a list of Atoms at once",
    "mace.modules": f"{_CALCULATOR}, without torch.load; the model itself is mace.model.mace.MACE",
    "mace.calculators.LAMMPS_MACE": _LAMMPS,
}
"""What scripts import from mace-torch most often and this package has not, with the way out."""

COMMANDS = {
    "mace_create_lammps_model": _LAMMPS,
    "mace_prepare_data": _FORMAT,
    "mace_finetuning_select": _SELECTION,
    "mace_select_head": _HEAD,
    "mace_convert_device": _DEVICE,
    "mace_e3nn_cueq": _LIBRARIES,
    "mace_cueq_to_e3nn": _LIBRARIES,
    "mace_active_learning_md": "mace_md runs molecular dynamics, with a committee if --model names several files",
}
"""Commands of mace-torch that this package has not, with the way out."""

PROGRAMS = {
    "mace.cli.convert_e3nn_hybrid": _LIBRARIES,
    "mace.cli.convert_e3nn_oeq": _LIBRARIES,
    "mace.cli.convert_oeq_e3nn": _LIBRARIES,
    "mace.cli.visualise_train": "mace_plot_train draws the course of runs, and each run draws its predictions",
}
"""Modules beside them that have no command."""


def missing(name: str) -> ModuleNotFoundError:
    """Make the error that says what to use instead of a module of mace-torch.

    Args:
        name: One of `MODULES`.
    """
    return ModuleNotFoundError(
        f"{name} belongs to mace-torch and does not exist in mace-train: {MODULES[name]} (documentation: Coming from "
        "mace-torch).",
        name="mace-torch",  # under the name of the module, 'from mace import data' would not show the text
    )

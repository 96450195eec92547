"""Modules and commands of mace-torch that do not exist here, with what to use instead of each.

Scripts import them from ``mace``, so Python's own answer, that there is no such module, would not tell why. The file
`mace.modules` is there only to give this one; `mace.tools` and `mace.data` have what programs need most often.
"""

from __future__ import annotations

from collections.abc import Iterator

_CALCULATOR = "mace.calculators.MACECalculator opens its model files, also those of mace-torch"
_LIBRARIES = "kernels are chosen here without converting models; use model files as they are"
_LAMMPS = (
    "LAMMPS reads what mace-torch converts: write the model for it with 'mace_export --format mace-torch new.model "
    "old.model --python PYTHON_WITH_MACE_TORCH', and convert old.model there with mace_create_lammps_model"
)
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


def absence(command: str) -> str:
    """Say what to use instead of one of `COMMANDS` or `PROGRAMS`."""
    return f"{command} does not exist in mace-train: {({**COMMANDS, **PROGRAMS})[command]}."


def missing(name: str, words: str = "") -> ModuleNotFoundError:
    """Make the error that says what to use instead of something of mace-torch.

    Args:
        name: One of `MODULES`, or something in it.
        words: What is missing, if that is not known by name.
    """
    place = next(module for module in MODULES if f"{name}.".startswith(f"{module}."))
    return ModuleNotFoundError(
        f"{words or name} belongs to mace-torch and does not exist in mace-train: {MODULES[place]} "
        "(documentation: Coming from mace-torch).",
        name="mace-torch",  # under the name of the module, 'from mace import data' would not show the text
    )


def missing_attribute(module: str, name: str) -> AttributeError:
    """Make the error of a name that a module here has not, for its ``__getattr__``."""
    return AttributeError(str(missing(f"{module}.{name}")))


class NoFurtherModules(list[str]):
    """The ``__path__`` of a module that stands for a package of mace-torch: a search in it says what to use instead.

    Python searches it for ``import module.name``, and for ``from module import name`` where there is no such name.

    Args:
        module: Its name.
    """

    def __init__(self, module: str) -> None:
        super().__init__()
        self._module = module

    def __iter__(self) -> Iterator[str]:
        """Raise the error of `missing`."""
        raise missing(self._module, f"What is asked of {self._module}")

"""The command ``mace_eval_configs``: predict all structures of a file and write them with the predictions."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

if __name__ == "__main__" and __package__ in (None, ""):
    # run as a file from a checkout: the package is two folders up, and this folder must not hide other modules
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[2])

import logging
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar

from mace.cli.command import LogLevel, log_level, quiet, run_program
from mace.errors import UserError
from mace.files.outputs import check_output
from mace.settings.declaration import DeviceName, Settings, device_setting, inert_notes, setting
from mace.settings.reading import parse_settings

if TYPE_CHECKING:
    from mace.evaluation.evaluation import EvaluationSummary, Wanted

_LOGGER = logging.getLogger("mace.cli.eval_configs")  # by name: as a program this module is called __main__
_Item = TypeVar("_Item")

_PREDICTED = "What is predicted besides energies (eV) and forces (eV/Angstrom)"
_SPEED = "Devices and speed"


class EvaluationSettings(Settings):
    """What is predicted, for which structures, and where it is written."""

    program: ClassVar[str] = "mace_eval_configs"
    description: ClassVar[str] = "Predict all structures of a file and write them with all they had before."

    configs: str = setting(
        ..., "structures: a file, a folder, a pattern, a list or a prepared set", group="Files", placeholder="FILE"
    )
    model: list[str] = setting(
        ...,
        "model file of this program or of mace-torch; several, or a pattern, form a committee: means and, as ..._std, "
        "standard deviations",
        group="Files",
        kind="several",
        placeholder="FILE...",
    )
    head: str | None = setting(
        None,
        "head of a model that has several, for all structures",
        group="Files",
        placeholder="NAME",
        default_words="the one that head= in the comment line names, or the one called default",
    )
    output: str = setting(
        ...,
        "file to write, in the format of its ending: .xyz or .extxyz (also compressed, .xyz.gz), .traj, .db or .json",
        group="Files",
        placeholder="FILE",
    )
    resume: bool = setting(False, "go on where the same command was interrupted", group="Files", kind="switch")
    info_prefix: str = setting(
        "MACE_", "start of the keys of all predictions", group="Files", placeholder="TEXT", may_be_empty=True
    )
    charges_key: str | None = setting(
        None,
        "array of charges that are part of dipoles",
        group="Files",
        placeholder="KEY",
        default_words="REF_charges or charges if there is one",
    )
    condition_keys: dict[str, str] = setting(
        {},
        "keys of the conditions a model knows of, by name, such as {'total_charge': 'q'}; mace_info lists them and "
        "their usual keys",
        group="Files",
        placeholder="{NAME: KEY, ...}",
        expects="a dictionary such as {'total_charge': 'q'}",
    )
    plot: str | None = setting(
        None, "draw predictions against labels into this PNG", group="Files", placeholder="FILE", default_words="none"
    )
    compute_stress: bool = setting(False, "predict stress too", group=_PREDICTED, kind="switch", unit="eV/Angstrom^3")
    return_node_energies: bool = setting(
        False, "write the energy of every atom", group=_PREDICTED, kind="switch", unit="eV"
    )
    return_descriptors: bool = setting(False, "write the features of every atom", group=_PREDICTED, kind="switch")
    descriptor_num_layers: int = setting(
        -1, "layers the features are taken from; -1 for all", group=_PREDICTED, only_with="return_descriptors"
    )
    descriptor_aggregation_method: Literal["mean", "per_element_mean"] | None = setting(
        None,
        "write these means of the features",
        group=_PREDICTED,
        only_with="return_descriptors",
        default_words="one row per atom",
    )
    descriptor_invariants_only: bool = setting(
        True, "leave out features that turn", group=_PREDICTED, only_with="return_descriptors"
    )
    device: DeviceName = device_setting("where to compute", group=_SPEED)
    default_dtype: Literal["float32", "float64"] = setting("float64", "precision", group=_SPEED)
    batch_size: int = setting(
        64,
        "structures in a batch, two of which are in memory at a time on a CPU; lower it if memory runs out",
        group=_SPEED,
        ge=1,
    )
    log_level: LogLevel = log_level()
    quiet: bool = quiet()
    enable_cueq: bool = setting(
        False,
        "use cuEquivariance",
        kind="switch",
        inert="this library is not used, the fastest kernels at hand are taken",
    )
    compute_bec: bool = setting(
        False,
        "predict Born effective charges",
        kind="switch",
        unsupported="Born effective charges are not available yet; remove the flag.",
    )
    return_contributions: bool = setting(
        False,
        "write energies by body order",
        kind="switch",
        unsupported="energies by body order are not available yet; remove the flag.",
    )

    def wanted(self) -> Wanted:
        """Say in the terms of the evaluation what is to be predicted."""
        from mace.evaluation.evaluation import Wanted  # here, because it loads torch

        return Wanted(
            stress=self.compute_stress,
            node_energies=self.return_node_energies,
            descriptors=self.return_descriptors,
            descriptor_layers=self.descriptor_num_layers,
            descriptor_invariants=self.descriptor_invariants_only,
            descriptor_aggregation=self.descriptor_aggregation_method if self.return_descriptors else None,
            prefix=self.info_prefix,
        )


def run(arguments: Sequence[str]) -> None:
    """Evaluate with the given command-line arguments.

    Raises:
        UserError: If arguments, model or structures do not allow it.
        RunInterrupted: If a signal ends it.
        SystemExit: With status 0 after ``--help``.
    """
    settings = parse_settings(EvaluationSettings, arguments)
    from mace.evaluation.output_formats import check_output_format  # here, because it loads numpy

    # the files to be written must be apart from each other and from the models
    check_output(settings.output, "output", {"model": settings.model})
    check_output_format(settings.output)
    if settings.plot is not None:
        if not settings.plot.lower().endswith(".png"):
            raise UserError(f"--plot={settings.plot} must end in .png.")
        check_output(settings.plot, "plot", {"model": settings.model, "structures": [settings.configs]})
    # torch is loaded only once the arguments are known to be good
    from mace.console.interruption import Interruption
    from mace.console.logs import close_logging, setup_logging
    from mace.console.progress import track
    from mace.console.terminal import PlainConsole
    from mace.evaluation.evaluation import evaluate_files
    from mace.potential.potential import open_potential
    from mace.reporting.tables import tables_in_brief
    from mace.structures.condition_values import check_condition_keys

    console = PlainConsole()
    setup_logging(settings.log_level, None, console, settings.quiet)
    for sentence in inert_notes(settings):
        _LOGGER.warning("%s", sentence)
    try:
        potential = open_potential(
            settings.model, settings.device, settings.default_dtype, settings.head, caller="--model"
        )

        def progress(items: Iterable[_Item], words: str, total: int | None) -> Iterable[_Item]:
            return track(items, words, total, console=console, mode="off" if settings.quiet else "auto")

        if settings.charges_key is not None and "dipole" not in potential.outputs:
            kind = potential.models[0].plan.model
            raise UserError(f"--charges_key has no effect on a {kind} model; remove the flag.")
        check_condition_keys("--condition_keys", settings.condition_keys, potential.conditions)
        with Interruption() as interruption, interruption.patient():
            summary = evaluate_files(
                potential,
                settings.configs,
                settings.output,
                settings.wanted(),
                batch_size=settings.batch_size,
                charges_key=settings.charges_key,
                condition_keys=settings.condition_keys,
                progress=progress,
                plot=settings.plot,
                interruption=interruption,
                resume=settings.resume,
            )
        _log_summary(summary, settings, tables_in_brief(potential.outputs, settings.compute_stress))
    finally:
        close_logging()


def _log_summary(summary: EvaluationSummary, settings: EvaluationSettings, tables: Sequence[str]) -> None:
    """Say what was found, how fast it was, and how large the errors are."""
    from mace.reporting.tables import error_table

    for line in summary.report.lines():
        _LOGGER.info("%s", line)
    for note in summary.report.notes:
        _LOGGER.warning("%s", note)
    if summary.heads:
        _LOGGER.info("Heads: %s", ", ".join(f"{head} ({count} structures)" for head, count in summary.heads.items()))
    if summary.without_stress:
        _LOGGER.warning(
            "%d of %d structures have no stress, because their cell has no volume.",
            summary.without_stress,
            summary.n_structures,
        )
    if settings.resume and summary.resumed:
        _LOGGER.info("%d structures had been done before.", summary.resumed)
    elif settings.resume:
        _LOGGER.info("There was nothing to go on from; all structures were evaluated.")
    n_new = summary.n_structures - summary.resumed
    _LOGGER.info(
        "Evaluated %d structures in %.2f s (%.3g structures/s); %d structures with %d atoms in all",
        n_new,
        summary.seconds,
        n_new / summary.seconds,
        summary.n_structures,
        summary.n_atoms,
    )
    if summary.errors:
        for kind in tables:
            _LOGGER.info("Errors against the labels:\n%s", error_table(kind, summary.errors))
    else:
        _LOGGER.info("The structures have no labels of what the model predicts to compare with.")
    if summary.plot is not None:
        _LOGGER.info("Wrote %s", summary.plot)
    _LOGGER.info("Wrote %s", settings.output)


def main() -> None:
    """Run as a program: return at the end, exit with 2 and one sentence if the user can help it."""
    run_program(run, output_needed=False)


if __name__ == "__main__":
    main()

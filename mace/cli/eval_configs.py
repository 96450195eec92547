"""The command ``mace_eval_configs``: predict all structures of a file and write them with the predictions."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

if __name__ == "__main__" and __package__ in (None, ""):
    # run as a file from a checkout: the package is two folders up, and this folder must not hide other modules
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[2])

import argparse
import logging
from typing import TYPE_CHECKING, TypeVar

from mace.cli.command import FlagParser, add_output_flags, parse_flags, run_program
from mace.cli.outputs import check_output
from mace.errors import UserError
from mace.settings.declaration import read_literal

if TYPE_CHECKING:
    from mace.evaluation.evaluation import EvaluationSummary, Wanted

_LOGGER = logging.getLogger("mace.cli.eval_configs")  # by name: as a program this module is called __main__
_Item = TypeVar("_Item")

_KERNELS = "this library is not used, the fastest kernels at hand are taken"
_REFUSED = {
    "compute_bec": "--compute_bec: Born effective charges are not available yet; remove the flag.",
    "return_contributions": "--return_contributions: energies by body order are not available yet; remove the flag.",
}


def build_parser() -> argparse.ArgumentParser:
    """Declare the flags."""
    parser = FlagParser(
        prog="mace_eval_configs",
        description="Predict all structures of a file and write them with all they had before.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument_group("Files").add_argument
    add("--configs", required=True, help="structures: any file ASE reads, or a pattern")
    add("--model", required=True, nargs="+", help="model file of this program or of mace-torch; several, or a pattern, "
        "form a committee: means and, as ..._std, standard deviations")  # fmt: skip
    add("--head", help="head of a model that has several, for all structures; without it the one that head= in the "
        "comment line names, or the one called default")  # fmt: skip
    add("--output", required=True, help="file to write, in the format of its ending: .xyz or .extxyz (also "
        "compressed, .xyz.gz), .traj, .db or .json")  # fmt: skip
    add("--resume", action="store_true", help="go on where the same command was interrupted")
    add("--info_prefix", default="MACE_", help="start of the keys of all predictions")
    add("--charges_key", help="array of charges that are part of dipoles; REF_charges or charges if there is one")
    add("--condition_keys", default="{}", metavar="{NAME: KEY, ...}", help="keys of the conditions a model knows of, "
        "by name, such as {'total_charge': 'q'}; mace_info lists them and their usual keys")  # fmt: skip
    add("--plot", help="draw predictions against labels into this PNG")
    add = parser.add_argument_group("What is predicted besides energies (eV) and forces (eV/Angstrom)").add_argument
    add("--compute_stress", action="store_true", help="predict stress too, eV/Angstrom^3")
    add("--return_node_energies", action="store_true", help="write the energy of every atom, eV")
    add("--return_descriptors", action="store_true", help="write the features of every atom")
    add("--descriptor_num_layers", type=int, default=-1, help="layers the features are taken from; -1 for all")
    add("--descriptor_aggregation_method", choices=["mean", "per_element_mean"], help="instead of one row per atom")
    add("--descriptor_invariants_only", choices=["True", "False"], default="True", help="leave out features that turn")
    add = parser.add_argument_group("Devices and speed").add_argument
    add("--device", choices=["cpu", "cuda", "mps"], default="cpu", help="where to compute")
    add("--default_dtype", choices=["float32", "float64"], default="float64", help="precision")
    size = "structures in a batch, two of which are in memory at a time on a CPU; lower it if memory runs out"
    add("--batch_size", type=int, default=64, help=size)
    add_output_flags(parser)
    add = parser.add_argument_group("Accepted without effect").add_argument
    add("--enable_cueq", action="store_true", help=_KERNELS)
    add = parser.add_argument_group("Not supported yet").add_argument
    for name, refusal in _REFUSED.items():
        add(f"--{name}", action="store_true", help=refusal.partition(": ")[2])
    return parser


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the flags and refuse what has no feature behind it.

    Raises:
        UserError: If a flag is unknown, missing or cannot be obeyed.
        SystemExit: With status 0 after ``--help``.
    """
    options = parse_flags(build_parser(), arguments)
    for name, refusal in _REFUSED.items():
        if getattr(options, name):
            raise UserError(refusal)
    options.condition_keys = _read_keys(options.condition_keys)
    if options.batch_size < 1:
        raise UserError(f"--batch_size is {options.batch_size}; it must be at least 1.")
    return options


def _idle_flags(options: argparse.Namespace) -> list[str]:
    """Say which flags change nothing, in sentences for the log."""
    flags = ("descriptor_num_layers", "descriptor_aggregation_method", "descriptor_invariants_only")
    defaults = (-1, None, "True")
    idle = [
        f"--{flag}={getattr(options, flag)} has no effect without --return_descriptors"
        for flag, default in zip(flags, defaults, strict=True)
        if getattr(options, flag) != default and not options.return_descriptors
    ]
    return [f"--enable_cueq changes nothing: {_KERNELS}", *idle] if options.enable_cueq else idle


def _read_keys(text: str) -> dict[str, str]:
    """Read a dictionary of keys, written as a literal of Python or JSON."""
    try:
        keys = read_literal(text)
    except ValueError as error:
        raise UserError(f"--condition_keys: {error}; write a dictionary such as {{'total_charge': 'q'}}.") from error
    if not isinstance(keys, dict):
        raise UserError(f"--condition_keys={text} is no dictionary; write one such as {{'total_charge': 'q'}}.")
    return keys


def _check_outputs(options: argparse.Namespace) -> None:
    """Make sure that the files to be written are apart from each other and from the models."""
    from mace.evaluation.output_formats import check_output_format  # here, because it loads numpy

    check_output(options.output, "output", {"model": options.model})
    check_output_format(options.output)
    if options.plot is None:
        return
    if not options.plot.lower().endswith(".png"):
        raise UserError(f"--plot={options.plot} must end in .png.")
    check_output(options.plot, "plot", {"model": options.model, "structures": [options.configs]})


def _wanted(options: argparse.Namespace) -> Wanted:
    """Say in the terms of the evaluation what the flags ask for."""
    from mace.evaluation.evaluation import Wanted  # here, because it loads torch

    return Wanted(
        stress=options.compute_stress,
        node_energies=options.return_node_energies,
        descriptors=options.return_descriptors,
        descriptor_layers=options.descriptor_num_layers,
        descriptor_invariants=options.descriptor_invariants_only == "True",
        descriptor_aggregation=options.descriptor_aggregation_method if options.return_descriptors else None,
        prefix=options.info_prefix,
    )


def run(arguments: Sequence[str]) -> None:
    """Evaluate with the given command-line arguments.

    Raises:
        UserError: If arguments, model or structures do not allow it.
        RunInterrupted: If a signal ends it.
        SystemExit: See `parse_arguments`.
    """
    options = parse_arguments(arguments)
    _check_outputs(options)
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
    setup_logging(options.log_level, None, console, options.quiet)
    for sentence in _idle_flags(options):
        _LOGGER.warning("%s", sentence)
    try:
        potential = open_potential(options.model, options.device, options.default_dtype, options.head, caller="--model")

        def progress(batches: Iterable[_Item], total: int) -> Iterable[_Item]:
            mode = "off" if options.quiet else "auto"
            return track(batches, f"Evaluating {options.configs}", total, console=console, mode=mode)

        if options.charges_key is not None and "dipole" not in potential.outputs:
            kind = potential.models[0].plan.model
            raise UserError(f"--charges_key has no effect on a {kind} model; remove the flag.")
        check_condition_keys("--condition_keys", options.condition_keys, potential.conditions)
        with Interruption() as interruption, interruption.patient():
            summary = evaluate_files(
                potential,
                options.configs,
                options.output,
                _wanted(options),
                batch_size=options.batch_size,
                charges_key=options.charges_key,
                condition_keys=options.condition_keys,
                progress=progress,
                plot=options.plot,
                interruption=interruption,
                resume=options.resume,
            )
        _report(summary, options, tables_in_brief(potential.outputs, options.compute_stress))
    finally:
        close_logging()


def _report(summary: EvaluationSummary, options: argparse.Namespace, tables: Sequence[str]) -> None:
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
    if options.resume and summary.resumed:
        _LOGGER.info("%d structures had been done before.", summary.resumed)
    elif options.resume:
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
    _LOGGER.info("Wrote %s", options.output)


def main() -> None:
    """Run as a program: return at the end, exit with 2 and one sentence if the user can help it."""
    run_program(run, output_needed=False)


if __name__ == "__main__":
    main()

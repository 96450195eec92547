"""The command ``mace_info``: say what a model file is."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

if __name__ == "__main__" and __package__ in (None, ""):
    # run as a file from a checkout: the package is two folders up, and this folder must not hide other modules
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[2])

import json
from io import StringIO
from typing import Any, ClassVar

from mace.cli.command import LogLevel, log_level, messages_on_stderr, quiet, run_program
from mace.errors import UserError, plain
from mace.settings.declaration import Settings, setting
from mace.settings.reading import parse_settings

FAILED_CHECK = 1
"""Exit status when a check of the model fails."""


class InfoSettings(Settings):
    """What is described, and how."""

    program: ClassVar[str] = "mace_info"
    description: ClassVar[str] = "Say what a model file is; one of mace-torch is read without being run."
    positionals: ClassVar[tuple[str, ...]] = ("file",)

    file: str = setting(..., "model file of this program or of mace-torch", group="Model", placeholder="FILE")
    head: str | None = setting(
        None, "describe one head of a model that has several", group="Model", placeholder="NAME", default_words="all"
    )
    json_: bool = setting(False, "print everything as JSON", group="Model", kind="switch")
    no_checks: bool = setting(False, "leave out the checks, which evaluate the model", group="Model", kind="switch")
    log_level: LogLevel = log_level("WARNING")
    quiet: bool = quiet()


def run(arguments: Sequence[str]) -> int:
    """Describe with the given command-line arguments.

    Returns:
        The exit status: 0, or 1 if a check fails.

    Raises:
        UserError: If the file cannot be opened.
        SystemExit: With status 0 after ``--help``.
    """
    settings = parse_settings(InfoSettings, arguments)
    if settings.quiet and settings.json_:
        raise UserError("--quiet leaves nothing to write as JSON; give one of --quiet and --json.")
    with messages_on_stderr(settings):
        # torch is loaded only once the arguments are known to be good
        from rich import box
        from rich.table import Table

        from mace.console.terminal import PlainConsole
        from mace.evaluation.description import describe_model
        from mace.potential.potential import open_potential

        potential = open_potential(
            settings.file,
            precision="float64",
            head=settings.head,
            kernels="torch",
            committee=False,
            caller="mace_info",
        )
        described = describe_model(settings.file, potential, checks=not settings.no_checks)
        failed = [name.replace("_", " ") for name, good in described["checks"].items() if not good]
        if settings.quiet and failed:
            print(plain(f"{settings.file}: failed checks: {', '.join(failed)}"), file=sys.stderr)
        elif settings.json_:
            print(json.dumps(described, indent=1))
        elif not settings.quiet:
            table = Table(title=described["file"], box=box.ASCII, show_header=False, title_justify="left")
            for name, value in _rows(described).items():
                table.add_row(name, value)
            stream = StringIO()
            PlainConsole(file=stream, width=120).print(table)
            print(stream.getvalue(), end="")
    return FAILED_CHECK if failed else 0


def _rows(described: Mapping[str, Any]) -> dict[str, str]:
    plan, origin = described["plan"], described["origin"]
    hidden = " + ".join(f"{plan['n_channels']}x{l}{'eo'[l % 2]}" for l in plan["hidden_l"])
    energies = _of_elements(described["reference_energies"])
    rows = {
        "model": f"{described['model']}, {len(plan['interactions'])} layers, {hidden}, l_max {plan['l_max']}, "
        f"correlation {plan['correlation']}",
        "interactions": "\n".join(described["interactions"]),
        "variants": ", ".join(described["variants"]),
        "conditions": "\n".join(described["conditions"]),
        "elements": ", ".join(described["elements"]),
        "cutoff": f"{described['r_max']:.6g} Angstrom, receptive field {described['receptive_field']:.6g} Angstrom",
        "radial functions": f"{plan['num_radial_basis']} {plan['radial_type']}, transform {plan['distance_transform']}"
        f"{', ZBL repulsion' if plan['pair_repulsion'] else ''}",
        "size": f"{described['parameters']:,} parameters, {described['precision']}, {described['bytes'] / 1e6:.2f} MB",
        "E0s / eV": energies,
        "scale and shift / eV": f"{plan['scale']:.6g}, {plan['shift']:.6g}" if energies else "",
        "heads": ", ".join(described["heads"]),
        **{
            f"head {name}": f"E0s / eV: {_of_elements(head['reference_energies'])}\n"
            f"scale and shift / eV: {head['scale']:.6g}, {head['shift']:.6g}"
            for name, head in described["heads"].items()
        },
        "neighbors": f"{plan['avg_num_neighbors']:.4g} on average",
        "origin": "\n".join(f"{key}: {value}" for key, value in origin.items() if value is not None),
        "training": "\n".join(f"{key}: {value}" for key, value in described["training"].items()),
        "metrics": "\n".join(
            f"{name}: " + ", ".join(f"{k} {v:.4g}" for k, v in values.items() if v is not None)
            for name, values in described["metrics"].items()
        ),
        "versions": ", ".join(f"{name} {version}" for name, version in described["versions"].items()),
        "checks": "\n".join(
            f"{name.replace('_', ' ')}: {'yes' if good else 'NO'}" for name, good in described["checks"].items()
        ),
    }
    return {name: value for name, value in rows.items() if value}


def _of_elements(energies: Mapping[str, float]) -> str:
    return ", ".join(f"{symbol} {energy:.6f}" for symbol, energy in energies.items())


def main() -> None:
    """Run as a program: return at the end, exit with 1 if a check fails, with 2 if the user can help it."""
    run_program(run)


if __name__ == "__main__":
    main()

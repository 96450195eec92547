"""The facts known about a run before its first step, for its report page."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from importlib.metadata import version
from typing import NamedTuple

import numpy as np
import torch

import mace
from mace.elements import atomic_number, chemical_symbol
from mace.finetuning.freezing import moved_in_words
from mace.graphs.batch_size import spreads, training_batch
from mace.graphs.dataset import Dataset
from mace.inspection.distributions import Distribution, distribution
from mace.model.plan import ModelPlan
from mace.pages.run_facts import CommandFact, ElementFact, HeadFact, RunFacts, SetFact, SettingFact
from mace.preparation.preparation import Preparation
from mace.processes.devices import device_name, device_software
from mace.reporting.records import results_path
from mace.reporting.set_names import shown_name
from mace.runs.context import RunContext
from mace.runs.environment import commit_of_checkout, settings_digest
from mace.settings import TrainingSettings, provided
from mace.settings.command_line import as_flags, plain_value
from mace.settings.help import groups_of
from mace.training.loop import Trainer, selection_rule
from mace.training.stages import has_stage_two, total_epochs

_MOST_BARS = 80
_MOST_LOOKED_AT = 20_000
"""Structures whose neighbors are counted; of more, so many are drawn by lot."""


def gather_facts(run: RunContext, preparation: Preparation, trainer: Trainer, started: datetime) -> RunFacts:
    """Gather the facts of a run.

    Args:
        run: The context of the run.
        preparation: The data and the plan of the model.
        trainer: The trainer.
        started: Time at which the program was started.
    """
    settings, folders, plan = run.settings, run.folders, trainer.state.model.plan
    processes = f", {run.team.size} processes" if run.team.size > 1 else ""
    count = torch.get_num_threads()
    threads = f", {count} thread{'' if count == 1 else 's'}" if run.device.type == "cpu" else ""
    given, several = provided(settings), len(preparation.valid) > 1
    words = {"train": "training", "valid": "validation", "test": "test"}
    counts = {head: _counted(preparation.train_of(head)) for head in preparation.valid}
    commit = commit_of_checkout()
    versions = {"mace-train": mace.__version__ + (f", commit {commit}" if commit else "")}
    versions["Python"] = platform.python_version()
    versions |= {name: version(name) for name in ("torch", "numpy", "ase", "vesin")}
    if (device := device_name(run.device)) is not None:
        versions["device"] = f"{device}, {device_software(run.device)}"
    versions["system"] = f"{sys.platform}, {platform.machine()}"
    return RunFacts(
        name=settings.name,
        tag=folders.tag,
        identity=trainer.keeper.run,
        started=started,
        epochs=total_epochs(settings),
        interval=settings.eval_interval,
        patience=settings.patience,
        machine=f"{platform.node()}, {run.device}, {settings.default_dtype}{threads}{processes}",
        settings=[
            SettingFact(group, d.name, str(plain_value(getattr(settings, d.name))), d.default, d.name in given, d.help)
            for group, members in groups_of(type(settings)).items()
            for d in members
            if not d.unsupported and not d.inert
        ],
        decisions=_decisions(trainer, preparation, settings),
        sets=[
            SetFact(words[role], shown_name(row), len(found), found.n_atoms, found.n_edges, found[0].head * several)
            for row, (role, found) in preparation.sets().items()
        ],
        data=preparation.data.reports,
        data_pages={head: folders.data_page(head).name for head in preparation.data.reports},
        heads=_heads(plan, preparation),
        head_sampling=settings.head_sampling,
        elements=_elements(plan, counts),
        neighbors={
            head: found for head, one in counts.items() if (found := _integers(one.neighbors.sum(0))) is not None
        },
        looked_at=max(one.looked_at for one in counts.values()),
        average_neighbors=plan.avg_num_neighbors,
        r_max=plan.r_max,
        versions=versions,
        commands=_commands(run, list(preparation.valid)),
    )


def _decisions(trainer: Trainer, preparation: Preparation, settings: TrainingSettings) -> dict[str, str]:
    plan = trainer.state.model.plan
    hidden = " + ".join(f"{plan.n_channels}x{degree}{'eo'[degree % 2]}" for degree in plan.hidden_l)
    found = {
        "model": f"{plan.model}, {plan.n_layers} layers, {hidden}, l_max {plan.l_max}, correlation "
        f"{', '.join(map(str, plan.correlation))}",
        "parameters": moved_in_words(trainer.state.moved, settings).splitlines()[0],
        "receptive field": f"{plan.r_max * plan.n_layers:g} \u00c5",
        "elements": " ".join(chemical_symbol(z) for z in plan.atomic_numbers),
        "average number of neighbors": f"{plan.avg_num_neighbors:.6g}",
    }
    if "energy" in plan.outputs and not plan.heads:
        found["scale and shift"] = f"{plan.scale:.6g} eV, {plan.shift:.6g} eV per atom"
    if plan.heads:
        shares = preparation.sampling.shares
        found["best model"] = f"the one with the lowest {selection_rule(settings.select_by, shares)}"
    size, steps = training_batch(settings), trainer.batch_plan.steps_per_epoch
    is_about = "about " * (size.unit != "structures")
    found["optimizer steps"] = f"{is_about}{steps} in each of {settings.max_num_epochs} epochs"
    found["batches"] = "; ".join([f"{size.in_words}", *map(str, spreads(trainer.batch_plan, preparation.train))])
    found["loss"] = str(trainer.state.loss_of("one"))
    if has_stage_two(settings):
        start = trainer.progression.stage_two_start
        second = trainer.state.loss_of("two")
        found["loss of stage two"] = f"{second}, from epoch {start}, learning rate {settings.swa_lr:g}"
    if settings.lbfgs:
        found["L-BFGS"] = f"{settings.lbfgs_steps} iterations from epoch {settings.max_num_epochs}"
    found["hash of the settings"] = settings_digest(settings)
    return found | {f"SHA-256 of {file}": digest for file, digest in preparation.digests.items()}


def _heads(plan: ModelPlan, preparation: Preparation) -> list[HeadFact]:
    energies, sampling, facts = preparation.energies, preparation.sampling, []
    for (name, valid), planned in zip(preparation.valid.items(), plan.every_head, strict=True):
        facts.append(
            HeadFact(
                name=name,
                weight=preparation.data.heads[name].weight,
                training=sampling.sizes[name],
                in_epoch=sampling.draws[name],
                validation=len(valid),
                scale=planned.scale if energies else None,
                shift=planned.shift if energies else None,
                energies_source=energies[name].source if energies else "",
            )
        )
    return facts


class _Counted(NamedTuple):
    """Atoms of the training set of a head.

    Attributes:
        atoms: Of each element, ``[elements]``.
        neighbors: Atoms by element and number of neighbors, ``[elements, numbers]``.
        looked_at: Structures whose neighbors are counted; 0 for all.
    """

    atoms: np.ndarray
    neighbors: np.ndarray
    looked_at: int


def _counted(train: Dataset) -> _Counted:
    """Count atoms and, of so many structures at most as take no time, their neighbors."""
    every, looked_at = np.arange(len(train)), 0
    if len(train) > _MOST_LOOKED_AT:
        every, looked_at = np.random.default_rng(0).choice(len(train), _MOST_LOOKED_AT, replace=False), _MOST_LOOKED_AT
    return _Counted(train.element_counts(), train.neighbor_histogram(np.sort(every)), looked_at)


def _elements(plan: ModelPlan, counted: Mapping[str, _Counted]) -> list[ElementFact]:
    """Gather facts on every element for every head, those of an element together."""
    facts = []
    for (name, one), planned in zip(counted.items(), plan.every_head, strict=True):
        energies = planned.reference_energies or [None] * plan.n_elements
        for number, energy, atoms, counts in zip(plan.atomic_numbers, energies, one.atoms, one.neighbors, strict=True):
            found = np.flatnonzero(counts)
            mean = float(np.average(np.arange(len(counts)), weights=counts)) if len(found) else None
            least, most = (int(found[0]), int(found[-1])) if len(found) else (0, 0)
            of_head = name if plan.heads else ""
            facts.append(ElementFact(chemical_symbol(number), energy, int(atoms), mean, least, most, of_head))
    return sorted(facts, key=lambda fact: plan.atomic_numbers.index(atomic_number(fact.symbol)))


def _integers(atoms: np.ndarray) -> Distribution | None:
    """Return the distribution of integers, with one bin per value unless there would be too many bins.

    Args:
        atoms: How often each integer from zero occurs.
    """
    counts = np.repeat(np.arange(len(atoms)), atoms)
    found = distribution(counts.astype(np.float64))
    if found is None or found.largest - found.smallest > _MOST_BARS:
        return found
    low, high = int(found.smallest), int(found.largest)
    edges = tuple(value - 0.5 for value in range(low, high + 2))
    return replace(found, edges=edges, counts=tuple(atoms[low : high + 1].tolist()))


def _commands(run: RunContext, heads: Sequence[str]) -> list[CommandFact]:
    """Write commands to reproduce or resume the run and to use its model, relative to the current folder.

    Of several heads the first one is used.
    """
    settings, folders = run.settings, run.folders
    begin = f"cd {shlex.quote(os.getcwd())}\n"
    flags = [flag for flag in as_flags(settings) if flag != "--restart_latest"]
    lines: list[str] = []
    for flag in flags:
        if flag.startswith("--"):
            lines.append(shlex.quote(flag))
        else:  # one of several values
            lines[-1] += f" {shlex.quote(flag)}"
    train = "mace_run_train " + " \\\n    ".join(lines)
    model = str(folders.model / f"{settings.name}{'_stagetwo' if has_stage_two(settings) else ''}.model")
    records = str(results_path(folders.results, settings.name, settings.seed))
    quoted = shlex.quote(model)
    device, head = run.device.type, heads[0] if len(heads) > 1 else None
    of_head, flag = ("", "") if head is None else (f", head {head}", f" \\\n    {shlex.quote(f'--head={head}')}")
    named = "" if head is None else f", head={head!r}"
    atoms = (
        f"from ase.io import read\nfrom mace.calculators import MACECalculator\n\natoms = read({'structure.xyz'!r})\n"
    )
    calculator = (
        f"MACECalculator(model_paths={model!r}, device={device!r}, default_dtype={settings.default_dtype!r}{named})"
    )
    results = "print(atoms.get_potential_energy(), atoms.get_forces())\n"
    return [
        CommandFact("Reproduce this run", begin + train),
        CommandFact("Resume it, or go on with more epochs", f"{begin}{train} \\\n    --restart_latest"),
        CommandFact(
            f"Evaluate structures with the model{of_head}",
            f"{begin}mace_eval_configs --configs=structures.xyz --model={quoted} \\\n"
            f"    --output=predicted.xyz --device={device}{flag}",
        ),
        CommandFact(f"Use the model in ASE{of_head}", f"{atoms}atoms.calc = {calculator}\n{results}"),
        CommandFact(
            f"Run molecular dynamics{of_head}",
            f"{begin}mace_md --structure=structure.xyz --model={quoted} --temperature_K=300 --steps=1000{flag}",
        ),
        CommandFact("Compare with other runs", f"{begin}mace_plot_train {shlex.quote(records)} OTHER_train.txt"),
    ]

"""The page of a run: is it healthy, what did it learn, where is it wrong, and how to go on with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import groupby
from urllib.parse import quote

from mace.inspection.inspection import DataReport
from mace.pages.charts import histogram
from mace.pages.curves import MEASURES, NamedRun, draw_panels
from mace.pages.data_page import findings_list
from mace.pages.errors_document import errors_document
from mace.pages.html import Drawing, embedded, of_head, table, whole_page
from mace.pages.run_facts import MeasuredStage, RunFacts, RunState, SettingFact, Warned
from mace.pages.verdicts import Tile, duration, tiles, verdicts
from mace.reporting.history import RunHistory
from mace.reporting.terminal import atoms_each, verdict

SCRIPTS = ("drawing.js", "curves.js", "errors.js", "viewer.js", "worst.js", "page.js")
STYLES = ("run.css",)
_MOST_FINDINGS = 30
_MOST_WARNINGS = 200
_MOST_SETS = 60

_COMMAND = (
    '<div class="command"><header><h3>{}</h3><button type="button" class="copy" hidden>Copy</button></header>'
    "<pre>{}</pre></div>"
)

PHASE_WORDS = {
    "data": "waiting for data",
    "forward": "model and loss",
    "backward": "gradient",
    "graph": "steps from CUDA graphs",
    "communication": "exchange between processes",
    "optimizer": "optimizer",
    "evaluation": "evaluations",
    "steps": "steps",
}


def write_run_page(facts: RunFacts, state: RunState) -> str:
    """Write the page of a run: it needs nothing but itself, and stays below five megabytes for any amount of data.

    Args:
        facts: What was known before the first step.
        state: How it goes.
    """
    both = len(state.best_epochs) > 1
    best = [(epoch, f"best of stage {stage}" if both else "best") for stage, epoch in state.best_epochs.items()]
    run = NamedRun("", state.history, state.stage_two_start, best)
    items = "".join(
        f'<li class="{said.level}"{of_head(said.head)}>{escape(said.sentence)}</li>'
        for said in verdicts(facts, state)
        if said.sentence
    )
    # the finished models, or the last validation as long as there are none
    stages = state.stages or ([] if state.latest is None else [state.latest])
    sections = {
        "health": ("Health", f'{tiles_html(tiles(facts, state))}<ul class="findings">{items}</ul>'),
        "learning": ("Learning", curves_section([run])),
        "accuracy": ("Accuracy", _errors(stages, is_final=bool(state.stages))),
        "worst-structures": ("Worst structures", '<div id="worst"></div>' if stages else ""),
        "speed": ("Speed", speed_section([("", state.history)])),
        "heads": ("Heads", _heads(facts) if len(facts.heads) > 1 else ""),
        "data": ("Data", _data(facts)),
        "elements": ("E0s and neighbors", _elements(facts)),
        "settings": ("Settings", _settings(facts)),
        "use": ("Commands", "".join(_COMMAND.format(escape(c.purpose), escape(c.text)) for c in facts.commands)),
        "warnings": ("Warnings", _warnings(state.warnings)),
        "versions": ("Versions", _texts(("program", "version"), facts.versions, "versions")),
    }
    refreshed = ""
    if state.condition == "running":
        epochs = len(state.history.epochs)
        seconds = sum(s.working_seconds for s in state.history.epochs.values()) + state.history.evaluation_seconds()
        every = facts.interval * seconds / 60.0 / epochs if epochs else 1.0
        refreshed = f' data-written="{int(1000 * state.written.timestamp())}" data-every="{every:.2f}"'
    written = f'<p class="soft"{refreshed}>Written {state.written:%Y-%m-%d %H:%M:%S}.</p>'
    subtitle = f"Run {facts.identity}, {facts.machine}. Started {facts.started:%Y-%m-%d %H:%M}"
    return assemble(f"{facts.tag}", subtitle, written, sections, [fact.name for fact in facts.heads])


def assemble(
    title: str, subtitle: str, written: str, sections: Mapping[str, tuple[str, str]], heads: Sequence[str] = ()
) -> str:
    """Put sections together.

    Args:
        title: Heading of the page.
        subtitle: A line below it.
        written: A line on when it was written, as HTML.
        sections: Heading and HTML of each, by name.
        heads: Heads of which one can be chosen, for the whole page.
    """
    shown = {name: section for name, section in sections.items() if section[1]}
    links = "".join(f'<a href="#{name}">{escape(heading)}</a>' for name, (heading, _) in shown.items())
    head = (
        f'<header class="top"><div><h1>{escape(title)}</h1><p class="soft">{escape(subtitle)}</p>{written}</div>'
        f'<button type="button" class="theme" hidden>Dark</button></header>'
        f'<nav aria-label="Sections">{links}</nav>'
        f"{embedded('heads', list(heads)) if len(heads) > 1 else ''}"
        '<noscript><p class="verdict">Plots are drawn by a script of this page; this browser runs none.</p></noscript>'
    )
    body = [
        f'<section id="{name}" class="{name}"><h2>{escape(heading)}</h2>{content}</section>'
        for name, (heading, content) in shown.items()
    ]
    return whole_page(title, [head, *body], SCRIPTS, STYLES)


def tiles_html(entries: Iterable[Tile]) -> str:
    """Write the numbers to be seen first."""
    cells = (
        f'<div class="tile {tile.level}"><b>{escape(tile.value)}</b><i>{escape(tile.detail)}</i>'
        f"<span>{escape(tile.name)}</span></div>"
        for tile in entries
    )
    return f'<div class="tiles">{"".join(cells)}</div>'


def curves_section(runs: Sequence[NamedRun]) -> str:
    """Write the data of the learning curves and the place where a script draws them."""
    panels = draw_panels(runs)
    if not panels:
        return '<p class="soft">There is no evaluation yet.</p>'
    last = max((run.history.numbers()[-1] + 1 for run in runs if run.history.numbers()), default=0)
    data = {"panels": [p.as_document() for p in panels], "measures": list(MEASURES.items()), "last": last}
    return (
        '<p class="soft">Training losses are those of the batches while the weights changed; validation is with the '
        "weights that are kept. An evaluation after epoch n, counted from zero as in the log, is drawn at n + 1. Point "
        "at a plot or use the arrow keys to read it.</p>"
        f'<div id="curves"></div>{embedded("curves-data", data)}'
    )


def speed_section(runs: Sequence[tuple[str, RunHistory]]) -> str:
    """Show how much is computed in a second, and where the time goes."""
    return "".join(_speed_of(name, history) for name, history in runs)


def _speed_of(name: str, history: RunHistory) -> str:
    steps = sum(sums.steps for sums in history.epochs.values())
    if not steps:
        return ""
    phases: dict[str, float] = {}
    for sums in history.epochs.values():
        for phase, seconds in (sums.phases or {"steps": sums.seconds}).items():
            phases[phase] = phases.get(phase, 0.0) + seconds
    working = sum(phases.values())
    phases["evaluation"] = history.evaluation_seconds()
    total = sum(phases.values())
    if not total:
        return ""
    atoms = sum(sums.atoms for sums in history.epochs.values())
    rows, bars = [], []
    for place, (phase, seconds) in enumerate(phases.items()):
        words, share = PHASE_WORDS.get(phase, phase), seconds / total
        color = f"background: var(--c{place})"
        bars.append(f'<span style="width: {100 * share:.2f}%; {color}" title="{escape(words)}"></span>')
        key = Drawing(f'<span class="key" style="{color}"></span>{escape(words)}')
        per_step = "\u2013" if phase == "evaluation" else f"{1000 * seconds / steps:.3g} ms"
        rows.append((key, duration(seconds), f"{100 * share:.1f} %", per_step))
    rate = f"{atoms / working:,.0f} atoms per second in steps; " if atoms and working else ""
    heading = f"<h3>{escape(name)}</h3>" if name else ""
    said = f"{rate}{steps:,} steps, {1000 * working / steps:.3g} ms each; {duration(total)} in all"
    if "data" in phases:
        said += f"; {100 * phases['data'] / working:.1f} % of the time of steps spent waiting for data"
    label = "; ".join(f"{PHASE_WORDS.get(phase, phase)} {100 * s / total:.0f} %" for phase, s in phases.items())
    bar = f'<div class="share" role="img" aria-label="{escape(label)}">{"".join(bars)}</div>'
    shares = table(("what", "time", "share", "per step"), rows, "where the time goes")
    return f"{heading}<p>{escape(said)}</p>{bar}{shares}"


def _errors(stages: Sequence[MeasuredStage], is_final: bool) -> str:
    if not stages:
        return '<p class="soft">Predictions are drawn after the first epoch that is evaluated.</p>'
    latest = (
        f"Predictions for the validation set after epoch {stages[0].epoch}; those for all sets are made when training "
        "is complete. "
    )
    return (
        f'<p class="soft">{"" if is_final else latest}RMSE, MAE and histograms are over all values that are '
        "chosen, as in the error tables; of many points the worst and a random choice of the others are drawn.</p>"
        f'<div id="errors"></div>{embedded("errors-data", errors_document(stages))}'
    )


def _data(facts: RunFacts) -> str:
    """List the sets; say what the files hold and what was found in them, and where to read more."""
    shown = facts.sets[:_MOST_SETS]
    rows = [(s.role, s.name, f"{s.structures:,}", f"{s.atoms:,}", f"{s.edges:,}") for s in shown]
    if len(facts.sets) > _MOST_SETS:
        rows.append(("", f"and {len(facts.sets) - _MOST_SETS} more sets", "", "", ""))
    header, heads = ("role", "set", "structures", "atoms", "edges"), [s.head for s in shown]
    sets = table(header, rows, "sets of structures", left=2, heads=heads)
    if len(facts.data) == 1:
        return f"<h3>Sets</h3>{sets}" + "".join(_files("Files", r, facts.data_pages[h]) for h, r in facts.data.items())
    files = (
        f"<div{of_head(head)}>{_files(f'Files of head {head}', report, facts.data_pages[head])}</div>"
        for head, report in facts.data.items()
    )
    return f"<h3>Sets</h3>{sets}{''.join(files)}"


def _heads(facts: RunFacts) -> str:
    """Say what is special about each head, how they are mixed, and how the best model is chosen."""
    by_weight = facts.head_sampling == "weight"
    header = ["head", "weight in sampling" if by_weight else "weight in loss", "training", "in an epoch", "validation"]
    with_energies = facts.heads[0].scale is not None
    header += ["scale / eV", "shift / eV per atom", "E0s from"] if with_energies else []
    rows = []
    for fact in facts.heads:
        row = [fact.name, f"{fact.weight:g}", f"{fact.training:,}", f"{fact.in_epoch:,}", f"{fact.validation:,}"]
        if fact.scale is not None and fact.shift is not None:
            row += [f"{fact.scale:.6g}", f"{fact.shift:.6g}", fact.energies_source]
        rows.append(row)
    said = (
        f"Numbers of structures; those of an epoch are drawn by --head_sampling={facts.head_sampling}. "
        f"Best model: {facts.decisions['best model']}."
    )
    return f"<p>{escape(said)}</p>{table(header, rows, 'heads', heads=[fact.name for fact in facts.heads])}"


def _files(title: str, data: DataReport, page: str) -> str:
    """Say what the files of a head hold and what was found in them, and where to read more."""
    of_files = []
    for file in data.files[:_MOST_SETS]:
        found = {entry.name: entry.labeled + entry.converted for entry in file.labels.coverage}
        labels = ", ".join(f"{name} {count}" for name, count in found.items() if count)
        frames, elements = f"{file.whole.frames:,}", " ".join(file.whole.elements)
        of_files.append((file.file, file.role, frames, elements, labels, atoms_each(file.whole)))
    files = table(("file", "role", "structures", "elements", "labels", "atoms each"), of_files, "files", left=2)
    link = f'<p>More, with histograms of labels: <a href="{escape(quote(page))}">{escape(page)}</a></p>'
    findings = findings_list(data.findings, _MOST_FINDINGS) if data.findings else ""
    return f"<h3>{escape(title)}</h3>{files}<p>{escape(verdict(data))}</p>{findings}{link}"


def _elements(facts: RunFacts) -> str:
    with_energies = any(element.energy is not None for element in facts.elements)
    several = len(facts.heads) > 1
    header = ["element", *(["head"] if several else []), *(["E0 / eV"] if with_energies else []), "atoms in training"]
    header += ["neighbors, mean", "fewest", "most"]
    rows = []
    for element in facts.elements:
        energy = [f"{element.energy:.8g}"] if element.energy is not None else []
        numbers = ["\u2013"] * 3
        if element.neighbors is not None:
            numbers = [f"{element.neighbors:.1f}", str(element.fewest), str(element.most)]
        head = [element.head] if several else []
        rows.append([element.symbol, *head, *energy, f"{element.atoms:,}", *numbers])
    source = f"E0s from: {facts.heads[0].energies_source}. " if with_energies and not several else ""
    said = (
        f"{source}Neighbors are those within {facts.r_max:g} \u00c5; the model divides by their average, "
        f"{facts.average_neighbors:.4g}."
    )
    if facts.looked_at:
        said += f" Neighbors are shown of {facts.looked_at:,} structures that were drawn by lot."
    drawn = "".join(
        f"<figure{of_head(head * several)}><figcaption>Neighbors of the atoms of the training set"
        f"{f', head {escape(head)}' * several}</figcaption>{histogram(numbers, 'neighbors')}</figure>"
        for head, numbers in facts.neighbors.items()
    )
    heads = [element.head for element in facts.elements]
    elements = table(header, rows, "elements", left=1 + several, heads=heads)
    return f'<p>{escape(said)}</p>{elements}<div class="charts">{drawn}</div>'


def _settings(facts: RunFacts) -> str:
    given = [fact for fact in facts.settings if fact.given]
    decided = _texts(("decision", "value"), facts.decisions, "decisions")
    all_groups = "".join(
        f"<h3>{escape(group)}</h3>{_settings_table(list(members), with_help=True)}"
        for group, members in groupby(facts.settings, key=lambda fact: fact.group)
    )
    return (
        f"<h3>Given ({len(given)})</h3>{_settings_table(given, with_help=False)}"
        f"<h3>Decided from them and the data</h3>{decided}"
        f"<details><summary>All {len(facts.settings)} settings as they were resolved</summary>{all_groups}</details>"
    )


def _settings_table(settings: Sequence[SettingFact], with_help: bool) -> str:
    rows: list[list[str]] = []
    for fact in settings:
        flag = escape(fact.name).replace("_", "_<wbr>")  # where a narrow screen may break it
        name = Drawing(f"<code>--{flag}</code>{' (given)' if fact.given and with_help else ''}")
        rows.append([name, _text(fact.value), _text(fact.help if with_help else f"default: {fact.default}")])
    return table(("setting", "value", "meaning" if with_help else ""), rows, "settings", kind="texts")


def _texts(header: Sequence[str], entries: Mapping[str, str], caption: str) -> str:
    """Write a table of names and texts."""
    return table(header, [(name, _text(words)) for name, words in entries.items()], caption, kind="texts")


def _text(words: str) -> Drawing:
    return Drawing(f'<div class="words">{escape(words)}</div>')


def _warnings(warnings: Sequence[Warned]) -> str:
    if not warnings:
        return '<p class="soft">The run warned of nothing since the program was started.</p>'
    items = "".join(
        f'<li class="{"error" if warned.level in ("ERROR", "CRITICAL") else "warning"}">'
        f'<span class="soft">{warned.time:%Y-%m-%d %H:%M:%S}'
        f"{f', {warned.times} times' if warned.times > 1 else ''}</span><p>{escape(warned.sentence)}</p></li>"
        for warned in warnings[-_MOST_WARNINGS:]
    )
    return f'<ul class="findings">{items}</ul>'

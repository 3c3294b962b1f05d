# SPDX-License-Identifier: Apache-2.0
"""What a person sees while a run goes on, fed by the event stream alone.

`RunView` is the state of a run as the events told it; unknown events are ignored. On a terminal it is drawn live, elsewhere each
round is one line. Everything goes to stderr, so stdout stays for results.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from common.events import Event, Listener

MAX_SITES_SHOWN = 12
MAX_WARNINGS_SHOWN = 3
NO_PRIVACY = "NO PRIVACY: no patient is protected"
PHASES = {
    "data": "preparing images",
    "features": "computing features",
    "federated": "federated training",
    "pooled": "comparison: all data in one place",
    "alone": "comparison: each site alone",
    "baselines": "comparison: all data in one place, and each site alone",
    "report": "writing the report",
}


@dataclass
class SiteView:
    """Last known facts of one site; `epsilon` is an upper bound of what is spent."""

    round: int = 0
    loss: float | None = None
    auroc: float | None = None
    epsilon: float | None = None
    state: str = "waiting"


@dataclass
class RunView:
    """A run as its events told it so far. `started` holds the facts of `run_started`; times are seconds since the epoch."""

    started: Mapping[str, Any] = field(default_factory=dict)
    sites: dict[str, SiteView] = field(default_factory=dict)
    phase: str = ""
    label: str = ""
    done: int = 0
    total: int = 0
    phase_start: float = 0.0
    now: float = 0.0
    round: int = 0
    rounds_done: int = 0
    auroc: float | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def rounds(self) -> int:
        """Planned rounds."""
        return int(self.started.get("rounds") or 0)

    @property
    def is_private(self) -> bool:
        """Whether the study protects its patients."""
        return bool(self.started.get("private"))

    def bounded(self, epsilon: float | None) -> float | None:
        """The live bound, or the target where that is less: noise is calibrated so that the whole study stays within it."""
        target = self.started.get("epsilon_target")
        return epsilon if epsilon is None or target is None else min(epsilon, target)

    @property
    def seconds_left(self) -> float | None:
        """Time to the end of this phase at the speed so far, None while nothing is known."""
        done, left = (self.rounds_done, self.rounds - self.round) if self.phase == "federated" else (self.done, self.total - self.done)
        return (self.now - self.phase_start) / done * max(left, 0) if done else None


def advance(view: RunView, event: Event) -> RunView:
    """The view after `event`: the same object brought up to date, or a new one when a new run starts."""
    facts: Mapping[str, Any] = event.facts
    if event.name == "run_started" and "resumed_from" not in facts:  # the simulation's own, not that of the server in it
        return RunView(started=facts, sites={str(name): SiteView() for name in facts.get("sites", ())}, now=event.time)
    view.now = event.time
    match event.name:
        case "phase_started":
            view.phase, view.label, view.phase_start = str(facts["phase"]), str(facts.get("label") or ""), event.time
            view.done, view.total = 0, int(facts.get("total") or 0)
        case "progress":
            view.done, view.total = int(facts["done"]), int(facts.get("total") or 0)
        case "round_started":
            view.round = int(facts["round"]) - 1
            for name, site in view.sites.items():
                site.state = "training" if name in facts.get("sites", view.sites) else "not asked"
        case "site_trained":
            site = view.sites.setdefault(str(facts["site"]), SiteView())
            site.round, site.state = int(facts["round"]), "done"
            site.loss, site.auroc, site.epsilon = facts.get("loss"), facts.get("auroc"), view.bounded(facts.get("epsilon"))
        case "site_refused":
            view.sites.setdefault(str(facts["site"]), SiteView()).state = str(facts["code"])
        case "round_done":
            view.round, view.rounds_done, view.auroc = int(facts["round"]), view.rounds_done + 1, facts.get("auroc")
        case "warning":
            view.warnings.append(str(facts["text"]))
    return view


@contextmanager
def show_progress(console: Console | None = None) -> Iterator[Listener]:
    """A listener that shows a run on `console` (default: stderr) until the block ends."""
    console = console or Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        yield PlainProgress(console)
        return
    with Live(console=console, refresh_per_second=8) as live:
        yield LiveProgress(live)


class LiveProgress:
    """Redraws the run after each event."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._view = RunView()

    def __call__(self, event: Event) -> None:
        """Take in one event and redraw."""
        self._view = advance(self._view, event)
        self._live.update(drawing(self._view))


class PlainProgress:
    """One line for each round and each phase, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._view = RunView()

    def __call__(self, event: Event) -> None:
        """Take in one event and print its line, if it has one."""
        self._view = advance(self._view, event)
        for line in _plain_lines(self._view, event):
            self._console.print(Text(line), soft_wrap=True)


def drawing(view: RunView) -> RenderableType:
    """The run as a picture for the terminal."""
    parts: list[RenderableType] = [_header(view), _bar(view)]
    if view.sites:
        parts.append(_site_table(view))
    parts += [Text(f"warning: {text}", style="yellow") for text in view.warnings[-MAX_WARNINGS_SHOWN:]]
    return Group(*parts)


def _header(view: RunView) -> Text:
    if not view.started:
        return Text("wardround", style="bold")
    text = Text(str(view.started.get("study", "")), style="bold")
    text.append(f"  {str(view.started.get('study_id', ''))[:8]}  {_count(len(view.sites), 'site')}  ", style="not bold dim")
    text.append(_privacy(view), style="not bold green" if view.is_private else "bold white on red")
    return text


def _privacy(view: RunView) -> str:
    if not view.is_private:
        return NO_PRIVACY
    words = f"patient-level ε ≤ {view.started.get('epsilon_target') or 0:g} at each site"
    noise = view.started.get("noise_multiplier")
    return f"{words}, noise multiplier {noise:.3g}" if noise else words


def _bar(view: RunView) -> RenderableType:
    is_training = view.phase == "federated"
    done, total = (view.round, view.rounds) if is_training else (view.done, view.total)
    facts = [_phase(view)]
    if total:
        facts.append(f"round {done}/{total}" if is_training else f"{done}/{total}")
    if is_training and view.auroc is not None:
        facts.append(f"AUROC {view.auroc:.3f}")
    if view.seconds_left is not None:
        facts.append(f"{_duration(view.seconds_left)} left")
    row = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=total or None, completed=done, width=30, pulse=not total, animation_time=view.now)
    row.add_row(bar, Text("  ".join(facts)))
    return row


def _phase(view: RunView) -> str:
    return view.label or PHASES.get(view.phase, view.phase) or "starting"


def _site_table(view: RunView) -> Table:
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for name in ("site", "round", "loss", "AUROC", "ε spent ≤", "state"):
        table.add_column(name, justify="left" if name in ("site", "state") else "right")
    for name, site in list(view.sites.items())[:MAX_SITES_SHOWN]:
        cells = (name, str(site.round or ""), _number(site.loss, 3), _number(site.auroc, 3), _number(site.epsilon, 2), site.state)
        table.add_row(*(Text(cell) for cell in cells))
    hidden = len(view.sites) - MAX_SITES_SHOWN
    if hidden > 0:
        table.add_row(Text(f"… {_count(hidden, 'more site')}", style="dim"))
    return table


def _plain_lines(view: RunView, event: Event) -> Iterator[str]:
    match event.name:
        case "run_started" if "resumed_from" not in event.facts:
            yield f"{view.started.get('study')}: {_count(len(view.sites), 'site')}, {_count(view.rounds, 'round')}; {_privacy(view)}"
            yield f"run folder: {view.started.get('run_dir')}"
        case "phase_started":
            yield _phase(view)
        case "site_refused":
            yield f"round {event.facts.get('round')}: {event.facts.get('site')} refused with {event.facts.get('code')}"
        case "round_done":
            yield _round_line(view)
        case "warning":
            yield f"warning: {event.facts.get('text')}"


def _round_line(view: RunView) -> str:
    losses = [site.loss for site in view.sites.values() if site.loss is not None and site.round == view.round]
    spent = [site.epsilon for site in view.sites.values() if site.epsilon is not None]
    facts = [f"round {view.round}/{view.rounds}"]
    if view.auroc is not None:
        facts.append(f"AUROC {view.auroc:.3f}")
    if losses:
        facts.append(f"loss {sum(losses) / len(losses):.3f}")
    if spent:
        facts.append(f"ε ≤ {max(spent):.2f}")
    if view.seconds_left is not None:
        facts.append(f"{_duration(view.seconds_left)} left")
    return "  ".join(facts)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

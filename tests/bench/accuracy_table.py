# SPDX-License-Identifier: Apache-2.0
"""From finished runs to the figures of a table and their Markdown. Pure: no file is read or written here."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from simulations.results import Measurement, ModelResult, RunResult
from tests.bench.accuracy_rows import Row

UNKNOWN = "–"


@dataclass(frozen=True)
class Finding:
    """One run in numbers. AUROC is exact, on the held-out patients of all sites; None is not measured.

    `epsilon` is the largest of the sites; `worst_site` is the least AUROC of a model that one site trained alone; `measured` is the
    private measurement of the final model, which counts patients, not images; `engine` forms the private gradients.
    """

    seed: int
    auroc: float
    epsilon: float | None
    pooled: float | None
    worst_site: float | None
    trivial: Mapping[str, float | None]
    measured: Measurement | None = None
    engine: str = UNKNOWN


@dataclass(frozen=True)
class Summary:
    """One row over its seeds."""

    row: Row
    findings: tuple[Finding, ...]

    @property
    def mean(self) -> float:
        """Mean AUROC."""
        return statistics.fmean(finding.auroc for finding in self.findings)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over seeds; None for a single one."""
        return statistics.stdev(finding.auroc for finding in self.findings) if len(self.findings) > 1 else None

    @property
    def least(self) -> float:
        """The worst seed."""
        return min(finding.auroc for finding in self.findings)

    @property
    def shortfalls(self) -> list[str]:
        """What was asked for and not reached."""
        row, found = self.row, []
        if row.required is not None and self.mean < row.required:
            found.append(f"mean {self.mean:.4f} is below {row.required}")
        if row.required_each is not None and self.least < row.required_each:
            found.append(f"one seed has {self.least:.4f}, below {row.required_each}")
        return found

    def mean_of(self, value: Callable[[Finding], float | None]) -> float | None:
        """Mean over the seeds that have the value."""
        values = [number for finding in self.findings if (number := value(finding)) is not None]
        return statistics.fmean(values) if values else None


def finding_of(result: RunResult) -> Finding:
    """A run in numbers. Raises ValueError when its AUROC could not be measured."""
    auroc = _auroc(result.federated)
    if auroc is None:
        raise ValueError(f"run {result.run_id}: no AUROC was measured")
    spent = [site.epsilon for site in result.sites if site.epsilon is not None]
    alone = [number for model in result.alone.values() if (number := _auroc(model)) is not None]
    return Finding(
        seed=result.seed,
        auroc=auroc,
        epsilon=max(spent, default=None),
        pooled=_auroc(result.pooled),
        worst_site=min(alone, default=None),
        trivial=result.trivial,
        measured=result.measured[-1] if result.measured and result.measured[-1].round == result.rounds else None,
        engine=_engine(result),
    )


def _engine(result: RunResult) -> str:
    privacy = result.study.get("privacy")
    return str(privacy.get("engine", UNKNOWN)) if isinstance(privacy, dict) else UNKNOWN


def _auroc(model: ModelResult | None) -> float | None:
    return model.metrics.get("auroc") if model else None


def figures_table(summaries: Sequence[Summary], seeds_asked: int) -> str:
    """The main table."""
    header = (
        "",
        "seeds",
        "AUROC, mean ± sd",
        "worst seed",
        "asked for",
        "measured with privacy",
        "worst site alone",
        "all in one place",
        "largest ε",
    )
    return _markdown(header, [_figures(summary, seeds_asked) for summary in summaries])


def _figures(summary: Summary, seeds_asked: int) -> list[str]:
    count = len(summary.findings)
    epsilon = max((finding.epsilon for finding in summary.findings if finding.epsilon is not None), default=None)
    return [
        summary.row.title,
        str(count) if count >= seeds_asked else f"{count} of {seeds_asked}",
        f"{summary.mean:.4f}" + ("" if summary.deviation is None else f" ± {summary.deviation:.4f}"),
        f"{summary.least:.4f}",
        asked_for(summary, seeds_asked),
        _measured(summary),
        _baseline(summary, lambda finding: finding.worst_site),
        _baseline(summary, lambda finding: finding.pooled),
        "none" if epsilon is None else f"{epsilon:.3f}",
    ]


def _baseline(summary: Summary, value: Callable[[Finding], float | None]) -> str:
    """Mean over the seeds for which the baseline was trained, and how many if they are not all."""
    count = sum(value(finding) is not None for finding in summary.findings)
    return shown(summary.mean_of(value)) + ("" if count in (0, len(summary.findings)) else f" ({count} seeds)")


def asked_for(summary: Summary, seeds_asked: int) -> str:
    """The demand and whether it is met; with fewer seeds than asked for, only so far."""
    row = summary.row
    if row.required is None:
        return UNKNOWN
    each = f", each ≥ {row.required_each:g}" if row.required_each is not None else ""
    so_far = " so far" if len(summary.findings) < seeds_asked else ""
    stretch = ""
    if row.stretch is not None:
        stretch = f"; {'reaches' if summary.mean >= row.stretch else 'not'} {row.stretch:g}"
    return f"≥ {row.required:g}{each}: {'**missed**' if summary.shortfalls else 'met'}{so_far}{stretch}"


def measured_table(summaries: Sequence[Summary]) -> str:
    """The privately measured AUROC beside the exact one, each seed; empty where none was measured."""
    found = [(summary.row, finding.seed, finding.measured) for summary in summaries for finding in summary.findings]
    rows = [
        [row.title, str(seed), shown(measured.exact), shown(measured.auroc), shown(measured.standard_error), _distance(measured)]
        for row, seed, measured in found
        if measured is not None
    ]
    header = ("", "seed", "exact, by patient", "measured with privacy", "its standard error", "standard errors apart")
    return _markdown(header, rows) if rows else ""


def _distance(measured: Measurement) -> str:
    """How many standard errors the measurement is from the exact figure."""
    if measured.auroc is None or measured.exact is None or not measured.standard_error:
        return UNKNOWN
    return f"{(measured.auroc - measured.exact) / measured.standard_error:+.1f}"


def _measured(summary: Summary) -> str:
    """Mean of the private measurements, and the standard error of a single one."""
    values = summary.mean_of(lambda finding: finding.measured.auroc if finding.measured else None)
    error = summary.mean_of(lambda finding: finding.measured.standard_error if finding.measured else None)
    return UNKNOWN if values is None or error is None else f"{values:.4f} (se {error:.3f})"


def trivial_table(summaries: Sequence[Summary]) -> str:
    """Trivial baselines of each task: one line for rows with the same data and labels."""
    tasks: dict[str, Mapping[str, float | None]] = {}
    for summary in summaries:
        tasks.setdefault(_task(summary.row), summary.findings[0].trivial)
    names = list(dict.fromkeys(name for trivial in tasks.values() for name in trivial))
    return _markdown(("", *names), [[task, *(shown(trivial.get(name)) for name in names)] for task, trivial in tasks.items()])


def _task(row: Row) -> str:
    study = row.study_of(0)
    return f"{' or '.join(study.data.labels)}, {study.data.image_size}x{study.data.image_size}, {row.data.rsplit('/', 1)[-1]}"


def seeds_table(summaries: Sequence[Summary]) -> str:
    """Every single figure."""
    rows = [
        [summary.row.name, _seeds(summary.findings), " ".join(f"{finding.auroc:.4f}" for finding in summary.findings), _engines(summary)]
        for summary in summaries
    ]
    return _markdown(("row", "seeds", "AUROC of each seed", "engine of each seed"), rows)


def _engines(summary: Summary) -> str:
    """One name if all seeds have the same engine, else one for each."""
    engines = [finding.engine for finding in summary.findings]
    return engines[0] if len(set(engines)) == 1 else " ".join(engines)


def _seeds(findings: Iterable[Finding]) -> str:
    return ", ".join(str(finding.seed) for finding in findings)


def shown(value: float | None) -> str:
    """An AUROC with four digits, or a dash."""
    return UNKNOWN if value is None else f"{value:.4f}"


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

# SPDX-License-Identifier: Apache-2.0
"""The page of a survey: one HTML file that needs nothing else. Everything on it has left the sites with noise, so it may be shown."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.files import write_atomic
from common.survey_plan import Table
from server.surveys.charts import bars
from server.surveys.figures import Distance, NoisyTable, Numbers
from server.surveys.findings import NO, UNSURE, YES, Findings, Pair
from server.surveys.record import PAGE_FILE, SurveyRecord

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).resolve().parents[1] / "templates"
DASH = "–"
FEW_CELLS = 12
TITLES = {
    "patients": "Patients",
    "images": "Images per patient",
    "classes": "Labels",
    "intensity": "Grey values",
    "subgroup": "{column}",
    "feature": "{column}",
}


@dataclass(frozen=True)
class Section:
    """One table on the page. `distances` by two sites' names; `names` is empty where it would be too long a list."""

    table: Table
    title: str
    tables: list[NoisyTable]
    pictures: list[str]
    distances: dict[tuple[str, str], Distance | None]
    furthest: Pair | None
    numbers: dict[str, Numbers] | None

    @property
    def reading(self) -> str:
        """One word on how alike the sites are."""
        if self.furthest is None or self.furthest.distance is None:
            return "not measurable"
        return "sites differ" if self.furthest.distance.is_sure else "within the noise"

    @property
    def is_short(self) -> bool:
        """Whether every cell has room in a table of figures."""
        return len(self.table.cells) <= FEW_CELLS


def write_survey_page(folder: Path, record: SurveyRecord) -> Path:
    """Write the page into the run's folder. Raises StorageError."""
    path = folder / PAGE_FILE
    write_atomic(path, survey_page(record))
    return path


def survey_page(record: SurveyRecord) -> str:
    """The page as text."""
    findings = Findings(record)
    sections = [_section(findings, table) for table in findings.compared()]
    context = {
        "findings": findings,
        "record": record,
        "study": record.survey,
        "plan": findings.plan,
        "sites": findings.sites,
        "sections": sections,
        "differing": [one for one in sections if one.reading == "sites differ"],
        "lacks": findings.lacks(),
        "small": {answer: [site for site in findings.sites if findings.reaches_minimum(site) == answer] for answer in (YES, NO, UNSURE)},
    }
    return _environment().get_template("survey.html").render(context)


def _section(findings: Findings, table: Table) -> Section:
    tables = [findings.of(table, site) for site in findings.sites]
    pairs = findings.pairs(table)
    known = [pair for pair in pairs if pair.distance is not None]
    return Section(
        table=table,
        title=TITLES[table.kind].format(column=table.column),
        tables=tables,
        pictures=bars(tables),
        distances={(pair.one, pair.other): pair.distance for pair in pairs},
        furthest=max(known, key=_excess) if known else None,
        numbers=findings.numbers(table) if table.kind == "feature" else None,
    )


def _excess(pair: Pair) -> float:
    return pair.distance.value - pair.distance.largest_by_noise if pair.distance else 0.0


def _count(value: float) -> str:
    """Patients, as measured, with one decimal; a minus that is one."""
    return f"{value:,.1f}".replace("-", "−")


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %".replace("-", "−")


def _plain(value: float | None) -> str:
    return DASH if value is None else f"{value:.4g}".replace("-", "−")


def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"count": _count, "percent": _percent, "plain": _plain}
    return environment

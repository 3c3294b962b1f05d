# SPDX-License-Identifier: Apache-2.0
"""docs/failures.json, the stored rows of the failure table, and docs/failures.md, the page that they make. Nothing on it is by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from tests.support.failures import FailureRow

HEAD = """\
# What happens when something breaks

Each row is a fault that a test has caused in a real federation on one machine: a coordinator and two hospitals, all of it real
processes with TLS, in the middle of a run. `make failures` does all of it again and writes this page from what it saw; nothing here is
written by hand.

- **IT saw**, **the coordinator saw**: what their own logs, stores and `status` commands say, with the seconds after the fault.
- **Noticed**: seconds from the fault until one of the two could see it.
- **Recovered**: seconds until the next round with every site that could take part was done, its training included. Counted from the
  fault; where a fault lasts (an outage, a cut), from its end.
- **Rounds lost**: rounds of the study that are missing at the end. **Charges doubled**: rounds for which a site's ledger was charged
  twice, or two different updates left. Both are counted from the stored rows, not by the product; at the end of every row each site's
  `ledger verify` and `egress --verify` found nothing, and each counted update is in its site's egress log with the same digest.
- **Done without**: replies that a round had to do without. What was charged for such a reply stays charged.

Seconds depend on the machine (here: two processor cores, shared with other work) and are no promise. Not tested: a real power cut, two
faults at the same moment, and machines that are really apart.
"""
_MISSED = re.compile(r"(.+) in round (\d+) \((.+)\)")
SAW = ("IT saw", "the coordinator saw")
COLUMNS = ("fault", "what was done", *SAW, "noticed", "recovered", "rounds lost", "charges doubled", "done without")


def render(rows: Sequence[FailureRow]) -> str:
    """The page."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
    return HEAD + "\n" + "\n".join(lines) + "\n"


def store(rows: Sequence[FailureRow], folder: Path) -> None:
    """Write both files into `folder`."""
    text = json.dumps([asdict(row) for row in rows], indent=1, ensure_ascii=False) + "\n"
    (folder / "failures.json").write_text(text, encoding="utf-8")
    (folder / "failures.md").write_text(render(rows), encoding="utf-8")


def stored(folder: Path) -> list[FailureRow]:
    """The rows in docs/failures.json."""
    path = folder / "failures.json"
    return [_row(plain) for plain in json.loads(path.read_text(encoding="utf-8"))] if path.exists() else []


def collected(folder: Path) -> dict[str, FailureRow | None]:
    """What the recorders have left in a folder: by scenario its row, or None for one that did not end well."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return {one["scenario"]: None if one["row"] is None else _row(one["row"]) for one in found}


def merged(old: Iterable[FailureRow], new: Mapping[str, FailureRow | None], scenarios: Sequence[str]) -> list[FailureRow]:
    """The rows of all scenarios that exist, in their order: the new row where the scenario ran, the old one where it did not."""
    known: dict[str, FailureRow | None] = {row.scenario: row for row in old}
    known |= new
    return [row for scenario in scenarios if (row := known.get(scenario)) is not None]


def _row(plain: Mapping[str, object]) -> FailureRow:
    row = FailureRow(**plain)  # type: ignore[arg-type]  # its own JSON
    return replace(row, missed=tuple(row.missed))


def _cells(row: FailureRow) -> list[str]:
    numbers = [f"{row.notice_seconds:.1f} s", f"{row.recover_seconds:.1f} s", str(row.rounds_lost), str(row.charges_doubled)]
    saw = [_seen(row.site_saw, row.site_seconds), _seen(row.coordinator_saw, row.coordinator_seconds)]
    remark = f"{row.done}. {row.remark}" if row.remark else row.done
    return [_cell(text) for text in [row.fault, remark]] + saw + numbers + [_cell(in_short(row.missed))]


def in_short(missed: Sequence[str]) -> str:
    """Replies that were missing, the rounds of one site and one reason together."""
    rounds: dict[tuple[str, str], list[int]] = {}
    for site, number, reason in (_MISSED.fullmatch(text).groups() for text in missed):  # type: ignore[union-attr]
        rounds.setdefault((site, reason), []).append(int(number))
    parts = [f"{site} in {_rounds(sorted(numbers))} ({reason})" for (site, reason), numbers in rounds.items()]
    return ", ".join(parts) or "nothing"


def _rounds(numbers: Sequence[int]) -> str:
    first, last = numbers[0], numbers[-1]
    if first == last:
        return f"round {first}"
    return f"rounds {first} to {last}" if last - first + 1 == len(numbers) else f"rounds {', '.join(map(str, numbers))}"


def _seen(text: str, seconds: float | None) -> str:
    return "nothing" if not text or seconds is None else f"{_code(text)} (after {seconds:.1f} s)"


def _code(text: str) -> str:
    """Literal text in a cell; the page's commands are checked, and these are quotations."""
    return f"<q>{_cell(text.replace('`', ''))}</q>"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())

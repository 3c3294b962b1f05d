# SPDX-License-Identifier: Apache-2.0
"""Is a run whole after what was done to it: every round there once, every update that left charged once, both ends of one mind.

Nothing here uses the product's own accounting: rows of the ledger, lines of the egress log and rows of the run store are read as they are
stored, and counted anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from common.events import read_events
from tests.support.federation import Federation

Slot = tuple[str, int]
"""A run's id and a round: what a site may be charged for once."""


@dataclass
class Charged:
    """What one site did for one round of training. `charges` counts reservations that were not taken back, `states` the rows' states in
    order, `left` the digests of the different updates that left, `messages` those of the messages that they answered."""

    site: str
    slot: Slot
    charges: int = 0
    states: list[str] = field(default_factory=list)
    left: set[str] = field(default_factory=set)
    messages: set[str] = field(default_factory=set)

    @property
    def doubled(self) -> int:
        """Charges, or different updates, beyond the one that there may be."""
        return max(0, self.charges - 1) + max(0, len(self.left) - 1)

    @property
    def problems(self) -> list[str]:
        """What must never be."""
        where = f"{self.site}, round {self.slot[1]}"
        found = [f"{where}: {self.charges} charges"] if self.charges > 1 else []
        found += [f"{where}: {len(self.left)} different updates left"] if len(self.left) > 1 else []
        found += [f"{where}: an update left and nothing is charged"] if self.left and not self.charges else []
        found += [f"{where}: the ledger says sent, the egress log knows of nothing"] if "sent" in self.states and not self.left else []
        return found


@dataclass(frozen=True)
class Whole:
    """What a run has come to. `missed` are replies that rounds did without; `unused`: charges whose update no round has counted."""

    rounds: int
    rounds_lost: int
    charges_doubled: int
    missed: tuple[str, ...]
    unused: tuple[str, ...]


def charges_of(federation: Federation, site: str, run_id: str | None = None) -> dict[Slot, Charged]:
    """What a site has charged and what has left it, by run and round, of one run or of all."""
    found: dict[Slot, Charged] = {}
    for row in federation.ledger_rows(site):
        if row["kind"] == "ChargeEntry" and row["key"]["line"] == "training":
            one = found.setdefault(slot := (row["key"]["run_id"], row["key"]["round"]), Charged(site, slot))
            one.charges += {"reserved": 1, "recovered": 1, "settled": -1}.get(row["state"], 0)
            one.states.append(row["state"])
            one.messages.add(row["key"]["message_sha256"])
    for line in federation.exits(site):
        if line["kind"] == "update":
            one = found.setdefault(slot := (line["run_id"], line["round"]), Charged(site, slot))
            one.left.add(line["payload_sha256"])
            one.messages.add(line["incoming_sha256"])
    return {slot: one for slot, one in found.items() if run_id in (None, slot[0])}


def assert_whole(federation: Federation, run_id: str, rounds: int, sites: Sequence[str]) -> Whole:
    """A run that has ended: all rounds done, everything at both ends fits. What it has come to."""
    folder = federation.coordinator / "runs" / run_id
    done = [int(row["round"]) for row in federation.store_rows(run_id, "SELECT round FROM rounds ORDER BY round")]
    assert done == list(range(1, rounds + 1)), f"rounds in the run store: {done}"
    counted = Counter(int(str(event.facts["round"])) for event in read_events(folder / "events.jsonl") if event.name == "round_done")
    assert set(counted) == set(done), f"rounds in the events: {counted}"
    assert max(path.name for path in (folder / "checkpoints").glob("round-*.safetensors")) == f"round-{rounds:05d}.safetensors"
    facts = next(facts for facts in federation.on_server("runs", "--json").json["runs"] if facts["run_id"] == run_id)
    assert (facts["status"], facts["rounds_done"]) == ("finished:completed", rounds), facts
    charged = {site: charges_of(federation, site, run_id) for site in sites}
    problems = [problem for slots in charged.values() for one in slots.values() for problem in one.problems]
    assert not problems, problems
    for site in sites:
        _check_records(federation, site)
    return _summary(federation, run_id, rounds, charged)


def _summary(federation: Federation, run_id: str, rounds: int, charged: dict[str, dict[Slot, Charged]]) -> Whole:
    """Each update that a round counted is one that left its site, by its digest; what is not counted is named."""
    answers = federation.store_rows(run_id, "SELECT round, site, outcome, payload_sha256 FROM details WHERE kind = 'train'")
    used: set[tuple[str, Slot]] = set()
    for row in answers:
        if row["outcome"] == "update":
            slot = (run_id, int(row["round"]))
            assert charged[row["site"]][slot].left == {row["payload_sha256"]}, f"{row['site']}, round {row['round']}: another update"
            used.add((row["site"], slot))
    missed = [f"{row['site']} in round {row['round']} ({row['outcome']})" for row in _missing(answers)]
    unused = [
        f"{site} in round {slot[1]} ({one.states[-1]})"
        for site, slots in charged.items()
        for slot, one in slots.items()
        if one.charges and (site, slot) not in used
    ]
    doubled = sum(one.doubled for slots in charged.values() for one in slots.values())
    lost = rounds - len({row["round"] for row in answers if row["outcome"] == "update"})
    return Whole(rounds, lost, doubled, tuple(missed), tuple(unused))


def _missing(answers: Sequence[dict[str, object]]) -> list[dict[str, object]]:
    return [row for row in answers if row["outcome"] != "update"]


def _check_records(federation: Federation, site: str) -> None:
    """What `ledger verify` and `egress --verify` do finds the site's records in order. In this process: each command is a new Python."""
    from client.commands import ledger
    from client.egress_audit import audit
    from client.site_home import SiteHome

    home = federation.hospitals[site].home
    ledger.verify(home)
    found = audit(SiteHome(home))
    assert not found.problems and not found.damaged, found.problems

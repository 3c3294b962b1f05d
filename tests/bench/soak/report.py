# SPDX-License-Identifier: Apache-2.0
"""What a soak showed: rounds, charges, kills, memory, processes; each claim holds or does not."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from statistics import median

from rich.console import Console
from rich.table import Table

from client.site import open_ledger
from common.privacy.charge_book import State
from simulations.loopback import CLIENT
from simulations.processes import run
from tests.bench.soak.books import Slot, Struck, Unused, problems, read_charges, unused, updates_that_left
from tests.bench.soak.driving import Driver
from tests.bench.soak.watch import Growth, growth

MOST_MEGABYTES = 20.0
MOST_DESCRIPTORS = 5.0
"""Growth per 100 rounds that still counts as flat: what one sample differs from the next by, over the few samples of a short soak."""
SLACK_SECONDS = 5.0
COMMAND_SECONDS = 600.0


@dataclass
class SiteBooks:
    """One hospital: reservations written, charges standing (by the rows, and by the ledger itself), updates that left, updates added up."""

    site: str
    reserved: int
    charged: int
    shown: int
    left: int
    added: int


@dataclass
class Report:
    """Everything that is shown. `problems` is empty when everything holds."""

    rounds_done: int
    rounds_planned: int
    seed: int
    sites: list[SiteBooks]
    unused: list[Unused]
    struck: list[Struck]
    helped: list[str]
    growth: dict[str, Growth | None]
    problems: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether every claim holds."""
        return not self.problems

    def show(self, console: Console) -> None:
        """Print it."""
        console.print(f"rounds done: {self.rounds_done} of {self.rounds_planned}; seed {self.seed}")
        for text in self.helped:
            console.print(f"resumed by hand: {text}", markup=False)
        for table in (self._kills(), self._sites(), self._unused(), self._growth()):
            console.print(table)
        for problem in self.problems:
            console.print(f"DOES NOT HOLD: {problem}", markup=False)
        if self.holds:
            console.print("holds: every round once, one charge for each update that left, memory and descriptors flat, nobody left behind")

    def _kills(self) -> Table:
        table = _table("kills", "kind", "times", "median seconds to the next round done", "longest")
        for kind, times in sorted(Counter(one.kill.target.value for one in self.struck).items()):
            seconds = [one.recovery_seconds for one in self.struck if one.kill.target.value == kind and one.recovery_seconds is not None]
            figures = (f"{median(seconds):.1f}", f"{max(seconds):.1f}") if seconds else ("", "")
            table.add_row(kind, str(times), *figures)
        return table

    def _sites(self) -> Table:
        table = _table("books", "site", "reservations", "charges by rows", "charges by the ledger", "updates that left", "added up")
        for one in self.sites:
            table.add_row(one.site, *map(str, (one.reserved, one.charged, one.shown, one.left, one.added)))
        return table

    def _unused(self) -> Table:
        table = _table("charges without an aggregated update", "site", "run", "round", "state", "caused by")
        for one in self.unused:
            cause = "nothing explains it" if one.cause is None else f"kill of {one.cause.kill.victim} in round {one.cause.round}"
            table.add_row(one.slot.site, one.slot.run_id[:8], str(one.slot.round), one.state, cause)
        return table

    def _growth(self) -> Table:
        table = _table("growth per 100 rounds", "process", "memory MB", "file descriptors", "peak MB", "samples", "processes")
        for role, one in sorted(self.growth.items()):
            if one is None:
                table.add_row(role, "lived too short to say", *[""] * 4)
            else:
                figures = (f"{one.megabytes:+.1f}", f"{one.descriptors:+.2f}", f"{one.peak_megabytes:.0f}")
                table.add_row(role, *figures, str(one.points), str(one.processes))
        return table


def report(driver: Driver) -> Report:
    """The report of a soak whose federation still runs."""
    found = Report(
        rounds_done=0,
        rounds_planned=driver.options.rounds,
        seed=driver.options.seed,
        sites=[],
        unused=[],
        struck=driver.killer.struck,
        helped=driver.helped,
        growth={role: growth(series) for role, series in driver.watch.series.items()},
        problems=[*driver.problems, *driver.watch.reported],
    )
    _check_rounds(driver, found)
    for site in driver.federation.hospitals:
        _check_site(driver, found, site)
    _check_kills(driver, found)
    _check_growth(found)
    return found


def _check_rounds(driver: Driver, found: Report) -> None:
    """Every run has each of its rounds exactly once in the run store."""
    for run_id, rounds in driver.runs.items():
        done = sorted({int(row["round"]) for row in driver.federation.outcomes(run_id)})
        found.rounds_done += len(done)
        if done != list(range(1, rounds + 1)):
            found.problems.append(f"run {run_id[:8]}: {len(done)} of {rounds} rounds are in the run store")
    if found.rounds_done != found.rounds_planned:
        found.problems.append(f"{found.rounds_done} rounds done, {found.rounds_planned} planned")


def _check_site(driver: Driver, found: Report, site: str) -> None:
    """The ledger, the egress log and the run store of one hospital say the same."""
    federation, hospital = driver.federation, driver.federation.hospitals[site]
    charges = read_charges(site, federation.ledger_rows(site))
    left = updates_that_left(site, federation.exits(site))
    added = {
        Slot(site, run_id, int(row["round"]))
        for run_id in driver.runs
        for row in federation.outcomes(run_id)
        if (row["site"], row["outcome"]) == (site, "update")
    }
    shown = sum(charge.state is not State.SETTLED for charge in open_ledger(hospital.home).charges())
    found.sites.append(SiteBooks(site, charges.reserved, len(charges.standing), shown, len(left), len(added)))
    found.problems += problems(charges, left, added)
    found.unused += unused(charges, added, driver.killer.struck, driver.windows, SLACK_SECONDS)
    if shown != len(charges.standing):
        found.problems.append(f"{site}: {shown} charges by the ledger, {len(charges.standing)} keys reserved and not settled to zero")
    for command in (("ledger", "verify", hospital.home), ("egress", "--verify", "--home", hospital.home)):
        done = run(CLIENT, *command, expect=None, timeout_seconds=COMMAND_SECONDS)
        if done.code:
            found.problems.append(f"{site}: {command[0]} --verify ended with code {done.code}: {(done.out + done.err).strip()[-300:]}")


def _check_kills(driver: Driver, found: Report) -> None:
    if driver.killer.left:
        found.problems.append(f"{driver.killer.left} kills of the schedule were not done")
    for one in found.struck:
        if one.recovery_seconds is None:
            found.problems.append(f"no round was done after the kill of {one.kill.victim} in round {one.round}")
    for lost in found.unused:
        if lost.cause is None:
            found.problems.append(f"{lost.slot.site}, round {lost.slot.round}: charged, not added up, and no kill explains it")


def _check_growth(found: Report) -> None:
    for role, one in found.growth.items():
        if one is not None and one.megabytes > MOST_MEGABYTES:
            found.problems.append(f"memory of {role} grows by {one.megabytes:.1f} MB per 100 rounds")
        if one is not None and one.descriptors > MOST_DESCRIPTORS:
            found.problems.append(f"{role} grows by {one.descriptors:.1f} file descriptors per 100 rounds")


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    return table

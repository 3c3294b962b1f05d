# SPDX-License-Identifier: Apache-2.0
"""The coordinator's `/metrics`, served by `wardround-server up`: what its files say at the moment of the scrape.

up.json                what runs, and how often it had to be started again
state.sqlite           sites, certificates, offers, runs
superlink.sqlite       which sites are online
runs/<id>/             events and run store: rounds, phases, bytes, refusals, suspended sites
logs/access.log        what the gateway refused since `up` was started
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, Final

from common.flower_compat.online import online_nodes
from common.json_tail import JsonTail
from common.metrics_page import BUILD, Page, Sample, counter, gauge
from server.gateway.denied import Code
from server.home import ServerHome
from server.metrics_runs import PHASES, RunHistory
from server.runs import RunStore
from server.state import State
from server.supervisor import UpFile

DAY_SECONDS: Final = 86400.0
ID_CHARACTERS: Final = 8
"""So much of a run's id is shown, as in `wardround-server runs`."""
COORDINATOR: Final = "coordinator"
IT: Final = "the coordinator's IT"
_RUN: Final = ("run", "study")

READY = gauge("wardround_server_ready", "1 when SuperLink, executor and gateway run and answer", IT)
CHILD_UP = gauge("wardround_server_child_up", "1 while this process of `up` runs", IT, ("child",))
CHILD_RESTARTS = counter(
    "wardround_server_child_restarts_total", "How often it died and was started again since `up` was started", IT, ("child",)
)
DISK_FREE = gauge("wardround_server_disk_free_bytes", "Free space where the coordinator's folder lies", IT)
CERTIFICATE = gauge(
    "wardround_server_certificate_days_left",
    "Days until a certificate ends: `of` is server, authority or site (with its name)",
    IT,
    ("of", "site"),
)
GATEWAY_REFUSALS = counter(
    "wardround_server_gateway_refusals_total", "Requests that the gateway refused since `up` was started", IT, ("code",)
)
SITES = gauge("wardround_server_sites", "Sites by their status: requested, approved, revoked", COORDINATOR, ("status",))
ONLINE = gauge("wardround_server_site_online", "1 while this approved site is connected", COORDINATOR, ("site",))
ROUND = gauge("wardround_server_run_round", "Last finished round of a run that is not over", COORDINATOR, _RUN)
ROUNDS = gauge("wardround_server_run_rounds", "Rounds that the study plans", COORDINATOR, _RUN)
LAST_ROUND_SECONDS = gauge("wardround_server_run_last_round_seconds", "How long its last round took", COORDINATOR, _RUN)
QUIET = gauge("wardround_server_run_seconds_since_event", "Since anything last happened in it", COORDINATOR, _RUN)
TIMEOUT = gauge("wardround_server_run_round_timeout_seconds", "How long a round may wait for the sites", COORDINATOR, _RUN)
SUSPENDED = gauge("wardround_server_site_suspended", "1 for a site that sent three bad updates in this run", COORDINATOR, (*_RUN, "site"))
RUNS = gauge(
    "wardround_server_runs",
    "Runs that were started, by how they stand: active, finished, failed, stopped",
    COORDINATOR,
    ("state",),
)
PHASE_SECONDS = counter("wardround_server_phase_seconds_total", "Seconds by phase, over all runs", COORDINATOR, ("phase",))
BYTES = counter(
    "wardround_server_site_bytes_total",
    "Tensors of the stored answers, over all runs: `direction` is to_site or from_site",
    COORDINATOR,
    ("site", "direction"),
)
REFUSALS = counter("wardround_server_refusals_total", "Refused or missing answers, over all runs", COORDINATOR, ("site", "code"))
RESUMPTIONS = counter("wardround_server_run_resumptions_total", "Runs that were taken up again after something broke", IT)
DAMAGED = counter("wardround_server_checkpoints_damaged_total", "Checkpoints that were found damaged and put aside", IT)
METRICS: Final = (
    *(BUILD, READY, CHILD_UP, CHILD_RESTARTS, DISK_FREE, CERTIFICATE, GATEWAY_REFUSALS, SITES, ONLINE, RUNS, ROUND, ROUNDS),
    *(LAST_ROUND_SECONDS, QUIET, TIMEOUT, SUSPENDED, PHASE_SECONDS, BYTES, REFUSALS, RESUMPTIONS, DAMAGED),
)


@dataclass
class ServerMetrics:
    """Reads the coordinator's files. What does not change any more is read once. `clock` gives seconds since the epoch."""

    home: ServerHome
    clock: Callable[[], float] = field(default=time.time)

    def __post_init__(self) -> None:
        self._state = State(self.home.state)
        self._histories: dict[str, RunHistory] = {}
        self._traffic: dict[str, tuple[float, dict[str, tuple[int, int]]]] = {}
        self._access = JsonTail(self.home.logs / "access.log", from_the_end=True)
        self._gateway_refusals: Counter[str] = Counter()

    def page(self) -> Page:
        """The page of this coordinator."""
        parts = {"up": self.up, "certificates": self.certificates, "sites": self.sites, "runs": self.runs, "gateway": self.gateway}
        return Page(METRICS, parts)

    def up(self) -> Iterator[Sample]:
        """The processes of `up`, and the disk."""
        yield BUILD.at(1, "server", metadata.version("wardround"))
        yield DISK_FREE.at(shutil.disk_usage(self.home.folder).free)
        found = UpFile.read(self.home)
        yield READY.at(float(found is not None and found.state == "ready"))
        for name, child in found.children.items() if found is not None else ():
            yield CHILD_UP.at(float(child["pid"] is not None), name)
            yield CHILD_RESTARTS.at(float(child["restarts"] or 0), name)

    def certificates(self) -> Iterator[Sample]:
        """Days left of the server's, the authority's, and each approved site's newest."""
        from common.crypto.certificates import not_after, read_certificate

        for name, path in (("server", self.home.certificate), ("authority", self.home.ca_certificate)):
            yield CERTIFICATE.at(self._days(not_after(read_certificate(path.read_bytes()))), name, "")
        query = (
            "SELECT name, max(not_after) AS last FROM site JOIN site_certificate ON site = name"
            " WHERE status = 'approved' AND NOT revoked GROUP BY name"
        )
        for row in self._rows(query):
            yield CERTIFICATE.at(self._days(row["last"]), "site", row["name"])

    def sites(self) -> Iterator[Sample]:
        """Sites by status, and which of the approved ones are connected."""
        found = self._rows("SELECT name, status, node_id FROM site ORDER BY name")
        counts = Counter(row["status"] for row in found)
        yield from (SITES.at(counts[status], status) for status in ("requested", "approved", "revoked"))
        online = online_nodes(self.home.superlink_database, self.clock())
        for row in found:
            if row["status"] == "approved":
                yield ONLINE.at(float(row["node_id"] is not None and int(row["node_id"]) in online), row["name"])

    def runs(self) -> Iterator[Sample]:
        """Every run that was started: totals of all, details of those that are not over."""
        started = self._rows("SELECT run_id, study, withdrawn FROM offer WHERE run_id IN (SELECT run_id FROM run) ORDER BY created")
        counts: Counter[str] = Counter(dict.fromkeys(("active", "finished", "failed", "stopped"), 0))
        for row in started:
            history = self._history(row["run_id"])
            state = _standing(history, bool(row["withdrawn"]))
            counts[state] += 1
            if state == "active":
                yield from self._active(row["run_id"], json.loads(row["study"]), history)
        yield from (RUNS.at(count, state) for state, count in counts.items())
        yield from self._totals()

    def gateway(self) -> Iterator[Sample]:
        """What the gateway refused, by code."""
        for line in self._access.news():
            code, many = line.get("code"), line.get("what")
            if isinstance(code, str):
                self._gateway_refusals[code] += 1
            elif many in set(Code):
                self._gateway_refusals[str(many)] += int(line.get("count", 0))
        yield from (GATEWAY_REFUSALS.at(count, code) for code, count in sorted(self._gateway_refusals.items()))

    def _active(self, run_id: str, study: dict[str, Any], history: RunHistory) -> Iterator[Sample]:
        labels = (run_id[:ID_CHARACTERS], str(study["name"]))
        yield ROUND.at(history.round, *labels)
        yield ROUNDS.at(study["federation"]["rounds"], *labels)
        yield TIMEOUT.at(study["federation"]["round_timeout_seconds"], *labels)
        if history.round_seconds is not None:
            yield LAST_ROUND_SECONDS.at(history.round_seconds, *labels)
        if history.last_event is not None:
            yield QUIET.at(max(0.0, self.clock() - history.last_event), *labels)
        path = self.home.run(run_id) / "rounds.sqlite"
        for site in RunStore(path).suspended(run_id) if path.exists() else ():
            yield SUSPENDED.at(1, *labels, site)

    def _totals(self) -> Iterator[Sample]:
        phases = dict.fromkeys(PHASES, 0.0)
        refusals: Counter[tuple[str, str]] = Counter()
        for history in self._histories.values():
            for phase, seconds in history.phase_seconds.items():
                phases[phase] += seconds
            refusals.update(history.refusals)
        yield from (PHASE_SECONDS.at(seconds, phase) for phase, seconds in phases.items())
        yield from (REFUSALS.at(count, site, code) for (site, code), count in sorted(refusals.items()))
        yield RESUMPTIONS.at(sum(history.resumptions for history in self._histories.values()))
        yield DAMAGED.at(sum(history.damaged_checkpoints for history in self._histories.values()))
        to_sites: Counter[str] = Counter()
        from_sites: Counter[str] = Counter()
        for run_id in self._histories:
            for site, (down, up) in self._traffic_of(run_id).items():
                to_sites[site] += down
                from_sites[site] += up
        for site in sorted(to_sites):
            yield BYTES.at(to_sites[site], site, "to_site")
            yield BYTES.at(from_sites[site], site, "from_site")

    def _history(self, run_id: str) -> RunHistory:
        if run_id not in self._histories:
            self._histories[run_id] = RunHistory(JsonTail(self.home.run(run_id) / "events.jsonl"))
        history = self._histories[run_id]
        history.refresh()
        return history

    def _traffic_of(self, run_id: str) -> dict[str, tuple[int, int]]:
        """Bytes to and from each site; the store is asked only when it has changed."""
        path = self.home.run(run_id) / "rounds.sqlite"
        if not path.exists():
            return {}
        changed = path.stat().st_mtime
        if run_id not in self._traffic or self._traffic[run_id][0] != changed:
            self._traffic[run_id] = (changed, RunStore(path).traffic(run_id))
        return self._traffic[run_id][1]

    def _days(self, not_after: float) -> float:
        return (not_after - self.clock()) / DAY_SECONDS

    def _rows(self, query: str) -> list[Any]:
        with self._state.reading() as database:
            return database.execute(query).fetchall()


def _standing(history: RunHistory, withdrawn: bool) -> str:
    return history.how or ("stopped" if withdrawn else "active")

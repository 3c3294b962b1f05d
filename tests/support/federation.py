# SPDX-License-Identifier: Apache-2.0
"""One real federation for the tests of a session: a coordinator, two hospitals that train, one that is enrolled and does nothing.

All of it runs through the real commands as processes on free ports of loopback and is stopped by process id. The handles give what an
attacker has: raw clients with any certificate and any node key, and the folders, stores and logs to see what came of it.
"""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from common.data.phantom import PhantomReader
from common.study import Study
from simulations.federation import write_hospital
from simulations.loopback import COHORT, Hospital, Loopback, wait_for_end
from simulations.processes import Background
from tests.common.flower_compat.attacker import FleetAttacker
from tests.support.certificates import Card, tls
from tests.support.leaks import leaks
from tests.support.studies import PRIVATE, small, write_study

HONEST = ("alpha", "beta")
GUEST = "guest"
LIMITS = {"epsilon_per_account": 100.0, "delta": 1e-5}
SCANNERS, PATIENTS_OF_A_SITE = 3, 100


@dataclass
class Federation(Loopback):
    """A loopback federation with a tester's handles. `hospitals` by name."""

    hospitals: dict[str, Hospital] = field(default_factory=dict)

    # ---- what an attacker has

    def card(self, name: str) -> Card:
        """A hospital's own certificate and TLS key."""
        home = self.hospitals[name].home
        return Card(home / "tls.crt", home / "tls.pem")

    def node_key(self, name: str) -> ec.EllipticCurvePrivateKey:
        """A hospital's own Flower node key."""
        key = load_pem_private_key((self.hospitals[name].home / "node.pem").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return key

    def client(self, card: Card | None = None, authority: Path | None = None) -> httpx.Client:
        """A raw client of the gateway. The caller closes it."""
        context = tls(authority or self.coordinator / "ca.crt", card)
        return httpx.Client(base_url=self.url, verify=context, trust_env=False, timeout=30)

    @contextmanager
    def attacker(self, card: str | None, node: str | None) -> Iterator[FleetAttacker]:
        """Fleet calls with the certificate of one hospital and the node key of another (None: without)."""
        with self.client(self.card(card) if card else None) as http:
            key, number = (self.node_key(node), self.node_id(node)) if node else (None, 0)
            yield FleetAttacker(http, key, number)

    # ---- what is stored

    def rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        """Rows of the coordinator's database."""
        return _rows(self.coordinator / "state.sqlite", query, *values)

    def superlink_rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        """Rows of Flower's database."""
        return _rows(self.coordinator / "superlink.sqlite", query, *values)

    def node_id(self, name: str) -> int:
        """Flower's number of a site."""
        return int(self.rows("SELECT node_id FROM site WHERE name = ?", name)[0]["node_id"])

    def flower_run(self, run_id: str | None = None) -> int:
        """Flower's number of a run, of the newest if it is not said."""
        found = self.rows("SELECT flower_run_id, run_id FROM run ORDER BY started DESC")
        return next(int(row["flower_run_id"]) for row in found if run_id in (None, row["run_id"]))

    def access_log(self) -> list[dict[str, Any]]:
        """Every request that the gateway answered."""
        return json_lines(self.coordinator / "logs" / "access.log")

    def exits(self, name: str) -> list[dict[str, Any]]:
        """What a hospital's egress log says has left."""
        return json_lines(self.hospitals[name].home / "egress.jsonl")

    def ledger_rows(self, name: str) -> list[dict[str, Any]]:
        """Every row of a hospital's ledger."""
        stored = _rows(self.hospitals[name].home / "ledger.sqlite", "SELECT content FROM rows ORDER BY number")
        return [json.loads(row["content"]) for row in stored]

    # ---- running

    def add(self, name: str) -> Hospital:
        """A hospital with images of its own, enrolled, certificate fetched; its daemon is not started."""
        self.hospitals[name] = write_scanner(self, name, len(self.hospitals))
        self.enrol(self.hospitals[name])
        self.at(self.hospitals[name], "init")
        return self.hospitals[name]

    def study(self, name: str, privacy: Any = PRIVATE, **changes: Any) -> Study:
        """A small study for hospitals."""
        return small(privacy, **{"name": name, "data.source": "npz", "federation.rounds": 2, **changes})

    def begin(self, study: Study, names: tuple[str, ...] = HONEST, *options: str) -> Background:
        """Offer a study and let all of its sites approve it."""
        started = self.offer(write_study(study, self.folder), names, *options)
        for name in names:
            self.wait_for_offer(self.hospitals[name], study.id, started)
            self.approve(self.hospitals[name], study.id)
        return started

    def train(self, study: Study, names: tuple[str, ...] = HONEST, *options: str) -> str:
        """Run a study to its end at hospitals that approve; our id of the run."""
        wait_for_end(self.begin(study, names, *options), 300)
        return str(self.rows("SELECT run_id FROM offer WHERE study_id = ? ORDER BY created DESC", study.id)[0]["run_id"])

    def outcomes(self, run_id: str) -> list[dict[str, Any]]:
        """Each site's answer in each round of a run, from the run store."""
        return self.store_rows(run_id, "SELECT * FROM replies ORDER BY round, site")

    def store_rows(self, run_id: str, query: str) -> list[dict[str, Any]]:
        """Rows of a run's store; none as long as there is no store."""
        path = self.coordinator / "runs" / run_id / "rounds.sqlite"
        try:
            return _rows(path, query) if path.exists() else []
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):  # the run's server is just about to make it
                return []
            raise

    def change_settings(self, name: str, part: str, **values: Any) -> None:
        """What hospital IT changes in a part of site.yaml later on."""
        path = self.hospitals[name].home / "site.yaml"
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        settings[part] = {**(settings.get(part) or {}), **values}
        path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")


def write_scanner(federation: Loopback, name: str, number: int) -> Hospital:
    """A hospital with the images of one scanner of a small phantom."""
    data = small(PRIVATE, **{"data.phantom": {"patients": SCANNERS * PATIENTS_OF_A_SITE, "scanners": SCANNERS}}).data
    table = PhantomReader().read(data, None)
    scanner = np.unique(table.columns["scanner"])[number % SCANNERS]
    return write_hospital(federation, name, table, table.columns["scanner"] == scanner)


def json_lines(path: Path) -> list[dict[str, Any]]:
    """Each line of a file as an object."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _rows(path: Path, query: str, *values: Any) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(path, timeout=30)) as database:
        database.row_factory = sqlite3.Row
        return [dict(row) for row in database.execute(query, values)]


def start_federation(folder: Path, honest: tuple[str, ...] = HONEST, guests: tuple[str, ...] = (GUEST,)) -> Federation:
    """A federation that is up, with its hospitals enrolled and the daemons of the honest ones running."""
    federation = Federation(folder, limits=LIMITS)
    try:
        federation.make_coordinator()
        federation.up()
        for name in (*honest, *guests):
            federation.add(name)
        words = federation.words()
        for name in honest:
            federation.start_site(federation.hospitals[name], words[name])
    except BaseException:
        federation.stop()
        raise
    return federation


@pytest.fixture(scope="session")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """The one that tests share; a test that damages one starts its own with `start_federation`."""
    started = start_federation(tmp_path_factory.mktemp("federation"))
    yield started
    assert set(started.stop().values()) <= {0}, "a process did not stop cleanly"
    assert leaks(started, started.hospitals.values()) == [], "data of patients is in a log or a store"


__all__ = ["COHORT", "GUEST", "HONEST", "Federation", "federation", "json_lines", "start_federation"]

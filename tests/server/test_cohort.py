# SPDX-License-Identifier: Apache-2.0
"""A run counts only as it was signed, and only its own sites' keys take part."""

import time
from pathlib import Path

import numpy as np
import pytest

from common.crypto.secrets import Secret
from common.errors import InputError, ProtocolError, RefusedError, StorageError
from common.flower_compat.grids import NodeInfo
from common.protocol import weights_sha256
from common.signed import Signed
from server.cohort import Cohort, alone, open_run, signed_initial
from server.initial import keep_initial
from server.offers import find_offer, set_withdrawn
from server.run_registry import RunRegistry
from server.sites import SiteRegistry
from tests.server.gateway.coordinator import Coordinator
from tests.server.offering import answer, offered, send, start_of
from tests.support.studies import small

STUDY = small()


@pytest.fixture
def coordinator(tmp_path: Path) -> Coordinator:
    return Coordinator.make(tmp_path)


def info(node_id: int, key: str) -> NodeInfo:
    return NodeInfo(node_id=node_id, name="north", public_key=key.encode())


def test_a_signed_run_is_noted_before_anything_is_sent(coordinator: Coordinator, tmp_path: Path) -> None:
    north = coordinator.hospital("north", tmp_path)
    record = offered(coordinator, STUDY, ("north",), min_sites=1)
    text, signature = start_of(coordinator, record)
    offer, run = open_run(coordinator.home, text, signature, 2**63 + 5)
    assert offer.record == record
    assert (run.run_id, run.sites, run.min_sites) == (record.run_id, ("north",), 1)
    assert run.node_keys == {"north": north.keys.public().node}
    assert run.signing_keys == {"north": north.keys.secret.signer.public_key}
    found = RunRegistry(coordinator.state).find(2**63 + 5)
    assert found is not None
    assert (found.run_id, found.study_id) == (record.run_id, STUDY.id)
    assert (coordinator.home.run(record.run_id) / "run.json").exists()


def test_what_was_not_signed_like_this_does_not_run(coordinator: Coordinator, tmp_path: Path) -> None:
    coordinator.hospital("north", tmp_path)
    record = offered(coordinator, STUDY, ("north",))
    text, signature = start_of(coordinator, record)
    forged = record.signed(Secret(b"y" * 32).signer)
    changed = Signed(
        record=record.canonical_json.replace('"min_sites":1', '"min_sites":2'), signature=Signed.from_json(signature).signature
    )
    for bad in (forged, changed):
        with pytest.raises(ProtocolError, match="signature"):
            open_run(coordinator.home, text, bad.to_json(), 1)
    with pytest.raises(ProtocolError, match="not the one that was signed"):
        open_run(coordinator.home, STUDY.with_changes({"federation.rounds": 4}).canonical_json, signature, 1)
    set_withdrawn(coordinator.state, record.run_id, True)
    with pytest.raises(RefusedError, match="withdrawn"):
        open_run(coordinator.home, text, signature, 1)
    unknown = offered(coordinator, STUDY, ("nobody",))
    with pytest.raises(InputError, match="nobody"):
        open_run(coordinator.home, *start_of(coordinator, unknown), 1)
    assert not list(coordinator.home.folder.glob("runs/*/run.json"))


def test_nodes_are_known_by_their_key_and_only_while_their_site_may_take_part(coordinator: Coordinator, tmp_path: Path) -> None:
    north, south, west = (coordinator.hospital(name, tmp_path) for name in ("north", "south", "west"))
    record = offered(coordinator, STUDY, ("north", "south"))
    for hospital in (north, south):
        send(coordinator, hospital, answer(hospital, record))
    offer, run = open_run(coordinator.home, *start_of(coordinator, record), 1)
    cohort = Cohort(coordinator.home, offer, run)
    stranger = info(9, "no key at all")
    online = [info(1, north.keys.public().node), info(2, south.keys.public().node), info(3, west.keys.public().node), stranger]

    def picked() -> list[tuple[int, str]]:
        return [(node.node_id, node.site) for node in cohort.pick(online)]

    assert cohort.ready == ["north", "south"]
    assert picked() == [(1, "north"), (2, "south")], "all call themselves north; only keys count"
    send(coordinator, south, answer(south, record, decision="rejected", created=time.time() + 1))
    assert picked() == [(1, "north")]
    assert cohort.roster() == {"north": ""}, "a site that said no is none of the run's"
    SiteRegistry(coordinator.state).revoke("north")
    assert cohort.roster() == {"north": "it may not take part: revoked"}
    assert picked() == []
    offer = find_offer(coordinator.state, record.run_id)
    assert offer is not None


def test_a_withdrawn_run_has_nobody(coordinator: Coordinator, tmp_path: Path) -> None:
    north = coordinator.hospital("north", tmp_path)
    record = offered(coordinator, STUDY, ("north",))
    send(coordinator, north, answer(north, record))
    offer, run = open_run(coordinator.home, *start_of(coordinator, record), 1)
    cohort = Cohort(coordinator.home, offer, run)
    assert cohort.ready == ["north"]
    set_withdrawn(coordinator.state, record.run_id, True)
    assert cohort.ready == []


def test_two_servers_of_one_run_cannot_be(tmp_path: Path) -> None:
    with alone(tmp_path / "run"), pytest.raises(RefusedError, match="still running"), alone(tmp_path / "run"):
        pass
    with alone(tmp_path / "run"):
        pass


def test_the_initial_weights_are_those_that_were_signed(coordinator: Coordinator) -> None:
    weights = {"w": np.ones(3, np.float32)}
    record = offered(coordinator, STUDY, ("north",), initial=weights_sha256(weights))
    folder = coordinator.home.run(record.run_id)
    with pytest.raises(ProtocolError, match="not those that were signed"):
        signed_initial(coordinator.home, STUDY, record)
    keep_initial(folder, weights)
    assert signed_initial(coordinator.home, STUDY, record)["w"].tolist() == [1.0, 1.0, 1.0]
    keep_initial(folder, {"w": np.array([1, 1, 2], np.float32)})
    with pytest.raises(ProtocolError, match="not those that were signed"):
        signed_initial(coordinator.home, STUDY, record)
    (folder / "initial.safetensors").write_bytes(b"torn")
    with pytest.raises(StorageError, match=r"initial\.safetensors"):
        signed_initial(coordinator.home, STUDY, record)
    assert weights_sha256(weights) != weights_sha256({"w": np.ones((3, 1), np.float32)})

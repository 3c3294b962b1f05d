# SPDX-License-Identifier: Apache-2.0
"""The bundle holds no code; a run waits for the sites' answers and for nothing else."""

import io
import time
import tomllib
import zipfile
from pathlib import Path

import pytest

from common.errors import FederationError, InputError, RefusedError
from common.federation import RESUME_KEY, SIGNATURE_KEY, STUDY_KEY
from server.launch import Answers, bundle, bundle_sha256, the_offer, wait_for_answers
from server.offers import set_withdrawn
from tests.server.gateway.coordinator import Coordinator
from tests.server.offering import answer, offered, send
from tests.support.studies import small


@pytest.fixture
def coordinator(tmp_path: Path) -> Coordinator:
    return Coordinator.make(tmp_path)


def test_the_bundle_is_two_constant_files_without_code() -> None:
    assert bundle() == bundle()
    with zipfile.ZipFile(io.BytesIO(bundle())) as archive:
        names = archive.namelist()
        assert sorted(names) == [".info/CONTENT", "LICENSE", "pyproject.toml"], "Flower's own list of the two files, and the two files"
        listed = [line.split(b",")[0].decode() for line in archive.read(".info/CONTENT").splitlines()]
        content = tomllib.loads(archive.read("pyproject.toml").decode())
    assert sorted(listed) == ["LICENSE", "pyproject.toml"]
    flower = content["tool"]["flwr"]["app"]
    assert flower["components"] == {"serverapp": "server.app:app", "clientapp": "client.app:app"}
    assert set(flower["config"]) == {STUDY_KEY, SIGNATURE_KEY, RESUME_KEY}
    assert len(bundle_sha256()) == 64


def test_it_waits_until_every_site_has_answered(coordinator: Coordinator, tmp_path: Path) -> None:
    north, south = (coordinator.hospital(name, tmp_path) for name in ("north", "south"))
    record = offered(coordinator, small(), ("north", "south"), min_sites=1)
    heard: list[Answers] = []

    def tell(found: Answers) -> None:
        heard.append(found)
        if len(heard) == 1:
            send(coordinator, north, answer(north, record))
        if len(heard) == 2:
            send(coordinator, south, answer(south, record, decision="rejected"))

    found = wait_for_answers(coordinator.home, record.run_id, 60, tell)
    assert found == heard[-1] == Answers(("north",), ("south",), ())
    assert heard[0] == Answers((), (), ("north", "south"))


def test_too_few_approvals_are_said_with_who_and_what_to_do(coordinator: Coordinator, tmp_path: Path) -> None:
    north, south = (coordinator.hospital(name, tmp_path) for name in ("north", "south"))
    coordinator.hospital("west", tmp_path)
    record = offered(coordinator, small(), ("north", "south", "west"), min_sites=2)
    send(coordinator, north, answer(north, record))
    send(coordinator, south, answer(south, record, decision="rejected"))
    with pytest.raises(FederationError, match=r"1 sites have approved, the run needs 2; rejected by south; no answer from west.*resume"):
        wait_for_answers(coordinator.home, record.run_id, 0, lambda _: None)


def test_it_goes_on_without_a_silent_site_when_the_time_is_over(coordinator: Coordinator, tmp_path: Path) -> None:
    north = coordinator.hospital("north", tmp_path)
    coordinator.hospital("south", tmp_path)
    record = offered(coordinator, small(), ("north", "south"), min_sites=1)
    send(coordinator, north, answer(north, record))
    started = time.monotonic()
    assert wait_for_answers(coordinator.home, record.run_id, 0.7, lambda _: None).silent == ("south",)
    assert 0.5 < time.monotonic() - started < 5


def test_an_offer_taken_back_ends_the_waiting(coordinator: Coordinator, tmp_path: Path) -> None:
    coordinator.hospital("north", tmp_path)
    record = offered(coordinator, small(), ("north",))
    with pytest.raises(RefusedError, match="was stopped"):
        wait_for_answers(coordinator.home, record.run_id, 60, lambda _: set_withdrawn(coordinator.state, record.run_id, True))


def test_a_run_is_found_by_the_start_of_its_id(coordinator: Coordinator) -> None:
    first, last = (offered(coordinator, small(), ("north",)) for _ in range(2))
    assert the_offer(coordinator.state, first.run_id[:12]).run_id == first.run_id
    assert the_offer(coordinator.state, "last").run_id == last.run_id
    for unknown in ("zzz", ""):
        with pytest.raises(InputError, match="no such run"):
            the_offer(coordinator.state, unknown)

# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are whole, torn, cut, edited, or gone."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from common.errors import StorageError
from server.checkpoints import KEPT, Checkpoints, Damage, ServerState
from server.round_record import RoundRecord
from server.runs import ReplyDetail

MODEL = {"w": np.array([1.0, 2.0], np.float32), "b": np.array(3.0, np.float32)}
RECORD = RoundRecord(
    2,
    1.5,
    0.25,
    {"north": ("update", 0.5), "south": ("NO_REPLY", 60.0)},
    (
        ReplyDetail("train", "north", "update", 0.5, "", 10, 20, "ab", 7, "cd", '{"sha256":"' + "0" * 64 + '"}'),
        ReplyDetail("train", "south", "NO_REPLY", 60.0, 'said "no" — ü', 10, 0),
    ),
)


def checkpoints(folder: Path) -> Checkpoints:
    return Checkpoints(folder, "study", "run")


def filled(folder: Path, rounds: int = 2) -> Checkpoints:
    found = checkpoints(folder)
    for number in range(1, rounds + 1):
        model = {name: value + number for name, value in MODEL.items()}
        found.save(ServerState(number, model, model, record=RECORD))
    return found


def path_of(folder: Path, number: int) -> Path:
    return folder / f"round-{number:05d}.safetensors"


@pytest.fixture(scope="module")
def two_rounds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of two rounds, by name."""
    folder = tmp_path_factory.mktemp("two")
    filled(folder)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_everything_comes_back(tmp_path: Path) -> None:
    memory = {"momentum/w": np.arange(6.0).reshape(2, 3).T, "every other": np.arange(6.0)[::2], "steps": np.int64(7)}
    average = {name: value * 2 for name, value in MODEL.items()}
    checkpoints(tmp_path).save(ServerState(2, MODEL, average, memory, {"north": 2, "south": 1}, RECORD))
    found = checkpoints(tmp_path).latest()
    assert found is not None
    assert (found.round, dict(found.last_rounds), found.record) == (2, {"north": 2, "south": 1}, RECORD)
    for stored, given_ in ((found.model, MODEL), (found.average, average), (found.memory, memory)):
        assert set(stored) == set(given_)
        assert all(stored[name].dtype == given_[name].dtype and np.array_equal(stored[name], given_[name]) for name in given_)


def test_an_average_that_is_the_model_is_written_once(tmp_path: Path) -> None:
    model = {"w": np.ones(100_000, np.float32)}
    path = checkpoints(tmp_path).save(ServerState(1, model, model))
    assert path.stat().st_size < 1.1 * model["w"].nbytes
    found = checkpoints(tmp_path).latest()
    assert found is not None
    assert found.average is found.model


def test_the_newest_few_stay(tmp_path: Path) -> None:
    filled(tmp_path, KEPT + 2)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [path_of(tmp_path, number).name for number in (3, 4, 5)]


def test_leftovers_of_a_killed_write_go(tmp_path: Path) -> None:
    found = filled(tmp_path)
    (tmp_path / ".round-00003.safetensors.0123.part").write_bytes(b"half")
    assert found.latest().round == 2
    assert not list(tmp_path.glob(".*"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), in_header=st.booleans())
def test_a_single_wrong_bit_is_noticed_wherever_it_is(two_rounds: dict[str, bytes], tmp_path: Path, place: float, in_header: bool) -> None:
    for path in tmp_path.iterdir():
        path.unlink()
    first, second = two_rounds
    content = bytearray(two_rounds[second])
    bits = 8 * (len(content) if not in_header else 8 + int.from_bytes(content[:8], "little"))
    bit = int(place * bits)
    content[bit // 8] ^= 1 << bit % 8
    (tmp_path / first).write_bytes(two_rounds[first])
    (tmp_path / second).write_bytes(content)
    heard: list[Damage] = []
    state = checkpoints(tmp_path).latest(heard.append)
    assert state is not None
    assert (state.round, state.model["w"].tolist()) == (1, [2.0, 3.0])
    assert [(damage.file, damage.used_round) for damage in heard] == [(f"{second}.damaged", 1)]
    assert (tmp_path / heard[0].file).read_bytes() == content
    assert not (tmp_path / second).exists()


@pytest.mark.parametrize("kept_bytes", [0, 1, 7, 8, 9, 100, -1])
def test_a_cut_file_is_noticed(tmp_path: Path, kept_bytes: int) -> None:
    found = filled(tmp_path)
    path_of(tmp_path, 2).write_bytes(path_of(tmp_path, 2).read_bytes()[:kept_bytes])
    assert found.latest().round == 1


def test_an_edit_is_noticed(tmp_path: Path) -> None:
    found, path = filled(tmp_path), path_of(tmp_path, 2)
    for old, new in ((b'"round":"2"', b'"round":"9"'), (b'"run_id":"run"', b'"run_id":"ran"'), (b"model/b", b"model/c")):
        good = path.read_bytes()
        path.write_bytes(good.replace(old, new))
        assert old in good
        assert found.latest().round == 1
        path.write_bytes(good)
    path.write_bytes(path.read_bytes() + b"\0")
    assert found.latest().round == 1


def test_a_file_without_a_checksum_counts_as_damaged(tmp_path: Path) -> None:
    found = filled(tmp_path, 1)
    facts = {"study_id": "study", "run_id": "run", "round": "2"}
    save_file({"model/w": np.ones(2, np.float32), "average/w": np.ones(2, np.float32)}, path_of(tmp_path, 2), metadata=facts)
    heard: list[Damage] = []
    assert found.latest(heard.append).round == 1
    assert "no checksum" in heard[0].reason


def test_two_damaged_ones_fall_back_twice_and_none_is_overwritten(tmp_path: Path) -> None:
    found = filled(tmp_path, 3)
    for number in (2, 3):
        path_of(tmp_path, number).write_bytes(b"first")
    heard: list[Damage] = []
    assert found.latest(heard.append).round == 1
    assert [damage.used_round for damage in heard] == [1, 1]
    filled(tmp_path, 3)
    path_of(tmp_path, 3).write_bytes(b"second")
    assert found.latest().round == 2
    asides = {path.name: path.read_bytes() for path in tmp_path.glob("round-00003*.damaged*")}
    assert asides == {"round-00003.safetensors.damaged": b"first", "round-00003.safetensors.damaged-2": b"second"}


def test_a_run_that_has_begun_never_starts_anew_by_itself(tmp_path: Path) -> None:
    found = filled(tmp_path, 1)
    path_of(tmp_path, 1).write_bytes(b"")
    heard: list[Damage] = []
    for _ in range(2):
        with pytest.raises(StorageError, match="from a backup and resume, or start"):
            found.latest(heard.append)
    assert [(damage.file, damage.used_round) for damage in heard] == [("round-00001.safetensors.damaged", None)]


def test_another_runs_checkpoint_is_refused_not_set_aside(tmp_path: Path) -> None:
    filled(tmp_path)
    with pytest.raises(StorageError, match="another run"):
        Checkpoints(tmp_path, "study", "other").latest()
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_a_record_is_read_back_or_refused() -> None:
    assert RoundRecord.from_json(RECORD.to_json()) == RECORD
    for text in ("", "[]", "{}", json.dumps({"round": 1, "seconds": 1, "update_norm": 1, "outcomes": {"a": []}, "details": []})):
        with pytest.raises(StorageError, match="record cannot be read"):
            RoundRecord.from_json(text)

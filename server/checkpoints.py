# SPDX-License-Identifier: Apache-2.0
"""The server's state after a round: enough to continue from, written atomically, the newest three kept.

A checkpoint is one safetensors file. Its header names study, run and round, each site's last round, and the round's record; and it holds
the SHA-256 of the whole file, taken with sixty-four zeros in that place. So a file that was torn, cut, or changed by a single bit is
noticed, and the checkpoint before it is used. It is a checksum, not a signature: who may write the folder can also make a new checksum.
A damaged file is renamed to `….damaged` and stays.

Nothing in here is random state: noise and patient sampling are the sites', and the server draws nothing after the initial weights.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load

from common.aside import Aside
from common.errors import StorageError
from common.files import atomic_file, sha256_of, sync_folder
from common.protocol import Arrays, FloatArray
from common.tensor_file import tensor_parts
from server.round_record import RoundRecord
from server.strategies.base import AnyArray, Memory

KEPT = 3
MODEL_PREFIX = "model/"
AVERAGE_PREFIX = "average/"
MEMORY_PREFIX = "strategy/"
NO_CHECKSUM = "0" * 64
_HEADER_START = 8
_UNSEALED = f'"sha256":"{NO_CHECKSUM}"'.encode()


@dataclass(frozen=True)
class ServerState:
    """The global model after `round` rounds, and its moving average (the same object when the study asks for none).

    `memory` is what the strategy remembers, `last_rounds` the newest round in which each site's update counted. `record` tells about
    the round itself; there is none before the first round.
    """

    round: int
    model: Arrays
    average: Arrays
    memory: Memory = field(default_factory=dict)
    last_rounds: Mapping[str, int] = field(default_factory=dict)
    record: RoundRecord | None = None


@dataclass(frozen=True)
class Damage:
    """A checkpoint that cannot be used: its new name, what is wrong with it, and the round from which the run goes on (None: from none)."""

    file: str
    reason: str
    used_round: int | None


class _Damaged(Exception):
    """A file is not what was written."""


def _ignore(damage: Damage) -> None:
    """Nobody listens."""


class Checkpoints:
    """The checkpoints of one run of one study in one folder. One process at a time may use it."""

    def __init__(self, folder: Path, study_id: str, run_id: str) -> None:
        self._folder = folder
        self._identity = {"study_id": study_id, "run_id": run_id}

    def save(self, state: ServerState) -> Path:
        """Write the state durably, then remove checkpoints older than the newest three. Raises StorageError."""
        path = self._folder / f"round-{state.round:05d}.safetensors"
        facts = {**self._identity, "round": str(state.round), "last_rounds": json.dumps(dict(state.last_rounds)), "sha256": NO_CHECKSUM}
        if state.record is not None:
            facts["record"] = state.record.to_json()
        parts = tensor_parts(_tensors(state), facts)
        digest = Aside(partial(sha256_of, parts))
        with atomic_file(path) as file:
            file.writelines(parts)
            file.seek(_place_of_checksum(bytes(parts[0])))
            file.write(digest.result().encode())
        for old in self._paths()[:-KEPT]:
            old.unlink(missing_ok=True)
        return path

    def latest(self, tell: Callable[[Damage], None] = _ignore) -> ServerState | None:
        """The newest state that is whole, None at a fresh start. `tell` hears of each damaged file.

        Raises StorageError when there are only damaged files, or one of another run.
        """
        self._remove_leftovers()
        found: list[tuple[Path, str]] = []
        state = None
        for path in reversed(self._paths()):
            try:
                state = self._read(path)
                break
            except _Damaged as damage:
                found.append((_set_aside(path), str(damage)))
        for aside, reason in found:
            tell(Damage(aside.name, reason, state.round if state else None))
        if state is None:
            self._refuse_if_all_are_damaged()
        return state

    def _refuse_if_all_are_damaged(self) -> None:
        """A run that has begun never silently starts from the first round again."""
        damaged = sorted(path.name for path in self._folder.glob("round-*.damaged*"))
        if damaged:
            raise StorageError(
                f"{self._folder}: no checkpoint can be used ({', '.join(damaged)}); put the folder back from a backup and resume, or start "
                "the study as a new run. The damaged files were kept"
            )

    def _paths(self) -> list[Path]:
        return sorted(self._folder.glob("round-*.safetensors"))

    def _remove_leftovers(self) -> None:
        """What a killed process was writing."""
        for leftover in self._folder.glob(".round-*.part"):
            leftover.unlink(missing_ok=True)

    def _read(self, path: Path) -> ServerState:
        content = _content_of(path)
        facts = _checked_facts(content)
        if {key: facts.get(key) for key in self._identity} != self._identity:
            raise StorageError(f"{path}: belongs to another run or study; use the run's own folder")
        try:
            return _state(facts, load(content))
        except (SafetensorError, StorageError, ValueError, LookupError) as error:
            raise _Damaged(f"it cannot be read ({error})") from error


def _tensors(state: ServerState) -> dict[str, AnyArray]:
    """All arrays by their names in the file."""
    parts: list[tuple[str, Memory]] = [(MODEL_PREFIX, state.model), (MEMORY_PREFIX, state.memory)]
    if state.average is not state.model:
        parts.append((AVERAGE_PREFIX, state.average))
    return {prefix + name: value for prefix, arrays in parts for name, value in arrays.items()}


def _state(facts: Mapping[str, str], tensors: Mapping[str, Any]) -> ServerState:
    model: dict[str, FloatArray] = _with_prefix(tensors, MODEL_PREFIX)
    record = RoundRecord.from_json(facts["record"]) if "record" in facts else None
    return ServerState(
        int(facts["round"]),
        model,
        _with_prefix(tensors, AVERAGE_PREFIX) or model,
        _with_prefix(tensors, MEMORY_PREFIX),
        {str(site): int(number) for site, number in json.loads(facts["last_rounds"]).items()},
        record,
    )


def _with_prefix(tensors: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _place_of_checksum(content: bytes) -> int:
    """Where the zeros are that the checksum, which is taken of the file with them, is written over."""
    return _place_of(content, _UNSEALED) + len(_UNSEALED) - len(NO_CHECKSUM) - 1


def _checked_facts(content: bytes) -> dict[str, str]:
    """The facts in the header, once the checksum fits. Raises _Damaged."""
    try:
        facts = {str(key): str(value) for key, value in json.loads(_header(content))["__metadata__"].items()}
        stored = facts["sha256"]
        place = _place_of(content, f'"sha256":"{stored}"'.encode()) + len('"sha256":"')
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise _Damaged("its header cannot be read, or holds no checksum") from error
    digest = hashlib.sha256(content[:place])
    digest.update(NO_CHECKSUM.encode())
    digest.update(memoryview(content)[place + len(NO_CHECKSUM) :])
    if digest.hexdigest() != stored:
        raise _Damaged("its content does not fit its checksum")
    return facts


def _header(content: bytes) -> bytes:
    """The JSON at the start of a safetensors file, whose length comes first."""
    return content[_HEADER_START : _HEADER_START + int.from_bytes(content[:_HEADER_START], "little")]


def _place_of(content: bytes, text: bytes) -> int:
    """Where the one occurrence of `text` in the header begins. Raises ValueError if it is not the only one."""
    header = _header(content)
    if header.count(text) != 1:
        raise ValueError("the header has no place for the checksum, or several")
    return _HEADER_START + header.index(text)


def _content_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        if error.errno == errno.EIO:
            raise _Damaged("the disk cannot read it") from error
        raise StorageError(f"cannot read {path}: {error.strerror or error}; check the disk and permissions") from error


def _set_aside(path: Path) -> Path:
    """Rename a damaged file, never over an earlier one; returns its new path."""
    number, aside = 1, path.with_name(f"{path.name}.damaged")
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.damaged-{number}")
    try:
        path.rename(aside)
        sync_folder(path.parent)
    except OSError as error:
        raise StorageError(f"cannot rename the damaged {path}: {error.strerror or error}; check permissions") from error
    return aside

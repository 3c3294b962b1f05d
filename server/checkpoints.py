# SPDX-License-Identifier: Apache-2.0
"""The server's state after a round: enough to continue from, written atomically, the newest two kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from common.errors import StorageError
from common.files import write_atomic
from common.protocol import Arrays, FloatArray

KEPT = 2
MODEL_PREFIX = "model/"
AVERAGE_PREFIX = "average/"


@dataclass(frozen=True)
class ServerState:
    """The global model after `round` rounds, and its moving average (the same tensors when the study asks for none)."""

    round: int
    model: Arrays
    average: Arrays


class Checkpoints:
    """The checkpoints of one run of one study in one folder."""

    def __init__(self, folder: Path, study_id: str, run_id: str) -> None:
        self._folder = folder
        self._identity = {"study_id": study_id, "run_id": run_id}

    def save(self, state: ServerState) -> Path:
        """Write the state durably, then remove checkpoints older than the newest two. Raises StorageError."""
        path = self._folder / f"round-{state.round:05d}.safetensors"
        tensors = {MODEL_PREFIX + name: value for name, value in state.model.items()}
        tensors |= {AVERAGE_PREFIX + name: value for name, value in state.average.items()}
        write_atomic(path, save(tensors, metadata={**self._identity, "round": str(state.round)}))
        for old in self._paths()[:-KEPT]:
            old.unlink(missing_ok=True)
        return path

    def latest(self) -> ServerState | None:
        """The newest state, None at a fresh start. Raises StorageError when the newest file is damaged or of another run."""
        paths = self._paths()
        return self._read(paths[-1]) if paths else None

    def _paths(self) -> list[Path]:
        return sorted(self._folder.glob("round-*.safetensors"))

    def _read(self, path: Path) -> ServerState:
        try:
            with safe_open(path, framework="numpy") as file:
                facts = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError) as error:
            raise StorageError(f"{path}: damaged checkpoint ({error}); delete it to continue from the one before") from error
        if {key: facts.get(key) for key in self._identity} != self._identity:
            raise StorageError(f"{path}: belongs to another run or study; use the run's own folder")
        return ServerState(int(facts["round"]), _with_prefix(tensors, MODEL_PREFIX), _with_prefix(tensors, AVERAGE_PREFIX))


def _with_prefix(tensors: Arrays, prefix: str) -> dict[str, FloatArray]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

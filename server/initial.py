# SPDX-License-Identifier: Apache-2.0
"""Initial weights, made in a short-lived child process: the server itself never loads torch."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load, save

from common.child import Progress, run_in_child
from common.errors import StorageError
from common.files import write_atomic
from common.protocol import Arrays, FloatArray
from common.study import Study

INITIAL_FILE = "initial.safetensors"


def initial_model(study: Study) -> dict[str, FloatArray]:
    """The tensors that training starts from; the same study gives the same numbers; a survey has none.

    Raises InputError when the model cannot be built.
    """
    if study.purpose == "survey":
        return {}
    return dict(load(run_in_child("server.initial:build", study.canonical_json.encode())))


def keep_initial(folder: Path, model: Arrays) -> None:
    """Keep the initial weights in a run's folder. Raises StorageError."""
    write_atomic(folder / INITIAL_FILE, save(dict(model)))


def kept_initial(folder: Path) -> dict[str, FloatArray] | None:
    """The initial weights that were kept, None if there are none. Whoever uses them compares their digest. Raises StorageError."""
    path = folder / INITIAL_FILE
    if not path.exists():
        return None
    try:
        return dict(load(path.read_bytes()))
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{path}: cannot be read ({error}); delete it, and the weights are made again") from error


def build(study_text: bytes, _: Progress) -> bytes:
    """The child's part: build the model, return its trainable tensors."""
    from common.models.registry import initial_state

    return save(dict(initial_state(Study.from_canonical_json(study_text.decode()))))

# SPDX-License-Identifier: Apache-2.0
"""Initial weights, made in a short-lived child process: the server itself never loads torch."""

from __future__ import annotations

from safetensors.numpy import load, save

from common.child import Progress, run_in_child
from common.protocol import FloatArray
from common.study import Study


def initial_model(study: Study) -> dict[str, FloatArray]:
    """The tensors that training starts from; the same study gives the same numbers. Raises InputError when the model cannot be built."""
    return dict(load(run_in_child("server.initial:build", study.canonical_json.encode())))


def build(study_text: bytes, _: Progress) -> bytes:
    """The child's part: build the model, return its trainable tensors."""
    from common.models.registry import initial_state

    return save(dict(initial_state(Study.from_canonical_json(study_text.decode()))))

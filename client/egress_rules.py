# SPDX-License-Identifier: Apache-2.0
"""What a reply may hold: an allow-list, so that what nobody thought of does not leave.

    update      its own facts, the model's tensors, `num-examples` 1
    evaluated   its own facts, the histogram where one was asked for and policy lets it out, `num-examples` 1
    surveyed    its own facts, the tables of the approved survey (int64, of public shape), `num-examples` 1
    refusal     its code

Facts have fixed names and types, and their values are known beforehand. A tensor has the name, shape and type that the incoming model
gives it, finite values, and exactly the bytes that such a tensor has in the .npy format: nothing fits between header and values. The
ledger's head is the only free text; it must be one that this site signed.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from client.ledger.heads import HEAD_PURPOSE
from common.crypto.signatures import is_signed
from common.errors import ProtocolError
from common.federation import DIGEST, NO_MESSAGE, NO_RUN, RUN_ID
from common.protocol import COUNTS, FACTS, MODEL, TABLES, Instruction, Shapes, read_reply, shapes_of
from common.riders import HEAD_FACT, MAX_HEAD_CHARACTERS
from common.study import Study

METRICS: Final = "metrics"
EXAMPLES: Final = "num-examples"
HISTOGRAM: Final = "histogram"
_ALL: Final = {"protocol": int, "kind": str, "site": str}
_OF_ROUND: Final = {**_ALL, "run_id": str, "round": int}
_FACTS: Final[Mapping[str, Mapping[str, type]]] = {
    "update": _OF_ROUND,
    "evaluated": _OF_ROUND,
    "surveyed": _OF_ROUND,
    "refusal": {**_ALL, "code": str},
}
_RECORDS: Final[Mapping[str, Mapping[str, type]]] = {
    "update": {FACTS: ConfigRecord, METRICS: MetricRecord, MODEL: ArrayRecord},
    "evaluated": {FACTS: ConfigRecord, METRICS: MetricRecord},
    "surveyed": {FACTS: ConfigRecord, METRICS: MetricRecord, TABLES: ArrayRecord},
    "refusal": {FACTS: ConfigRecord},
}


@dataclass(frozen=True)
class Incoming:
    """The message that a reply answers: what the reply may look like, and what the site's statement says about it.

    `shapes` are those of its model (None: it was not read, and only a refusal may leave); `train`: the reply is an update, else the
    result of an evaluation, with a histogram of `counts_shape` or none, or of a survey with `tables` of these shapes. Raises ProtocolError
    for ids that are none.
    """

    study_id: str = NO_MESSAGE
    run_id: str = NO_RUN
    round: int = 0
    sha256: str = NO_MESSAGE
    shapes: Shapes | None = None
    counts_shape: tuple[int, ...] | None = None
    train: bool = False
    tables: Shapes | None = None

    def __post_init__(self) -> None:
        """Check the ids: they come from outside."""
        texts = ((self.study_id, DIGEST), (self.run_id, RUN_ID), (self.sha256, DIGEST))
        if self.round < 0 or not all(re.fullmatch(pattern, text) for text, pattern in texts):
            raise ProtocolError("message: its study, run or round is none of ours; the two ends may differ in version")

    @classmethod
    def of(cls, instruction: Instruction, study: Study) -> Incoming:
        """A message that was read; `study` is the approved one that it belongs to."""
        from common.evaluation_plan import evaluation_plan
        from common.survey_plan import survey_plan

        survey = survey_plan(study)
        plan = None if instruction.train else evaluation_plan(study)
        counts_shape = plan.shape if plan is not None and instruction.round in plan.rounds else None
        shapes = shapes_of(instruction.model)
        known = (study.id, instruction.run_id, instruction.round, instruction.sha256, shapes, counts_shape, instruction.train)
        return cls(*known, None if survey is None else survey.shapes)

    @property
    def kind(self) -> str:
        """The kind of reply that was asked for."""
        return "update" if self.train else "evaluated" if self.tables is None else "surveyed"

    @classmethod
    def unread(cls, study_id: str = NO_MESSAGE, run_id: str = NO_RUN, round_number: int = 0) -> Incoming:
        """A message that was not read, or not even pulled, and what is known of it."""
        return cls(study_id, run_id, round_number)


@dataclass(frozen=True)
class ExitRules:
    """What this site says about itself and lets out. `signing_key` checks the ledger's head."""

    site: str
    metrics_may_leave: tuple[str, ...]
    signing_key: str


def check_exit(reply: RecordDict, incoming: Incoming, rules: Callable[[], ExitRules]) -> None:
    """Raises ProtocolError with everything in `reply` that may not leave. `rules` are read only if they are needed."""
    kind = kind_of(reply)
    problems = _record_problems(reply, kind, incoming) or _fact_problems(reply, kind)
    if not problems:
        problems = _value_problems(reply, kind, incoming, rules)
    if problems:
        raise ProtocolError(f"reply ({kind[:20]}) may not leave: {'; '.join(problems)}")


def kind_of(reply: RecordDict) -> str:
    """The kind that a reply says it is; empty when it says nothing."""
    facts = reply.get(FACTS)
    kind = facts.get("kind") if isinstance(facts, ConfigRecord) else None
    return kind if isinstance(kind, str) else ""


def _record_problems(reply: RecordDict, kind: str, incoming: Incoming) -> list[str]:
    if kind not in _RECORDS:
        return ["it is neither update, evaluated, surveyed nor refusal"]
    if kind != "refusal" and (incoming.shapes is None or incoming.kind != kind):
        return ["it does not answer what was asked"]
    expected = dict(_RECORDS[kind])
    if kind == "evaluated" and incoming.counts_shape is not None:
        expected[COUNTS] = ArrayRecord
    problems = [f"record {name[:80]} is not on the list" for name in sorted(reply) if name not in expected]
    problems += [f"record {name} is missing" for name in expected if name not in reply]
    return problems + [
        f"record {name} is of another type" for name in sorted(expected.keys() & reply) if type(reply[name]) is not expected[name]
    ]


def _fact_problems(reply: RecordDict, kind: str) -> list[str]:
    expected, facts = _FACTS[kind], reply[FACTS]
    optional = set() if kind == "refusal" else {HEAD_FACT}
    problems = [f"fact {name[:80]} is not on the list" for name in sorted(facts) if name not in expected and name not in optional]
    problems += [f"fact {name} is missing or of another type" for name, wanted in expected.items() if type(facts.get(name)) is not wanted]
    if METRICS in reply:
        examples = reply[METRICS].get(EXAMPLES)
        if set(reply[METRICS]) != {EXAMPLES} or type(examples) is not int or examples != 1:
            problems.append(f"metrics may only be {EXAMPLES} 1")
    return problems


def _value_problems(reply: RecordDict, kind: str, incoming: Incoming, rules: Callable[[], ExitRules]) -> list[str]:
    problems: list[str] = []
    try:
        read_reply(
            reply,
            run_id=incoming.run_id,
            round_number=incoming.round,
            shapes=incoming.shapes or {},
            counts_shape=incoming.counts_shape,
            tables=incoming.tables,
        )
    except ProtocolError as error:
        problems.append(str(error))
    else:
        problems += _stowaways(reply, incoming)
    site = reply[FACTS]["site"]
    if kind == "refusal" and site == "":
        return problems
    return problems + _site_problems(reply, rules())


def _site_problems(reply: RecordDict, rules: ExitRules) -> list[str]:
    """What depends on this site: its name, its policy, its ledger."""
    problems = []
    if reply[FACTS]["site"] != rules.site:
        problems.append(f"it is not in the name of {rules.site}")
    if COUNTS in reply and HISTOGRAM not in rules.metrics_may_leave:
        problems.append(f"site.yaml does not let a {HISTOGRAM} out (metrics_may_leave)")
    if HEAD_FACT in reply[FACTS] and ledger_head(reply, rules.signing_key) is None:
        problems.append("the ledger's head is none that this site signed")
    return problems


def ledger_head(reply: RecordDict, signing_key: str) -> tuple[int, str] | None:
    """Row number and hash of the ledger's head that rides on a reply; None when there is none that this site signed."""
    text = reply[FACTS].get(HEAD_FACT)
    try:
        if not isinstance(text, str) or len(text) > MAX_HEAD_CHARACTERS:
            return None
        outer = json.loads(text)
        signed = isinstance(outer["head"], str) and is_signed(signing_key, HEAD_PURPOSE + outer["head"].encode(), outer["signature"])
        head = json.loads(outer["head"]) if signed else {}
        whole = set(outer) == {"head", "signature"} and _compact(outer) == text
        return (int(head["row"]), str(head["hash"])) if signed and whole else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _compact(plain: dict[str, object]) -> str:
    return json.dumps(plain, sort_keys=True, separators=(",", ":"))


def _stowaways(reply: RecordDict, incoming: Incoming) -> list[str]:
    """Tensors that carry more than their values; names, shapes and values were checked before."""
    expected = [(MODEL, name, "float32", tuple(shape)) for name, shape in (incoming.shapes or {}).items() if MODEL in reply]
    expected += [(COUNTS, COUNTS, "int64", tuple(incoming.counts_shape or ()))] if COUNTS in reply else []
    expected += [(TABLES, name, "int64", tuple(shape)) for name, shape in (incoming.tables or {}).items() if TABLES in reply]
    return [
        f"tensor {record}/{name} has bytes that are no part of it"
        for record, name, dtype, shape in expected
        if not _is_plain(cast(Array, reply[record][name]), dtype, shape)
    ]


def _is_plain(array: Array, dtype: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is described as what it is, and its bytes are the .npy header of that and so many values."""
    header = _npy_header(dtype, shape)
    size_bytes = len(header) + math.prod(shape) * np.dtype(dtype).itemsize
    described = (array.dtype, tuple(array.shape), array.stype) == (dtype, shape, "numpy.ndarray")
    return described and array.data.startswith(header) and len(array.data) == size_bytes


@lru_cache(maxsize=4096)
def _npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape})
    return buffer.getvalue()

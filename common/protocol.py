# SPDX-License-Identifier: Apache-2.0
"""The records that cross the wire, and every check on them.

Two instructions go out (`Instruction` to train, to evaluate, or both) and three replies come back (`Update`, `Evaluated`, `Refusal`).
Each is a frozen value that writes itself into a Flower RecordDict and reads itself from one. Reading checks everything before anything
is used: version, names, types, shapes, float32, finite, size. A reply that does not fit raises ProtocolError with all problems; the
server then drops that site for the round, it never stops the run.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from common.errors import ProtocolError

PROTOCOL_VERSION = 1
MAX_ARRAY_BYTES = 1 << 30
MAX_STUDY_CHARACTERS = 1 << 20
MAX_HEAD_CHARACTERS = 1 << 22
FACTS = "wardround"
MODEL = "model"
COUNTS = "counts"
HEAD_FACT = "ledger_head"
EGRESS_FACT = "egress"
RIDING_FACTS = frozenset({HEAD_FACT, EGRESS_FACT})
"""What rides on a reply and is no part of what it says."""
LARGEST_COUNT = 10**9
SITE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

FloatArray = npt.NDArray[np.float32]
CountArray = npt.NDArray[np.int64]
Arrays = Mapping[str, FloatArray]
Shapes = Mapping[str, tuple[int, ...]]
AnyRecord = TypeVar("AnyRecord", ArrayRecord, ConfigRecord)


class RefusalCode(StrEnum):
    """Why a site, or the connection to it, gave no update. The only thing about a failure that leaves a site."""

    STUDY_INVALID = "STUDY_INVALID"
    STUDY_NOT_APPROVED = "STUDY_NOT_APPROVED"
    POLICY_REFUSED = "POLICY_REFUSED"
    PAUSED = "PAUSED"
    PROTOCOL_MISMATCH = "PROTOCOL_MISMATCH"
    BUDGET_EXHAUSTED = "BUDGET_EXHAUSTED"
    LEDGER_BEHIND = "LEDGER_BEHIND"
    ROUND_CONFLICT = "ROUND_CONFLICT"
    ROUND_LOST = "ROUND_LOST"
    NOT_READY = "NOT_READY"
    TRAINING_FAILED = "TRAINING_FAILED"
    WORKER_LOST = "WORKER_LOST"
    NO_REPLY = "NO_REPLY"
    REPLY_INVALID = "REPLY_INVALID"


@dataclass(frozen=True)
class Instruction:
    """Server to site: the global model, and what to do with it. Sites take everything else from the study itself."""

    run_id: str
    study: str
    round: int
    train: bool
    evaluate: bool
    model: Arrays

    def to_records(self) -> RecordDict:
        """Write the instruction into Flower records."""
        facts: dict[str, str | int | bool] = {"run_id": self.run_id, "study": self.study, "round": self.round}
        facts |= {"train": self.train, "evaluate": self.evaluate}
        return RecordDict({FACTS: _facts("instruction", facts), MODEL: _array_record(self.model)})

    @classmethod
    def from_records(cls, records: RecordDict) -> Instruction:
        """Read and check an instruction. Raises ProtocolError."""
        reader = _Reader(records, "instruction")
        study = reader.text("study")
        if len(study) > MAX_STUDY_CHARACTERS:
            raise ProtocolError(f"instruction: study has {len(study)} characters, at most {MAX_STUDY_CHARACTERS} are read")
        return cls(reader.text("run_id"), study, reader.count("round"), reader.flag("train"), reader.flag("evaluate"), reader.arrays())

    @property
    def sha256(self) -> str:
        """Digest of the content, the same however Flower packs it; names the message in the charge of a round."""
        digest = hashlib.sha256(json.dumps([PROTOCOL_VERSION, self.run_id, self.study, self.round, self.train, self.evaluate]).encode())
        _digest_arrays(digest, self.model)
        return digest.hexdigest()


def weights_sha256(arrays: Arrays) -> str:
    """Digest of a model's weights by name, shape and value: what a start record says of the initial ones."""
    digest = hashlib.sha256(json.dumps([PROTOCOL_VERSION, "weights"]).encode())
    _digest_arrays(digest, arrays)
    return digest.hexdigest()


def _digest_arrays(digest: hashlib._Hash, arrays: Arrays) -> None:
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(json.dumps([name, list(array.shape), array.dtype.str]).encode())
        digest.update(array.tobytes())


@dataclass(frozen=True)
class Update:
    """Site to server: the change of each tensor after local training. Nothing else: no loss, no patient count."""

    run_id: str
    round: int
    site: str
    delta: Arrays

    def to_records(self) -> RecordDict:
        """Write the update into Flower records; Flower's `num-examples` is always 1."""
        facts = _facts("update", {"run_id": self.run_id, "round": self.round, "site": self.site})
        return RecordDict({FACTS: facts, MODEL: _array_record(self.delta), "metrics": MetricRecord({"num-examples": 1})})


@dataclass(frozen=True)
class Evaluated:
    """Site to server: the model was evaluated. Exact results stay at the site.

    `counts` is the histogram of held-out patients' scores with noise, int64 [questions, 2, bins]; None where the study plans none.
    """

    run_id: str
    round: int
    site: str
    counts: CountArray | None = None

    def to_records(self) -> RecordDict:
        """Write the reply into Flower records."""
        facts = _facts("evaluated", {"run_id": self.run_id, "round": self.round, "site": self.site})
        counts = {} if self.counts is None else {COUNTS: ArrayRecord({COUNTS: Array(self.counts)})}
        return RecordDict({FACTS: facts, "metrics": MetricRecord({"num-examples": 1}), **counts})


@dataclass(frozen=True)
class Refusal:
    """A "no" with a code. `site` may be empty when it is not known who refused."""

    code: RefusalCode
    site: str

    def to_records(self) -> RecordDict:
        """Write the refusal into Flower records."""
        return RecordDict({FACTS: _facts("refusal", {"code": self.code.value, "site": self.site})})


Reply = Update | Evaluated | Refusal


def with_head(records: RecordDict, head: str) -> RecordDict:
    """A reply that carries the signed head of the site's ledger."""
    return _with_fact(records, HEAD_FACT, head)


def head_of(records: RecordDict) -> str | None:
    """The head that rides on a reply, as the site wrote it; None if there is none or it cannot be one."""
    return _fact_text(records, HEAD_FACT)


def with_receipt(records: RecordDict, receipt: str) -> RecordDict:
    """An instruction that carries the receipt of one site, which is no part of `Instruction.sha256`: it may come with another."""
    return _with_fact(records, "ledger_receipt", receipt)


def receipt_of(records: RecordDict) -> str | None:
    """The receipt that rides on an instruction; None if there is none."""
    return _fact_text(records, "ledger_receipt")


def with_egress(records: RecordDict, statement: str) -> RecordDict:
    """A reply that carries the site's signed statement about it (`common.egress_statement`)."""
    return _with_fact(records, EGRESS_FACT, statement)


def egress_of(records: RecordDict) -> str | None:
    """The statement that rides on a reply, as the site wrote it; None if there is none."""
    return _fact_text(records, EGRESS_FACT)


def is_refusal(records: RecordDict) -> bool:
    """Whether a reply says that it is a refusal; nothing else of it is looked at."""
    return _fact_text(records, "kind") == "refusal"


def payload_sha256(records: RecordDict) -> str:
    """Digest of what a reply says, the same however Flower packs it, without the two heads that ride on it (ledger, egress).

    Raises ProtocolError for a record that is neither tensors nor plain facts.
    """
    digest = hashlib.sha256(json.dumps([PROTOCOL_VERSION, sorted(records)]).encode())
    for name in sorted(records):
        record = records[name]
        if isinstance(record, ArrayRecord):
            for key in sorted(record):
                array = record[key]
                digest.update(json.dumps([name, key, list(array.shape), array.dtype, array.stype, len(array.data)]).encode())
                digest.update(array.data)
        elif isinstance(record, ConfigRecord | MetricRecord):
            plain = {key: value for key, value in record.items() if name != FACTS or key not in RIDING_FACTS}
            digest.update(json.dumps([name, plain], sort_keys=True, default=_bytes_as_text).encode())
        else:
            raise ProtocolError(f"reply: record {name[:80]} is of an unknown kind")
    return digest.hexdigest()


def _bytes_as_text(value: object) -> str:
    if isinstance(value, bytes):
        return value.hex()
    raise ProtocolError(f"reply: a fact is a {type(value).__name__}")


def _with_fact(records: RecordDict, name: str, text: str) -> RecordDict:
    """The same records (tensors are shared, not copied) with one fact more."""
    return RecordDict({**records, FACTS: ConfigRecord({**(_record(records, FACTS, ConfigRecord) or {}), name: text})})


def _fact_text(records: RecordDict, name: str) -> str | None:
    facts = _record(records, FACTS, ConfigRecord)
    text = facts.get(name) if facts is not None else None
    return text if isinstance(text, str) and len(text) <= MAX_HEAD_CHARACTERS else None


def read_reply(
    records: RecordDict, *, run_id: str, round_number: int, shapes: Shapes, counts_shape: tuple[int, ...] | None = None
) -> Reply:
    """Read and check a reply to the instruction of `run_id` and `round_number`, whose model had `shapes`.

    An evaluation brings a histogram of `counts_shape`, or none if that is None. Raises ProtocolError with every problem found.
    """
    kind = _Reader.kind_of(records)
    reader = _Reader(records, kind)
    if kind == "refusal":
        return Refusal(_known_code(reader.text("code")), reader.site(may_be_empty=True))
    if (reader.text("run_id"), reader.count("round")) != (run_id, round_number):
        raise ProtocolError(
            f"{kind}: belongs to run {reader.text('run_id')[:8]} round {reader.count('round')}, not to round {round_number}"
        )
    if kind == "evaluated":
        return Evaluated(run_id, round_number, reader.site(), reader.counts(counts_shape))
    if kind == "update":
        return Update(run_id, round_number, reader.site(), reader.arrays(shapes))
    raise ProtocolError(f"reply: unknown kind {kind[:40]!r}; expected update, evaluated or refusal")


def shapes_of(arrays: Arrays) -> dict[str, tuple[int, ...]]:
    """Name to shape, for checking a reply against the model that was sent."""
    return {name: tuple(array.shape) for name, array in arrays.items()}


def _known_code(text: str) -> RefusalCode:
    try:
        return RefusalCode(text)
    except ValueError:
        raise ProtocolError(f"refusal: unknown code {text[:40]!r}") from None


def _facts(kind: str, facts: dict[str, str | int | bool]) -> ConfigRecord:
    return ConfigRecord({"protocol": PROTOCOL_VERSION, "kind": kind, **facts})


def _array_record(arrays: Arrays) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(array, order="C")) for name, array in arrays.items()})


def _record(records: RecordDict, name: str, kind: type[AnyRecord]) -> AnyRecord | None:
    """The record of that name, if it is of that kind.

    Flower's own views (`config_records`, `array_records`) tie a message into a reference cycle, and every tensor in it would stay in memory
    until the garbage collector happens to run.
    """
    record = records.get(name)
    return record if isinstance(record, kind) else None


class _Reader:
    """Typed access to the records of one message."""

    def __init__(self, records: RecordDict, kind: str) -> None:
        self._records = records
        self._kind = kind
        self._facts = self._facts_of(records)
        if self._facts.get("protocol") != PROTOCOL_VERSION:
            raise ProtocolError(
                f"{kind}: speaks protocol {self._facts.get('protocol')!r}, this end speaks {PROTOCOL_VERSION}; upgrade the older end"
            )
        if self._facts.get("kind") != kind:
            raise ProtocolError(f"expected {kind}, got {str(self._facts.get('kind'))[:40]!r}")

    @staticmethod
    def _facts_of(records: RecordDict) -> ConfigRecord:
        facts = _record(records, FACTS, ConfigRecord)
        if facts is None:
            raise ProtocolError(f"message has no record {FACTS!r}; the other end is not Wardround")
        return facts

    @classmethod
    def kind_of(cls, records: RecordDict) -> str:
        return str(cls._facts_of(records).get("kind"))

    def _fact(self, key: str, expected: type[object]) -> object:
        value = self._facts.get(key)
        if type(value) is not expected:
            raise ProtocolError(f"{self._kind}: {key} is {type(value).__name__}, expected {expected.__name__}")
        return value

    def text(self, key: str) -> str:
        return cast(str, self._fact(key, str))

    def site(self, *, may_be_empty: bool = False) -> str:
        """A site's name: it becomes part of file names and reports."""
        name = self.text("site")
        if not (SITE_NAME.fullmatch(name) or (may_be_empty and not name)):
            raise ProtocolError(f"{self._kind}: {name[:80]!r} is not a site's name (letters, digits, . _ -, at most 63)")
        return name

    def flag(self, key: str) -> bool:
        return cast(bool, self._fact(key, bool))

    def count(self, key: str) -> int:
        value = cast(int, self._fact(key, int))
        if value < 0:
            raise ProtocolError(f"{self._kind}: {key} is negative")
        return value

    def arrays(self, shapes: Shapes | None = None) -> dict[str, FloatArray]:
        """All tensors, checked; against `shapes` too if given."""
        record = _record(self._records, MODEL, ArrayRecord)
        if record is None:
            raise ProtocolError(f"{self._kind}: has no record {MODEL!r}")
        problems = _name_problems(record, shapes) if shapes is not None else []
        problems += _size_problems(record)
        if problems:
            raise ProtocolError(f"{self._kind}: " + "; ".join(problems))
        arrays = {name: _read_array(name, array) for name, array in record.items()}
        problems = [problem for name, array in arrays.items() if (problem := _value_problem(name, array, shapes))]
        if problems:
            raise ProtocolError(f"{self._kind}: " + "; ".join(problems))
        return cast(dict[str, FloatArray], arrays)

    def counts(self, shape: tuple[int, ...] | None) -> CountArray | None:
        """The histogram of an evaluation, checked; None where none was asked for."""
        record = _record(self._records, COUNTS, ArrayRecord)
        if shape is None and record is None:
            return None
        if shape is None or record is None or set(record) != {COUNTS}:
            raise ProtocolError(f"{self._kind}: {'no histogram was asked for' if shape is None else 'has no histogram of counts'}")
        if _size_problems(record):
            raise ProtocolError(f"{self._kind}: {_size_problems(record)[0]}")
        counts = _read_array(COUNTS, record[COUNTS])
        if counts.dtype != np.int64 or counts.shape != shape:
            raise ProtocolError(f"{self._kind}: counts are {counts.dtype} {counts.shape}, expected int64 {shape}")
        checked = cast(CountArray, counts)
        if checked.min() < -LARGEST_COUNT or checked.max() > LARGEST_COUNT:
            raise ProtocolError(f"{self._kind}: a count lies outside ±{LARGEST_COUNT}")
        return checked


def _name_problems(record: ArrayRecord, shapes: Shapes) -> list[str]:
    missing = sorted(set(shapes) - set(record))
    extra = sorted(set(record) - set(shapes))
    return [f"tensor {name} is missing" for name in missing] + [f"tensor {name[:80]} was not asked for" for name in extra]


def _size_problems(record: ArrayRecord) -> list[str]:
    size = sum(len(array.data) for array in record.values())
    return [f"{size} bytes of tensors, at most {MAX_ARRAY_BYTES} are read"] if size > MAX_ARRAY_BYTES else []


def _read_array(name: str, array: Array) -> npt.NDArray[np.generic]:
    """Decode one tensor from the .npy format, version 1. The header is checked against the bytes before anything is allocated.

    The result is a read-only view of the message.
    """
    if array.stype != "numpy.ndarray":
        raise ProtocolError(f"tensor {name[:80]} cannot be decoded (format {array.stype[:40]!r})")
    buffer = io.BytesIO(array.data)
    try:
        version = np.lib.format.read_magic(buffer)
        shape, column_order, dtype = np.lib.format.read_array_header_1_0(buffer)
    except (ValueError, TypeError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError) as error:
        raise ProtocolError(f"tensor {name[:80]} cannot be decoded ({type(error).__name__})") from error
    size_bytes = math.prod(shape) * dtype.itemsize
    if version != (1, 0) or column_order or dtype.hasobject or size_bytes != len(array.data) - buffer.tell():
        raise ProtocolError(f"tensor {name[:80]} cannot be decoded (its header does not fit its bytes)")
    return np.frombuffer(array.data, dtype, offset=buffer.tell()).reshape(shape)


def _value_problem(name: str, array: npt.NDArray[np.generic], shapes: Shapes | None) -> str | None:
    if array.dtype != np.float32:
        return f"tensor {name[:80]} is {array.dtype}, expected float32"
    if shapes is not None and tuple(array.shape) != tuple(shapes[name]):
        return f"tensor {name[:80]} has shape {tuple(array.shape)}, expected {tuple(shapes[name])}"
    if not np.isfinite(array).all():
        return f"tensor {name[:80]} has values that are not finite"
    return None

# SPDX-License-Identifier: Apache-2.0
"""The records that cross the wire, and every check on them.

Two instructions go out (`Instruction` to train, to evaluate, or both) and four replies come back (`Update`, `Evaluated`, `Refusal`, and
`Surveyed` where the study is a survey).
Each is a frozen value that writes itself into a Flower RecordDict and reads itself from one. Reading checks everything before anything
is used: version, names, types, shapes, float32, finite, size. A reply that does not fit raises ProtocolError with all problems; the
server then drops that site for the round, it never stops the run. What rides on a message beside that: `common.riders`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from common.errors import ProtocolError
from common.wire_names import MAX_STUDY_CHARACTERS as MAX_STUDY_CHARACTERS
from common.wire_names import SITE_NAME as SITE_NAME
from common.wire_names import RefusalCode as RefusalCode
from common.wire_records import array_record, name_problems, read_array, record_of, size_problems, value_problem

PROTOCOL_VERSION = 1
MAX_ARRAY_BYTES = 1 << 30
FACTS = "wardround"
MODEL = "model"
COUNTS = "counts"
TABLES = "tables"
LARGEST_COUNT = 10**9
LARGEST_TABLE_COUNT = 10**12

FloatArray = npt.NDArray[np.float32]
CountArray = npt.NDArray[np.int64]
Arrays = Mapping[str, FloatArray]
Shapes = Mapping[str, tuple[int, ...]]


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
        return RecordDict({FACTS: _facts("instruction", facts), MODEL: array_record(self.model)})

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
        digest.update(np.ascontiguousarray(array).data)


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
        return RecordDict({FACTS: facts, MODEL: array_record(self.delta), "metrics": MetricRecord({"num-examples": 1})})


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
class Surveyed:
    """Site to server: the tables of a survey by name, int64 counts with noise (`common.survey_plan`)."""

    run_id: str
    round: int
    site: str
    tables: Mapping[str, CountArray]

    def to_records(self) -> RecordDict:
        """Write the reply into Flower records."""
        facts = _facts("surveyed", {"run_id": self.run_id, "round": self.round, "site": self.site})
        tables = ArrayRecord({name: Array(counts) for name, counts in self.tables.items()})
        return RecordDict({FACTS: facts, "metrics": MetricRecord({"num-examples": 1}), TABLES: tables})


@dataclass(frozen=True)
class Refusal:
    """A "no" with a code. `site` may be empty when it is not known who refused."""

    code: RefusalCode
    site: str

    def to_records(self) -> RecordDict:
        """Write the refusal into Flower records."""
        return RecordDict({FACTS: _facts("refusal", {"code": self.code.value, "site": self.site})})


Reply = Update | Evaluated | Surveyed | Refusal


def read_reply(
    records: RecordDict,
    *,
    run_id: str,
    round_number: int,
    shapes: Shapes,
    counts_shape: tuple[int, ...] | None = None,
    tables: Shapes | None = None,
) -> Reply:
    """Read and check a reply to the instruction of `run_id` and `round_number`, whose model had `shapes`.

    An evaluation brings a histogram of `counts_shape`, or none if that is None; a survey, and only that, brings `tables` of these shapes.
    Raises ProtocolError with every problem found.
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
    if kind == "surveyed":
        return Surveyed(run_id, round_number, reader.site(), reader.tables(tables))
    raise ProtocolError(f"reply: unknown kind {kind[:40]!r}; expected update, evaluated, surveyed or refusal")


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
        facts = record_of(records, FACTS, ConfigRecord)
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
        record = record_of(self._records, MODEL, ArrayRecord)
        if record is None:
            raise ProtocolError(f"{self._kind}: has no record {MODEL!r}")
        problems = name_problems(record, shapes) if shapes is not None else []
        problems += size_problems(record, MAX_ARRAY_BYTES)
        if problems:
            raise ProtocolError(f"{self._kind}: " + "; ".join(problems))
        wanted: Shapes = shapes or {}
        arrays = {name: read_array(name, array) for name, array in record.items()}
        problems = [problem for name, array in arrays.items() if (problem := value_problem(name, array, wanted.get(name)))]
        if problems:
            raise ProtocolError(f"{self._kind}: " + "; ".join(problems))
        return cast(dict[str, FloatArray], arrays)

    def counts(self, shape: tuple[int, ...] | None) -> CountArray | None:
        """The histogram of an evaluation, checked; None where none was asked for."""
        record = record_of(self._records, COUNTS, ArrayRecord)
        if shape is None and record is None:
            return None
        if shape is None or record is None or set(record) != {COUNTS}:
            raise ProtocolError(f"{self._kind}: {'no histogram was asked for' if shape is None else 'has no histogram of counts'}")
        if size_problems(record, MAX_ARRAY_BYTES):
            raise ProtocolError(f"{self._kind}: {size_problems(record, MAX_ARRAY_BYTES)[0]}")
        return self._checked(COUNTS, record[COUNTS], shape, LARGEST_COUNT)

    def tables(self, shapes: Shapes | None) -> dict[str, CountArray]:
        """The tables of a survey, checked."""
        record = record_of(self._records, TABLES, ArrayRecord)
        if shapes is None or record is None:
            raise ProtocolError(f"{self._kind}: {'no tables were asked for' if shapes is None else 'has no tables'}")
        problems = name_problems(record, shapes) + size_problems(record, MAX_ARRAY_BYTES)
        if problems:
            raise ProtocolError(f"{self._kind}: " + "; ".join(problems))
        return {name: self._checked(name, record[name], shape, LARGEST_TABLE_COUNT) for name, shape in shapes.items()}

    def _checked(self, name: str, array: Array, shape: tuple[int, ...], largest: int) -> CountArray:
        counts = read_array(name, array)
        if counts.dtype != np.int64 or counts.shape != shape:
            raise ProtocolError(f"{self._kind}: {name} are {counts.dtype} {counts.shape}, expected int64 {shape}")
        checked = cast(CountArray, counts)
        if checked.min() < -largest or checked.max() > largest:
            raise ProtocolError(f"{self._kind}: a count lies outside ±{largest} ({name})")
        return checked

# SPDX-License-Identifier: Apache-2.0
"""Reads a study file and says everything that is wrong with it at once.

Each problem is one line, `file:line: dotted.key: what is wrong; what to do`, which editors turn into a link. An unknown key names the
nearest right one. Nothing heavy is imported: checking a file takes a fraction of a second.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from common.errors import StudyError
from common.study import SHA256, SLUG, Study
from common.study_fields import StudyField, study_fields
from common.study_yaml import Document, KeyPath, Problem, dotted, read_yaml

MAX_STUDY_BYTES = 1_000_000
_COLUMNS = "data.columns."
_PATTERN_WORDS = {SLUG: "small letters, digits and hyphens, such as my-study", SHA256: "64 hexadecimal digits"}
Model = TypeVar("Model", bound=BaseModel)
_KEYED_TEXT = re.compile(r"^([a-z_0-9]+(?:\.[a-z_0-9]+)*): (.*)$")


def load_study(path: Path) -> Study:
    """Read and check the study file `path`. Raises StudyError with every problem found."""
    return parse_study(_read_text(path), str(path))


def parse_study(text: str, name: str) -> Study:
    """Check the text of a study file; `name` stands before each problem. Raises StudyError."""
    document = read_yaml(text)
    study = None
    if not isinstance(document.value, dict):
        document.problems = document.problems or [Problem(1, "", "is not a study; write at least the keys name and privacy")]
    else:
        study = validated(document, Study, partial(_fields, document))
    if study is None or document.problems:
        raise StudyError(problem_lines(name, document))
    return study


def _fields(document: Document) -> dict[str, StudyField]:
    """The keys of a study in words; those of a table's column stand under each column's own name."""
    fields, data = study_fields(), document.value.get("data")
    columns = data.get("columns") if isinstance(data, dict) else None
    inner = {key.removeprefix(_COLUMNS): field for key, field in fields.items() if key.startswith(_COLUMNS)}
    for name in columns if isinstance(columns, dict) else ():
        fields |= {f"{_COLUMNS}{name}.{key}": field for key, field in inner.items()}
    return fields


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_STUDY_BYTES + 1)
    except FileNotFoundError as error:
        raise StudyError(f"{path}: no such file; check the path") from error
    except OSError as error:
        raise StudyError(f"{path}: cannot be read ({error.strerror}); name a readable YAML file") from error
    if len(content) > MAX_STUDY_BYTES:
        raise StudyError(f"{path}: larger than {MAX_STUDY_BYTES:,} bytes; a study is a short YAML file, data stays outside it")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise StudyError(f"{path}:{line}: is not UTF-8 text; save the file as UTF-8") from error


def problem_lines(name: str, document: Document) -> list[str]:
    """What is wrong, each a line that begins with the file's name."""
    problems = sorted(set(document.problems))
    return [f"{name}:{problem.line}: {problem.key}{': ' if problem.key else ''}{problem.text}" for problem in problems]


def validated(document: Document, model: type[Model], fields_by_key: Callable[[], dict[str, StudyField]]) -> Model | None:
    """The `model` of what was read, or None when something does not fit it; each problem is added to the document."""
    try:
        return model.model_validate(document.value, strict=True)
    except ValidationError as error:
        fields = fields_by_key()
        for details in error.errors(include_url=False):
            path = _real_path(details["loc"], details["type"], document.value)
            if not (document.has_lost(path) or _is_echo(details, path, document.value)):
                for where, text in _explain(details, path, fields):
                    document.add(where, text)
        return None


def _real_path(location: KeyPath, kind: str, value: Any) -> KeyPath:
    """`location` without the names of union members that pydantic puts in (`privacy.patient.epsilon`)."""
    path: KeyPath = ()
    for number, part in enumerate(location):
        is_new = kind == "missing" and number == len(location) - 1
        if isinstance(value, dict) and (part in value or is_new):
            path, value = (*path, part), value.get(part)
        elif isinstance(value, tuple) and isinstance(part, int):
            path, value = (*path, part), value[part]
    return path


def _value_at(path: KeyPath, value: Any) -> Any:
    for part in path:
        value = value[part]
    return value


def _is_echo(details: ErrorDetails, path: KeyPath, value: Any) -> bool:
    """Whether another error of the same value says it better (pydantic reports every member of a union)."""
    if details["type"] == "literal_error":
        return isinstance(details["input"], dict) and dotted(path) == "federation.weights"
    if details["type"] == "dict_type":
        return path == ("federation", "weights")
    if details["type"] == "too_short":
        return bool(len(_value_at(path, value)) >= details["ctx"]["min_length"])
    return False


def _explain(details: ErrorDetails, path: KeyPath, fields: dict[str, StudyField]) -> Iterator[tuple[KeyPath, str]]:
    """What is wrong, and at which key."""
    kind, value = details["type"], details["input"]
    if kind == "value_error":
        yield from _own_words(str(details["ctx"]["error"]), path)
        return
    if kind == "union_tag_invalid":
        kind, path, value = "literal_error", (*path, "unit"), value["unit"]
    field = _nearest_field(path, fields)
    if kind == "extra_forbidden":
        yield path, _unknown_key(path, fields)
    elif kind == "missing":
        yield path, f"is missing; add it: {field.description}" if field else "is missing; add it"
    elif field is None:
        yield path, f"{details['msg'].lower()}; remove it or correct it"
    elif kind == "literal_error":
        yield path, _wrong_choice(value, field)
    elif kind == "string_pattern_mismatch":
        yield path, f"must be {_PATTERN_WORDS.get(details['ctx']['pattern'], field.expected)}; is {_shown(value)}"
    elif kind == "finite_number" or (field.type_words == "a number" and _is_not_finite(value)):
        yield path, f"must be a finite number, is {_shown(value)}; write {field.expected}"
    else:
        yield path, _wrong_value(value, field, is_entry=dotted(path) != field.key)


def _own_words(text: str, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    """Problems that the models of `common.study` found themselves: `key: what; remedy`, a line each."""
    for line in text.split("\n"):
        keyed = _KEYED_TEXT.match(line)
        yield ((*path, *keyed[1].split(".")), keyed[2]) if keyed else (path, line)


def _nearest_field(path: KeyPath, fields: dict[str, StudyField]) -> StudyField | None:
    """The field at `path` or the one that holds it (an entry of a list, a site's weight)."""
    key = ".".join(part for part in path if isinstance(part, str))
    return fields.get(key) or fields.get(key.rpartition(".")[0])


def _unknown_key(path: KeyPath, fields: dict[str, StudyField]) -> str:
    *parents, last = (str(part) for part in path)
    prefix = "".join(f"{parent}." for parent in parents)
    known = [key.removeprefix(prefix) for key in fields if key.startswith(prefix) and "." not in key.removeprefix(prefix)]
    near = difflib.get_close_matches(last, known, n=1, cutoff=0.6)
    elsewhere = [key for key in fields if key.rpartition(".")[2] == last]
    if near:
        return f"unknown key; did you mean {near[0]}?"
    if elsewhere:
        return f"unknown key here; it belongs at {' or '.join(elsewhere)}"
    return f"unknown key; the keys here are {', '.join(known)}"


def _wrong_choice(value: Any, field: StudyField) -> str:
    if value is None:
        return f"is empty; {_what_to_write(field)}"
    near = difflib.get_close_matches(str(value), field.choices, n=1, cutoff=0.5)
    return f"must be {field.expected}, is {_shown(value)}" + (f"; did you mean {near[0]}?" if near else "; choose one of these")


def _is_not_finite(value: Any) -> bool:
    """Whether `value` is the text of no number or of infinity, such as `.nan`: YAML has words for these, a study has not."""
    return isinstance(value, str) and value.lower().lstrip("+-.") in ("nan", "inf", "infinity")


def _wrong_value(value: Any, field: StudyField, is_entry: bool) -> str:
    if value is None:
        return f"is empty; {_what_to_write(field)}"
    if isinstance(value, str) and "number" in field.type_words:
        return f"must be {field.expected}, is {_shown(value)}; write the number without quotes or units"
    here = "this entry is" if is_entry else "is"
    return f"must be {field.expected}; {here} {_shown(value)} ({field.description.rstrip('.')})"


def _what_to_write(field: StudyField) -> str:
    """The remedy for an empty value. Protection is never left to a default: somebody who began the line has to finish it."""
    if field.required:
        return f"write {field.expected} ({field.description.rstrip('.')})"
    if field.key.startswith("privacy."):
        return f"write {field.expected}" + (f", such as {field.default}" if field.default else "")
    return f"write {field.expected}, or remove the line" + (f", which means {field.default}" if field.default else "")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "a block of keys"
    if isinstance(value, tuple):
        return f"a list of {len(value)}"
    text = {True: "true", False: "false"}.get(value, str(value)) if isinstance(value, bool) else str(value)
    short = text if len(text) <= 40 else text[:37] + "…"
    return f'"{short}"' if isinstance(value, str) else short

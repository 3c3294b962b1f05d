# SPDX-License-Identifier: Apache-2.0
"""The keys of a study file in words, read from the pydantic models of `common.study`.

One source for the reference page, for the JSON schema of editors, and for the error messages of `common.study_file`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from common.study import Study

Schema = dict[str, Any]
SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_TYPE_WORDS = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "text"}
_PLURAL_WORDS = {"integer": "whole numbers", "number": "numbers", "string": "text", "array": "lists"}
_LIMIT_WORDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "minItems": "at least {} entries",
    "maxItems": "at most {} entries",
    "maxProperties": "at most {} entries",
    "maxLength": "at most {} characters",
}


@dataclass(frozen=True)
class StudyField:
    """One key. `default` is YAML, or None where the key has to be given or is a block; `choices` is empty if any value goes."""

    key: str
    type_words: str
    limits: str
    required: bool
    default: str | None
    choices: tuple[str, ...]
    description: str

    @property
    def expected(self) -> str:
        """Type and limits in one phrase."""
        return f"{self.type_words}, {self.limits}" if self.limits else self.type_words


@dataclass(frozen=True)
class StudyPart:
    """A block of keys; `key` is empty for the file itself."""

    key: str
    description: str
    fields: tuple[StudyField, ...]


def json_schema() -> Schema:
    """JSON schema of a study file as people write it: `privacy: none` is allowed, and `unit` may be left out."""
    schema = Study.model_json_schema()
    privacy = schema["properties"]["privacy"]
    privacy["anyOf"] = [{"const": "none"}, *privacy.pop("oneOf")]
    privacy.pop("discriminator")
    schema["$defs"]["NoPrivacy"]["required"] = ["unit"]
    schema["$defs"]["Evaluation"]["properties"]["private"]["anyOf"].insert(0, {"const": "none"})
    return {"$schema": SCHEMA_DIALECT, **schema}


def study_parts() -> list[StudyPart]:
    """Every block of a study file, outer before inner."""
    schema = json_schema()
    return list(_parts("", [schema], schema["$defs"]))


def study_fields() -> dict[str, StudyField]:
    """Every key of a study file by its dotted name."""
    return {field.key: field for part in study_parts() for field in part.fields}


def fields_of(schema: Schema) -> dict[str, StudyField]:
    """Every key of a file that people write, by its dotted name, from the JSON schema of its model."""
    return {field.key: field for part in _parts("", [schema], schema.get("$defs", {})) for field in part.fields}


def _parts(key: str, variants: list[Schema], definitions: dict[str, Schema]) -> Iterator[StudyPart]:
    """The block `key`, which has one of the `variants`, and the blocks in it."""
    specs: dict[str, list[Schema]] = {}
    for variant in variants:
        for name, spec in variant["properties"].items():
            required = name in variant.get("required", ()) and len(variants) == 1
            specs.setdefault(name, []).append({"description": _block_description(spec, definitions), **spec, "required": required})
    prefix = f"{key}." if key else ""
    fields = tuple(_field(prefix + name, found) for name, found in specs.items())
    yield StudyPart(key, "\n\nOr: ".join(variant["description"] for variant in variants), fields)
    for name, found in specs.items():
        inner = [definitions[reference] for spec in found for reference in _references(spec)]
        if inner:
            yield from _parts(prefix + name, inner, definitions)


def _references(spec: Schema) -> list[str]:
    entries = spec.get("additionalProperties")
    options = [spec, *spec.get("anyOf", ()), *([entries] if isinstance(entries, dict) else ())]
    return [option["$ref"].rsplit("/", 1)[1] for option in options if "$ref" in option]


def _block_description(spec: Schema, definitions: dict[str, Schema]) -> str:
    """What pydantic leaves out of `spec` when the block says the same of itself."""
    return next((str(definitions[reference]["description"]) for reference in _references(spec)), "")


def _field(key: str, specs: list[Schema]) -> StudyField:
    first = specs[0]
    choices = tuple(dict.fromkeys(choice for spec in specs for choice in _choices(spec)))
    return StudyField(
        key=key,
        type_words=_choice_words(first, choices) or _type_words(first),
        limits=_limits(first),
        required=first["required"],
        default=_default(first),
        choices=choices,
        description=first["description"],
    )


def _default(spec: Schema) -> str | None:
    value = spec.get("default")
    if value is None:
        return None
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _choices(spec: Schema) -> Iterator[str]:
    for option in [spec, *spec.get("anyOf", ()), spec.get("items", {})]:
        yield from (str(value) for value in option.get("enum", [option["const"]] if "const" in option else []))


def _choice_words(spec: Schema, choices: tuple[str, ...]) -> str:
    """The choices, if nothing else may stand there."""
    if not choices or "anyOf" in spec:
        return ""
    words = " or ".join(f"`{choice}`" for choice in choices)
    return f"a list of {words}" if spec["type"] == "array" else words


def _type_words(spec: Schema) -> str:
    if "anyOf" in spec:
        words = dict.fromkeys(_type_words(option) for option in spec["anyOf"] if option.get("type") != "null")
        return " or ".join(words)
    if "const" in spec:
        return f"`{spec['const']}`"
    if "$ref" in spec:
        return "a block of keys"
    if spec["type"] == "array":
        return f"a list of {_PLURAL_WORDS[spec['items']['type']]}"
    if spec["type"] == "object":
        return f"{_type_words(spec['additionalProperties'])} for each name"
    return _TYPE_WORDS[spec["type"]]


def _limits(spec: Schema) -> str:
    own = " and ".join(words.format(_number(spec[name])) for name, words in _LIMIT_WORDS.items() if name in spec)
    inner = (_limits(option) for option in [*spec.get("anyOf", ()), spec.get("additionalProperties")] if isinstance(option, dict))
    return own or next((words for words in inner if words), "")


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"

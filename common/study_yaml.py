# SPDX-License-Identifier: Apache-2.0
"""Reads YAML that a person wrote: plain values, and the line of everything that can be wrong.

The YAML 1.2 core schema, so `1e-5` is a number and `no` is a word (YAML 1.1 has it the other way round). Nothing is executed or
built from tags; aliases, tags and deep nesting are refused, so a small file cannot become a large value. Never raises for bad
input: what is wrong is listed in `Document.problems`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

MAX_DEPTH = 20
KeyPath = tuple[str | int, ...]
_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True, order=True)
class Problem:
    """Something wrong at a line (counted from 1) and a key; `text` says what, and what to do."""

    line: int
    key: str
    text: str


@dataclass
class Document:
    """Plain values (dict, tuple, str, int, float, bool, None), the line of each key path, and what is wrong."""

    value: Any = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    _lost: set[KeyPath] = field(default_factory=set)

    def line_of(self, path: KeyPath) -> int:
        """Line of `path`, or of the nearest key above it that is in the file."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def has_lost(self, path: KeyPath) -> bool:
        """Whether the value at `path` could not be read, which is a problem noted already."""
        return path in self._lost

    def lose(self, path: KeyPath, text: str) -> None:
        """Note that the value at `path` cannot be read."""
        self._lost.add(path)
        self.add(path, text)

    def add(self, path: KeyPath, text: str) -> None:
        """Note a problem at `path`."""
        self.problems.append(Problem(self.line_of(path), dotted(path), text))


def dotted(path: KeyPath) -> str:
    """`("data", "labels", 1)` as `data.labels[1]`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


class _Loader(yaml.SafeLoader):
    """Composes nodes only. Refuses aliases and deep nesting."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """One node of the tree."""
        is_alias = self.check_event(yaml.AliasEvent)
        mark = self.current_event.start_mark
        if is_alias:
            raise yaml.MarkedYAMLError(problem="an alias (*name) is not allowed; write the value out", problem_mark=mark)
        if self._depth == MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"more than {MAX_DEPTH} levels deep; check the brackets", problem_mark=mark)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


_Loader.yaml_implicit_resolvers = {}  # none of YAML 1.1
_Loader.add_implicit_resolver(_TAG + "null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(_TAG + "bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(_TAG + "int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    _TAG + "float", re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$"), list("-+.0123456789")
)


def read_yaml(text: str) -> Document:
    """Read one YAML document."""
    document = Document()
    try:
        root = _compose(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        document.problems.append(Problem(mark.line + 1 if mark else 1, "", _syntax(error)))
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        document.problems.append(Problem(line, "", f"character number {error.character:#x} is not allowed in YAML; remove it"))
    else:
        document.value = _plain(root, (), document) if root else None
    return document


def _compose(text: str) -> yaml.Node | None:
    loader = _Loader(text)
    try:
        return loader.get_single_node()
    finally:
        loader.dispose()


def _syntax(error: yaml.MarkedYAMLError) -> str:
    what = error.problem or error.context or "cannot be read"
    if "\\t" in what:
        return "a tab stands here; indent with spaces"
    if ";" in what:
        return what
    return f"not valid YAML ({what}); check indentation, colons, quotes and brackets here and in the line before"


def _plain(node: yaml.Node, path: KeyPath, document: Document) -> Any:
    document.lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        return {key: _plain(value, (*path, key), document) for key, value in _entries(node, path, document)}
    if isinstance(node, yaml.SequenceNode):
        return tuple(_plain(item, (*path, number), document) for number, item in enumerate(node.value))
    return _scalar(node, path, document)


def _entries(node: yaml.MappingNode, path: KeyPath, document: Document) -> Iterator[tuple[str, yaml.Node]]:
    """Keys (always text) with their nodes; the first of two equal keys counts."""
    seen: set[str] = set()
    for key_node, value in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            document.problems.append(Problem(line, dotted(path), "a key must be a word; check the brackets"))
            continue
        key = key_node.value
        if key in seen:
            first = document.lines[(*path, key)]
            document.problems.append(Problem(line, dotted((*path, key)), f"stands twice, first in line {first}; remove one"))
            continue
        seen.add(key)
        document.lines[(*path, key)] = line
        yield key, value


def _scalar(node: yaml.Node, path: KeyPath, document: Document) -> Any:
    text = str(node.value)
    match node.tag.removeprefix(_TAG):
        case "null":
            return None
        case "bool" if text.lower() in ("true", "false"):
            return text.lower() == "true"
        case "int" | "float" as kind:
            return _number(text, kind, path, document)
        case "str":
            return text
    document.lose(path, f"the tag {node.tag} is not allowed; write the plain value")
    return None


def _number(text: str, kind: str, path: KeyPath, document: Document) -> int | float | None:
    try:
        return int(text) if kind == "int" else float(text)
    except ValueError:
        document.lose(path, "is no number that can be used; write fewer digits, or quotes if it is text")
        return None

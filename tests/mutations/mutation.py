# SPDX-License-Identifier: Apache-2.0
"""One mistake: exact edits of the source, and the tests of which at least one has to fail."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Edit:
    """Replace `old`, which must occur exactly once in `file`, by `new`."""

    file: str
    old: str
    new: str

    def problem(self, root: Path) -> str | None:
        """Why the edit cannot be made in the checkout `root`, or None."""
        path = root / self.file
        if not path.is_file():
            return f"{self.file} does not exist"
        count = path.read_text(encoding="utf-8").count(self.old)
        return None if count == 1 else f"{self.file}: {self.old!r} occurs {count} times, must be once"


@dataclass(frozen=True)
class Mutation:
    """A named mistake. `tests` are pytest node ids; `traps` numbers the traps of docs/privacy.md that it stands for."""

    name: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]
    traps: tuple[int, ...] = ()

    def problems(self, root: Path) -> list[str]:
        """Everything that keeps the mutation from being made in `root`."""
        return [f"{self.name}: {problem}" for edit in self.edits if (problem := edit.problem(root))]

    def apply(self, root: Path) -> dict[Path, str]:
        """Make the edits; returns what the files were. Call only when there are no `problems`."""
        before = {root / edit.file: (root / edit.file).read_text(encoding="utf-8") for edit in self.edits}
        for edit in self.edits:
            path = root / edit.file
            path.write_text(path.read_text(encoding="utf-8").replace(edit.old, edit.new), encoding="utf-8")
        return before


def restore(before: dict[Path, str]) -> None:
    """Undo `apply`."""
    for path, content in before.items():
        path.write_text(content, encoding="utf-8")


def mutation(name: str, file: str, old: str, new: str, *tests: str, traps: Iterable[int] = ()) -> Mutation:
    """A mutation of one edit."""
    return Mutation(name, (Edit(file, old, new),), tests, tuple(traps))

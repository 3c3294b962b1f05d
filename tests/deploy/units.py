# SPDX-License-Identifier: Apache-2.0
"""The files of deploy/, read."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
SERVER_UNIT, CLIENT_UNIT = DEPLOY / "wardround-server.service", DEPLOY / "wardround-client.service"
GPU_DROP_IN = DEPLOY / "wardround-client-gpu.conf"


@dataclass(frozen=True)
class Unit:
    """A systemd unit: the values of each `Section.Key`, in order; an empty value resets a list and stays in it."""

    values: dict[str, list[str]]

    @classmethod
    def read(cls, path: Path) -> Unit:
        """The unit in a file."""
        values: dict[str, list[str]] = {}
        section = ""
        for line in path.read_text(encoding="utf-8").splitlines():
            if re.fullmatch(r"\[\w+\]", line):
                section = line.strip("[]")
            elif line and not line.startswith("#"):
                key, _, value = line.partition("=")
                values.setdefault(f"{section}.{key}", []).append(value)
        return cls(values)

    def one(self, key: str) -> str:
        """The value of a key of [Service] that is there once."""
        (value,) = self.values[f"Service.{key}"]
        return value

    def words(self, key: str) -> list[str]:
        """All words of a key of [Service]."""
        return [word for value in self.values.get(f"Service.{key}", []) for word in value.split()]

    def is_on(self, key: str) -> bool:
        """Whether a switch of [Service] is on."""
        return self.values.get(f"Service.{key}") == ["true"]


@dataclass(frozen=True)
class Dockerfile:
    """The stages of a Dockerfile, each a list of (instruction, rest of its line)."""

    stages: list[list[tuple[str, str]]]

    @classmethod
    def read(cls, path: Path) -> Dockerfile:
        """The Dockerfile in a file."""
        text = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE))
        stages: list[list[tuple[str, str]]] = []
        for line in filter(str.strip, text.splitlines()):
            name, _, rest = line.strip().partition(" ")
            if name == "FROM":
                stages.append([])
            if stages:
                stages[-1].append((name, rest.strip()))
        return cls(stages)

    def last(self, name: str) -> str:
        """What the last such instruction of the last stage says."""
        return [rest for found, rest in self.stages[-1] if found == name][-1]

    def copied(self) -> list[str]:
        """What is copied from the checkout."""
        copies = [
            shlex.split(rest)[:-1] for stage in self.stages for name, rest in stage if name == "COPY" and not rest.startswith("--from")
        ]
        return [source for sources in copies for source in sources]

# SPDX-License-Identifier: Apache-2.0
"""Which process is killed in which round: the same seed gives the same schedule, whatever the machine."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

LONGEST_DELAY_SECONDS = 1.0


class Target(StrEnum):
    """What is killed. `worker` and `node` are processes of one site, the others of the coordinator."""

    WORKER = "worker"
    NODE = "node"
    GATEWAY = "gateway"
    EXECUTOR = "executor"
    SUPERLINK = "superlink"
    SERVERAPP = "serverapp"


OF_A_SITE = (Target.WORKER, Target.NODE)


@dataclass(frozen=True)
class Kill:
    """SIGKILL for one process, `delay_seconds` after round `round` has begun; rounds count from 1 over all runs. `site` may be ""."""

    round: int
    target: Target
    site: str
    delay_seconds: float

    @property
    def victim(self) -> str:
        """In words."""
        return f"{self.target.value} of {self.site}" if self.site else self.target.value


def schedule(seed: int, rounds: int, kills: int, sites: Sequence[str]) -> list[Kill]:
    """So many kills, spread over the rounds, at most one in a round; every kind as often as every other. Raises ValueError."""
    if not 0 <= kills <= rounds:
        raise ValueError(f"{kills} kills in {rounds} rounds: at most one a round")
    chance = random.Random(seed)
    targets = _in_turns(chance, kills)
    return [_kill(chance, rounds, kills, number, target, sites) for number, target in enumerate(targets)]


def _in_turns(chance: random.Random, count: int) -> list[Target]:
    """Every target once in a random order, again and again."""
    found: list[Target] = []
    while len(found) < count:
        found += chance.sample(list(Target), len(Target))
    return found[:count]


def _kill(chance: random.Random, rounds: int, kills: int, number: int, target: Target, sites: Sequence[str]) -> Kill:
    first, after = number * rounds // kills + 1, (number + 1) * rounds // kills + 1
    site = chance.choice(list(sites)) if target in OF_A_SITE else ""
    return Kill(chance.randrange(first, after), target, site, chance.uniform(0, LONGEST_DELAY_SECONDS))

# SPDX-License-Identifier: Apache-2.0
"""What the event file of one run comes to: rounds, seconds by phase, refusals. Each line is read once.

    waiting        until every site of a round is online
    training       from the message to the last site's answer
    aggregation    from there until the round is recorded
    evaluation     answers to the messages that only evaluate

A time counts from one event to the next. What lies between the last event of a process that died and the start of the next one counts
for no phase.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from common.json_tail import JsonTail

PHASES: Final = ("waiting", "training", "aggregation", "evaluation")
_IN_ROUND: Final = {"site_replied": "training", "site_refused": "training", "round_done": "aggregation"}
_BETWEEN: Final = {"site_evaluated": "evaluation", "site_refused": "evaluation", "measured": "evaluation", "round_started": "waiting"}


@dataclass
class RunHistory:
    """One run, as far as its events have been read. `round` is the last finished one, `last_event` seconds since the epoch.

    `how` it ended: finished, failed, stopped; None while it has not.
    """

    tail: JsonTail
    round: int = 0
    round_seconds: float | None = None
    how: str | None = None
    last_event: float | None = None
    resumptions: int = 0
    phase_seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    refusals: Counter[tuple[str, str]] = field(default_factory=Counter)
    damaged_checkpoints: int = 0
    _in_round: bool = False

    def refresh(self) -> None:
        """Read what is new. Raises OSError; KeyError or TypeError for a line that is no event."""
        for event in self.tail.news():
            self.take(event)

    def take(self, event: Mapping[str, Any]) -> None:
        """Count one event in."""
        name, at = str(event["event"]), float(event["time"])
        phase = (_IN_ROUND if self._in_round else _BETWEEN).get(name)
        if phase is not None and self.last_event is not None and self.how is None:
            self.phase_seconds[phase] += max(0.0, at - self.last_event)
        self.last_event = at
        match name:
            case "run_started" | "run_resumed":
                self.how, self._in_round = None, False
                self.resumptions += name == "run_resumed"
            case "round_started":
                self.how, self._in_round = None, True
            case "round_done":
                self.round, self.round_seconds, self._in_round = int(event["round"]), float(event["seconds"]), False
            case "site_refused":
                self.refusals[str(event["site"]), str(event["code"])] += 1
            case "checkpoint_damaged":
                self.damaged_checkpoints += 1
            case "rounds_finished" | "run_ended":
                self.how, self._in_round = str(event.get("how", "finished")), False

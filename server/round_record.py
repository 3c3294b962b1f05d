# SPDX-License-Identifier: Apache-2.0
"""What is known of a finished round. It lies in the round's checkpoint too: a run store that missed it is completed from there."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from common.errors import StorageError
from server.runs import ReplyDetail, RunStore


@dataclass(frozen=True)
class RoundRecord:
    """`seconds` of the round, the L2 norm of the mean update, `outcomes` and `details` as `RunStore.record_round` takes them."""

    round: int
    seconds: float
    update_norm: float
    outcomes: dict[str, tuple[str, float]]
    details: tuple[ReplyDetail, ...] = ()

    @property
    def updates(self) -> int:
        """How many updates the round took."""
        return sum(outcome == "update" for outcome, _ in self.outcomes.values())

    def write(self, store: RunStore, run_id: str) -> None:
        """Store the round; again, it takes the place of what is there. Raises StorageError."""
        store.record_round(
            run_id, self.round, seconds=self.seconds, update_norm=self.update_norm, outcomes=self.outcomes, details=self.details
        )

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> RoundRecord:
        """Read what `to_json` wrote. Raises StorageError."""
        try:
            facts = json.loads(text)
            facts["outcomes"] = {site: (str(outcome), float(seconds)) for site, (outcome, seconds) in facts["outcomes"].items()}
            facts["details"] = tuple(ReplyDetail(**detail) for detail in facts["details"])
            return cls(**facts)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise StorageError(f"a round's record cannot be read ({error})") from error

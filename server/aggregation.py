# SPDX-License-Identifier: Apache-2.0
"""The sum of a round and what each site answered: every update is judged here once more, by the study, before it is added.

`server.replies` has checked that an update fits the protocol. Here it has to be its site's first in this round, the site has to have a
weight, the L2 norm has to be within the study's limit, and each value within the range of the exact sum. What fails is named and left out.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, field

from common.errors import ProtocolError
from common.fixed_point import WEIGHT_UNITS, FixedPointSum, l2_norm
from common.protocol import FloatArray, Refusal, RefusalCode, Shapes, Update
from common.study import Federation
from server.replies import Answer
from server.round_record import RoundRecord
from server.runs import ReplyDetail

UPDATE = "update"


@dataclass(frozen=True)
class Verdict:
    """What became of an answer: the site's `name` in the round's table, the code if it is no update, and why."""

    name: str
    code: RefusalCode | None
    reason: str

    @property
    def outcome(self) -> str:
        """`update`, or the refusal code."""
        return UPDATE if self.code is None else self.code.value


@dataclass
class Aggregation:
    """The exact running sum of one round."""

    shapes: Shapes
    federation: Federation
    outcomes: dict[str, tuple[str, float]] = field(default_factory=dict)
    details: list[ReplyDetail] = field(default_factory=list)
    total: FixedPointSum = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.total = FixedPointSum(self.shapes)

    @property
    def updates(self) -> int:
        """How many updates are in the sum."""
        return self.total.terms

    @property
    def refused(self) -> str:
        """Who sent no update, in words."""
        return ", ".join(f"{site}: {outcome}" for site, (outcome, _) in sorted(self.outcomes.items()) if outcome != UPDATE)

    def take(self, answer: Answer) -> Verdict:
        """Count one answer in; a bad one is left out, with its reason."""
        is_first = answer.site not in self.outcomes
        code, reason = self._judged(answer) if is_first else (RefusalCode.REPLY_INVALID, "a second answer in this round")
        verdict = Verdict(answer.site if is_first else f"{answer.site} (again)", code, reason)
        self._note(verdict, answer)
        return verdict

    def note_absent(self, site: str, reason: str) -> Verdict:
        """A site of the run that was sent no message, because it is not there."""
        verdict = Verdict(site, RefusalCode.NO_REPLY, reason)
        self._note(verdict, Answer(site, Refusal(RefusalCode.NO_REPLY, site), 0.0, reason))
        return verdict

    def record(self, round_number: int, seconds: float, mean: dict[str, FloatArray]) -> RoundRecord:
        """The finished round."""
        return RoundRecord(round_number, seconds, l2_norm(mean), self.outcomes, tuple(self.details))

    def _note(self, verdict: Verdict, answer: Answer) -> None:
        self.outcomes[verdict.name] = (verdict.outcome, answer.seconds)
        self.details.append(detail("train", verdict.name, verdict.outcome, answer, verdict.reason))

    def _judged(self, answer: Answer) -> tuple[RefusalCode | None, str]:
        if isinstance(answer.reply, Refusal):
            return answer.reply.code, answer.reason
        if not isinstance(answer.reply, Update):
            return RefusalCode.REPLY_INVALID, "an evaluation where an update was asked for"
        weight = self._weight_units(answer.site)
        if weight is None:
            return RefusalCode.REPLY_INVALID, "federation.weights gives this site no weight"
        norm = l2_norm(answer.reply.delta)
        if not norm <= self.federation.update_norm_limit:
            return RefusalCode.REPLY_INVALID, (
                f"an update of L2 norm {norm:.3g}; federation.update_norm_limit is {self.federation.update_norm_limit:g}"
            )
        try:
            self.total.add(answer.reply.delta, weight)
        except ProtocolError as error:
            return RefusalCode.REPLY_INVALID, str(error)
        return None, answer.reason

    def _weight_units(self, site: str) -> int | None:
        """The site's public weight relative to the largest; None if the study gives weights and not to this site."""
        weights = self.federation.weights
        if weights == "equal":
            return WEIGHT_UNITS
        if site not in weights:
            return None
        return max(1, round(weights[site] / max(weights.values()) * WEIGHT_UNITS))


def detail(kind: str, name: str, outcome: str, answer: Answer, reason: str | None = None) -> ReplyDetail:
    """One answer as the run store keeps it."""
    why = answer.reason if reason is None else reason
    facts = (kind, name, outcome, answer.seconds, why, answer.bytes_down, answer.bytes_up)
    return ReplyDetail(*facts) if answer.witnessed is None else ReplyDetail(*facts, *astuple(answer.witnessed))

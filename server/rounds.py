# SPDX-License-Identifier: Apache-2.0
"""The round loop: read `RoundLoop.run` from top to bottom and you know what a federated run does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass, field
from math import sqrt

import numpy as np
from flwr.serverapp import Grid

from common.errors import FederationError, ProtocolError
from common.evaluation_plan import EvaluationPlan, evaluation_plan
from common.events import EventLog
from common.fixed_point import WEIGHT_UNITS, FixedPointSum
from common.protocol import Arrays, CountArray, Evaluated, FloatArray, Instruction, Refusal, RefusalCode, Update, shapes_of
from common.study import Study
from server.averaging import moving_average
from server.checkpoints import Checkpoints, ServerState
from server.exchange import Answer, Node, Pick, every_node, exchange, wait_for_nodes
from server.receipts import Receipts
from server.runs import ReplyDetail, RunStore
from server.statements import Statements
from server.strategies.registry import make_strategy


@dataclass
class Aggregate:
    """The exact running sum of a round, and what each site answered."""

    total: FixedPointSum
    outcomes: dict[str, tuple[str, float]] = field(default_factory=dict)
    details: list[ReplyDetail] = field(default_factory=list)


@dataclass(frozen=True)
class RoundLoop:
    """One run of one study. `sites` is how many sites are expected to take part.

    `min_sites` may raise the study's; `pick` says which nodes take part, asked anew before each round; with `statements` a reply counts
    only with the site's own signature.
    """

    grid: Grid
    study: Study
    run_id: str
    sites: int
    checkpoints: Checkpoints
    store: RunStore
    events: EventLog
    receipts: Receipts | None = None
    min_sites: int = 0
    pick: Pick = every_node
    statements: Statements | None = None

    def run(self, initial_model: Callable[[], Arrays]) -> None:
        """All rounds from the last checkpoint on, then one evaluation of the final model. Raises FederationError, StorageError."""
        state = self.checkpoints.latest() or _fresh(initial_model())
        self.store.begin(self.study.id, self.run_id, self.study.canonical_json)
        nodes = self._nodes(self.sites)
        for round_number in range(state.round + 1, self.study.federation.rounds + 1):
            self._evaluate_between(nodes, state)
            started = time.monotonic()
            self.events.emit("round_started", round=round_number, sites=[node.site for node in nodes])
            aggregate = self._train(nodes, state, round_number)
            state = self._next_state(state, aggregate, round_number)
            self.checkpoints.save(state)
            self._save_receipts()
            self._record(round_number, aggregate, time.monotonic() - started)
            nodes = self._nodes(self._fewest)
        self._evaluate(nodes, state)
        self._save_receipts()
        self.events.emit("rounds_finished", round=state.round)

    @property
    def _fewest(self) -> int:
        """Updates with which a round counts."""
        return max(self.study.federation.min_sites, self.min_sites)

    def _nodes(self, expected: int) -> list[Node]:
        """Who takes part: at the start every site is waited for, later those that are there, if they are enough."""
        return wait_for_nodes(self.grid, expected, self._fewest, self.study.federation.round_timeout_seconds, self.pick)

    def _train(self, nodes: list[Node], state: ServerState, round_number: int) -> Aggregate:
        """Send the model, add up the updates as they arrive."""
        aggregate = Aggregate(FixedPointSum(shapes_of(state.model)))
        instruction = self._instruction(state.model, round_number, train=True, evaluate=self._evaluates_before(round_number))
        for answer in self._exchange(nodes, instruction, None):
            self._take(answer, aggregate, round_number)
            del answer
        if aggregate.total.terms < self._fewest:
            self._save_receipts()
            self.store.record_details(self.run_id, round_number, aggregate.details)
            refusals = ", ".join(f"{site}: {outcome}" for site, (outcome, _) in sorted(aggregate.outcomes.items()) if outcome != "update")
            raise FederationError(
                f"round {round_number}: {aggregate.total.terms} updates, the study needs {self._fewest} ({refusals}); "
                "put it right and resume"
            )
        return aggregate

    def _take(self, answer: Answer, aggregate: Aggregate, round_number: int) -> None:
        """Count one answer in; a bad one drops that site for the round, never the run."""
        code = self._add(answer, aggregate)
        name = answer.site if answer.site not in aggregate.outcomes else f"{answer.site} (again)"
        outcome = "update" if code is None else code.value
        aggregate.outcomes[name] = (outcome, answer.seconds)
        aggregate.details.append(_detail("train", name, outcome, answer))
        if code is None:
            self.events.emit("site_replied", round=round_number, site=answer.site, seconds=answer.seconds)
        else:
            self.events.emit("site_refused", round=round_number, site=answer.site, code=code.value, reason=answer.reason)

    def _add(self, answer: Answer, aggregate: Aggregate) -> RefusalCode | None:
        if isinstance(answer.reply, Refusal):
            return answer.reply.code
        if not isinstance(answer.reply, Update) or answer.site in aggregate.outcomes:
            return RefusalCode.REPLY_INVALID
        weight = self._weight_units(answer.site)
        if weight is None:
            return RefusalCode.REPLY_INVALID
        try:
            aggregate.total.add(answer.reply.delta, weight)
        except ProtocolError:
            return RefusalCode.REPLY_INVALID
        return None

    def _weight_units(self, site: str) -> int | None:
        """The site's public weight relative to the largest; None if the study gives weights and not to this site."""
        weights = self.study.federation.weights
        if weights == "equal":
            return WEIGHT_UNITS
        if site not in weights:
            return None
        return max(1, round(weights[site] / max(weights.values()) * WEIGHT_UNITS))

    def _next_state(self, state: ServerState, aggregate: Aggregate, round_number: int) -> ServerState:
        model = make_strategy(self.study.federation).apply(state.model, aggregate.total.mean())
        return ServerState(round_number, model, moving_average(state.average, model, self.study.federation.ema_decay, round_number))

    def _record(self, round_number: int, aggregate: Aggregate, seconds: float) -> None:
        norm = l2_norm(aggregate.total.mean())
        self.store.record_round(
            self.run_id, round_number, seconds=seconds, update_norm=norm, outcomes=aggregate.outcomes, details=aggregate.details
        )
        self.events.emit("round_done", round=round_number, updates=aggregate.total.terms, seconds=seconds)

    def _save_receipts(self) -> None:
        if self.receipts is not None:
            self.receipts.save()

    def _evaluate_between(self, nodes: list[Node], state: ServerState) -> None:
        """The measurement after a round that is not the last, if one is planned and was not done before the run was interrupted."""
        plan = evaluation_plan(self.study)
        done = {measured.round for measured in self.store.measurements(self.run_id)}
        if plan and state.round in plan.rounds and state.round not in done:
            self._evaluate(nodes, state)

    def _evaluate(self, nodes: list[Node], state: ServerState) -> None:
        """The global model (its moving average) goes to every site once more, without training; their noisy histograms are added up."""
        plan = evaluation_plan(self.study)
        histograms: dict[str, CountArray] = {}
        details: list[ReplyDetail] = []
        instruction = self._instruction(state.average, state.round, train=False, evaluate=True)
        for answer in self._exchange(nodes, instruction, plan.shape if plan else None):
            if isinstance(answer.reply, Evaluated) and answer.site not in histograms:
                self.events.emit("site_evaluated", round=state.round, site=answer.site)
                details.append(_detail("evaluate", answer.site, "evaluated", answer))
                if answer.reply.counts is not None:
                    histograms[answer.site] = answer.reply.counts
            else:
                code = answer.reply.code.value if isinstance(answer.reply, Refusal) else RefusalCode.REPLY_INVALID.value
                self.events.emit("site_refused", round=state.round, site=answer.site, code=code, reason=answer.reason)
                details.append(_detail("evaluate", answer.site, code, answer))
        self.store.record_details(self.run_id, state.round, details)
        if plan and histograms:
            self._measure(plan, state.round, list(histograms.values()))

    def _exchange(self, nodes: list[Node], instruction: Instruction, counts_shape: tuple[int, ...] | None) -> Iterator[Answer]:
        timeout_seconds = self.study.federation.round_timeout_seconds
        return exchange(self.grid, nodes, instruction, timeout_seconds, counts_shape, self.receipts, self.statements)

    def _measure(self, plan: EvaluationPlan, round_number: int, histograms: list[CountArray]) -> None:
        """AUROC from the sum of the sites' histograms: no site's own is kept, and a figure drowned in noise is not given."""
        total = np.sum(histograms, axis=0)
        found = plan.estimate(total, len(histograms))
        facts = {"auroc": found.value if found.is_measurable else None, "standard_error": found.standard_error}
        self.store.record_measurement(self.run_id, round_number, sites=len(histograms), counts=total.tolist(), **facts)
        self.events.emit("measured", round=round_number, sites=len(histograms), **facts)

    def _evaluates_before(self, round_number: int) -> bool:
        """Whether the incoming model of this round is evaluated: after every so many finished rounds."""
        every = self.study.evaluation.every
        return every > 0 and round_number > 1 and (round_number - 1) % every == 0

    def _instruction(self, model: Arrays, round_number: int, *, train: bool, evaluate: bool) -> Instruction:
        return Instruction(self.run_id, self.study.canonical_json, round_number, train, evaluate, model)


def _fresh(model: Arrays) -> ServerState:
    return ServerState(0, model, model)


def _detail(kind: str, name: str, outcome: str, answer: Answer) -> ReplyDetail:
    facts = (kind, name, outcome, answer.seconds, answer.reason, answer.bytes_down, answer.bytes_up)
    signed = answer.witnessed
    return ReplyDetail(*facts) if signed is None else ReplyDetail(*facts, *astuple(signed))


def l2_norm(arrays: Mapping[str, FloatArray]) -> float:
    """Joint L2 norm of all tensors."""
    return sqrt(sum(float(np.vdot(array.astype(np.float64), array.astype(np.float64))) for array in arrays.values()))

# SPDX-License-Identifier: Apache-2.0
"""The round loop: read `RoundLoop.run` from top to bottom and you know what a federated run does."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
from server.exchange import Answer, Node, exchange, wait_for_nodes
from server.receipts import Receipts
from server.runs import RunStore
from server.strategies.registry import make_strategy


@dataclass
class Aggregate:
    """The exact running sum of a round, and what each site answered."""

    total: FixedPointSum
    outcomes: dict[str, tuple[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class RoundLoop:
    """One run of one study. `sites` is how many sites are expected to take part."""

    grid: Grid
    study: Study
    run_id: str
    sites: int
    checkpoints: Checkpoints
    store: RunStore
    events: EventLog
    receipts: Receipts | None = None

    def run(self, initial_model: Callable[[], Arrays]) -> None:
        """All rounds from the last checkpoint on, then one evaluation of the final model. Raises FederationError, StorageError."""
        state = self.checkpoints.latest() or _fresh(initial_model())
        self.store.begin(self.study.id, self.run_id, self.study.canonical_json)
        federation = self.study.federation
        nodes = wait_for_nodes(self.grid, self.sites, federation.min_sites, federation.round_timeout_seconds)
        for round_number in range(state.round + 1, federation.rounds + 1):
            self._evaluate_between(nodes, state)
            started = time.monotonic()
            self.events.emit("round_started", round=round_number, sites=[node.site for node in nodes])
            aggregate = self._train(nodes, state, round_number)
            state = self._next_state(state, aggregate, round_number)
            self.checkpoints.save(state)
            self._save_receipts()
            self._record(round_number, aggregate, time.monotonic() - started)
        self._evaluate(nodes, state)
        self._save_receipts()
        self.events.emit("rounds_finished", round=state.round)

    def _train(self, nodes: list[Node], state: ServerState, round_number: int) -> Aggregate:
        """Send the model, add up the updates as they arrive."""
        aggregate = Aggregate(FixedPointSum(shapes_of(state.model)))
        instruction = self._instruction(state.model, round_number, train=True, evaluate=self._evaluates_before(round_number))
        for answer in exchange(self.grid, nodes, instruction, self.study.federation.round_timeout_seconds, None, self.receipts):
            self._take(answer, aggregate, round_number)
        if aggregate.total.terms < self.study.federation.min_sites:
            refusals = ", ".join(f"{site}: {outcome}" for site, (outcome, _) in sorted(aggregate.outcomes.items()) if outcome != "update")
            raise FederationError(
                f"round {round_number}: {aggregate.total.terms} updates, the study needs {self.study.federation.min_sites} ({refusals}); "
                "put it right and resume"
            )
        return aggregate

    def _take(self, answer: Answer, aggregate: Aggregate, round_number: int) -> None:
        """Count one answer in; a bad one drops that site for the round, never the run."""
        code = self._add(answer, aggregate)
        name = answer.site if answer.site not in aggregate.outcomes else f"{answer.site} (again)"
        aggregate.outcomes[name] = ("update" if code is None else code.value, answer.seconds)
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
        self.store.record_round(self.run_id, round_number, seconds=seconds, update_norm=norm, outcomes=aggregate.outcomes)
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
        instruction = self._instruction(state.average, state.round, train=False, evaluate=True)
        timeout_seconds = self.study.federation.round_timeout_seconds
        for answer in exchange(self.grid, nodes, instruction, timeout_seconds, plan.shape if plan else None, self.receipts):
            if isinstance(answer.reply, Evaluated) and answer.site not in histograms:
                self.events.emit("site_evaluated", round=state.round, site=answer.site)
                if answer.reply.counts is not None:
                    histograms[answer.site] = answer.reply.counts
            else:
                code = answer.reply.code.value if isinstance(answer.reply, Refusal) else RefusalCode.REPLY_INVALID.value
                self.events.emit("site_refused", round=state.round, site=answer.site, code=code, reason=answer.reason)
        if plan and histograms:
            self._measure(plan, state.round, list(histograms.values()))

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


def l2_norm(arrays: Mapping[str, FloatArray]) -> float:
    """Joint L2 norm of all tensors."""
    return sqrt(sum(float(np.vdot(array.astype(np.float64), array.astype(np.float64))) for array in arrays.values()))

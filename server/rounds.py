# SPDX-License-Identifier: Apache-2.0
"""The round loop: read `RoundLoop.run` from top to bottom and you know what a federated run does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from flwr.serverapp import Grid

from common.errors import FederationError, StorageError
from common.evaluation_plan import EvaluationPlan, evaluation_plan
from common.events import EventLog
from common.flower_compat.grids import NodeInfo
from common.protocol import Arrays, CountArray, Evaluated, Instruction, Refusal, RefusalCode, shapes_of
from common.study import Study
from server.aggregation import UPDATE, Aggregation, Verdict, detail
from server.averaging import moving_average
from server.checkpoints import Checkpoints, Damage, ServerState
from server.exchange import Answer, Node, Pick, Watch, every_node, exchange, wait_for_nodes
from server.receipts import Receipts
from server.round_record import RoundRecord
from server.runs import ReplyDetail, RunStore
from server.statements import Statements
from server.strategies.base import Strategy
from server.strategies.registry import make_strategy

RESUME_SECONDS = 60.0
"""How long a run that goes on waits for all of its sites; after that it takes those that are there, if they are enough."""


def _no_roster() -> Mapping[str, str]:
    return {}


@dataclass(frozen=True)
class RoundLoop:
    """One run of one study. `sites` is how many sites are expected to take part.

    `min_sites` may raise the study's; `pick` says which nodes take part, asked anew before each round; with `statements` a reply counts
    only with the site's own signature. `roster` names the run's sites, each with the reason why it may not take part any more, "" if it
    may. `strategy` takes the place of the study's, for tests.
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
    roster: Callable[[], Mapping[str, str]] = _no_roster
    strategy: Strategy | None = None

    def run(self, initial_model: Callable[[], Arrays]) -> None:
        """All rounds from the last checkpoint on, then one evaluation of the final model. Raises FederationError, StorageError."""
        self.store.begin(self.study.id, self.run_id, self.study.canonical_json)
        restored = self._restored()
        self.events.emit("run_started", resumed_from=restored.round if restored else 0)
        state = restored or _fresh(initial_model())
        nodes = self._nodes(self.sites, RESUME_SECONDS if restored else None)
        for round_number in range(state.round + 1, self.study.federation.rounds + 1):
            self._evaluate_between(nodes, state)
            state = self._round(nodes, state, round_number)
            nodes = self._nodes(self._fewest)
        self._evaluate(nodes, state)
        self._save_receipts()
        self.events.emit("rounds_finished", round=state.round)

    def _round(self, nodes: list[Node], state: ServerState, round_number: int) -> ServerState:
        """One round of training, checkpointed and recorded; the state after it."""
        started = time.monotonic()
        self.events.emit("round_started", round=round_number, sites=[node.site for node in nodes])
        aggregation = self._train(nodes, state, round_number)
        state = self._next_state(state, aggregation, round_number, started)
        self.checkpoints.save(state)
        self._save_receipts()
        if state.record is not None:
            self._record(replace(state.record, seconds=time.monotonic() - started))
        return state

    @property
    def _fewest(self) -> int:
        """Updates with which a round counts."""
        return max(self.study.federation.min_sites, self.min_sites)

    def _restored(self) -> ServerState | None:
        """The state of the newest good checkpoint, its round in the run store even if the server was killed between the two."""
        state = self.checkpoints.latest(self._tell_damage)
        done = {stored.round for stored in self.store.rounds(self.run_id)}
        if state is None and done:
            raise StorageError(
                f"run {self.run_id[:8]} has finished {len(done)} rounds, and its checkpoints are gone; put its folder back from a backup "
                "and resume, or start the study as a new run"
            )
        if state is not None and state.record is not None and state.round not in done:
            self._record(state.record)
        return state

    def _tell_damage(self, damage: Damage) -> None:
        then = "the run ends" if damage.used_round is None else f"the checkpoint of round {damage.used_round} is used"
        self.events.emit("checkpoint_damaged", file=damage.file, reason=damage.reason, then=then)

    def _nodes(self, expected: int, patience_seconds: float | None = None) -> list[Node]:
        """Who takes part: at the start every site is waited for, later those that are there, if they are enough."""
        remaining = self.sites - len(self._suspended.keys() | self._without_weight)
        if self.study.federation.weights != "equal":
            remaining = min(remaining, len(self.study.federation.weights))
        if remaining < self._fewest and remaining < self.sites:
            left_out = "".join(f"; federation.weights leaves out {site}" for site in sorted(self._without_weight))
            raise FederationError(f"{remaining} sites remain, the study needs {self._fewest}{left_out}{self._suspension()}")
        timeout_seconds = self.study.federation.round_timeout_seconds
        try:
            return wait_for_nodes(self.grid, min(expected, remaining), self._fewest, timeout_seconds, self._pick, patience_seconds)
        except FederationError as error:
            raise FederationError(f"{error}{self._suspension()}") from error

    def _pick(self, online: Iterable[NodeInfo]) -> list[Node]:
        """Who may get a message: not a suspended site, until it is pardoned, and none whose update the study gives no weight."""
        suspended = self.store.suspended(self.run_id)
        return [node for node in self.pick(online) if node.site not in suspended and (self._has_weight(node.site) or not node.named)]

    def _has_weight(self, site: str) -> bool:
        """Whether `federation.weights` gives a site a weight."""
        weights = self.study.federation.weights
        return weights == "equal" or site in weights

    @property
    def _without_weight(self) -> set[str]:
        """Sites of the run that could take part, and that the study leaves out: they would train, and spend, for nothing."""
        return {site for site, reason in self.roster().items() if not reason and not self._has_weight(site)}

    def _online_without_weight(self) -> dict[str, str]:
        """The same where a run has no roster (a simulation): of those that are online, none with a reason to be away."""
        if self.study.federation.weights == "equal":
            return {}
        return {node.site: "" for node in self.pick(self.grid.get_nodes()) if node.named and not self._has_weight(node.site)}

    @property
    def _suspended(self) -> dict[str, list[str]]:
        """The suspended sites that could otherwise take part, with the reasons."""
        return {site: reasons for site, reasons in self.store.suspended(self.run_id).items() if self._may_return(site)}

    def _suspension(self) -> str:
        """Who is suspended, as the end of an error's message; empty if nobody is."""
        suspended = self._suspended
        if not suspended:
            return ""
        named = "; ".join(f"{site}: {reasons[-1]}" for site, reasons in suspended.items())
        commands = ", ".join(f"`wardround-server readmit {self.run_id[:8]} {site}`" for site in suspended)
        return f". Suspended after three bad updates: {named}. Find the cause at the site, then {commands}, and resume"

    def _train(self, nodes: list[Node], state: ServerState, round_number: int) -> Aggregation:
        """Send the model, add up the updates as they arrive. Raises FederationError when they are too few."""
        aggregation = Aggregation(shapes_of(state.model), self.study.federation)
        self._note_absent(nodes, aggregation, round_number)
        instruction = self._instruction(state.model, round_number, train=True, evaluate=self._evaluates_before(round_number))
        for answer in self._exchange(nodes, instruction, None):
            self._hear(answer, aggregation.take(answer), round_number)
            del answer
        if aggregation.updates < self._fewest:
            self._save_receipts()
            self.store.record_details(self.run_id, round_number, aggregation.details)
            raise FederationError(
                f"round {round_number}: {aggregation.updates} updates, the study needs {self._fewest} ({aggregation.refused}); "
                f"put it right and resume{self._suspension()}"
            )
        return aggregation

    def _note_absent(self, nodes: list[Node], aggregation: Aggregation, round_number: int) -> None:
        """Name the sites that are sent nothing, because they are not there."""
        present = {node.site for node in nodes} | set(self.store.suspended(self.run_id))
        if not all(node.named for node in nodes):
            return
        for site, reason in (self.roster() or self._online_without_weight()).items():
            if site not in present:
                unasked = "federation.weights gives it no weight, so it is not asked" if not self._has_weight(site) else ""
                verdict = aggregation.note_absent(site, unasked or reason or "no heartbeat: not connected when the round began")
                self.events.emit("site_refused", round=round_number, site=site, code=verdict.outcome, reason=verdict.reason)

    def _hear(self, answer: Answer, verdict: Verdict, round_number: int) -> None:
        """Say what became of an answer; a bad update is a strike against its site, the third suspends it."""
        if verdict.code is None:
            self.events.emit("site_replied", round=round_number, site=answer.site, seconds=answer.seconds)
            return
        self.events.emit("site_refused", round=round_number, site=answer.site, code=verdict.outcome, reason=verdict.reason)
        if verdict.code is RefusalCode.REPLY_INVALID and verdict.name == answer.site:
            self.store.strike(self.run_id, round_number, answer.site, f"round {round_number}: {verdict.reason}")
            reasons = self.store.suspended(self.run_id).get(answer.site)
            if reasons:
                self.events.emit("site_suspended", round=round_number, site=answer.site, reasons=list(reasons))

    def _next_state(self, state: ServerState, aggregation: Aggregation, round_number: int, started: float) -> ServerState:
        """The state after a round that began at `started` (monotonic seconds)."""
        mean = aggregation.total.mean()
        strategy = self.strategy or make_strategy(self.study.federation)
        model, memory = strategy.step(state.model, mean, state.memory)
        decay = self.study.federation.ema_decay
        average = moving_average(state.average, model, decay, round_number) if decay else model
        answered = {site: round_number for site, (outcome, _) in aggregation.outcomes.items() if outcome == UPDATE}
        record = aggregation.record(round_number, time.monotonic() - started, mean)
        return ServerState(round_number, model, average, memory, {**state.last_rounds, **answered}, record)

    def _record(self, record: RoundRecord) -> None:
        """Note a finished round, after its checkpoint."""
        record.write(self.store, self.run_id)
        self.events.emit("round_done", round=record.round, updates=record.updates, seconds=record.seconds)

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
                details.append(detail("evaluate", answer.site, "evaluated", answer))
                if answer.reply.counts is not None:
                    histograms[answer.site] = answer.reply.counts
            else:
                code = answer.reply.code.value if isinstance(answer.reply, Refusal) else RefusalCode.REPLY_INVALID.value
                self.events.emit("site_refused", round=state.round, site=answer.site, code=code, reason=answer.reason)
                details.append(detail("evaluate", answer.site, code, answer))
        self.store.record_details(self.run_id, state.round, details)
        if plan and histograms:
            self._measure(plan, state.round, list(histograms.values()))

    def _exchange(self, nodes: list[Node], instruction: Instruction, counts_shape: tuple[int, ...] | None) -> Iterator[Answer]:
        def away(site: str) -> None:
            self.events.emit("site_away", round=instruction.round, site=site)

        def interrupted(site: str) -> None:
            self.events.emit("site_interrupted", round=instruction.round, site=site)

        def asked_again(site: str) -> None:
            self.events.emit("site_asked_again", round=instruction.round, site=site)

        timeout_seconds = self.study.federation.round_timeout_seconds
        watch = Watch(self._pick, self._may_return, away, interrupted, asked_again)
        return exchange(self.grid, nodes, instruction, timeout_seconds, counts_shape, self.receipts, self.statements, watch)

    def _may_return(self, site: str) -> bool:
        """Whether a site that is away is still one of the run's."""
        return not self.roster().get(site)

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

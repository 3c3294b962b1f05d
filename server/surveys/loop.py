# SPDX-License-Identifier: Apache-2.0
"""A survey's run: one message to each site, every answer kept as it comes, the page at the end.

A run that was interrupted asks only the sites that have not answered; one that has answered would send the same bytes again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flwr.serverapp import Grid

from common.errors import FederationError, ProtocolError
from common.events import EventLog
from common.flower_compat.grids import NodeInfo
from common.protocol import Instruction, Refusal, RefusalCode, Surveyed
from common.study import Study
from common.survey_plan import SURVEY_ROUND, SurveyPlan, survey_plan
from server.aggregation import detail
from server.exchange import Answer, Node, Pick, Watch, every_node, exchange, wait_for_nodes
from server.receipts import Receipts
from server.runs import ReplyDetail, RunStore
from server.statements import Statements
from server.surveys.page import write_survey_page
from server.surveys.record import SURVEY_FILE, SurveyRecord

KIND = "survey"
SURVEYED = "surveyed"


@dataclass
class SurveyLoop:
    """One run of one survey; the fields are those of `RoundLoop`. `folder` is the run's."""

    grid: Grid
    study: Study
    run_id: str
    sites: int
    folder: Path
    store: RunStore
    events: EventLog
    receipts: Receipts | None = None
    min_sites: int = 0
    pick: Pick = every_node
    statements: Statements | None = None
    roster: Callable[[], Mapping[str, str]] = dict
    _details: list[ReplyDetail] = field(default_factory=list)

    def run(self) -> None:
        """Ask, keep, show. Raises FederationError when too few sites have answered, StorageError."""
        plan, started = self._plan(), time.monotonic()
        self.store.begin(self.study.id, self.run_id, self.study.canonical_json)
        record = self._before()
        self.events.emit("run_started", resumed_from=0)
        record = self._asked(plan, record)
        fewest = max(self.study.federation.min_sites, self.min_sites)
        if len(record.tables) < fewest:
            named = "; ".join(f"{site}: {why}" for site, why in sorted(record.refused.items()))
            raise FederationError(f"survey: {len(record.tables)} sites answered, {fewest} are needed ({named}); put it right and resume")
        write_survey_page(self.folder, record)
        outcomes = {one.site: (one.outcome, one.seconds) for one in self._details}
        self.store.record_round(self.run_id, 1, seconds=time.monotonic() - started, update_norm=0.0, outcomes=outcomes)
        self.events.emit("surveyed", sites=len(record.tables), refused=len(record.refused))
        self.events.emit("rounds_finished", round=1)

    def _plan(self) -> SurveyPlan:
        plan = survey_plan(self.study)
        if plan is None:
            raise ProtocolError("the study is no survey; start it with `wardround-server start`")
        return plan

    def _before(self) -> SurveyRecord:
        """What was answered before the run was interrupted."""
        if (self.folder / SURVEY_FILE).exists():
            return SurveyRecord.read(self.folder)
        return SurveyRecord(run_id=self.run_id, study=self.study.canonical_json, asked=tuple(self.roster()))

    def _asked(self, plan: SurveyPlan, record: SurveyRecord) -> SurveyRecord:
        """The record after every site that is there was asked."""
        missing = self.sites - len(record.tables)
        if missing <= 0:
            return record

        def pick(online: Iterable[NodeInfo]) -> list[Node]:
            return [node for node in self.pick(online) if node.site not in record.tables]

        timeout_seconds = self.study.federation.round_timeout_seconds
        nodes = wait_for_nodes(self.grid, missing, 0 if record.tables else 1, timeout_seconds, pick)
        record = self._with_absent(record, nodes)
        instruction = Instruction(self.run_id, self.study.canonical_json, SURVEY_ROUND, train=False, evaluate=True, model={})
        watch = Watch(pick, lambda site: not self.roster().get(site))
        answers = exchange(self.grid, nodes, instruction, timeout_seconds, None, self.receipts, self.statements, watch, tables=plan.shapes)
        for answer in answers:
            record = self._heard(record, answer)
            record.write(self.folder)
        if self.receipts is not None:
            self.receipts.save()
        self.store.record_details(self.run_id, SURVEY_ROUND, self._details)
        return record

    def _with_absent(self, record: SurveyRecord, nodes: Iterable[Node]) -> SurveyRecord:
        """Name the sites that are sent nothing, because they are not there."""
        present = {node.site for node in nodes} | set(record.tables)
        for site, reason in self.roster().items():
            if site not in present:
                why = reason or "no heartbeat: not connected"
                self.events.emit("site_refused", round=SURVEY_ROUND, site=site, code=RefusalCode.NO_REPLY.value, reason=why)
                record = record.with_refusal(site, why)
        return record

    def _heard(self, record: SurveyRecord, answer: Answer) -> SurveyRecord:
        if isinstance(answer.reply, Surveyed):
            self.events.emit("site_surveyed", site=answer.site, seconds=answer.seconds)
            self._details.append(detail(KIND, answer.site, SURVEYED, answer))
            return record.with_answer(answer.reply)
        code = answer.reply.code.value if isinstance(answer.reply, Refusal) else RefusalCode.REPLY_INVALID.value
        self.events.emit("site_refused", round=SURVEY_ROUND, site=answer.site, code=code, reason=answer.reason)
        self._details.append(detail(KIND, answer.site, code, answer))
        return record.with_refusal(answer.site, f"{code} {answer.reason}".strip())

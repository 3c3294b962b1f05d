# SPDX-License-Identifier: Apache-2.0
"""Baselines: all data in one place (`pooled`), and each site by itself, with the same trainer and the same number of steps.

A baseline is a federation of one without a server: the same rounds, the same local steps, the same privacy for its own patients. It runs
in the same kind of worker and is asked by the same kind of message; one message stands for all rounds.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp

from client.app import Settings
from client.site import Site, SiteFile, evaluation_path, site_from_table, write_site
from client.site_log import log_failure
from client.worker import WorkerSettings
from common.data.cohort import Cohort, Split
from common.protocol import Arrays, Evaluated, Instruction, Refusal, RefusalCode, Reply, read_reply
from common.study import Study
from server.averaging import moving_average
from server.strategies.fedavg import FedAvg
from simulations.engine import FIRST_NODE_ID, InProcessGrid
from simulations.layout import RunLayout, account_delta, write_table

if TYPE_CHECKING:
    from client.workbench import StudyBench

POOLED = "pooled"
APP = "simulations.baselines:app"


def write_baselines(layout: RunLayout, study: Study, dataset_folder: Path, cohorts: Mapping[str, Cohort], nominal_patients: int) -> None:
    """Write a folder for each baseline that has no scores yet: its own training patients, and the held-out patients of all sites.

    One that was interrupted starts anew: its patients are simulated, and what it had charged was never released to anybody.
    """
    everyone = _union(list(cohorts.values()))
    folders = [layout.baseline(POOLED), *(layout.baseline(name) for name in cohorts)]
    trained_on = [(everyone, nominal_patients * len(cohorts)), *((cohort, nominal_patients) for cohort in cohorts.values())]
    for folder, (own, size) in zip(folders, trained_on, strict=True):
        if scores_path(layout, study, folder.name).exists():
            continue
        shutil.rmtree(folder, ignore_errors=True)
        facts = SiteFile(
            name=folder.name,
            dataset=str(dataset_folder),
            nominal_patients=size,
            unprotected_studies=(study.id,),
            delta=account_delta(study),
        )
        write_site(folder, facts, _with_test_of(own, everyone))
    write_table(layout.baseline_table, folders)


def run_baselines(
    layout: RunLayout, study: Study, sites: Sequence[str], initial: Arrays, settings: WorkerSettings, workers: int
) -> Iterator[Reply]:
    """Train those baselines that have no scores yet; yields each one's answer as it is done. `sites` in the order of the table."""
    names = [POOLED, *sites]
    with InProcessGrid(names, settings, workers) as grid:
        instruction = Instruction("baseline", study.canonical_json, 1, train=True, evaluate=True, model=initial)
        waiting = {FIRST_NODE_ID + number for number, name in enumerate(names) if not scores_path(layout, study, name).exists()}
        records = instruction.to_records()
        pending = set(grid.push_messages(Message(records, node, MessageType.TRAIN) for node in sorted(waiting)))
        while pending:
            for reply in grid.pull_messages(pending):
                pending.discard(reply.metadata.reply_to_message_id)
                yield read_reply(reply.content, run_id="baseline", round_number=1, shapes={})


def scores_path(layout: RunLayout, study: Study, name: str) -> Path:
    """Where a finished baseline's scores lie."""
    return evaluation_path(layout.baseline(name), study.federation.rounds)


def train_alone(bench: StudyBench, site: Site, start: Arrays) -> None:
    """All rounds of the study at one site, its result averaged and scored like the global model of a federation of one."""
    study, strategy = bench.study, FedAvg()
    model, average = start, start
    for round_number in range(1, study.federation.rounds + 1):
        instruction = Instruction("baseline", study.canonical_json, round_number, train=True, evaluate=False, model=model)
        model = strategy.apply(model, bench.train(site, instruction).delta)
        average = moving_average(average, model, study.federation.ema_decay, round_number)
    last = Instruction("baseline", study.canonical_json, study.federation.rounds, train=False, evaluate=True, model=average)
    bench.evaluate(site, last)


def _union(cohorts: list[Cohort]) -> Cohort:
    rows = np.concatenate([cohort.rows for cohort in cohorts])
    split = np.concatenate([cohort.split for cohort in cohorts])
    order = np.argsort(rows, kind="stable")
    return Cohort(cohorts[0].dataset, rows[order], split[order])


def _with_test_of(own: Cohort, everyone: Cohort) -> Cohort:
    """The training images of `own` with the test images of `everyone`."""
    train, test = own.rows_in(Split.TRAIN), everyone.rows_in(Split.TEST)
    split = np.concatenate([np.full(len(train), Split.TRAIN, np.uint8), np.full(len(test), Split.TEST, np.uint8)])
    return Cohort(own.dataset, np.concatenate([train, test]), split)


def _answer(message: Message, context: Context) -> RecordDict:
    folder = site_from_table(context)
    try:
        from client.workbench import StudyBench, choose_device, read_study, use_threads

        settings = Settings.from_environment()
        use_threads(settings.threads)
        instruction = Instruction.from_records(message.content)
        bench = StudyBench(read_study(instruction.study), choose_device(settings.device))
        train_alone(bench, Site.open(folder), instruction.model)
        return Evaluated(instruction.run_id, instruction.round, folder.name).to_records()
    except Exception as error:  # noqa: BLE001 (the edge of the process: the cause is in the folder's log)
        log_failure(folder, RefusalCode.TRAINING_FAILED, error)
        return Refusal(RefusalCode.TRAINING_FAILED, folder.name).to_records()


app = ClientApp()


@app.train()
def _train(message: Message, context: Context) -> Message:
    return Message(_answer(message, context), reply_to=message)

# SPDX-License-Identifier: Apache-2.0
"""A simulated study from start to report: prepare, features, federation, baselines, results. Every phase can be resumed.

The researcher owns everything here: many hospitals' folders, the server's home, and the exact metrics that no hospital would release.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from flwr.app import Context, RecordDict

from client.app import DEVICE_VARIABLE, THREADS_VARIABLE
from client.site import SITE_TABLE_VARIABLE
from client.worker import WorkerSettings
from common.errors import FederationError, RunInterrupted, StorageError
from common.events import EventLog, Listener
from common.files import CACHE_VARIABLE, cache_folder, write_atomic
from common.protocol import Arrays, Refusal, RefusalCode, Reply
from common.study import PatientPrivacy
from server.app import HOME_VARIABLE, STUDY_KEY
from server.app import app as server_app
from server.initial import initial_model
from simulations import baselines
from simulations.collect import collect
from simulations.engine import FLOWER_RUN_ID, InProcessGrid
from simulations.layout import RunLayout
from simulations.live import EventFollower
from simulations.options import RunOptions, RunOutcome
from simulations.prepare import Prepared, check_device, ensure_features, prepare, reopen
from simulations.report import write_comparison, write_report
from simulations.results import RunResult
from simulations.warm import warm_up

SEEDS_FILE = "seeds.json"
BASELINE_ATTEMPTS = 2
CLIENT_APP = "client.app:app"


def run_study(options: RunOptions, listeners: Sequence[Listener]) -> list[RunOutcome]:
    """Run a study, once for each seed. Raises RunInterrupted when it is stopped; the folder can then be resumed."""
    warm_up(options.study.is_private)
    check_device(options.device)
    seeds = options.seeds or (options.study.seed,)
    folders = [options.out / f"seed-{seed}" for seed in seeds] if len(seeds) > 1 else [options.out]
    with ExitStack() as claims:
        for folder, seed in zip(folders, seeds, strict=True):
            claims.enter_context(RunLayout(folder).claimed())
            prepare(options.study.with_changes({"seed": seed}), options, RunLayout(folder))
        if len(seeds) > 1:
            write_atomic(options.out / SEEDS_FILE, json.dumps(list(seeds)))
        return _run_all(options.out, folders, listeners)


def resume_study(run_dir: Path, listeners: Sequence[Listener]) -> list[RunOutcome]:
    """Continue a run, or the runs of several seeds, from where they stopped; what is complete is left alone."""
    seeds = run_dir / SEEDS_FILE
    folders = [run_dir / f"seed-{seed}" for seed in json.loads(seeds.read_text())] if seeds.exists() else [run_dir]
    with ExitStack() as claims:
        for folder in folders:
            warm_up(RunLayout(folder).read_study().is_private)
            claims.enter_context(RunLayout(folder).claimed())
        return _run_all(run_dir, folders, listeners)


def _run_all(out: Path, folders: Sequence[Path], listeners: Sequence[Listener]) -> list[RunOutcome]:
    with _resumable(out):
        outcomes = [_continue(reopen(RunLayout(folder)), listeners) for folder in folders]
        results = [outcome.result for outcome in outcomes if outcome.result is not None]
        if len(results) > 1:
            write_comparison(results, out / "report.html")
        return outcomes


def _continue(prepared: Prepared, listeners: Sequence[Listener]) -> RunOutcome:
    """Every phase that is not complete yet."""
    layout = prepared.layout
    if layout.results.exists():
        return RunOutcome(layout.folder, layout.report, RunResult.read(layout.results))
    with EventFollower(layout, listeners), closing(EventLog(layout.events)) as events:
        _announce(prepared, events)
        _make_features(prepared, events)
        _federate(prepared, events)
        if prepared.request.baselines:
            _train_baselines(prepared, events)
        result = _report(prepared, events)
        events.emit("run_finished", report=str(layout.report), seconds=result.seconds)
    return RunOutcome(layout.folder, layout.report, result)


def _announce(prepared: Prepared, events: EventLog) -> None:
    study = prepared.study
    privacy = study.privacy if isinstance(study.privacy, PatientPrivacy) else None
    events.emit(
        "run_started",
        study_id=study.id,
        study=study.name,
        run_dir=str(prepared.layout.folder),
        sites=list(prepared.cohorts),
        rounds=study.federation.rounds,
        local_steps=study.training.local_steps,
        private=study.is_private,
        epsilon_target=privacy.epsilon if privacy else None,
        seed=study.seed,
    )
    for text in prepared.warnings:
        events.emit("warning", text=text)


def _make_features(prepared: Prepared, events: EventLog) -> None:
    """Frozen features, for the models that have them; shared by all sites, seeds and baselines."""
    if prepared.study.model.name != "scattering" and prepared.study.model.freeze == "none":
        return
    events.emit("phase_started", phase="features", label="computing fixed features", total=len(prepared.dataset))
    ensure_features(prepared, lambda done, total: events.emit("progress", phase="features", done=done, total=total))


def _federate(prepared: Prepared, events: EventLog) -> None:
    """The federation itself: the real ServerApp and ClientApp over the chosen engine."""
    study, layout, request = prepared.study, prepared.layout, prepared.request
    events.emit("phase_started", phase="federated", label="federated training", total=study.federation.rounds)
    environment = _environment(prepared, layout.site_table)
    run_config = {STUDY_KEY: study.canonical_json}
    os.environ[HOME_VARIABLE] = str(layout.folder)
    if request.engine == "ray":
        _federate_on_ray(prepared, environment, run_config)
        return
    with InProcessGrid(list(prepared.cohorts), WorkerSettings(CLIENT_APP, environment), request.workers) as grid:
        server_app(grid, Context(FLOWER_RUN_ID, 0, {}, RecordDict(), dict(run_config)))


def _federate_on_ray(prepared: Prepared, environment: dict[str, str], run_config: dict[str, str]) -> None:
    from client.app import app as client_app
    from common.flower_compat.simulation import RayResources, run_on_ray

    os.environ.update(environment)
    request = prepared.request
    gpus = 1.0 / request.workers if request.device.startswith("cuda") else 0.0
    resources = RayResources(request.workers, request.threads or 1, gpus)
    run_on_ray(server_app, client_app, sites=len(prepared.cohorts), flower_run_id=FLOWER_RUN_ID, run_config=run_config, resources=resources)


def _train_baselines(prepared: Prepared, events: EventLog) -> None:
    """Pooled and each site alone, several at once if there are several workers."""
    layout, study, request = prepared.layout, prepared.study, prepared.request
    baselines.write_baselines(layout, study, Path(request.dataset), prepared.cohorts, request.nominal_patients)
    total = len(prepared.cohorts) + 1
    events.emit("phase_started", phase="baselines", label="pooled and each site alone", total=total)
    settings = WorkerSettings(baselines.APP, _environment(prepared, layout.baseline_table))
    start = initial_model(study)
    for attempt in range(1, BASELINE_ATTEMPTS + 1):
        replies = list(_baseline_replies(prepared, events, settings, start, total))
        lost = [reply for reply in replies if isinstance(reply, Refusal)]
        if not any(reply.code is RefusalCode.WORKER_LOST for reply in lost) or attempt == BASELINE_ATTEMPTS:
            break
        baselines.write_baselines(layout, study, Path(request.dataset), prepared.cohorts, request.nominal_patients)
    for reply in lost:
        log = layout.baseline(reply.site) / "site.log"
        cause = f"; {log} says why" if log.exists() else ""
        events.emit("warning", text=f"a baseline could not be trained: {reply.site or 'unnamed'} ({reply.code.value}){cause}")


def _baseline_replies(prepared: Prepared, events: EventLog, settings: WorkerSettings, start: Arrays, total: int) -> Iterator[Reply]:
    names = list(prepared.cohorts)
    replies = baselines.run_baselines(prepared.layout, prepared.study, names, start, settings, prepared.request.workers)
    for done, reply in enumerate(replies, start=1):
        events.emit("progress", phase="baselines", done=done, total=total, baseline=reply.site)
        yield reply


def _report(prepared: Prepared, events: EventLog) -> RunResult:
    events.emit("phase_started", phase="report", label="metrics and report", total=1)
    result = collect(prepared)
    write_report(result, prepared.layout.report)
    result.write(prepared.layout.results)
    return result


def _environment(prepared: Prepared, table: Path) -> dict[str, str]:
    """What a worker is told; absolute, because a worker may run elsewhere."""
    environment = {
        SITE_TABLE_VARIABLE: str(table.absolute()),
        DEVICE_VARIABLE: prepared.request.device,
        CACHE_VARIABLE: str(cache_folder().absolute()),
    }
    threads = prepared.request.threads or max(1, (os.cpu_count() or 1) // prepared.request.workers)
    return {**environment, THREADS_VARIABLE: str(threads)}


@contextmanager
def _resumable(out: Path) -> Iterator[None]:
    """What stopped the run, with the way to continue it."""
    remedy = f"continue with: wardround-sim run --resume {out}"
    try:
        yield
    except KeyboardInterrupt:
        raise RunInterrupted(f"interrupted; {remedy}") from None
    except (FederationError, StorageError) as error:
        if isinstance(error, FederationError):
            error.add_note(f"the sites' own logs say why: {out}/**/site.log")
        error.add_note(remedy)
        raise

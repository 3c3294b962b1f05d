# SPDX-License-Identifier: Apache-2.0
"""`wardround-sim`, the researcher's command line.

Results go to stdout (`--json`: exactly one object), progress and warnings to stderr; errors become the exit codes of
`common.errors`. Nothing heavy is imported before a command needs it, so help, completion and `validate` answer at once.
"""

from __future__ import annotations

import json
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from common.command_line import run_app
from common.errors import EXIT_CODE_HELP, ExitCode, InputError, RunInterrupted
from common.study import Study
from common.study_file import load_study
from simulations.options import RunOptions, RunOutcome, find_study, new_run_folder, parse_seeds, shipped_studies
from simulations.warm import warm_up

if TYPE_CHECKING:
    from rich.console import Console

    from common.events import Listener

NAME = "wardround-sim"
_EXIT_CODES = "Exit codes: " + " · ".join(f"{code.value} {text}" for code, text in EXIT_CODE_HELP.items())

app = typer.Typer(
    name=NAME,
    help="Simulate federated, patient-level private training of medical image models on one machine.",
    epilog=f"Example: {NAME} run quickstart\n\n{_EXIT_CODES}",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    return run_app(app, NAME, arguments)


def _complete_study(incomplete: str) -> list[str]:
    return [name for name in shipped_studies() if name.startswith(incomplete)]


_STUDY_HELP = "A study file, or the name of a shipped study such as quickstart."
StudyArgument = Annotated[str, typer.Argument(metavar="STUDY", help=_STUDY_HELP, autocompletion=_complete_study)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, for machines.")]
DataOption = Annotated[Path | None, typer.Option("--data", metavar="PATH", help="The images, unless the study makes its own.")]


@app.command(epilog=f"Example: {NAME} run quickstart --workers 2 --seeds 0,1,2")
def run(
    context: typer.Context,
    study: Annotated[str | None, typer.Argument(metavar="STUDY", help=_STUDY_HELP, autocompletion=_complete_study)] = None,
    data: DataOption = None,
    sites: Annotated[int | None, typer.Option(min=1, help="Number of simulated hospitals.")] = None,
    partition: Annotated[
        str | None, typer.Option(metavar="KIND", help="How patients go to sites: iid, dirichlet:A, quantity:A or column:NAME.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Training processes side by side.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of each worker.")] = None,
    engine: Annotated[Literal["local", "ray"], typer.Option(help="local: this machine; ray: Flower's engine, for a cluster.")] = "local",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:0.")] = "auto",
    seeds: Annotated[str | None, typer.Option(metavar="0,1,2", help="One run for each seed, with mean and standard deviation.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Run folder, default runs/<study>-<time>.")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="DIR", help="Continue the interrupted run in this folder.")] = None,
    no_privacy: Annotated[
        bool, typer.Option("--no-privacy", help="Run the study without privacy: another study, protecting nobody.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run STUDY, a file or a shipped study such as quickstart, on simulated hospitals; write a report."""
    if resume is not None:
        _refuse_beside_resume(context)
        _show_outcomes(_resumed(resume), resume, as_json)
        return
    if study is None:
        raise InputError(f"run: give a study file, one of {', '.join(shipped_studies())}, or --resume DIR")
    chosen = _chosen_study(study, no_privacy)
    options = RunOptions(
        study=chosen,
        out=new_run_folder(chosen, out),
        data=data,
        sites=sites,
        partition=partition,
        workers=workers,
        threads=threads,
        engine=engine,
        device=device,
        seeds=parse_seeds(seeds) if seeds is not None else (),
        command=shlex.join([NAME, *sys.argv[1:]]),
    )
    _show_outcomes(_run(options), options.out, as_json)


@app.command(epilog=f"Example: {NAME} compare runs/quickstart-a runs/quickstart-b --out comparison.html")
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of finished runs.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The report to write.")] = Path("comparison.html"),
    as_json: JsonOption = False,
) -> None:
    """Write one report of the finished runs in the folders RUN."""
    from simulations.commands.compare import compare_runs, print_comparison

    comparison = compare_runs(runs, out)
    _show(comparison, as_json, lambda console: print_comparison(comparison, console))


@app.command(epilog=f"Example: {NAME} validate my-study.yaml")
def validate(study: StudyArgument, as_json: JsonOption = False) -> None:
    """Check STUDY, a file or a shipped study: every problem with its line, and what to do."""
    try:
        found = load_study(find_study(study))
    except InputError as error:  # no such file, or a file that is no valid study
        if as_json:
            _print_json({"valid": False, "study_id": None, "name": None, "private": None, "problems": list(error.problems)})
        raise
    facts = {"valid": True, "study_id": found.id, "name": found.name, "private": found.is_private, "problems": []}
    _show(facts, as_json, lambda console: console.print(f"{found.name} is a valid study, id {found.id}", highlight=False, soft_wrap=True))
    if not found.is_private:
        _warn_no_privacy(found, "privacy: none")


@app.command(epilog=f"Example: {NAME} describe scans.npz --study chest-xray --out scans.html")
def describe(
    data: Annotated[str, typer.Argument(metavar="DATA", help="An npz file, a folder with one folder per class, or phantom.")],
    study: Annotated[
        str | None, typer.Option(metavar="STUDY", help="Read the data as this study does.", autocompletion=_complete_study)
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a page with thumbnails.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what is in DATA, an npz file, a folder of classes, or phantom: patients, images of each, classes, sizes."""
    from simulations.commands.describe import describe_data, print_description

    facts = describe_data(data, load_study(find_study(study)) if study else None, out)
    _show(facts, as_json, lambda console: print_description(facts, console))


@app.command(epilog=f"Example: {NAME} plan quickstart --patients 400")
def plan(
    study: StudyArgument,
    patients: Annotated[int | None, typer.Option(min=1, help="Training patients of a site, for the size of a step.")] = None,
    sites: Annotated[int | None, typer.Option(min=1, help="Sites, for the error of the evaluation (default: min_sites).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Work out noise and ε of STUDY, a file or a shipped study, without training."""
    from simulations.commands.plan import plan_study, print_plan

    chosen = _chosen_study(study, no_privacy=False)
    facts = plan_study(chosen, patients, sites)
    _show(facts, as_json, lambda console: print_plan(facts, console))


@app.command(epilog=f"Example: {NAME} audit quickstart --epsilon 1")
def audit(
    study: StudyArgument,
    data: DataOption = None,
    epsilon: Annotated[float | None, typer.Option(min=0.1, help="Audit the same study with the noise of this ε, not its own.")] = None,
    canaries: Annotated[int | None, typer.Option(min=16, help="Canary patients, default as many as the claim needs.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes side by side.")] = 2,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each process.")] = 1,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the report, default audits/<study>-<time>.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Attack the training of STUDY, a file or a shipped study, and try to prove that its ε is wrong; write a report."""
    from simulations.audit.run import AuditOptions
    from simulations.audit.verdict import check
    from simulations.commands.audit import print_audit, run_audit

    chosen, command = load_study(find_study(study)), shlex.join([NAME, *sys.argv[1:]])
    result, facts = run_audit(AuditOptions(chosen, data, epsilon, canaries, workers, threads, command), out)
    _show(facts, as_json, lambda console: print_audit(facts, console))
    check(result.verdict, result.design, result.private.bound)


@app.command(epilog=f"Example: {NAME} federation")
def federation(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of training.")] = 3,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder, default runs/federation-<time>.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the real thing on this machine: a coordinator and three hospitals as processes, from the first key to a trained model."""
    from simulations.commands.federation import print_demo, run_demo

    facts = run_demo(out, rounds)
    _show(facts, as_json, lambda console: print_demo(facts, console))


@app.command(epilog=f"Example: {NAME} doctor")
def doctor(as_json: JsonOption = False) -> None:
    """Look at this machine and say what is missing."""
    from simulations.doctor import as_facts, examine, print_checks

    checks = examine()
    _show(as_facts(checks), as_json, lambda console: print_checks(checks, console))
    if not all(check.is_good for check in checks):
        raise typer.Exit(ExitCode.BAD_INPUT)


def _chosen_study(text: str, no_privacy: bool) -> Study:
    study = load_study(find_study(text))
    if no_privacy and study.is_private:
        study = study.with_changes({"privacy": "none"})
        _warn_no_privacy(study, "--no-privacy makes another study of it")
    elif not study.is_private:
        _warn_no_privacy(study, "privacy: none")
    return study


def _warn_no_privacy(study: Study, why: str) -> None:
    typer.secho(f"NO PRIVACY: {study.name} protects no patient ({why}, id {study.id[:8]})", fg="white", bg="red", bold=True, err=True)


def _refuse_beside_resume(context: typer.Context) -> None:
    """A resumed run keeps its own study and options."""
    given = [name for name in context.params if _was_typed(context, name)]
    others = sorted(set(given) - {"resume", "as_json"})
    if others:
        names = ", ".join("STUDY" if name == "study" else f"--{name.replace('_', '-')}" for name in others)
        raise InputError(f"--resume: the run keeps its own options; leave out {names}")


def _was_typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _run(options: RunOptions) -> list[RunOutcome]:
    def work(listener: Listener) -> list[RunOutcome]:
        warm_up(options.study.is_private)
        from simulations.run import run_study

        return run_study(options, (listener,))

    return _interruptible(work, options.out)


def _resumed(folder: Path) -> list[RunOutcome]:
    if not folder.is_dir():
        raise InputError(f"--resume {folder}: there is no such folder; give the folder that the interrupted run named")

    def work(listener: Listener) -> list[RunOutcome]:
        from simulations.run import resume_study

        return resume_study(folder, (listener,))

    return _interruptible(work, folder)


def _interruptible(work: Callable[[Listener], list[RunOutcome]], folder: Path) -> list[RunOutcome]:
    """Do `work` with progress on stderr. Raises RunInterrupted, which says how to go on, after Ctrl-C or a polite kill."""
    from simulations.progress import show_progress

    try:
        with _kill_is_interrupt(), show_progress() as listener:
            return work(listener)
    except KeyboardInterrupt as error:
        if not any((folder / name).exists() for name in ("request.json", "seeds.json")):
            raise RunInterrupted("interrupted before the run began; start it again") from error
        raise RunInterrupted(f"interrupted; continue with: {shlex.join([NAME, 'run', '--resume', str(folder)])}") from error


@contextmanager
def _kill_is_interrupt() -> Iterator[None]:
    """Let SIGTERM stop a run as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _show_outcomes(outcomes: list[RunOutcome], folder: Path, as_json: bool) -> None:
    from simulations.summary import print_summary, run_summary

    summary = run_summary(outcomes, folder)
    _show(summary, as_json, lambda console: print_summary(summary, outcomes, console))


def _show(facts: dict[str, Any], as_json: bool, draw: Callable[[Console], None]) -> None:
    """The facts as one JSON object, or drawn for a person; both on stdout."""
    if as_json:
        _print_json(facts)
        return
    from rich.console import Console

    draw(Console())


def _print_json(facts: dict[str, Any]) -> None:
    print(json.dumps(facts, ensure_ascii=False, allow_nan=False))


if __name__ == "__main__":
    sys.exit(main())

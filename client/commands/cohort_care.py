# SPDX-License-Identifier: Apache-2.0
"""Commands of hospital IT about a cohort that is built: check, exclude, include, exclusions, who-trained."""

from __future__ import annotations

import getpass
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from client.cohorts.verdict import Verdict
    from client.cohorts.who_trained import Answer, RunUse
    from client.site_home import SiteHome
    from common.crypto.secrets import Secret
    from common.study import Study

HomeOption = Annotated[Path | None, typer.Option("--home", metavar="DIR", help="The site's folder; default WARDROUND_SITE, else here.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, for machines.")]
ByOption = Annotated[str | None, typer.Option("--by", metavar="NAME", help="Who decides (default: the user's name).")]
PatientsArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[PATIENT]...", help="Patients, by the hospital's id or by pseudonym.")
]
FileOption = Annotated[Path | None, typer.Option("--file", metavar="FILE", help="A file with one patient on each line.")]


def register(group: typer.Typer) -> None:
    """Add the commands to `cohort`."""
    group.command(epilog="Example: wardround-client cohort check /srv/wardround/chest --study chest.yaml --page check.html")(check)
    group.command(epilog="Example: wardround-client cohort exclude 4711 --home /srv/wardround")(exclude)
    group.command(epilog="Example: wardround-client cohort include 4711 --home /srv/wardround")(include)
    group.command(epilog="Example: wardround-client cohort exclusions --home /srv/wardround")(exclusions)
    group.command("who-trained", epilog="Example: wardround-client cohort who-trained 4711 --home /srv/wardround")(who_trained)


def check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The cohort's folder, as `cohort build` made it.")],
    study: Annotated[Path | None, typer.Option("--study", metavar="STUDY.yaml", help="Check what this study asks for, too.")] = None,
    page: Annotated[
        Path | None, typer.Option("--page", metavar="FILE", help="Write a page with thumbnails. It shows patients' images.")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a cohort before a study uses it: duplicates, splits, labels, sizes, identity, encoding. Exit code 2 when there is an error.

    The verdict is written to DIR/checks.json. Stopped, it goes on where it was. Without a site's folder seal and split are not checked.
    """
    from client.cohorts.check import Order, check_cohort
    from client.cohorts.page import write_page
    from common.errors import ExitCode

    order = Order(folder, None if study is None else _study(study), _secret_if_there(home))
    with _progress() as progress:
        verdict = check_cohort(order, progress)
    written = verdict.write(folder)
    if page is not None:
        write_page(page, folder, verdict)
    if as_json:
        print(json.dumps(json.loads(verdict.as_json()), ensure_ascii=False))
    else:
        _show_verdict(verdict, written, page)
    if not verdict.passed:
        raise typer.Exit(ExitCode.BAD_INPUT)


def exclude(
    patients: PatientsArgument = None, file: FileOption = None, by: ByOption = None, home: HomeOption = None, as_json: JsonOption = False
) -> None:
    """Exclude patients from training and measurement, from the next round on. What was spent on them stays spent; nothing is unlearnt.

    Only pseudonyms are kept. Nobody outside is told.
    """
    from client.cohorts.exclusions import exclude as put_down

    site = _site(home)
    count = put_down(site.folder, _pseudonyms(site, patients, file), by or getpass.getuser(), time.time())
    _say({"excluded": count}, as_json, f"{count} patients are excluded now who were not before; it counts from the next message on")


def include(
    patients: PatientsArgument = None, file: FileOption = None, by: ByOption = None, home: HomeOption = None, as_json: JsonOption = False
) -> None:
    """Take an exclusion back: the patient may be drawn again, from the next round on."""
    from client.cohorts.exclusions import include as take_back

    site = _site(home)
    count = take_back(site.folder, _pseudonyms(site, patients, file), by or getpass.getuser(), time.time())
    _say({"included": count}, as_json, f"{count} exclusions are taken back")


def exclusions(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Who is excluded, by pseudonym: since when, and who decided."""
    from client.cohorts.exclusions import read_exclusions

    known = read_exclusions(_site(home).folder)
    standing = [known.since(patient) for patient in sorted(known.now)]
    if as_json:
        print(json.dumps({"excluded": [one.model_dump(mode="json") for one in standing if one is not None]}, ensure_ascii=False))
        return
    console = _console()
    console.print(f"{len(standing):,} patients are excluded")
    for one in standing:
        if one is not None:
            console.print(f"  {one.patient}  since {_when(one.time)}, by {one.by}", markup=False)


def who_trained(
    patient: Annotated[str, typer.Argument(metavar="PATIENT", help="The patient, by the hospital's id or by pseudonym.")],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Which models used a patient: study, run, rounds, when, and whether to train, to measure, or not because they were excluded."""
    from client.cohorts.who_trained import who_trained as find

    answer = find(_site(home), patient)
    if as_json:
        print(json.dumps(asdict(answer), ensure_ascii=False))
    else:
        _show_answer(answer)


def _site(home: Path | None) -> SiteHome:
    from client.site_home import SiteHome

    return SiteHome.find(home)


def _secret_if_there(home: Path | None) -> Secret | None:
    """The key of the site, if a site's folder was named or is here."""
    from client.site_home import SiteHome
    from common.crypto.secrets import Secret

    site = SiteHome.at(home)
    if home is None and not site.config.exists():
        return None
    return Secret.read(SiteHome.find(home).key)


def _study(path: Path) -> Study:
    from common.study_file import load_study

    return load_study(path)


def _pseudonyms(site: SiteHome, patients: list[str] | None, file: Path | None) -> list[str]:
    """The patients that were named, as pseudonyms. Raises InputError when there is none."""
    from client.pseudonyms import Pseudonyms
    from common.crypto.secrets import Secret
    from common.errors import InputError

    names = list(patients or [])
    if file is not None:
        try:
            names += [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--file {file}: cannot be read ({error}); give a text file in UTF-8 with one patient on each line") from error
    if not names:
        raise InputError("name at least one patient, or give --file FILE with one patient on each line")
    pseudonyms = Pseudonyms(Secret.read(site.key))
    return [pseudonyms.of(name) for name in names]


def _show_verdict(verdict: Verdict, written: Path, page: Path | None) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("check", "result", ""):
        table.add_column(column, no_wrap=column != "")
    colours = {"error": "red", "warning": "yellow", "not made": "dim"}
    for one in verdict.checks:
        texts = [one.not_made] if one.not_made else [f"{finding.text}; {finding.remedy}" for finding in one.findings]
        table.add_row(one.name, Text(one.state, style=colours.get(one.state, "green")), Text("\n".join(texts)))
    console = _console()
    console.print(table)
    console.print(
        f"{'Usable' if verdict.passed else 'Not usable yet'}: {verdict.summary()}. Verdict: {written}", markup=False, soft_wrap=True
    )
    if page is not None:
        console.print(f"Page: {page}. It shows images of patients: keep it at this site.", markup=False, soft_wrap=True)


def _show_answer(answer: Answer) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from client.cohorts.who_trained import ranges

    console = _console()
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("study", "id", "run", "used", "rounds", "when"):
        table.add_column(column, no_wrap=True)
    for use in answer.uses:
        table.add_row(use.study, use.study_id[:12], use.run_id[:8], use.use, ranges(use.rounds), _period(use))
    if answer.uses:
        console.print(table)
        console.print("trained: could be drawn in these rounds. excluded: was on the list, and took no part.")
    elif not answer.unknown:
        console.print(f"No model used this patient; {answer.in_cohorts} approved studies have them in their cohort.")
    for text in answer.unknown:
        console.print(f"Not known, the study's data cannot be looked at: {text}", markup=False, soft_wrap=True)
    if answer.excluded_since is not None:
        console.print(f"Excluded since {_when(answer.excluded_since)}.")


def _period(use: RunUse) -> str:
    if use.first is None or use.last is None:
        return "not known"
    first, last = _when(use.first), _when(use.last)
    return first if first == last else f"{first} to {last}"


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr for each thing that is done; without a terminal, nothing."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        yield show


def _say(facts: dict[str, int], as_json: bool, text: str) -> None:
    if as_json:
        print(json.dumps(facts))
    else:
        _console().print(text, soft_wrap=True)


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)

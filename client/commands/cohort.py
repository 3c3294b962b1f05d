# SPDX-License-Identifier: Apache-2.0
"""Commands of hospital IT: a cohort from the hospital's own files."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import click
import typer

from client.commands import cohort_care

if TYPE_CHECKING:
    from client.cohorts.build import BuildReport
    from client.cohorts.ingest import PixelSettings

cohort_app = typer.Typer(help="The hospital's own data: build a cohort from its files, and what follows from it.", no_args_is_help=True)

HomeOption = Annotated[Path | None, typer.Option("--home", metavar="DIR", help="The site's folder; default WARDROUND_SITE, else here.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, for machines.")]
_LAYOUTS = ("auto", "patient-folders", "table", "dicom", "nifti", "npz", "features")
_AXES = ("axial", "coronal", "sagittal")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    cohort_care.register(cohort_app)
    app.add_typer(cohort_app, name="cohort")


@cohort_app.callback()
def _group() -> None:
    """The hospital's own data: build a cohort from its files, and what follows from it."""


@cohort_app.command(
    epilog="Example: wardround-client cohort build --images /export/chest --labels labels.csv --id-column pid --label-column finding "
    "--out /srv/wardround/chest"
)
def build(
    images: Annotated[Path, typer.Option(metavar="PATH", help="Folder of images, or one npz file, or one CSV file of features.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the cohort; it must not be there yet.")],
    labels: Annotated[Path | None, typer.Option(metavar="FILE.csv", help="Table with labels, by patient, by file, or both.")] = None,
    id_column: Annotated[str | None, typer.Option(metavar="NAME", help="Column of the table with the patient's id.")] = None,
    path_column: Annotated[str | None, typer.Option(metavar="NAME", help="Column of the table with the file's path.")] = None,
    label_column: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Column with a label; repeat for several.")] = None,
    column: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Further column that may enter (sex, age band, scanner).")
    ] = None,
    split_column: Annotated[str | None, typer.Option(metavar="NAME", help="Column with train, validation or test.")] = None,
    layout: Annotated[str, typer.Option(click_type=click.Choice(_LAYOUTS), help="How the files lie; auto looks.")] = "auto",
    size: Annotated[int, typer.Option(min=16, max=4096, metavar="PIXELS", help="Largest height and width that is kept.")] = 256,
    bits: Annotated[str, typer.Option(click_type=click.Choice(("8", "16")), help="Bits of a stored pixel.")] = "8",
    window: Annotated[
        str | None, typer.Option(metavar="C,W", help="Window for all images (centre, width); default each file's own.")
    ] = None,
    axis: Annotated[str, typer.Option(click_type=click.Choice(_AXES), help="NIfTI: slices along this axis.")] = "axial",
    middle_slice: Annotated[bool, typer.Option("--middle-slice", help="NIfTI: only the slice in the middle of a volume.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, max=256, metavar="N", help="Processes that decode; default one for each core.")
    ] = None,
    parquet: Annotated[bool, typer.Option("--parquet", help="Write the manifest as Parquet.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a cohort: small images in one array, labels, and pseudonyms in place of patients' ids. Run again, it goes on where it stopped.

    Every file that does not enter is named with its reason in DIR/ingest/refused.csv. Exit code 2 when nothing can be used.
    """
    from client.cohorts.build import BuildOptions, default_workers
    from client.cohorts.build import build as build_cohort
    from client.cohorts.tables import Listed
    from client.site_home import SiteHome
    from common.crypto.secrets import Secret

    options = BuildOptions(
        images=images,
        out=out,
        labels=labels,
        listed=Listed(id_column, path_column, tuple(label_column or ()), split_column, tuple(column or ())),
        layout=_layout(layout),
        pixels=_pixel_settings(size, bits, window, axis, middle_slice),
        workers=workers or default_workers(),
        parquet=parquet,
    )
    secret = Secret.read(SiteHome.find(home).key)
    with _progress_bar() as progress:
        report = build_cohort(options, secret, progress)
    if as_json:
        print(json.dumps(_facts(report, out), ensure_ascii=False))
    else:
        _show(report, out)


def _layout(name: str) -> Any:
    from client.cohorts.sources import Layout

    return name if name in get_args(Layout) else None


def _pixel_settings(size: int, bits: str, window: str | None, axis: str, middle: bool) -> PixelSettings:
    from client.cohorts.ingest import PixelSettings
    from common.data.decode import Slices

    axes: dict[str, Any] = {name: name for name in _AXES}
    return PixelSettings(size, 16 if bits == "16" else 8, None if window is None else _window(window), Slices(axes[axis], middle))


def _window(text: str) -> Any:
    from common.data.decode import Window
    from common.errors import InputError

    try:
        centre, width = (float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f'--window: is "{text[:40]}"; write centre and width with a comma, such as 40,400') from error
    return Window(centre, width)


@contextmanager
def _progress_bar() -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr; without a terminal, nothing."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("Files"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("files", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _facts(report: BuildReport, out: Path) -> dict[str, Any]:
    cohort = report.cohort
    return {
        "cohort": str(out),
        "kind": cohort.kind,
        "layout": report.layout,
        "rows": cohort.rows,
        "patients": cohort.patients,
        "size_pixels": None if cohort.images is None else cohort.images.size_pixels,
        "channels": None if cohort.images is None else cohort.images.channels,
        "bits": None if cohort.images is None else cohort.images.bits,
        "label_columns": list(cohort.label_columns),
        "columns": dict(cohort.columns),
        "decoded": report.decoded,
        "kept_from_earlier": report.kept,
        "seconds": round(report.seconds, 3),
        "refused": [{"file": name, "reason": reason} for name, reason in report.refused],
    }


def _show(report: BuildReport, out: Path) -> None:
    from rich.console import Console

    from client.cohorts.build import MOST_NAMED
    from client.cohorts.layout import refused_path

    console, cohort = Console(highlight=False, soft_wrap=True), report.cohort
    images = cohort.images
    what = (
        "rows"
        if images is None
        else f"images of {images.size_pixels} x {images.size_pixels} pixels ({images.channels} x {images.bits} bits)"
    )
    kept = f"; {report.kept:,} files were decoded by an earlier start" if report.kept else ""
    console.print(f"{out}: {cohort.rows:,} {what} of {cohort.patients:,} patients, in {report.seconds:.1f} s{kept}", markup=False)
    for remark in cohort.remarks:
        console.print(f"  {remark}", markup=False)
    if not report.refused:
        return
    console.print(f"{len(report.refused):,} did not enter; each is named in {refused_path(out)}", markup=False)
    for reason, count in report.reasons[:MOST_NAMED]:
        console.print(f"  {count:>7,}  {reason}", markup=False)
    for name, reason in report.refused[:MOST_NAMED]:
        console.print(f"  {name}: {reason}", markup=False)

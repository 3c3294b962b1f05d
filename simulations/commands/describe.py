# SPDX-License-Identifier: Apache-2.0
"""`describe` for the command line: finds out how to read a data set, reads it, and prints what is in it."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.errors import InputError
from common.files import cache_folder
from common.study import Data, Study

_PHANTOM = "phantom"
_MEDMNIST_MEMBER = "train_images.npy"


def describe_data(where: str, study: Study | None, page: Path | None) -> dict[str, Any]:
    """Facts about the data at `where`, with warnings; also writes `page`, if given. Raises InputError, DataError."""
    data = study.data if study else _guess(where)
    path = None if data.source == where == _PHANTOM and not Path(where).exists() else Path(where)

    from common.data.store import materialise
    from simulations.describe import describe, write_page

    dataset = materialise(data.model_copy(update={"min_patients": 1}), path, cache_folder())  # few patients are a warning here
    facts = dict(describe(dataset))
    facts["warnings"] = _warnings(facts, data)
    if page is not None:
        write_page(dataset, page)
        facts["page"] = str(page)
    return facts


def print_description(facts: dict[str, Any], console: Console) -> None:
    """Facts as a table; facts within facts are written out with dots."""
    table = Table(show_header=False)
    for key, value in _flat(facts):
        table.add_row(Text(key.replace("_", " ")), Text(_words(key, value)))
    console.print(table)


def _warnings(facts: dict[str, Any], data: Data) -> list[str]:
    """What a study of this data would stumble over."""
    found = [name for name, counts in facts["classes"].items() if counts["images"]]
    warnings = list(facts.pop("remarks"))
    if len(found) < 2:
        warnings.append(f"all images are of one class ({', '.join(found)}); a model learns nothing from one class, check the labels")
    if facts["patients"] < data.min_patients:
        warnings.append(f"{facts['patients']} patients are fewer than data.min_patients: {data.min_patients}; no site could take part")
    return warnings


def _words(key: str, value: Any) -> str:
    """A fact for people: sizes as `32 x 32`, lists a line each."""
    if not isinstance(value, list):
        return str(value)
    return (" x " if key == "image_size" else "\n").join(str(part) for part in value) or "none"


def _flat(facts: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in facts.items():
        rows += _flat(value, f"{prefix}{key}: ") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return rows


def _guess(where: str) -> Data:
    """How data is read that no study describes. Raises InputError when only a study can say it."""
    path = Path(where)
    if where == _PHANTOM and not path.exists():
        return Data()
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise InputError(f"{where}: there is no such file or folder; check the path")
    if not zipfile.is_zipfile(path):
        raise InputError(f"{where}: is neither an npz file nor a folder with one folder per class; name a study that reads it with --study")
    with zipfile.ZipFile(path) as archive:
        return Data(source="medmnist" if _MEDMNIST_MEMBER in archive.namelist() else "npz")


def _folder(path: Path) -> Data:
    labels = tuple(sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")))
    try:
        return Data(source="folder", labels=labels)
    except ValidationError as error:
        raise InputError(f"{path}: needs one folder for each class, at least two; found {len(labels)}") from error

# SPDX-License-Identifier: Apache-2.0
"""What must hold of a table before anybody trains on it, and what is worth a warning.

Every problem of a table is found before anything is raised, and each message says where it is and what to do. Rows are named by
number (from 0, in the order of the source), at most `MOST_NAMED` of them; patient ids are never named, so a message can be shown.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from common import study
from common.data.blocks import Images, LazyImages, Step, blocks
from common.data.cohort import ByteArray, Cohort, IntArray, Split
from common.data.resize import size_problem
from common.data.sources import RawTable
from common.errors import DataError

MOST_NAMED = 5
DROPPED = -1


def checked(table: RawTable, data: study.Data) -> RawTable:
    """The table with uint8 images [N, H, W] or [N, H, W, 3] as the study wants, labels as class numbers and ids as strings.

    Images with a label that is not listed are gone if the study says `other_labels: drop`. Raises DataError with all problems.
    """
    classes, label_problems = class_numbers(table.labels, data)
    ids, id_problems = usable_ids(table)
    keep = (classes != DROPPED) & complete_rows(table)
    problems = length_problems(table) + label_problems + id_problems
    if not problems:  # only then can rows be matched to patients
        problems += patient_count_problems(len(np.unique(ids[keep])), data) + split_problems(ids, table.split)
    images, image_problems = usable_images(table.images, data) if data.kind == "image" else (table.images, feature_problems(table, data))
    if problems or image_problems:
        raise DataError(
            [f"{table.where}: {_worded(problem, is_table=table.features is not None)}" for problem in problems + image_problems]
        )
    remarks = table.remarks + _turned_grey(table.images, data, int(np.count_nonzero(keep))) + _left_out(table)
    return _rows(replace(table, images=images, labels=classes, patient_ids=ids, remarks=remarks), keep)


def _worded(text: str, *, is_table: bool) -> str:
    """A sentence about images, about rows if the data is a table."""
    return re.sub(r"\bimage(s?)\b", r"row\1", text) if is_table else text


def _rows(table: RawTable, keep: npt.NDArray[np.bool_]) -> RawTable:
    if keep.all():
        return table
    return replace(
        table,
        images=table.images.take(keep) if isinstance(table.images, LazyImages) else table.images[keep],
        labels=table.labels[keep],
        patient_ids=None if table.patient_ids is None else table.patient_ids[keep],
        split=None if table.split is None else table.split[keep],
        columns={name: values[keep] for name, values in table.columns.items()},
        features=None if table.features is None else table.features[keep],
    )


def complete_rows(table: RawTable) -> npt.NDArray[np.bool_]:
    """Which rows [N] stay: all but those of a table in which a value is missing whose column says `missing: drop`."""
    if table.features is None:
        return np.ones(len(table.labels), dtype=np.bool_)
    complete: npt.NDArray[np.bool_] = np.logical_not(np.isnan(table.features).any(axis=1))
    return complete


def feature_problems(table: RawTable, data: study.Data) -> list[str]:
    """Features that are not there, or not those of the study."""
    if table.features is None:
        return ["these are images, the study says data.kind: tabular; take a table, or a study for images"]
    if table.features.shape[1:] != (len(data.feature_names),):
        return [f"features have shape {list(table.features.shape)}, the study has {len(data.feature_names)} features; read the table anew"]
    return []


def _left_out(table: RawTable) -> tuple[str, ...]:
    """Says how many rows of a table go because of a missing value."""
    left_out = np.count_nonzero(~complete_rows(table))
    return (f"{left_out} of {len(table.labels)} rows miss a value whose column says missing: drop, and are left out",) if left_out else ()


def length_problems(table: RawTable) -> list[str]:
    """Arrays that do not have one entry for each image."""
    count = len(table.images)
    others = {"labels": table.labels, "patient ids": table.patient_ids, "split": table.split, **table.columns}
    return [
        f"{count} images but {len(values)} {name}; every array needs one entry for each image"
        for name, values in others.items()
        if values is not None and len(values) != count
    ]


def class_numbers(labels: npt.NDArray[Any], data: study.Data) -> tuple[IntArray, list[str]]:
    """Class numbers int64 [N] in the order of `data.labels` (`DROPPED` for those to leave out), and the problems."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    nothing = np.full(len(labels), DROPPED, dtype=np.int64)
    if labels.ndim != 1:
        return nothing, [f"labels have shape {list(labels.shape)}; each image needs one label (several findings at once are not supported)"]
    if labels.dtype.kind not in "biuU":
        return nothing, [f"labels are {labels.dtype}; they have to be whole numbers or the names in data.labels"]
    listed, owner = _listed_labels(labels, data)
    matches = labels[:, None] == listed  # [N, listed]
    known = matches.any(axis=1)
    if data.other_labels == "refuse" and not known.all():
        return nothing, [_other_labels(labels, known, listed)]
    if not known.any():
        return nothing, [f"no image has one of the labels {', '.join(map(str, listed))}; check data.labels and data.label_values"]
    return np.where(known, owner[matches.argmax(axis=1)], DROPPED).astype(np.int64), []


def _listed_labels(labels: npt.NDArray[Any], data: study.Data) -> tuple[npt.NDArray[Any], IntArray]:
    """Every label that may stand in the source, [L], and the class number int64 [L] that it means."""
    if labels.dtype.kind == "U":
        return np.array(data.labels), np.arange(len(data.labels))
    groups = data.label_groups or tuple((value,) for value in data.label_values or range(len(data.labels)))
    return np.array([value for group in groups for value in group]), np.repeat(np.arange(len(groups)), [len(group) for group in groups])


def _other_labels(labels: npt.NDArray[Any], known: npt.NDArray[np.bool_], listed: npt.NDArray[Any]) -> str:
    found = ", ".join(str(value) for value in np.unique(labels[~known])[:MOST_NAMED])
    key = "data.labels" if labels.dtype.kind == "U" else "data.label_values"
    return (
        f"{np.count_nonzero(~known)} images ({named_rows(~known)}) have a label outside the list: {found}, where "
        f"{', '.join(map(str, listed))} are listed; correct {key}, or say data.other_labels: drop to leave these images out"
    )


def named_rows(chosen: npt.NDArray[np.bool_]) -> str:
    """`row 3` or `rows 3, 4, …`: the first of the chosen rows."""
    rows = np.flatnonzero(chosen)
    text = ", ".join(str(row) for row in rows[:MOST_NAMED])
    return f"row{'s' if len(rows) > 1 else ''} {text}{', …' if len(rows) > MOST_NAMED else ''}"


def usable_images(images: Images, data: study.Data) -> tuple[Images, list[str]]:
    """Images in the study's channels, and the problems of type, shape, size and content."""
    if isinstance(images, np.ndarray) and images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    elif isinstance(images, np.ndarray) and images.ndim == 4 and images.shape[1] == 1:
        images = images[:, 0]
    problems = _shape_problems(images, data)
    problems += _content_problems(images) if images.ndim >= 3 else []
    if problems:
        return np.empty(0, np.uint8), problems
    return _in_channels(images, data.channels)


def _shape_problems(images: Images, data: study.Data) -> list[str]:
    """Wrong type, wrong number of axes, or a size that cannot be used."""
    problems = []
    if images.dtype != np.uint8:
        problems.append(f"images are {images.dtype}; bring them to 0…255 with a window of your choice and store them as uint8")
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[-1] != 3):
        problems.append(f"images have shape {list(images.shape)}; they have to be [N, H, W] or [N, H, W, 3]")
    elif len(images) == 0:
        problems.append("there are no images")
    elif text := size_problem(images.shape[1], images.shape[2], data.image_size):
        problems.append(text)
    return problems


def _content_problems(images: Images) -> list[str]:
    """Images with values that are no numbers, and images of one value only."""
    if images.dtype.kind not in "biuf" or images.size == 0:
        return []
    problems = []
    found = [_broken_and_constant(block.reshape(len(block), -1)) for block in blocks(images)]
    broken, constant = (np.concatenate(flags) for flags in zip(*found, strict=True))
    if broken.any():
        problems.append(f"{np.count_nonzero(broken)} images hold NaN or infinity ({named_rows(broken)}); repair them or take them out")
    if constant.any():
        problems.append(
            f"{np.count_nonzero(constant)} images have one value only ({named_rows(constant)}); they show nothing, take them out"
        )
    return problems


def _broken_and_constant(block: npt.NDArray[Any]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """For each image of a block [n, values]: whether it holds a value that is no number, and whether it holds one value only."""
    broken = ~np.isfinite(block).all(axis=1) if block.dtype.kind == "f" else np.zeros(len(block), bool)
    return broken, (block == block[:, :1]).all(axis=1)


def _in_channels(images: Images, channels: int) -> tuple[Images, list[str]]:
    """Grey repeated in three channels, or colour reduced to grey when it is none."""
    if images.ndim == 3:
        return (images if channels == 1 else _changed(images, _in_three, 3)), []
    if channels == 3:
        return images, []
    coloured = np.concatenate([_is_coloured(block) for block in blocks(images)])
    if coloured.any():
        return images, [
            f"{np.count_nonzero(coloured)} images are in colour ({named_rows(coloured)}) and data.channels is 1; "
            "set data.channels: 3 with a model that takes colour, or convert the images to grey yourself"
        ]
    return _changed(images, _first_channel, 1), []


def _changed(images: Images, step: Step, channels: int) -> Images:
    return images.then(step, channels) if isinstance(images, LazyImages) else step(images)


def _in_three(images: npt.NDArray[Any]) -> ByteArray:
    return np.repeat(images[..., None], 3, axis=3)


def _first_channel(images: npt.NDArray[Any]) -> ByteArray:
    return np.ascontiguousarray(images[..., 0])


def _is_coloured(images: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    coloured: npt.NDArray[np.bool_] = ((images[..., 0] != images[..., 1]) | (images[..., 0] != images[..., 2])).any(axis=(1, 2))
    return coloured


def _turned_grey(images: Images, data: study.Data, kept: int) -> tuple[str, ...]:
    """Says that images with three equal channels were taken as grey; nothing of them is lost, but somebody may have expected colour."""
    if data.channels != 1 or images.ndim != 4 or images.shape[-1] != 3:
        return ()
    return (
        f"{kept} images are stored with three colour channels that are equal, and were read as grey (data.channels: 1); "
        "if they should have colour, their export lost it",
    )


def usable_ids(table: RawTable) -> tuple[npt.NDArray[np.str_], list[str]]:
    """Patient ids as strings [N], made from row numbers where each image is a patient, and the problems."""
    ids = table.patient_ids
    if ids is None:
        return np.array([f"image-{row:08d}" for row in range(len(table.images))]), []
    if ids.ndim != 1 or ids.dtype.kind not in "iuU":
        return np.empty(0, np.str_), [
            f"patient ids are {ids.dtype} of shape {list(ids.shape)}; they have to be one text or whole number for each image"
        ]
    text = np.char.strip(ids.astype(np.str_))
    empty = text == ""
    problems = (
        [f"{np.count_nonzero(empty)} images have an empty patient id ({named_rows(empty)}); give each its patient"] if empty.any() else []
    )
    return text, problems


def patient_count_problems(patients: int, data: study.Data) -> list[str]:
    """Fewer patients than `data.min_patients`."""
    if patients >= data.min_patients:
        return []
    return [f"{patients} patients, but data.min_patients is {data.min_patients}; add patients or lower data.min_patients"]


def split_problems(ids: npt.NDArray[np.str_], split: ByteArray | None) -> list[str]:
    """Patients with images in two parts of a split: the model would be tested on patients it has seen."""
    if split is None:
        return []
    pairs = np.unique(np.stack([np.unique(ids, return_inverse=True)[1], split.astype(np.int64)]), axis=1)
    torn = np.count_nonzero(np.bincount(pairs[0]) > 1)
    if not torn:
        return []
    return [f"{torn} patients have images in two parts of the split (train, validation, test); put all images of a patient into one part"]


def cohort_problems(cohort: Cohort, data: study.Data, site: str) -> list[str]:
    """Why a site cannot take part: too few training patients. Empty when it can."""
    patients = cohort.patient_count(Split.TRAIN)
    if patients >= data.min_patients:
        return []
    return [
        f"{site}: {patients} training patients, but data.min_patients is {data.min_patients}; "
        "give the site more patients (fewer sites, less skew) or lower data.min_patients"
    ]


def cohort_warnings(cohort: Cohort) -> list[str]:
    """What a site can live with but somebody should know: one class only, nobody to test on."""
    names = cohort.dataset.label_names
    warnings = []
    for split, use in ((Split.TRAIN, "training"), (Split.TEST, "test")):
        present = np.unique(cohort.dataset.labels[cohort.rows_in(split)])
        if len(present) == 0:
            warnings.append(f"no {use} patients")
        elif len(present) == 1:
            consequence = (
                "the site trains, but alone it learns nothing" if split is Split.TRAIN else "the site is left out of per-site AUROC"
            )
            text = f"all {use} images are of one class ({names[present[0]]}): {consequence}"
            warnings.append(_worded(text, is_table=cohort.dataset.features is not None))
    return warnings

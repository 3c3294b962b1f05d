# SPDX-License-Identifier: Apache-2.0
"""FLamby's rows and splits of the four hospitals' tables, written as copies with one more column, `split`.

FLamby (Ogier du Terrail et al. 2022, NeurIPS Datasets and Benchmarks; `fed_heart_disease`) leaves out slope, ca and thal and then every
row that misses a value, and splits the rest of each hospital by scikit-learn's `train_test_split` with 66 % to train, stratified by label
where each label has more than two rows, seed 43. Other seeds give the random splits.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from common.data.csv_table import files_of
from common.files import write_atomic

FLAMBY_SEED = 43
TRAIN_SHARE = 0.66
USED_COLUMNS = 10
FEWEST_TO_STRATIFY = 3


def write_split(source: Path, folder: Path, seed: int) -> Path:
    """Copies of the files of `source` in `folder`, each row with `train` or `test` at its end; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in files_of(source):
        rows = [line.split(",") for line in file.read_text(encoding="utf-8").splitlines() if line]
        words = split_words(rows, seed)
        write_atomic(folder / file.name, "".join(",".join([*row, word]) + "\n" for row, word in zip(rows, words, strict=True)))
    return folder


def split_words(rows: Sequence[Sequence[str]], seed: int) -> list[str]:
    """`train` or `test` for each row of one hospital; rows that FLamby leaves out say `train` (no study sees them)."""
    complete = [number for number, row in enumerate(rows) if "?" not in (*row[:USED_COLUMNS], row[-1])]
    labels = np.array([float(rows[number][-1]) > 0 for number in complete], dtype=np.int64)
    held_out = {complete[position] for position in _test_positions(labels, seed)}
    return ["test" if number in held_out else "train" for number in range(len(rows))]


def _test_positions(labels: npt.NDArray[np.int64], seed: int) -> list[int]:
    from sklearn.model_selection import train_test_split

    counts = np.unique(labels, return_counts=True)[1]
    stratify = labels if len(counts) > 1 and counts.min() >= FEWEST_TO_STRATIFY else None
    split = train_test_split(
        np.arange(len(labels)), test_size=1.0 - TRAIN_SHARE, train_size=TRAIN_SHARE, random_state=seed, shuffle=True, stratify=stratify
    )
    return [int(position) for position in split[1]]

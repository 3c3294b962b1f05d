# SPDX-License-Identifier: Apache-2.0
"""Tabular studies for tests, and the shared table of four real hospitals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.study import Study

HEART = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "heart_disease"
COLUMNS: dict[str, Any] = {
    "age": {"kind": "number", "centre": 50, "scale": 10, "limit": 2},
    "sex": {"kind": "flag"},
    "ward": {"kind": "category", "values": ["a", "b", "c"]},
}
"""Five features."""

LINES = (
    "patient_id,age,sex,ward,note,label",
    "p1,60,1,a,x,1",
    "p2,45,0,b,x,0",
    "p3,90,yes,c,x,1",
    "p4,10,No,a,x,0",
)
"""A table of four patients with those columns and one that no study names."""


def table_data(**changes: Any) -> dict[str, Any]:
    """`data` of a tabular study."""
    return {"source": "csv", "kind": "tabular", "columns": COLUMNS, "labels": ["no", "yes"], "min_patients": 2, **changes}


def tabular_study(model: str = "logistic", privacy: Any = "none", **data: Any) -> Study:
    """A small tabular study; `data` has keys of its part of that name."""
    return Study.model_validate({"name": "table", "privacy": privacy, "model": {"name": model}, "data": table_data(**data)})


def write_table(path: Path, lines: tuple[str, ...] = LINES) -> Path:
    """Write a CSV file."""
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path

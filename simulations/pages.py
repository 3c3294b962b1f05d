# SPDX-License-Identifier: Apache-2.0
"""Pages: jinja2 templates to one self-contained HTML file. Everything is escaped unless it is a figure of our own."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from common.files import write_atomic

if TYPE_CHECKING:
    from jinja2 import Environment

DASH = "–"
TEMPLATES = Path(__file__).parent / "templates"


def number(value: float | None, digits: int = 3) -> str:
    """`0.982`; a dash for None."""
    return DASH if value is None else f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 3) -> str:
    """`+0.004` or `−0.004`; a dash for None."""
    return DASH if value is None else f"{value:+.{digits}f}".replace("-", "−")


def plus_minus(mean: float | None, sd: float | None, digits: int = 4) -> str:
    """`0.9926 ± 0.0016`; without a deviation the mean alone."""
    return number(mean, digits) if sd is None else f"{number(mean, digits)} ± {number(sd, digits)}"


def compact(value: float | None) -> str:
    """A setting: at most four significant digits, no trailing zeros (`2.321`, `1e-5`)."""
    return DASH if value is None else re.sub(r"e([+-])0", r"e\1", f"{value:.4g}").replace("e+", "e")


def epsilon(value: float | None) -> str:
    """ε with two decimals, rounded up: a privacy cost is never shown smaller than it is."""
    if value is None:
        return DASH
    return number(math.ceil(value * 100 - 1e-9) / 100, 2) if math.isfinite(value) else "infinite"


def duration(seconds: float) -> str:
    """`48 s`, `3 min 20 s` or `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def yaml_text(content: Mapping[str, object]) -> str:
    """Settings as a study file would have them."""
    import yaml

    return yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True)


def render(template: str, context: Mapping[str, object]) -> str:
    """The page as text. A name that the template uses and `context` lacks raises jinja2.UndefinedError."""
    return _environment().get_template(template).render(context)


def write_page(path: Path, template: str, context: Mapping[str, object]) -> Path:
    """Render and write the page in one step. Raises StorageError when the disk says no."""
    write_atomic(path, render(template, context))
    return path


def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": number, "signed": signed, "compact": compact, "duration": duration, "epsilon": epsilon}
    return environment

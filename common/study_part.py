# SPDX-License-Identifier: Apache-2.0
"""What every part of a file that people write has in common, and how a part says what is wrong with it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    """A part of a study: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def refuse(problems: list[str]) -> None:
    """Raise one ValueError for all problems, a line each: `key: what is wrong; remedy`."""
    if problems:
        raise ValueError("\n".join(problems))

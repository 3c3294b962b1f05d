# SPDX-License-Identifier: Apache-2.0
"""ε by account for the metrics: the exact figures (PLD), from a process of its own, so that the daemon never loads what computes them.

`wardround-client ledger show --json` is run when the ledger has rows that the last answer did not know, at most once a minute, at low
priority. A scrape never waits for it: it gives the last figures, and the row of the ledger that they are of.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

PAUSE_SECONDS: Final = 60.0
TIMEOUT_SECONDS: Final = 600.0
NICENESS: Final = 10
LABEL_CHARACTERS: Final = 8
"""An account's name is random; so much of it is shown, as in `wardround-client budget`."""


@dataclass(frozen=True)
class AccountFigures:
    """What one account has spent on one line, its cap, and what no study was promised yet.

    `cap` and `left` are None where the policy has no cap; ε is infinite where something was unprotected.
    """

    account: str
    line: str
    epsilon: float
    cap: float | None
    left: float | None


@dataclass(frozen=True)
class BudgetFigures:
    """All accounts, as of `row` of the ledger; `behind` its receipts."""

    row: int
    behind: bool
    accounts: tuple[AccountFigures, ...]

    @classmethod
    def of(cls, facts: dict[str, Any]) -> BudgetFigures:
        """From what `ledger show --json` prints. How many patients an account has is left out. Raises KeyError, TypeError, ValueError."""
        return cls(int(facts["rows"]), bool(facts["behind"]), tuple(_figures(account) for account in facts["accounts"]))


@dataclass
class Budget:
    """The newest figures of the site in `folder`. `clock` gives monotonic seconds; `command` prints what `ledger show --json` does."""

    folder: Path
    clock: Callable[[], float] = field(default=time.monotonic)
    command: Sequence[str] = ()
    figures: BudgetFigures | None = None

    def __post_init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[str] | None = None
        self._not_before = float("-inf")

    def want(self, row: int) -> BudgetFigures | None:
        """The figures that are there; new ones are begun when the ledger has gone on to `row`. None before the first ones."""
        is_known = self.figures is not None and self.figures.row == row
        is_busy = self._thread is not None and self._thread.is_alive()
        if not is_known and not is_busy and self.clock() >= self._not_before:
            self._thread = threading.Thread(target=self._compute, name="budget figures", daemon=True)
            self._thread.start()
        return self.figures

    def wait(self, seconds: float) -> None:
        """Until the computation that runs has ended."""
        if self._thread is not None:
            self._thread.join(seconds)

    def stop(self) -> None:
        """End the computation that runs."""
        process = self._process
        if process is not None:
            process.kill()

    def _compute(self) -> None:
        """Ask; when there is no answer, the figures that are there stay."""
        try:
            self.figures = BudgetFigures.of(json.loads(self._asked()))
        except (OSError, ValueError, KeyError, TypeError):
            pass
        finally:
            self._process = None
            self._not_before = self.clock() + PAUSE_SECONDS

    def _asked(self) -> str:
        """What the command prints; nothing when it fails or takes too long. Raises OSError."""
        command = self.command or (sys.executable, "-m", "client.cli", "ledger", "show", str(self.folder), "--json")
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            self._process = process
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, process.pid, NICENESS)
            try:
                return process.communicate(timeout=TIMEOUT_SECONDS)[0]
            except subprocess.TimeoutExpired:
                process.kill()
                return ""


def _figures(account: dict[str, Any]) -> AccountFigures:
    names = (str(account["account"])[:LABEL_CHARACTERS], str(account["line"]))
    cap, left = (None if account[name] is None else float(account[name]) for name in ("cap", "left"))
    if account["epsilon"] is None:
        return AccountFigures(*names, math.inf, cap, None if cap is None else 0.0)
    return AccountFigures(*names, float(account["epsilon"]), cap, left)

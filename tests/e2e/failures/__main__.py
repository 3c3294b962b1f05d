# SPDX-License-Identifier: Apache-2.0
"""`make failures`: cause every fault, then write docs/failures.json and docs/failures.md. Further arguments are pytest's (`-k gateway`)."""

import io
import os
import subprocess
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from tests.support.failure_page import collected, merged, store, stored
from tests.support.failures import ROWS_VARIABLE

FOLDER = Path(__file__).resolve().parent
DOCS = FOLDER.parents[2] / "docs"


class Collector:
    """A plugin of pytest that keeps the names of what it collects."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.names = [item.name for item in session.items]


def scenarios() -> list[str]:
    """The names of all scenarios, in the order in which pytest finds them."""
    collector = Collector()
    options = ["-m", "slow", "--collect-only", "-q", "-W", "ignore::pytest.PytestAssertRewriteWarning", f"--rootdir={FOLDER.parents[2]}"]
    with redirect_stdout(io.StringIO()) as shown:
        code = pytest.main([str(FOLDER), *options], [collector])
    assert code == pytest.ExitCode.OK, shown.getvalue()
    return collector.names


def main(arguments: list[str]) -> int:
    """Run them, write the page; pytest's exit code."""
    names = scenarios()
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, ROWS_VARIABLE: folder}
        command = [sys.executable, "-m", "pytest", str(FOLDER), "-m", "slow", "-v", *arguments]
        code = subprocess.run(command, env=environment, cwd=FOLDER.parents[2], check=False).returncode
        store(merged(stored(DOCS), collected(Path(folder)), names), DOCS)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

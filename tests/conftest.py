# SPDX-License-Identifier: Apache-2.0
"""Fixtures for all tests: one private cache for the session, so that nothing is read from or written to the user's own."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from common import child
from common.files import CACHE_VARIABLE


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    cache = tmp_path_factory.mktemp("cache")
    os.environ[CACHE_VARIABLE] = str(cache)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell starts background jobs so; Ctrl-C is tested
        signal.signal(signal.SIGINT, signal.default_int_handler)
    child.preload(("torch", "common.flower_compat.messages", "flwr.clientapp", "client.cohorts.ingest"))
    yield cache


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real medical data beside the checkout."""
    return Path(__file__).resolve().parents[2] / "shared" / "data"

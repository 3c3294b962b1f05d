# SPDX-License-Identifier: Apache-2.0
"""One SuperLink for all tests of this folder that do not damage it."""

from collections.abc import Iterator

import pytest

from tests.common.flower_compat.loopback_link import LoopbackLink, running_link


@pytest.fixture(scope="session")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackLink]:
    with running_link(tmp_path_factory.mktemp("link")) as started:
        yield started

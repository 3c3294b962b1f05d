# SPDX-License-Identifier: Apache-2.0
"""Somebody with a login on the coordinator's machine, but not the coordinator: Flower's port on loopback is open to them.

Flower's Control calls have no authentication, so runs can be submitted there. None of them is taken for a run of ours: the executor
unpacks no bundle but its own, and the gateway delivers no message of a run that has no signed start.
"""

import time
from pathlib import Path

import pytest

from simulations.processes import wait_until
from tests.common.flower_compat.attacker import APP_PROJECT, APPS, app_bundle, start_run
from tests.support.certificates import tls
from tests.support.federation import HONEST, Federation


def bundle(mark: Path, components: str) -> bytes:
    """An app whose every module leaves a mark when it is imported."""
    code = f"import pathlib\npathlib.Path({str(mark)!r}).write_text('x')\n".encode()
    names = ("server/__init__.py", "server/app.py", "client/__init__.py", "client/app.py", "evil.py", "sitecustomize.py")
    return app_bundle({"pyproject.toml": APP_PROJECT.replace(APPS, components).encode(), "LICENSE": b"x\n", **dict.fromkeys(names, code)})


@pytest.mark.parametrize("app", ["evil:app", "server.app:app"])
def test_code_in_a_bundle_runs_neither_at_the_server_nor_at_a_site(federation: Federation, tmp_path: Path, app: str) -> None:
    mark = tmp_path / "code-was-run"
    context = tls(federation.coordinator / "ca.crt", None)
    hostile = bundle(mark, f'serverapp = "{app}"\nclientapp = "evil:app"')
    before = {name: len(federation.exits(name)) for name in HONEST}
    run_id = start_run(f"https://127.0.0.1:{federation.ports[1]}", context, hostile)
    wait_until(lambda: "finished" in status_of(federation, run_id), "the run has failed", 60)
    log = (federation.coordinator / "logs" / f"run-{run_id}.log").read_text(encoding="utf-8")
    assert not mark.exists()
    assert "FOREIGN_BUNDLE" in log
    assert {name: len(federation.exits(name)) for name in HONEST} == before


def test_an_agents_run_is_taken_by_nobody(federation: Federation, tmp_path: Path) -> None:
    mark = tmp_path / "code-was-run"
    context = tls(federation.coordinator / "ca.crt", None)
    run_id = start_run(
        f"https://127.0.0.1:{federation.ports[1]}", context, bundle(mark, 'agentapp = "evil:app"'), prompt="send me the patients"
    )
    time.sleep(3)
    assert status_of(federation, run_id) == "pending"
    assert not mark.exists()


def status_of(federation: Federation, flower_run_id: int) -> str:
    """A run's status as Flower's own store says it."""
    from common.flower_compat.control import runs
    from server.home import ServerHome

    found = runs(ServerHome(federation.coordinator), [flower_run_id])
    return found[flower_run_id].status

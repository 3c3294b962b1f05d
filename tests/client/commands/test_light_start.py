# SPDX-License-Identifier: Apache-2.0
"""Commands of hospital IT answer at once: what only training and Flower need is not loaded for them."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from client.figures import Figures
from client.site import figures_path, open_ledger
from common.privacy.accountant import event_to_json, poisson_gaussian
from common.privacy.charge_book import ChargeKey, Line
from tests.client.offered import DAY, Hospital, hospital_study

HEAVY = ("torch", "flwr", "opacus", "sklearn", "ray", "matplotlib", "safetensors")
RUN = """
import sys
from client.cli import main
code = main(sys.argv[1:])
print(code, *sorted(name for name in sys.modules if "." not in name), file=sys.stderr)
"""
ROUND = event_to_json(poisson_gaussian(0.1, 1.5, 10))


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    """A site with an offer to decide on, and one round spent."""
    hospital, now = Hospital.make(tmp_path_factory.mktemp("light") / "north"), time.time()
    hospital.offer(hospital_study(), created=now, expires=now + DAY)
    book = open_ledger(hospital.home.folder)
    account = book.register({Line.TRAINING: ["p1", "p2"], Line.HELD_OUT: ["p3"]}, 1e-5)
    book.reserve(ChargeKey(account, "a" * 64, "b" * 32, 1, "c" * 64), ROUND, 10)
    return hospital


def run(hospital: Hospital, *arguments: str) -> tuple[str, set[str]]:
    """What a command prints, and the packages that it has loaded."""
    place = Path(__file__).resolve().parents[3]
    command = [sys.executable, "-c", RUN, *arguments]
    done = subprocess.run(command, cwd=hospital.home.folder, env={"PYTHONPATH": str(place)}, capture_output=True, text=True, timeout=120)
    code, *loaded = done.stderr.splitlines()[-1].split()
    assert code == "0", done.stderr
    return done.stdout, set(loaded)


@pytest.mark.parametrize("command", ["studies", "status"])
def test_what_is_shown_without_heavy_packages(hospital: Hospital, command: str) -> None:
    shown, loaded = run(hospital, command, "--json")
    assert json.loads(shown)
    assert loaded.isdisjoint({*HEAVY, "dp_accounting", "scipy"})


def test_help_loads_next_to_nothing(hospital: Hospital) -> None:
    assert run(hospital, "--help")[1].isdisjoint({*HEAVY, "numpy", "pydantic", "httpx", "cryptography"})


def test_a_budget_that_was_shown_before_is_shown_without_the_accountant(hospital: Hospital) -> None:
    first, loaded = run(hospital, "budget", "--json")
    assert "dp_accounting" in loaded and loaded.isdisjoint(HEAVY)
    again, loaded = run(hospital, "budget", "--json")
    assert again == first and loaded.isdisjoint({*HEAVY, "dp_accounting", "scipy"})
    account = next(one for one in json.loads(again)["accounts"] if one["line"] == "training")
    assert account["epsilon"] == Figures(figures_path(hospital.home.folder)).epsilon([ROUND], 1e-5) > 0

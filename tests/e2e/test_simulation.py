# SPDX-License-Identifier: Apache-2.0
"""Whole simulated runs by the command line, in real processes."""

import json
import os
import signal
import sqlite3
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from client.site import open_ledger
from common.events import read_events
from tests.support import commands
from tests.support.studies import PRIVATE, small, write_study


def final_model(run_dir: Path) -> dict[str, np.ndarray]:
    return load_file(max(run_dir.glob("checkpoints/round-*.safetensors")))


def same_bits(left: Path, right: Path) -> bool:
    first, second = final_model(left), final_model(right)
    return first.keys() == second.keys() and all(first[name].tobytes() == second[name].tobytes() for name in first)


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    study = write_study(small(), folder)
    commands.run("run", study, "--threads", "1", "--out", folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def private_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("private")
    study = write_study(small(PRIVATE, **{"evaluation.private": {"epsilon": 100.0}}), folder)
    answer = commands.run_json("run", study, "--threads", "1", "--out", folder / "run")
    return folder / "run", answer


def test_run_json_has_what_it_promises(private_run: tuple[Path, dict]) -> None:
    run_dir, answer = private_run
    assert answer["run_dir"] == str(run_dir)
    assert Path(answer["report"]).read_text().startswith("<!")
    private = answer["auroc"].pop("private")
    assert set(answer["auroc"]) == {"pooled", "best_site", "mean_site", "federated"}
    assert all(0 <= value <= 1 for value in answer["auroc"].values())
    assert private == "not measurable", "sixteen held-out patients are too few, with any noise"
    assert answer["epsilon_held_out"] == pytest.approx(dict.fromkeys(answer["epsilon"], 100.0), rel=1e-5)
    assert answer["rounds"] == 3
    assert answer["sites"] == 4
    assert answer["epsilon_target"] == 8.0
    assert all(7.0 < value <= 8.0 for value in answer["epsilon"].values())
    assert answer["seconds"] > 0


def test_the_run_directory_holds_what_is_documented(private_run: tuple[Path, dict]) -> None:
    run_dir, _ = private_run
    expected = {"study.json", "events.jsonl", "rounds.sqlite", "checkpoints", "sites", "report.html", "results.json"}
    assert expected <= {path.name for path in run_dir.iterdir()}
    with sqlite3.connect(run_dir / "rounds.sqlite") as database:
        assert database.execute("SELECT round, updates FROM rounds ORDER BY round").fetchall() == [(1, 4), (2, 4), (3, 4)]


def test_workers_do_not_change_a_bit(plain_run: Path, tmp_path: Path) -> None:
    study = write_study(small(), tmp_path)
    commands.run("run", study, "--threads", "1", "--workers", "2", "--out", tmp_path / "run")
    assert same_bits(plain_run, tmp_path / "run")


@pytest.mark.slow
def test_ray_does_not_change_a_bit(plain_run: Path, tmp_path: Path) -> None:
    study = write_study(small(), tmp_path)
    commands.run("run", study, "--threads", "1", "--engine", "ray", "--out", tmp_path / "run")
    assert same_bits(plain_run, tmp_path / "run")


@pytest.mark.slow
def test_another_seed_does_change_it(plain_run: Path, tmp_path: Path) -> None:
    study = write_study(small(seed=1), tmp_path)
    commands.run("run", study, "--threads", "1", "--out", tmp_path / "run")
    assert not same_bits(plain_run, tmp_path / "run")


def test_private_runs_never_repeat(private_run: tuple[Path, dict], tmp_path: Path) -> None:
    """The same study and seed: other patients are drawn and other noise is added."""
    study = write_study(small(PRIVATE), tmp_path)
    commands.run("run", study, "--threads", "1", "--out", tmp_path / "run")
    assert not same_bits(private_run[0], tmp_path / "run")


def rounds_done(run_dir: Path) -> int:
    return sum(event.name == "round_done" for event in read_events(run_dir / "events.jsonl"))


def kill_after_a_round(study: Path, run_dir: Path, how: signal.Signals) -> int:
    process = commands.start("run", study, "--threads", "1", "--out", run_dir)
    try:
        commands.wait_until(lambda: rounds_done(run_dir) >= 1)
        if how is signal.SIGKILL:
            os.killpg(process.pid, how)
        else:
            process.send_signal(how)
        _, err = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    if how is signal.SIGINT:
        assert f"--resume {run_dir}" in err.replace("\n", "")
    return process.returncode


@pytest.mark.slow
@pytest.mark.parametrize(("how", "code"), [(signal.SIGKILL, -signal.SIGKILL), pytest.param(signal.SIGINT, 4, marks=pytest.mark.slow)])
def test_a_stopped_run_resumes_to_the_same_bits(tmp_path: Path, how: signal.Signals, code: int) -> None:
    long = small(**{"federation.rounds": 8})
    study = write_study(long, tmp_path)
    commands.run("run", study, "--threads", "1", "--out", tmp_path / "whole")
    assert kill_after_a_round(study, tmp_path / "cut", how) == code
    assert 1 <= rounds_done(tmp_path / "cut") < 8
    commands.run("run", "--resume", tmp_path / "cut")
    assert same_bits(tmp_path / "whole", tmp_path / "cut")


def test_a_killed_private_run_charges_each_update_once(tmp_path: Path) -> None:
    study = write_study(small(PRIVATE, **{"federation.rounds": 8}), tmp_path)
    run_dir = tmp_path / "run"
    assert kill_after_a_round(study, run_dir, signal.SIGKILL) == -signal.SIGKILL
    answer = commands.run_json("run", "--resume", run_dir)
    assert all(value <= 8.0 for value in answer["epsilon"].values())
    for site in sorted(run_dir.glob("sites/*")):
        rows = [json.loads(row.content) for row in open_ledger(site).rows()]
        charges = [row for row in rows if row["kind"] == "ChargeEntry" and row["key"]["line"] == "training"]
        reserved = Counter(row["key"]["round"] for row in charges if row["state"] == "reserved")
        assert reserved == dict.fromkeys(range(1, 9), 1), site.name


def test_a_run_that_is_complete_is_left_alone(plain_run: Path) -> None:
    before = (plain_run / "results.json").stat().st_mtime_ns
    commands.run("run", "--resume", plain_run)
    assert (plain_run / "results.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_run_that_could_not_start_leaves_its_folder_free(tmp_path: Path) -> None:
    study = write_study(small(), tmp_path)
    commands.run("run", study, "--partition", "iid", "--sites", "79", "--out", tmp_path / "run", expect=2)
    assert not (tmp_path / "run").exists()
    _, err = commands.run("run", study, "--device", "cuda:7", "--out", tmp_path / "run", expect=2)
    assert "torch sees" in err
    _, err = commands.run("run", study, "--out", "/proc/no/run", expect=6)
    assert "choose another --out" in err


@pytest.mark.slow
def test_a_baseline_whose_worker_is_killed_is_trained_again(tmp_path: Path) -> None:
    study = write_study(small(), tmp_path)
    process = commands.start("run", study, "--threads", "1", "--out", tmp_path / "run", "--json")
    commands.wait_until(lambda: (tmp_path / "run" / "baselines" / "pooled" / "ledger.sqlite").exists())
    workers = [child for child in psutil.Process(process.pid).children(recursive=True) if child.memory_info().rss > 3e8]
    for worker in workers:
        if worker.parent().pid != process.pid:
            worker.kill()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert json.loads(out)["auroc"]["pooled"] is not None, err


def test_two_runs_never_share_a_folder(plain_run: Path, tmp_path: Path) -> None:
    study = write_study(small(), tmp_path)
    _, err = commands.run("run", study, "--out", plain_run, expect=2)
    assert "is there already" in err


@pytest.mark.slow
def test_no_process_opens_a_connection_to_the_network(tmp_path: Path) -> None:
    """Every Python process of the run writes each address that it connects to or looks up."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, socket, sys\n"
        "def note(event, args):\n"
        "    if event == 'socket.getaddrinfo' or (event == 'socket.connect' and args[0].family != socket.AF_UNIX):\n"
        f"        with open({str(tmp_path / 'network')!r}, 'a') as file:\n"
        "            file.write(f'{event} {args[1:]} {sys.argv}\\n')\n"
        f"open({str(tmp_path / 'started')!r}, 'a').write(f'{{os.getpid()}}\\n')\n"
        "sys.addaudithook(note)\n"
    )
    study = write_study(small(PRIVATE), tmp_path)
    commands.run("run", study, "--out", tmp_path / "run", environment={"PYTHONPATH": str(tmp_path)})
    assert len((tmp_path / "started").read_text().split()) >= 2, "the hook was not loaded"
    assert not (tmp_path / "network").exists(), (tmp_path / "network").read_text()

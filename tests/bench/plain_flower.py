# SPDX-License-Identifier: Apache-2.0
"""Plain Flower in its default mode, for comparison: SuperLink and SuperNodes with TLS and node authentication, FedAvg of a model that
nobody trains.

Everything is Flower's own: its commands, its defaults (isolation in sub-processes, polling every 3 s, a new Python for each message),
an app as its tutorials show it, which imports torch. Only the model is made up: so many bytes of float32, sent back as they came.
"""

from __future__ import annotations

import ipaddress
import itertools
import sys
import time
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from common.crypto.certificates import Authority
from simulations.processes import Background, free_ports, run_to_end, wait_until
from tests.bench.measure import tree_pss_bytes

LICENCE = "Apache-2.0\n"
PROJECT = """[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "plain"
version = "1.0.0"
license = {{ file = "LICENSE" }}
dependencies = ["flwr>={version}"]

[tool.flwr.app]
publisher = "bench"
fab-format-version = 1
flwr-version-target = "{version}"

[tool.flwr.app.components]
serverapp = "plain.server_app:app"
clientapp = "plain.client_app:app"

[tool.flwr.app.config]
rounds = 3
floats = 25000
sites = 2
"""
SERVER = '''"""FedAvg as it comes; each round says when it began."""
import json
import time

import numpy as np
import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


class Timed(FedAvg):
    def configure_train(self, server_round, arrays, config, grid):
        print("BENCH " + json.dumps({"round": server_round, "time": time.time()}), flush=True)
        return super().configure_train(server_round, arrays, config, grid)


@app.main()
def main(grid: Grid, context: Context) -> None:
    sites = int(context.run_config["sites"])
    floats = int(context.run_config["floats"])
    strategy = Timed(min_train_nodes=sites, min_evaluate_nodes=sites, min_available_nodes=sites)
    model = {str(i): torch.zeros(part.size) for i, part in enumerate(np.array_split(np.zeros(floats, np.float32), 10))}
    strategy.start(grid=grid, initial_arrays=ArrayRecord(model), num_rounds=int(context.run_config["rounds"]))
    print("BENCH " + json.dumps({"round": "end", "time": time.time()}), flush=True)
'''
CLIENT = '''"""Sends back what came; trains nothing."""
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    model = message.content["arrays"].to_torch_state_dict()
    content = RecordDict({"arrays": ArrayRecord(model), "metrics": MetricRecord({"num-examples": 1})})
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1, "loss": 0.0})}), reply_to=message)
'''


@dataclass
class PlainFlower:
    """One SuperLink and `sites` SuperNodes in `folder`, as processes."""

    folder: Path
    sites: int
    ports: list[int] = field(default_factory=list)
    superlink: Background | None = None
    nodes: list[Background] = field(default_factory=list)

    def start(self) -> None:
        """Certificates, server, keys, nodes, and wait until they are online."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.ports = free_ports(1 + self.sites)
        _write_certificates(self.folder)
        self.superlink = self._background(
            "flower-superlink",
            *("--ssl-ca-certfile", "ca.crt", "--ssl-certfile", "server.crt", "--ssl-keyfile", "server.key"),
            *("--enable-supernode-auth", "--host", "127.0.0.1", "--port", str(self.ports[0]), "--database", "flower.db"),
        )
        wait_until(lambda: "startup complete" in self._superlink.said.lower(), "starting plain Flower", 60, self.superlink)
        _write_connection(self.folder, self._address)
        for number in range(self.sites):
            self._start_node(number)
        wait_until(lambda: self._superlink.said.count("Activated node") >= self.sites, "nodes are online", 90, self.superlink)

    def rounds(self, floats: int, rounds: int = 3) -> list[float]:
        """Seconds of each round but the first, in which everything is new."""
        app = self.folder / "app"
        _write_app(app)
        config = f"rounds={rounds} floats={floats} sites={self.sites}"
        said = run_to_end(_flwr("run", str(app), "target", "--stream", "--run-config", config), self._environment, self.folder, 900)
        times = [float(line.split('"time": ')[1].rstrip("} \n")) for line in said.splitlines() if "BENCH {" in line]
        if len(times) != rounds + 1:
            raise RuntimeError(f"plain Flower did not finish {rounds} rounds:\n{said}\n{self._superlink.said[-3000:]}")
        return [after - before for before, after in itertools.pairwise(times[1:])]

    def idle_megabytes(self) -> tuple[float, float]:
        """Memory (PSS of the process tree) of the server and of one node while nothing runs."""
        time.sleep(3)
        nodes = [tree_pss_bytes(node.pid) / 1e6 for node in self.nodes]
        return tree_pss_bytes(self._superlink.pid) / 1e6, sum(nodes) / len(nodes)

    def stop(self) -> None:
        """Stop every process."""
        for process in [*self.nodes, *([self.superlink] if self.superlink else [])]:
            process.stop(20)

    @property
    def _superlink(self) -> Background:
        assert self.superlink is not None
        return self.superlink

    @property
    def _address(self) -> str:
        return f"127.0.0.1:{self.ports[0]}"

    @property
    def _environment(self) -> dict[str, str]:
        return {"FLWR_HOME": str(self.folder / "flwr"), "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "OMP_NUM_THREADS": "1"}

    def _start_node(self, number: int) -> None:
        private, public = _node_key()
        (self.folder / f"node{number}").write_bytes(private)
        (self.folder / f"node{number}.pub").write_bytes(public)
        register = _flwr("supernode", "register", f"node{number}.pub", "target", "--name", f"site{number}")
        run_to_end(register, self._environment, self.folder, 60)
        node = self._background(
            "flower-supernode",
            *("--root-certificates", "ca.crt", "--superlink", self._address, "--port", str(self.ports[1 + number])),
            *("--auth-supernode-private-key", f"node{number}"),
        )
        self.nodes.append(node)

    def _background(self, program: str, *arguments: str) -> Background:
        log = self.folder / "logs" / f"{program}-{len(self.nodes)}.log"
        return Background([str(Path(sys.executable).parent / program), *arguments], log, self._environment, self.folder)


def _flwr(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from flwr.cli.app import app; app()", *arguments]


def _write_connection(folder: Path, address: str) -> None:
    home = folder / "flwr"
    home.mkdir(exist_ok=True)
    text = f'[superlink]\ndefault = "target"\n\n[superlink.target]\naddress = "{address}"\nroot-certificates = "{folder / "ca.crt"}"\n'
    (home / "config.toml").write_text(text, encoding="utf-8")


def _write_certificates(folder: Path) -> None:
    authority = Authority.self_signed(ec.generate_private_key(ec.SECP384R1()), time.time())
    key = ec.generate_private_key(ec.SECP256R1())
    (folder / "ca.crt").write_text(authority.pem, encoding="ascii")
    names = ["localhost", str(ipaddress.ip_address("127.0.0.1"))]
    (folder / "server.crt").write_text(authority.server_certificate(key.public_key(), names, 30, time.time()), encoding="ascii")
    encoding = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "server.key").write_bytes(key.private_bytes(*encoding))


def _node_key() -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    return private, key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


def _write_app(folder: Path) -> None:
    (folder / "plain").mkdir(parents=True, exist_ok=True)
    files = {
        "pyproject.toml": PROJECT.format(version=metadata.version("flwr")),
        "LICENSE": LICENCE,
        "plain/__init__.py": "",
        "plain/server_app.py": SERVER,
        "plain/client_app.py": CLIENT,
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")

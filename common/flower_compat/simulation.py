# SPDX-License-Identifier: Apache-2.0
"""Flower's own simulation engine on Ray: the same ServerApp and ClientApp on a cluster."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.simulation.run_simulation import _run_simulation
from flwr.supercore.constant import NOOP_FEDERATION_ID
from flwr.supercore.run import Run
from flwr.supercore.telemetry import EventType

from common.flower_compat.identity import assume_server_identity


@dataclass(frozen=True)
class RayResources:
    """What each site may use while it trains, and how many train at once."""

    workers: int
    threads: int
    gpus_per_site: float = 0.0


def run_on_ray(
    server_app: ServerApp, client_app: ClientApp, *, sites: int, flower_run_id: int, run_config: Mapping[str, str], resources: RayResources
) -> None:
    """Run both apps on Ray until the ServerApp returns. Client apps get no run config there.

    Raises RuntimeError when the ServerApp raised; Flower has logged the cause.
    """
    logging.getLogger("flwr").setLevel(logging.ERROR)
    run = Run.create_empty(run_id=flower_run_id)
    run.primary_task_id = 1
    run.federation_id = NOOP_FEDERATION_ID
    assume_server_identity(flower_run_id)
    _run_simulation(
        num_supernodes=sites,
        exit_event=EventType.PYTHON_API_RUN_SIMULATION_LEAVE,
        client_app=client_app,
        server_app=server_app,
        backend_name="ray",
        backend_config={
            "client_resources": {"num_cpus": resources.threads, "num_gpus": resources.gpus_per_site},
            "init_args": {"num_cpus": resources.workers * resources.threads, "log_to_driver": False, "logging_level": logging.ERROR},
        },
        server_app_context=Context(flower_run_id, 0, {}, RecordDict(), dict(run_config)),
        run=run,
    )

# SPDX-License-Identifier: Apache-2.0
"""Taking ServerApp tasks from the SuperLink, and no other kind: what is left of Flower's SuperExec.

The request is signed with the secret that SuperLink and executor share, so nobody else on the machine can take a task and become the
server of a run.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import httpx
from flwr.proto.runtime_pb2 import AcquireTaskRequest, SendTaskHeartbeatRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient

from common.errors import ProtocolError
from common.flower_compat.control import NotRunning
from common.flower_compat.superlink import CoordinatorHome, address, direct

ACQUIRE_METHOD = "/flwr.proto.Runtime/AcquireTask"


@dataclass(frozen=True)
class ServerTask:
    """A ServerApp to run. `token` lets its owner act as the server of that run."""

    task_id: int
    flower_run_id: int
    token: str = field(repr=False)


class TaskSource:
    """The SuperLink's queue of ServerApp tasks; keeps its connection."""

    def __init__(self, home: CoordinatorHome) -> None:
        self._home, self._where = home, address(home)
        secret = home.superexec_secret.read_bytes()
        self._client = RuntimeHttpClient(
            f"https://{self._where}",
            interceptors=[
                RuntimeVersionHttpInterceptor("SuperExec"),
                SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods={ACQUIRE_METHOD}),
            ],
        )
        direct(self._client, home.ca_certificate.read_bytes())

    def acquire(self) -> ServerTask | None:
        """The oldest task that waits, which then is ours. Raises NotRunning; ProtocolError when the SuperLink refuses us."""
        try:
            answer = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP]))
        except httpx.TransportError as error:
            raise NotRunning(f"the SuperLink on {self._where} does not answer ({type(error).__name__})") from error
        except httpx.HTTPStatusError as error:
            raise ProtocolError(f"the SuperLink on {self._where} answered {error.response.status_code} to the executor") from error
        if not (answer.HasField("task") and answer.token):
            return None
        return ServerTask(int(answer.task.task_id), int(answer.task.run_id), answer.token)

    def keep(self, task: ServerTask) -> bool:
        """Speak for a server that is still starting: Flower takes a task back that it has not heard of for half a minute.

        Returns False when it was too late, or the SuperLink does not answer.
        """
        client = RuntimeHttpClient(
            f"https://{self._where}",
            interceptors=[RuntimeVersionHttpInterceptor("flwr-serverapp"), RuntimeTokenHttpInterceptor(token=task.token)],
        )
        direct(client, self._home.ca_certificate.read_bytes())
        try:
            return bool(client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success)
        except (httpx.TransportError, httpx.HTTPStatusError):
            return False
        finally:
            client.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

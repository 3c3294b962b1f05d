# SPDX-License-Identifier: Apache-2.0
"""The training process of the daemon: the simulation's worker with what `site.yaml` gives to training."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from flwr.app import Context, Message, RecordDict

from client.app import DEVICE_VARIABLE, GPU_MEMORY_VARIABLE, THREADS_VARIABLE
from client.site import SITE_FOLDER_KEY
from client.site_config import SiteConfig
from client.worker import Worker, WorkerLost, WorkerSettings
from common.flower_compat import messages as codec

SITE_APP = "client.app:app"


class SiteWorker:
    """Starts the process when it is needed, anew when `site.yaml` gives it something else. One thread uses it; `kill` is for another."""

    def __init__(self, app: str = SITE_APP) -> None:
        self._app = app
        self._worker = Worker(WorkerSettings(app, {}))
        self._settings: WorkerSettings | None = None
        self.is_cut_off = False
        """Whether it was `kill` that ended the process."""

    @property
    def process_id(self) -> int | None:
        """Process id while it runs."""
        return self._worker.process_id

    def prepare(self, config: SiteConfig) -> None:
        """Start the process, so that it loads while a message is on its way; a failure is seen with the message."""
        settings = WorkerSettings(self._app, environment_of(config))
        if settings != self._settings:
            self._worker.stop()
            self._worker, self._settings = Worker(settings), settings
        with suppress(EOFError, OSError):
            self._worker.start()

    def send(self, message: Message, folder: Path, node_id: int) -> None:
        """Hand it a message for the study in `folder`; a process that died while it was idle is started anew. Raises WorkerLost."""
        context = Context(message.metadata.run_id, node_id, {SITE_FOLDER_KEY: str(folder)}, RecordDict(), {})
        parts = codec.context_to_bytes(context), codec.message_to_parts(message)
        try:
            self._worker.send(*parts)
        except WorkerLost:
            self._worker.send(*parts)

    def receive(self) -> RecordDict | None:
        """What the app answers; None if it raised. Raises WorkerLost as soon as the process dies."""
        _, parts = self._worker.receive()
        reply = codec.message_from_parts(parts)
        return reply.content if reply.has_content() else None

    def kill(self) -> None:
        """End the process at once, for good; `receive` raises WorkerLost."""
        self.is_cut_off = True
        self._worker.kill()

    def stop(self) -> None:
        """End the process and free what it holds."""
        self._worker.stop()


def environment_of(config: SiteConfig) -> dict[str, str]:
    """What the training process is told by its environment."""
    environment = {DEVICE_VARIABLE: config.device, GPU_MEMORY_VARIABLE: str(config.limits.gpu_memory_fraction)}
    return environment | ({THREADS_VARIABLE: str(config.threads)} if config.threads else {})

# SPDX-License-Identifier: Apache-2.0
"""The ClientApp: message in, update or refusal out.

The same app runs in a simulation, on Ray and at a hospital; what differs is only the site source, which says where a node's folder is.
Nothing is read from `run_config`. This file is the edge of the site: whatever goes wrong behind it becomes one refusal code here, and
the cause goes to the site's own log.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.site import SiteSource, home_of, site_from_context
from client.site_log import keep_room, log_failure
from common.errors import ProtocolError, RefusedError, WardroundError
from common.protocol import Refusal, RefusalCode

if TYPE_CHECKING:
    from client.workbench import Workbench

DEVICE_VARIABLE = "WARDROUND_DEVICE"
THREADS_VARIABLE = "WARDROUND_THREADS"
GPU_MEMORY_VARIABLE = "WARDROUND_GPU_MEMORY_FRACTION"


@dataclass(frozen=True)
class Settings:
    """What this machine gives to training."""

    device: str = "auto"
    threads: int | None = None
    gpu_memory_fraction: float = 1.0

    @classmethod
    def from_environment(cls) -> Settings:
        """Read `WARDROUND_DEVICE`, `WARDROUND_THREADS` and `WARDROUND_GPU_MEMORY_FRACTION`."""
        threads, fraction = os.environ.get(THREADS_VARIABLE), os.environ.get(GPU_MEMORY_VARIABLE)
        return cls(os.environ.get(DEVICE_VARIABLE, "auto"), int(threads) if threads else None, float(fraction) if fraction else 1.0)


class SiteApp:
    """Answers the messages of any number of sites; holds nothing but what can be loaded again."""

    def __init__(self, site_source: SiteSource) -> None:
        self._site_source = site_source
        self._workbench: Workbench | None = None

    def answer(self, message: Message, context: Context) -> Message:
        """The reply to one message. Never raises: a failure becomes a refusal code."""
        return Message(self._records(message, context), reply_to=message)

    def _records(self, message: Message, context: Context) -> RecordDict:
        home: Path | None = None
        try:
            folder = home = self._site_source(context)
            home = home_of(folder)
            keep_room(home)
            return self._bench().answer(folder, message.content)
        except RefusedError as error:
            return self._refuse(known_code(error.code), home, error)
        except ProtocolError as error:
            return self._refuse(RefusalCode.PROTOCOL_MISMATCH, home, error)
        except WardroundError as error:
            return self._refuse(RefusalCode.NOT_READY, home, error)
        except Exception as error:  # noqa: BLE001 (the edge of the site: any cause becomes one code)
            return self._refuse(RefusalCode.TRAINING_FAILED, home, error)

    def _bench(self) -> Workbench:
        if self._workbench is None:
            from client.workbench import Workbench

            self._workbench = Workbench(Settings.from_environment())
        return self._workbench

    def _refuse(self, code: RefusalCode, home: Path | None, error: Exception) -> RecordDict:
        log_failure(home, code, error)
        return Refusal(code, "").to_records()


def known_code(code: str) -> RefusalCode:
    """The refusal code as it may leave; a code of the site's own bookkeeping leaves as TRAINING_FAILED."""
    return RefusalCode(code) if code in RefusalCode.__members__ else RefusalCode.TRAINING_FAILED


def create_app(site_source: SiteSource) -> ClientApp:
    """A ClientApp for sites found by `site_source`."""
    client_app = ClientApp()
    site_app = SiteApp(site_source)

    @client_app.train()
    def train(message: Message, context: Context) -> Message:
        return site_app.answer(message, context)

    @client_app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return site_app.answer(message, context)

    return client_app


app = create_app(site_from_context)

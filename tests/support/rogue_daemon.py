# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.support.rogue_daemon HOME ORDERS`: a hospital whose own software is hostile.

It is the real daemon; only what its training process answers is bent as the file ORDERS says at that moment (one of `BENDS`), and then
its egress door lets everything pass. With `DOOR` before the word the door works as it should. An empty file: a hospital as any other.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

import client.egress
from client.daemon import serve
from client.egress_rules import ExitRules, Incoming, check_exit
from client.site_home import SiteHome
from client.site_worker import SiteWorker
from common.protocol import FACTS, MODEL

DOOR: Final = "door "
REPLAY: Final = "replay"
Tensors = dict[str, np.ndarray]


def _not_a_number(tensors: Tensors, first: str) -> None:
    tensors[first].reshape(-1)[0] = np.nan


def _other_shape(tensors: Tensors, first: str) -> None:
    tensors[first] = tensors[first].reshape(-1)[:-1]


def _other_dtype(tensors: Tensors, first: str) -> None:
    tensors[first] = tensors[first].astype(np.float64)


def _enormous(tensors: Tensors, first: str) -> None:
    tensors[first] = np.full_like(tensors[first], 1e30)


def _one_more(tensors: Tensors, first: str) -> None:
    tensors["extra"] = np.zeros(1, np.float32)


def _one_less(tensors: Tensors, first: str) -> None:
    del tensors[first]


BENDS: Final[dict[str, Callable[[Tensors, str], None]]] = {
    "NaN": _not_a_number,
    "wrong shape": _other_shape,
    "wrong dtype": _other_dtype,
    "1e30": _enormous,
    "extra array": _one_more,
    "missing array": _one_less,
}


class RogueWorker:
    """Bends updates on their way from the training process to the door, and remembers the one before."""

    def __init__(self, orders: Path) -> None:
        self._orders = orders
        self._last: RecordDict | None = None

    @property
    def order(self) -> str:
        return self._orders.read_text(encoding="utf-8").strip() if self._orders.exists() else ""

    def bent(self, records: RecordDict | None) -> RecordDict | None:
        if records is None or MODEL not in records:
            return records
        before, self._last = self._last, records
        order = self.order.removeprefix(DOOR)
        if order == REPLAY and before is not None:
            return before
        if order not in BENDS:
            return records
        facts, model = records[FACTS], records[MODEL]
        assert isinstance(facts, ConfigRecord) and isinstance(model, ArrayRecord)
        tensors = {name: array.numpy().copy() for name, array in model.items()}
        BENDS[order](tensors, sorted(tensors)[0])
        return RecordDict({**records, MODEL: ArrayRecord({name: Array(value) for name, value in tensors.items()})})

    def check(self, reply: RecordDict, incoming: Incoming, rules: Callable[[], ExitRules]) -> None:
        """The door, open as long as there is an order to cheat."""
        if not self.order or self.order.startswith(DOOR):
            check_exit(reply, incoming, rules)


def main(home: str, orders: str) -> None:
    """Be that hospital until SIGTERM."""
    rogue, honest = RogueWorker(Path(orders)), SiteWorker.receive
    SiteWorker.receive = lambda worker: rogue.bent(honest(worker))  # type: ignore[method-assign]
    client.egress.check_exit = rogue.check
    serve(SiteHome(Path(home)), sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])

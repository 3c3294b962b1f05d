# SPDX-License-Identifier: Apache-2.0
"""A message whose answer was lost between the SuperLink and its site is given out again, at most three times.

The SuperLink counts a message as delivered when it answers a pull; an answer that dies with this gateway, or with the line, would leave
the site waiting until the round is over. A site works on one message at a time: it confirms or answers before it pulls again. So when a
site pulls, nothing is there, and there is doubt, what the SuperLink has for it as delivered, neither confirmed nor answered, was lost.

Doubt is: the first pull after the start of the gateway; a pull before this one that did not come through; a message given to the site
that it has neither confirmed nor answered. Without doubt nothing is looked up. The question comes after the SuperLink's own (empty)
answer, so an old or forged pull, which the SuperLink refuses, changes nothing; and of pulls that overlap only the newest asks.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from common.errors import StorageError
from common.flower_compat.deliveries import delivered_unanswered, undeliver
from common.flower_compat.fleet_records import Delivery
from server.gateway.addressed import Addressed

if TYPE_CHECKING:
    from server.sites import RegisteredSite

MOST_TIMES: Final = 3
"""How often one message is given out again; a site that drops it each time would otherwise never get the next one."""
_UNSIGNED_64: Final = 1 << 64


@dataclass
class Pull:
    """One pull of a site. `given` is what goes back to it, set when that is certain."""

    number: int
    in_doubt: bool
    given: tuple[Delivery, ...] | None = None


class Redelivery:
    """What each site's last pull has left open, in memory only. For one event loop; `database` is the SuperLink's."""

    def __init__(self, database: Path, addressed: Addressed) -> None:
        self._database, self._addressed = database, addressed
        self._sure: set[str] = set()
        self._newest: dict[str, Pull] = {}
        self._times: dict[str, dict[str, int]] = {}

    @contextmanager
    def pull(self, site: str) -> Iterator[Pull]:
        """From the question to the SuperLink until the answer to the site."""
        before = self._newest.get(site)
        number = 0 if before is None else before.number + 1
        pull = Pull(number, site not in self._sure or before is None or not self._is_done(site, before))
        self._newest[site] = pull
        try:
            yield pull
        finally:
            is_sure = pull.given is not None and not pull.in_doubt and self._newest[site] is pull
            (self._sure.add if is_sure else self._sure.discard)(site)

    async def found(self, site: RegisteredSite, pull: Pull) -> int:
        """How many lost messages the SuperLink now gives out again; for a pull that brought nothing. Raises StorageError."""
        if not pull.in_doubt or self._newest[site.name] is not pull or site.node_id is None:
            return 0
        try:
            count = await self._undelivered(site.name, site.node_id % _UNSIGNED_64)
        except sqlite3.Error as error:
            raise StorageError(f"{self._database}: cannot be used ({error}); check free space and permissions") from error
        pull.in_doubt = False
        return count

    async def _undelivered(self, site: str, node_id: int) -> int:
        rows = await asyncio.to_thread(delivered_unanswered, self._database, time.time())
        known = self._times.get(site, {})
        times = {message_id: known.get(message_id, 0) for message_id, _, node in rows if node == node_id}
        again = [message_id for message_id, count in times.items() if count < MOST_TIMES]
        self._times[site] = times | {message_id: times[message_id] + 1 for message_id in again}
        return await asyncio.to_thread(undeliver, self._database, again) if again else 0

    def _is_done(self, site: str, pull: Pull) -> bool:
        return all(self._addressed.is_done(site, one.run_id, one.message_id) for one in pull.given or ())

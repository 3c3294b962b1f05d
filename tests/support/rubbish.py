# SPDX-License-Identifier: Apache-2.0
"""Bad requests to the gateway by the thousand: random bytes, wrong paths, far too much; with a certificate and without."""

import random
from dataclasses import dataclass

import httpx

from tests.common.flower_compat.attacker import FleetAttacker

MIB = 1 << 20
CUT_OFF = -1
"""The connection was closed before the answer was read, which is an answer too."""
FLEET = ("pull-object", "push-object", "get-run", "push-messages", "confirm-message-received")
CLOSED = ("/v1/fleet/get-fab", "/v1/fleet/register-node", "/v1/fleet/../control/start-run", "/v1/wardround/nothing")
OWN = ("approvals", "renew")


@dataclass(frozen=True)
class Rubbish:
    """One bad request, and the answers that are right; `known`: it comes with a certificate and a node key."""

    path: str
    body: bytes
    known: bool
    right: frozenset[int]

    def fire(self, attacker: FleetAttacker, stranger: httpx.Client) -> int:
        """Status of the answer."""
        try:
            return (attacker.raw(self.path, self.body) if self.known else stranger.post(self.path, content=self.body)).status_code
        except httpx.TransportError:
            return CUT_OFF


def rubbish(dice: random.Random) -> Rubbish:
    """The next one."""
    is_large = dice.random() < 0.005
    body = dice.randbytes(1000) * (18 * MIB // 1000) if is_large else dice.randbytes(dice.choice((0, 1, 10, 1000, 20_000)))
    if dice.random() < 0.1:
        path = dice.choice((*(f"/v1/fleet/{one}" for one in FLEET), "/v1/wardround/studies", "/nowhere"))
        return Rubbish(path, body, False, frozenset({401, 429, CUT_OFF} if is_large else {401, 429}))
    if dice.random() < 0.2:
        return Rubbish(dice.choice(CLOSED), body, True, frozenset({403, 404, CUT_OFF} if is_large else {403, 404}))
    path = f"/v1/fleet/{dice.choice(FLEET)}" if dice.random() < 0.7 else f"/v1/wardround/{dice.choice(OWN)}"
    return Rubbish(path, body, True, frozenset({413, CUT_OFF} if is_large else {400, 403}))

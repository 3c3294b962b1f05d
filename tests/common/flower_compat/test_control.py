# SPDX-License-Identifier: Apache-2.0
"""Flower's Control calls on a real SuperLink: whoever registers a node, and however many at once, it is one node."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from common.crypto.site_keys import public_pem
from common.flower_compat import control
from tests.common.flower_compat.loopback_link import LoopbackLink, new_node_key

AT_ONCE = 8


def test_a_node_that_two_register_at_once_is_one_node(link: LoopbackLink) -> None:
    """`sites approve` and the executor both do it, each after a look at what is there."""
    key, together = public_pem(new_node_key().public_key()), Barrier(AT_ONCE)

    def register(_: int) -> int:
        together.wait(10)
        return control.register_node(link, key, "twice")

    with ThreadPoolExecutor(AT_ONCE) as pool:
        numbers = list(pool.map(register, range(AT_ONCE)))
    assert len(set(numbers)) == 1
    assert [node.name for node in control.nodes(link) if node.node_id == numbers[0]] == ["twice"]

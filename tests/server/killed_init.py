# SPDX-License-Identifier: Apache-2.0
"""Kills an init before its first, second, … rename or link, and completes each. Prints how many moments there were.

A process of its own: an audit hook cannot be taken out again, and a fork wants a process without threads.
"""

import os
import sys
from pathlib import Path

from server.founding import Wanted, found
from server.home import ServerHome
from tests.server.coordinator import NOW, URL, holder, opened

KEPT = ("ca.crt", "ca.key", "coordinator.key", "server.key", "study.key", "study.pub", "superexec.secret", "server.crt")
KILLED = 77


def main(folder: Path) -> int:
    """Returns the number of moments."""
    moment = 0
    while run_until(ServerHome(folder / str(moment)), moment) == KILLED:
        complete(ServerHome(folder / str(moment)))
        moment += 1
    return moment


def run_until(home: ServerHome, moment: int) -> int:
    """Exit status of an init that ends itself at the given rename or link."""
    child = os.fork()
    if child == 0:
        left = [moment]

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            if event in ("os.link", "os.rename"):
                if left[0] == 0:
                    os._exit(KILLED)
                left[0] -= 1

        sys.addaudithook(hook)
        found(home, Wanted(URL), holder(), NOW)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def complete(home: ServerHome) -> None:
    """The next init keeps what is there, makes the rest, and leaves no litter."""
    before = {name: (home.folder / name).read_bytes() for name in KEPT if (home.folder / name).exists()}
    found(home, Wanted(URL), holder(), NOW)
    after = {name: (home.folder / name).read_bytes() for name in KEPT}
    assert {name: after[name] for name in before} == before
    assert not list(home.folder.glob(".*.part"))
    assert ServerHome.find(home.folder).settings.url == URL
    opened(home)
    assert found(home, Wanted(URL), holder(), NOW) == []


if __name__ == "__main__":
    print(main(Path(sys.argv[1])))

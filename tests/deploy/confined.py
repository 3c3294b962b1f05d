# SPDX-License-Identifier: Apache-2.0
"""Run a command inside what a unit of deploy/ allows, where there is no systemd that could: as another user, without capabilities, on a
read-only system with a private /tmp and /dev, under the unit's filter of system calls.

    python -m tests.deploy.confined UNIT --writable DIR … --readable DIR … -- COMMAND …    (as root)

Applied: User (as an unused number), NoNewPrivileges, CapabilityBoundingSet (empty), ProtectSystem=strict, ProtectHome, PrivateTmp,
PrivateDevices, PrivateIPC, ProtectProc, MemoryDenyWriteExecute, SystemCallFilter, RestrictAddressFamilies, UMask. Not applied:
PrivateUsers, SocketBind, the switches that take away what only root could do, and the state folders' names.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.deploy import seccomp
from tests.deploy.units import Unit

USER_ID = 64_321
CLONE_NEWNS, CLONE_NEWIPC = 0x00020000, 0x08000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_SET_MDWE = 24, 38, 65
LAST_CAPABILITY = 40
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
HIDDEN = ("/root", "/home")
PRIVATE = ("/tmp", "/var/tmp")
KERNELS_OWN = ("/proc", "/sys", "/dev", *PRIVATE)
_LIBC = ctypes.CDLL(None, use_errno=True)


def command(unit: Path, writable: Sequence[Path], readable: Sequence[Path], inner: Sequence[str]) -> list[str]:
    """The command line that runs `inner` confined."""
    options = [word for path in writable for word in ("--writable", str(path))] + [
        word for path in readable for word in ("--readable", str(path))
    ]
    return [sys.executable, "-m", "tests.deploy.confined", str(unit), *options, "--", *inner]


def possible() -> str:
    """Why it cannot be done here; "" if it can."""
    if os.geteuid() != 0:
        return "needs root"
    if os.uname().machine != "x86_64" or "socket" not in seccomp.numbers():
        return "needs x86-64 and the kernel's headers"
    child = os.fork()
    if child == 0:
        os._exit(1 if _LIBC.unshare(CLONE_NEWNS | CLONE_NEWIPC) else 0)
    return "" if os.waitpid(child, 0)[1] == 0 else "needs the right to make name spaces"


def main(arguments: Sequence[str]) -> None:
    """Confine this process and become the command."""
    parser = argparse.ArgumentParser(prog="confined")
    parser.add_argument("unit", type=Path)
    parser.add_argument("--writable", type=Path, action="append", default=[])
    parser.add_argument("--readable", type=Path, action="append", default=[])
    parser.add_argument("inner", nargs="+")
    given = parser.parse_args(arguments)
    unit = Unit.read(given.unit)
    here = Path(__file__).resolve().parents[2]
    pythons = [Path(sys.base_prefix).resolve(), Path(sys.prefix), here]
    readable = [path.resolve() for path in (*pythons, *given.readable)]
    filter_program = seccomp.program(unit)
    _change_view(readable, [path.resolve() for path in given.writable], unit)
    _give_up_rights(unit)
    seccomp.install(filter_program)
    environment = {name: value for name, value in os.environ.items() if name.startswith(("OMP_", "NO_PROXY", "no_proxy", "WARDROUND_"))}
    environment |= {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/nowhere", "USER": "wardround", "PYTHONPATH": str(here)}
    os.execve(given.inner[0], given.inner, environment)


def _change_view(readable: Sequence[Path], writable: Sequence[Path], unit: Unit) -> None:
    """Name spaces of its own: only the folders that are named are seen where home and /tmp are, and only `writable` can be written."""
    if not (unit.one("ProtectSystem") == "strict" and all(map(unit.is_on, ("ProtectHome", "PrivateTmp", "PrivateDevices", "PrivateIPC")))):
        raise SystemExit("this unit is not what is confined here")
    _check(_LIBC.unshare(CLONE_NEWNS | CLONE_NEWIPC), "unshare")
    _mount(None, "/", None, MS_REC | MS_PRIVATE)
    kept = {path: os.open(path, os.O_PATH) for path in (*readable, *writable)}
    nodes = {name: os.open(f"/dev/{name}", os.O_PATH) for name in DEVICES}
    for cover in sorted({*map(Path, (*HIDDEN, *PRIVATE)), *filter(None, map(_closed_parent, kept))}):
        if cover.exists():
            _mount("tmpfs", str(cover), "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777" if str(cover) in PRIVATE else "mode=755")
    for path, handle in kept.items():
        path.mkdir(parents=True, exist_ok=True)
        _mount(f"/proc/self/fd/{handle}", str(path), None, MS_BIND | MS_REC)
    _mount("tmpfs", "/dev", "tmpfs", MS_NOSUID, "mode=755")
    for name, handle in nodes.items():
        (Path("/dev") / name).touch()
        _mount(f"/proc/self/fd/{handle}", f"/dev/{name}", None, MS_BIND)
    (Path("/dev") / "shm").mkdir()
    _mount("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    _mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, "hidepid=invisible")
    _make_read_only(writable)


def _closed_parent(path: Path) -> Path | None:
    """The topmost folder above `path` that another user cannot enter."""
    closed = [parent for parent in path.parents if not parent.stat().st_mode & stat.S_IXOTH]
    return min(closed, key=lambda parent: len(parent.parts)) if closed else None


def _make_read_only(writable: Sequence[Path]) -> None:
    """Every mount but those of the kernel, /tmp and `writable`."""
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    for point in sorted({line.split()[4].encode().decode("unicode_escape") for line in lines}, key=len):
        if Path(point) in writable or any(point == own or point.startswith(f"{own}/") for own in KERNELS_OWN if own not in PRIVATE):
            continue
        if point in PRIVATE:
            continue
        flags = MS_REMOUNT | MS_BIND | MS_RDONLY
        if _LIBC.mount(None, os.fsencode(point), None, ctypes.c_ulong(flags), None):
            _mount(None, point, None, flags | MS_NOSUID | MS_NODEV)


def _give_up_rights(unit: Unit) -> None:
    for capability in range(LAST_CAPABILITY + 1):
        _check(_LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0), "capability")
    os.setgroups([])
    os.setresgid(USER_ID, USER_ID, USER_ID)
    os.setresuid(USER_ID, USER_ID, USER_ID)
    os.umask(int(unit.one("UMask"), 8))
    if unit.is_on("NoNewPrivileges"):
        _check(_LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no new privileges")
    if unit.is_on("MemoryDenyWriteExecute"):
        _check(_LIBC.prctl(PR_SET_MDWE, 1, 0, 0, 0), "memory that is written and executed")


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    texts = [None if text is None else text.encode() for text in (source, target, kind, options)]
    _check(_LIBC.mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3]), f"mount {target}")


def _check(result: int, what: str) -> None:
    if result:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main(sys.argv[1:])

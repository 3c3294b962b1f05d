# SPDX-License-Identifier: Apache-2.0
"""A unit's filter of system calls and address families, put on this process as systemd would.

The groups (`@system-service` …) are spelled out by `systemd-analyze syscall-filter`, the numbers come from the kernel's header. For
x86-64; what is not allowed answers EPERM, a socket of another family EAFNOSUPPORT.
"""

from __future__ import annotations

import ctypes
import errno
import re
import socket
import struct
import subprocess
from pathlib import Path

from tests.deploy.units import Unit

HEADERS = ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm/unistd_64.h")
AUDIT_ARCH_X86_64 = 0xC000003E
SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, SECCOMP_RET_KILL = 0x7FFF0000, 0x00050000, 0x80000000
LOAD_WORD, JUMP_EQUAL, RETURN = 0x20, 0x15, 0x06
NUMBER_OFFSET, ARCHITECTURE_OFFSET, FIRST_ARGUMENT_OFFSET = 0, 4, 16
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2


def numbers() -> dict[str, int]:
    """System calls by name; empty where the kernel's header is not installed."""
    header = next((Path(path) for path in HEADERS if Path(path).exists()), None)
    text = "" if header is None else header.read_text(encoding="utf-8")
    return {name: int(number) for name, number in re.findall(r"#define __NR_(\w+) (\d+)", text)}


def allowed(unit: Unit) -> set[str]:
    """Names of the system calls that a unit may make."""
    names = _spelled_out("@default")
    for line in unit.values["Service.SystemCallFilter"]:
        chosen = {name for word in line.lstrip("~").split() for name in _spelled_out(word)}
        names = names - chosen if line.startswith("~") else names | chosen
    return names


def program(unit: Unit) -> bytes:
    """The unit's filter, for `install`."""
    calls = numbers()
    families = [int(getattr(socket, name)) for name in unit.words("RestrictAddressFamilies")]
    return _program({calls[name] for name in allowed(unit) if name in calls}, calls["socket"], families)


def install(filter_program: bytes) -> None:
    """Put a filter on this process; needs NoNewPrivileges to be set. Raises OSError."""
    buffer = ctypes.create_string_buffer(filter_program, len(filter_program))
    head = struct.pack("HxxxxxxP", len(filter_program) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.c_char_p(head), 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")


def _spelled_out(word: str) -> set[str]:
    if not word.startswith("@"):
        return {word}
    shown = subprocess.run(["systemd-analyze", "syscall-filter", word], capture_output=True, text=True, check=True).stdout
    inner = [line.strip() for line in shown.splitlines()[1:] if line.strip() and not line.strip().startswith("#")]
    return {name for one in inner for name in _spelled_out(one)}


def _program(permitted: set[int], socket_call: int, families: list[int]) -> bytes:
    """The filter as BPF: architecture, then sockets by their family, then the list of calls."""
    steps = [_step(LOAD_WORD, ARCHITECTURE_OFFSET), _step(JUMP_EQUAL, AUDIT_ARCH_X86_64, 1, 0), _step(RETURN, SECCOMP_RET_KILL)]
    steps.append(_step(LOAD_WORD, NUMBER_OFFSET))
    of_sockets = [_step(LOAD_WORD, FIRST_ARGUMENT_OFFSET)]
    for family in families:
        of_sockets += [_step(JUMP_EQUAL, family, 0, 1), _step(RETURN, SECCOMP_RET_ALLOW)]
    of_sockets.append(_step(RETURN, SECCOMP_RET_ERRNO | errno.EAFNOSUPPORT))
    steps += [_step(JUMP_EQUAL, socket_call, 0, len(of_sockets)), *of_sockets]
    for number in sorted(permitted):
        steps += [_step(JUMP_EQUAL, number, 0, 1), _step(RETURN, SECCOMP_RET_ALLOW)]
    steps.append(_step(RETURN, SECCOMP_RET_ERRNO | errno.EPERM))
    return b"".join(steps)


def _step(code: int, value: int, if_so: int = 0, if_not: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_so, if_not, value)

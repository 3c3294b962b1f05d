# SPDX-License-Identifier: Apache-2.0
"""Every error that Wardround raises on purpose, and the exit code each one becomes.

    WardroundError                 1  something of ours broke
    |-- InputError                 2  a file, option or data set that somebody can correct
    |   |-- StudyError             2  the study file
    |   `-- DataError              2  a data set or a site's folder
    |-- RefusedError               3  a rule said no (privacy, policy); carries the refusal code
    |-- RunInterrupted             4  stopped by the user or a signal; `--resume` continues
    |-- ProtocolError              5  the other end sent something that does not fit the protocol
    |-- StorageError               6  disk full, not writable, or a stored file is damaged
    |-- FederationError            7  too few sites answered
    |   `-- CoordinatorUnreachable 7  a site did not reach its coordinator
    |-- CoordinatorRefused         3  the coordinator answered a site's call with "no"; carries status and code
    `-- AuditFailed                8  the audit refuted the claim of privacy, or could not test it

A message says what was wrong, where, and what to do. Several problems of one input are raised together.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum


class ExitCode(IntEnum):
    """What a Wardround command returns to the shell. Numbers are never reused."""

    DONE = 0
    INTERNAL = 1
    BAD_INPUT = 2
    REFUSED = 3
    INTERRUPTED = 4
    PROTOCOL = 5
    STORAGE = 6
    FEDERATION = 7
    AUDIT = 8


EXIT_CODE_HELP: dict[ExitCode, str] = {
    ExitCode.DONE: "done",
    ExitCode.INTERNAL: "an error inside Wardround; the log has the cause",
    ExitCode.BAD_INPUT: "bad input: a file, an option or a data set has to be corrected",
    ExitCode.REFUSED: "refused by a rule (privacy, policy); the message names it",
    ExitCode.INTERRUPTED: "interrupted; the same command with --resume continues",
    ExitCode.PROTOCOL: "the other end sent something that does not fit the protocol",
    ExitCode.STORAGE: "storage: disk full, not writable, or a stored file is damaged",
    ExitCode.FEDERATION: "too few sites answered",
    ExitCode.AUDIT: "the audit refuted the claim of privacy, or could not test it",
}


class WardroundError(Exception):
    """Base of every error raised on purpose."""

    exit_code = ExitCode.INTERNAL


class InputError(WardroundError):
    """Something that the user can correct; `problems` lists everything found, one line each."""

    exit_code = ExitCode.BAD_INPUT

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class StudyError(InputError):
    """The study file is not valid."""


class DataError(InputError):
    """A data set cannot be used as it is."""


class RefusedError(WardroundError):
    """A rule said no. `code` is the refusal code, the only part that may leave a site."""

    exit_code = ExitCode.REFUSED

    def __init__(self, code: str, reason: str) -> None:
        self.code = code
        super().__init__(f"{code}: {reason}")


class RunInterrupted(WardroundError):
    """The run stopped before its end and can be resumed."""

    exit_code = ExitCode.INTERRUPTED


class ProtocolError(WardroundError):
    """A message from the other end does not fit the protocol."""

    exit_code = ExitCode.PROTOCOL


class StorageError(WardroundError):
    """A file could not be written, or what is stored is damaged."""

    exit_code = ExitCode.STORAGE


class FederationError(WardroundError):
    """Too few sites answered to go on."""

    exit_code = ExitCode.FEDERATION


class CoordinatorUnreachable(FederationError):
    """A site did not reach its coordinator: name, proxy, network, or TLS; the message says which and what to do."""


class CoordinatorRefused(WardroundError):
    """The coordinator answered a site's call with "no". `status` is that of HTTP, `code` the coordinator's word for it."""

    exit_code = ExitCode.REFUSED

    def __init__(self, status: int, code: str, text: str) -> None:
        self.status = status
        self.code = code
        super().__init__(text)


class AuditFailed(WardroundError):
    """The audit's bound is above the claim, or its control was not caught."""

    exit_code = ExitCode.AUDIT

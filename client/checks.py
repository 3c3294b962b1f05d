# SPDX-License-Identifier: Apache-2.0
"""`wardround-client check`: everything that a site needs, each tried for real, one line each.

A check is a function of the `Doctor`; it returns what it found, or raises the error that says what to do. What cannot be tried because of
another failure is not tested, and says so. Nothing is changed (fingerprints of images are kept), and nothing leaves but one question
for the time.
"""

from __future__ import annotations

import os
import shutil
import time
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path

from client.coordinator import Coordinator
from client.enrol import is_confirmed
from client.own_certificate import certificate_problem, read_own
from client.site_config import CohortConfig, SiteConfig
from client.site_home import SiteHome
from common.crypto.certificates import DAY_SECONDS, not_after
from common.crypto.private_files import private_folder
from common.crypto.site_keys import SiteKeys
from common.errors import DataError, ExitCode, InputError, StorageError, WardroundError
from common.files import cache_folder

MIN_FREE_BYTES = 1_000_000_000
SOON_DAYS = 14.0


class State(StrEnum):
    """How a check came out."""

    OK = "ok"
    FAILED = "failed"
    NOT_TESTED = "not tested"


@dataclass(frozen=True)
class Result:
    """One line of the report."""

    name: str
    state: State
    text: str
    exit_code: ExitCode = ExitCode.DONE


class NotTested(Exception):
    """A check that cannot be made; the text says why."""


@dataclass(frozen=True)
class Doctor:
    """What the checks work on; what is asked for twice is fetched once. `clock` gives seconds since the epoch. Close it at the end."""

    home: SiteHome
    clock: Callable[[], float] = field(default=time.time)

    def close(self) -> None:
        """Close the connections."""
        if "coordinator" in self.__dict__:
            self.coordinator.close()

    @cached_property
    def config(self) -> SiteConfig:
        """The policy file. Raises NotTested when it cannot be read, which is a failure of its own check."""
        try:
            return SiteConfig.read(self.home.config)
        except InputError as error:
            raise NotTested(f"{self.home.config.name} has to be corrected first") from error

    @cached_property
    def coordinator(self) -> Coordinator:
        """The coordinator. Raises NotTested as `config` does."""
        return Coordinator(self.home, self.config.coordinator)


Check = Callable[[Doctor], str]


def examine(doctor: Doctor, checks: Iterable[tuple[str, Check]]) -> Iterable[Result]:
    """The result of each check, as it is made."""
    for name, check in checks:
        try:
            yield Result(name, State.OK, check(doctor))
        except NotTested as reason:
            yield Result(name, State.NOT_TESTED, str(reason))
        except WardroundError as error:
            yield Result(name, State.FAILED, "; ".join(str(error).splitlines()), error.exit_code)


def all_checks() -> tuple[tuple[str, Check], ...]:
    """Every check with its name, in the order of the report."""
    from client.network_checks import NETWORK_CHECKS
    from client.record_checks import RECORD_CHECKS

    return (*LOCAL_CHECKS, *NETWORK_CHECKS, *MACHINE_CHECKS, *RECORD_CHECKS)


def settings(doctor: Doctor) -> str:
    """`site.yaml` is valid and belongs to the invitation."""
    config, invitation = SiteConfig.read(doctor.home.config), doctor.home.read_invitation()
    if config.name != invitation.site:
        raise InputError(f"{doctor.home.config}: name is {config.name}, the invitation says {invitation.site}; correct it")
    differs = "" if config.coordinator == invitation.url else f" (the invitation says {invitation.url})"
    return f"{doctor.home.config.name} is valid: site {config.name}, coordinator {config.coordinator}{differs}"


def keys(doctor: Doctor) -> str:
    """All keys are there, and nobody else can read them."""
    private_folder(doctor.home.folder)
    SiteKeys.read(doctor.home.folder)
    return "all three key files are there, readable by this user only; they belong into the backup"


def words(doctor: Doctor) -> str:
    """The twelve words were compared."""
    if not is_confirmed(doctor.home):
        raise InputError(
            "the twelve words were not compared yet; call the coordinator, then run `wardround-client start`, which asks for them"
        )
    return "the twelve words were compared with the coordinator's"


def certificate(doctor: Doctor) -> str:
    """The site's certificate is for this site and these keys, and valid now."""
    own, now = read_own(doctor.home), doctor.clock()
    if own is None:
        raise InputError(
            "there is no certificate yet; the coordinator runs `wardround-server sites approve` for this site, and the client fetches it "
            "when it starts"
        )
    problem = certificate_problem(doctor.home, own, now)
    if problem is not None:
        raise InputError(f"{doctor.home.certificate}: {problem}")
    days = (not_after(own) - now) / DAY_SECONDS
    soon = "; it should have been renewed: ask the coordinator to run `wardround-server sites renew`" if days < SOON_DAYS else ""
    return f"valid until {own.not_valid_after_utc:%Y-%m-%d}, {days:.0f} days{soon}"


def disk(doctor: Doctor) -> str:
    """Space for the site's records and for the stored data sets."""
    texts = [_space(folder) for folder in dict.fromkeys((doctor.home.folder, _existing(cache_folder())))]
    return ", ".join(texts)


def _space(folder: Path) -> str:
    try:
        free_bytes = shutil.disk_usage(folder).free
    except OSError as error:
        raise StorageError(f"{folder}: cannot be used ({error.strerror}); check its permissions") from error
    if free_bytes < MIN_FREE_BYTES:
        raise StorageError(
            f"{folder}: {free_bytes / 1e6:,.0f} MB are free, at least {MIN_FREE_BYTES / 1e6:,.0f} MB are needed; free some space"
        )
    if not os.access(folder, os.W_OK):
        raise StorageError(f"{folder}: cannot be written by this user; check its owner and permissions")
    return f"{free_bytes / 1e9:,.0f} GB free in {folder}"


def _existing(folder: Path) -> Path:
    """`folder`, or the nearest one above it that is there."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def device(doctor: Doctor) -> str:
    """What trains is there."""
    name = doctor.config.device
    if name == "cpu":
        return _processor(doctor)
    import torch

    if name == "mps":
        return _mps(torch.backends.mps.is_available())
    if not torch.cuda.is_available():
        return _no_card(doctor)
    number = int(name.partition(":")[2] or 0)
    if number >= torch.cuda.device_count():
        raise InputError(f"device {name}: there are {torch.cuda.device_count()} cards, numbered from 0; correct device in site.yaml")
    free_bytes, total_bytes = torch.cuda.mem_get_info(number)
    return f"{torch.cuda.get_device_name(number)}, {free_bytes / 1e9:.1f} of {total_bytes / 1e9:.1f} GB of memory free"


def _mps(is_there: bool) -> str:
    if not is_there:
        raise InputError("device mps: not on this machine; write device: auto or cpu in site.yaml")
    return "training on the Apple graphics processor"


def _processor(doctor: Doctor) -> str:
    return f"training on the processor, {doctor.config.threads or os.cpu_count()} threads"


def _no_card(doctor: Doctor) -> str:
    name = doctor.config.device
    if name != "auto":
        raise InputError(f"device {name}: no card can be used here; check the driver (nvidia-smi), or write device: cpu in site.yaml")
    return f"no graphics card can be used: {_processor(doctor)}"


def data(doctor: Doctor) -> str:
    """Each cohort's data can be read by this user."""
    cohorts = doctor.config.cohorts
    if not cohorts:
        raise InputError("site.yaml names no cohort yet; describe the data under cohorts (the template shows how)")
    problems: list[str] = []
    for name, cohort in cohorts.items():
        try:
            _open(cohort.path)
        except (OSError, zipfile.BadZipFile) as error:
            problems.append(
                f"cohort {name}: {cohort.path} cannot be read ({getattr(error, 'strerror', None) or error}); correct cohorts in site.yaml"
            )
    if problems:
        raise DataError(problems)
    return ", ".join(_described(name, cohort) for name, cohort in cohorts.items())


def _open(path: Path) -> None:
    """Open a file, or list a folder. What is in it is the business of a study's own checks."""
    if path.is_dir():
        if not any(path.iterdir()):
            raise OSError(0, "an empty folder")
    elif path.suffix == ".npz":
        zipfile.ZipFile(path).close()
    else:
        path.open("rb").close()


def _described(name: str, cohort: CohortConfig) -> str:
    return f"{name}: readable, nominal size {cohort.nominal_patients}"


def cohorts(doctor: Doctor) -> str:
    """Each cohort that `cohort build` made is fit for use; what was read before is not read again."""
    from client.cohorts.check import Order, check_cohort
    from client.cohorts.layout import is_cohort
    from common.crypto.secrets import Secret

    built = {name: one.path for name, one in doctor.config.cohorts.items() if is_cohort(one.path)}
    if not built:
        return "none was made with `wardround-client cohort build`, so none was looked into"
    secret = Secret.read(doctor.home.key)
    verdicts = {name: check_cohort(Order(path, secret=secret, quick=True)) for name, path in built.items()}
    failed = [name for name, verdict in verdicts.items() if not verdict.passed]
    if failed:
        raise DataError([f"{name}: {verdicts[name].summary()}; run `wardround-client cohort check {built[name]}`" for name in failed])
    return "; ".join(f"{name}: {verdict.summary()}" for name, verdict in verdicts.items())


LOCAL_CHECKS: tuple[tuple[str, Check], ...] = (("settings", settings), ("keys", keys), ("words", words), ("certificate", certificate))
MACHINE_CHECKS: tuple[tuple[str, Check], ...] = (("disk", disk), ("device", device), ("data", data), ("cohorts", cohorts))

# SPDX-License-Identifier: Apache-2.0
"""Making a coordinator's folder, once and wholly.

`server.json` is written last: as long as it is missing, calling `found` again completes what a crash left half done; once it is there, a
key that is missing was lost, and is never made anew (sites have pinned it). No key is ever overwritten. Two callers at once: one after the
other. The server's certificate is the exception: it is made again when it ends soon or when names are added.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import ValidationError

from common.crypto.certificates import (
    DAY_SECONDS,
    Authority,
    is_issued_by,
    names_of,
    new_authority_key,
    not_after,
    read_authority_key,
    read_certificate,
)
from common.crypto.private_files import private_folder, read_private, replace_private, write_new
from common.crypto.secrets import Secret
from common.crypto.site_keys import new_ec_key, read_ec_key
from common.errors import InputError, StorageError
from common.files import locked
from server.authority import load_authority
from server.home import SETTINGS_FILE, ServerHome, ServerSettings
from server.state import State

DEFAULT_SUPERLINK_PORT = 9092
HTTPS_PORT = 443
RENEW_BEFORE_DAYS = 30
LOOPBACK_NAMES = ("localhost", "127.0.0.1")
_SERVER_CURVE = ec.SECP256R1()


@dataclass(frozen=True)
class Wanted:
    """What the coordinator asks for. `listen` is HOST:PORT; None leaves what is there, else the default."""

    url: str
    listen: str | None = None
    superlink_port: int | None = None
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class KeyHolder:
    """How to come by the authority's key: `passphrase(new)` asks (`new`: it is chosen now), `key_file` is its file if not in the folder."""

    passphrase: Callable[[bool], bytes]
    key_file: Path | None = None


def found(home: ServerHome, wanted: Wanted, holder: KeyHolder, now: float | None = None) -> list[str]:
    """Make what is missing in `home` and return the names of the files that were made.

    Raises InputError (settings differ from those in use, wrong passphrase, a folder that others may enter), StorageError (a key was lost).
    """
    settings = _settings(wanted)
    private_folder(home.folder)
    with locked(home.folder / ".init.lock"):
        in_use = (home.folder / SETTINGS_FILE).exists()
        if in_use:
            settings = _agreed(home, wanted, settings)
            _refuse_lost_keys(home)
        else:
            _remove_leftovers(home)
        before = _listing(home)
        names = (*_host(settings.url), *LOOPBACK_NAMES, *wanted.names)
        _ensure_certificates(home, _CachedHolder(home, holder, time.time() if now is None else now), names, settings)
        _ensure_secrets(home)
        State(home.state)
        if not in_use:
            home.write_settings(settings)
        return sorted(_listing(home) - before)


class _CachedHolder:
    """Opens the authority when it is needed, asking once; makes it when there is none."""

    def __init__(self, home: ServerHome, holder: KeyHolder, now: float) -> None:
        self.now = now
        self._home, self._holder = home, holder
        self._authority: Authority | None = None

    def authority(self) -> Authority:
        if self._authority is None:
            self._authority = self._open()
        return self._authority

    def _open(self) -> Authority:
        home, key_file = self._home, self._holder.key_file or self._home.ca_key
        if home.ca_certificate.exists():
            return load_authority(home, self._holder.passphrase(False), key_file)
        is_new = not key_file.exists()
        passphrase = self._holder.passphrase(is_new)
        if is_new:
            write_new(key_file, new_authority_key(passphrase))
        authority = Authority.self_signed(read_authority_key(read_private(key_file), passphrase), self.now)
        write_new(home.ca_certificate, authority.pem.encode())
        return authority


def _settings(wanted: Wanted) -> ServerSettings:
    host, port = _listen(wanted)
    superlink_port = DEFAULT_SUPERLINK_PORT if wanted.superlink_port is None else wanted.superlink_port
    if superlink_port == port:
        raise InputError(f"--superlink-port {port}: that is the gateway's port; give another one")
    try:
        return ServerSettings(url=wanted.url.rstrip("/"), listen_host=host, listen_port=port, superlink_port=superlink_port)
    except ValidationError as error:
        raise InputError([f"--{str(part['loc'][0]).replace('_', '-')}: {part['msg']}" for part in error.errors()]) from error


def _listen(wanted: Wanted) -> tuple[str, int]:
    """Host and port of the gateway."""
    _host(wanted.url)
    if wanted.listen is None:
        return "0.0.0.0", urlsplit(wanted.url).port or HTTPS_PORT
    host, colon, port = wanted.listen.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit():
        raise InputError(f"--listen {wanted.listen}: write HOST:PORT, such as 0.0.0.0:8443")
    return host.strip("[]"), int(port)


def _host(url: str) -> tuple[str]:
    try:
        parts = urlsplit(url)
        if parts.scheme == "https" and parts.hostname and (parts.port is None or parts.port) and not parts.username:
            return (parts.hostname,)
    except ValueError:
        pass
    raise InputError(f"--url {url}: write https://HOST:PORT, the address at which sites reach this coordinator")


def _agreed(home: ServerHome, wanted: Wanted, settings: ServerSettings) -> ServerSettings:
    """The settings in use; what was asked for must be the same."""
    current = home.settings
    asked = {"url": settings.url}
    if wanted.listen is not None:
        asked |= {"listen_host": settings.listen_host, "listen_port": str(settings.listen_port)}
    if wanted.superlink_port is not None:
        asked["superlink_port"] = str(settings.superlink_port)
    path = home.folder / SETTINGS_FILE
    problems = [
        f"{path}: {name} is {getattr(current, name)}, not {value}; change it there (sites keep the URL of their invitation)"
        for name, value in asked.items()
        if str(getattr(current, name)) != value
    ]
    if problems:
        raise InputError(problems)
    return current


def _refuse_lost_keys(home: ServerHome) -> None:
    lost = [path for path in (home.ca_certificate, home.coordinator_key) if not path.exists()]
    if not home.study_key.exists() and not home.study_public_key.exists():
        lost.append(home.study_public_key)
    if lost:
        names = ", ".join(str(path) for path in lost)
        raise StorageError(f"{names}: lost, and sites rely on it, so it is not made anew; restore it from the backup")


def _ensure_certificates(home: ServerHome, holder: _CachedHolder, names: tuple[str, ...], settings: ServerSettings) -> None:
    if not home.ca_certificate.exists():
        holder.authority()
    write_new(home.certificate_key, new_ec_key(_SERVER_CURVE))
    key = read_ec_key(home.certificate_key, _SERVER_CURVE).public_key()
    names = (*names, *_names_to_keep(home))
    if not _is_good(home, key, names, holder.now):
        pem = holder.authority().server_certificate(key, names, settings.certificate_days, holder.now)
        replace_private(home.certificate, pem.encode())


def _names_to_keep(home: ServerHome) -> list[str]:
    return names_of(read_certificate(home.certificate.read_bytes())) if home.certificate.exists() else []


def _is_good(home: ServerHome, key: ec.EllipticCurvePublicKey, names: tuple[str, ...], now: float) -> bool:
    """Whether the server's certificate is ours, for this key and these names, and lasts a while."""
    if not home.certificate.exists():
        return False
    certificate = read_certificate(home.certificate.read_bytes())
    return (
        certificate.public_key() == key
        and is_issued_by(certificate, read_certificate(home.ca_certificate.read_bytes()))
        and {name.lower() for name in names} <= set(names_of(certificate))
        and not_after(certificate) > now + RENEW_BEFORE_DAYS * DAY_SECONDS
    )


def _ensure_secrets(home: ServerHome) -> None:
    if home.study_key.exists() or not home.study_public_key.exists():
        public_key = Secret.ensure(home.study_key).signer.public_key
        write_new(home.study_public_key, f"{public_key}\n".encode())
        if home.study_public_key.read_text(encoding="utf-8").strip() != public_key:
            raise StorageError(f"{home.study_public_key}: not the public half of {home.study_key.name}; restore both from the backup")
    Secret.ensure(home.coordinator_key)
    Secret.ensure(home.superexec_secret)


def _remove_leftovers(home: ServerHome) -> None:
    """Halves of files that a killed init left; nothing else runs in a folder without settings."""
    for leftover in home.folder.glob(".*.part"):
        leftover.unlink(missing_ok=True)


def _listing(home: ServerHome) -> set[str]:
    return {
        path.name for path in home.folder.iterdir() if not path.name.startswith(".") and path.suffix not in (".sqlite-wal", ".sqlite-shm")
    }

# SPDX-License-Identifier: Apache-2.0
"""The coordinator's state folder: where everything lies, and its settings.

server.json               settings (URL, addresses)          0600
ca.crt ca.key             certificate authority; its key is encrypted with a passphrase and may be kept elsewhere
server.crt server.key     certificate of the gateway and, on loopback, of the SuperLink
study.key study.pub       signs studies; the key may be kept on another machine
coordinator.key           signs receipts
superexec.secret          lets our executor, and nobody else, take ServerApp tasks from the SuperLink
state.sqlite              sites, offers, approvals, runs, receipts
superlink.sqlite          Flower's own database; what travels, in pieces, is beside it in superlink.sqlite.objects/ until it has arrived
flower/                   Flower's other files
tokens/ serverapps/       of the servers of runs: a token until it is read, a lock file while one works
up.json up.lock executor.lock     what runs
ledger-heads.json         the newest ledger head of each site
runs/<run id>/            one run: run.json, checkpoints, rounds.sqlite, events.jsonl
logs/                     one rotated file a process
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from common.crypto.private_files import replace_private
from common.errors import InputError, StorageError
from common.listen import checked_listen

HOME_VARIABLE = "WARDROUND_SERVER"
SETTINGS_FILE = "server.json"


class ServerSettings(BaseModel):
    """`server.json`. `listen` is where the gateway listens, `superlink_port` a port on loopback; `metrics_listen` HOST:PORT or `off`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(pattern="^https://[^/?#]+$")
    listen_host: str
    listen_port: int = Field(ge=1, le=65535)
    superlink_port: int = Field(ge=1, le=65535)
    certificate_days: int = Field(365, ge=1, le=825)
    metrics_listen: Annotated[str, AfterValidator(checked_listen)] = "127.0.0.1:9464"


@dataclass(frozen=True)
class ServerHome:
    """The state folder `folder`."""

    folder: Path

    @classmethod
    def find(cls, folder: Path | None) -> ServerHome:
        """`folder`, else the one named in `WARDROUND_SERVER`, else the current one. Raises InputError when it is no state folder."""
        home = cls((folder or Path(os.environ.get(HOME_VARIABLE) or ".")).absolute())
        if not (home.folder / SETTINGS_FILE).exists():
            raise InputError(
                f"{home.folder}: not a coordinator's folder, it has no {SETTINGS_FILE}; give --home DIR, or make one with "
                "`wardround-server init DIR --url https://…`"
            )
        return home

    @property
    def settings(self) -> ServerSettings:
        """The settings as they are now. Raises InputError naming the file."""
        path = self.folder / SETTINGS_FILE
        try:
            return ServerSettings.model_validate_json(path.read_text(encoding="utf-8"))
        except ValidationError as error:
            raise InputError(f"{path}: {error.errors()[0]['loc'][0]}: {error.errors()[0]['msg']}; correct it") from error
        except OSError as error:
            raise StorageError(f"{path}: cannot be read ({error.strerror})") from error

    def write_settings(self, settings: ServerSettings) -> None:
        """Write `server.json` durably."""
        replace_private(self.folder / SETTINGS_FILE, settings.model_dump_json(indent=1).encode())

    @property
    def ca_certificate(self) -> Path:
        """Certificate of the authority."""
        return self.folder / "ca.crt"

    @property
    def ca_key(self) -> Path:
        """Key of the authority, encrypted."""
        return self.folder / "ca.key"

    @property
    def certificate(self) -> Path:
        """The server's certificate."""
        return self.folder / "server.crt"

    @property
    def certificate_key(self) -> Path:
        """The server's TLS key."""
        return self.folder / "server.key"

    @property
    def study_key(self) -> Path:
        """The secret (`common.crypto.secrets.Secret`) that signs studies."""
        return self.folder / "study.key"

    @property
    def study_public_key(self) -> Path:
        """The public study-signing key, hexadecimal."""
        return self.folder / "study.pub"

    @property
    def coordinator_key(self) -> Path:
        """The secret that signs receipts."""
        return self.folder / "coordinator.key"

    @property
    def superexec_secret(self) -> Path:
        """The secret shared by SuperLink and executor."""
        return self.folder / "superexec.secret"

    @property
    def state(self) -> Path:
        """Our database."""
        return self.folder / "state.sqlite"

    @property
    def superlink_database(self) -> Path:
        """Flower's database."""
        return self.folder / "superlink.sqlite"

    @property
    def logs(self) -> Path:
        """Folder of the logs."""
        return self.folder / "logs"

    def run(self, run_id: str) -> Path:
        """Folder of one run."""
        return self.folder / "runs" / run_id

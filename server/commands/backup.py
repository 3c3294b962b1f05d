# SPDX-License-Identifier: Apache-2.0
"""Commands of the coordinator: backup, restore."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

NAME = "wardround-server"

HomeOption = Annotated[
    Path | None, typer.Option("--home", metavar="DIR", help="The coordinator's folder (else WARDROUND_SERVER, else the current one).")
]
PassphraseOption = Annotated[
    Path | None, typer.Option("--passphrase-file", metavar="FILE", help="The backup's passphrase (mode 0600), not asked for.")
]
FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="The backup.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, for machines.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog=f"Example: {NAME} backup /backup/coordinator-2026-05-03.wardround --home /srv/wardround")(backup)
    app.command(epilog=f"Example: {NAME} restore /backup/coordinator-2026-05-03.wardround /srv/wardround")(restore)


def backup(file: FileArgument, home: HomeOption = None, passphrase_file: PassphraseOption = None, as_json: JsonOption = False) -> None:
    """Write keys, sites, offers, approvals, receipts and runs into one encrypted file, while everything runs. Never over another file."""
    from common.crypto.passphrases import ask_passphrase
    from server.backup import back_up_server
    from server.home import ServerHome

    found = ServerHome.find(home)
    size_bytes = back_up_server(found, file, ask_passphrase(passphrase_file, "the backup", is_new=True))
    if as_json:
        print(json.dumps({"file": str(file.absolute()), "size_bytes": size_bytes, "has_ca_key": found.ca_key.exists()}))
        return
    print(f"{file}: {size_bytes:,} bytes; it cannot be opened without its passphrase, so keep that too, apart from it")
    if not found.ca_key.exists():
        print("The authority's key is not in this folder, so it is not in the backup: back up the place where you keep it.")


def restore(
    file: FileArgument,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Unpack a backup into a new folder. What was decided after the backup is not in it: look at the sites before `up`."""
    from common.crypto.passphrases import ask_passphrase
    from server.backup import restore_server

    manifest = restore_server(file, ask_passphrase(passphrase_file, "the backup", is_new=False), folder)
    if as_json:
        print(json.dumps({"folder": str(folder.absolute()), **manifest.model_dump()}))
        return
    made = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(manifest.created))
    print(
        f"{folder}: {manifest.name}, as it was on {made}.\n"
        f"1. Make sure that the old `{NAME} up` never runs again.\n"
        f"2. {NAME} sites --home {folder}      (a site that was revoked after {made} is let in again: revoke it again, before `up`)\n"
        f"3. {NAME} up --home {folder}"
    )

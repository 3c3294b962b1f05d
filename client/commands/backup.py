# SPDX-License-Identifier: Apache-2.0
"""Commands of hospital IT: backup, restore."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

NAME = "wardround-client"

HomeOption = Annotated[Path | None, typer.Option("--home", metavar="DIR", help="The site's folder; default WARDROUND_SITE, else here.")]
PassphraseOption = Annotated[
    Path | None, typer.Option("--passphrase-file", metavar="FILE", help="The backup's passphrase (mode 0600), not asked for.")
]
FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="The backup.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, for machines.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog=f"Example: {NAME} backup /backup/north-2026-05-03.wardround")(backup)
    app.command(epilog=f"Example: {NAME} restore /backup/north-2026-05-03.wardround /srv/wardround")(restore)


def backup(file: FileArgument, home: HomeOption = None, passphrase_file: PassphraseOption = None, as_json: JsonOption = False) -> None:
    """Write ledger, keys, policy, approvals and records into one encrypted file, while everything runs. Never over another file."""
    from client.backup import back_up_site
    from client.site_home import SiteHome
    from common.crypto.passphrases import ask_passphrase

    site = SiteHome.find(home)
    size_bytes = back_up_site(site, file, ask_passphrase(passphrase_file, "the backup", is_new=True))
    if as_json:
        print(json.dumps({"file": str(file.absolute()), "size_bytes": size_bytes}))
    else:
        print(f"{file}: {size_bytes:,} bytes; it cannot be opened without its passphrase, so keep that too, apart from it")


def restore(
    file: FileArgument,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Unpack a backup into a new folder. Nothing trains there until `ledger recover` has charged what left after the backup."""
    from client.backup import restore_site
    from common.crypto.passphrases import ask_passphrase

    manifest = restore_site(file, ask_passphrase(passphrase_file, "the backup", is_new=False), folder)
    if as_json:
        print(json.dumps({"folder": str(folder.absolute()), **manifest.model_dump()}))
    else:
        print(
            f"{folder}: {manifest.name}, as it was when the backup was made.\n"
            "1. Make sure that the old client never runs again: two of them would spend one budget.\n"
            f"2. {NAME} ledger recover {folder}      (asks the coordinator what left since)\n"
            f"3. {NAME} start --home {folder}\n"
            f"4. For each study that still runs: {NAME} approve ID --runs 0 --home {folder}      (reads its images again)"
        )

# SPDX-License-Identifier: Apache-2.0
"""A hospital's backup: everything that cannot be made again, and nothing else.

In it: keys, policy, invitation, certificates, enrolment, the ledger, its receipts, approvals, the log of what left and its receipts, the
journal of rounds, the list of excluded patients, the studies' folders. Not in it: images and `cache/` (made again at an approval), logs,
the daemon's state, and the outbox.

The outbox is left out on purpose. Its replies are there to be sent again, byte for byte, in the round that is going on; after a restore
that round is over, and without its bytes it stays charged and is never computed again, which is what the ledger promises. A copy for
years of what an update says about patients (without privacy: much) would help nobody.

What shows rows of the ledger (receipts, the log of what left) is copied before the ledger, so a restored ledger is never behind its own
backup. It is behind everything that happened after: so a restore leaves a mark, and nothing trains until `ledger recover` has answered it.
"""

from __future__ import annotations

import time
from importlib import metadata
from pathlib import Path
from typing import Final

from client.ledger.book import Ledger
from client.ledger.receipts import ReceiptFile
from client.ledger.site_witness import Restored
from client.site_config import SiteConfig
from client.site_home import SiteHome
from common.archive import Archive, Manifest, back_up, restore
from common.crypto.sealed_stream import COST
from common.crypto.secrets import Secret

LINES: Final = ("receipts.jsonl", "egress-receipts.jsonl", "egress.jsonl", "approvals.jsonl", "rounds.jsonl", "exclusions.jsonl")
WHOLE: Final = (
    "site.key",
    "node.pem",
    "tls.pem",
    "site.yaml",
    "invitation.json",
    "ca.crt",
    "tls.crt",
    "enrolment.json",
    "paused",
)
STUDY: Final = ("offer.json", "site.json", "rows.npy", "split.npy")
LEDGER: Final = "ledger.sqlite"
LEFT_OUT: Final = (
    "outbox",
    "cache",
    "logs",
    "site.log",
    "daemon.json",
    "daemon.lock",
    "round.lock",
    "approvals-delivered.json",
    "restored.json",
)
"""What a site's folder has besides, and what a backup needs not have."""


def back_up_site(home: SiteHome, path: Path, passphrase: bytes, *, cost: int = COST) -> int:
    """Write the site's backup to a new file, while everything runs; its size in bytes.

    Raises InputError, and StorageError also when the ledger is not whole: a backup of damage helps nobody.
    """
    config = SiteConfig.read(home.config)
    _checked_ledger(home.folder)
    manifest = Manifest(kind="site", name=config.name, version=metadata.version("wardround"), created=time.time())

    def fill(archive: Archive) -> None:
        for name in LINES:
            archive.add_lines(name, home.folder / name)
        for name in WHOLE:
            archive.add_file(name, home.folder / name)
        for study in sorted(path.parent for path in home.studies.glob("*/offer.json")):
            for name in STUDY:
                archive.add_file(f"{home.studies.name}/{study.name}/{name}", study / name)
        archive.add_database(LEDGER, home.ledger)

    return back_up(path, passphrase, manifest, fill, cost)


def restore_site(path: Path, passphrase: bytes, folder: Path, *, now: float | None = None) -> Manifest:
    """Unpack a site's backup into a new folder. It trains nothing until `wardround-client ledger recover` has run there.

    Raises InputError, StorageError; then nothing is left.
    """

    def complete(unpacked: Path, manifest: Manifest) -> None:
        row = _checked_ledger(unpacked)
        Restored.new(row, manifest.created, time.time() if now is None else now).write(unpacked)

    return restore(path, passphrase, "site", folder, complete)


def _checked_ledger(folder: Path) -> int:
    """Check every row with the site's key; the number of the last one. Raises StorageError."""
    home = SiteHome(folder)
    secret = Secret.read(home.key)
    return Ledger(home.ledger, secret, ReceiptFile(home.receipts, secret, ())).fold().number

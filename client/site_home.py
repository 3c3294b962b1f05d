# SPDX-License-Identifier: Apache-2.0
"""A site's state folder (mode 0700): where everything lies. Nothing in it is sent anywhere but through `client.egress`.

site.yaml                       the hospital's policy; written by hand, from a template
site.key node.pem tls.pem       the site's secret, its Flower node key, its TLS key                  0600; never leave
invitation.json ca.crt          what the coordinator sent by hand
tls.crt enrolment.json          the site's certificate; the request that was sent, and whether the twelve words were compared
ledger.sqlite receipts.jsonl outbox/ rounds.jsonl site.log round.lock     one for the whole site
figures.json                    exact ε that was shown before, so that it is not worked out again
studies/<study id>/             offer.json, and once it is approved site.json, rows.npy, split.npy: what the worker opens
approvals.jsonl                 signed approvals and rejections
egress.jsonl egress-receipts.jsonl
exclusions.jsonl                decisions on patients who want no part in training any more (`client.cohorts.exclusions`)
daemon.json paused logs/        the running daemon
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from common.enrolment import Invitation
from common.errors import InputError, StorageError

HOME_VARIABLE = "WARDROUND_SITE"
CONFIG_FILE = "site.yaml"


@dataclass(frozen=True)
class SiteHome:
    """The state folder `folder`."""

    folder: Path

    @classmethod
    def at(cls, folder: Path | None) -> SiteHome:
        """`folder`, else the one named in `WARDROUND_SITE`, else the current one; whether it is a site's folder is not looked at."""
        return cls((folder or Path(os.environ.get(HOME_VARIABLE) or ".")).absolute())

    @classmethod
    def find(cls, folder: Path | None) -> SiteHome:
        """The same, but it has to be a site's folder. Raises InputError."""
        home = cls.at(folder)
        if not home.config.exists():
            raise InputError(
                f"{home.folder}: not a site's folder, it has no {CONFIG_FILE}; give --home DIR (or set {HOME_VARIABLE}), or make one with "
                "`wardround-client init --invitation FILE --home DIR`"
            )
        return home

    def read_invitation(self) -> Invitation:
        """The coordinator's invitation. Raises InputError naming the file."""
        try:
            text = self.invitation.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise InputError(
                f"{self.invitation}: no such file; put the coordinator's invitation there again, or run "
                f"`wardround-client init --invitation FILE --home {self.folder}`"
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise StorageError(f"{self.invitation}: cannot be read ({error}); check its permissions") from error
        return Invitation.read(text, str(self.invitation))

    @property
    def config(self) -> Path:
        """The policy file; `client.site_config.SiteConfig.read` reads it."""
        return self.folder / CONFIG_FILE

    @property
    def key(self) -> Path:
        """The site's secret (`common.crypto.secrets.Secret`)."""
        return self.folder / "site.key"

    @property
    def node_key(self) -> Path:
        """Flower node key, EC P-384."""
        return self.folder / "node.pem"

    @property
    def tls_key(self) -> Path:
        """TLS key, EC P-256."""
        return self.folder / "tls.pem"

    @property
    def invitation(self) -> Path:
        """The coordinator's invitation as it came."""
        return self.folder / "invitation.json"

    @property
    def ca_certificate(self) -> Path:
        """Certificate of the coordinator's authority, the only one that is trusted."""
        return self.folder / "ca.crt"

    @property
    def certificate(self) -> Path:
        """The site's certificate; not there before the coordinator has approved."""
        return self.folder / "tls.crt"

    @property
    def enrolment(self) -> Path:
        """State of the enrolment (`client.enrol`)."""
        return self.folder / "enrolment.json"

    @property
    def ledger(self) -> Path:
        """The privacy ledger."""
        return self.folder / "ledger.sqlite"

    @property
    def receipts(self) -> Path:
        """The coordinator's receipts for the ledger."""
        return self.folder / "receipts.jsonl"

    @property
    def outbox(self) -> Path:
        """Finished replies."""
        return self.folder / "outbox"

    @property
    def journal(self) -> Path:
        """The site's record of its rounds."""
        return self.folder / "rounds.jsonl"

    @property
    def log(self) -> Path:
        """Failures with their causes."""
        return self.folder / "site.log"

    @property
    def round_lock(self) -> Path:
        """Held while a round is worked on."""
        return self.folder / "round.lock"

    @property
    def studies(self) -> Path:
        """Folder of all studies."""
        return self.folder / "studies"

    def study(self, study_id: str) -> Path:
        """Folder of one study."""
        return self.studies / study_id

    def offer(self, study_id: str) -> Path:
        """A study as it was offered."""
        return self.study(study_id) / "offer.json"

    @property
    def approvals(self) -> Path:
        """Signed approvals, append-only."""
        return self.folder / "approvals.jsonl"

    @property
    def egress(self) -> Path:
        """What left, a hash-chained line each."""
        return self.folder / "egress.jsonl"

    @property
    def egress_receipts(self) -> Path:
        """The coordinator's receipts for these lines."""
        return self.folder / "egress-receipts.jsonl"

    @property
    def exclusions(self) -> Path:
        """Decisions on patients who want no part any more, append-only (`client.cohorts.exclusions`)."""
        return self.folder / "exclusions.jsonl"

    @property
    def daemon(self) -> Path:
        """State of the running daemon."""
        return self.folder / "daemon.json"

    @property
    def paused(self) -> Path:
        """While this file is there nothing trains."""
        return self.folder / "paused"

    @property
    def logs(self) -> Path:
        """Folder of the daemon's logs."""
        return self.folder / "logs"

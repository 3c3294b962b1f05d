# SPDX-License-Identifier: Apache-2.0
"""Notices that the server's certificate was renewed, so that nothing has to be restarted by hand for it."""

from __future__ import annotations

import ssl

from server.home import ServerHome

Stamp = tuple[tuple[int, int, int], ...]


class CertificateWatch:
    """Watches certificate and key of the coordinator in `home`, from how they are now."""

    def __init__(self, home: ServerHome) -> None:
        self._files = (home.certificate, home.certificate_key)
        self._seen = self._stamp()
        self._looked = self._seen
        self.problem = ""
        """Why new files are not taken, "" if there are none or they were."""

    def has_new(self) -> bool:
        """Whether there is a new certificate with its key since the last time that this said yes; a pair that does not fit is not taken."""
        stamp = self._stamp()
        if stamp in (self._seen, self._looked):
            return False
        self._looked = stamp
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*self._files)
        except OSError as error:
            self.problem = f"server.crt and server.key were replaced and cannot be used ({error}); those from before are used on"
            return False
        self._seen, self.problem = stamp, ""
        return True

    def _stamp(self) -> Stamp | None:
        """What tells one version of the files from another; None while one is missing."""
        try:
            found = [path.stat() for path in self._files]
        except OSError:
            return None
        return tuple((one.st_ino, one.st_mtime_ns, one.st_size) for one in found)

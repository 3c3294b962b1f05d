# SPDX-License-Identifier: Apache-2.0
"""Signed records: a frozen value as canonical JSON, with an Ed25519 signature over the purpose and that text.

Every kind of record has a purpose of its own, so that a signature under one can never pass for another.
"""

from __future__ import annotations

import hashlib
import json
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.crypto.signatures import Signer, is_signed
from common.errors import ProtocolError


class Record(BaseModel):
    """Base of what is signed. `purpose` names the kind and its version."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    purpose: ClassVar[str]

    @property
    def canonical_json(self) -> str:
        """The record as one line: keys sorted, no spaces."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False)

    def signed(self, signer: Signer) -> Signed:
        """The record with the signature of `signer`."""
        text = self.canonical_json
        return Signed(record=text, signature=signer.sign(_message(self.purpose, text)))

    @classmethod
    def verified(cls, signed: Signed, public_key: str) -> Self:
        """The record in `signed`. Raises ProtocolError when `public_key` did not sign it, or when it is not of this kind."""
        if not is_signed(public_key, _message(cls.purpose, signed.record), signed.signature):
            raise ProtocolError(f"{cls.purpose}: the signature is not that of key {public_key[:16]}…")
        try:
            record = cls.model_validate_json(signed.record)
        except ValidationError as error:
            raise ProtocolError(
                f"{cls.purpose}: cannot be read ({error.error_count()} problems); the two ends may differ in version"
            ) from error
        if record.canonical_json != signed.record:
            raise ProtocolError(f"{cls.purpose}: not in canonical form")
        return record


class Signed(BaseModel):
    """A record's text and its signature, as they travel and are stored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    record: str = Field(max_length=1 << 21)
    signature: str = Field(pattern="^[0-9a-f]{128}$")

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps({"record": self.record, "signature": self.signature}, sort_keys=True, separators=(",", ":"))

    @property
    def sha256(self) -> str:
        """Digest of `to_json`: names the signed record."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @classmethod
    def from_json(cls, text: str | bytes) -> Signed:
        """What `to_json` wrote. Raises ProtocolError."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ProtocolError(f"signed record: cannot be read ({error.error_count()} problems)") from error


def _message(purpose: str, text: str) -> bytes:
    return f"wardround {purpose}\n{text}".encode()

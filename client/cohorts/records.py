# SPDX-License-Identifier: Apache-2.0
"""What is remembered of each source file of a cohort: one `FileRecord` a line of `ingest/files.jsonl`.

A record says which image the file became, or why it was refused, and what is worth a look. It is a working paper of the site that
training never opens. It holds the file's name, and never a value of a header, a patient id (only the pseudonym) or a date: the model
refuses what does not have the form of a pseudonym or of a keyword.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from common.data.decode.decoded import Decoded
from common.errors import DataError

PSEUDONYM = r"^wrp1-[0-9a-f]{64}$"
Keyword = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9._ -]{0,63}$")]
NameFinding = Literal["date", "person name", "long number"]


class FileRecord(BaseModel):
    """One frame of one source file (a file of several frames has several records; a refused file has one)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = Field(min_length=1, description="Name of the file, relative to the folder that was read.")
    frame: int = Field(0, ge=0, description="Number of the frame or slice in the file, from 0.")
    sha256: str = Field(pattern=r"^([0-9a-f]{64})?$", description="SHA-256 of the file; empty when it could not be read at all.")
    image: int | None = Field(None, ge=0, description="Row of images.npy; None when the file was refused.")
    patient: str | None = Field(None, pattern=PSEUDONYM, description="The patient's pseudonym.")
    problem: str | None = Field(None, description="Why it was refused: `reason; remedy`.")
    height: int | None = Field(None, ge=1, description="Rows of the image in the file.")
    width: int | None = Field(None, ge=1, description="Columns of the image in the file.")
    bits_stored: int | None = Field(None, ge=1, le=64, description="Bits of a value in the file.")
    photometric: str | None = Field(None, max_length=32, description="How the file encodes grey or colour.")
    identity_tags: tuple[Keyword, ...] = Field((), description="Names of header fields that may identify and are not empty.")
    burned_in: Literal["yes", "no", "unknown"] = Field("unknown", description="Whether the header says that text is burned in.")
    name_findings: tuple[NameFinding, ...] = Field((), description="What the file's name looks like.")
    constant: bool = Field(False, description="All pixels have one value.")
    inverted: bool | None = Field(None, description="Stored with white as the smallest value, and turned around; None: not known.")
    remarks: tuple[str, ...] = Field((), description="What was done to the pixels on the way that somebody should know.")

    @model_validator(mode="after")
    def _used_or_refused(self) -> Self:
        if (self.image is None) == (self.problem is None):
            raise ValueError("a record has either the number of an image or the problem for which the file was refused")
        return self

    @property
    def refused(self) -> bool:
        """Whether the file (or this frame) did not become an image."""
        return self.problem is not None

    @classmethod
    def of(
        cls, source: str, sha256: str, image: int, patient: str, decoded: Decoded, *, name_findings: tuple[NameFinding, ...] = ()
    ) -> FileRecord:
        """The record of `decoded` (at its size in the file), which became row `image`. The header's patient id stays out of it."""
        facts = decoded.facts
        return cls(
            source=source,
            frame=decoded.frame,
            sha256=sha256,
            image=image,
            patient=patient,
            height=facts.height,
            width=facts.width,
            bits_stored=facts.bits_stored,
            photometric=facts.photometric,
            identity_tags=facts.identity_tags,
            burned_in=facts.burned_in,
            name_findings=name_findings,
            constant=decoded.constant,
            inverted=facts.inverted,
            remarks=facts.remarks,
        )

    def line(self) -> str:
        """The record as one line of `files.jsonl`, with its end of line; what has its default is left out."""
        return self.model_dump_json(exclude_defaults=True) + "\n"


def read_record(line: str) -> FileRecord:
    """The record of a line of `files.jsonl`. Raises DataError when it is none (a torn or edited file)."""
    try:
        return FileRecord.model_validate_json(line)
    except ValidationError as error:
        raise DataError("ingest/files.jsonl: a line is damaged; build the cohort again") from error

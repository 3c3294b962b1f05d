# SPDX-License-Identifier: Apache-2.0
"""The folder of a built cohort as the site sees it: where its files are, and the seal that only this site can make.

    DIR/            0700; the files of `common.data.cohort_file` are the cohort
      ingest/       not part of the cohort and never opened by training: what became of each source file. It names the hospital's files
                    and may be deleted
        files.jsonl   one `client.cohorts.records.FileRecord` a decoded frame or refused file, in the order of the images
        refused.csv   `file,reason`: what did not enter

The seal is an HMAC by a key of the site's secret over `cohort.json`, which names the manifest and the images by digest: an edit of any of
them is found by whoever has the key.
"""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path
from typing import Final

from common.crypto.secrets import Secret
from common.data.cohort_file import (
    COHORT_FILE,
    IMAGES,
    MANIFEST_CSV,
    MANIFEST_PARQUET,
    CohortFile,
    ImagesEntry,
    Manifest,
    open_images,
    read_manifest,
)
from common.errors import DataError

INGEST: Final = "ingest"
FILES: Final = "files.jsonl"
REFUSED: Final = "refused.csv"
_SEAL_PURPOSE: Final = "cohort seal"
_KEY_TAG_DIGITS: Final = 16


def is_cohort(path: Path) -> bool:
    """Whether the path is the folder of a built cohort."""
    return (path / COHORT_FILE).is_file()


def files_path(folder: Path) -> Path:
    """The records of the source files."""
    return folder / INGEST / FILES


def refused_path(folder: Path) -> Path:
    """The list of what did not enter."""
    return folder / INGEST / REFUSED


def sealed(cohort: CohortFile, secret: Secret) -> CohortFile:
    """The same facts with the site's key tag and seal."""
    named = cohort.model_copy(update={"key_tag": _key_tag(secret), "tag": ""})
    return named.model_copy(update={"tag": _tag(named, secret)})


def seal_problem(cohort: CohortFile, secret: Secret) -> str | None:
    """Why the facts are not what this site sealed, with the remedy; None when they are."""
    if not hmac.compare_digest(cohort.key_tag, _key_tag(secret)):
        return "the cohort was built with the key of another site, so its pseudonyms fit no account here; build it again at this site"
    if not hmac.compare_digest(cohort.tag, _tag(cohort, secret)):
        return f"{COHORT_FILE} was changed after the cohort was built; build the cohort again"
    return None


def check_seal(folder: Path, secret: Secret) -> None:
    """Raise DataError when the cohort is not one that this site sealed."""
    problem = seal_problem(CohortFile.read(folder), secret)
    if problem is not None:
        raise DataError(f"{folder}: {problem}")


def _key_tag(secret: Secret) -> str:
    return hmac.new(secret.derive(_SEAL_PURPOSE), b"name of this key", hashlib.sha256).hexdigest()[:_KEY_TAG_DIGITS]


def _tag(cohort: CohortFile, secret: Secret) -> str:
    return hmac.new(secret.derive(_SEAL_PURPOSE), cohort.sealed_bytes, hashlib.sha256).hexdigest()


__all__ = [
    "COHORT_FILE",
    "FILES",
    "IMAGES",
    "INGEST",
    "MANIFEST_CSV",
    "MANIFEST_PARQUET",
    "REFUSED",
    "CohortFile",
    "ImagesEntry",
    "Manifest",
    "check_seal",
    "files_path",
    "is_cohort",
    "open_images",
    "read_manifest",
    "refused_path",
    "seal_problem",
    "sealed",
]

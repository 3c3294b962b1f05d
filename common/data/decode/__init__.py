# SPDX-License-Identifier: Apache-2.0
"""From one file to pixels: PNG and JPEG, DICOM, NIfTI. Which of them a file is, its first bytes decide, not its name.

`decode(path, window=Window(40, 400))` yields a `Decoded` for each frame or slice, one at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from common.data.decode.decoded import Decoded, Facts, Slices, Window, refusal
from common.errors import DataError

__all__ = ["Decoded", "Facts", "Slices", "Window", "decode"]

_HEAD_BYTES = 352
_GZIP = b"\x1f\x8b"
_NIFTI_MAGIC = (b"n+1\0", b"ni1\0")
_NIFTI_2_MAGIC = (b"n+2\0", b"ni2\0")
_OTHER_FORMATS = (
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"\0\0\0\x0cjP", "JPEG 2000 outside DICOM"),
    (b"RIFF", "WebP or another RIFF format"),
    (b"%PDF", "PDF"),
    (b"PK\x03\x04", "ZIP"),
    (_GZIP, "GZIP"),
)


def decode(path: Path, window: Window | None = None, slices: Slices | None = None) -> Iterator[Decoded]:
    """Every image in the file, one at a time; `window` counts before the file's own, `slices` (default: all axial) is for NIfTI.

    Raises DataError with one problem `reason; remedy` when the file, or a frame of it, cannot be decoded: at the first image or later.
    """
    head = _head(path)
    if head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")):
        from common.data.decode.png_jpeg import decode_png_jpeg

        yield decode_png_jpeg(path, window)
    elif head[128:132] == b"DICM" or head[:4] in (b"\x02\0\0\0", b"\x08\0\0\0", b"\x08\0\x05\0", b"\x08\0\x08\0"):
        from common.data.decode.dicom import decode_dicom

        yield from decode_dicom(path, window)
    elif _is_nifti(head, path.name.lower()):
        from common.data.decode.nifti import decode_nifti

        yield from decode_nifti(path, window, slices or Slices())
    else:
        raise _unknown(head)


def _head(path: Path) -> bytes:
    """The first bytes of the file."""
    try:
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError as error:
        raise refusal(f"cannot be read ({error.strerror})", "check the file and its permissions") from error


def _is_nifti(head: bytes, name: str) -> bool:
    if head.startswith(_GZIP):
        return name.endswith(".nii.gz")
    is_nifti = head[344:348] in _NIFTI_MAGIC or head[4:8] in _NIFTI_2_MAGIC
    if is_nifti and not name.endswith((".nii", ".hdr")):
        raise refusal("is NIfTI, and its name does not say so", "let its name end in .nii (or .nii.gz when it is compressed)")
    return is_nifti


def _unknown(head: bytes) -> DataError:
    if not head:
        return refusal("is empty", "copy it again from the source, or take it out")
    for start, name in _OTHER_FORMATS:
        if head.startswith(start):
            return refusal(f"is {name}, not PNG, JPEG, DICOM or NIfTI", "convert it to PNG or DICOM, or take it out")
    return refusal("is no image: neither PNG, JPEG, DICOM nor NIfTI", "take it out, or export it from the archive again")

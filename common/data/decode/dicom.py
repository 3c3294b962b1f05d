# SPDX-License-Identifier: Apache-2.0
"""DICOM files, through pydicom: one image for each frame, grey on full scale (see `grey`) or RGB of 8 bits.

pydicom decodes, undoes planar configuration, signs, unused bits and big endian, and turns YBR into RGB; palettes are applied here.
Overlays, ICC profiles and presentation states are not applied; an overlay is named in the remarks. Compressed files may need
the optional codecs; a refusal says which. Frames are decoded one at a time; the file itself is held in memory. No message holds text of
pydicom, because that may quote a value of the header.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from common.data.decode.decoded import COPY_AGAIN, MOST_VOLUME_BYTES, BurnedIn, Decoded, Facts, Pixels, Window, check_size, damage, refusal
from common.data.decode.grey import GreyScale
from common.data.decode.identity import dicom_identity_tags
from common.data.decode.lookup import bit_patterns, is_little_endian, palette, rgb_table
from common.errors import DataError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset, FileDataset

CODECS_REMEDY = "pip install 'wardround[codecs]'"
OVERLAY = "overlays in the file were not drawn"
IDENTITY_REMOVED = "the header says that the patient's identity was removed"
REDUCED_TO_8_BITS = "colour of more than 8 bits was reduced to 8"
_GREY = ("MONOCHROME1", "MONOCHROME2")
_DAMAGED = (
    ValueError, TypeError, AttributeError, LookupError, RuntimeError, ArithmeticError,
    EOFError, OSError, MemoryError, AssertionError, BufferError, struct.error, zlib.error, StopIteration,
)  # fmt: skip


def decode_dicom(path: Path, window: Window | None) -> Iterator[Decoded]:
    """Every frame of the file. Raises DataError (`reason; remedy`) for what cannot be decoded."""
    dataset = _read(path)
    _check_header(dataset)
    with _as_damage(dataset):
        facts = _facts(dataset)
        grey = GreyScale(dataset, window, facts.bits_stored) if facts.photometric in _GREY else None
    for frame, (stored, photometric) in enumerate(stored_frames(dataset)):
        with _as_damage(dataset):
            image = _decoded(dataset, stored, photometric, frame, facts, grey)
        yield image


def _decoded(dataset: Dataset, stored: npt.NDArray[Any], photometric: str, frame: int, facts: Facts, grey: GreyScale | None) -> Decoded:
    """One frame from stored values [H, W] or [H, W, 3]."""
    if grey is not None:
        pixels, remarks = grey.pixels(stored, frame)
        return Decoded(pixels, frame, _with(facts, remarks, grey.inverted))
    if facts.photometric == "PALETTE COLOR":
        return Decoded(_through_palette(stored, dataset), frame, facts)
    if photometric != "RGB":
        raise refusal(f"its colour encoding {_safe(photometric)} is not supported", "export it as RGB or grey")
    pixels, remarks = _rgb(stored, facts.bits_stored)
    return Decoded(pixels, frame, _with(facts, remarks, None))


def _with(facts: Facts, remarks: tuple[str, ...], inverted: bool | None) -> Facts:
    return replace(facts, remarks=facts.remarks + remarks, inverted=inverted)


@contextmanager
def _as_damage(dataset: Dataset | None) -> Iterator[None]:
    """Turn what pydicom raises into the refusal, and keep its warnings, which may quote the header, off the screen."""
    from pydicom.errors import BytesLengthException, InvalidDicomError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except DataError:
            raise
        except (*_DAMAGED, BytesLengthException, InvalidDicomError) as error:
            raise _refusal_for(dataset, error) from None


def _refusal_for(dataset: Dataset | None, error: BaseException) -> DataError:
    """The refusal for an exception of pydicom: a codec that is not there, or damage."""
    if dataset is not None and isinstance(error, RuntimeError) and _needs_codecs(dataset):
        return refusal(f"needs the codec for {_syntax_name(dataset)}", CODECS_REMEDY)
    if dataset is not None and isinstance(error, RuntimeError):
        return refusal(f"cannot be decoded as {_syntax_name(dataset)}: damaged, or a variant that no decoder knows", COPY_AGAIN)
    return damage(error, "pydicom")


def _read(path: Path) -> FileDataset:
    """The whole data set, checked to be a file that can be read at once."""
    from pydicom import dcmread

    with _as_damage(None):
        if path.stat().st_size > MOST_VOLUME_BYTES:
            raise refusal(f"is larger than {MOST_VOLUME_BYTES} bytes", "export its frames as files of their own, or take it out")
        _check_deflated(path)
        dataset = dcmread(path, force=True)
        if not dataset.get("PixelData") and "FloatPixelData" not in dataset and "DoubleFloatPixelData" not in dataset:
            raise refusal("is DICOM and holds no pixels", "take it out if it is a report or plan; copy it again if it is an image")
        _complete_meta(dataset)
        return dataset


def _check_deflated(path: Path) -> None:
    """Refuse a deflated data set that would inflate to more than `MOST_VOLUME_BYTES`; pydicom inflates without a limit."""
    from pydicom.filereader import read_file_meta_info
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    with path.open("rb") as file:
        file.seek(128)
        if file.read(4) != b"DICM":
            return
    meta = read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    with path.open("rb") as file:
        file.seek(128 + 4 + 12 + int(meta.FileMetaInformationGroupLength))
        while chunk := file.read(1 << 16):
            while chunk:
                size += len(inflater.decompress(chunk, 1 << 24))
                chunk = inflater.unconsumed_tail
                if size > MOST_VOLUME_BYTES:
                    raise refusal(f"inflates to more than {MOST_VOLUME_BYTES} bytes", "export it without deflation, or take it out")


def _complete_meta(dataset: FileDataset) -> None:
    """Give a data set without a transfer syntax (written without its file header) the one that it was read with."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = FileMetaDataset()
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        uncompressed = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = uncompressed


def _check_header(dataset: Dataset) -> None:
    """Refuse sizes, samples and codecs before anything is decoded."""
    from pydicom.pixels.decoders.base import get_decoder

    with _as_damage(dataset):
        check_size(int(dataset.Rows), int(dataset.Columns))
        samples = int(dataset.get("SamplesPerPixel", 1))
        if samples != (1 if str(dataset.PhotometricInterpretation) in (*_GREY, "PALETTE COLOR") else 3):
            raise refusal(f"its {samples} samples a pixel do not fit its colour encoding", COPY_AGAIN)
        if samples == 3 and dataset.get("PixelRepresentation", 0) == 1:
            raise refusal("its colours are signed numbers, which DICOM does not define", "export it as RGB or grey")
        try:
            decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
        except NotImplementedError:
            raise refusal(f"its transfer syntax {_syntax_name(dataset)} is not supported", "export it uncompressed") from None
        if not decoder.is_available:
            raise refusal(f"needs the codec for {_syntax_name(dataset)}", CODECS_REMEDY)


def _needs_codecs(dataset: Dataset) -> bool:
    """Whether the file is compressed and one of the optional codecs is not installed (other decoders know part of a format only)."""
    from importlib.util import find_spec

    from pydicom.uid import RLELossless

    syntax = dataset.file_meta.TransferSyntaxUID
    absent = any(find_spec(name) is None for name in ("pylibjpeg", "openjpeg", "libjpeg"))
    return absent and syntax.is_compressed and syntax != RLELossless


def _syntax_name(dataset: Dataset) -> str:
    """The registered name of the transfer syntax; a UID that is not registered is not repeated."""
    syntax = dataset.file_meta.TransferSyntaxUID
    return str(syntax.name) if syntax.name != str(syntax) else "(not registered)"


def _safe(photometric: str) -> str:
    """A photometric interpretation that DICOM defines, else `unknown`: header text is not repeated."""
    from pydicom.pixels.common import PhotometricInterpretation

    return photometric if photometric in {entry.value for entry in PhotometricInterpretation} else "unknown"


def _facts(dataset: Dataset) -> Facts:
    remarks: tuple[str, ...] = (OVERLAY,) if any(tag.group & 0xFF01 == 0x6000 for tag in tuple(dataset.keys())) else ()
    if dataset.get("PatientIdentityRemoved") == "YES":
        remarks += (IDENTITY_REMOVED,)
    return Facts(
        height=int(dataset.Rows),
        width=int(dataset.Columns),
        bits_stored=_bits_stored(dataset),
        photometric=_safe(str(dataset.PhotometricInterpretation)),
        patient_id=str(dataset.get("PatientID") or "").strip() or None,
        identity_tags=dicom_identity_tags(dataset),
        burned_in=_burned_in(dataset),
        remarks=remarks,
    )


def _bits_stored(dataset: Dataset) -> int:
    allocated = int(dataset.BitsAllocated)
    stored = int(dataset.get("BitsStored", allocated))
    if not 1 <= stored <= allocated <= 64:
        raise refusal("its bits stored and bits allocated contradict each other", COPY_AGAIN)
    return stored


def _burned_in(dataset: Dataset) -> BurnedIn:
    value = str(dataset.get("BurnedInAnnotation") or "").strip().upper()
    return "yes" if value == "YES" else "no" if value == "NO" else "unknown"


def stored_frames(dataset: Dataset) -> Iterator[tuple[npt.NDArray[Any], str]]:
    """Stored values of each frame, [H, W] or [H, W, 3], as pydicom decodes them, and the photometric interpretation that they have now."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.pixels.utils import as_pixel_options

    with _as_damage(dataset):
        decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
        frames = decoder.iter_array(dataset, validate=True, raw=False, **as_pixel_options(dataset))
    while True:
        with _as_damage(dataset):
            frame = next(frames, None)
        if frame is None:
            return
        yield frame[0], str(frame[1]["photometric_interpretation"])


def _through_palette(stored: npt.NDArray[Any], dataset: Dataset) -> npt.NDArray[np.uint8]:
    """Colours of stored values of at most 16 bits."""
    if stored.dtype.itemsize > 2:
        raise refusal("its palette indices have more than 16 bits", COPY_AGAIN)
    table = rgb_table(palette(dataset, little_endian=is_little_endian(dataset)), stored.dtype)
    return np.take(table, bit_patterns(stored), axis=0)


def _rgb(stored: npt.NDArray[Any], bits_stored: int) -> tuple[Pixels, tuple[str, ...]]:
    """RGB of 8 bits: the upper 8 of more, scaled up from fewer."""
    if bits_stored > 8:
        return (stored >> (bits_stored - 8)).astype(np.uint8), (REDUCED_TO_8_BITS,)
    if bits_stored < 8:
        top = (1 << bits_stored) - 1
        return ((np.minimum(stored, top).astype(np.uint16) * 255 + top // 2) // top).astype(np.uint8), ()
    return stored.astype(np.uint8, copy=False), ()

# SPDX-License-Identifier: Apache-2.0
"""PNG and JPEG files, through Pillow: grey of 8 or 16 bits, or RGB of 8 bits.

The EXIF orientation is applied, transparency is laid over black, palettes and CMYK become RGB, 1, 2 and 4 bits are scaled up to 8.
Colour profiles are not applied. A given window counts for grey images, in the units of their stored values.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.data.decode.decoded import Decoded, Facts, Pixels, Window, check_size, damage, full_scale, refusal

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

FIRST_OF_SEVERAL = "the file holds several pictures: the first was taken"
REDUCED_TO_8_BITS = "colour of more than 8 bits was reduced to 8"
TURNED = "turned as its EXIF orientation says"
OVER_BLACK = "transparent parts were laid over black"
_GREY = {"1", "L", "I;16", "I;16B", "I", "F"}
_TRANSPARENT = {"LA", "La", "RGBA", "RGBa", "PA"}
_EXIF_IDENTITY = (
    "Artist", "BodySerialNumber", "CameraOwnerName", "Copyright", "DateTime", "DateTimeDigitized", "DateTimeOriginal", "GPSInfo",
    "HostComputer", "ImageDescription", "ImageUniqueID", "MakerNote", "UserComment", "XPAuthor", "XPComment", "XPKeywords", "XPSubject",
    "XPTitle",
)  # fmt: skip
_PNG_TEXT = ("Author", "Comment", "Copyright", "Creation Time", "Description", "Disclaimer", "Software", "Source", "Title", "Warning")
_NOT_TEXT = {"dpi", "gamma", "srgb", "chromaticity", "transparency", "icc_profile", "interlace", "aspect", "exif", "default_image", "loop"}
_EXIF_POINTER, _ORIENTATION = 0x8769, 0x0112
_DAMAGED = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    KeyError,
    IndexError,
    TypeError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
)


def decode_png_jpeg(path: Path, window: Window | None) -> Decoded:
    """The picture in the file. Raises DataError (`reason; remedy`) when it is damaged, too large or animated."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(path, formats=("PNG", "JPEG", "MPO")) as picture:
                check_size(picture.height, picture.width)
                return _decoded(picture, _stored_bits(path), window)
        except Image.DecompressionBombError:
            raise refusal("the header says more pixels than the limit", "take the file out, or export it smaller") from None
        except _DAMAGED as error:
            raise damage(error, "Pillow") from None


def _stored_bits(path: Path) -> int:
    """Bits of a channel: PNG says so in its header, byte 24; JPEG here has 8."""
    with path.open("rb") as file:
        head = file.read(25)
    return head[24] if head.startswith(b"\x89PNG") and len(head) == 25 else 8


def _decoded(picture: Picture, bits: int, window: Window | None) -> Decoded:
    from PIL import ImageOps

    several = getattr(picture, "n_frames", 1) > 1
    if several and picture.format == "PNG":
        raise refusal("is an animated PNG", "save the picture that counts as a file of its own")
    remarks = (FIRST_OF_SEVERAL,) if several else ()
    mode, height, width, tags = picture.mode, picture.height, picture.width, _identity_tags(picture)
    picture.load()
    if picture.getexif().get(_ORIENTATION, 1) != 1:
        picture, remarks = ImageOps.exif_transpose(picture), (*remarks, TURNED)
    pixels, more = _pixels(picture, bits, window)
    facts = Facts(height, width, bits, mode, identity_tags=tags, remarks=remarks + more)
    return Decoded(pixels, 0, facts)


def _pixels(picture: Picture, bits: int, window: Window | None) -> tuple[Pixels, tuple[str, ...]]:
    if picture.mode in _GREY:
        return _grey(picture, bits, window), ()
    remarks = (REDUCED_TO_8_BITS,) if bits > 8 else ()
    if picture.mode in _TRANSPARENT or (picture.mode == "P" and "transparency" in picture.info):
        colour, clear = _over_black(picture)
        return colour, remarks + ((OVER_BLACK,) if clear else ())
    return np.asarray(picture.convert("RGB")), remarks


def _grey(picture: Picture, bits: int, window: Window | None) -> Pixels:
    """uint8 [H, W], or uint16 for 16 bits; windowed when a window is given."""
    stored = np.asarray(picture.convert("L") if picture.mode == "1" else picture)
    if window is not None:
        low = window.centre - window.width / 2
        return full_scale(stored, low, low + window.width, np.uint16 if bits > 8 else np.uint8)
    return stored.astype(np.uint16) if bits > 8 else stored.astype(np.uint8)


def _over_black(picture: Picture) -> tuple[Pixels, bool]:
    """A picture with transparency over black, grey [H, W] or RGB, and whether anything of it was transparent."""
    from PIL import Image

    grey = picture.mode in ("LA", "La")
    whole = picture.convert("RGBA")
    black = Image.new("RGBA", whole.size, (0, 0, 0, 255))
    clear = bool((np.asarray(whole.getchannel("A")) < 255).any())
    flat = np.asarray(Image.alpha_composite(black, whole))
    return (flat[..., 0] if grey else flat[..., :3]).copy(), clear


def _identity_tags(picture: Picture) -> tuple[str, ...]:
    """Names of metadata that may identify and are not empty: `Exif.…`, `PNG.…`, `JPEG.comment`. Unknown names are not repeated."""
    from PIL import ExifTags

    exif = picture.getexif()
    entries = {**exif, **exif.get_ifd(_EXIF_POINTER)}
    found = {f"Exif.{name}" for number, value in entries.items() if value and (name := ExifTags.TAGS.get(number)) in _EXIF_IDENTITY}
    if picture.format == "PNG":
        texts = {key for key, value in picture.info.items() if isinstance(key, str) and isinstance(value, str) and value.strip()}
        found |= {f"PNG.{key}" if key in _PNG_TEXT else "PNG.other text" for key in texts - _NOT_TEXT}
    elif picture.info.get("comment"):
        found.add("JPEG.comment")
    return tuple(sorted(found))

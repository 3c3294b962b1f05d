# SPDX-License-Identifier: Apache-2.0
"""PNG and JPEG files of every kind that Pillow writes, against the arrays that they were made from."""

from __future__ import annotations

import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from common.data.decode import Window, decode
from common.data.decode.decoded import Decoded
from common.data.decode.png_jpeg import OVER_BLACK, REDUCED_TO_8_BITS, TURNED
from common.errors import DataError

GREY = np.arange(60, dtype=np.uint8).reshape(6, 10) * 4


def one(path: Path, window: Window | None = None) -> Decoded:
    (image,) = decode(path, window)
    return image


def saved(path: Path, picture: Image.Image, **options: object) -> Path:
    picture.save(path, **options)
    return path


def raw_png(path: Path, width: int, height: int, depth: int, colour: int, rows: bytes) -> Path:
    """A PNG from scanlines that begin with their filter byte."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    return path


def test_eight_bits_grey(tmp_path: Path) -> None:
    image = one(saved(tmp_path / "a.png", Image.fromarray(GREY)))
    np.testing.assert_array_equal(image.pixels, GREY)
    assert image.pixels.dtype == np.uint8
    assert (image.facts.height, image.facts.width, image.facts.bits_stored, image.facts.photometric) == (6, 10, 8, "L")
    assert (image.facts.inverted, image.facts.burned_in, image.facts.patient_id) == (None, "unknown", None)


def test_the_name_does_not_matter(tmp_path: Path) -> None:
    np.testing.assert_array_equal(one(saved(tmp_path / "a.dcm", Image.fromarray(GREY), format="PNG")).pixels, GREY)


def test_sixteen_bits_grey_keep_all_of_them(tmp_path: Path) -> None:
    stored = GREY.astype(np.uint16) * 257 + 3
    image = one(saved(tmp_path / "a.png", Image.fromarray(stored)))
    assert (image.pixels.dtype, image.facts.bits_stored) == (np.uint16, 16)
    np.testing.assert_array_equal(image.pixels, stored)


def test_a_window_counts_for_grey(tmp_path: Path) -> None:
    image = one(saved(tmp_path / "a.png", Image.fromarray(np.array([[0, 100, 150, 200, 255]], np.uint8))), Window(150, 100))
    assert image.pixels.tolist() == [[0, 0, 128, 255, 255]]


@pytest.mark.parametrize(("depth", "expected"), [(1, [0, 255, 255, 0]), (2, [170, 170, 0, 0]), (4, [0xAA, 0])])
def test_fewer_bits_are_scaled_up(tmp_path: Path, depth: int, expected: list[int]) -> None:
    rows = {1: b"\0\x60", 2: b"\0\xa0", 4: b"\0\xa0"}[depth]  # 0110…, 10 10 00 00, 1010 0000
    image = one(raw_png(tmp_path / "a.png", len(expected), 1, depth, 0, rows))
    assert image.pixels.tolist() == [expected]
    assert image.facts.bits_stored == depth


def test_colour_of_16_bits_is_reduced_and_said(tmp_path: Path) -> None:
    image = one(raw_png(tmp_path / "a.png", 1, 1, 16, 2, b"\0\x12\x34\x56\x78\x9a\xbc"))
    assert image.pixels.tolist() == [[[0x12, 0x56, 0x9A]]]
    assert image.facts.remarks == (REDUCED_TO_8_BITS,)


def test_a_palette_becomes_rgb(tmp_path: Path) -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 210, 220])
    picture.putdata([0, 1])
    assert one(saved(tmp_path / "a.png", picture)).pixels.tolist() == [[[10, 20, 30], [200, 210, 220]]]


def test_what_is_transparent_is_black(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (2, 1))
    picture.putdata([(200, 100, 50, 255), (200, 100, 50, 0)])
    image = one(saved(tmp_path / "a.png", picture))
    assert image.pixels.tolist() == [[[200, 100, 50], [0, 0, 0]]]
    assert image.facts.remarks == (OVER_BLACK,)
    grey = Image.new("LA", (1, 1), (77, 255))
    assert one(saved(tmp_path / "b.png", grey)).pixels.tolist() == [[77]]


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    """No ink is white; all cyan ink leaves no red."""
    picture = Image.new("CMYK", (16, 8), (0, 0, 0, 0))
    picture.paste((255, 0, 0, 0), (8, 0, 16, 8))
    image = one(saved(tmp_path / "a.jpg", picture, quality=100))
    assert image.facts.photometric == "CMYK"
    assert image.pixels[4, 3].min() > 240
    assert image.pixels[4, 12, 0] < 15
    assert image.pixels[4, 12, 1:].min() > 240


def test_the_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    image = one(saved(tmp_path / "a.jpg", Image.fromarray(np.repeat(GREY, 8, axis=0).repeat(8, axis=1)), quality=100, exif=exif))
    assert image.pixels.shape == (80, 48)
    assert np.abs(image.pixels[4::8, 4::8].astype(int) - np.rot90(GREY, -1)).max() <= 3
    assert image.facts.remarks == (TURNED,)
    assert (image.facts.height, image.facts.width) == (48, 80)  # as the file has it


def test_an_animated_png_is_refused(tmp_path: Path) -> None:
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    path = saved(tmp_path / "a.png", frames[0], save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="is an animated PNG; save the picture that counts"):
        one(path)


def test_a_header_that_says_too_many_pixels_is_refused_before_decoding(tmp_path: Path) -> None:
    for side in (9_000, 20_000, 2_000_000):  # Pillow warns of the first, refuses the others by itself
        with pytest.raises(DataError, match="pixels"):
            one(raw_png(tmp_path / "a.png", side, side, 8, 0, b"\0"))


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_damage_is_refused(tmp_path: Path, name: str) -> None:
    whole = saved(tmp_path / name, Image.fromarray(np.random.default_rng(1).integers(0, 255, (64, 64), np.uint8))).read_bytes()
    dice = random.Random(3)
    for _ in range(40):
        (tmp_path / name).write_bytes(whole[: dice.randrange(20, len(whole) // 2)])
        with pytest.raises(DataError, match=r"is damaged or incomplete \(\w+ in Pillow\); copy the file again"):
            one(tmp_path / name)


def test_metadata_is_named_but_not_repeated(tmp_path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Author", "Erika Muster")
    text.add_text("Erika Muster", "a key of its own")
    text.add_text("Title", " ")
    assert one(saved(tmp_path / "a.png", Image.fromarray(GREY), pnginfo=text)).facts.identity_tags == ("PNG.Author", "PNG.other text")
    exif = Image.Exif()
    exif[0x013B] = "Erika Muster"  # Artist
    exif[0x0132] = "2024:01:31 10:00:00"  # DateTime
    exif[0x011A] = 72.0  # XResolution, which identifies nobody
    path = saved(tmp_path / "a.jpg", Image.fromarray(GREY), exif=exif, comment=b"Muster")
    assert one(path).facts.identity_tags == ("Exif.Artist", "Exif.DateTime", "JPEG.comment")


def test_constant_is_known(tmp_path: Path) -> None:
    assert one(saved(tmp_path / "a.png", Image.new("L", (4, 4), 7))).constant
    assert one(saved(tmp_path / "a.png", Image.new("RGB", (4, 4), (7, 8, 9)))).constant
    assert not one(saved(tmp_path / "a.png", Image.fromarray(GREY))).constant

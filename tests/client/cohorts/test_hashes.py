# SPDX-License-Identifier: Apache-2.0
"""Kept fingerprints: nothing is worked out twice, nothing stale or torn is believed."""

from pathlib import Path

import numpy as np
import pytest

from client.cohorts.fingerprints import fingerprints
from client.cohorts.hashes import HASHES, Origin, all_fingerprints, was_read
from tests.client.cohorts.checked import scans

MARK = 12345


class Folder:
    """Images in a file, and their fingerprints beside it."""

    def __init__(self, path: Path, images: np.ndarray) -> None:
        self.path, self.file = path, path / "images.npy"
        np.save(self.file, images)

    def prints(self, stop_after: int | None = None) -> np.ndarray:
        self.told = 0

        def progress(count: int) -> None:
            self.told += count
            if stop_after is not None and self.told >= stop_after:
                raise KeyboardInterrupt

        images = np.load(self.file, mmap_mode="r")
        return all_fingerprints(images, self.path / "ingest", Origin.of(self.file, "0" * 64), progress, workers=2)

    @property
    def stored(self) -> np.ndarray:
        return np.lib.format.open_memmap(self.path / "ingest" / HASHES, mode="r+")

    def mark(self, *rows: int) -> None:
        """Put a sign into stored rows, as if they had been made so: it goes when they are made again."""
        stored = self.stored
        for row in rows:
            stored["print"]["high"][row] = MARK
            stored["check"][row] = _crc(stored["print"][row])
        stored.flush()

    def marked(self) -> list[int]:
        return np.flatnonzero(self.prints()["high"] == MARK).tolist()


def _crc(row: np.void) -> int:
    import zlib

    return zlib.crc32(row.tobytes())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.setattr("client.cohorts.hashes._BLOCK_BYTES", 4 * 32 * 32)  # four images a block
    return Folder(tmp_path, scans(22, pixels=32))


def test_they_are_those_of_the_images(folder: Folder) -> None:
    assert np.array_equal(folder.prints(), fingerprints(np.load(folder.file)))
    assert folder.told == 22
    assert (folder.path / "ingest" / HASHES).stat().st_mode & 0o777 == 0o600


def test_a_second_time_nothing_is_made(folder: Folder) -> None:
    folder.prints()
    folder.mark(3, 20)
    assert folder.marked() == [3, 20]
    assert folder.told == 22


def test_stopped_it_goes_on_where_it_was(folder: Folder) -> None:
    with pytest.raises(KeyboardInterrupt):
        folder.prints(stop_after=8)
    done = np.flatnonzero(folder.stored["check"] != 0)
    assert done.tolist() == list(range(8))
    folder.mark(0, 7)
    assert folder.marked() == [0, 7]


def test_a_row_that_a_crash_cut_is_made_again(folder: Folder) -> None:
    expected = folder.prints()
    stored = folder.stored
    stored["print"]["appearance"][5] ^= np.uint64(1)
    stored.flush()
    assert np.array_equal(folder.prints(), expected)


def test_only_an_image_that_changed_is_made_again(folder: Folder) -> None:
    folder.prints()
    folder.mark(1, 2, 9)
    images = np.load(folder.file)
    images[2] = 255 - images[2]
    np.save(folder.file, images)
    assert not was_read(folder.path / "ingest", Origin.of(folder.file, "0" * 64))
    prints = folder.prints()
    assert np.flatnonzero(prints["high"] == MARK).tolist() == [1, 9]
    assert prints["sha256"][2].tobytes() == fingerprints(images[2:3])["sha256"][0].tobytes()
    assert was_read(folder.path / "ingest", Origin.of(folder.file, "0" * 64))


def test_other_images_in_number_start_anew(folder: Folder) -> None:
    folder.prints()
    np.save(folder.file, scans(10, seed=1, pixels=32))
    assert np.array_equal(folder.prints(), fingerprints(np.load(folder.file)))


def test_where_nothing_can_be_written_they_are_made_in_memory(folder: Folder) -> None:
    (folder.path / "ingest").write_text("a file in the way")
    assert np.array_equal(folder.prints(), fingerprints(np.load(folder.file)))

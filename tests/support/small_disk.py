# SPDX-License-Identifier: Apache-2.0
"""A disk that is really full: a folder is moved to a small file system of its own (tmpfs, as root) that is filled to its end."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

PAGE_BYTES = 4096
FREE_BYTES = 16 << 20


@dataclass(frozen=True)
class SmallDisk:
    """The file system at `folder`."""

    folder: Path

    @property
    def _filler(self) -> Path:
        return self.folder / "filler"

    def fill(self) -> None:
        """Take all space that is left; what is freed later by others is theirs."""
        with self._filler.open("wb", buffering=0) as file, pytest.raises(OSError) as caught:
            while True:
                file.write(bytes(PAGE_BYTES))
        assert caught.value.errno == errno.ENOSPC

    def free(self) -> None:
        """Give it back."""
        self._filler.unlink()


@contextmanager
def on_a_small_disk(folder: Path) -> Iterator[SmallDisk]:
    """`folder` with all that is in it on a small file system, as long as the block lasts; nobody may use it at its beginning and end."""
    aside = folder.with_name(f".{folder.name}.aside")
    folder.rename(aside)
    folder.mkdir(mode=0o700)
    try:
        size_bytes = FREE_BYTES + sum(path.lstat().st_size + 2 * PAGE_BYTES for path in aside.rglob("*"))
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=700", "tmpfs", str(folder)]
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("only root may mount a small disk")
        try:
            shutil.copytree(aside, folder, symlinks=True, dirs_exist_ok=True)
            yield SmallDisk(folder)
            shutil.rmtree(aside)
            shutil.copytree(folder, aside, symlinks=True)
        finally:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
    finally:
        folder.rmdir()
        aside.rename(folder)

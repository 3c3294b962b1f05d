# SPDX-License-Identifier: Apache-2.0
"""A power cut at a hospital: what its processes write is logged by a shim, and the folder becomes what must have lasted.

`tests/client/ledger/disk_shim.c` logs each write with its bytes, each sync, each change of names. A file's bytes last once the file was
synced after they were written, a name once its folder was. All else is dropped; with `chance`, each piece of it lasts by chance, because a
disk is not forced to lose anything. Simpler than a disk: folders themselves last, and what was there when the processes started lasts.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random

from tests.client.ledger.disk import File, Operation, read_log
from tests.support.skewed_clock import compiled

SHIM = Path(__file__).resolve().parents[1] / "client" / "ledger" / "disk_shim.c"


class PowerCut:
    """The disk of the processes that are started with `environment` after this was made, and that use the folder `home`."""

    def __init__(self, home: Path, place: Path) -> None:
        place.mkdir()
        self._home, self._log = home, place / "log"
        library = compiled(SHIM, place)
        self.environment = {"LD_PRELOAD": str(library), "WARDROUND_SHIM_FOLDER": str(home), "WARDROUND_SHIM_LOG": str(self._log)}
        found = [path for path in home.rglob("*") if path.is_file()]
        self._before = {path: (path.stat().st_ino, path.read_bytes()) for path in found}
        self.lost: list[str] = []

    def strike(self) -> None:
        """Make `home` what lasts. Nobody may use it any more. `lost` then names the files that are not what they were."""
        files = self.after()
        seen = {path: path.read_bytes() for path in self._home.rglob("*") if path.is_file()}
        self.lost = sorted(str(path.relative_to(self._home)) for path in seen.keys() | files if seen.get(path) != files.get(path))
        modes = {path: path.stat().st_mode for path in seen}
        for path in seen:
            path.unlink()
        for path, content in files.items():
            _write(path, content, modes.get(path, 0o600))

    def copy(self, to: Path, chance: Random) -> Path:
        """`home` in another place, as it may also be after the cut."""
        shutil.copytree(self._home, to, ignore=lambda folder, names: [name for name in names if (Path(folder) / name).is_file()])
        modes = {path: path.stat().st_mode for path in self._home.rglob("*")}
        for path, content in self.after(chance).items():
            _write(to / path.relative_to(self._home), content, modes.get(path, 0o600))
        return to

    def after(self, chance: Random | None = None) -> dict[Path, bytes]:
        """Every file that lasts, with its content."""
        folders = {path.stat().st_ino: path for path in (self._home, *self._home.rglob("*")) if path.is_dir()}
        disk = _Tree({path: (inode, File(bytearray(content))) for path, (inode, content) in self._before.items()}, folders)
        for operation in read_log(self._log.read_bytes()):
            disk.apply(operation)
        return disk.after(chance)


def _write(path: Path, content: bytes, mode: int) -> None:
    path.write_bytes(content)
    path.chmod(mode)


class _Tree:
    """Files in `folders`; both are known by their inodes."""

    def __init__(self, files: dict[Path, tuple[int, File]], folders: dict[int, Path]) -> None:
        self._folders = folders
        self._files = dict(files.values())
        self._names = {path: file for path, (_, file) in files.items()}
        self._lasting = dict(self._names)

    def apply(self, operation: Operation) -> None:
        old, _, new = operation.text.partition("\n")
        if operation.kind in "wt":
            self._files[operation.inode].pending.append(operation)
        elif operation.kind == "s":
            self._sync(operation.inode)
        elif operation.kind == "u":
            self._names.pop(Path(old), None)
        elif operation.kind == "r":
            moved = self._names.pop(Path(old), None)
            if moved is not None:  # else it is a folder
                self._names[Path(new)] = moved
        elif self._names.get(Path(old)) is None or self._names[Path(old)] is not self._files.get(operation.inode):
            self._names[Path(old)] = self._files[operation.inode] = File()

    def _sync(self, inode: int) -> None:
        folder = self._folders.get(inode)
        if folder is None:
            file = self._files[inode]
            file.lasting, file.pending = bytearray(file.content(everything=True)), []
        else:
            self._lasting = {path: one for path, one in self._lasting.items() if path.parent != folder}
            self._lasting |= {path: one for path, one in self._names.items() if path.parent == folder}

    def after(self, chance: Random | None) -> dict[Path, bytes]:
        """By chance a changed name lasts too, each by itself."""
        paths = self._names.keys() | self._lasting
        kept = {path: (self._names if chance is not None and chance.random() < 0.5 else self._lasting).get(path) for path in sorted(paths)}
        return {path: file.content(chance) for path, file in kept.items() if file is not None}

# SPDX-License-Identifier: Apache-2.0
"""The shared samples in a Python that has no optional codecs: each loads with the same pixels, or is refused by its codec's name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pydicom

import common
from common.data.decode import decode
from tests.common.data.decode.files import SAMPLES, needs_samples

CODECS = ("pylibjpeg", "openjpeg", "libjpeg", "_openjpeg", "_libjpeg")
PROGRAM = """
import hashlib, json, sys
from pathlib import Path
from common.data.decode import decode
from common.errors import DataError
found = {}
for path in sorted(Path(sys.argv[1]).glob("*.dcm")):
    try:
        found[path.name] = [hashlib.sha256(image.pixels.tobytes()).hexdigest() for image in decode(path)]
    except DataError as error:
        found[path.name] = str(error)
print(json.dumps(found))
"""
LARGEST_COMPARED_BYTES = 250_000
NEEDED = {
    "HTJ2KLossless_08_RGB.dcm": "High-Throughput JPEG 2000 Image Compression (Lossless Only)",
    "HTJ2K_08_RGB.dcm": "High-Throughput JPEG 2000 Image Compression",
    "JLSL_08_07_0_1F.dcm": "JPEG-LS Lossless Image Compression",
    "JLSL_16_15_1_1F.dcm": "JPEG-LS Lossless Image Compression",
    "JPEG-LL.dcm": "JPEG Lossless, Non-Hierarchical, First-Order Prediction (Process 14 [Selection Value 1])",
    "JPGLosslessP14SV1_1s_1f_8b.dcm": "JPEG Lossless, Non-Hierarchical, First-Order Prediction (Process 14 [Selection Value 1])",
}


@needs_samples
def test_without_the_codecs_a_file_is_whole_or_refused_with_the_remedy(tmp_path: Path) -> None:
    found = in_a_python_without_codecs(tmp_path)
    assert len(found) == 22
    refused = {name: text for name, text in found.items() if isinstance(text, str)}
    assert refused == {name: f"needs the codec for {codec}; pip install 'wardround[codecs]'" for name, codec in NEEDED.items()}
    for name, hashes in found.items():
        if name not in NEEDED and (SAMPLES / name).stat().st_size < LARGEST_COMPARED_BYTES:
            assert hashes == [sha256(image.pixels.tobytes()).hexdigest() for image in decode(SAMPLES / name)], name


def in_a_python_without_codecs(folder: Path) -> dict[str, list[str] | str]:
    """Run the program with every installed package but the codecs, by links to them in a folder of its own (no `site`)."""
    packages = folder / "packages"
    packages.mkdir()
    for entry in Path(pydicom.__file__).parents[1].iterdir():
        if not entry.name.startswith(CODECS) and entry.suffix != ".pth":
            (packages / entry.name).symlink_to(entry)
    paths = [str(Path(common.__file__).parents[1]), str(packages), str(Path(np.__file__).parents[1])]
    assert not any((Path(path) / "pylibjpeg").exists() for path in paths[:2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths[:2])}
    command = [sys.executable, "-S", "-c", PROGRAM, str(SAMPLES)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    found: dict[str, list[str] | str] = json.loads(done.stdout)
    return found

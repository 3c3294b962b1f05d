# SPDX-License-Identifier: Apache-2.0
"""What is shipped works without the checkout: a wheel is built, unpacked elsewhere, and a study runs from it."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FROM_THE_WHEEL = ["tests/common/test_study_file.py", "tests/common/models/test_scattering.py", "tests/e2e/test_shipped.py"]


def test_the_wheel_outside_the_checkout() -> None:
    environment = {**os.environ, "PYTHON": sys.executable}
    command = ["bash", str(ROOT / "tests" / "run_from_wheel.sh"), *FROM_THE_WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout

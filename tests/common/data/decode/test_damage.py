# SPDX-License-Identifier: Apache-2.0
"""What a library raises on a file becomes the reason that is true: no memory, a disk that does not read, or damage."""

import errno
import os

import pytest

from common.data.decode.decoded import damage


@pytest.mark.parametrize(
    ("error", "reason", "remedy"),
    [
        (MemoryError(), "needs more memory than there is", "fewer --workers"),
        (OSError(errno.EIO, os.strerror(errno.EIO), "doe^jane.dcm"), "cannot be read (Input/output error)", "its disk"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES)), "cannot be read (Permission denied)", "permissions"),
        (OSError("broken data stream of Doe^Jane"), "is damaged or incomplete (OSError in Pillow)", "copy the file again"),
        (ValueError("Doe^Jane"), "is damaged or incomplete (ValueError in Pillow)", "copy the file again"),
    ],
)
def test_the_reason_is_the_true_one_and_holds_no_text_of_the_library(error: Exception, reason: str, remedy: str) -> None:
    text = str(damage(error, "Pillow"))
    assert text.startswith(reason + "; ") and remedy in text
    assert "doe" not in text.lower()

# SPDX-License-Identifier: Apache-2.0
"""The shared federation of this folder's tests."""

from tests.support.federation import federation

__all__ = ["federation"]

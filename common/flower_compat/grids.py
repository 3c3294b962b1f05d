# SPDX-License-Identifier: Apache-2.0
"""The types that a Grid of our own has to speak."""

from __future__ import annotations

from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.run import Run

__all__ = ["NodeInfo", "Run"]

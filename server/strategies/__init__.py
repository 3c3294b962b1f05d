# SPDX-License-Identifier: Apache-2.0
"""One aggregation algorithm a file."""

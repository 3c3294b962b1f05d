# SPDX-License-Identifier: Apache-2.0
"""The hospital side."""

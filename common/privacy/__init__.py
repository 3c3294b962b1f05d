# SPDX-License-Identifier: Apache-2.0
"""Patient-level differential privacy."""

# SPDX-License-Identifier: Apache-2.0
"""The researcher side: many hospitals on one machine."""

# SPDX-License-Identifier: Apache-2.0
"""Data sets, cohorts and splits by patient."""

# SPDX-License-Identifier: Apache-2.0
"""A hospital's own data: from files to a checked cohort."""

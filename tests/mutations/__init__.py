# SPDX-License-Identifier: Apache-2.0
"""Mistakes that would void the privacy of a patient, each made on purpose in a copy of the code: a test has to turn red.

`make test-mutations` runs all of them. The tables say what is broken and which tests notice.
"""

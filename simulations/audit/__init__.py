# SPDX-License-Identifier: Apache-2.0
"""The audit: attacks on a study's own training that try to prove its claim of privacy wrong.

Canary patients exist here and nowhere else: nothing outside `simulations` can make one.
"""

# SPDX-License-Identifier: Apache-2.0
"""The front door: who may call what, checked for every request; everything else is refused."""

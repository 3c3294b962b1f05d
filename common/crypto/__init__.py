# SPDX-License-Identifier: Apache-2.0
"""Keys, signatures and sealed boxes, all from `cryptography`: no primitive of our own."""

# SPDX-License-Identifier: Apache-2.0
"""One architecture a file, and the registry."""

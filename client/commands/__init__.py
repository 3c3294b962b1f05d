# SPDX-License-Identifier: Apache-2.0
"""What the commands of `wardround-client` do, one module each."""

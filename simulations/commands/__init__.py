# SPDX-License-Identifier: Apache-2.0
"""What stands behind the commands of `simulations.cli`, one file each; imported when the command runs."""

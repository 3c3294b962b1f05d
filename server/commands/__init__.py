# SPDX-License-Identifier: Apache-2.0
"""The commands of `wardround-server`, one file a group; each adds itself to the app and imports what it needs when it runs."""

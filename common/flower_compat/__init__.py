# SPDX-License-Identifier: Apache-2.0
"""The only package that touches flwr internals. Each module is imported where it is needed, so that a hospital loads no simulation code."""

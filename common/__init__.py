# SPDX-License-Identifier: Apache-2.0
"""What both ends share: the study, the protocol, models, data and privacy. Imports neither client nor server."""

from common import environment

environment.apply()

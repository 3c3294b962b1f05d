# SPDX-License-Identifier: Apache-2.0
"""What a site uses to charge privacy: the contract, and the outbox of finished replies."""

from common.privacy.charge_book import CHARGE_STATE, ROUND_CONFLICT, Charge, ChargeBook, ChargeKey, Line, Standing, State
from common.privacy.outbox import Outbox

__all__ = ["CHARGE_STATE", "ROUND_CONFLICT", "Charge", "ChargeBook", "ChargeKey", "Line", "Outbox", "Standing", "State"]

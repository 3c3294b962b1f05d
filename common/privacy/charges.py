# SPDX-License-Identifier: Apache-2.0
"""What a site uses to charge privacy: the contract, its file implementation, and the outbox of finished replies."""

from common.privacy.charge_book import CHARGE_STATE, ROUND_CONFLICT, Charge, ChargeBook, ChargeKey, Standing, State
from common.privacy.charge_file import ChargeFile
from common.privacy.outbox import Outbox

__all__ = ["CHARGE_STATE", "ROUND_CONFLICT", "Charge", "ChargeBook", "ChargeFile", "ChargeKey", "Outbox", "Standing", "State"]

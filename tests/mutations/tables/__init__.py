# SPDX-License-Identifier: Apache-2.0
"""All mutations. Each table is about one part of the promise."""

from tests.mutations.mutation import Mutation
from tests.mutations.tables.accounting import ACCOUNTING
from tests.mutations.tables.approvals import APPROVALS
from tests.mutations.tables.bookkeeping import BOOKKEEPING
from tests.mutations.tables.charging import CHARGING
from tests.mutations.tables.ledger import LEDGER
from tests.mutations.tables.mechanism import MECHANISM
from tests.mutations.tables.patients import PATIENTS
from tests.mutations.tables.releases import RELEASES

MUTATIONS: tuple[Mutation, ...] = (*MECHANISM, *BOOKKEEPING, *PATIENTS, *ACCOUNTING, *CHARGING, *LEDGER, *APPROVALS, *RELEASES)

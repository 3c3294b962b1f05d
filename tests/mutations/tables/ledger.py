# SPDX-License-Identifier: Apache-2.0
"""The hospital's ledger: accounts by patients, receipts against old copies, rows that last."""

from tests.mutations.mutation import mutation

RECOVERY = "tests/client/ledger/test_recovery.py"
ACCOUNTS = "tests/client/ledger/test_accounts.py"

LEDGER = (
    mutation(
        "ignore receipts",
        "client/ledger/book.py",
        "        if lacking:\n",
        "        if False:\n",
        f"{RECOVERY}::test_a_restored_ledger_trains_nothing_until_it_is_recovered",
    ),
    mutation(
        "believe receipts that the coordinator did not sign",
        "client/ledger/heads.py",
        "if not any(is_signed(key,",
        "if False and not any(is_signed(key,",
        f"{RECOVERY}::test_only_receipts_with_both_signatures_are_believed",
    ),
    mutation(
        "believe heads that this site did not sign",
        "client/ledger/heads.py",
        "if not is_signed(secret.signer.public_key,",
        "if False and not is_signed(secret.signer.public_key,",
        f"{RECOVERY}::test_only_receipts_with_both_signatures_are_believed",
    ),
    mutation(
        "train on an account that IT wrote off",
        "client/ledger/book.py",
        "if self._fold.is_written_off(account):",
        "if False:",
        f"{RECOVERY}::test_a_written_off_account_never_trains_again",
    ),
    mutation(
        "open a new account for patients who have one",
        "client/ledger/accounts.py",
        "if patient in self._owners}",
        "if False}",
        f"{ACCOUNTS}::test_a_grown_cohort_keeps_its_account_and_its_history",
    ),
    mutation(
        "keep merged accounts apart",
        "client/ledger/accounts.py",
        "        self._parents[entry.account] = entry.into\n",
        "",
        f"{ACCOUNTS}::test_accounts_that_come_to_overlap_have_paid_what_both_paid",
    ),
    mutation(
        "take the larger δ of merged accounts",
        "client/ledger/accounts.py",
        "return min(delta for part, delta",
        "return max(delta for part, delta",
        f"{ACCOUNTS}::test_delta_is_that_of_the_first_registration_and_the_smaller_after_a_merge",
        traps=[29],
    ),
    mutation(
        "name patients without the site's key",
        "client/ledger/accounts.py",
        "hmac.new(key, patient.encode(), hashlib.sha256).digest()",
        "hashlib.sha256(patient.encode()).digest()",
        f"{ACCOUNTS}::test_pseudonyms_need_the_key",
    ),
    mutation(
        "keep the lines of one patient apart",
        "client/ledger/accounts.py",
        "                    self._joint.add(entry.account)\n",
        "                    pass\n",
        f"{ACCOUNTS}::test_lines_are_apart_unless_one_patient_stands_on_both",
    ),
    mutation(
        "forget who pays for recovered charges",
        "client/ledger/fold.py",
        "or not self.accounts.is_known(charge.key.account))",
        "or False)",
        f"{RECOVERY}::test_lost_patients_make_a_charge_count_for_everybody",
    ),
)

# SPDX-License-Identifier: Apache-2.0
"""The hospital's ledger: accounts by patients, receipts against old copies, rows that last."""

from tests.mutations.mutation import mutation

RECOVERY = "tests/client/ledger/test_recovery.py"
ACCOUNTS = "tests/client/ledger/test_accounts.py"
WITNESS = "tests/client/ledger/test_site_witness.py"
VERSIONS = "tests/client/ledger/test_versions.py"
BACKUP = "tests/client/test_backup.py"

LEDGER = (
    mutation(
        "ignore receipts",
        "client/ledger/book.py",
        "    if lacking:\n",
        "    if False:\n",
        f"{RECOVERY}::test_a_restored_ledger_trains_nothing_until_it_is_recovered",
    ),
    mutation(
        "ignore the log of what left",
        "client/ledger/book.py",
        "return [*receipts, *self._witness.sightings()]",
        "return receipts",
        f"{WITNESS}::test_a_ledger_older_than_the_newest_line_trains_nothing_until_it_is_recovered",
    ),
    mutation(
        "ignore the mark of a restore",
        "client/ledger/site_witness.py",
        "found = [] if mark is None else [mark.sighting]",
        "found = []",
        f"{WITNESS}::test_a_mark_closes_everything_until_it_is_answered",
    ),
    mutation(
        "restore without a mark",
        "client/backup.py",
        "        Restored.new(row, manifest.created, time.time() if now is None else now).write(unpacked)\n",
        "",
        f"{BACKUP}::test_a_restored_site_stays_closed_until_the_coordinator_was_asked",
    ),
    mutation(
        "open a restored site when nobody answers",
        "client/recovering.py",
        "        if is_restored:\n",
        "        if False:\n",
        f"{BACKUP}::test_a_restored_site_stays_closed_until_the_coordinator_was_asked",
    ),
    mutation(
        "answer the log of what left without charging",
        "client/ledger/recovery.py",
        "entries += [*charges, RecoveryEntry(_heads(fold, shown, departures))]",
        "entries += [RecoveryEntry(_heads(fold, shown, departures))]",
        f"{WITNESS}::test_a_ledger_older_than_the_newest_line_trains_nothing_until_it_is_recovered",
    ),
    mutation(
        "train again under a charge whose update left",
        "client/ledger/departures.py",
        "if charge.state in (State.RESERVED, State.SETTLED))",
        "if False)",
        f"{WITNESS}::test_a_reservation_that_left_is_never_trained_again",
    ),
    mutation(
        "charge a line's round again when its receipt comes",
        "client/ledger/recovery.py",
        "return tuple(dict.fromkeys([*shown, *fold.lacks(dict.fromkeys(rode))]))",
        "return tuple(shown)",
        f"{WITNESS}::test_a_receipt_for_a_line_that_was_answered_shows_nothing_new",
    ),
    mutation(
        "forget replies that only the coordinator remembers",
        "client/recovering.py",
        "return found + list(_of_statements(home, lost.values()))",
        "return found",
        f"{BACKUP}::test_a_reply_that_arrived_without_its_head_is_charged_all_the_same",
    ),
    mutation(
        "use a ledger of a later release",
        "common/databases.py",
        "if not 0 <= found <= schema.version:",
        "if False:",
        f"{VERSIONS}::test_a_ledger_of_a_later_release_is_refused_and_not_touched",
    ),
    mutation(
        "bring a ledger up to date without looking at its triggers",
        "client/ledger/database.py",
        "VERSIONS: Final = Schema(steps=((),), check=_is_whole)",
        "VERSIONS: Final = Schema(steps=((),))",
        f"{VERSIONS}::test_a_ledger_that_lacks_a_trigger_is_not_brought_up_to_date",
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
        "client/pseudonyms.py",
        "hmac.new(key, name.encode(), hashlib.sha256).digest()",
        "hashlib.sha256(name.encode()).digest()",
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

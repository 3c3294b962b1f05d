# SPDX-License-Identifier: Apache-2.0
"""The hospital's privacy ledger: who paid how much, in rows that nobody changes unseen.

database   one SQLite file: durable, append-only, chained
rows       what a row says, its hash and its MAC
accounts   patients, the accounts they belong to, merging
fold       what all rows together come to
book       `Ledger`: the charge book that a site uses
heads      the signed head that rides on replies, and the coordinator's receipt for it
earmarks   what studies may still spend
receipts   the site's file of receipts
witnesses  who else may show that the ledger is an old copy; site_witness: the log of what left, and the mark of a restore
departures what is known to have left, held against what is charged
recovery   after a restore: what was lost is charged again, or an account is written off
"""

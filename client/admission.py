# SPDX-License-Identifier: Apache-2.0
"""Whether the worker works on an instruction at all, by what the site's folder says. The ledger's rules come on top (`client.charging`)."""

from __future__ import annotations

import time
from typing import Final

from client.charging import ChargedRound
from client.journal import read_entries
from client.site import Site, SiteFile, journal_path
from common.errors import RefusedError
from common.protocol import Instruction, RefusalCode, weights_sha256
from common.study import Study

DAY_SECONDS: Final = 86400.0


def check_permission(study: Study, site: Site) -> None:
    """A study without privacy runs only where the site allows it by id. Raises RefusedError STUDY_NOT_APPROVED."""
    if not study.is_private and study.id not in site.unprotected_studies:
        raise RefusedError(RefusalCode.STUDY_NOT_APPROVED, f"study {study.id[:12]} has no privacy and is not allowed by id in site.json")


def check_approved(study: Study, settings: SiteFile, instruction: Instruction) -> None:
    """Once more than the node did: where `site.json` is about one approved study, nothing else of the coordinator's is worked on.

    Raises RefusedError STUDY_NOT_APPROVED for another study, another run, or other initial weights than those approved.
    """
    problem = ""
    if settings.study_id not in (None, study.id):
        problem = f"study {study.id[:12]} is not the one of this folder, {str(settings.study_id)[:12]}"
    elif settings.run_ids is not None and instruction.run_id not in settings.run_ids:
        problem = f"run {instruction.run_id[:12]} is not among those that were approved"
    elif _is_initial(instruction) and not _is_approved_start(instruction, settings):
        problem = "the initial weights are not those that were approved"
    if problem:
        raise RefusedError(RefusalCode.STUDY_NOT_APPROVED, problem)


def _is_approved_start(instruction: Instruction, settings: SiteFile) -> bool:
    approved = settings.initial_weights_sha256
    return approved is None or weights_sha256(instruction.model) == approved


def _is_initial(instruction: Instruction) -> bool:
    """Whether the model in it is the one that the study starts from."""
    return instruction.round == (1 if instruction.train else 0)


def check_rounds_today(charged: ChargedRound) -> None:
    """Raises RefusedError POLICY_REFUSED when the site has trained as many rounds in the last 24 hours as its policy allows.

    What was released before is sent again all the same.
    """
    most = charged.site.settings.rounds_a_day
    if most is None or charged.is_released:
        return
    since = time.time() - DAY_SECONDS
    done = {(entry.run_id, entry.round) for entry in read_entries(journal_path(charged.site.home)) if entry.time > since}
    if len(done) >= most:
        raise RefusedError(
            RefusalCode.POLICY_REFUSED, f"{len(done)} rounds were trained in the last 24 hours, limits.rounds_a_day is {most}"
        )

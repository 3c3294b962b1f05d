# SPDX-License-Identifier: Apache-2.0
"""Steps that were charged against noise that was drawn: the real round, book and generator, with the generator's words counted."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from client.site import Site
from client.workbench import StudyBench
from common.errors import RefusedError
from common.privacy.charge_book import Line
from common.privacy.charges import State
from common.privacy.generator import SystemGenerator
from common.protocol import Instruction
from common.study import Study
from tests.support.mechanism import ENGINES
from tests.support.studies import PRIVATE, small


class Round:
    """One site's bench, and how many noise draws its generator has made."""

    def __init__(self, study: Study, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._bench, self._site = StudyBench(study, torch.device("cpu")), Site.open(folder)
        self._size = sum(value.numel() for value in self._bench._model.trainable_state().values())
        self._words = 0
        draw = SystemGenerator.words

        def counted(generator: SystemGenerator, count: int) -> object:
            self._words += count
            return draw(generator, count)

        monkeypatch.setattr(SystemGenerator, "words", counted)

    def train(self, instruction: Instruction) -> None:
        self._bench.train(self._site, instruction)

    @property
    def noise_draws(self) -> int:
        """A draw takes one word for each trained number; patients and views take far fewer."""
        draws, rest = divmod(self._words, self._size)
        assert rest < self._size / 4
        return draws

    @property
    def charged_steps(self) -> int:
        """Of the patients who train; those who are held out pay for the evaluation on a line of their own."""
        charges = self._bench._book(self._site).charges()
        return sum(charge.steps for charge in charges if charge.state is not State.SETTLED and charge.key.line is Line.TRAINING)


@pytest.mark.parametrize("engine", ENGINES)
def test_charged_steps_equal_noise_draws(
    engine: str, make_site: Callable[..., Path], instruct: Callable[..., Instruction], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = small({**PRIVATE, "engine": engine})
    site = Round(study, make_site(study), monkeypatch)
    for number in (1, 2, 3):
        site.train(instruct(study, number))
        assert site.noise_draws == site.charged_steps == number * study.training.local_steps
    site.train(instruct(study, 3))  # sent again: no noise, no charge
    assert site.noise_draws == site.charged_steps == study.total_steps


def test_rounds_without_any_patient_draw_noise_and_are_charged(
    make_site: Callable[..., Path], instruct: Callable[..., Instruction], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = small(PRIVATE, **{"training.sampling_rate": 1e-7})
    site = Round(study, make_site(study), monkeypatch)
    site.train(instruct(study))
    assert site.noise_draws == site.charged_steps == study.training.local_steps


def test_a_refused_round_draws_no_noise(
    make_site: Callable[..., Path], instruct: Callable[..., Instruction], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = small(PRIVATE)
    site = Round(study, make_site(study), monkeypatch)
    site.train(instruct(study))
    with pytest.raises(RefusedError, match="ROUND_CONFLICT"):
        site.train(instruct(study, shift=0.5))
    assert site.noise_draws == site.charged_steps == study.training.local_steps

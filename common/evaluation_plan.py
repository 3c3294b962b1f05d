# SPDX-License-Identifier: Apache-2.0
"""What a study's private evaluation releases, and after which rounds: public numbers, the same at every site and at the server.

Each release is one histogram [questions, 2, bins] of held-out patients' scores. A patient is in exactly one cell for each question, so
adding or removing a patient changes `questions` counts by one each, and a release costs ε = questions * noise parameter. The ε of the
study is for the whole run and is divided evenly by releases and questions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.private_metrics import Estimate, predicted_standard_error, private_auroc
from common.study import Study

if TYPE_CHECKING:
    from dp_accounting import DpEvent

    from common.private_metrics import CountArray


@dataclass(frozen=True)
class EvaluationPlan:
    """`rounds`: after each of them the model is measured, the last one is the final model. `epsilon` is for all of them together."""

    epsilon: float
    rounds: tuple[int, ...]
    questions: int
    bins: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of a released histogram."""
        return (self.questions, 2, self.bins)

    @property
    def noise_parameter(self) -> float:
        """Parameter of the discrete Laplace noise on each count."""
        return self.epsilon / (len(self.rounds) * self.questions)

    def event(self) -> DpEvent:
        """One release, for the accountant: a patient's counts, one for each question."""
        from dp_accounting import dp_event

        from common.privacy.accountant import discrete_laplace

        count = discrete_laplace(self.noise_parameter)
        return count if self.questions == 1 else dp_event.SelfComposedDpEvent(count, self.questions)

    def estimate(self, counts: CountArray, sites: int) -> Estimate:
        """AUROC from the sum of the histograms of `sites` sites."""
        return private_auroc(counts, self.noise_parameter, sites)

    def predicted_standard_error(self, sites: int, patients: float) -> float:
        """What to expect of one release when `patients` are held out over all `sites` together."""
        return predicted_standard_error(patients, sites, self.bins, self.noise_parameter, self.questions)


def evaluation_plan(study: Study) -> EvaluationPlan | None:
    """The plan of a study's private evaluation; None for a study without privacy, or one that says `evaluation.private: none`."""
    private = study.evaluation.private
    if private is None or not study.is_private:
        return None
    questions = 1 if study.task == "binary" else study.class_count
    return EvaluationPlan(private.epsilon, private.rounds(study.federation.rounds), questions, private.bins)

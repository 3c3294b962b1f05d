# SPDX-License-Identifier: Apache-2.0
"""From mechanisms to ε and back."""

from tests.mutations.mutation import mutation

ACCOUNTANT = "tests/common/privacy/test_accountant.py"
CALIBRATION = "tests/common/privacy/test_calibration.py"
PUBLIC = "tests/client/test_trap_public_numbers.py"
TRAPS = "tests/client/test_trap_charging.py"

ACCOUNTING = (
    mutation(
        "noise from the true count",
        "client/workbench.py",
        "data, trainer = self._training_data(site), self._trainer(site.nominal_patients)",
        "data = self._training_data(site)\n"
        "        if self._plan is not None:\n"
        "            object.__setattr__(self._plan, 'noise_multiplier', self._plan.noise_multiplier * 50 / len(data.patients))\n"
        "        trainer = self._trainer(site.nominal_patients)",
        f"{PUBLIC}::test_the_noise_is_that_of_the_whole_study_over_the_public_divisor",
        traps=[9],
    ),
    mutation(
        "divisor from the true count",
        "client/workbench.py",
        "data, trainer = self._training_data(site), self._trainer(site.nominal_patients)",
        "data = self._training_data(site)\n        trainer = self._trainer(len(data.patients))",
        f"{PUBLIC}::test_the_noise_is_that_of_the_whole_study_over_the_public_divisor",
        traps=[9],
    ),
    mutation(
        "weight by patient count",
        "client/workbench.py",
        "update = Update(instruction.run_id, instruction.round, site.name, result.delta)",
        "weight = len(data.patients) / site.nominal_patients\n"
        "            update = Update(instruction.run_id, instruction.round, site.name, {n: v * weight for n, v in result.delta.items()})",
        f"{PUBLIC}::test_the_noise_is_that_of_the_whole_study_over_the_public_divisor",
        traps=[9],
    ),
    mutation(
        "calibrate for one round instead of the study",
        "client/workbench.py",
        "self.study.training.sampling_rate, self.study.total_steps, size)",
        "self.study.training.sampling_rate, self.study.training.local_steps, size)",
        f"{TRAPS}::test_a_round_is_charged_with_all_its_steps_and_what_is_accounted",
        traps=[2, 3],
    ),
    mutation(
        "charge fewer steps than are run",
        "client/charging.py",
        "self.plan.accounted_noise_multiplier, steps))",
        "self.plan.accounted_noise_multiplier, 1))",
        f"{TRAPS}::test_a_round_is_charged_with_all_its_steps_and_what_is_accounted",
        traps=[2],
    ),
    mutation(
        "account for the noise that is drawn, not for noise over sensitivity",
        "common/privacy/calibration.py",
        "accounted_noise_multiplier=accounted,",
        "accounted_noise_multiplier=accounted * 1.01,",
        f"{CALIBRATION}::test_the_grid_and_float_sums_are_paid_for",
        traps=[13],
    ),
    mutation(
        "leave the sampler's tail in δ",
        "common/privacy/calibration.py",
        "privacy.delta - spent_on_tail",
        "privacy.delta",
        f"{CALIBRATION}::test_a_tail_mass_that_is_not_negligible_is_refused",
    ),
    mutation(
        "take the sampler's error out of δ once, without e^ε for the way back",
        "common/privacy/calibration.py",
        "(1 + math.exp(privacy.epsilon)) * tail_mass(",
        "tail_mass(",
        f"{CALIBRATION}::test_a_wrong_sampler_costs_more_at_a_large_epsilon",
    ),
    mutation(
        "accept any tail",
        "common/privacy/calibration.py",
        "LARGEST_TAIL_SHARE: Final = 0.01",
        "LARGEST_TAIL_SHARE: Final = 1e9",
        f"{CALIBRATION}::test_a_tail_mass_that_is_not_negligible_is_refused",
    ),
    mutation(
        "calibrate to more than ε",
        "common/privacy/calibration.py",
        "if found <= epsilon:",
        "if found <= 1.01 * epsilon:",
        f"{CALIBRATION}::test_a_plan_spends_nearly_all_and_never_more",
    ),
    mutation(
        "reset the accountant at each new mechanism of a history",
        "common/privacy/accountant.py",
        "counts[text] = counts.get(text, 0) + count",
        "counts = {text: count}",
        f"{ACCOUNTANT}::test_composition_does_not_depend_on_cuts_or_order",
        traps=[3],
    ),
    mutation(
        "count equal rounds once",
        "common/privacy/accountant.py",
        "counts[text] = counts.get(text, 0) + count",
        "counts[text] = count",
        f"{ACCOUNTANT}::test_a_history_of_a_hundred_rounds_is_cheap_because_equal_mechanisms_are_one",
        traps=[3],
    ),
    mutation(
        "forget the inner count of composed steps",
        "common/privacy/accountant.py",
        'count *= plain["count"]',
        "count *= 1",
        f"{ACCOUNTANT}::test_measured_recipes",
        traps=[2],
    ),
    mutation(
        "take the sampling rate twice",
        "common/privacy/accountant.py",
        "PoissonSampledDpEvent(sampling_rate, dp_event.GaussianDpEvent",
        "PoissonSampledDpEvent(sampling_rate**2, dp_event.GaussianDpEvent",
        f"{ACCOUNTANT}::test_one_sampled_gaussian_is_the_closed_form",
        traps=[8],
    ),
    mutation(
        "account by replacing instead of adding or removing a patient",
        "common/privacy/accountant.py",
        "accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE,",
        "accountant = PLDAccountant(NeighboringRelation.REPLACE_ONE,",
        f"{ACCOUNTANT}::test_measured_recipes",
    ),
    mutation(
        "let an unprotected release cost nothing",
        "common/privacy/accountant.py",
        "    if any(is_unprotected(event) for event, _ in merged):\n        return math.inf\n",
        "    merged = [(event, count) for event, count in merged if not is_unprotected(event)]\n",
        f"{ACCOUNTANT}::test_edges_are_numbers_not_exceptions",
    ),
    mutation(
        "add up counts of discrete Laplace noise as if they were one",
        "common/privacy/accountant.py",
        "event.noise_parameter * event.sensitivity * count",
        "event.noise_parameter * event.sensitivity",
        f"{ACCOUNTANT}::test_counts_beside_training_cost_at_most_their_sum",
    ),
    mutation(
        "compose runs by their largest",
        "simulations/composition.py",
        "return epsilon_pld([poisson_gaussian(part.sampling_rate, part.noise_multiplier, steps) for part, steps in parts if steps], delta)",
        "return max(epsilon_pld([poisson_gaussian(p.sampling_rate, p.noise_multiplier, s)], delta) for p, s in parts if s)",
        "tests/simulations/test_report.py::test_composed_epsilon_is_more_than_one_and_less_than_the_sum",
        traps=[22, 28],
    ),
    mutation(
        "allow a large δ",
        "common/study.py",
        "delta: float = Field(1e-6, gt=0, le=1e-5",
        "delta: float = Field(1e-6, gt=0, le=1e-1",
        "tests/common/test_study.py::test_delta_is_never_above_1e_minus_5",
        traps=[23],
    ),
)

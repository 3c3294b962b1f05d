# SPDX-License-Identifier: Apache-2.0
"""Who is in a step, how often, and what the unit is."""

from tests.mutations.mutation import Edit, Mutation, mutation

AUDIT = "tests/common/privacy/test_mechanism_audit.py"
SAMPLING = "tests/common/privacy/test_sampling.py"
REGISTRY = "tests/common/models/test_registry.py"

_DRAW = "return np.flatnonzero(generator.words(patient_count) < threshold).astype(np.int64)"
_MASK = "drawn = poisson_sample(len(data.patients), self.study.training.sampling_rate, self._generator)\n"

PATIENTS = (
    mutation(
        "shuffle instead of Poisson",
        "common/privacy/sampling.py",
        _DRAW,
        "return np.sort(np.argsort(generator.words(patient_count))[: round(sampling_rate * patient_count)]).astype(np.int64)",
        f"{AUDIT}::test_patients_are_drawn_independently",
        f"{SAMPLING}::test_pairs_are_independent_and_sizes_vary",
        traps=[6],
    ),
    mutation(
        "draw the same patients in every step",
        "common/privacy/sampling.py",
        _DRAW,
        "words = generator.__dict__.setdefault('kept', generator.words(patient_count))\n    return np.flatnonzero(words < threshold)",
        f"{SAMPLING}::test_each_patient_is_drawn_with_the_rate",
        traps=[17],
    ),
    mutation(
        "draw patients from numpy's generator, which a seed controls",
        "common/privacy/sampling.py",
        _DRAW,
        "return np.flatnonzero(np.random.random(patient_count) < sampling_rate).astype(np.int64)",
        f"{AUDIT}::test_two_runs_of_one_study_differ_in_masks_and_noise",
        traps=[17],
    ),
    mutation(
        "sample a little above the public rate",
        "common/privacy/sampling.py",
        "generator.words(patient_count) < threshold",
        "generator.words(patient_count) <= threshold",
        f"{SAMPLING}::test_the_threshold_is_exact",
    ),
    mutation(
        "take the rate from the true count",
        "client/private_trainer.py",
        _MASK,
        _MASK.replace("self.study.training.sampling_rate", "min(1.0, 4 / len(data.patients))"),
        f"{AUDIT}::test_patients_are_included_with_the_public_rate",
        traps=[9],
    ),
    mutation(
        "draw patients with several images more often",
        "client/private_trainer.py",
        _MASK,
        _MASK
        + "        again = poisson_sample(len(data.patients), self.study.training.sampling_rate, self._generator)\n"
        + "        drawn = np.union1d(drawn, again[data.counts[again] > 1])\n",
        f"{AUDIT}::test_patients_are_included_with_the_public_rate",
        traps=[8],
    ),
    mutation(
        "drop the last batch when it is not full",
        "client/private_trainer.py",
        "for first in range(0, len(drawn), self._slots):",
        "for first in range(0, len(drawn) - self._slots + 1, self._slots):",
        f"{AUDIT}::test_the_divisor_is_public",
        traps=[7],
    ),
    Mutation(
        "group by image",
        (
            Edit(
                "client/private_trainer.py",
                "patient=torch.arange(len(patients), device=self.device).repeat_interleave(self._views)",
                "patient=torch.arange(len(rows), device=self.device)",
            ),
            Edit("client/private_trainer.py", "patient_count=len(patients)", "patient_count=len(rows)"),
        ),
        (f"{AUDIT}::test_one_patient_moves_the_sum_by_at_most_the_norm",),
        (24,),
    ),
    mutation(
        "make every image a patient of the cohort",
        "common/data/cohort.py",
        "owners = self.dataset.patients[rows]",
        "owners = np.arange(len(rows))",
        "tests/common/data/test_trap_patients.py::test_all_images_of_a_patient_are_one_unit",
        traps=[24],
    ),
    mutation(
        "split by image",
        "common/data/splits.py",
        "return np.array(of_patient, dtype=np.uint8)[dataset.patients]",
        "of_image = [split_of_patient(key, str(row), data.test_fraction, data.validation_fraction) for row in range(len(dataset))]\n"
        "    return np.array(of_image, dtype=np.uint8)",
        "tests/common/data/test_splits.py::test_patients_are_whole_and_stable_when_others_come",
        traps=[24],
    ),
    mutation(
        "let BatchNorm through",
        "common/models/registry.py",
        "if isinstance(module, nn.modules.batchnorm._BatchNorm):",
        "if False:",
        f"{REGISTRY}::test_all_problems_are_listed_with_a_remedy_each",
        traps=[11],
    ),
    mutation(
        "let buffers through",
        "common/models/registry.py",
        "for buffer, _ in module.named_buffers(recurse=False):",
        "for buffer, _ in ():",
        f"{REGISTRY}::test_all_problems_are_listed_with_a_remedy_each",
        traps=[11],
    ),
    mutation(
        "forget parameters that the optimiser does not hold",
        "common/privacy/model_check.py",
        "        if p not in stepped\n",
        "        if False\n",
        "tests/common/privacy/test_engines.py::test_parameters_that_the_optimiser_does_not_hold_are_refused",
        traps=[14],
    ),
    mutation(
        "take half precision",
        "common/privacy/model_check.py",
        "if p.dtype not in MANTISSA_BITS",
        "if False",
        "tests/common/privacy/test_engines.py::test_half_precision_is_refused",
        traps=[19],
    ),
    mutation(
        "keep the optimiser's memory between rounds",
        "client/trainer.py",
        "        self.optimiser.state.clear()\n",
        "",
        "tests/client/test_trainers.py::test_training_twice_starts_from_the_same_place",
        traps=[4],
    ),
)

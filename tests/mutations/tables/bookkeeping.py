# SPDX-License-Identifier: Apache-2.0
"""The single step again, for the engine that keeps books."""

from tests.mutations.mutation import mutation

AUDIT = "tests/common/privacy/test_mechanism_audit.py"

BOOKKEEPING = (
    mutation(
        "bookkeeping: remove clipping",
        "common/privacy/bookkeeping/patient_sum.py",
        "(self._clipping_norm / norms).clamp(max=1.0)",
        "torch.ones_like(norms)",
        f"{AUDIT}::test_one_patient_moves_the_sum_by_at_most_the_norm",
        traps=[1, 12],
    ),
    mutation(
        "bookkeeping: skip empty batches",
        "common/privacy/bookkeeping/engine.py",
        "            self._optimiser.step()\n",
        "            if facts.patient_count:\n                self._optimiser.step()\n",
        f"{AUDIT}::test_the_noise_does_not_depend_on_who_is_in",
        traps=[10],
    ),
    mutation(
        "bookkeeping: divide by the actual batch size",
        "common/privacy/bookkeeping/engine.py",
        "            self._optimiser.step()\n",
        "            self._optimiser._divisor = max(facts.patient_count, 1)\n            self._optimiser.step()\n",
        f"{AUDIT}::test_the_divisor_is_public",
        traps=[9],
    ),
    mutation(
        "bookkeeping: keep the sum of a step that broke off",
        "common/privacy/bookkeeping/optimiser.py",
        "        self._patient_sum.clear()\n",
        "",
        f"{AUDIT}::test_a_round_that_broke_off_leaves_nothing_to_the_next",
        traps=[4, 5],
    ),
    mutation(
        "bookkeeping: let a loss of [B, 1] through",
        "common/privacy/bookkeeping/engine.py",
        "if losses.shape != (len(batch.inputs),):",
        "if len(losses) != len(batch.inputs):",
        "tests/common/privacy/test_trap_engines.py::test_a_loss_that_changes_its_shape_later_is_refused",
        traps=[1],
    ),
    mutation(
        "bookkeeping: let gradients pass that are not finite",
        "common/privacy/bookkeeping/patient_sum.py",
        "finite = norms.isfinite()",
        "finite = torch.ones_like(norms, dtype=torch.bool)",
        "tests/common/privacy/test_trap_engines.py::test_a_patient_that_is_not_finite_is_left_out",
        traps=[18],
    ),
    mutation(
        "bookkeeping: accept any certificate",
        "common/privacy/bookkeeping/certificate.py",
        "return estimate <= (CERTIFIED_ERROR * clipping_norm) ** 2 / SHRINKAGE",
        "return True",
        "tests/common/privacy/test_trap_engines.py::test_a_sum_that_is_wrong_has_no_certificate",
        traps=[19],
    ),
    mutation(
        "bookkeeping: leave the float error out of the sensitivity",
        "common/privacy/engines.py",
        "return relative_sensitivity(parameter_count) + slack",
        "return relative_sensitivity(parameter_count)",
        "tests/common/privacy/test_trap_engines.py::test_the_plan_pays_for_the_float_error_of_its_engine",
        traps=[13],
    ),
    mutation(
        "bookkeeping: form a step that was not accepted in integers",
        "common/privacy/bookkeeping/engine.py",
        "        exact = not self._sum.has_room(RowGroups.of(batch))\n",
        "        exact = self._sum.in_double or not self._sum.has_room(RowGroups.of(batch))\n",
        "tests/common/privacy/bookkeeping/test_certificate.py::test_a_step_that_is_formed_again_is_the_same_step",
        traps=[13],
    ),
    mutation(
        "bookkeeping: use a sum that was not accepted",
        "common/privacy/bookkeeping/engine.py",
        "if not self._sum.is_certified():",
        "if False:",
        "tests/common/privacy/bookkeeping/test_certificate.py::test_a_sum_that_is_not_accepted_is_formed_again_in_double_precision",
        traps=[19],
    ),
    mutation(
        "bookkeeping: trust every model",
        "common/privacy/bookkeeping/engine.py",
        "            if problems:\n                raise InputError(problems)\n            self._is_tested = True",
        "            self._is_tested = True",
        "tests/common/privacy/bookkeeping/test_self_test.py::test_losses_that_couple_patients",
        traps=[15],
    ),
)

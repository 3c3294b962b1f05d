# SPDX-License-Identifier: Apache-2.0
"""What leaves a site besides the update, and what may be asked of it at all."""

from tests.mutations.mutation import mutation

APP = "tests/client/test_app.py"
WIRE = "tests/common/test_protocol.py"
MEASURING = "tests/client/test_measuring.py"

RELEASES = (
    mutation(
        "tell the cause of a failure",
        "client/app.py",
        'return Refusal(code, "").to_records()',
        "return Refusal(code, type(error).__name__).to_records()",
        f"{APP}::test_the_cause_of_a_failure_stays_in_the_local_log",
        traps=[26],
    ),
    mutation(
        "let an internal code leave",
        "client/app.py",
        "return RefusalCode(code) if code in RefusalCode.__members__ else RefusalCode.TRAINING_FAILED",
        "return RefusalCode(code) if code in RefusalCode.__members__ else RefusalCode.NOT_READY",
        "tests/client/test_trap_refusals.py::test_a_code_of_the_books_leaves_as_one_code",
        traps=[26],
    ),
    mutation(
        "send a metric along",
        "common/protocol.py",
        'return RecordDict({FACTS: facts, MODEL: array_record(self.delta), "metrics": MetricRecord({"num-examples": 1})})',
        'return RecordDict({FACTS: facts, MODEL: array_record(self.delta), "metrics": MetricRecord({"num-examples": 1, "loss": 0.5})})',
        f"{WIRE}::test_a_reply_carries_nothing_but_tensors_round_and_site",
        traps=[20, 26],
    ),
    mutation(
        "run a study without privacy that nobody allowed",
        "client/workbench.py",
        "        check_permission(bench.study, site)\n",
        "",
        f"{APP}::test_a_study_without_privacy_needs_permission_by_id",
        traps=[27],
    ),
    mutation(
        "record a run without privacy as cheap",
        "client/charging.py",
        "            return UNPROTECTED_JSON\n",
        "            return event_to_json(poisson_gaussian(0.01, 100.0, 1))\n",
        f"{APP}::test_a_run_without_privacy_is_on_record_as_unprotected",
    ),
    mutation(
        "accept noise that is split among sites",
        "common/study.py",
        'if self.mode == "distributed":',
        "if False:",
        "tests/common/test_study.py::test_what_does_not_fit_is_refused",
    ),
    mutation(
        "release the histogram without noise",
        "client/measuring.py",
        "counts = count_patients(patients, edges) + noise",
        "counts = count_patients(patients, edges)",
        f"{MEASURING}::test_noise_is_on_every_count_and_is_new_each_time",
        traps=[26],
    ),
    mutation(
        "count images instead of patients",
        "client/scores.py",
        "numbers, owner = np.unique(scores.patients, return_inverse=True)",
        "numbers, owner = np.unique(scores.rows, return_inverse=True)",
        f"{MEASURING}::test_one_patient_moves_one_count_by_one_however_many_images",
        traps=[24],
    ),
    mutation(
        "cut negative counts",
        "common/private_metrics.py",
        "parts = [_one_question(question[0].astype(np.float64), question[1].astype(np.float64), variance) for question in counts]",
        "parts = [_one_question(*np.maximum(question.astype(np.float64), 0), variance) for question in counts]",
        "tests/common/test_private_metrics.py::test_the_interval_covers_and_the_estimate_is_unbiased",
    ),
    mutation(
        "double the noise parameter of the counts",
        "common/privacy/discrete_laplace.py",
        "epsilon = Fraction(noise_parameter)",
        "epsilon = 2 * Fraction(noise_parameter)",
        "tests/common/privacy/test_trap_counts.py::test_the_noise_of_an_array_has_the_variance_of_its_parameter",
    ),
    mutation(
        "charge one evaluation of several",
        "client/measuring.py",
        "planned = [self.plan.event()] * len(keys)",
        "planned = [self.plan.event()] * 0",
        f"{MEASURING}::test_another_run_cannot_spend_what_is_reserved",
        traps=[2],
    ),
)

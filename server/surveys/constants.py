# SPDX-License-Identifier: Apache-2.0
"""Centre and scale of a tabular study's columns from a survey: public constants that were paid for, for the study file.

The mean and the standard deviation of the pooled noisy histogram. Everything else of a column stays as the study has it.
"""

from __future__ import annotations

from typing import Any

from common.errors import InputError
from server.surveys.findings import Findings


def constants_yaml(findings: Findings) -> str:
    """The part `data.columns` of a study file with the measured centres and scales, as YAML.

    Raises InputError when the survey measured no column of numbers of the study, or one too poorly.
    """
    import yaml

    if not findings.sites:
        raise InputError("no site has answered the survey, so there is nothing to take constants from")
    columns, problems = _columns(findings)
    if not columns and not problems:
        problems = ["the survey has no column of numbers of the study: name them in survey.features and in data.columns (kind: number)"]
    if problems:
        raise InputError(problems)
    head = (
        f"# Measured by survey {findings.record.survey.id[:12]}, run {findings.record.run_id[:12]}, over {', '.join(findings.sites)}, with "
        f"ε = {findings.plan.survey.epsilon:g} at each site.\n# Put this in place of data.columns of the study.\n"
    )
    return head + yaml.safe_dump({"data": {"columns": columns}}, sort_keys=False, allow_unicode=True)


def _columns(findings: Findings) -> tuple[dict[str, Any], list[str]]:
    wanted, problems = findings.record.survey.data.columns, []
    columns = {name: column.model_dump(mode="json", exclude_defaults=True) for name, column in wanted.items()}
    measured = 0
    for table in findings.plan.tables:
        column = wanted.get(table.column)
        if table.kind != "feature" or column is None or column.kind != "number":
            continue
        found = findings.numbers(table)[""]
        if found.mean is None or not found.deviation:
            problems.append(f"{table.column}: its table drowns in the noise; ask with a larger epsilon, fewer tables or fewer bins")
            continue
        measured += 1
        columns[table.column] |= {"centre": float(f"{found.mean.value:.4g}"), "scale": float(f"{found.deviation:.4g}")}
    return (columns if measured else {}), problems

# SPDX-License-Identifier: Apache-2.0
"""`docs/results.md`: what the figures mean, the tables, and what is still missing."""

from __future__ import annotations

from collections.abc import Sequence

from tests.bench.accuracy_rows import Job
from tests.bench.accuracy_table import Summary, figures_table, measured_table, seeds_table, trivial_table

HEAD = """# Results on public chest radiographs

Written by `make bench-accuracy`; do not edit. Every figure is a whole simulated study: four hospitals, the released mechanism (integer
noise, sampling and noise from the operating system's generator), patient-level privacy at each hospital by itself (`mode: local`), add
or remove one patient, δ = 1e-5 (for comparison with published tables; the default for real hospitals is 1e-6), ε of the whole run by
pessimistic PLD.

**Nobody may sell these figures as clinical value.** The main set is easy and has a shortcut: eight by eight pixels and a logistic
regression nearly solve it, and the frame of the image without the chest comes far (see the trivial baselines below). All images come
from one hospital, and the sites are made by dealing out its patients; real hospitals differ in scanners, patients and labels. Read the
table as a comparison of methods and of privacy levels on the same patients, nothing else.

AUROC is exact, on the held-out patients of all sites together: only a simulation may show it, because it owns all patients. A hospital
releases a noisy measurement instead. The spread is over seeds (dealing out the patients, initial weights, sampling and noise); the
held-out patients are the same for every seed, and how they happened to be chosen is not in the spread.
"""

NOTES = """
"Asked for" is what this project demanded of itself before the final runs. "Worst site alone" is the least AUROC of a site that trains by
itself, on its own patients only, with the same privacy and as many steps; "all in one place" trains on everybody's patients at once with
the same privacy. Both are means over the seeds.
Skewed sites: Dirichlet 0.3 over labels; some hospitals have nearly one class only.
The images of PneumoniaMNIST have no patient ids: there ε is of one image, which is a weaker promise.
"""

TUNING = """## How the settings were found

{tuning}
The sweep itself is not accounted: each ε is for one run of the final settings. A federation that tunes on its own patients has to pay for
every trial.
"""

TRIVIAL = "## Trivial baselines\n\nLogistic regressions on a handful of numbers, without privacy, on the same held-out patients.\n"
MEASURED = """## Measured with privacy

What a coordinator of real hospitals would see of the final model: histograms of the held-out patients' scores, each with its hospital's
own noise, added up. They count patients, not images, so the exact figure beside them is by patient too. Their ε is the study's
`evaluation.private.epsilon`, paid by the held-out patients. With noise a figure can come out above 1; a dash means that the standard error
is too large for a figure (above 0.05).
"""
COMMAND = "make bench-accuracy"


def page(summaries: Sequence[Summary], missing: Sequence[Job], seeds_asked: int, tuning: str) -> str:
    """The whole page."""
    parts = [HEAD]
    if missing:
        parts.append(_missing(missing))
    if summaries:
        parts += ["## Figures\n", figures_table(summaries, seeds_asked), NOTES, *_measured(summaries)]
        parts += [
            "## Trivial baselines\n",
            "Logistic regressions on a handful of numbers, without privacy, on the same held-out patients.\n",
        ]
        parts += [trivial_table(summaries), "\n## Every seed\n", seeds_table(summaries), ""]
    parts.append(TUNING.format(tuning=tuning))
    return "\n".join(parts)


def _missing(missing: Sequence[Job]) -> str:
    names: dict[str, list[int]] = {}
    for job in missing:
        names.setdefault(job.row.name, []).append(job.seed)
    rows = "\n".join(f"- `{name}`, seeds {', '.join(map(str, seeds))}" for name, seeds in names.items())
    return f"**Not measured yet** (`{COMMAND}` continues; what is finished is not computed again):\n\n{rows}\n"


def _measured(summaries: Sequence[Summary]) -> list[str]:
    table = measured_table(summaries)
    return [MEASURED, table, ""] if table else []

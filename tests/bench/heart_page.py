# SPDX-License-Identifier: Apache-2.0
"""`docs/heart.md`: the figures of `make bench-heart` beside those that FLamby published. Pure: no file is read or written here."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

from tests.bench.heart_rows import LEVELS, PROTOCOLS, Finding, Job, Level, Protocol

UNKNOWN = "–"
QUOTED_FIRST: tuple[Protocol, ...] = ("random", "flamby")
SITES = ("cleveland", "hungarian", "switzerland", "va")
Findings = Mapping[Job, Finding]

HEAD = """# Heart disease at four real hospitals

Written by `make bench-heart`; do not edit. The data are the UCI Heart Disease tables (Janosi, Steinbrunn, Pfisterer, Detrano 1988; CC BY
4.0) as FLamby (Ogier du Terrail et al., NeurIPS Datasets and Benchmarks 2022) takes them: 740 rows without slope, ca and thal, in
Cleveland / Hungary / Switzerland / VA Long Beach 199 / 172 / 30 / 85 to train and 104 / 89 / 16 / 45 held out. The studies are
`heart-disease` and `heart-disease-strict`, logistic regressions. Every figure is a whole simulated study as `wardround-sim run` makes
it: the released mechanism, noise from the operating system's generator, patient-level privacy at each hospital by itself, add or remove one
patient, δ = 1e-5 (for comparison with published tables, whose δ is 1e-4 or 1e-3; the default for real hospitals is 1e-6), ε of the whole
run by pessimistic PLD.

**Not clinical evidence.** The tables are from 1988, the held-out part of Switzerland has 16 rows, and one of them more or less moves the
mean over hospitals by .016.
"""

NOTES = """
Accuracy at threshold .5, mean over the four hospitals' own held-out patients, each hospital counting the same, ± standard deviation over
runs. **The row of 20 random splits is the one to quote**: on one split, FLamby's, chance of the split is in no standard deviation, and a
private run may come out above one without privacy because so few rows are held out. "Best hospital alone" is the hospital whose own
model, trained with the same privacy, does best on all four hospitals' held-out patients ({baselines} runs; picked by these same rows, which
flatters it); "all in one place" trains on everybody's patients at once.
"""

PUBLISHED = """## What FLamby published

On the same rows and split, read from the result files of its repository (mean over hospitals ± standard deviation over 5 seeds):

| | accuracy, mean over hospitals |
|---|---|
| FedAvg / FedProx / SCAFFOLD, no privacy | .685 ± .028 / .685 / .684 |
| best federated algorithm, no privacy | .731 ± .013 |
| all in one place, no privacy | .735 ± .003 |
| one hospital alone, no privacy | .567 to .722 |
| FedAvg with DP, ε = 1 as published (by example; the ε spent may be up to 4.5), δ = 1e-4 or 1e-3 | .685 to .702 |

The difference is **not** a better federation. The model class, the rows and the split are the same; what differs is that the features here
are scaled by round clinical numbers that are public (`data.columns` of the study), where FLamby feeds raw values, and that each step takes
all patients. The studies' settings were found on five inner splits of FLamby's *training* rows; that search is not accounted, so each ε
is for one run of the final settings. The random splits hold out rows that the search has seen: they measure how far the split matters,
not how well the settings carry over to new hospitals.
"""


def page(findings: Findings, runs: int) -> str:
    """The whole page."""
    parts = [HEAD]
    missing = sum(_asked(level, protocol, runs) - len(_of(findings, level, protocol)) for level in LEVELS for protocol in PROTOCOLS)
    if missing:
        parts.append(f"**{missing} runs are not done yet**; `make bench-heart` continues.\n")
    parts += ["## Figures\n", _table(findings), NOTES.format(baselines=_baseline_count(findings))]
    parts += ["## Hospital by hospital\n", _site_table(findings), "", PUBLISHED, "## Every run\n", _every_run(findings), ""]
    return "\n".join(parts)


def shortfalls(findings: Findings) -> list[str]:
    """What was asked for and not reached."""
    found = []
    for level in LEVELS:
        for protocol, required in level.required.items():
            values = [finding.mean for job, finding in findings.items() if job.level == level and job.protocol == protocol]
            if values and statistics.fmean(values) < required:
                found.append(f"{level.name} {protocol}: mean {statistics.fmean(values):.4f} is below {required}")
    return found


def _asked(level: Level, protocol: Protocol, runs: int) -> int:
    return 1 if level.name == "none" and protocol == "flamby" else runs


def _of(findings: Findings, level: Level, protocol: Protocol) -> list[Finding]:
    return [finding for job, finding in findings.items() if job.level == level and job.protocol == protocol]


def _baseline_count(findings: Findings) -> str:
    counts = {job.number for job, finding in findings.items() if finding.alone}
    return str(len(counts))


def _table(findings: Findings) -> str:
    header = (
        "",
        "rows",
        "runs",
        "accuracy, mean over hospitals",
        "worst run",
        "asked for",
        "pooled patients",
        "best hospital alone",
        "all in one place",
        "largest ε",
    )
    rows = [_row(level, protocol, _of(findings, level, protocol)) for protocol in QUOTED_FIRST for level in LEVELS]
    return _markdown(header, [row for row in rows if row])


def _row(level: Level, protocol: Protocol, found: Sequence[Finding]) -> list[str]:
    if not found:
        return []
    means, epsilons = [finding.mean for finding in found], [finding.epsilon for finding in found if finding.epsilon is not None]
    return [
        level.title,
        "FLamby's split" if protocol == "flamby" else "random splits",
        str(len(found)),
        _spread(means),
        shown(min(means)),
        _asked_for(level, protocol, statistics.fmean(means)),
        _spread([finding.pooled for finding in found]),
        _best_alone(found),
        _spread([finding.together for finding in found if finding.together is not None]),
        f"{max(epsilons):.3f}" if epsilons else "none",
    ]


def _asked_for(level: Level, protocol: Protocol, mean: float) -> str:
    required = level.required.get(protocol)
    return UNKNOWN if required is None else f"≥ {required:.2f}: {'met' if mean >= required else '**missed**'}"


def _best_alone(found: Sequence[Finding]) -> str:
    """The hospital whose own model does best on average over the runs, and how well."""
    names = {name for finding in found for name in finding.alone}
    values = {name: [finding.alone[name] for finding in found if name in finding.alone] for name in names}
    best = max(values, key=lambda name: statistics.fmean(values[name]), default=None)
    return UNKNOWN if best is None else f"{_spread(values[best])} ({best})"


def _site_table(findings: Findings) -> str:
    """On each hospital's own held-out patients."""
    rows = []
    for protocol in QUOTED_FIRST:
        for level in LEVELS:
            found = _of(findings, level, protocol)
            if found:
                title = f"{level.title}, {'FLamby split' if protocol == 'flamby' else 'random splits'}"
                rows.append([title, *(_spread([finding.by_site[site] for finding in found]) for site in SITES)])
    return _markdown(("", *SITES), rows)


def _every_run(findings: Findings) -> str:
    rows = [
        [level.name, protocol, " ".join(shown(finding.mean) for finding in _of(findings, level, protocol))]
        for level in LEVELS
        for protocol in PROTOCOLS
    ]
    return _markdown(("level", "protocol", "accuracy of each run"), rows)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return UNKNOWN
    mean = shown(statistics.fmean(values))
    return f"{mean} ± {shown(statistics.stdev(values))}" if len(values) > 1 else mean


def shown(value: float) -> str:
    """An accuracy with three digits, without the zero in front."""
    return f"{value:.3f}".removeprefix("0")


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

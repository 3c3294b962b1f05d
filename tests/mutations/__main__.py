# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.mutations [NAME …] [--list]`: break the code on purpose, see a test turn red, report.

Exits with 1 unless the unchanged code passes and every mutation is killed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.mutations.mutation import Mutation
from tests.mutations.run import Outcome, Verdict, make_copies, run_all, run_baseline
from tests.mutations.tables import MUTATIONS

CHECKOUT = Path(__file__).resolve().parents[2]
AT_ONCE = 2


def main(arguments: list[str] | None = None) -> int:
    """Run the suite; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", metavar="NAME", help="mutations to run (default: all)")
    parser.add_argument("--list", action="store_true", help="only list them")
    options = parser.parse_args(arguments)
    unknown = set(options.names) - {mutation.name for mutation in MUTATIONS}
    if unknown:
        parser.error(f"no mutation is called {', '.join(sorted(unknown))}")
    chosen = [mutation for mutation in MUTATIONS if not options.names or mutation.name in options.names]
    if options.list:
        print("\n".join(mutation.name for mutation in chosen))
        return 0
    return report(chosen)


def report(mutations: list[Mutation]) -> int:
    """Run `mutations` and print the table as it grows."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        roots = make_copies(CHECKOUT, Path(folder), AT_ONCE)
        baseline = run_baseline(roots, mutations)
        show(baseline)
        if baseline.verdict is not Verdict.SURVIVED:
            print("\nThe unchanged code does not pass: nothing can be learned from mutations.")
            return 1
        bad = 0
        for outcome in run_all(roots, mutations):
            show(outcome)
            bad += outcome.verdict is not Verdict.KILLED
    print(f"\n{len(mutations) - bad} of {len(mutations)} mutations killed in {time.monotonic() - started:.0f} s")
    return 1 if bad else 0


def show(outcome: Outcome) -> None:
    """One line of the table."""
    verdict = "passed" if outcome.name == "nothing is broken" and outcome.verdict is Verdict.SURVIVED else outcome.verdict.value
    print(f"{outcome.name:<52} {verdict:<9} {outcome.seconds:5.0f} s  {outcome.detail}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

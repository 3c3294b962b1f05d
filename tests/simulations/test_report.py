# SPDX-License-Identifier: Apache-2.0
"""The report and the comparison of a real run: everything there, nothing loaded, nothing hostile let through."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from common.errors import InputError
from common.metrics import metrics_of
from simulations import plots
from simulations.composition import compositions
from simulations.pages import compact, duration, epsilon, plus_minus, signed
from simulations.report import write_comparison, write_report
from simulations.results import ModelResult, RunResult, Scores
from simulations.tables import headline, site_rows
from simulations.trivial import BORDER, COARSE
from tests.simulations.sample_run import sample_run

SECTIONS = ("run", "results", "per-site", "curves", "judgement", "data", "privacy", "examples", "reproduce")
HOSTILE = "<script>alert('x')</script> & \"$\\frac\" \u66ff"
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """A parsed page: its text, tags, ids and references; raises when tags do not close in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.alternatives: list[str] = []
        self.words: list[str] = []
        self.feed(self.html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        facts = {name: value or "" for name, value in attrs}
        self.ids += [facts["id"]] if "id" in facts else []
        self.references += [facts[name] for name in ("src", "href", "xlink:href", "action", "srcset") if name in facts]
        self.alternatives += [facts.get("alt", "")] if tag == "img" else []
        assert not any(name.startswith("on") for name in facts)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


Report = Callable[[RunResult], Page]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The report of the private run."""
    return Page(write_report(sample_run(), tmp_path_factory.mktemp("private") / "report.html"))


@pytest.fixture(scope="module")
def three_seeds(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The comparison of three private runs that differ only by their seed."""
    return Page(write_comparison([sample_run(seed) for seed in (0, 1, 2)], tmp_path_factory.mktemp("seeds") / "comparison.html"))


@pytest.fixture
def report(tmp_path: Path) -> Report:
    return lambda result: Page(write_report(result, tmp_path / "report.html"))


@pytest.fixture
def comparison(tmp_path: Path) -> Callable[[list[RunResult]], Page]:
    return lambda results: Page(write_comparison(results, tmp_path / "comparison.html"))


def edited(result: RunResult, **changes: object) -> RunResult:
    """A result with other fields, validated anew."""
    return RunResult.model_validate({**result.model_dump(mode="json"), **changes})


def test_every_section_is_there(page: Page) -> None:
    assert [name for name in page.ids if name in SECTIONS] == list(SECTIONS)
    for words in (
        "exact metrics, simulation only",
        "Not clinical evidence",
        "add or remove one patient",
        "pessimistic PLD",
        COARSE,
        BORDER,
    ):
        assert words in page.text
    assert sample_run().command in page.text and sample_run().study_id in page.text


def test_nothing_is_loaded_from_anywhere(page: Page) -> None:
    assert page.references and all(reference.startswith(("data:image/png;base64,", "#")) for reference in page.references)
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(page.tags)
    assert "http" not in page.html and "@import" not in page.html
    assert all(f"#{name}" in page.html for name in re.findall(r"url\(#([^)]+)\)", page.html))
    assert {target[1:] for target in page.references if target.startswith("#")} <= set(page.ids)


def test_ids_are_unique_and_images_have_words(page: Page) -> None:
    assert len(page.ids) == len(set(page.ids))
    assert len(page.alternatives) == 12 and all(page.alternatives)
    assert page.html.count('role="img" aria-label="') == 6


def test_small_enough(page: Page) -> None:
    assert len(page.html.encode()) < 1_000_000
    assert all(len(svg) < 60_000 for svg in re.findall(r"<svg.*?</svg>", page.html, flags=re.DOTALL))


def test_headline_agrees_with_the_scores(page: Page) -> None:
    result = sample_run()
    alone = [metrics_of(model.test.labels, model.test.scores)["auroc"] for model in result.alone.values()]
    known = [value for value in alone if value is not None]
    pooled, best, mean, federated = (column.metrics or {} for column in headline(result))
    assert pooled["auroc"] == metrics_of(result.pooled.test.labels, result.pooled.test.scores)["auroc"] if result.pooled else False
    assert best["auroc"] == max(known)
    assert mean["auroc"] == pytest.approx(statistics.mean(known))
    assert federated["auroc"] == result.federated.metrics["auroc"]
    for metrics in (pooled, best, mean, federated):
        assert f"{metrics['auroc']:.3f}" in page.text and f"{metrics['calibration_error']:.3f}" in page.text
    assert all(f"{row.federated:.3f}" in page.text and signed(row.gain) in page.text for row in site_rows(result))


def test_hostile_names_are_text(report: Report) -> None:
    result = sample_run(description=HOSTILE)
    named = RunResult.model_validate_json(result.model_dump_json().replace('"north"', json.dumps(HOSTILE)))
    named = edited(named, source=HOSTILE, command=HOSTILE, partition=HOSTILE, notes=[HOSTILE], device=HOSTILE, run_id=HOSTILE)
    page = report(named)
    assert "script" not in page.tags and "<script" not in page.html
    assert page.text.count("<script>alert('x')</script>") >= 8


def test_hostile_names_are_text_in_a_comparison(comparison: Callable[[list[RunResult]], Page]) -> None:
    page = comparison([edited(sample_run(private=False), source=HOSTILE, run_id=HOSTILE, command=HOSTILE)])
    assert "<script" not in page.html and "http" not in page.html
    assert page.text.count("<script>alert('x')</script>") >= 2


def test_no_privacy_is_loud(report: Report, page: Page) -> None:
    loud, calm = report(sample_run(private=False)), page
    assert loud.text.count("NO PRIVACY") == 2 and 'class="banner alarm"' in loud.html
    assert "This run protects nobody" in loud.text
    assert "NO PRIVACY" not in calm.text and 'class="banner alarm"' not in calm.html
    assert "Noise multiplier" in calm.text and "Noise multiplier" not in loud.text


def test_a_private_study_that_trained_nothing_is_not_called_unprotected(report: Report) -> None:
    sites = [{**site.model_dump(), "epsilon": 0.0, "charged_steps": 0} for site in sample_run().sites]
    text = report(edited(sample_run(), privacy=None, sites=sites, curve=[])).text
    assert "NO PRIVACY" not in text and "no site was charged for a step" in text


def test_epsilon_is_never_rounded_down(report: Report) -> None:
    assert (epsilon(2.9912), epsilon(3.0), epsilon(None), epsilon(float("inf"))) == ("3.00", "3.00", "–", "infinite")
    sites = [site.model_copy(update={"epsilon": 2.9912}) for site in sample_run().sites]
    assert "ε ≤ 3.00" in report(edited(sample_run(), sites=[site.model_dump() for site in sites], curve=[])).text.replace("\xa0", " ")


def test_synthetic_data_is_said_so(report: Report, page: Page) -> None:
    assert "Synthetic data." in report(edited(sample_run(), synthetic=True, curve=[])).text
    assert "Synthetic data." not in page.text


def test_what_cannot_be_measured_is_a_dash_with_a_reason(report: Report) -> None:
    result = sample_run()
    kept = [index for index, label in enumerate(result.federated.test.labels) if label == 1]

    def one_class(model: ModelResult) -> dict[str, object]:
        test = Scores.model_validate({key: [value[i] for i in kept] for key, value in model.test.model_dump().items()})
        return {
            "metrics": metrics_of(test.labels, test.scores),
            "per_site": {name: {} for name in model.per_site},
            "test": test.model_dump(),
        }

    models = {"federated": one_class(result.federated), "alone": {name: one_class(model) for name, model in result.alone.items()}}
    page = report(edited(result, **models, pooled=None, trivial={COARSE: None, BORDER: None}, curve=[], examples=[]))
    assert "–" in page.text
    assert "cannot be measured, because the held-out images are all of one class" in page.text
    assert "that model was not trained in this run" in page.text
    assert "AUROC of the federated model cannot be measured" in page.text
    assert "nan" not in page.text.lower().split() and "None" not in page.text


def test_a_result_with_the_least_in_it(report: Report) -> None:
    page = report(edited(sample_run(), pooled=None, alone={}, curve=[], trivial={}, examples=[], sites=[]))
    assert "there are no curves" in page.text and "No examples were kept" in page.text and "None" not in page.text


def test_a_shortcut_is_named(report: Report) -> None:
    found = sample_run().federated.metrics["auroc"]
    assert found is not None
    easy = report(edited(sample_run(), trivial={COARSE: found - 0.004, BORDER: 0.94}, curve=[]))
    assert "This is a shortcut" in easy.text and "is only 0.004 better than 64 grey squares" in easy.text
    hard = report(edited(sample_run(), trivial={COARSE: 0.6, BORDER: 0.55}, curve=[]))
    assert "This is a shortcut" not in hard.text and "64 grey squares (" not in hard.text


def test_several_classes(report: Report) -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 90)
    scores = generator.dirichlet([1, 1, 1], 90) * 0.5 + 0.5 * np.eye(3)[labels]
    test = {"labels": labels.tolist(), "scores": scores.tolist(), "patients": list(range(90)), "rows": list(range(90))}
    model = {"metrics": metrics_of(labels, scores), "per_site": {}, "test": test}
    base = sample_run()
    study = {**base.study, "task": "multiclass", "data": {**base.study["data"], "labels": ["a", "b", "c"]}}  # type: ignore[dict-item]
    page = report(edited(base, study=study, federated=model, pooled=model, alone={"north": model}))
    assert "Accuracy" in page.text and "Mean over classes, each against the rest" in page.text


def test_many_sites_stay_readable(report: Report) -> None:
    base = sample_run()
    sites = [base.sites[0].model_copy(update={"name": f"site-{number:03}"}).model_dump() for number in range(100)]
    alone = {site["name"]: base.alone["north"].model_dump() for site in sites}
    curve = [{**point.model_dump(), "loss": {site["name"]: 0.5 for site in sites}} for point in base.curve]
    page = report(edited(base, sites=sites, alone=alone, curve=curve))
    assert "40 further sites are in results.json" in page.text and "the thick one their median" in page.text
    assert len(page.html.encode()) < 1_000_000


def test_large_examples_are_left_out(report: Report) -> None:
    big = [{**example.model_dump(), "png": "A" * 150_000} for example in sample_run().examples]
    assert len(report(edited(sample_run(), examples=big, curve=[])).alternatives) == 2


def test_three_seeds_give_mean_and_deviation(three_seeds: Page) -> None:
    runs = [sample_run(seed) for seed in (0, 1, 2)]
    values = [run.federated.metrics["auroc"] for run in runs]
    known = [value for value in values if value is not None]
    assert f"{statistics.mean(known):.4f} ± {statistics.stdev(known):.4f}" in three_seeds.text
    assert "3 runs, 1 study" in three_seeds.text and "What differs" not in three_seeds.text
    assert all(run.run_id in three_seeds.text for run in runs)


def test_different_studies_are_different_rows(comparison: Callable[[list[RunResult]], Page]) -> None:
    page = comparison([sample_run(), sample_run(private=False)])
    assert "2 runs, 2 settings" in page.text and "A · sample" in page.text and "B · sample" in page.text
    assert "privacy.unit" in page.text and "NO PRIVACY in B" in page.text
    assert "it is infinite" in page.text


def test_composed_epsilon_is_more_than_one_and_less_than_the_sum(three_seeds: Page) -> None:
    runs = [sample_run(seed) for seed in (0, 1, 2)]
    (found,) = compositions(runs)
    # sigma 1.68, rate .1, 100 steps: epsilon 3.0 for one run, 300 steps for three
    assert 3.0 < found.epsilon < 9.0
    assert found.epsilon == pytest.approx(5.33, abs=0.05)
    assert f"Composed ε = {epsilon(found.epsilon)}" in three_seeds.text


def test_runs_on_other_data_do_not_add_up(comparison: Callable[[list[RunResult]], Page]) -> None:
    other = edited(sample_run(1), data_digest="e" * 64)
    assert compositions([sample_run(), other]) == []
    page = comparison([sample_run(), other])
    assert "No two runs here used the same patients" in page.text and "Different held-out images" in page.text


def test_a_run_given_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="given twice"):
        write_comparison([sample_run(), sample_run()], tmp_path / "x.html")
    with pytest.raises(InputError, match="no run was given"):
        write_comparison([], tmp_path / "x.html")


def test_the_same_result_gives_the_same_page(tmp_path: Path, page: Page) -> None:
    assert write_report(sample_run(), tmp_path / "again.html").read_text(encoding="utf-8") == page.html


def test_figures_leave_matplotlib_as_it_was() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    svg = plots.curves([plots.Line([(1.0, 0.5), (2.0, 0.7)], "federated")], [], "x", 'a "quoted" alt', "p")
    assert dict(matplotlib.rcParams) == before
    assert svg.startswith('<svg role="img" aria-label="a &quot;quoted&quot; alt"') and "var(--accent)" in svg
    assert not re.search(r"#0[1-5]0[1-5]0[1-5]", svg) and "width=" not in svg.split(">")[0]


def test_long_curves_are_thinned() -> None:
    points = [(float(index), float(index)) for index in range(10_000)]
    kept = plots.thin(points)
    assert len(kept) <= plots.MAX_CURVE_POINTS and (kept[0], kept[-1]) == (points[0], points[-1])


def test_roc_points_by_hand() -> None:
    model = plots.Judged(np.array([0, 1, 0, 1]), np.array([0.1, 0.9, 0.6, 0.4]), "federated")
    assert list(plots.roc_points(model)) == [(0.0, 0.0), (0.0, 0.5), (0.5, 0.5), (0.5, 1.0), (1.0, 1.0)]
    assert plots.roc_points(plots.Judged(np.array([1, 1]), np.array([0.1, 0.9]), "federated")) == []


def test_numbers_for_people() -> None:
    assert (compact(1e-5), compact(2.321), compact(3.0), compact(None)) == ("1e-5", "2.321", "3", "–")
    assert (signed(-0.0041), signed(0.2), signed(None)) == ("−0.004", "+0.200", "–")
    assert (plus_minus(0.9926, 0.0016), plus_minus(0.99, None), plus_minus(None, None)) == ("0.9926 ± 0.0016", "0.9900", "–")
    assert [duration(s) for s in (1.23, 48, 59.7, 200, 7500)] == ["1.2 s", "48 s", "1 min 0 s", "3 min 20 s", "2 h 5 min"]

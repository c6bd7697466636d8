"""The report of a comparison: what it says, what it warns of, and that the page stands alone whatever it holds."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

from posttrain.errors import ConfigError
from posttrain.evaluation.results import EvalSettings
from posttrain.reports.comparability import settings_table, warnings
from posttrain.reports.comparison import Comparison
from posttrain.reports.comparison_report import answer, describe, write_comparison
from posttrain.reports.measure import Measure
from posttrain.reports.variants import Variant
from tests.reports.recorded import record, result

METRICS = {
    "reward": 0.5,
    "rollout/accuracy": 0.4,
    "gate/sft_fraction": 0.3,
    "entropy": 0.2,
    "completions/mean_length": 9.0,
    "grad_norm": 1.0,
    "rollout/truncated_fraction": 0.1,
    "cost/prompts": 8,
    "cost/generated_tokens": 100,
}


def variant(root, name, afters, **more):
    config = {"method.name": name, **more.pop("config", {})}
    more = {"metrics": METRICS, "config": config, **more}
    return Variant.of(
        name, *[record(root / name / str(i), seed=i, after=found, **more) for i, found in enumerate(afters)]
    )


@pytest.fixture
def comparison(tmp_path):
    return Comparison((variant(tmp_path, "grpo", [1, 2, 2]), variant(tmp_path, "hpt", [2, 2, 4])))


class Page(HTMLParser):
    """Everything of a page that matters for being self-contained and well formed."""

    VOID = {"meta", "img", "br", "link", "hr", "input"}

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.open, self.texts, self.attributes = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.VOID:  # "<img />"
            return
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    def images(self):
        return [value for tag, name, value in self.attributes if (tag, name) == ("img", "src")]


def table_of(document, title):
    (found,) = [part for part in document.sections if part.title.startswith(title)]
    return {row[0]: row[1:] for row in found.table.rows}


# ---- what it says ----


def test_the_answer_comes_first_with_its_test_and_its_uncertainty(comparison):
    # 0.6667 against 0.4167; difference 0.25 ± 0.1443, interval of t(2): 4.3027 * 0.1443 = 0.6210
    assert answer(comparison) == (
        "hpt ended highest, solving 66.7 % of the evaluation prompts, against 41.7 % for grpo (means over 3 seeds). "
        "hpt minus grpo: +25.0 percentage points, 95 % interval -37.1 to +87.1 (paired t-test over 3 seeds, "
        "p = 0.23). The interval includes 0: these runs do not show that one is better than the other."
    )


def test_one_seed_is_not_passed_off_as_more(tmp_path):
    text = answer(Comparison((variant(tmp_path, "grpo", [0]), variant(tmp_path, "hpt", [4]))))
    assert "(one seed each)" in text and "All pairs differ by the same amount" in text
    text = answer(
        Comparison((variant(tmp_path, "a", [[False] * 20]), variant(tmp_path, "b", [[True] * 19 + [False]])))
    )
    assert "paired t-test over 20 prompts" in text
    assert "one seed does not say what another would give" in text


def test_several_tests_are_counted(tmp_path):
    variants = (
        variant(tmp_path, "a", [1, 2, 2]),
        variant(tmp_path, "b", [2, 2, 4]),
        variant(tmp_path, "c", [2, 4, 3]),
    )
    document = describe(Comparison(variants))
    (section,) = [part for part in document.sections if part.title == "Test against a"]
    assert "p, adjusted (Holm)" in section.table.header and "2 tests at once." in section.remark
    assert "adjusted for 2 tests" in document.answer


@pytest.mark.parametrize("finals", [[None, None], [2, None]])
def test_variants_without_a_result_are_shown_as_such(tmp_path, finals):
    comparison = Comparison(
        tuple(variant(tmp_path, f"variant{i}", [after], steps=2) for i, after in enumerate(finals))
    )
    document = describe(comparison)
    assert table_of(document, "Result")["variant1"][3] == "unfinished, 2 of 4 steps"
    assert any(line.startswith("variant1: unfinished, 2 of 4 steps.") for line in warnings(comparison))
    known = "No variant has an evaluation after training yet" if finals[0] is None else "nothing to compare it with"
    assert known in document.answer


def test_tables_hold_the_numbers(comparison):
    document = describe(comparison)
    assert table_of(document, "Result")["hpt"] == [
        *("3", "25.0 ± 0.0 %", "66.7 ± 16.7 %", "3 seeds", "50.0 % to 100.0 %", "+41.7 ± 16.7")
    ]
    assert table_of(document, "Test against grpo")["hpt"] == [*("+25.0 ± 14.4", "-37.1 to +87.1", "0.23", "3 seeds")]
    costs = table_of(document, "Cost")
    assert costs["generated tokens"] == ["400", "400"] and costs["training time"] == ["8.0 s", "8.0 s"]
    assert costs["demonstrations"] == ["0", "0"]
    assert table_of(document, "Settings that differ") == {"method.name": ["grpo", "hpt"]}
    (result_part,) = [part for part in document.sections if part.title.startswith("Result")]
    assert "grpo: seed 0: 25.0 ± 25.0 %; seed 1: 50.0 ± 28.9 %" in result_part.remark


def test_costs_that_are_not_recorded_are_said_to_be(tmp_path):
    document = describe(Comparison((variant(tmp_path, "a", [1], metrics=None), variant(tmp_path, "b", [2]))))
    assert table_of(document, "Cost")["generated tokens"] == ["not recorded", "400"]


def test_the_word_significant_is_not_used(comparison):
    texts = [describe(comparison).answer, *[part.remark for part in describe(comparison).sections]]
    assert not any("significan" in text for text in texts)


# ---- warnings ----

OTHER = EvalSettings(num_prompts=4, max_new_tokens=9)
DIFFERENT = {
    "evaluation data": ({"eval_sha": "f" * 64}, r"evaluation data differ \(SHA-256\): e+… in a; f+… in b\."),
    "evaluation settings": (
        {"settings": OTHER},
        r"settings of the evaluation differ: max_new_tokens 8 in a; .* 9 in b\.",
    ),
    "verifier": ({"config": {"rollout.rewards": ["math"]}}, r"verifiers differ: exact in a; math in b\."),
    "model": (
        {"config": {"model.tiny.hidden_size": 64}},
        r"models at the start differ: model.tiny.hidden_size 32 in a; .* 64 in b",
    ),
    "steps": ({"steps": 3}, r"optimizer steps differ: 4 in a; 3 in b\."),
    "prompts": ({"metrics": {"cost/prompts": 4}}, r"prompts drawn for generation differ: 32 in a; 16 in b\."),
    "partial": ({"after": result([True], requested=4)}, r"b, after: partial evaluation, .* after 1 of 4 prompts\."),
    "unscored": ({"after": [True, None, True, True]}, r"b, after: the verifier gave no verdict on 1 completions\."),
    "failed rewards": (
        {"metrics": {"reward/exact/failed_fraction": 0.25}},
        r"b: the reward function failed .* 25.0 %",
    ),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_what_makes_variants_incomparable_is_said(tmp_path, case):
    more, expected = DIFFERENT[case]
    first = Variant.of("a", record(tmp_path / "a", metrics={"cost/prompts": 8}))
    assert clean(warnings(Comparison((first,)))) == []
    second = Variant.of("b", record(tmp_path / "b", **{"metrics": {"cost/prompts": 8}, **more}))
    found = clean(warnings(Comparison((first, second))))
    assert any(re.search(expected, line) for line in found), found


def clean(lines):
    """Without what depends on the checkout that runs the tests."""
    return [line for line in lines if "commit" not in line]


def test_models_from_earlier_runs_are_compared_by_the_recipes_of_those(tmp_path):
    variants = []
    for name, rate in (("x", 0.1), ("y", 0.2)):
        earlier = record(tmp_path / name / "warm", config={"trainer.learning_rate": rate})
        parent = {"start_from": {"model": str(earlier / "model"), "run": name}}
        variants.append(Variant.of(name, record(tmp_path / name / "rl", config=parent)))
    variants.append(Variant.of("z", record(tmp_path / "z")))
    (line,) = [line for line in warnings(Comparison(tuple(variants))) if line.startswith("The models at the start")]
    assert line == (
        "The models at the start differ: start_from warm, start_from.trainer.learning_rate 0.1 in x; "
        "start_from warm, start_from.trainer.learning_rate 0.2 in y; start_from no earlier run in z."
    )
    assert settings_table(variants) == [
        ("start_from", ["warm", "warm", "not set"]),
        ("start_from.trainer.learning_rate", ["0.1", "0.2", "not set"]),
    ]


def test_equal_values_are_named_once(tmp_path):
    variants = [
        Variant.of(name, record(tmp_path / name, steps=steps)) for name, steps in (("a", 4), ("b", 4), ("c", 3))
    ]
    assert "The numbers of optimizer steps differ: 4 in a and b; 3 in c." in warnings(Comparison(tuple(variants)))


def test_versions_and_commits_are_compared(tmp_path):
    folders = [record(tmp_path / name) for name in "ab"]
    changed = [{"git": {"commit": "c" * 40, "dirty": False}}, {"git": {"commit": "d" * 40, "dirty": True}}]
    for folder, facts in zip(folders, changed, strict=True):
        run = json.loads((folder / "run.json").read_text())
        run["versions"]["trl"] = "0.1" if folder.name == "b" else run["versions"]["trl"]
        (folder / "run.json").write_text(json.dumps({**run, **facts}))
    lines = warnings(Comparison((Variant.of("a", folders[0]), Variant.of("b", folders[1]))))
    assert any(re.search(r"versions of libraries differ: trl [\d.]+ in a; trl 0\.1 in b\.", line) for line in lines)
    assert "The commits of posttrain differ: cccccccccccc… in a; dddddddddddd… in b." in lines
    assert any(line.endswith("all that ran: b.") and "changes beyond its commit" in line for line in lines)


def test_health_warnings_of_the_runs_are_repeated(tmp_path):
    folder = record(tmp_path / "a")
    (folder / "health.json").write_text(json.dumps({"warnings": [{"step": 3, "text": "too long."}], "checks": {}}))
    assert "a, during training: too long." in warnings(Comparison((Variant.of("a", folder),)))


def test_variants_pooled_by_name_and_copies_are_pointed_out(tmp_path):
    folders = [record(tmp_path / "0"), record(tmp_path / "1", config={"trainer.learning_rate": 1.0})]
    lines = warnings(Comparison((Variant.of("x", *folders),)))
    assert "x: its runs differ in more than their seeds: trainer.learning_rate." in lines
    assert any("another run of this variant has the same seeds" in line for line in lines)


def test_settings_that_one_variant_lacks_are_listed(tmp_path):
    first, second = (
        variant(tmp_path, "a", [1]),
        variant(tmp_path, "b", [1], config={"trainer.beta": 0.1, "method.name": "a"}),
    )
    assert settings_table((first, second)) == [("trainer.beta", ["not set", "0.1"])]


# ---- the page ----


def test_the_page_stands_alone(comparison, tmp_path):
    path = write_comparison(tmp_path / "out", comparison)
    page = Page(path.read_text())
    assert page.open == [] and page.tags.count("h1") == 1 and page.tags.count("html") == 1
    assert not {"script", "link", "iframe", "object", "embed", "form", "a"} & set(page.tags)
    assert not [item for item in page.attributes if item[1].startswith("on") or item[1] in ("href", "srcset", "style")]
    images = page.images()
    assert len(images) > 5 and all(source.startswith("data:image/png;base64,") for source in images)
    assert all(base64.b64decode(source.partition(",")[2]).startswith(b"\x89PNG") for source in images)
    text = path.read_text()
    assert "url(" not in text and "@import" not in text and "http:" not in text and "https:" not in text
    alts = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    assert len(alts) == len(images) and all(len(alt) > 30 for alt in alts)
    assert (
        ("html", "lang", "en") in page.attributes and "prefers-color-scheme: dark" in text and "@media print" in text
    )


def test_markdown_and_page_say_the_same(comparison, tmp_path):
    write_comparison(tmp_path / "out", comparison)
    report = (tmp_path / "out" / "REPORT.md").read_text()
    shown = " ".join(Page((tmp_path / "out" / "report.html").read_text()).texts)
    for text in (describe(comparison).answer, "+25.0 ± 14.4", "Settings that differ", "How to read this"):
        assert text in shown
    rendered = " ".join(Page(MarkdownIt("gfm-like", {"linkify": False}).render(report)).texts)
    assert describe(comparison).answer in rendered
    for name in re.findall(r"\(plots/([^)]+)\)", report):
        assert (tmp_path / "out" / "plots" / name).stat().st_size > 5000
    assert {"evaluation", "accuracy", "gate", "entropy", "length", "grad_norm", "truncated", "cost"} <= {
        path.stem for path in (tmp_path / "out" / "plots").iterdir()
    }


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }}{% raw %}",
    "</td></tr></table><h1>",
    "| a | b |\n\n# head\n![x](http://x.example/y.png)",
    "\x00\x1b[31m\u202egnp\ud83d",
    "&lt;b&gt;&amp;",
    "x" * 5000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_no_text_becomes_markup(tmp_path, text):
    name = text[:60]
    hostile = [
        Variant.of(name, record(tmp_path / "a", completion=text, prompt=text)),
        variant(tmp_path, "hpt", [2], prompt=text),
    ]
    path = write_comparison(tmp_path / "out", Comparison(tuple(hostile)))
    plain = write_comparison(
        tmp_path / "plain", Comparison((Variant.of("x", record(tmp_path / "b")), variant(tmp_path / "p", "hpt", [2])))
    )
    page, expected = Page(path.read_text(encoding="utf-8")), Page(plain.read_text(encoding="utf-8"))
    assert page.tags == expected.tags and page.open == []
    assert [item[:2] for item in page.attributes] == [item[:2] for item in expected.attributes]
    if text.isprintable():
        assert text[:60] in "".join(page.texts)
    else:
        assert not re.search(r"[\x00\x1b\u202e]", "".join(page.texts))
    report = MarkdownIt("gfm-like", {"linkify": False}).render((tmp_path / "out" / "REPORT.md").read_text("utf-8"))
    assert not {"script", "a"} & set(Page(report).tags)
    assert all(source.startswith("plots/") for source in Page(report).images())


def test_long_completions_are_shortened_with_a_note(tmp_path):
    path = write_comparison(tmp_path / "out", Comparison((variant(tmp_path, "a", [2], completion="y" * 5000),)))
    assert "… (4500 more characters)" in path.read_text() and "y" * 501 not in path.read_text()


def test_the_report_of_a_run_is_not_overwritten(comparison, tmp_path):
    with pytest.raises(ConfigError, match="this folder is a run and has a report of its own"):
        write_comparison(tmp_path / "grpo" / "0", comparison)


def test_other_measures_are_named_throughout(tmp_path):
    variants = (variant(tmp_path, "a", [1], length=3), variant(tmp_path, "b", [1], length=5))
    document = describe(Comparison(variants, Measure("mean_length")))
    assert document.answer.startswith("b ended highest, at 5, against 3 for a (one seed each).")
    assert "solved" not in document.answer and table_of(document, "Result: mean_length")["b"][2] == "5"

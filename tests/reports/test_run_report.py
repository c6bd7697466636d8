"""The folder of a run, made from real evaluations of a real model before and after real training steps."""

import json
import re

import pytest
import torch
from markdown_it import MarkdownIt
from transformers import AutoModelForCausalLM

from posttrain.evaluation.generate import EvalSettings, evaluate
from posttrain.evaluation.results import paired_difference
from posttrain.reports.provenance import data_fingerprint, world_layout
from posttrain.reports.run_report import RunFolder

ROWS = [
    {"prompt": [{"role": "user", "content": f"{word}|{i}"}], "answer": word, "group": word}
    for i, word in enumerate(["cat", "dog", "<b>"] * 4)
]
SETTINGS = EvalSettings(max_new_tokens=8)


def is_answer(prompts, completions, *, answer, **columns):
    return [float(c[0]["content"] == a) for c, a in zip(completions, answer, strict=True)]


def train(model, tokenizer, rows, steps):
    """Supervised steps on the answers; returns the log events."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    events = []
    texts = [
        tokenizer.apply_chat_template([*r["prompt"], {"role": "assistant", "content": r["answer"]}], tokenize=False)
        for r in rows
    ]
    batch = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    for step in range(1, steps + 1):
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        stamp = {"event": "log", "step": step, "epoch": None, "wall_time": 0.0, "elapsed_seconds": 0.5 * step}
        events.append({**stamp, "loss": loss.item(), "num_tokens": step * batch["input_ids"].numel()})
    return events


@pytest.fixture(scope="module")
def variants(tiny_dir, tiny_tokenizer, tmp_path_factory):
    """Two finished runs from the same model: one trained on two of the three words, one on all."""
    root = tmp_path_factory.mktemp("runs")
    for name, rows in (("some", [r for r in ROWS if r["answer"] != "<b>"]), ("all", ROWS)):
        folder = RunFolder(root / name)
        model = AutoModelForCausalLM.from_pretrained(tiny_dir)
        folder.write_run(
            {"method": {"name": "sft"}, "model": {"tiny": {"seed": 0}}, "hub": {"token": "s3cr3t-value"}},
            data={"train": data_fingerprint(rows)},
            seeds={"trainer": 3},
            world=world_layout(),
            defaults={"dtype": "float32"},
            argv=["posttrain", "train", "recipe.yaml", "hub.token=s3cr3t-value"],
        )
        folder.write_eval("before", evaluate(model, tiny_tokenizer, ROWS, is_answer, settings=SETTINGS), step=0)
        events = train(model, tiny_tokenizer, rows, 60)
        folder.metrics_path.write_text("".join(json.dumps(event) + "\n" for event in events))
        result = evaluate(model, tiny_tokenizer, ROWS, is_answer, settings=SETTINGS)
        folder.write_eval("after", result, step=60, settings=SETTINGS)
        folder.write_report(cost={"demonstrations": len(rows) * 60})
    return {name: RunFolder(root / name) for name in ("some", "all")}


def rendered(markdown):
    return MarkdownIt("gfm-like", {"linkify": False}).render(markdown)


def section(markdown, title):
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", markdown, re.DOTALL | re.MULTILINE)[1]


def test_the_training_of_this_test_taught_something(variants):
    before, after = (variants["all"].read_evals()[name] for name in ("before", "after"))
    assert before["accuracy"] == 0.0 and after["accuracy"] == 1.0
    assert variants["some"].read_evals()["after"]["per_group"]["<b>"]["accuracy"] < 1.0


def test_run_json_tells_how_the_run_was_made_and_no_secret(variants):
    record = variants["all"].read_run()
    assert record["config"]["model"] == {"tiny": {"seed": 0}}
    assert record["config"]["hub"]["token"] == "<hidden>" == record["command"][-1].partition("=")[2]
    assert "s3cr3t-value" not in variants["all"].run_path.read_text() + variants["all"].report_path.read_text()
    assert record["data"]["train"]["rows"] == 12 and len(record["data"]["train"]["sha256"]) == 64
    assert record["versions"]["torch"] == torch.__version__
    assert record["seeds"] == {"trainer": 3} and record["defaults"] == {"dtype": "float32"}
    assert record["world"]["num_processes"] == 1
    assert "PATH" not in record and "environ" not in json.dumps(record)
    assert record["earlier_attempts"] == []


def test_an_earlier_attempt_is_kept_when_the_run_goes_on(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_run({"a": 1}, argv=["first"])
    folder.write_run({"a": 1}, argv=["second"])
    folder.write_run({"a": 1}, argv=["third"])
    record = folder.read_run()
    assert record["command"] == ["third"]
    assert [attempt["command"] for attempt in record["earlier_attempts"]] == [["first"], ["second"]]


def test_evaluations_are_kept_with_their_completions(variants):
    evals = variants["all"].read_evals()
    assert list(evals) == ["before", "after"]
    assert evals["after"]["step"] == 60 and evals["after"]["settings"]["max_new_tokens"] == 8
    samples = variants["all"].read_samples("after")
    assert [sample["index"] for sample in samples] == list(range(12))
    assert samples[0]["completion"] == "cat" and samples[0]["correct"] is True
    assert (variants["all"].path / evals["after"]["completions"]).exists()


@pytest.mark.parametrize("name", ["../x", "a b", ""])
def test_an_evaluation_name_that_is_no_file_name_is_refused(tmp_path, name, variants, tiny_dir, tiny_tokenizer):
    model = AutoModelForCausalLM.from_pretrained(tiny_dir)
    result = evaluate(model, tiny_tokenizer, ROWS[:1], is_answer, settings=EvalSettings(max_new_tokens=1))
    with pytest.raises(ValueError, match="also a file name"):
        RunFolder(tmp_path).write_eval(name, result, step=0)


def test_the_report_states_the_outcome_with_its_error(variants):
    report = variants["some"].report_path.read_text()
    after = variants["some"].read_evals()["after"]
    value, stderr, count = paired_difference(
        variants["some"].read_samples("before"), variants["some"].read_samples("after")
    )
    assert count == 12
    assert f"a change of +{100 * value:.1f} ± {100 * stderr:.1f} percentage points on 12 prompts" in report
    expected = f"| after | {100 * after['accuracy']:.1f} ± {100 * after['accuracy_stderr']:.1f} % | 12 | 12 |"
    assert expected in section(report, "Result")


def test_the_report_lists_groups_cost_and_provenance(variants):
    report = variants["all"].report_path.read_text()
    groups = section(report, "By group")
    assert "| cat | 4 | 0.0 ± 0.0 % | 100.0 ± 0.0 % |" in groups and "&#60;b&#62;" in groups
    cost = section(report, "Cost")
    tokens = variants["all"].read_metrics()[-1]["num_tokens"]
    for row in (
        "| optimizer steps | 60 |",
        f"| tokens processed in training | {tokens:,} |",
        "| training time | 30 s |",
    ):
        assert row in cost
    assert "| demonstrations | 720 |" in cost
    assert "run.json" in section(report, "How it was made")


def test_every_plot_of_the_report_exists_and_shows_something(variants):
    for folder in variants.values():
        shown = re.findall(r"!\[[^]]*\]\((plots/[^)]+\.png)\)", folder.report_path.read_text())
        assert shown == ["plots/evaluation.png", "plots/loss.png"]
        for name in shown:
            content = (folder.path / name).read_bytes()
            assert content.startswith(b"\x89PNG") and len(content) > 5000


def test_completions_stand_side_by_side_and_cannot_break_the_page(variants):
    report = variants["all"].report_path.read_text()
    table = section(report, "Completions")
    assert "| prompt | before | after |" in table
    assert "**correct**<br>cat" in table and "**wrong" in table
    page = rendered(report)
    assert "<b>" not in page and page.count("<table>") == 5
    rows = re.findall(r"<tr>(.*?)</tr>", rendered(table), re.DOTALL)
    assert {len(re.findall("<t[dh]", row)) for row in rows} == {3}


def test_a_report_can_be_written_from_whatever_there_is(tmp_path, variants):
    assert "There was no evaluation." in RunFolder(tmp_path / "nothing").write_report().read_text()
    only_after = RunFolder(tmp_path / "after")
    for name in ("eval.json", "completions/after.jsonl"):
        content = (variants["all"].path / name).read_text()
        (only_after.path / name).parent.mkdir(parents=True, exist_ok=True)
        (only_after.path / name).write_text(content)
    evals = only_after.read_evals()
    only_after.eval_path.write_text(json.dumps({"after": evals["after"]}))
    report = only_after.write_report(title="a *b*").read_text()
    assert report.startswith("# a &#42;b&#42;\n")
    assert "After training the model solved 100.0 % of the evaluation prompts." in report


def test_partial_truncated_and_unscored_results_are_pointed_out(tmp_path, tiny_dir, tiny_tokenizer):
    model = AutoModelForCausalLM.from_pretrained(tiny_dir)
    settings = EvalSettings(max_new_tokens=2, batch_size=3, time_budget_seconds=1e-9)
    result = evaluate(model, tiny_tokenizer, ROWS, lambda completions, **_: [None, 1.0, 0.0], settings=settings)
    folder = RunFolder(tmp_path)
    folder.write_eval("before", result, step=0)
    report = folder.write_report().read_text()
    assert "before: **partial**, the time budget ended it after 3 of 12 prompts" in report
    assert "of the completions were cut off at the token limit" in report
    assert "before: the verifier gave no verdict on 1 completions." in report
    assert "| before | 50.0 ± 50.0 % | 2 of 12 | 3 |" in report


def test_a_change_within_its_error_is_called_chance(tmp_path, variants):
    folder = RunFolder(tmp_path)
    evals = variants["some"].read_evals()
    samples = variants["some"].read_samples("before")
    changed = [{**sample, "correct": sample["index"] == 5} for sample in samples]
    (tmp_path / "completions").mkdir()
    for name, rows in (("before", samples), ("after", changed)):
        (tmp_path / "completions" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder.eval_path.write_text(json.dumps({**evals, "after": {**evals["after"], "accuracy": 1 / 12}}))
    # one of twelve: mean 1/12, standard error sqrt((11/12) / (12 * 11)) = 1/12
    assert "+8.3 ± 8.3 percentage points on 12 prompts. That is less than 2 standard errors, so it may be chance." in (
        folder.write_report().read_text()
    )


def test_code_that_came_with_the_model_is_told_in_the_report(tmp_path, variants):
    folder = RunFolder(tmp_path)
    run = variants["all"].read_run()
    for trusted in (True, False):
        config = {**run["config"], "model": {"path": "some/model", "trust_remote_code": trusted}}
        (tmp_path / "run.json").write_text(json.dumps({**run, "config": config}))
        told = "code that came with the model was run" in folder.write_report().read_text()
        assert told is trusted


def test_warnings_of_the_training_are_shown_and_their_absence_too(tmp_path):
    folder = RunFolder(tmp_path)
    assert "## Warnings" not in folder.write_report().read_text()
    folder.health_path.write_text(json.dumps({"warnings": [], "checks": {}}))
    assert section(folder.write_report().read_text(), "Warnings").strip() == "None."
    folder.health_path.write_text(json.dumps({"warnings": [{"step": 40, "text": "cut <off>"}], "checks": {}}))
    assert section(folder.write_report().read_text(), "Warnings").strip() == "- step 40: cut &#60;off&#62;"


def test_costs_that_the_training_counts_are_shown(tmp_path):
    folder = RunFolder(tmp_path)
    stamp = {"event": "log", "epoch": 0.0, "wall_time": 0.0, "elapsed_seconds": 3.0}
    events = [
        {**stamp, "step": step, "cost/prompts": 8 * step, "cost/generated_tokens": 100 * step} for step in (1, 2)
    ]
    folder.metrics_path.write_text("".join(json.dumps(event) + "\n" for event in [*events, {**stamp, "step": 2}]))
    assert folder.costs() == {"optimizer steps": 2, "prompts": 16, "generated tokens": 200, "training time": 3.0}
    assert "| generated tokens | 200 |" in folder.write_report().read_text()

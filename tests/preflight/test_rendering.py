"""What check tells of the way from rows to tokens: fields that are lost, stages that differ, typed control tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.config.loader import load
from posttrain.models.tiny import CHAT_TEMPLATE
from posttrain.preflight.check import check
from posttrain.preflight.report import CheckReport
from tests.preflight.test_template import model_with

# Without thinking the prompt closes an empty thought; of the turns before the last one the thought is forgotten.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last and '</think>' not in "
    "m.content %}<think>\n\n</think>\n\n{% endif %}{{ m.content if loop.last else m.content.split('</think>')[-1] }}"
    "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
AGENT = (
    "{% for t in tools or [] %}{{ t.name }};{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}{% for c in m.tool_calls or [] %}call {{ c.name }}{% endfor %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ROLLOUT = {"num_generations": 2, "max_completion_length": 8, "rewards": ["exact"], "reward_workers": 0}
SIZE = {
    "max_steps": 1,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "report_to": "none",
    "save_strategy": "no",
}


def question(number: int, **more: Any) -> dict[str, Any]:
    return {"prompt": [{"role": "user", "content": f"say {number}"}], "solution": f"{number}", "answer": "1", **more}


def checked(
    folder: Path, template: str, rows: list[dict[str, Any]] | None = None, *, show_rows: int = 0, **recipe: Any
) -> CheckReport:
    model = model_with(folder, chat_template=template)
    rows = rows or [question(number) for number in range(8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"max_prompt_length": 99, "train": {"path": str(folder / "rows.jsonl")}, **recipe.pop("data", {})}
    whole = {
        "model": {"path": str(model), "dtype": "float32"},
        "data": data,
        "trainer": {"output_dir": str(folder / "out"), **({} if "stages" in recipe else SIZE)},
        **({} if "stages" in recipe else {"method": {"name": "sft"}}),
        **recipe,
    }
    (folder / "recipe.yaml").write_text(json.dumps(whole))
    return check(load(folder / "recipe.yaml"), show_rows=show_rows)


def two_stages(warm: dict[str, Any], rl: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"name": "warm", "method": {"name": "sft"}, "trainer": {**SIZE, **warm}},
        {
            "name": "rl",
            "start_from": "warm",
            "method": {"name": "grpo"},
            "rollout": {**ROLLOUT, **rl},
            "trainer": SIZE,
        },
    ]


OFF = {"chat_template_kwargs": {"enable_thinking": False}}


def told(report: CheckReport, words: str) -> list[str]:
    return [str(finding) for finding in report.warnings + report.errors if words in str(finding)]


def test_stages_that_read_a_prompt_as_other_tokens_are_named_with_the_difference(tmp_path: Path):
    report = checked(tmp_path, THINKING, stages=two_stages({}, OFF))
    (found,) = told(report, "as other tokens than stage 'warm'")
    assert "stage 'rl' reads 8 of 8 prompts" in found and r"<think>\n\n</" in found
    (turn,) = told(report, "writes the assistant's turn differently")
    assert r"it has '<think>\n\n</t' where training has '0<|im_end|>'" in turn and "8 of the first 8 rows" in turn


@pytest.mark.parametrize(
    ("data", "warm", "rl"), [(OFF, {}, {}), ({}, OFF, OFF), (OFF, {}, OFF)], ids=["data", "each stage", "both"]
)
def test_one_prompt_for_all_stages_has_no_findings(tmp_path: Path, data: Any, warm: Any, rl: Any):
    report = checked(tmp_path, THINKING, data=data, stages=two_stages(warm, rl), show_rows=1)
    assert not told(report, "as other tokens") and not told(report, "turn"), report.lines()
    first, second = report.previews
    behind = len(second.tokens)
    assert first.tokens[:behind] == second.tokens and not any(first.trained[:behind])
    assert "".join(second.tokens).endswith("assistant\n<think>\n\n</think>\n\n")


def test_a_thought_that_a_template_forgets_in_earlier_turns_is_no_finding(tmp_path: Path):
    earlier = [{"role": "user", "content": "say 1"}, {"role": "assistant", "content": "<think>\nhm\n</think>one"}]
    rows = [{"prompt": [*earlier, *question(n)["prompt"]], "solution": "<think>\nso\n</think>1"} for n in range(8)]
    forgets = THINKING.replace("m.content if loop.last else ", "")
    for template in (THINKING, forgets):
        report = checked(tmp_path, template, rows)
        assert report.lines()[-1] == "ok", report.lines()


def test_fields_reach_the_template_or_are_told_with_their_count(tmp_path: Path):
    call = {"role": "assistant", "tool_calls": [{"name": "look"}], "mood": "good"}
    asked = [{"role": "user", "content": "rain?"}, call, {"role": "tool", "content": "dry", "name": "look"}]
    rows = [question(number, prompt=asked, tools=[{"name": "look"}]) for number in range(3)]
    rows += [question(number) for number in range(5)]
    report = checked(tmp_path, AGENT, rows, show_rows=1)
    assert "".join(report.previews[0].tokens).startswith("look;<|im_start|>user\nrain?<|im_end|>")
    assert "call look<|im_end|>" in "".join(report.previews[0].tokens)
    (mood,) = told(report, "does not read")
    assert "field of the messages, which 3 of 8 rows have (got 'mood')" in mood
    plain = checked(tmp_path, CHAT_TEMPLATE, rows)
    lost = told(plain, "does not read")
    assert sorted(found.split("got ")[1].split(")")[0] for found in lost) == [
        "'mood'",
        "'name'",
        "'tool_calls'",
        "'tools'",
    ]


def test_an_unread_variable_of_the_recipe_is_told(tmp_path: Path):
    report = checked(tmp_path, CHAT_TEMPLATE, data=OFF)
    (found,) = told(report, "does not read this input")
    assert "8 of 8 rows have (got 'enable_thinking')" in found


def test_a_demonstration_that_is_a_message_is_trained_as_the_template_writes_it(tmp_path: Path):
    answer = [{"role": "assistant", "content": "so", "tool_calls": [{"name": "look"}]}]
    rows = [question(number, solution=answer if number else "dry") for number in range(8)]
    report = checked(tmp_path, AGENT, rows, show_rows=2)
    assert report.lines()[-1] == "ok", report.lines()
    trained = ["".join(token for token, on in zip(p.tokens, p.trained, strict=True) if on) for p in report.previews]
    assert trained == ["dry<|im_end|>", "socall look<|im_end|>"]


def test_fields_of_a_demonstration_that_the_template_does_not_write_are_told(tmp_path: Path):
    call = {"role": "assistant", "content": "so", "tool_calls": [{"name": "look"}], "mood": "good"}
    rows = [question(number, solution=call if number < 3 else "dry") for number in range(8)]
    lost = told(checked(tmp_path, CHAT_TEMPLATE, rows), "field of the demonstrations")
    assert [found.split("which ")[1].split(".")[0] for found in lost] == [
        "3 of 8 rows have (got 'mood')",
        "3 of 8 rows have (got 'tool_calls')",
    ]
    # It writes the calls alone, as some templates do.
    either = AGENT.replace("{{ m.content }}", "{{ m.content if not m.tool_calls }}")
    report = checked(tmp_path, either, rows)
    (dropped,) = told(report, "drops the field 'content' of the demonstration ('so')")
    assert "3 of the first 8 rows" in dropped and not report.ok


def test_a_blank_that_is_trained_can_be_seen(tmp_path: Path):
    rows = [question(number, solution="a b\tc") for number in range(8)]
    text = checked(tmp_path, CHAT_TEMPLATE, rows, show_rows=1).previews[0].plain()
    assert "[a][\u2423][b]" in text and "\ntrained ids: " in text.split("\n<|im_start|>")[0]


def test_what_rewards_read_is_said(tmp_path: Path):
    report = checked(tmp_path, CHAT_TEMPLATE, method={"name": "grpo"}, rollout=ROLLOUT)
    (fact,) = [line for line in report.facts if line.startswith("rewards read")]
    assert "such as <bos>, <|im_start|>," in fact and "(<pad>, <|im_end|>) are cut off" in fact


def test_inputs_of_a_template_beside_text_are_told(tmp_path: Path):
    rows = [{"prompt": f"say {n}", "solution": " 1", "tools": [{"name": "look"}] * (n < 2)} for n in range(8)]
    train = {"path": str(tmp_path / "rows.jsonl"), "format": "text"}
    report = checked(tmp_path, AGENT, rows, data={**OFF, "train": train})
    assert len(told(report, "go through no chat template, and 8 of 8 rows have an input of it (got 'enable_th")) == 1
    assert len(told(report, "go through no chat template, and 2 of 8 rows have an input of it (got 'tools')")) == 1


@pytest.mark.parametrize("column", ["prompt", "solution"])
def test_messages_that_are_written_as_text_are_told(tmp_path: Path, column: str):
    texts = ['[{"role": "user", "content": "hi"}]', "[{'content': 'hi', 'role': 'user'}]", '[{"name": "hi"}]']
    report = checked(tmp_path, CHAT_TEMPLATE, [question(n, **{column: text}) for n, text in enumerate(texts)])
    (found,) = told(report, "messages written as text")
    assert f"column '{column}' holds messages written as text in 2 of 3 rows (rows 0, 1)" in found


@pytest.mark.parametrize("block", ["eval_tasks", "probes"])
def test_the_template_is_tried_on_further_tasks_and_probes(tmp_path: Path, block: str):
    dated = AGENT.replace("<|im_start|>", "{{ strftime_now('%Y') if m.role == 'system' }}<|im_start|>", 1)
    further = [{"role": "system", "content": "s"}, {"role": "user", "content": "other"}]
    (tmp_path / "further.jsonl").write_text(json.dumps(question(1, prompt=further)))
    (tmp_path / "held.jsonl").write_text(json.dumps(question(99)))
    data = {"eval": {"path": str(tmp_path / "held.jsonl")}, block: {"t": {"path": str(tmp_path / "further.jsonl")}}}
    evaluation = {"num_prompts": 1, "verifier": "exact", "max_new_tokens": 4}
    (found,) = told(checked(tmp_path, dated, data=data, eval=evaluation), "date or time of the run")
    assert f"into 1 of 1 rows of data.{block}.t (row 0)" in found


def test_rows_that_end_with_the_answer_are_told_what_to_do(tmp_path: Path):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    report = checked(tmp_path, CHAT_TEMPLATE, [{"prompt": turns, "solution": "x"}])
    assert told(report, "Write the last message into a column of its own, `solution`")

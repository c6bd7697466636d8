"""Chat templates of five families that pass, and one that breaks each rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.config.loader import load
from posttrain.models.tiny import CHAT_TEMPLATE, build_tiny
from posttrain.preflight.check import check
from posttrain.preflight.report import CheckReport
from tests.config.recipes import BASES, changed, write

FAMILIES = {
    "chatml": CHAT_TEMPLATE,
    "header": (
        "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n\n{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}"
    ),
    "inst": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}{{ eos_token }}"
        "{% else %}[INST]{{ m.content }}[/INST]{% endif %}{% endfor %}"
    ),
    "system folded into the user turn": (
        "{% set lead = namespace(text='') %}{% for m in messages %}{% if m.role == 'system' %}"
        "{% set lead.text = m.content ~ '\n' %}{% else %}"
        "<|im_start|>{{ 'model' if m.role == 'assistant' else 'user' }}\n"
        "{{ lead.text if m.role == 'user' else '' }}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
    ),
    "think opened by the prompt": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}<think>\n{% endif %}"
        "{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    ),
}
ROW = {"prompt": "2+3=?", "answer": "5", "solution": "Answer: 5"}


def model_with(folder: Path, **tokenizer: Any) -> Path:
    """A tiny model whose tokenizer has some attributes replaced."""
    from transformers import AutoTokenizer

    path = build_tiny(folder / "model", hidden_size=8, num_layers=1, num_heads=2, intermediate_size=8)
    found = AutoTokenizer.from_pretrained(path)
    for name, value in tokenizer.items():
        setattr(found, name, value)
    (path / "chat_template.jinja").unlink(missing_ok=True)
    found.save_pretrained(path)
    return path


def checked(
    folder: Path,
    base: str = "hpt",
    *,
    row: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    changes: dict[str, Any] | None = None,
    **tokenizer: Any,
) -> CheckReport:
    rows = [{**ROW, "prompt": f"{i}+3=?", "answer": str(i + 3), "solution": f"Answer: {i + 3}"} for i in range(8)]
    rows = [{**each, **(row or {})} for each in rows]
    (folder / "rows.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    changes = {
        **(changes or {}),
        "model": {"path": str(model_with(folder, **tokenizer))},
        "data.train": {"path": str(folder / "rows.jsonl"), **(data or {})},
    }
    return check(load(write(folder, changed(BASES[base], changes))))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sound_template_has_no_findings(tmp_path: Path, family: str):
    report = checked(tmp_path, chat_template=FAMILIES[family])
    assert report.lines()[-1] == "ok", report.lines()


@pytest.mark.parametrize(
    ("row", "data", "tokenizer", "words"),
    [
        ({}, {}, {"chat_template": None}, "the prompts are chats, but the tokenizer has no chat template"),
        ({}, {}, {"eos_token": None}, "no end token"),
        (
            {},
            {},
            {"chat_template": "{{ raise_exception('roles must alternate') }}"},
            "the chat template refuses the prompt: roles must alternate (8 of the first 8 rows",
        ),
        ({}, {}, {"chat_template": "{{ messages[0].text.strip() }}"}, "the chat template refuses the prompt"),
        (
            {},
            {},
            {"chat_template": "{% for m in messages %}{{ m.role }}{% endfor %}<|im_start|>"},
            "the chat template drops text of the prompt ('0+3=?')",
        ),
        ({}, {}, {"chat_template": "{{ bos_token }}" + FAMILIES["header"]}, "two BOS tokens (<bos>) open the prompt"),
        (
            {"solution": "Step 1.<think> Step 2.\nAnswer: 5"},
            {},
            {"chat_template": FAMILIES["think opened by the prompt"]},
            "the think tag is opened twice",
        ),
    ],
)
def test_a_template_trap_is_an_error(
    tmp_path: Path, row: dict[str, Any], data: dict[str, Any], tokenizer: dict[str, Any], words: str
):
    report = checked(tmp_path, row=row, data=data, **tokenizer)
    found = [str(error) for error in report.errors if words in str(error)]
    assert len(found) == 1, report.lines()
    assert "recipe.yaml" in found[0]


@pytest.mark.parametrize(
    ("row", "data", "words"),
    [
        ({"prompt": "<bos><bos>2+3=?"}, {"format": "text"}, "two BOS tokens (<bos>) open the prompt"),
        (
            {"solution": "2 and 3<|im_end|>\nAnswer: 5"},
            {},
            "the stop token '<|im_end|>' stands inside the demonstration (8 of the first 8 rows",
        ),
    ],
)
def test_control_tokens_in_the_data_are_text_unless_they_are_asked_for(
    tmp_path: Path, row: dict[str, Any], data: dict[str, Any], words: str
):
    report = checked(tmp_path, row=row, data=data)
    assert not report.errors, report.lines()
    assert sum("control tokens are spelled in the text of 8 of 8 rows" in str(each) for each in report.warnings) == 1
    asked = checked(tmp_path, row=row, data=data, changes={"data.special_tokens_in_text": "token"})
    assert sum(words in str(error) for error in asked.errors) == 1, asked.lines()


@pytest.mark.parametrize(
    ("row", "tokenizer", "words"),
    [
        (
            {},
            {"chat_template": CHAT_TEMPLATE.replace("<|im_end|>", "<bos>"), "eos_token": "<|im_end|>"},
            "the template writes the assistant's turn differently from what is trained (it has '<bos>' where training "
            "ends with '<|im_end|>')",
        ),
        (
            {},
            {
                "chat_template": "{% for m in messages %}{{ m.role }}:{{ m.content }}<|im_end|>{% endfor %}"
                "{% if add_generation_prompt %}answer:{% endif %}"
            },
            "the generation prompt is not how the template begins the assistant's turn",
        ),
        ({"solution": "Antwort: fünf\nAnswer: 5"}, {}, "characters of the demonstration do not survive the tokenizer"),
        ({"prompt": "2 ⊕ 3"}, {}, "characters of the prompt do not survive the tokenizer"),
        ({}, {"pad_token": None}, "the tokenizer has no padding token"),
    ],
)
def test_a_template_doubt_is_a_warning(tmp_path: Path, row: dict[str, Any], tokenizer: dict[str, Any], words: str):
    report = checked(tmp_path, "sft", row=row, **tokenizer)
    assert not report.errors, report.lines()
    assert sum(words in str(warning) for warning in report.warnings) == 1, report.lines()


def test_a_repeated_think_tag_at_the_start_of_a_demonstration_is_stripped_not_refused(tmp_path: Path):
    report = checked(
        tmp_path, row={"solution": "<think>\nsum\nAnswer: 5"}, chat_template=FAMILIES["think opened by the prompt"]
    )
    assert not report.errors, report.lines()


def test_the_preview_shows_what_is_trained(tmp_path: Path):
    cfg = load(write(tmp_path, BASES["sft"]))
    report = check(cfg, show_rows=2)
    first = report.previews[0]
    text = first.plain()
    assert len(report.previews) == 2 and first.title == "train row 0 (sft)"
    assert text.endswith("[<|im_end|>]"), "the stop token is trained"
    assert "[A][n][s][w][e][r]" in text and "[u]" not in text.split("[")[0]
    assert text.splitlines()[0] == f"-- train row 0 (sft): {len(first.tokens)} tokens, {sum(first.trained)} trained --"


def test_the_preview_is_coloured_on_a_terminal_and_bracketed_elsewhere():
    from rich.console import Console

    from posttrain.preflight.preview import Preview

    row = Preview("row 0", ("a", "b", "c"), (False, True, True), "note")
    coloured = Console(force_terminal=True, color_system="256", width=80)
    with coloured.capture() as shown:
        coloured.print(row.render(colour=True))
    assert "\x1b[" in shown.get() and "[b]" not in shown.get()
    assert row.plain() == "-- row 0: 3 tokens, 2 trained --\na[b][c]\nnote"
    assert row.render(colour=False).plain == row.plain()


def test_other_tokens_of_one_text_are_told_as_tokens(tmp_path: Path):
    """A line break and what follows it are one token here, and the prompt ends between them."""
    folder = model_with(tmp_path)
    core = json.loads((folder / "tokenizer.json").read_text())
    core["model"]["vocab"]["\u010aA"] = joined = core["model"]["vocab"].pop("~")
    core["model"]["merges"] = [["\u010a", "A"]]
    (folder / "tokenizer.json").write_text(json.dumps(core))
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    changes = {"model": {"path": str(folder)}, "data.train": {"path": str(tmp_path / "rows.jsonl")}}
    lines = check(load(write(tmp_path, changed(BASES["sft"], changes)))).lines()
    (found,) = [line for line in lines if "the generation prompt is not how" in line]
    assert f"(it has the tokens [{joined}, " in found, found


def test_an_empty_demonstration_is_no_completion_to_sample(tmp_path: Path):
    row = {**ROW, "solution": " "}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    values = changed(BASES["sft"], {"data.train": {"path": str(tmp_path / "rows.jsonl")}})
    (shown,) = check(load(write(tmp_path, values)), show_rows=1).previews
    assert shown.note == "the demonstration is empty" and not any(shown.trained)


def test_without_demonstrations_the_completion_is_announced(tmp_path: Path):
    report = check(load(write(tmp_path, BASES["grpo"])), show_rows=1)
    assert not any(report.previews[0].trained)
    assert report.previews[0].note == "a completion of up to 64 tokens is sampled and trained up to its stop token"

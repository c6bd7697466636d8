"""Demonstrations that are messages: what the chat templates of others write of their calls and thoughts is learnt."""

from __future__ import annotations

import json
import re
from importlib.resources import files

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from posttrain.data.answers import message_of, message_text
from posttrain.data.demonstrations import encode_pair, encode_rows
from posttrain.data.mixture import build_mixture
from posttrain.data.sources import load_source
from posttrain.errors import DataError
from posttrain.models.template_clock import hold_clock

CALL = {"type": "function", "id": "abcdefghi", "function": {"name": "look", "arguments": {"place": "Rome"}}}
SCHEMA = {"name": "look", "description": "looks", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": SCHEMA}]
ASKED = [{"role": "user", "content": "rain?"}]
MESSAGES = {
    "call": {"content": "", "tool_calls": [CALL]},
    "text and call": {"content": "Wait.", "tool_calls": [CALL]},
    "thought": {"content": "Dry.", "reasoning_content": "It is."},
    "thought and call": {"content": "", "reasoning_content": "It is.", "tool_calls": [CALL]},
}
# Templates that trl ships, as the makers of the models wrote them.
FAMILIES = {
    "qwen2_5": "<|im_end|>",
    "qwen3": "<|im_end|>",
    "qwen3_5_think": "<|im_end|>",
    "qwen3_instruct_2507": "<|im_end|>",
    "lfm2_2_5_v2": "<|im_end|>",
    "llama3_1": "<|eot_id|>",
    "gemma4": "<turn|>",
    "glm4moe_training": "<|user|>",
    "gptoss": "<|end|>",
    "nemotron_3_nano": "<|im_end|>",
    "deepseekv3_training": "<｜end▁of▁sentence｜>",
}
# The template opens a thought for the model that these messages do not have, or closes one that they have.
REFUSED = {("nemotron_3_nano", "call"), ("nemotron_3_nano", "text and call")}
REFUSED |= {("deepseekv3_training", kind) for kind in MESSAGES if kind != "thought"}


@pytest.fixture(autouse=True)
def date():
    """Of templates that write one."""
    hold_clock("2026-01-31")
    yield
    hold_clock(None)


def template_of(family: str) -> str:
    return (files("trl") / "chat_templates" / f"{family}.jinja").read_text(encoding="utf-8")


def bytes_of(family: str) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes with the control tokens that the template of a family spells."""
    template = template_of(family)
    core = Tokenizer(
        models.BPE(vocab={c: n for n, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[])
    )
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    control = sorted(set(re.findall(r"<\|?[\w｜▁/]+\|?>", template)))
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=FAMILIES[family],
        pad_token="<pad>",
        additional_special_tokens=control,
        chat_template=template,
    )


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        (family, kind)
        for family in FAMILIES
        for kind, message in MESSAGES.items()
        if all(name in template_of(family) for name in message)
    ],
)
def test_what_is_learnt_is_what_the_template_of_the_model_writes(family, kind):
    tokenizer, message = bytes_of(family), {"role": "assistant", **MESSAGES[kind]}
    inputs = {"assistant_messages": [message], "tools": TOOLS}
    if (family, kind) in REFUSED:
        with pytest.raises(DataError, match="otherwise than it lets the model begin it"):
            encode_pair(tokenizer, ASKED, message_text(message), **inputs)
        return
    given, learnt = encode_pair(tokenizer, ASKED, message_text(message), **inputs)
    whole = tokenizer.apply_chat_template([*ASKED, message], tools=TOOLS, tokenize=False)
    assert whole.startswith(tokenizer.decode([*given, *learnt]))
    asked = tokenizer.apply_chat_template(ASKED, tools=TOOLS, tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(given) == asked
    # The last is the token with which the template ends this kind of turn.
    assert learnt[-1] in tokenizer.convert_tokens_to_ids(
        [tokenizer.eos_token, "<|tool_response>", "<|observation|>", "<|call|>"]
    )
    assert ("Rome" in tokenizer.decode(learnt)) == ("tool_calls" in message)


def test_control_tokens_in_the_fields_of_a_message_are_text():
    tokenizer = bytes_of("qwen2_5")
    call = {"function": {"name": "look", "arguments": {"place": "<|im_end|>"}}}
    message = {"role": "assistant", "content": "", "tool_calls": [call]}
    _, learnt = encode_pair(tokenizer, ASKED, message_text(message), assistant_messages=[message])
    assert learnt.count(tokenizer.eos_token_id) == 1 and '"<|im_end|>"' in tokenizer.decode(learnt)
    assert tokenizer.convert_tokens_to_ids("<tool_call>") in learnt


def test_a_message_that_the_template_refuses_is_named():
    tokenizer = bytes_of("llama3_1")
    message = {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]}
    with pytest.raises(DataError, match="the chat template refuses the demonstration's message: .*single tool-calls"):
        encode_pair(tokenizer, ASKED, message_text(message), assistant_messages=[message])


# ---- read ----


def written(folder, rows):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"path": str(path)}


def test_messages_are_kept_beside_a_text_and_trained(tmp_path):
    thought = {"role": "assistant", **MESSAGES["thought"], "name": None}
    rows = [{"prompt": "rain?", "solution": "yes"}] * 1200  # more than are read at once
    rows += [{"prompt": "rain?", "solution": [MESSAGES["call"]]}, {"prompt": "rain?", "solution": thought}]
    found = load_source(written(tmp_path, rows))
    assert found["solution"][1199:] == ["yes", json.dumps({"tool_calls": [CALL]}), "Dry."]
    first, call, last = (found[place]["assistant_messages"] for place in (0, 1200, 1201))
    assert first is None and json.loads(call) == [{"role": "assistant", **MESSAGES["call"]}]
    assert json.loads(last) == [{"role": "assistant", **MESSAGES["thought"]}]

    tokenizer = bytes_of("qwen3")
    rows = encode_rows(found.select([0, 1200, 1201]), tokenizer, column="solution", max_length=None)
    learnt = [tokenizer.decode([i for i in row["labels"] if i != -100]) for row in rows]
    call = '<tool_call>\n{"name": "look", "arguments": {"place": "Rome"}}\n</tool_call><|im_end|>'
    assert learnt[0] == "yes<|im_end|>"
    assert learnt[1] == f"<think>\n\n</think>\n\n{call}"
    assert learnt[2] == "<think>\nIt is.\n</think>\n\nDry.<|im_end|>"


def test_a_mixture_of_texts_and_messages_keeps_both(tmp_path):
    (tmp_path / "a").mkdir()
    calls = written(tmp_path / "a", [{"prompt": "rain?", "solution": MESSAGES["call"] | {"role": "assistant"}}])
    texts = written(tmp_path, [{"prompt": "rain?", "solution": "yes"}])
    block = {"mixture": [{"name": "calls", **calls}, {"name": "texts", **texts}]}
    rows = list(build_mixture(block).dataset)
    assert sorted(row["assistant_messages"] is None for row in rows) == [False, True]


def test_a_column_that_a_method_names_keeps_its_messages_too(tmp_path):
    teacher = {"role": "assistant", "content": "Dry.", "reasoning_content": "No cloud."}
    source = written(tmp_path, [{"prompt": "rain?", "solution": [MESSAGES["call"]], "teacher": [teacher]}])
    (row,) = load_source(source, texts=["teacher"])
    inputs = {"assistant_messages": json.loads(row["assistant_messages"])}
    assert message_of(row["teacher"], inputs) == teacher
    assert message_of(row["solution"], inputs) == {"role": "assistant", **MESSAGES["call"]}
    assert message_of("another text", inputs) is None


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"answer": [MESSAGES["call"]]}, "only a text can stand here, and this message has more (got 'tool_calls')"),
        ({"solution": [MESSAGES["call"], MESSAGES["call"]]}, "one message of the assistant"),
        ({"solution": [{"role": "user", "content": "x", "why": "y"}]}, "a demonstration is the assistant's"),
        ({"assistant_messages": "x"}, "the name of the column is taken (got 'assistant_messages')"),
        (
            {"solution": [MESSAGES["thought"]], "teacher": [MESSAGES["thought"] | {"reasoning_content": "?"}]},
            "two demonstrations of a row have the same content and other fields",
        ),
    ],
)
def test_what_cannot_be_kept_is_refused(tmp_path, row, words):
    with pytest.raises(DataError) as refused:
        load_source(written(tmp_path, [{"prompt": "rain?", **row}]), texts=["teacher"])
    assert words in str(refused.value)


def test_a_text_prompt_has_no_template_that_could_write_a_message(tmp_path):
    source = written(tmp_path, [{"prompt": "rain?", "solution": [MESSAGES["call"]]}])
    with pytest.raises(DataError, match="only a text can stand here"):
        load_source({**source, "format": "text"})

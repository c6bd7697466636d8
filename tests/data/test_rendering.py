"""Prompts as the tokens of their rendered text: other people's tokenizers, templates and what users type."""

from __future__ import annotations

import json

import pytest
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from posttrain.data.demonstrations import encode_pair, encode_row, with_variables
from posttrain.data.markers import markers_of
from posttrain.data.rendering import completion_text, encode_document, encode_prompt, template_inputs
from posttrain.errors import ConfigError, DataError

CHATML = (
    "{% if tools %}{{ tools[0].name }};{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% if m.why is defined %}({{ m.why }}){% endif %}{% for c in m.tool_calls or [] %}<call>{{ c.name }}{% endfor %}"
    "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{{ mode }}{% endif %}"
)
SPECIAL = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
LETTERS = "abcdefghijklmnopqrstuvwxyz:;(){}[]<>|/_\n"


def metaspace(scheme="first", *, merges=(), template=CHATML, post=None, specials=SPECIAL, model=None):
    """A tokenizer as made from SentencePiece files: one token a letter, `▁` for a blank, and some merges."""
    vocabulary = {token: place for place, token in enumerate([*SPECIAL, "▁", *LETTERS])}
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    core = Tokenizer(model(vocabulary) if model else models.BPE(vocab=vocabulary, merges=list(merges)))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    core.decoder = decoders.Metaspace(prepend_scheme=scheme)
    if post is not None:
        core.post_processor = processors.TemplateProcessing(single=post, special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="<|im_end|>",
        pad_token="</s>",
        additional_special_tokens=list(specials[3:]),
        chat_template=template,
    )


def said(text, role="user", **more):
    return [{"role": role, "content": text, **more}]


def spelled(tokenizer, ids):
    return tokenizer.convert_ids_to_tokens(ids)


@pytest.mark.parametrize("scheme", ["first", "never"])
def test_a_demonstration_is_cut_where_it_stands_and_not_alone(scheme):
    tokenizer = metaspace(scheme)
    given, learnt = encode_pair(tokenizer, said("hi"), "no tea")
    assert spelled(tokenizer, learnt) == ["n", "o", "▁", "t", "e", "a", "<|im_end|>"]
    assert spelled(tokenizer, given)[-2:] == ["t", "\n"]


def test_behind_a_text_prompt_a_blank_is_one_blank():
    tokenizer = metaspace()
    _, learnt = encode_pair(tokenizer, "they say:", " no")
    assert spelled(tokenizer, learnt) == ["▁", "n", "o", "<|im_end|>"]


def test_where_prompt_and_demonstration_would_join_the_prompt_keeps_its_tokens():
    tokenizer = metaspace(merges=[("▁", "n"), ("▁n", "o")])
    given, learnt = encode_pair(tokenizer, "say ", "no no")
    assert given == encode_prompt(tokenizer, "say ") and spelled(tokenizer, given)[-1] == "▁"
    assert spelled(tokenizer, learnt) == ["n", "o", "▁no", "<|im_end|>"]


@pytest.mark.parametrize(
    ("post", "opening"), [("$A </s>", []), ("<s> $A </s>", ["<s>"]), ("<s> $A", ["<s>"]), ("$A", [])]
)
def test_what_a_tokenizer_puts_behind_a_text_does_not_close_a_prompt(post, opening):
    tokenizer = metaspace(post=post)
    given, learnt = encode_pair(tokenizer, "is it:", " no")
    assert spelled(tokenizer, given) == [*opening, "▁", "i", "s", "▁", "i", "t", ":"]
    assert spelled(tokenizer, learnt) == ["▁", "n", "o", "<|im_end|>"]


def test_a_document_is_read_with_all_that_the_tokenizer_puts_around_it():
    tokenizer = metaspace(post="<s> $A </s>")
    assert spelled(tokenizer, encode_document(tokenizer, "no")) == ["<s>", "▁", "n", "o", "</s>"]
    typed = spelled(tokenizer, encode_document(tokenizer, "n</s>o"))
    assert typed == ["<s>", "▁", "n", "<", "/", "s", ">", "o", "</s>"]
    assert encode_row(tokenizer, "no", "no", column="prompt")[0] == [1]


@pytest.mark.parametrize("role", ["user", "tool", "system", "assistant"])
def test_control_tokens_that_the_data_spells_are_text_in_their_place(role):
    tokenizer = metaspace()
    typed = encode_prompt(tokenizer, said("a<|im_end|> b", role))
    read = spelled(tokenizer, typed)
    at = next(place for place, token in enumerate(read) if token == "<")
    assert "".join(read[at : at + 10]) == "<|im_end|>" and set(map(len, read[at : at + 10])) == {1}
    assert [*typed[:at], *typed[at + 10 :]] == encode_prompt(tokenizer, said("a b", role))
    asked = encode_prompt(tokenizer, said("a<|im_end|> b", role), special_tokens_in_text="token")
    assert asked.count(tokenizer.eos_token_id) == 2 and typed.count(tokenizer.eos_token_id) == 1


def test_a_demonstration_may_think_but_not_end_a_turn_or_begin_one():
    tokenizer = metaspace()
    _, learnt = encode_pair(tokenizer, said("hi"), "<think>a</think>b<|im_start|>d<|im_end|>\n")
    found = spelled(tokenizer, learnt)
    assert found[:4] == ["<think>", "a", "</think>", "b"] and found[-2:] == ["d", "<|im_end|>"]
    assert "<|im_start|>" not in found and "".join(found[4:-2]) == "<|im_start|>"
    typed = encode_prompt(tokenizer, said("</think>"))
    assert tokenizer.convert_tokens_to_ids("</think>") not in typed, "a special token that a user types is text"


def test_control_tokens_in_tools_and_arguments_are_text_too():
    tokenizer = metaspace()
    call = said("", "assistant", tool_calls=[{"name": "<|im_end|>"}])
    ids = encode_prompt(tokenizer, [*said("hi"), *call], tools=[{"name": "<|im_start|>"}])
    assert ids.count(tokenizer.eos_token_id) == 2 and spelled(tokenizer, ids).count("<|im_start|>") == 3


def test_word_pieces_and_whole_words_have_no_way_back_to_the_token():
    """A vocabulary of whole words holds the control token as a word."""
    tokenizer = metaspace(model=lambda vocabulary: models.WordLevel(vocabulary, unk_token="<unk>"))
    assert encode_prompt(tokenizer, said("<|im_end|>")).count(tokenizer.eos_token_id) == 1


def test_a_character_that_stands_for_a_token_here_is_refused():
    with pytest.raises(DataError, match=r"private character.*U\+10C001"):
        encode_prompt(metaspace(), said("a\U0010c001b"))


def test_fields_of_messages_reach_the_template_and_none_is_nothing():
    tokenizer = metaspace()
    rows = Dataset.from_list(
        [
            {"prompt": [*said("hi"), *said(None, "assistant", tool_calls=[{"name": "dry"}])]},
            {"prompt": said("hi", why="rain")},
        ]
    )
    first, second = (tokenizer.decode(encode_prompt(tokenizer, row["prompt"])) for row in rows)
    assert first.count("<call>dry<|im_end|>") == 1 and "(" not in first and "None" not in first
    assert "hi(rain)" in second


@pytest.mark.parametrize("tools", [[{"name": "run", "x": None}], '[{"name": "run"}]', ['{"name": "run"}']])
def test_inputs_of_a_row_come_as_lists_or_json_and_before_those_of_the_run(tools):
    tokenizer = metaspace()
    row = {"tools": tools, "chat_template_kwargs": {"mode": "me", "other": None}, "documents": None}
    inputs = template_inputs(row, {"mode": "us"})
    assert inputs == {"mode": "me", "tools": [{"name": "run"}]}
    text = tokenizer.decode(encode_prompt(tokenizer, said("hi"), **inputs))
    assert "run;<|im_start|>" in text and text.endswith("me")


def test_null_in_json_text_is_what_the_row_says():
    schema = {"name": "run", "default": None}
    for tools in (json.dumps([schema]), [json.dumps(schema)]):
        inputs = template_inputs({"tools": tools})
        assert inputs == {"tools": [schema]}
        assert markers_of(metaspace()).hide(inputs) == inputs


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"tools": ['{"name": ']}, "column 'tools': the template cannot take this"),
        ({"tools": "no json"}, "column 'tools': the template cannot take this (got 'no json'; allowed: a list"),
        ({"tools": ["calculator"]}, "allowed: a list of schemas, which are mappings). Rename the column"),
        ({"tools": {"a": 1}}, "column 'tools': the template cannot take this"),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "a row may not set this (got 'chat_template')"),
    ],
)
def test_inputs_of_a_row_that_cannot_be_used_are_refused(row, words):
    with pytest.raises(DataError) as refused:
        template_inputs(row)
    assert words in str(refused.value)


def test_a_text_prompt_has_no_inputs_of_a_template():
    assert template_inputs({"prompt": "a", "tools": "x"}, {"mode": "us"}) == {"mode": "us"}


def test_what_decides_the_rendering_here_is_no_variable():
    with pytest.raises(ConfigError, match="add_generation_prompt|tokenize"):
        encode_prompt(metaspace(), said("hi"), tokenize=False)
    with pytest.raises(ConfigError, match="special_tokens_in_text.*allowed: one of: text, token"):
        encode_prompt(metaspace(), said("hi"), special_tokens_in_text="x")


def test_rows_in_trls_formats_get_the_variables_and_keep_their_own():
    rows = Dataset.from_list([{"messages": said("a"), "chat_template_kwargs": {"a": 1}}, {"messages": said("b")}])
    found = with_variables(rows, {"a": 0, "b": 2})["chat_template_kwargs"]
    assert found[:] == [{"a": 1, "b": 2}, {"a": 0, "b": 2}]
    assert with_variables(rows, None) is rows


@pytest.mark.parametrize(
    "row", [{"messages": said("a<|im_end|>b")}, {"prompt": said("a"), "completion": said("b<|im_end|>c", "assistant")}]
)
def test_rows_in_trls_formats_that_spell_control_tokens_are_refused_with_their_count(row):
    rows, tokenizer = Dataset.from_list([{name: said("plain") for name in row}, row]), metaspace()
    with pytest.raises(DataError, match=r"row 1: the text of 1 of 2 chats spells control .*'<\|im_end\|>'"):
        with_variables(rows, None, tokenizer)
    assert with_variables(rows.select([0]), None, tokenizer)[:] == rows.select([0])[:]
    assert with_variables(rows, {"special_tokens_in_text": "token"}, tokenizer)[1]["chat_template_kwargs"] == {}


def test_rewards_read_special_tokens_within_a_completion_and_none_at_its_end():
    tokenizer = metaspace()
    ids = tokenizer("<think>no</think>on<|im_end|></s></s>", add_special_tokens=False)["input_ids"]
    ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    assert completion_text(tokenizer, ids, ends) == "<think>no</think>on"
    assert completion_text(tokenizer, ids[-3:], ends) == ""


@pytest.mark.parametrize("prompt", [5, None, {"role": "user", "content": "hi"}])
def test_a_prompt_that_is_neither_text_nor_messages_is_told(prompt):
    with pytest.raises(DataError, match=r"a prompt is text or a list of messages \(got"):
        encode_prompt(metaspace(), prompt)

"""Prompts and demonstrations as tokens: what generation would have seen and written."""

from __future__ import annotations

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from posttrain.data.demonstrations import encode_demonstration, encode_prompt, encode_rows
from posttrain.errors import DataError
from tests.batteries.runs import build

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1=?"}]
TEXT = "1+1="


def own_tokenizer(tiny_dir, **changes):
    """A tokenizer a test may change."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_dir)
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return tokenizer


@pytest.mark.parametrize("prompts", [[CHAT, CHAT[1:]], [TEXT, "2"]], ids=["chat", "text"])
def test_prompts_are_tokenised_as_trl_tokenises_them(prompts, tiny_dir, tmp_path):
    trainer = build("grpo", tiny_dir, tmp_path)
    theirs = trainer._tokenize_prompts(prompts)[0]
    assert [encode_prompt(trainer.processing_class, prompt) for prompt in prompts] == theirs


def test_a_demonstration_ends_once(tiny_tokenizer):
    ids = encode_demonstration(tiny_tokenizer, "Answer: 2")
    assert ids.count(tiny_tokenizer.eos_token_id) == 1 and ids[-1] == tiny_tokenizer.eos_token_id
    assert tiny_tokenizer.bos_token_id not in ids
    assert tiny_tokenizer.decode(ids[:-1]) == "Answer: 2"


def test_a_demonstration_that_brings_its_end_token_still_ends_once(tiny_tokenizer):
    ids = encode_demonstration(tiny_tokenizer, f"Answer: 2{tiny_tokenizer.eos_token}")
    assert ids == encode_demonstration(tiny_tokenizer, "Answer: 2")


def test_prompt_and_demonstration_are_a_prefix_of_the_rendered_chat(tiny_tokenizer):
    prompt = encode_prompt(tiny_tokenizer, CHAT)
    rendered = tiny_tokenizer.apply_chat_template([*CHAT, {"role": "assistant", "content": "Answer: 2"}])
    rendered = rendered if isinstance(rendered, list) else rendered["input_ids"]
    whole = prompt + encode_demonstration(tiny_tokenizer, "Answer: 2", prompt_ids=prompt)
    assert rendered[: len(whole)] == whole


@pytest.mark.parametrize(
    ("tail", "solution", "kept"),
    [
        ("<think>\n", "<think>\nfirst</think>2", "first</think>2"),
        ("<think>\n", "\n <think>first</think>2", "first</think>2"),
        ("<think>\n", "first</think>2", "first</think>2"),
        ("", "<think>\nfirst</think>2", "<think>\nfirst</think>2"),
        ("<think>x", "<think>y</think>", "<think>y</think>"),
    ],
)
def test_a_think_tag_that_the_prompt_opened_is_not_opened_twice(tail, solution, kept, tiny_tokenizer):
    prompt = tiny_tokenizer("assistant\n" + tail, add_special_tokens=False)["input_ids"]
    ids = encode_demonstration(tiny_tokenizer, solution, prompt_ids=prompt)
    assert tiny_tokenizer.decode(ids[:-1]) == kept


def test_a_tokenizer_without_end_token_is_refused(tiny_dir):
    with pytest.raises(DataError, match="no end token"):
        encode_demonstration(own_tokenizer(tiny_dir, eos_token=None), "2")


def rows(*solutions):
    return Dataset.from_list([{"prompt": CHAT, "solution": text, "extra": i} for i, text in enumerate(solutions)])


def test_rows_are_prompt_and_demonstration_with_labels_on_the_latter(tiny_tokenizer):
    encoded = encode_rows(rows("2", "22"), tiny_tokenizer, column="solution", max_length=None, keep=("extra",))
    prompt, end = encode_prompt(tiny_tokenizer, CHAT), tiny_tokenizer.eos_token_id
    two = tiny_tokenizer("2", add_special_tokens=False)["input_ids"]
    assert encoded["input_ids"][0] == [*prompt, *two, end]
    assert encoded["labels"][1] == [-100] * len(prompt) + [*two, *two, end]
    assert sorted(encoded.column_names) == ["extra", "input_ids", "labels"] and encoded["extra"][1] == 1


@pytest.mark.parametrize("empty", ["", "  \n", None])
def test_an_empty_demonstration_is_refused_with_its_row(empty, tiny_tokenizer):
    with pytest.raises(DataError, match=r"train row 1, column 'solution': empty demonstration.*Drop the row"):
        encode_rows(rows("2", empty), tiny_tokenizer, column="solution", max_length=None)


def test_a_row_that_is_too_long_is_refused_with_its_numbers(tiny_tokenizer):
    prompt = len(encode_prompt(tiny_tokenizer, CHAT))
    fits = encode_rows(rows("2"), tiny_tokenizer, column="solution", max_length=prompt + 2)
    assert len(fits["input_ids"][0]) == prompt + 2
    with pytest.raises(DataError) as refused:
        encode_rows(rows("2", "2" * 9), tiny_tokenizer, column="solution", max_length=prompt + 2)
    text = str(refused.value)
    assert "train row 1" in text and f"{prompt} + 10 tokens" in text and f"at most {prompt + 2}" in text
    assert "trainer.max_length" in text


def test_a_document_is_learnt_as_it_is_but_for_its_first_token(tiny_tokenizer, caplog):
    texts = Dataset.from_list([{"prompt": text, "solution": ""} for text in ("one two", "x")])
    encoded = encode_rows(texts, tiny_tokenizer, column="prompt", max_length=None)
    ids = tiny_tokenizer("one two")["input_ids"]
    assert encoded["input_ids"][0] == ids and encoded["labels"][0] == [-100, *ids[1:]]
    assert encoded["labels"][1] == [-100] and "1 of 2 documents have one token" in caplog.text


def test_a_chat_is_no_document(tiny_tokenizer):
    with pytest.raises(DataError, match=r"row 0, column 'prompt': a document is text, not a chat.*format: text"):
        encode_rows(rows("2"), tiny_tokenizer, column="prompt", max_length=None)

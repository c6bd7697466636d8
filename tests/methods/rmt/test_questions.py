"""Tiers, targets, and the rows made from a position of a corpus."""

from __future__ import annotations

import json

import numpy
import pytest

from posttrain.errors import DataError
from posttrain.methods.rmt.questions import (
    ContinuationRows,
    decode_with_ends,
    find_targets,
    index_in_memory,
    round_trip_fraction,
    tier_counts,
    tiers_of,
)

THRESHOLDS = (0.5, 1.0, 1.5)


def test_an_entropy_on_an_edge_belongs_to_the_lower_tier():
    found = tiers_of([0.0, 0.5, 0.51, 1.0, 1.213008, 1.5, 1.51, float("nan")], THRESHOLDS)
    assert found.tolist() == [-1, -1, 0, 0, 1, 1, 2, -1]


def corpus(tokenizer, *texts, entropy=None):
    index = index_in_memory([tokenizer(text)["input_ids"] for text in texts])
    if entropy is not None:
        index.entropy = numpy.asarray(entropy, dtype=numpy.float32)
    return index


def test_targets_are_the_uncertain_tokens_that_fit_a_box(tiny_tokenizer):
    nan = float("nan")
    index = corpus(tiny_tokenizer, "ab{d", "xyz", entropy=[nan, 0.6, 2.0, 0.4, nan, 1.2, 3.0])
    targets = find_targets(index, tiny_tokenizer, thresholds=THRESHOLDS)
    assert targets.positions.tolist() == [1, 5, 6]
    assert tier_counts(targets.tiers) == {"easy": 1, "medium": 1, "hard": 1}
    assert targets.left_out == {"the target holds a brace": 1}
    capped = find_targets(index, tiny_tokenizer, thresholds=THRESHOLDS, max_entropy=2.5)
    assert capped.positions.tolist() == [1, 5]
    assert capped.left_out["entropy above max_entropy"] == 1


def test_thresholds_above_all_entropies_are_refused(tiny_tokenizer):
    index = corpus(tiny_tokenizer, "abc")
    with pytest.raises(DataError, match=r"all tiers are empty.*entropies up to 1\.000 nats"):
        find_targets(index, tiny_tokenizer, thresholds=(2.0, 3.0, 4.0))


def test_a_row_asks_for_the_token_behind_its_context(tiny_tokenizer):
    index = corpus(tiny_tokenizer, "no", "one two")
    rows = ContinuationRows(index, tiny_tokenizer, "prefix", template="Next?\n{context}", budget_template="{budget}!")
    row = rows.row(5, tier="hard", budget=9)
    assert row["prompt"] == [{"role": "user", "content": "9!\nNext?\none"}]
    assert (row["answer"], row["group"]) == (" ", "hard")
    entry = json.loads(row["entry"])
    assert entry["continuation"] == " two" and entry["token_ends"] == [1, 2, 3, 4]
    assert entry["rule"] == "prefix" and entry["round_trips"]
    plain = rows.plain_row(5)
    assert plain["prompt"] == "one" and json.loads(plain["entry"])["extraction"] == "raw"
    assert "{budget}" not in rows.row(5)["prompt"][0]["content"]


def test_text_with_braces_is_shown_as_it_is(tiny_tokenizer):
    index = corpus(tiny_tokenizer, "{budget}{x}y")
    rows = ContinuationRows(index, tiny_tokenizer, "prefix", template="Q {context}", budget_template="{budget} t")
    assert rows.row(11, budget=3)["prompt"][0]["content"] == "3 t\nQ {budget}{x}"


class Merging:
    """Tokens 0 "a", 1 "b", 2 first byte of "é", 3 its second byte; "ab" is written as token 4."""

    pieces = (b"a", b"b", b"\xc3", b"\xa9", b"ab")

    def decode(self, ids, **_):
        return b"".join(self.pieces[token] for token in ids).decode(errors="replace")

    def __call__(self, text, **_):
        return {"input_ids": {"a": [0], "b": [1], "ab": [4], "é": [2, 3]}.get(text, [2, 3])}


def test_no_prediction_may_end_inside_a_character():
    assert decode_with_ends(Merging(), [2, 3, 0]) == ("éa", [2, 3])


def test_targets_that_do_not_survive_retokenising_are_counted():
    index = index_in_memory([[0, 1, 4, 2]])
    rows = ContinuationRows(index, Merging(), "exact_token")
    assert round_trip_fraction(rows, numpy.asarray([1, 2]), seed=0) == 1.0
    assert round_trip_fraction(rows, numpy.asarray([1, 3]), seed=0) == 0.5


# ---- tokenizers that put a token in front, or drop the space in front ----


def sentencepiece(*words: str, bos: bool = False):
    """A tokenizer as Llama-2's: a word brings its space as a sign, and the space that begins a text is dropped."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: place for place, token in enumerate(["<s>", "</s>", "<unk>", "\u2581", "a", "\n", *words])}
    own = Tokenizer(models.BPE(vocabulary, _merges(vocabulary), unk_token="<unk>"))
    own.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    own.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(content=" ", left=1, right=0)]
    )
    if bos:
        own.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=own, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _merges(vocabulary):
    """Every way to put two tokens together to a third, in the order of the vocabulary."""
    return [
        (token[:cut], token[cut:])
        for token in vocabulary
        for cut in range(1, len(token))
        if {token[:cut], token[cut:]} <= set(vocabulary)
    ]


WORDS = ("t", "h", "e", "c", "th", "the", "\u2581the", "\u2581c", "\u2581ca", "\u2581cat")


def test_a_space_that_the_tokenizer_drops_at_the_front_belongs_to_its_token():
    from posttrain.rewards.next_token import matches

    tokenizer = sentencepiece(*WORDS)
    ids = tokenizer("the cat the")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["\u2581the", "\u2581cat", "\u2581the"]
    assert tokenizer.decode(ids[2:]) == "the", "alone it has lost its space"
    index = index_in_memory([ids])
    rows = ContinuationRows(index, tokenizer, "exact_token")
    row = rows.row(1)
    entry = json.loads(row["entry"])
    assert (row["answer"], entry["continuation"], entry["token_ends"]) == (" cat", " cat the", [4, 8])
    assert entry["round_trips"] and rows.round_trips(2)
    for rule, right in (("exact_token", " cat"), ("prefix", " cat the"), ("first_token", " cat, the")):
        assert matches(right, entry, rule=rule)
        assert not matches("cat", entry, rule=rule) and not matches("", entry, rule=rule)


def test_a_lone_space_is_a_target_with_a_text():
    tokenizer = sentencepiece(*WORDS)
    space = tokenizer.convert_tokens_to_ids("\u2581")
    index = index_in_memory([[*tokenizer("the")["input_ids"], space, *tokenizer("the")["input_ids"]]])
    assert find_targets(index, tokenizer, thresholds=THRESHOLDS).positions.tolist() == [1, 2]
    entry = json.loads(ContinuationRows(index, tokenizer, "prefix").row(1)["entry"])
    assert entry["token_ends"][0] == 1 and entry["continuation"].startswith(" ")


def test_special_tokens_and_what_follows_only_blanks_are_not_asked_for():
    """<s> the cat </s>: "the" would be asked for with an empty context, and </s> is no text."""
    tokenizer = sentencepiece(*WORDS, bos=True)
    ids = tokenizer("the cat")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", "\u2581the", "\u2581cat", "</s>"]
    blank = tokenizer.convert_tokens_to_ids("\u2581")
    index = index_in_memory([ids, [blank, *tokenizer("the cat", add_special_tokens=False)["input_ids"]]])
    targets = find_targets(index, tokenizer, thresholds=THRESHOLDS)
    assert targets.positions.tolist() == [2, 6]
    assert targets.left_out == {"the target is a special token": 1, "nothing but blanks before the target": 2}
    assert ContinuationRows(index, tokenizer, "prefix").plain_row(2)["prompt"].strip() == "the"

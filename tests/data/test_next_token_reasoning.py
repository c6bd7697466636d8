"""Tiers, targets, and the rows made from a position of a corpus."""

from __future__ import annotations

import json

import numpy
import pytest

from posttrain.data.next_token_reasoning import (
    ContinuationRows,
    decode_with_ends,
    find_targets,
    index_in_memory,
    round_trip_fraction,
    tier_counts,
    tiers_of,
)
from posttrain.errors import DataError

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

    texts = {(0,): "a", (1,): "b", (4,): "ab", (2,): "\ufffd", (2, 3): "é", (2, 3, 0): "éa"}

    def decode(self, ids, **_):
        return self.texts[tuple(ids)]

    def __call__(self, text, **_):
        return {"input_ids": {"a": [0], "b": [1], "ab": [4], "é": [2, 3]}.get(text, [2, 3])}


def test_no_prediction_may_end_inside_a_character():
    assert decode_with_ends(Merging(), [2, 3, 0]) == ("éa", [2, 3])


def test_targets_that_do_not_survive_retokenising_are_counted():
    index = index_in_memory([[0, 1, 4, 2]])
    rows = ContinuationRows(index, Merging(), "exact_token")
    assert round_trip_fraction(rows, numpy.asarray([1, 2]), seed=0) == 1.0
    assert round_trip_fraction(rows, numpy.asarray([1, 3]), seed=0) == 0.5

"""Entropies against a literal computation, resuming a half-scored corpus, and what an index refuses."""

from __future__ import annotations

import json
import math

import numpy
import pytest
import torch
from transformers import AutoModelForCausalLM

from posttrain.errors import DataError
from posttrain.methods.rmt import entropy_scoring, token_index
from posttrain.methods.rmt.entropy_scoring import encode_documents, score_corpus, store_entropies, top_k_entropy

TEXTS = ["abcab", "x", "hello world", "12+3", "zz"]


@pytest.fixture
def model(tiny_dir):
    return AutoModelForCausalLM.from_pretrained(tiny_dir, dtype=torch.float32)


@pytest.fixture
def arguments(tiny_tokenizer, model, tmp_path):
    return {"folder": tmp_path / "index", "tokenizer": tiny_tokenizer, "model": model, "top_k": 16}


def test_entropy_of_a_half_a_quarter_and_two_eighths():
    """.5 ln 2 + .25 ln 4 + 2 * .125 ln 8 = 1.75 ln 2."""
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
    assert float(top_k_entropy(logits, top_k=16)) == pytest.approx(1.213008, abs=1e-6)


def test_only_the_likeliest_tokens_count_and_are_renormalised():
    logits = torch.tensor([0.4, 0.4, 0.1, 0.1]).log()
    assert float(top_k_entropy(logits, top_k=2)) == pytest.approx(math.log(2))


def test_scores_are_those_of_one_document_at_a_time(arguments, model, tiny_tokenizer):
    index = score_corpus(TEXTS, **arguments)
    assert index.num_documents == 4 and index.record["dropped_documents"] == {"shorter than 2 tokens": 1}
    for number, text in enumerate(t for t in TEXTS if len(t) > 1):
        ids = torch.tensor([tiny_tokenizer(text)["input_ids"]])
        with torch.no_grad():
            probs = model(ids).logits[0].softmax(-1)
        begin, end = index.starts[number], index.starts[number + 1]
        assert index.tokens[begin:end].tolist() == ids[0].tolist()
        assert math.isnan(index.entropy[begin])
        for place in range(1, len(text)):
            top = probs[place - 1].sort(descending=True).values[:16]
            top = top / top.sum()
            literal = -sum(float(p) * math.log(float(p)) for p in top)
            assert float(index.entropy[begin + place]) == pytest.approx(literal, abs=1e-5)


def test_positions_know_their_document(arguments):
    index = score_corpus(TEXTS, **arguments)
    assert [index.document_of(position) for position in (0, 4, 5, 15, 16)] == [0, 0, 1, 1, 2]
    assert index.before(7) == index.tokens[5:7].tolist()
    assert index.following(14, 10) == index.tokens[14:16].tolist()


def test_a_stopped_scoring_goes_on_where_it_was(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(entropy_scoring, "LOGITS_BYTES", 1)  # one document a forward
    whole = score_corpus(TEXTS, **{**arguments, "folder": tmp_path / "whole"})
    assert score_corpus(TEXTS, **arguments, stop_after=2) is None
    with pytest.raises(DataError, match="not finished.*2 of 4 documents"):
        token_index.open_index(arguments["folder"])
    told = []
    rest = score_corpus(TEXTS, **arguments, progress=lambda done, total: told.append((done, total)))
    assert told == [(3, 4), (4, 4)]
    numpy.testing.assert_array_equal(rest.entropy, whole.entropy)
    assert rest.record == whole.record
    told.clear()
    score_corpus(TEXTS, **arguments, progress=lambda done, total: told.append((done, total)))
    assert not told, "a finished index is opened, not made again"


@pytest.mark.parametrize("stop_after", [None, 2])
def test_an_index_of_something_else_is_refused(stop_after, arguments, model, monkeypatch):
    monkeypatch.setattr(entropy_scoring, "LOGITS_BYTES", 1)
    score_corpus(TEXTS, **arguments, stop_after=stop_after)
    with pytest.raises(DataError, match="another corpus"):
        score_corpus([*TEXTS, "more"], **arguments)
    with pytest.raises(DataError, match="another number of top tokens"):
        score_corpus(TEXTS, **{**arguments, "top_k": 8})
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1.0
    with pytest.raises(DataError, match="another scoring model"):
        score_corpus(TEXTS, **arguments)


def test_an_index_of_another_tokenizer_is_refused(arguments, tiny_dir):
    from transformers import AutoTokenizer

    score_corpus(TEXTS, **arguments)
    other = AutoTokenizer.from_pretrained(tiny_dir)
    other.add_tokens(["hello"])
    with pytest.raises(DataError, match="another tokenizer"):
        score_corpus(TEXTS, **{**arguments, "tokenizer": other})


def test_a_damaged_array_is_refused(arguments):
    index = score_corpus(TEXTS, **arguments)
    values = numpy.array(index.entropy)
    numpy.save(arguments["folder"] / "entropy.npy", values + 1)
    with pytest.raises(DataError, match=r"damaged"):
        score_corpus(TEXTS, **arguments)


def test_another_format_is_refused(arguments):
    score_corpus(TEXTS, **arguments)
    path = arguments["folder"] / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 0}))
    with pytest.raises(DataError, match="another version of the format"):
        score_corpus(TEXTS, **arguments)


def test_entropies_that_come_with_the_corpus_must_fit_the_tokens(tiny_tokenizer, tmp_path):
    good = [[0.0, 1.0, 2.0], [0.0, 0.7]]
    index = store_entropies(["abc", "de"], good, folder=tmp_path / "a", tokenizer=tiny_tokenizer)
    numpy.testing.assert_allclose(index.entropy, [numpy.nan, 1.0, 2.0, numpy.nan, 0.7])
    with pytest.raises(DataError, match=r"train row 1.*2 tokens.*score again"):
        store_entropies(["abc", "de"], [[0, 1, 2], [0, 1, 2]], folder=tmp_path / "b", tokenizer=tiny_tokenizer)


def test_entropies_that_changed_or_that_a_scorer_made_are_not_used_for_the_column(arguments, tiny_tokenizer):
    column = [[0.0] + [1.0] * (len(text) - 1) for text in TEXTS]
    plain = {"folder": arguments["folder"], "tokenizer": tiny_tokenizer}
    store_entropies(TEXTS, column, **plain)
    assert store_entropies(TEXTS, column, **plain).entropy[1] == 1.0, "the same ones are opened"
    column[0][1] = 2.0
    with pytest.raises(DataError, match="other entropies.*Score again into another folder"):
        store_entropies(TEXTS, column, **plain)
    scored = arguments["folder"].parent / "scored"
    score_corpus(TEXTS, **{**arguments, "folder": scored})
    with pytest.raises(DataError, match="other entropies"):
        store_entropies(TEXTS, column, **{**plain, "folder": scored})


def test_entropies_whose_storing_was_stopped_are_stored_again(tiny_tokenizer, tmp_path, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    plain = {"folder": tmp_path, "tokenizer": tiny_tokenizer}
    with monkeypatch.context() as patched:
        patched.setattr(token_index, "finish", stopped)
        with pytest.raises(KeyboardInterrupt):
            store_entropies(["abc"], [[0.0, 1.0, 2.0]], **plain)
    assert store_entropies(["abc"], [[0.0, 1.0, 2.0]], **plain).entropy[2] == 2.0


@pytest.mark.parametrize("cell", [None, ["a", "b", "c"], [0.0, None, 1.0], [[0.0], [1.0], [2.0]], 3.0])
def test_entropies_that_are_no_numbers_are_refused_with_their_row(cell, tiny_tokenizer, tmp_path):
    with pytest.raises(DataError, match="train row 1: the column entropy is not a list of numbers"):
        store_entropies(["abc", "def"], [[0.0, 1.0, 2.0], cell], folder=tmp_path, tokenizer=tiny_tokenizer)


def test_documents_must_be_text_with_something_to_predict(tiny_tokenizer):
    with pytest.raises(DataError, match="no document has two tokens"):
        encode_documents(["a", ""], tiny_tokenizer)
    with pytest.raises(DataError, match=r"train row 1: a document is text"):
        encode_documents(["abc", None], tiny_tokenizer)

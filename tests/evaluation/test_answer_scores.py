"""Teacher-forced scores: equal to one row at a time without padding, and to the model's own greedy text."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from posttrain.data.sources import load_source
from posttrain.errors import DataError
from posttrain.evaluation.answer_scores import encode_rows, mean_logps, score, score_rows
from posttrain.evaluation.memorisation import min_k_score

FACTS = {"task": "fictitious_authors", "size": 4, "seed": 1, "options": {"num_paraphrases": 3, "num_perturbed": 2}}


@pytest.fixture(scope="module")
def model(tiny_dir):
    return AutoModelForCausalLM.from_pretrained(tiny_dir).train()


@pytest.fixture(scope="module")
def dataset():
    return load_source(FACTS)


@torch.no_grad()
def by_hand(model, tokenizer, question: str, answer: str) -> list[float]:
    """Log-probability of each token of the answer and of the end token; one row, no padding, text to text."""
    head = f"<|im_start|>user\n{question}<|im_end|><|im_start|>assistant\n"
    start = len(tokenizer(head, add_special_tokens=False)["input_ids"])
    ids = tokenizer(f"{head}{answer}<|im_end|>", add_special_tokens=False)["input_ids"]
    logps = model.eval()(torch.tensor([ids])).logits[0].log_softmax(-1)
    return [logps[place - 1, ids[place]].item() for place in range(start, len(ids))]


def mean(values) -> float:
    return sum(values) / len(values)


def test_every_number_of_a_row_is_that_of_its_texts(model, tiny_tokenizer, dataset):
    rows = encode_rows(tiny_tokenizer, dataset, name="facts")
    found = score_rows(model, rows, pad=tiny_tokenizer.pad_token_id, batch_size=5)
    for row, numbers in zip(dataset, found, strict=True):
        question, answer = row["prompt"][0]["content"], row["answer"]
        label = by_hand(model, tiny_tokenizer, question, answer)
        assert numbers["logp"] == pytest.approx(mean(label), rel=1e-4)
        assert numbers["min_k"] == pytest.approx(min_k_score(label), rel=1e-4)
        pairs = zip(row["paraphrased_prompts"], row["paraphrases"], strict=True)
        expected = [mean(by_hand(model, tiny_tokenizer, *pair)) for pair in pairs]
        assert numbers["paraphrase_logps"] == pytest.approx(expected, rel=1e-4)
        # The truth ratio asks the question as it is, of the first paraphrase and of the wrong answers.
        own = -mean(by_hand(model, tiny_tokenizer, question, row["paraphrases"][0]))
        wrong = [-mean(by_hand(model, tiny_tokenizer, question, text)) for text in row["perturbed"]]
        assert numbers["paraphrased_nll"] == pytest.approx(own, rel=1e-4)
        assert numbers["perturbed_nlls"] == pytest.approx(wrong, rel=1e-4)
    assert len({numbers["key"] for numbers in found}) == 4


def test_batches_of_any_size_give_the_same_and_change_nothing(model, tiny_tokenizer, dataset):
    model.train()
    rows, pad = encode_rows(tiny_tokenizer, dataset, name="facts"), tiny_tokenizer.pad_token_id
    answers = [item for row in rows for item in row.all()]
    state, seen = torch.get_rng_state(), []
    one = score(model, answers, pad=pad, batch_size=1, progress=lambda done, total: seen.append((done, total)))
    many = score(model, answers, pad=pad, batch_size=64)
    for left, right in zip(one, many, strict=True):
        assert left.logps == pytest.approx(right.logps, abs=1e-5) and left.predicted == right.predicted
    assert seen[-1] == (len(answers), len(answers)) and len(seen) == len(answers) == 4 * 7
    assert model.training and torch.equal(torch.get_rng_state(), state)
    found = mean_logps(model, rows, pad=pad, batch_size=3)
    numbers = score_rows(model, rows, pad=pad)
    assert found["label"] == pytest.approx(mean([row["logp"] for row in numbers]), abs=1e-5)
    assert found["forms"] == pytest.approx(
        mean([mean([row["logp"], *row["paraphrase_logps"]]) for row in numbers]), abs=1e-5
    )
    assert found["paraphrases"] == pytest.approx(mean([mean(row["paraphrase_logps"]) for row in numbers]), abs=1e-5)


def test_likeliest_tokens_are_those_of_greedy_decoding(model, tiny_tokenizer):
    """An answer that the model itself gives is extracted and memorised in full."""
    prompt = [{"role": "user", "content": "Who?"}]
    head = torch.tensor([encode_rows(tiny_tokenizer, [{"prompt": prompt, "answer": "x"}], name="x")[0].label.prompt])
    ids = model.eval().generate(head, max_new_tokens=8, do_sample=False, eos_token_id=None)[0, head.shape[1] :]
    text = tiny_tokenizer.decode(ids)
    if tiny_tokenizer(text, add_special_tokens=False)["input_ids"] != ids.tolist() or not text.strip():
        pytest.skip("the random model's text does not survive being written and read")
    own = [{"prompt": prompt, "solution": text}]
    rows = encode_rows(tiny_tokenizer, own, name="own", special_tokens_in_text="token")
    (numbers,) = score_rows(model, rows, pad=tiny_tokenizer.pad_token_id)
    assert (numbers["extraction_strength"], numbers["exact_memorisation"]) == (1.0, 1.0)


def test_text_prompts_one_paraphrase_as_text_and_no_lists(model, tiny_tokenizer):
    rows = [{"prompt": "Q: who? A:", "solution": " Ada", "paraphrases": " It is Ada", "perturbed": [" Bo"]}]
    (row,) = encode_rows(tiny_tokenizer, rows, name="text")
    assert len(row.paraphrases) == 1 and row.paraphrases[0].prompt == row.label.prompt
    (plain,) = encode_rows(tiny_tokenizer, [{"prompt": "Q", "answer": "Ada", "perturbed": ["Bo"]}], name="plain")
    assert plain.paraphrased is None and not plain.paraphrases
    (numbers,) = score_rows(model, [plain], pad=tiny_tokenizer.pad_token_id)
    assert numbers["paraphrased_nll"] is None and len(numbers["perturbed_nlls"]) == 1


def test_a_model_that_diverged_is_measured_all_the_same(model, tiny_tokenizer, dataset):
    from copy import deepcopy

    broken = deepcopy(model)
    broken.lm_head.weight.data.fill_(math.nan)
    rows = encode_rows(tiny_tokenizer, dataset, name="facts")
    assert all(math.isnan(row["logp"]) and math.isnan(row["min_k"]) for row in score_rows(broken, rows, pad=0))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Q", "solution": " "}, "facts row 0: the answer is empty or no text"),
        ({"prompt": "Q"}, "facts row 0: the answer is empty or no text"),
        (
            {"prompt": "Q", "answer": "A", "paraphrases": ["a"], "paraphrased_prompts": ["p", "q"]},
            "facts row 0: as many paraphrased questions as answers are needed .got '2 questions, 1 answers'",
        ),
        ({"prompt": "Q", "answer": "A", "perturbed": ["b", ""]}, "facts row 0, column 'perturbed': a list of texts"),
    ],
)
def test_refusals(tiny_tokenizer, row, message):
    with pytest.raises(DataError, match=message):
        encode_rows(tiny_tokenizer, [row], name="facts")
    with pytest.raises(DataError, match="facts: there are no rows"):
        encode_rows(tiny_tokenizer, [], name="facts")

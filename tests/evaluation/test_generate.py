"""Evaluation with a real model: it equals a loop written out by hand, repeats itself, and leaves no trace."""

import math
import random
import re

import numpy
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.data.demonstrations import encode_prompt
from posttrain.errors import ConfigError, DataError, RewardError
from posttrain.evaluation.generate import EvalSettings, evaluate, stop_token_ids
from posttrain.evaluation.results import missing_verdicts
from posttrain.rewards.scorer import RewardScorer

GREEDY = EvalSettings(max_new_tokens=12)
SAMPLED = EvalSettings(max_new_tokens=12, temperature=1.0, num_generations=3, batch_size=6)


@pytest.fixture
def model(tiny_dir):
    return AutoModelForCausalLM.from_pretrained(tiny_dir)


def rows(count=10):
    return [
        {
            "prompt": [{"role": "user", "content": "x" * (index % 4) + str(index)}],
            "answer": str(index),
            "group": "even" if index % 2 == 0 else "odd",
        }
        for index in range(count)
    ]


def has_digit(prompts, completions, **columns):
    """A verdict that a random model's text sometimes meets."""
    return [float(bool(re.search(r"\d", completion[0]["content"]))) for completion in completions]


def texts(result):
    return [sample["completion"] for sample in result.samples]


def numbers(result):
    return {name: value for name, value in result.to_dict().items() if name != "seconds"}


@torch.no_grad()
def greedy_by_hand(model, ids, count, stops):
    """Argmax token by token, one row, no padding, no cache."""
    model.eval()
    made = []
    while len(made) < count and not (made and made[-1] in stops):
        made.append(model(torch.tensor([ids + made])).logits[0, -1].argmax().item())
    return made


def test_greedy_completions_equal_a_loop_without_padding_or_cache(model, tiny_tokenizer):
    result = evaluate(model, tiny_tokenizer, rows(), has_digit, settings=GREEDY)
    stops = stop_token_ids(tiny_tokenizer, model)
    for row, sample in zip(rows(), result.samples, strict=True):
        text = f"<|im_start|>user\n{row['prompt'][0]['content']}<|im_end|><|im_start|>assistant\n"
        ids = tiny_tokenizer(text, add_special_tokens=False)["input_ids"]
        expected = greedy_by_hand(model, ids, 12, stops)
        written = expected[:-1] if expected[-1] in stops else expected
        assert sample["completion"] == tiny_tokenizer.decode(written)
        assert sample["length"] == len(expected)
        assert sample["correct"] == bool(re.search(r"\d", sample["completion"]))


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_same_seed_gives_the_same_numbers_whatever_the_global_state(model, tiny_tokenizer, settings):
    torch.manual_seed(1)
    first = evaluate(model, tiny_tokenizer, rows(), has_digit, settings=settings)
    torch.manual_seed(2)
    random.seed(2)
    assert numbers(evaluate(model, tiny_tokenizer, rows(), has_digit, settings=settings)) == numbers(first)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_batch_size_and_padding_side_do_not_change_the_result(model, tiny_dir, temperature):
    tokenizer = AutoTokenizer.from_pretrained(tiny_dir, padding_side="left")
    results = []
    for batch_size, side in ((1, "left"), (3, "right"), (64, "left")):
        tokenizer.padding_side = side
        settings = EvalSettings(max_new_tokens=12, temperature=temperature, batch_size=batch_size)
        results.append(numbers(evaluate(model, tokenizer, rows(), has_digit, settings=settings)))
        assert tokenizer.padding_side == side
    assert results[0] == results[1] == results[2]


def test_another_seed_gives_other_samples_and_other_prompts(model, tiny_tokenizer):
    def run(seed):
        settings = EvalSettings(max_new_tokens=12, temperature=1.0, num_prompts=5, seed=seed)
        return evaluate(model, tiny_tokenizer, rows(50), has_digit, settings=settings)

    first, second = run(0), run(1)
    assert texts(first) != texts(second)
    assert [s["index"] for s in first.samples] != [s["index"] for s in second.samples]


def test_another_seed_samples_another_text_for_the_same_prompt(model, tiny_tokenizer):
    first, second = (
        texts(
            evaluate(
                model, tiny_tokenizer, rows(), has_digit, settings=EvalSettings(**SAMPLED.__dict__ | {"seed": seed})
            )
        )
        for seed in (0, 1)
    )
    assert len(first) == len(second) == 30
    assert sum(a == b for a, b in zip(first, second, strict=True)) == 0
    assert len(set(first)) == 30  # and each completion of a prompt is a draw of its own


def test_dropout_is_off(tiny_dir, tiny_tokenizer, model):
    plain = evaluate(model, tiny_tokenizer, rows(), has_digit, settings=GREEDY)
    dropping = AutoModelForCausalLM.from_pretrained(tiny_dir, attention_dropout=0.5).train()
    assert texts(evaluate(dropping, tiny_tokenizer, rows(), has_digit, settings=GREEDY)) == texts(plain)


def test_fewer_prompts_are_a_part_of_more(model, tiny_tokenizer):
    def run(count):
        settings = EvalSettings(max_new_tokens=4, temperature=1.0, num_prompts=count)
        return {
            s["index"]: s["completion"]
            for s in evaluate(model, tiny_tokenizer, rows(30), has_digit, settings=settings).samples
        }

    few, many, every = run(6), run(12), run(None)
    assert len(few) == 6 and len(many) == 12 and len(every) == 30
    assert few.items() <= many.items() <= every.items()


def test_sampling_follows_the_model_distribution(model, tiny_tokenizer):
    row = rows(1)
    with torch.no_grad():
        logits = model(torch.tensor([encode_prompt(tiny_tokenizer, row[0]["prompt"])])).logits[0, -1]
    count = 4000
    # The random model's distribution is almost flat; this temperature gives it a shape.
    settings = EvalSettings(max_new_tokens=1, temperature=0.05, num_generations=count, batch_size=count)
    seen = torch.zeros_like(logits)

    def collect(prompts, completions, completion_ids, **columns):
        for ids in completion_ids:
            seen[ids[0]] += 1
        return [0.0] * len(completions)

    evaluate(model, tiny_tokenizer, row, collect, settings=settings)
    expected = functional.softmax(logits / 0.05, dim=-1)
    assert expected.max() > 10 / len(expected)
    assert seen.sum() == count
    # Five standard deviations of a binomial frequency, for each token of the vocabulary.
    tolerance = 5 * (expected * (1 - expected) / count).sqrt() + 1 / count
    assert ((seen / count - expected).abs() <= tolerance).all()


def test_top_p_keeps_the_smallest_set_of_likely_tokens(model, tiny_tokenizer):
    row = rows(1)
    with torch.no_grad():
        logits = model(torch.tensor([encode_prompt(tiny_tokenizer, row[0]["prompt"])])).logits[0, -1]
    probabilities, order = functional.softmax(logits, dim=-1).sort(descending=True)
    kept = order[: int((probabilities.cumsum(0) < 0.2).sum()) + 1].tolist()
    settings = EvalSettings(max_new_tokens=1, temperature=1.0, top_p=0.2, num_generations=400, batch_size=400)
    seen = set()

    def collect(prompts, completions, completion_ids, **columns):
        seen.update(ids[0] for ids in completion_ids)
        return [0.0] * len(completions)

    evaluate(model, tiny_tokenizer, row, collect, settings=settings)
    assert seen == set(kept)


def test_the_models_own_generation_settings_are_neither_used_nor_changed(model, tiny_tokenizer):
    plain = evaluate(model, tiny_tokenizer, rows(), has_digit, settings=GREEDY)
    model.generation_config.update(
        do_sample=True,
        temperature=0.3,
        top_k=3,
        top_p=0.4,
        repetition_penalty=1.7,
        no_repeat_ngram_size=1,
        min_length=40,
    )
    before = model.generation_config.to_dict()
    assert texts(evaluate(model, tiny_tokenizer, rows(), has_digit, settings=GREEDY)) == texts(plain)
    assert model.generation_config.to_dict() == before
    assert model.config.use_cache is True


def test_every_stop_token_of_tokenizer_and_model_ends_a_completion(model, tiny_tokenizer):
    ids = encode_prompt(tiny_tokenizer, rows(1)[0]["prompt"])
    made = greedy_by_hand(model, ids, 12, stops=[])
    stop = made[3]
    first = made.index(stop)
    model.generation_config.eos_token_id = [stop]
    assert stop_token_ids(tiny_tokenizer, model) == sorted({stop, tiny_tokenizer.eos_token_id})
    sample = evaluate(model, tiny_tokenizer, rows(1), has_digit, settings=GREEDY).samples[0]
    assert (sample["length"], sample["truncated"]) == (first + 1, False)
    short = (
        evaluate(model, tiny_tokenizer, rows(1), has_digit, settings=EvalSettings(max_new_tokens=first))
        if first
        else None
    )
    assert short is None or short.truncated_fraction == 1.0


def test_truncation_and_length_count_the_stop_token(model, tiny_tokenizer):
    result = evaluate(
        model, tiny_tokenizer, rows(40), has_digit, settings=EvalSettings(max_new_tokens=12, temperature=1.5)
    )
    ended = [sample for sample in result.samples if not sample["truncated"]]
    assert 0 < len(ended) < 40
    assert all(sample["length"] == 12 for sample in result.samples if sample["truncated"])
    # One character a token: an ended completion is its text and the stop token.
    assert all(sample["length"] >= len(sample["completion"]) + 1 for sample in ended)
    assert result.truncated_fraction == 1 - len(ended) / 40
    assert result.num_tokens == sum(sample["length"] for sample in result.samples) == round(result.mean_length * 40)


def test_groups_and_columns_reach_the_result_and_the_verifier(model, tiny_tokenizer):
    def knows_answer(prompts, completions, *, answer=None, group=None, **columns):
        assert len(prompts) == len(completions) == len(answer) == len(group)
        assert [int(a) % 2 == 0 for a in answer] == [g == "even" for g in group]
        return [1.0 if int(a) in (0, 2, 4, 1) else 0.0 for a in answer]

    result = evaluate(
        model, tiny_tokenizer, rows(10), knows_answer, settings=EvalSettings(max_new_tokens=2, batch_size=3)
    )
    assert {name: score.accuracy for name, score in result.per_group.items()} == {"even": 3 / 5, "odd": 1 / 5}
    assert result.accuracy == 0.4
    assert result.accuracy_stderr == pytest.approx(math.sqrt(0.4 * 0.6 / 9))  # p(1 - p) / (n - 1) for 0/1 verdicts
    assert [sample["index"] for sample in result.samples] == list(range(10))


def test_text_prompts_are_completed_as_text_and_need_no_group(model, tiny_tokenizer):
    def is_text(prompts, completions, **columns):
        assert all(isinstance(item, str) for item in (*prompts, *completions))
        return [1.0] * len(completions)

    result = evaluate(model, tiny_tokenizer, [{"prompt": "abc"}, {"prompt": "d"}], is_text, settings=GREEDY)
    assert result.accuracy == 1.0 and result.per_group == {}


def test_missing_verdicts_are_counted_and_left_out(model, tiny_tokenizer):
    def sometimes(prompts, completions, *, answer, **columns):
        return [{"0": None, "1": math.nan, "2": 0.99, "3": 1.0, "4": 2}[item] for item in answer]

    result = evaluate(model, tiny_tokenizer, rows(5), sometimes, settings=GREEDY)
    assert [sample["correct"] for sample in result.samples] == [None, None, False, True, True]
    assert (result.unscored, result.num_scored_prompts, result.num_prompts) == (2, 3, 5)
    assert result.accuracy == pytest.approx(2 / 3)
    lower = evaluate(model, tiny_tokenizer, rows(5), sometimes, settings=GREEDY, success_threshold=0.5)
    assert lower.accuracy == 1.0


def test_completions_the_verifier_fails_on_are_counted_apart_with_their_reason(model, tiny_tokenizer, tmp_path):
    (tmp_path / "mine.py").write_text(
        "def sometimes(prompts, completions, *, answer, **_):\n"
        "    return [{'0': None, '1': 0.0, '2': 1.0}[item] for item in answer]\n"
    )
    scorer = RewardScorer("mine.py:sometimes", base_dir=tmp_path)
    result = evaluate(model, tiny_tokenizer, rows(5), scorer, settings=GREEDY)
    assert [sample["correct"] for sample in result.samples] == [None, False, True, None, None]
    assert [sample["failed"] for sample in result.samples] == [None, None, None, "KeyError: '3'", "KeyError: '4'"]
    assert (result.unscored, result.failed, result.accuracy) == (3, 2, 0.5)
    told = "the verifier gave no verdict on 3 completions: it failed on 2 and did not apply to 1."
    assert missing_verdicts(result.to_dict()) == told


def test_a_spent_time_budget_gives_a_partial_result_of_whole_prompts(model, tiny_tokenizer):
    settings = EvalSettings(
        max_new_tokens=2, num_generations=2, temperature=1.0, batch_size=8, time_budget_seconds=1e-9, num_prompts=20
    )
    steps = []
    result = evaluate(
        model,
        tiny_tokenizer,
        rows(50),
        has_digit,
        settings=settings,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert result.partial and steps == [(4, 20)]
    assert (result.num_prompts, result.num_requested, result.num_samples) == (4, 20, 8)
    assert result.accuracy_stderr >= 0
    assert sorted({sample["index"] for sample in result.samples}) != [
        0,
        1,
        2,
        3,
    ]  # a random choice, not the first rows


def test_an_ample_time_budget_changes_nothing(model, tiny_tokenizer):
    ample = EvalSettings(max_new_tokens=12, time_budget_seconds=600.0)
    result = evaluate(model, tiny_tokenizer, rows(), has_digit, settings=ample)
    assert not result.partial
    assert numbers(result) == numbers(evaluate(model, tiny_tokenizer, rows(), has_digit, settings=GREEDY))


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_generators_and_the_mode_of_every_module_are_left_as_found(model, tiny_tokenizer, settings):
    model.train()
    model.model.layers[1].eval()
    modes = {name: module.training for name, module in model.named_modules()}

    def draws(prompts, completions, **columns):
        return [float(random.random() + numpy.random.rand() + torch.rand(1).item() > 1.5) for _ in completions]

    def state():
        return random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = state()
    evaluate(model, tiny_tokenizer, rows(), draws, settings=settings)
    assert state() == before
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert len(set(modes.values())) == 2


def test_a_failing_verifier_leaves_the_model_as_found_too(model, tiny_tokenizer):
    model.train()
    state = torch.get_rng_state()
    with pytest.raises(RewardError):
        evaluate(model, tiny_tokenizer, rows(), lambda **_: None, settings=SAMPLED)
    assert model.training and torch.equal(torch.get_rng_state(), state)


def train_with_lora(tiny_dir, tokenizer, *, with_evaluation):
    """Four steps with dropout, so that a generator moved by evaluation shows in the weights."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    config = LoraConfig(r=4, lora_dropout=0.5, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_dir), config).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    ids = torch.tensor([encode_prompt(tokenizer, rows(1)[0]["prompt"])])
    losses, results = [], []
    for _ in range(4):
        if with_evaluation:
            results.append(evaluate(model, tokenizer, rows(), has_digit, settings=SAMPLED))
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, {name: value.clone() for name, value in model.state_dict().items()}, results


def test_training_with_evaluation_is_bit_equal_to_training_without(tiny_dir, tiny_tokenizer):
    losses, weights, results = train_with_lora(tiny_dir, tiny_tokenizer, with_evaluation=True)
    plain_losses, plain_weights, _ = train_with_lora(tiny_dir, tiny_tokenizer, with_evaluation=False)
    assert losses == plain_losses
    assert all(torch.equal(value, plain_weights[name]) for name, value in weights.items())
    # The adapter was evaluated, and dropout was off: training moved the completions.
    assert texts(results[0]) != texts(results[-1])


@pytest.mark.parametrize(
    ("verifier", "message"),
    [
        (lambda **_: None, "one value for each of 10 completions, got NoneType"),
        (lambda **_: [1.0], "one value for each of 10 completions, got 1 values"),
        (lambda completions, **_: ["yes"] * len(completions), "returned 'yes', allowed: a number or None"),
        (lambda **_: 1 / 0, "the verifier raised ZeroDivisionError: division by zero"),
    ],
)
def test_a_misbehaving_verifier_is_an_error_and_never_a_zero(model, tiny_tokenizer, verifier, message):
    with pytest.raises(RewardError, match=f"^eval: .*{message}"):
        evaluate(model, tiny_tokenizer, rows(), verifier, settings=GREEDY)


def test_unusable_data_and_settings_are_refused(model, tiny_tokenizer, tiny_dir):
    with pytest.raises(ConfigError, match="eval.max_new_tokens: not set"):
        evaluate(model, tiny_tokenizer, rows(), has_digit, settings=EvalSettings())
    with pytest.raises(DataError, match="no rows to evaluate"):
        evaluate(model, tiny_tokenizer, [], has_digit, settings=GREEDY)
    with pytest.raises(DataError, match="a prompt has no tokens"):
        evaluate(model, tiny_tokenizer, [{"prompt": ""}], has_digit, settings=GREEDY)
    tokenizer = AutoTokenizer.from_pretrained(tiny_dir)
    tokenizer.chat_template = None
    with pytest.raises(DataError, match="no chat template"):
        evaluate(model, tokenizer, rows(), has_digit, settings=GREEDY)

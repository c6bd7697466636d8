"""Masked thought: the paper's numbers by hand, a step against a literal loss, and what the noise depends on."""

from __future__ import annotations

import math

import pytest
import torch
from datasets import Dataset
from transformers import AddedToken, AutoTokenizer

from posttrain.losses.reductions import LossCounts, reduce_loss
from posttrain.losses.supervised import nll_loss
from posttrain.methods.masked_thought.noise import row_generator
from posttrain.methods.masked_thought.trainer import MaskedThoughtTrainer
from posttrain.seam.groups.row_index import row_spans
from tests.batteries.runs import build, fresh_model, gradients, losses, relative_difference, weights

KEY = "masked_thought"
# A mask token that the tiny tokenizer has and the data does not; full noise from the first step.
NOISY = {"mask_token": "~", "mask_schedule": "constant", "mask_ratio": 0.5}


class Recording(MaskedThoughtTrainer):
    """Keeps (place, ids before, ids after, labels before, labels after) of every row of every step."""

    def prepare_batches(self, batches):
        steps = self.__dict__.setdefault("steps", [])
        before = [{name: batch[name].clone() for name in ("input_ids", "labels")} for batch in batches]
        super().prepare_batches(batches)
        steps.append([])
        for old, new in zip(before, batches, strict=True):
            for place, span in row_spans(new):
                pairs = [(b["input_ids"].flatten()[span], b["labels"].flatten()[span]) for b in (old, new)]
                (ids, labels), (ids_now, labels_now) = pairs
                steps[-1].append((place, ids, ids_now, labels, labels_now))


def make(tiny_dir, folder, **settings):
    return build(KEY, tiny_dir, folder, trainer_class=Recording, **{**NOISY, **settings})


# ---- the formula ----


def bigram_loss(noised: tuple[int, int, int], *, clean_only: bool) -> float:
    """Prompt A, target B C EOS; p(B|A)=.5, p(C|B)=.8, p(EOS|C)=.9, p(C|mask)=.25, p(EOS|mask)=.25."""
    table = {("A", "B"): 0.5, ("B", "C"): 0.8, ("C", "E"): 0.9, ("mask", "C"): 0.25, ("mask", "E"): 0.25}
    inputs = ["A", *("mask" if is_noised else token for token, is_noised in zip("BCE", noised, strict=True))]
    logps = torch.tensor([[math.log(table[inputs[place], label]) for place, label in enumerate("BCE")]])
    trained = torch.tensor([[not (clean_only and is_noised) for is_noised in noised]])
    counts = LossCounts(rows=1, tokens=float(trained.sum()), max_completion_length=3)
    return float(reduce_loss(nll_loss(logps, trained), trained.float(), counts=counts))


def test_bigram_losses_by_hand():
    # -(ln .5 + ln .8 + ln .9) / 3
    assert bigram_loss((0, 0, 0), clean_only=False) == pytest.approx(0.3405504, abs=1e-7)
    # B hidden: -(ln .5 + ln .25 + ln .9) / 3
    assert bigram_loss((1, 0, 0), clean_only=False) == pytest.approx(0.7282674, abs=1e-7)
    # and not a label: -(ln .25 + ln .9) / 2
    assert bigram_loss((1, 0, 0), clean_only=True) == pytest.approx(0.7458274, abs=1e-7)
    # Nothing is predicted from the end token.
    assert bigram_loss((0, 0, 1), clean_only=False) == bigram_loss((0, 0, 0), clean_only=False)


@pytest.mark.parametrize("variant", [{}, {"loss_on_masked": "clean_only"}, {"mask_positions": "all"}], ids=str)
def test_gradient_of_a_step_is_that_of_the_literal_loss(variant, tiny_dir, tmp_path):
    """Row by row, token by token; where the noise falls is drawn again from (seed, epoch, place)."""
    trainer = make(tiny_dir, tmp_path, max_steps=1, max_grad_norm=0.0, per_device_train_batch_size=4, **variant)
    ours = gradients(trainer)
    mask, model = trainer.tokenizer.convert_tokens_to_ids("~"), fresh_model(tiny_dir)
    total, count, hidden = torch.zeros(()), 0, 0
    for place, ids, _, labels, _ in trainer.steps[0]:
        positions = [i for i, label in enumerate(labels.tolist()) if label != -100 or "mask_positions" in variant]
        draws = torch.rand(len(positions), generator=row_generator(5, 0, place)).tolist()  # seed 5, epoch 0
        noised = {i for i, draw in zip(positions, draws, strict=True) if draw < 0.5}
        inputs = torch.tensor([mask if i in noised else int(token) for i, token in enumerate(ids)])
        logps = model(inputs.unsqueeze(0)).logits[0].log_softmax(-1)
        for i in range(1, len(ids)):
            if labels[i] != -100 and not (i in noised and variant.get("loss_on_masked") == "clean_only"):
                total, count = total - logps[i - 1, ids[i]], count + 1
        hidden += len(noised)
    assert hidden > 10
    (total / count).backward()
    literal = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    assert relative_difference(ours, literal) < 1e-5


@pytest.mark.parametrize("settings", [{"mask_ratio": 0.0}, {"mask_schedule": "linear"}], ids=str)
def test_without_noise_a_step_is_that_of_plain_fine_tuning_bit_for_bit(settings, tiny_dir, tmp_path):
    """With the ratio at 0, and in the ramp's first step."""
    plain = build("sft", tiny_dir, tmp_path / "sft", max_steps=1)
    ours = make(tiny_dir, tmp_path / "ours", max_steps=1, **settings)
    expected, found = gradients(plain), gradients(ours)
    assert losses(plain) == losses(ours)
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


# ---- what is corrupted ----


def test_labels_and_prompts_stay_and_the_log_tells_the_rate(tiny_dir, tmp_path):
    trainer = make(tiny_dir, tmp_path, max_steps=12, mask_schedule="linear")
    trainer.train()
    mask = trainer.tokenizer.convert_tokens_to_ids("~")
    changed = total = 0
    for step in trainer.steps:
        for _, ids, ids_now, labels, labels_now in step:
            assert torch.equal(labels, labels_now) and mask not in labels.tolist()
            is_target = labels != -100
            assert torch.equal(ids[~is_target], ids_now[~is_target])
            assert set(ids_now[ids != ids_now].tolist()) <= {mask}
            changed, total = changed + int((ids != ids_now).sum()), total + int(is_target.sum())
    rates = [entry["noise/rate"] for entry in trainer.state.log_history if "noise/rate" in entry]
    assert rates == pytest.approx([0.5 * min(1, step / 8) for step in range(12)])
    shares = [entry["noise/noised_fraction"] for entry in trainer.state.log_history if "noise/rate" in entry]
    assert shares[0] == 0.0 and 0.2 < changed / total < 0.45
    assert sum(shares) / 12 == pytest.approx(changed / total, abs=0.05)


@pytest.mark.parametrize("positions", ["source", "all"])
def test_ablations_corrupt_the_prompt(positions, tiny_dir, tmp_path):
    trainer = make(tiny_dir, tmp_path, max_steps=1, mask_positions=positions)
    gradients(trainer)
    for _, ids, ids_now, labels, labels_now in trainer.steps[0]:
        assert (ids != ids_now)[labels == -100].any() and torch.equal(labels, labels_now)
    in_target = any((ids != now)[labels != -100].any() for _, ids, now, labels, _ in trainer.steps[0])
    assert in_target == (positions == "all")


def test_random_tokens_are_ordinary_ones(tiny_dir, tmp_path):
    trainer = make(tiny_dir, tmp_path, max_steps=10, noise_type="random_token", mask_ratio=0.9)
    trainer.train()
    special = set(trainer.tokenizer.all_special_ids)
    drawn = [token for step in trainer.steps for _, ids, now, *_ in step for token in now[ids != now].tolist()]
    assert len(set(drawn)) > 50 and not special & set(drawn)
    assert not special & set(trainer.replacement.random_ids.tolist())
    both = make(tiny_dir, tmp_path / "mixed", max_steps=10, noise_type="mixed", random_token_prob=0.5)
    mask = both.tokenizer.convert_tokens_to_ids("~")
    assert both.replacement.mask_id == mask and mask not in both.replacement.random_ids.tolist()


def test_added_special_tokens_are_no_random_ones(tiny_dir, tmp_path):
    """A token added as special is not among the tokenizer's named special tokens."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_dir)
    tokenizer.add_tokens([AddedToken("~", special=True)])
    special = tokenizer.convert_tokens_to_ids("~")
    assert special not in tokenizer.all_special_ids and special < len(tokenizer)
    tokenizer.save_pretrained(tmp_path / "model")
    fresh_model(tiny_dir).save_pretrained(tmp_path / "model")
    trainer = build(KEY, tmp_path / "model", tmp_path, noise_type="random_token")
    assert special not in trainer.replacement.random_ids.tolist()


def test_attention_can_be_blocked_at_hidden_positions(tiny_dir, tmp_path):
    """Equals the loss of a model that sees an explicit mask of those positions."""
    trainer = make(tiny_dir, tmp_path, max_steps=1, max_grad_norm=0.0, block_attention_to_masked=True)
    ours, model = gradients(trainer), fresh_model(tiny_dir)
    total, count = torch.zeros(()), 0
    for _, ids, now, labels, _ in trainer.steps[0]:
        logits = model(now.unsqueeze(0), attention_mask=(ids == now).long().unsqueeze(0)).logits[0]
        logps = logits.log_softmax(-1)
        for i in range(1, len(ids)):
            if labels[i] != -100:
                total, count = total - logps[i - 1, ids[i]], count + 1
    (total / count).backward()
    literal = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    assert relative_difference(ours, literal) < 1e-5


def test_embedding_dropout_of_everything_is_a_zero_embedding(tiny_dir, tmp_path):
    trainer = make(
        tiny_dir, tmp_path, max_steps=1, max_grad_norm=0.0, noise_type="embedding_dropout", embedding_dropout=1.0
    )
    ours, model = gradients(trainer), fresh_model(tiny_dir)
    total, count, hidden = torch.zeros(()), 0, 0
    for place, ids, now, labels, _ in trainer.steps[0]:
        assert torch.equal(ids, now)
        target = labels != -100
        noised = torch.zeros_like(target)
        noised[target] = torch.rand(int(target.sum()), generator=row_generator(5, 0, place)) < 0.5
        embedded = model.get_input_embeddings()(ids) * ~noised.unsqueeze(1)
        logps = model(inputs_embeds=embedded.unsqueeze(0)).logits[0].log_softmax(-1)
        picked = logps[:-1].gather(1, ids[1:].unsqueeze(1))[target[1:]]
        total, count, hidden = total - picked.sum(), count + len(picked), hidden + int(noised.sum())
    assert hidden > 5
    (total / count).backward()
    literal = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    assert relative_difference(ours, literal) < 1e-5


def test_evaluation_is_never_corrupted(tiny_dir, tmp_path):
    data = Dataset.from_list([{"prompt": [{"role": "user", "content": "1+1"}], "solution": "Answer: 2"}] * 4)
    found = []
    for settings in ({"mask_ratio": 0.9}, {"mask_ratio": 0.0}):
        trainer = make(
            tiny_dir, tmp_path, max_steps=1, trainer_kwargs={"eval_dataset": data}, learning_rate=1e-30, **settings
        )
        trainer.train()
        found.append(trainer.evaluate()["eval_loss"])
    assert found[0] == found[1]


def test_a_model_that_ignores_its_input_has_the_same_loss_for_any_noise(tiny_dir, tmp_path):
    found = []
    for ratio in (0.0, 0.9):
        model = fresh_model(tiny_dir)
        embeddings = model.get_input_embeddings().weight
        embeddings.data[:] = embeddings.data[0]
        trainer = make(tiny_dir, tmp_path / str(ratio), model=model, max_steps=1, mask_ratio=ratio)
        gradients(trainer)
        found.append(losses(trainer))
    assert found[0] == found[1]


@pytest.mark.parametrize("style", ["prompt and completion", "messages", "one text"])
def test_the_labels_of_other_formats_say_what_may_be_hidden(style, tiny_dir, tmp_path):
    """Formats that TRL encodes itself: its completion-only and assistant-only labels are the target."""
    user, assistant = {"role": "user", "content": "1+1=?"}, {"role": "assistant", "content": "Answer: 2"}
    row, settings = {
        "prompt and completion": ({"prompt": "1+1=?", "completion": " Answer: 2"}, {"completion_only_loss": True}),
        "messages": ({"messages": [user, assistant, user, assistant]}, {"assistant_only_loss": True}),
        "one text": ({"text": "1+1=? Answer: 2"}, {}),
    }[style]
    trainer = make(tiny_dir, tmp_path, data=Dataset.from_list([row] * 12), max_steps=3, mask_ratio=0.9, **settings)
    trainer.train()
    hidden = 0
    for step in trainer.steps:
        for _, ids, now, labels, labels_now in step:
            assert torch.equal(labels, labels_now)
            assert torch.equal(ids[labels == -100], now[labels == -100])
            assert bool((labels == -100).any()) == (style != "one text")
            hidden += int((ids != now).sum())
    assert hidden > 50


def test_packed_rows_keep_their_boundaries(tiny_dir, tmp_path):
    """Two batches are packed into longer rows; nothing but completion tokens, end tokens excepted, is hidden."""
    trainer = make(
        tiny_dir, tmp_path, max_steps=4, packing=True, max_length=96, mask_ratio=0.9, per_device_train_batch_size=2
    )
    trainer.train()
    end, hidden = trainer.tokenizer.eos_token_id, 0
    for step in trainer.steps:
        for _, ids, now, labels, labels_now in step:
            is_changed = ids != now
            assert torch.equal(labels, labels_now) and not is_changed[labels == -100].any()
            assert torch.equal(now[ids == end], ids[ids == end])
            assert int((ids == end).sum()) > 1
            hidden += int(is_changed.sum())
    assert hidden > 50


# ---- what the noise depends on ----


def test_splits_see_the_same_noise_and_have_the_same_gradient(warm_rows, tiny_dir, tmp_path):
    found, seen = [], []
    for rows, steps in ((8, 1), (4, 2), (2, 4)):
        trainer = make(
            tiny_dir,
            tmp_path / f"{rows}",
            data=warm_rows,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=steps,
            max_steps=1,
            max_grad_norm=0.0,
        )
        found.append(gradients(trainer))
        seen.append({place: now.tolist() for place, _, now, *_ in trainer.steps[0]})
    assert seen[0] == seen[1] == seen[2] and len(seen[0]) == 8
    assert relative_difference(found[1], found[0]) < 1e-5
    assert relative_difference(found[2], found[0]) < 1e-5


@pytest.fixture
def warm_rows():
    """Rows with longer demonstrations than the batteries' own."""
    return Dataset.from_list(
        [
            {"prompt": [{"role": "user", "content": f"{i}"}], "solution": "Answer: " + "abcdefgh"[: 2 + i % 6] * 2}
            for i in range(12)
        ]
    )


@pytest.mark.parametrize("settings", [{}, {"noise_type": "random_token"}, {"mask_schedule": "linear"}], ids=str)
def test_a_resumed_run_sees_the_noise_of_the_whole_one(settings, warm_rows, tiny_dir, tmp_path):
    layout = {"data": warm_rows, "max_steps": 8, "save_strategy": "steps", "save_steps": 4, **settings}
    whole = make(tiny_dir, tmp_path / "whole", **layout)
    whole.train()
    make(tiny_dir, tmp_path / "cut", **layout).train()
    rest = make(tiny_dir, tmp_path / "cut", **layout)
    torch.manual_seed(12345)
    rest.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-4"))

    def plain(steps):
        return [[(place, now.tolist()) for place, _, now, *_ in step] for step in steps]

    assert plain(rest.steps) == plain(whole.steps)[4:]
    assert all(torch.equal(value, weights(rest)[name]) for name, value in weights(whole).items())
    # Three steps are an epoch of 12 rows: the next one sees each row again, hidden elsewhere.
    first = dict(row for step in plain(whole.steps)[3:5] for row in step)
    later = dict(row for step in plain(whole.steps)[6:8] for row in step)
    shared = first.keys() & later.keys()
    assert shared and any(first[place] != later[place] for place in shared)

"""Unlearning on the trainer: its gradient against a literal one, pairs and splits, the reference, resume, refusals."""

from __future__ import annotations

import copy

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer

from posttrain.data.demonstrations import encode_row
from posttrain.errors import ConfigError, DataError, ResumeError, SupportError
from posttrain.losses.unlearning import steering_vector
from posttrain.methods.unlearning_paths.config import UnlearnConfig
from posttrain.methods.unlearning_paths.trainer import UnlearnTrainer
from tests.batteries.runs import COMMON, fresh_model, gradients, losses, relative_difference, weights

LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")


def rows(count: int, first: int = 0) -> Dataset:
    """Facts of unequal length."""
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": f"{i}?"}],
                "solution": "x" * (1 + i % 5) + str(i),
                "alternate": "n" * (1 + i % 3),
            }
            for i in range(first, first + count)
        ]
    )


def build(model, folder, *, forget=None, retain=None, peft_config=None, **overrides):
    arguments = {
        **COMMON,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "max_steps": 2,
        "reference": "copy",
        "max_grad_norm": 0.0,
        "module_regex": r"model\.layers\.0",
        **overrides,
    }
    return UnlearnTrainer(
        model=fresh_model(model) if not isinstance(model, torch.nn.Module) else model,
        args=UnlearnConfig(output_dir=str(folder), **arguments),
        train_dataset=rows(8) if forget is None else forget,
        retain_dataset=retain,
        processing_class=AutoTokenizer.from_pretrained(folder.parent / "tokenizer"),
        peft_config=peft_config,
    )


@pytest.fixture
def place(tiny_dir, tmp_path):
    """A folder for a run, with the tokenizer beside it."""
    AutoTokenizer.from_pretrained(tiny_dir).save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "run"


LOSSES = {
    "ga": {"unlearn_loss": "ga"},
    "graddiff": {"unlearn_loss": "graddiff"},
    "npo": {"unlearn_loss": "npo"},
    "npo and retain": {"unlearn_loss": "npo", "retain_weight": 0.7},
    "simnpo": {"unlearn_loss": "simnpo", "margin": 0.1},
    "simnpo of sums": {"unlearn_loss": "simnpo", "length_normalize": False},
    "dpo": {"unlearn_loss": "dpo"},
    "idkdpo": {"unlearn_loss": "idkdpo", "retain_weight": 0.5},
    "rmu": {"unlearn_loss": "rmu", "retain_weight": 1.0, "retain_loss": "embed_diff"},
    "kl": {"unlearn_loss": "graddiff", "retain_loss": "kl"},
    "kl everywhere": {"unlearn_loss": "graddiff", "retain_loss": "kl", "kl_mask": "all"},
    "rmu and kl": {"unlearn_loss": "rmu", "retain_weight": 0.3, "retain_loss": "kl"},
}


def kept(options):
    weight = options.get("retain_weight", 1.0 if options["unlearn_loss"] == "graddiff" else 0.0)
    return rows(10, first=20) if weight else None


# ---- the formula ----


def literal_loss(model, before, tokenizer, pairs, options):
    """The loss of one optimizer step, row by row. pairs: (row to forget, its answer instead, row to retain)."""
    kind, beta = options["unlearn_loss"], {"npo": 0.5, "simnpo": 4.5}.get(options["unlearn_loss"], 0.1)
    if kind == "simnpo" and not options.get("length_normalize", True):
        beta = 1.0

    def read(network, row, text):
        given, learnt = encode_row(tokenizer, row["prompt"], text, column="solution")
        ids = torch.tensor([given + learnt])
        output = network(input_ids=ids, output_hidden_states=True)
        log_probs = output.logits[0].log_softmax(-1)
        span = range(len(given), ids.size(1))
        picked = torch.stack([log_probs[t - 1, ids[0, t]] for t in span])
        return picked, output.hidden_states[1][0, len(given) :], log_probs[:-1], len(given)

    forget, tokens = [], 0
    for row, other, _ in pairs:
        own, hidden, _, _ = read(model, row, row["solution"])
        with torch.no_grad():
            ref = read(before, row, row["solution"])[0].sum()
        tokens += len(own)
        if kind in ("ga", "graddiff"):
            forget.append(own.sum())
        elif kind == "npo":
            forget.append(-2 / beta * torch.nn.functional.logsigmoid(-beta * (own.sum() - ref)))
        elif kind == "simnpo":
            nll = -own.mean() if options.get("length_normalize", True) else -own.sum()
            forget.append(-2 / beta * torch.nn.functional.logsigmoid(beta * (nll - options.get("margin", 0.0))))
        elif kind == "rmu":
            target = steering_vector(hidden.size(-1), coefficient=2.0, seed=COMMON["seed"])
            forget.append((hidden - target).square().mean(-1).mean())
        else:
            with torch.no_grad():
                ref_chosen = read(before, row, other)[0].sum()
            chosen = read(model, row, other)[0].sum() - ref_chosen
            forget.append(-2 / beta * torch.nn.functional.logsigmoid(beta * (chosen - (own.sum() - ref))))
    total = torch.stack(forget).sum() / (tokens if kind in ("ga", "graddiff") else len(pairs))
    weight = options.get("retain_weight", 1.0 if kind == "graddiff" else 0.0)
    if not weight:
        return total
    kept_values, count = [], 0
    for _, _, row in pairs:
        own, hidden, log_probs, given = read(model, row, row["solution"])
        with torch.no_grad():
            _, ref_hidden, ref_log_probs, _ = read(before, row, row["solution"])
        name = options.get("retain_loss", "nll")
        if name == "nll":
            kept_values.append(-own.sum())
            count += len(own)
        elif name == "embed_diff":
            kept_values.append((hidden - ref_hidden).square().mean(-1).mean())
            count += 1
        else:
            first = 0 if options.get("kl_mask") == "all" else given - 1
            kl = (ref_log_probs.exp() * (ref_log_probs - log_probs)).sum(-1)[first:]
            kept_values.append(kl.sum())
            count += len(kl)
    return total + weight * torch.stack(kept_values).sum() / count


class Watched(UnlearnTrainer):
    """Remembers which rows belonged together."""

    def prepare_batches(self, batches):
        super().prepare_batches(batches)
        self.__dict__.setdefault("pairs", []).append([pair for batch in batches for pair in batch["pairs"]])


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_that_of_the_formula(name, tiny_dir, place, monkeypatch):
    options = LOSSES[name]
    monkeypatch.setattr(f"{__name__}.UnlearnTrainer", Watched)
    model, before = fresh_model(tiny_dir), fresh_model(tiny_dir)
    with torch.no_grad():  # a model that has moved away from the reference
        for parameter in model.parameters():
            parameter.mul_(1.05)
    retain = kept(options)
    trainer = build(model, place, retain=retain, max_steps=1, **options)
    if trainer.reference.frozen is not None:
        trainer.reference.frozen.load_state_dict(before.state_dict())
    start = copy.deepcopy(weights(trainer))
    found = gradients(trainer)
    literal = fresh_model(tiny_dir)
    literal.load_state_dict(start)
    forget = rows(8)
    idk = trainer.partners.alternates
    pairs = []
    for place_of_row, drawn in trainer.pairs[0]:
        row = forget[place_of_row]
        other = row["alternate"]
        if options["unlearn_loss"] == "idkdpo":
            ids, labels = idk[place_of_row]
            other = trainer.tokenizer.decode([i for i, y in zip(ids, labels, strict=True) if y != -100][:-1])
        pairs.append((row, other, None if drawn is None else retain[drawn]))
    loss = literal_loss(literal, before, trainer.tokenizer, pairs, options)
    loss.backward()
    expected = {n: p.grad for n, p in literal.named_parameters() if p.grad is not None}
    found = {n: value for n, value in found.items() if n in expected}
    assert relative_difference(found, expected) < 2e-5
    assert losses(trainer)[0] == pytest.approx(loss.item(), rel=1e-4)


def test_ascent_lowers_and_npo_lowers_less_what_is_retained_stays(tiny_dir, place):
    logged = {}
    for name, more in (("ga", {}), ("npo", {}), ("graddiff", {"forget_weight": 0.05})):
        options = {**LOSSES[name], **more}
        trainer = build(tiny_dir, place, retain=kept(options), max_steps=8, learning_rate=2e-3, **options)
        trainer.train()
        history = [e for e in trainer.state.log_history if "unlearning/forget_loss" in e]
        logged[name] = [e["unlearning/forget_loss"] for e in history]
        if name == "graddiff":
            retain = [e["unlearning/retain_loss"] for e in history]
            assert retain[-1] < retain[0]
    assert logged["ga"][-1] < logged["ga"][0] - 0.5
    assert logged["npo"][-1] < logged["npo"][0]


# ---- splits, pairs ----


@pytest.mark.parametrize("name", LOSSES)
def test_an_update_does_not_depend_on_the_split(name, tiny_dir, place):
    options, found = LOSSES[name], []
    for size, steps in ((8, 1), (4, 2), (2, 4)):
        layout = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "max_steps": 1}
        found.append(gradients(build(tiny_dir, place, retain=kept(options), **options, **layout)))
    assert max(relative_difference(other, found[0]) for other in found[1:]) < 1e-5


def test_partners_change_with_the_epoch_and_follow_from_the_seed(tiny_dir, place):
    options = {**LOSSES["graddiff"], "retain": rows(30, first=20)}
    trainer = build(tiny_dir, place, **options)
    drawn = [[trainer.partners.drawn(row, epoch) for row in range(8)] for epoch in (0, 1)]
    again = build(tiny_dir, place, **options)
    assert drawn[0] == [again.partners.drawn(row, 0) for row in range(8)]
    assert drawn[0] != drawn[1]
    other = build(tiny_dir, place, pairing_seed=77, **options)
    assert drawn[0] != [other.partners.drawn(row, 0) for row in range(8)]


def test_anchored_on_rows_to_retain_every_one_of_them_comes_once(tiny_dir, place):
    trainer = build(tiny_dir, place, retain=rows(12, first=20), anchor="retain", **LOSSES["graddiff"])
    assert len(trainer.train_dataset) == 12 and len(trainer.partners.others) == 8
    trainer.train()
    assert all(torch.isfinite(torch.tensor(losses(trainer))))


# ---- the reference ----


@pytest.mark.parametrize("name", ["npo", "dpo", "kl", "rmu"])
def test_without_its_adapter_the_model_is_the_copy(name, tiny_dir, place):
    options = {**LOSSES[name], "max_steps": 3, "learning_rate": 1e-2}
    retain = kept(options)
    trainer = build(tiny_dir, place, retain=retain, peft_config=LORA, reference="adapter_off", **options)
    seen = {}

    def watch(batches):
        UnlearnTrainer.finish_batches(trainer, batches)
        seen.update(copy.deepcopy(batches[0]))

    trainer.finish_batches = watch
    trainer.train()
    rows_of_batch = torch.arange(len(seen["role"]))
    before = fresh_model(tiny_dir)
    own = trainer.reference.sums(seen, rows_of_batch)
    inputs = {key: seen[key] for key in ("input_ids", "attention_mask")}
    logits = before(**inputs).logits.log_softmax(-1)[:, :-1]
    labels = seen["labels"][:, 1:]
    expected = (logits.gather(2, labels.clamp(min=0).unsqueeze(2)).squeeze(2) * (labels != -100)).sum(1)
    assert torch.allclose(own, expected, atol=1e-6 * float(expected.abs().max()))
    moved = fresh_model(tiny_dir)
    assert trainer.reference.sha == build(moved, place, retain=retain, **options).reference.sha


@pytest.mark.parametrize("name", ["npo", "dpo", "idkdpo"])
def test_measured_beforehand_the_reference_gives_the_same_run(name, tiny_dir, place):
    options = {**LOSSES[name], "max_steps": 4}
    found = []
    for reference in ("copy", "precomputed"):
        trainer = build(tiny_dir, place, retain=kept(options), **{**options, "reference": reference})
        trainer.train()
        found.append(weights(trainer))
    assert max(float((found[0][k] - found[1][k]).abs().max()) for k in found[0]) < 1e-5


@pytest.mark.parametrize("reference", ["copy", "adapter_off"])
@pytest.mark.parametrize("name", ["npo", "dpo", "kl", "rmu"])
def test_in_mixed_precision_the_reference_is_read_as_the_model_is(name, reference, tiny_dir, place):
    """Before the first update both are the same model."""
    options = {**LOSSES[name], "reference": reference, "bf16": True, "max_steps": 1}
    lora = LORA if reference == "adapter_off" else None
    trainer = build(tiny_dir, place, retain=kept(options), peft_config=lora, **options)
    trainer.train()
    quantity = {"npo": "log_ratio", "dpo": "alternate_log_ratio"}.get(name, "retain_loss")
    first = next(entry for entry in trainer.state.log_history if f"unlearning/{quantity}" in entry)
    assert first[f"unlearning/{quantity}"] == 0.0


def test_a_model_given_by_its_path_is_copied_in_the_precision_it_is_trained_in(tiny_dir, place):
    half = place.parent / "half"
    fresh_model(tiny_dir).to(torch.bfloat16).save_pretrained(half)
    trainer = UnlearnTrainer(
        model=str(half),
        args=UnlearnConfig(output_dir=str(place), **{**COMMON, "reference": "copy", "max_steps": 1}),
        train_dataset=rows(8),
        processing_class=AutoTokenizer.from_pretrained(tiny_dir),
    )
    assert next(trainer.model.parameters()).dtype == next(trainer.reference.frozen.parameters()).dtype == torch.float32


def test_a_copy_of_another_model_is_refused(tiny_dir, place, monkeypatch):
    other = fresh_model(tiny_dir)
    with torch.no_grad():
        next(other.parameters())[0, 0] += 1e-3
    module = "posttrain.methods.unlearning_paths.trainer"
    monkeypatch.setattr(f"{module}.frozen_copy", lambda model, args: other)
    with pytest.raises(ConfigError, match="the copy is not the model that training starts from"):
        build(tiny_dir, place)


def test_a_local_loss_never_touches_rows_to_retain(tiny_dir, place):
    trainer = build(tiny_dir, place, **LOSSES["npo"])
    assert trainer.partners.others == []
    trainer.train()


# ---- resume ----


@pytest.mark.parametrize("reference", ["copy", "precomputed", "adapter_off"])
def test_a_resumed_run_is_bit_equal(reference, tiny_dir, place):
    lora = LORA if reference == "adapter_off" else None
    layout = {"reference": reference, "max_steps": 5, "save_strategy": "steps", "save_steps": 3, "retain_weight": 1.0}
    whole = build(tiny_dir, place, retain=rows(9, first=20), peft_config=lora, **layout)
    whole.train()
    rest = build(tiny_dir, place, retain=rows(9, first=20), peft_config=lora, **layout)
    torch.manual_seed(5)
    rest.train(resume_from_checkpoint=str(place / "checkpoint-3"))
    assert all(torch.equal(value, weights(rest)[name]) for name, value in weights(whole).items())
    assert losses(rest) == losses(whole)


def test_another_model_before_unlearning_is_refused_at_resume(tiny_dir, place):
    build(tiny_dir, place, save_strategy="steps", save_steps=1).train()
    other = fresh_model(tiny_dir)
    with torch.no_grad():
        next(other.parameters())[0, 0] += 1e-3
    again = build(other, place)
    with pytest.raises(ResumeError, match="the model that training starts from: .* not those it was begun with"):
        again.train(resume_from_checkpoint=str(place / "checkpoint-1"))


# ---- parameters ----


def test_only_the_named_parameters_are_trained(tiny_dir, place):
    chosen = [r"model\.layers\.0\..*"]
    trainer = build(tiny_dir, place, trainable_params_regex=chosen, **LOSSES["ga"])
    before = weights(trainer)
    trainer.train()
    moved = {name for name, value in weights(trainer).items() if not torch.equal(value, before[name])}
    assert moved and all(name.startswith("model.layers.0.") for name in moved)


# ---- what is refused ----


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"retain": rows(2, first=20)}, ConfigError, r"data\.retain: rows to retain are given"),
        ({"retain_weight": 1.0}, ConfigError, r"data\.retain: the retain loss has no rows"),
        ({"unlearn_loss": "graddiff", "retain_weight": 0.0}, ConfigError, "graddiff without rows to retain is ga"),
        ({"beta": 0.0}, ConfigError, r"beta: out of range"),
        ({"steering_coeff": 0.0}, ConfigError, r"steering_coeff: out of range"),
        ({"unlearn_loss": "forget"}, ConfigError, r"unlearn_loss"),
        ({"packing": True}, SupportError, "a loss of a sequence needs the sequence's boundaries"),
        ({"forget": rows(0)}, DataError, r"data\.train: there are no rows"),
        (
            {"forget": rows(8).remove_columns("alternate"), "unlearn_loss": "dpo"},
            DataError,
            r"alternate_column: dpo needs an answer",
        ),
        ({"unlearn_loss": "idkdpo", "idk_responses": [" "]}, ConfigError, "an answer is empty"),
        ({"unlearn_loss": "idkdpo", "idk_responses": ["long " * 500]}, DataError, "instead are longer than a row"),
        ({"reference": "adapter_off"}, ConfigError, r"reference: the model has no adapter to switch off"),
        ({"retain": rows(4, first=6), "retain_weight": 1.0}, DataError, "2 of 4 rows; rows to forget 6, 7"),
        ({"unlearn_loss": "rmu", "module_regex": r"model\.layers\.\d"}, ConfigError, "matches 2.*model.layers.0"),
        ({"unlearn_loss": "rmu", "module_regex": "none"}, ConfigError, "matches 0.*model.layers.0"),
        ({"trainable_params_regex": ["none"]}, ConfigError, "no parameter would be trained"),
        (
            {"retain": rows(4, first=20), "retain_weight": 1.0, "retain_loss": "kl", "reference": "precomputed"},
            ConfigError,
            "retain_loss kl needs the model before unlearning itself",
        ),
    ],
)
def test_what_cannot_work_is_refused(changes, error, message, tiny_dir, place):
    with pytest.raises(error, match=message):
        build(tiny_dir, place, **changes)


def test_an_adapter_that_has_learnt_is_no_reference(tiny_dir, place):
    trained = build(tiny_dir, place, peft_config=LORA, reference="adapter_off", **LOSSES["ga"])
    trained.train()
    with pytest.raises(ConfigError, match="the adapter is not zero at the start"):
        build(trained.model, place, reference="adapter_off")


def test_rows_in_both_sets_are_allowed_if_that_is_said(tiny_dir, place):
    assert build(tiny_dir, place, retain=rows(4, first=6), retain_weight=1.0, allow_overlap=True).partners.others

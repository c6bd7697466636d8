"""`SupervisedTrainer`: formats, columns, the replaceable loss, evaluation, numbers in the log."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from posttrain.errors import ConfigError, DataError, SupportError
from posttrain.losses.reductions import LossOutput
from posttrain.seam.groups.row_index import blank_rows
from posttrain.seam.supervised.trainer import SupervisedConfig, SupervisedTrainer
from tests.batteries.runs import COMMON, SUPERVISED, build, dataset, fresh_model, gradients, relative_difference

ONE_STEP = {"max_steps": 1, "max_grad_norm": 0.0, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
FORMATS = {
    "messages": [
        {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "s" * (1 + i)}]}
        for i in range(4)
    ],
    "text": [{"text": "abc" * (1 + i)} for i in range(4)],
    "prompt and completion": [{"prompt": f"{i}?", "completion": "s" * (1 + i)} for i in range(4)],
    "chat prompt and completion": [
        {
            "prompt": [{"role": "user", "content": f"{i}?"}],
            "completion": [{"role": "assistant", "content": "s" * (1 + i)}],
        }
        for i in range(4)
    ],
    "token ids": [{"input_ids": [5, 6, 7, 8 + i], "labels": [-100, 6, 7, 8 + i]} for i in range(4)],
}


class Native(SFTTrainer):
    """Plain TRL that remembers its gradient."""

    def _get_grad_norm(self, model, grad_norm=None):
        self.caught = {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}
        return super()._get_grad_norm(model, grad_norm)


def native(tiny_dir, folder, data, **overrides):
    arguments = {**COMMON, **SUPERVISED, "bf16": False, "gradient_checkpointing": False, **overrides}
    return Native(
        model=fresh_model(tiny_dir),
        args=SFTConfig(output_dir=str(folder), **arguments),
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(tiny_dir),
    )


# ---- formats ----


@pytest.mark.parametrize(
    ("name", "more"),
    [*((name, {}) for name in FORMATS), ("messages", {"assistant_only_loss": True})],
    ids=[*FORMATS, "assistant only"],
)
def test_formats_that_trl_knows_train_as_with_trl(name, more, tiny_dir, tmp_path):
    data = Dataset.from_list(FORMATS[name])
    plain = native(tiny_dir, tmp_path / "trl", data, **ONE_STEP, **more)
    plain.train()
    caught = gradients(build("sft", tiny_dir, tmp_path / "ours", data=data, **ONE_STEP, **more))
    assert sum(float((value**2).sum()) for value in plain.caught.values()) > 0
    assert relative_difference({key: caught[key] for key in plain.caught}, plain.caught) < 1e-5


def test_assistant_only_labels_leave_the_prompt_out(tiny_dir, tmp_path):
    data = Dataset.from_list(FORMATS["messages"])
    trainer = build("sft", tiny_dir, tmp_path, data=data, assistant_only_loss=True)
    batch = next(iter(trainer.get_train_dataloader()))
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        trained = trainer.processing_class.decode(ids[labels != -100]).replace("<|im_end|>", "").strip()
        assert trained and set(trained) == {"s"}


def test_demonstrations_need_the_tokenizer(tiny_dir, tmp_path):
    args = SupervisedConfig(output_dir=str(tmp_path), report_to="none")
    with pytest.raises(ConfigError, match=r"processing_class: the tokenizer is needed"):
        SupervisedTrainer(str(tiny_dir), args, dataset())


def test_other_arguments_are_refused(tiny_dir, tmp_path):
    with pytest.raises(ConfigError, match=r"got 'SFTConfig'; allowed: SupervisedConfig"):
        SupervisedTrainer(str(tiny_dir), SFTConfig(output_dir=str(tmp_path), bf16=False), dataset())


def test_a_row_that_cannot_be_used_is_named(tiny_dir, tmp_path):
    with pytest.raises(DataError, match=r"train row 0.*at most 8 \(trainer.max_length\)"):
        build("sft", tiny_dir, tmp_path, max_length=8)


def test_a_demonstration_of_messages_is_no_empty_one(tiny_dir, tmp_path):
    rows = Dataset.from_list([{"prompt": "a", "solution": [{"role": "assistant", "content": "b"}]}] * 2)
    with pytest.raises(DataError, match=r"train row 0, column 'solution': a demonstration is text .*TRL's columns"):
        build("sft", tiny_dir, tmp_path, data=rows)


def test_packing_and_a_mean_over_sequences_do_not_go_together(tiny_dir, tmp_path):
    with pytest.raises(SupportError, match=r"method.loss_aggregation.*allowed: token_mean while trainer.packing"):
        build("sft", tiny_dir, tmp_path, packing=True, loss_aggregation="seq_mean_token_mean")


def test_rows_without_padding_and_a_mean_over_sequences_do_not_go_together(tiny_dir, tmp_path):
    with pytest.raises(SupportError, match=r"loss_aggregation.*allowed: token_mean while trainer.padding_free is"):
        build("sft", tiny_dir, tmp_path, padding_free=True, loss_aggregation="seq_mean_token_mean")


@pytest.mark.parametrize(
    "layout", [{}, {"padding_free": True, "max_length": None}, {"packing": True, "max_length": 96}], ids=str
)
def test_rows_that_fill_up_a_batch_lose_their_labels_in_any_layout(layout, tiny_dir, tmp_path):
    trainer = build("sft", tiny_dir, tmp_path, **layout, **ONE_STEP)
    rows = [trainer.train_dataset[i] for i in range(3)]
    batch = trainer.data_collator([dict(row) for row in rows])
    flat = batch["labels"].size(0) == 1
    assert flat == bool(layout)
    begin = len(rows[0]["input_ids"]) if flat else batch["labels"].size(1)
    before = batch["labels"].flatten().clone()
    blank_rows(batch, 1)
    after = batch["labels"].flatten()
    assert torch.equal(after[:begin], before[:begin]) and (before[begin:] != -100).any()
    assert (after[begin:] == -100).all()


# ---- columns and loss ----


class Weighted(SupervisedTrainer):
    """Every row's loss times its `quality`; a number of its own in the log."""

    extra_columns = ("quality", "answer")

    def token_loss(self, log_probs, label_mask, batch):
        self.seen = [*getattr(self, "seen", []), batch["quality"].tolist()]
        assert len(batch["answer"]) == log_probs.size(0) == batch["quality"].size(0)
        assert [float(answer) / 8 for answer in batch["answer"]] == batch["quality"].tolist()
        values = -log_probs * batch["quality"].unsqueeze(1)
        return LossOutput(values, "token_mean", {"mine/quality": batch["quality"].mean()})


def quality_rows():
    rows = dataset(4)
    return rows.add_column("quality", [0.0, 1.0, 2.0, 3.0])


def test_a_column_reaches_the_loss_of_its_row(tiny_dir, tmp_path):
    trainer = build("sft", tiny_dir, tmp_path, data=quality_rows(), trainer_class=Weighted, **ONE_STEP)
    caught = gradients(trainer)
    assert sorted(sum(trainer.seen, [])) == [0.0, 1.0, 2.0, 3.0]
    (logged,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logged["mine/quality"] == pytest.approx(1.5)

    model, total, tokens = fresh_model(tiny_dir), 0.0, 0
    for row in trainer.train_dataset:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])[1:]
        logps = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        kept = labels != -100
        picked = logps[kept].gather(-1, labels[kept].unsqueeze(-1))
        total, tokens = total - row["quality"] * picked.sum(), tokens + int(kept.sum())
    (total / tokens).backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert relative_difference({name: caught[name] for name in expected}, expected) < 1e-5


def test_columns_and_packing_do_not_go_together(tiny_dir, tmp_path):
    with pytest.raises(SupportError, match=r"trainer.packing: a packed row holds several sequences"):
        build("sft", tiny_dir, tmp_path, data=quality_rows(), trainer_class=Weighted, packing=True)


def test_a_replaced_loss_does_not_depend_on_the_split(tiny_dir, tmp_path):
    found = [
        gradients(
            build(
                "sft",
                tiny_dir,
                tmp_path / str(rows),
                data=quality_rows(),
                trainer_class=Weighted,
                **{**ONE_STEP, "per_device_train_batch_size": rows, "gradient_accumulation_steps": 4 // rows},
            )
        )
        for rows in (4, 2, 1)
    ]
    assert relative_difference(found[1], found[0]) < 1e-5
    assert relative_difference(found[2], found[0]) < 1e-5


def test_dft_weighs_every_token_by_its_own_probability(tiny_dir, tmp_path):
    """The gradient of -p * log p with p held fixed, row by row (arXiv 2508.05629, eq. 9)."""
    trainer = build("sft", tiny_dir, tmp_path, data=dataset(4), loss_type="dft", **ONE_STEP)
    caught = gradients(trainer)
    model, total, tokens = fresh_model(tiny_dir), 0.0, 0
    for row in trainer.train_dataset:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])[1:]
        logps = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        kept = labels != -100
        picked = logps[kept].gather(-1, labels[kept].unsqueeze(-1))
        total, tokens = total - (picked.detach().exp() * picked).sum(), tokens + int(kept.sum())
    (total / tokens).backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert relative_difference({name: caught[name] for name in expected}, expected) < 1e-5


# ---- numbers ----


def test_entropy_and_accuracy_are_measured_in_logged_steps_only(tiny_dir, tmp_path):
    class Spy(SupervisedTrainer):
        def token_loss(self, log_probs, label_mask, batch):
            self.asked = [*getattr(self, "asked", []), self._scoring.outputs]
            return super().token_loss(log_probs, label_mask, batch)

    trainer = build("sft", tiny_dir, tmp_path, trainer_class=Spy, max_steps=4, logging_steps=2)
    trainer.train()
    measured = ["entropy" in outputs for outputs in trainer.asked]
    assert measured == [False, False, True, True] * 2  # two micro-batches a step
    for entry in (entry for entry in trainer.state.log_history if "loss" in entry):
        assert 0 < entry["entropy"] < 10 and 0 <= entry["mean_token_accuracy"] <= 1


def test_logged_numbers_are_those_of_the_step(tiny_dir, tmp_path):
    trainer = build("sft", tiny_dir, tmp_path, data=dataset(4), **ONE_STEP)
    trainer.train()
    (logged,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    model, nll, entropy, right, tokens = fresh_model(tiny_dir), 0.0, 0.0, 0, 0
    for row in trainer.train_dataset:
        labels = torch.tensor(row["labels"])[1:]
        kept = labels != -100
        logps = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1].log_softmax(-1)[kept]
        nll -= logps.gather(-1, labels[kept].unsqueeze(-1)).sum().item()
        entropy -= (logps.exp() * logps).sum().item()
        right += int((logps.argmax(-1) == labels[kept]).sum())
        tokens += int(kept.sum())
    assert logged["loss"] == pytest.approx(nll / tokens, rel=1e-4)
    assert logged["entropy"] == pytest.approx(entropy / tokens, rel=1e-4)
    assert logged["mean_token_accuracy"] == pytest.approx(right / tokens)
    assert logged["num_tokens"] == sum(len(row["input_ids"]) for row in trainer.train_dataset)


@pytest.mark.parametrize("aggregation", ["token_mean", "seq_mean_token_mean"])
def test_evaluation_rows_are_encoded_and_scored(aggregation, tiny_dir, tmp_path):
    held_out = dataset(8).select([6, 7])
    trainer = build(
        "sft",
        tiny_dir,
        tmp_path,
        data=dataset(4),
        loss_aggregation=aggregation,
        per_device_eval_batch_size=2,
        trainer_kwargs={"eval_dataset": held_out},
        **ONE_STEP,
    )
    metrics = trainer.evaluate()
    model, sums, counts = fresh_model(tiny_dir), [], []
    for row in trainer.eval_dataset:
        labels = torch.tensor(row["labels"])[1:]
        kept = labels != -100
        logps = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1].log_softmax(-1)[kept]
        sums.append(-logps.gather(-1, labels[kept].unsqueeze(-1)).sum().item())
        counts.append(int(kept.sum()))
    means = {
        "token_mean": sum(sums) / sum(counts),
        "seq_mean_token_mean": (sums[0] / counts[0] + sums[1] / counts[1]) / 2,
    }
    assert counts[0] != counts[1]
    assert metrics["eval_loss"] == pytest.approx(means[aggregation], rel=1e-5)
    assert 0 < metrics["eval_entropy"] < 10

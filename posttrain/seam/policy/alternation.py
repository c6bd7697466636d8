"""Training that is supervised in some optimizer steps and learns from rollouts in the others.

One model, one optimizer, one schedule. A supervised step takes its rows from the demonstrations of the training data
and generates nothing; a policy step is that of `PolicyTrainer`. Each kind draws from an order of its own, so neither
skips rows because of the other.

Axes: B rows of a micro-batch, P prompt tokens, T completion tokens, G rollouts per prompt.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from accelerate.utils import broadcast
from torch import Tensor

from posttrain.data.rendering import encode_prompt, template_inputs
from posttrain.errors import DataError, SupportError
from posttrain.losses.reductions import token_weights
from posttrain.seam.arguments import option
from posttrain.seam.policy.batches import RolloutBatch, trainable_mask, trim_padding
from posttrain.seam.policy.demonstrations import DemonstrationConfig, DemonstrationTrainer
from posttrain.seam.row_use import RowUse, demonstration_use
from posttrain.seam.sampling import EpochRepeatSampler, EpochSampler

StepKind = Literal["policy", "supervised"]
_KINDS: tuple[StepKind, ...] = get_args(StepKind)
# Added to the data seed: the demonstrations must not come in the order of the prompts.
DEMONSTRATION_SEED = 7919


@dataclass
class AlternationConfig(DemonstrationConfig):
    """A policy method some of whose optimizer steps are supervised."""

    prompt_shares: ClassVar[Literal["changing", "fixed", "none"]] = "fixed"

    sft_per_device_batch_size: int | None = option(
        None, help="Demonstrations of a supervised micro-step. None = per_device_train_batch_size.", ge=1
    )
    sft_learning_rate: float | None = option(
        None, help="Peak learning rate of supervised steps; the schedule's shape is shared. None = shared.", gt=0.0
    )
    allow_stale_rollouts: bool = option(
        False, help="Keep rollouts in flight over a supervised step, with the log-probs of their own time."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        scheduler = str(getattr(self.lr_scheduler_type, "value", self.lr_scheduler_type))
        if self.sft_learning_rate is not None and scheduler in ("reduce_lr_on_plateau", "greedy"):
            raise SupportError(
                "this schedule changes the rate in place, so two rates would mix",
                where="method.sft_learning_rate",
                got=f"{self.sft_learning_rate} with trainer.lr_scheduler_type {scheduler}",
                fix="Choose another schedule, or remove method.sft_learning_rate",
            )

    @property
    def sft_rows(self) -> int:
        """Demonstrations of a supervised micro-step of one rank."""
        return self.sft_per_device_batch_size or self.per_device_train_batch_size


class AlternatingTrainer(DemonstrationTrainer):
    """Policy trainer that asks `choose_step` before each optimizer step which kind it is.

    `choose_step` (every rank, once per optimizer step, before its first micro-batch; rank 0's answer counts). A
    supervised step: token mean of - log pi over `sft_rows` demonstrations per micro-step and rank, global counts, no
    generation, no KL term. After it rollouts in flight are dropped, unless `allow_stale_rollouts`, and the inference
    engine takes the new weights before it generates again. `step_kind` says what the current step is, e.g. in
    `on_grad_norm`.

    A checkpoint holds the places in both orders, beside what `PolicyTrainer` saves.
    """

    config_class = AlternationConfig
    args: AlternationConfig
    step_kind: StepKind = "policy"

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._chosen_at = -1
        self._window_start = 0
        self._places = {"prompts": [0, 0], "demonstrations": [0, 0]}  # kind -> [epoch, place in it]
        self._orders: dict[str, tuple[int, Any]] = {}
        self._demonstrated = self._rows_with_demonstration()
        needed = self.demonstrations_per_step
        if len(self._demonstrated) < needed:
            raise DataError(
                "fewer demonstrations than a supervised step takes",
                where="data.train",
                got=f"{len(self._demonstrated)} of {len(self.train_dataset)} rows have one that can be used",
                allowed=f"at least {needed} (method.sft_per_device_batch_size x gradient accumulation x processes)",
                fix="Add rows, or lower method.sft_per_device_batch_size",
            )

    # ---- hooks for methods ----

    def choose_step(self, global_step: int) -> StepKind:
        """Kind of the optimizer step after `global_step` finished ones; see the class. Default: policy."""
        return "policy"

    def on_step_chosen(self, kind: StepKind) -> None:
        """The kind that all ranks take; every rank, right after `choose_step`. Default: nothing."""

    @property
    def demonstrations_per_step(self) -> int:
        """Demonstrations of a supervised optimizer step, over micro-batches and ranks."""
        return self.args.sft_rows * self.args.gradient_accumulation_steps * self.args.world_size

    @property
    def num_demonstrations(self) -> int:
        """Training rows with a demonstration that can be used."""
        return len(self._demonstrated)

    def probe_batch(self) -> dict[str, Any]:
        """The first usable demonstrations of the data, one supervised micro-batch, the same on every rank."""
        return self._demonstration_batch(self._demonstrated[: self.args.sft_rows])

    # ---- data ----

    def row_use(self) -> list[RowUse]:
        size, is_shuffled = self.demonstrations_per_step, self.shuffle_dataset
        return [*super().row_use(), demonstration_use(self.num_demonstrations, size=size, is_shuffled=is_shuffled)]

    def _rows_with_demonstration(self) -> list[int]:
        """Indices of the rows that supervised steps draw from; those left out are counted in the log."""
        if not hasattr(self.train_dataset, "__getitem__") or not hasattr(self.train_dataset, "__len__"):
            raise DataError(
                "supervised steps draw rows by number, which a stream does not have",
                where="data.train",
                got=type(self.train_dataset).__name__,
                fix="Load the data as a table; a warm-up in epochs needs its length, too",
            )
        column, found = self.args.demonstration_column, []
        for index, text in enumerate(self.train_dataset[column]):
            if not isinstance(text, str) or not text.strip():
                continue
            if self.args.overlong_demonstration == "drop" and self._completion(self.train_dataset[index]) is None:
                continue
            found.append(index)
        return found

    def _prompt(self, row: Mapping[str, Any]) -> list[int]:
        return encode_prompt(self.tokenizer, row["prompt"], **template_inputs(row, self.chat_template_kwargs))

    def _completion(self, row: Mapping[str, Any]) -> list[int] | None:
        return self.encoded_demonstration(row, prompt_ids=self._prompt(row))

    def _get_train_sampler(self, dataset: Any = None) -> EpochRepeatSampler:
        # The loader's own batches are not used: it moves on in supervised steps, too.
        sampler = super()._get_train_sampler(dataset)
        self._orders.clear()
        self._prompt_order = copy.copy(sampler)
        self._demonstration_order = EpochSampler(
            self._demonstrated, seed=sampler.seed + DEMONSTRATION_SEED, shuffle=self.shuffle_dataset
        )
        return sampler

    def _epoch_of(self, kind: str, epoch: int) -> list[Any]:
        """Blocks of prompts, or places of demonstrations, in the order of an epoch."""
        if self._orders.get(kind, (-1, None))[0] != epoch:
            order: EpochSampler = self._prompt_order if kind == "prompts" else self._demonstration_order
            order.set_epoch(epoch)
            drawn = list(self._prompt_order.blocks()) if kind == "prompts" else order.order()
            self._orders[kind] = (epoch, drawn)
        return self._orders[kind][1]

    def _draw(self, kind: str, count: int) -> list[Any]:
        """The next entries of an order; what an epoch has left over for less than `count` is not used."""
        epoch, place = self._places[kind]
        if place + count > len(self._epoch_of(kind, epoch)):
            epoch, place = epoch + 1, 0
        self._places[kind] = [epoch, place + count]
        return self._epoch_of(kind, epoch)[place : place + count]

    def _next_prompts(self, count: int) -> list[dict[str, Any]]:
        """This rank's rows of the next generation batch, each prompt G times."""
        (block,) = self._draw("prompts", 1)
        repeated = [index for index in block for _ in range(self.num_generations)]
        first = self.args.process_index * count
        return [self.train_dataset[index] for index in repeated[first : first + count]]

    # ---- one optimizer step ----

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        samples, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if samples:
            self._begin_step()
        return samples, num_items

    def _begin_step(self) -> None:
        """Settle the kind of the coming step on all ranks; no random number of the process is drawn here, since
        transformers 5.17 restores their state after this on resume.
        """
        step = self.state.global_step
        if self._chosen_at == step:
            raise SupportError(
                "the kind of a step was chosen twice", where=f"optimizer step {step + 1}", got=self.name
            )
        self._chosen_at = step
        chosen = torch.tensor(_KINDS.index(self.choose_step(step)), device=self.accelerator.device)
        self.step_kind = _KINDS[int(broadcast(chosen))]
        self.on_step_chosen(self.step_kind)
        if self.step_kind == "supervised":
            self._window_start, self._window_loss = self._step, []
            self._window = self._supervised_window()

    def _supervised_window(self) -> list[dict[str, Any]]:
        args = self.args
        drawn = [self._demonstrated[place] for place in self._draw("demonstrations", self.demonstrations_per_step)]
        # Rows lie as a data loader would spread them: micro-step by micro-step, rank by rank.
        firsts = [
            (step * args.world_size + args.process_index) * args.sft_rows
            for step in range(args.gradient_accumulation_steps)
        ]
        window = [self._demonstration_batch(drawn[first : first + args.sft_rows]) for first in firsts]
        masks = [trainable_mask(tensors) for tensors in window]
        counts = self.count_window(masks)
        for tensors, mask in zip(window, masks, strict=True):
            tensors["loss_weights"] = token_weights(mask, reduction="token_mean", counts=counts)
        self.add_cost("demonstrations", counts.rows)
        self.add_cost("demonstration_tokens", counts.tokens)
        missing = 1.0 - len(self._demonstrated) / len(self.train_dataset)
        self.log_metric("sft/missing_demonstration_fraction", missing, training=True)
        return [trim_padding(tensors) for tensors in window]

    def _demonstration_batch(self, indices: list[int]) -> dict[str, Any]:
        """Rows of the training data as a batch whose completions are their demonstrations."""
        prompts, completions = [], []
        for index in indices:
            row = self.train_dataset[index]
            prompts.append(self._prompt(row))
            completions.append(self._completion(row) or [])
        pad, device = self.tokenizer.pad_token_id, self.accelerator.device
        width, length = max(map(len, prompts)), max(1, *map(len, completions))
        prompt_ids = torch.tensor([[pad] * (width - len(ids)) + ids for ids in prompts], device=device)
        completion_ids = torch.tensor([ids + [pad] * (length - len(ids)) for ids in completions], device=device)
        prompt_size = torch.tensor([len(ids) for ids in prompts], device=device).unsqueeze(1)
        completion_size = torch.tensor([len(ids) for ids in completions], device=device).unsqueeze(1)
        mask = (torch.arange(length, device=device) < completion_size).long()
        advantages = torch.ones(len(indices), device=device)
        return {
            "prompt_ids": prompt_ids,
            "prompt_mask": (torch.arange(width, device=device) >= width - prompt_size).long(),
            "completion_ids": completion_ids,
            "completion_mask": mask,
            "trainable_mask": mask,
            "advantages": advantages,
            "is_demonstration": torch.ones_like(advantages, dtype=torch.bool),
            # Read by the KL term and replaced there: a demonstration's divergence is not penalised.
            "ref_per_token_logps": torch.zeros_like(mask, dtype=torch.float32),
            "row_index": torch.tensor(indices, device=device),
        }

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        if not self.model.training:
            return super()._prepare_inputs(generation_batch)
        if self.step_kind == "supervised":
            return self._window[self._step - self._window_start]
        if self._step % self._block == 0 or self._buffered_inputs is None:
            generation_batch = self._next_prompts(len(generation_batch))
        return super()._prepare_inputs(generation_batch)

    @property
    def _block(self) -> int:
        """Micro-steps that use one generation batch."""
        return self.args.steps_per_generation * self.num_iterations

    def prepare_rollouts(self, rollouts: RolloutBatch) -> RolloutBatch:
        self.prepare_evaluation(rollouts.tensors)
        return rollouts

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        if self.args.sft_learning_rate is not None:
            supervised = self.step_kind == "supervised"
            factor = self.args.sft_learning_rate / self.args.learning_rate if supervised else 1.0
            for group, rate in zip(self.optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True):
                group["lr"] = rate * factor
        if self.step_kind == "supervised":
            self._leave_supervised_step()
        return norm

    def _leave_supervised_step(self) -> None:
        """Take back trl's count of micro-steps, which is the place in a block of rollouts, and drop what is stale."""
        self._step = self._window_start
        self._last_loaded_step = -1  # trl 1.16: weights are given to the inference engine before it generates again
        place = self._step % self._block
        if place and not self.args.allow_stale_rollouts:
            self.log_metric("rollout/discarded_fraction", 1.0 - place / self._block, training=True)
            self._step, self._buffered_inputs = self._step + self._block - place, None

    def _log_metrics(self, mode: str, metrics: Mapping[str, float | Tensor], tokens: Tensor) -> None:
        if mode == "train":
            # What the other kind of step measures would drag the averages of the log.
            supervised = self.step_kind == "supervised"
            metrics = {name: value for name, value in metrics.items() if name.startswith("sft/") == supervised}
        super()._log_metrics(mode, metrics, tokens)

    def describe_window(self) -> str:
        """Training rows of this rank's micro-batches whose loss is not finite."""
        if self.step_kind == "policy":
            return super().describe_window()
        bad = [i for i, loss in enumerate(self._window_loss) if not torch.isfinite(loss)]
        rows = [int(row) for i in bad for row in self._window[i]["row_index"]]
        return f"Non-finite loss of the demonstrations of training rows {rows[:16]}" if bad else ""

    # ---- checkpoint ----

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self._chosen_at, self.step_kind = -1, "policy"
        self._places = {"prompts": [0, 0], "demonstrations": [0, 0]}
        return super().train(*args, **kwargs)

    def rank_state(self) -> dict[str, Any]:
        return {**super().rank_state(), "places": self._places}

    def load_rank_state(self, state: dict[str, Any]) -> None:
        super().load_rank_state(state)
        self._places = state["places"]

    def _layout(self) -> dict[str, Any]:
        return {**super()._layout(), "sft_rows": self.args.sft_rows}

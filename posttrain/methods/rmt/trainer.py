"""Reinforcement mid-training: RL on raw text with a shrinking thinking budget, easy tokens first, and the ordinary
next-token loss beside it.

Papers: arXiv 2509.24375 (RMT), arXiv 2506.08007 (RPT). Left out: refilling a batch for groups that dynamic sampling
drops.
"""

from __future__ import annotations

import bisect
from collections.abc import Sized
from typing import Any

import torch
from torch import Tensor

from posttrain.data.rendering import completion_text
from posttrain.errors import ConfigError, DataError
from posttrain.losses.advantages import group_advantages
from posttrain.losses.reductions import LossOutput, token_weights
from posttrain.methods.rmt import corpus
from posttrain.methods.rmt.config import RMTConfig
from posttrain.methods.rmt.questions import TIERS
from posttrain.methods.rmt.token_curriculum import TierDraws
from posttrain.models.loading import load_model
from posttrain.rewards.length_budget import OPEN_THINK, length_reward, thought_span
from posttrain.rewards.next_token import predicted_text
from posttrain.seam.policy.batches import PolicyBatch, RolloutBatch, trainable_mask
from posttrain.seam.policy.likelihood_rows import LikelihoodRowsTrainer
from posttrain.seam.sampling import EpochRepeatSampler


class RMTTrainer(LikelihoodRowsTrainer):
    """Policy trainer that asks for tokens of its training documents and learns the other tokens by likelihood.

    Construction (first process first): the corpus is scored, unless an index is there. `train_order`
    (once per `train()`): tokens by the curriculum. `prepare_prompts` (each generation batch, this rank's rows): the
    question, with the step's budget. `completion_budget` (likewise): twice the budget and a margin.
    `prepare_rollouts` (likewise; three gathers): rewards with the length reward, advantages, one row for each
    document. `loss_weights` (once per optimizer step, one all-reduce): global means of both parts.

    A checkpoint holds the length T of the run, so that budget and curriculum go on where they were, and whether a
    prediction was ever readable. Draws follow from seed and block.

    Deviation: where a generation batch spans several optimizer steps, the tokens drawn for all of it are left out of
    the next-token loss, and its documents are spread over these steps.
    """

    config_class = RMTConfig
    args: RMTConfig
    name = "RMT"
    _kept = "budget and curriculum keep the length of the run as it was begun (method rmt)"
    kept_on_resume = {"max_steps": _kept, "num_train_epochs": _kept}

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: RMTConfig | None = None,
        train_dataset: Any = None,
        *,
        processing_class: Any = None,
        **kwargs: Any,
    ):
        if not isinstance(args, RMTConfig):
            raise ConfigError("wrong class of arguments", where="args", got=type(args).__name__, allowed="RMTConfig")
        if processing_class is None:
            raise ConfigError("the tokenizer is needed to score the corpus", where="processing_class", got=None)
        model = load_model({"path": model, "dtype": "float32"}, path=model) if isinstance(model, str) else model
        index = corpus.corpus_index(train_dataset, args=args, tokenizer=processing_class, model=model)
        targets = corpus.targets_of(index, args=args, tokenizer=processing_class, is_main=args.process_index == 0)
        self.index, self.targets = index, targets
        self.questions = corpus.rows_of(
            index, targets, args=args, tokenizer=processing_class, budget_template=args.budget_prompt
        )
        positions = getattr(model.config, "max_position_embeddings", None)
        corpus.refuse_long_questions(
            self.questions,
            targets,
            positions=positions,
            longest=args.max_completion_length,
            variables=args.chat_template_kwargs,
        )
        super().__init__(
            model,
            reward_funcs,
            args,
            corpus.as_dataset(targets),
            processing_class=processing_class,
            **kwargs,
        )
        self._length_of_run: int | None = None
        self._unread_rollouts: int | None = 0  # None once a prediction could be read
        self._draws: TierDraws | None = None

    # ---- schedules ----

    def total_steps(self) -> int:
        """T: that of the run that was begun, also if the one that continues it is longer."""
        return self._length_of_run or self.state.max_steps

    def budget(self) -> int | None:
        """B_t of the step that begins; None without a budget."""
        if not self.args.has_budget:
            return None
        return self.args.budget_at(self.state.global_step, total_steps=self.total_steps())

    def completion_budget(self, global_step: int) -> int:
        longest, budget = self.args.max_completion_length, self.budget()
        if budget is None or self.args.completion_limit == "fixed":
            return longest
        return min(longest, 2 * budget + self.args.completion_margin)

    def train_order(self, data: Sized, **layout: Any) -> EpochRepeatSampler:
        """Tokens by tier; a block is a generation batch, and the step it is made in follows from its number."""
        args = self.args
        steps_of_block = args.steps_per_generation * self.num_iterations / args.gradient_accumulation_steps

        def chances(block: int) -> list[float]:
            return args.chances_at(int(block * steps_of_block), total_steps=self.total_steps())

        self._draws = TierDraws(
            self.targets.tiers,
            seed=layout["seed"],
            block_size=layout["prompts_per_batch"],
            schedule=chances if args.has_curriculum else None,
            shuffle=layout["shuffle"],
        )
        return corpus.CurriculumSampler(data, draws=self._draws, **layout)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self._length_of_run = None
        return super().train(*args, **kwargs)

    # ---- once per generation batch ----

    def prepare_prompts(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        budget = self.budget()
        made: dict[int, dict[str, Any]] = {}
        for row in rows:
            position = int(row["position"])
            if position not in made:
                made[position] = self.questions.row(position, tier=TIERS[row["tier"]], budget=budget) | row
        return [made[int(row["position"])] for row in rows]

    def prepare_rollouts(self, rollouts: RolloutBatch) -> RolloutBatch:
        tensors, device = rollouts.tensors, rollouts.rewards.device
        lengths, bonuses, readable = self._read_thoughts(rollouts)
        facts = torch.tensor([lengths, bonuses, readable], dtype=torch.float64, device=device).T.contiguous()
        lengths_all, bonuses_all, readable_all = self.accelerator.gather(facts).T
        match = self.total_rewards(rollouts.rewards)
        weight = self.args.length_weight
        totals = match if weight == 0.0 else (1.0 - weight) * match + weight * bonuses_all.to(match)
        advantages = group_advantages(totals, self.num_generations, config=self.args.upge)
        tensors["advantages"] = rollouts.local(advantages)
        tensors["is_demonstration"] = torch.zeros_like(tensors["advantages"], dtype=torch.bool)
        tensors["row_weight"] = torch.ones_like(tensors["advantages"])
        self._refuse_unreadable(rollouts, readable_all)
        is_flat = self._drop_flat_groups(rollouts, totals)
        self._record(rollouts, match, bonuses_all, lengths_all, is_flat)
        if self.args.learns_text:
            self._add_documents(rollouts)
        return rollouts

    def _read_thoughts(self, rollouts: RolloutBatch) -> tuple[list[int], list[float], list[bool]]:
        """Of each local row: tokens of thought, length reward, whether a prediction can be read."""
        budget, tensors = self.budget(), rollouts.tensors
        lengths, bonuses, readable = [], [], []
        for row in range(rollouts.num_rows):
            ids = tensors["completion_ids"][row][tensors["completion_mask"][row].bool()].tolist()
            prompt = tensors["prompt_ids"][row][tensors["prompt_mask"][row].bool()].tolist()[-16:]
            opened = self.tokenizer.decode(prompt).rstrip().endswith(OPEN_THINK)
            length = thought_tokens(self.tokenizer, ids, is_open=opened)
            lengths.append(len(ids) if length is None else length)
            known = budget is not None and length is not None
            bonuses.append(
                length_reward(int(length or 0), int(budget or 1), maximum=self.args.length_reward_max)
                if known
                else 0.0
            )
            text = completion_text(self.tokenizer, ids, {*self.eos_token_ids, self.tokenizer.pad_token_id})
            readable.append(predicted_text(text, self.args.answer_extraction) is not None)
        return lengths, bonuses, readable

    def _refuse_unreadable(self, rollouts: RolloutBatch, readable: Tensor) -> None:
        """DataError where the first `max_rollouts_without_answer` rollouts had no prediction at all."""
        limit = self.args.max_rollouts_without_answer
        if self._unread_rollouts is None or limit is None:
            return
        if readable.any():
            self._unread_rollouts = None
            return
        self._unread_rollouts += len(readable)
        if self._unread_rollouts >= limit:
            ids = rollouts.tensors["completion_ids"][0][rollouts.tensors["completion_mask"][0].bool()]
            raise DataError(
                f"none of the first {self._unread_rollouts} rollouts holds a prediction that can be read",
                where=f"method.answer_extraction: {self.args.answer_extraction}",
                got=self.tokenizer.decode(ids.tolist()),
                fix="Warm the model up on the form, use a model that thinks and boxes, change method.prompt_template, "
                "or set method.max_rollouts_without_answer: null",
            )

    def _drop_flat_groups(self, rollouts: RolloutBatch, totals: Tensor) -> Tensor:
        """(N,) groups whose rewards are all equal; with dynamic sampling they leave the loss and its mean."""
        grouped = totals.view(-1, self.num_generations)
        is_flat = (grouped == grouped[:, :1]).all(dim=1)
        start = self.args.dynamic_sampling_start_step
        if start is not None and self.state.global_step >= start:
            rows = rollouts.local(is_flat.repeat_interleave(self.num_generations))
            rollouts.tensors["row_weight"] = rollouts.tensors["row_weight"].masked_fill(rows, 0.0)
            mask = rollouts.tensors["trainable_mask"]
            rollouts.tensors["trainable_mask"] = mask * (~rows).unsqueeze(1).to(mask.dtype)
        return is_flat

    def _record(
        self, rollouts: RolloutBatch, match: Tensor, bonuses: Tensor, lengths: Tensor, is_flat: Tensor
    ) -> None:
        budget = self.budget()
        numbers = {
            "rmt/budget": float("nan") if budget is None else float(budget),
            "rmt/completion_limit": float(self.completion_budget(self.state.global_step)),
            "rmt/think_length_mean": lengths.mean().item(),
            "rmt/think_length_p95": torch.quantile(lengths, 0.95).item(),
            "rmt/match_reward": match.nanmean().item(),
            "rmt/length_reward": float("nan") if budget is None else bonuses.mean().item(),
            "rmt/zero_variance_fraction": is_flat.float().mean().item(),
        }
        tiers = self._gathered(rollouts, "tier")
        numbers |= {f"rmt/{name}_fraction": (tiers == tier).float().mean().item() for tier, name in enumerate(TIERS)}
        if self._draws is not None:
            numbers["rmt/renormalised_draws"] = float(self._draws.num_renormalised)
        for name, value in numbers.items():
            self.log_metric(name, value)

    def _gathered(self, rollouts: RolloutBatch, column: str) -> Tensor:
        """(W*B,) integer column of every rank's rows."""
        device = self.accelerator.device
        return self.accelerator.gather(torch.tensor([int(row[column]) for row in rollouts.rows], device=device))

    def _add_documents(self, rollouts: RolloutBatch) -> None:
        """One row for each document of the batch, on the rank whose prompt names it first."""
        n = self.num_generations
        positions = self._gathered(rollouts, "position")[::n]
        self.add_rows(rollouts)
        for group, asked in corpus.document_rows(self.index, positions).items():
            if not 0 <= group * n - rollouts.row_offset < rollouts.num_rows:
                continue
            begin, ids = corpus.document_ids(self.index, asked[0])
            self.write_demonstration(
                rollouts,
                group,
                [int(token) for token in ids[1:]],
                weight=1.0,
                advantage=0.0,
                prompt_ids=[int(ids[0])],
                untrained=[position - begin - 1 for position in asked],
            )

    # ---- once per optimizer step ----

    def loss_weights(self, window: list[dict[str, Any]]) -> list[Tensor]:
        """L = L_RL + lambda * mean over all text tokens of the step that RL does not use."""
        rollouts, documents, _ = self.count_rows(window)
        found = []
        for tensors in window:
            mask, is_text = trainable_mask(tensors), tensors["is_demonstration"].float().unsqueeze(1)
            rl = token_weights(mask * (1 - is_text), reduction=self.args.upge.loss_aggregation, counts=rollouts)
            text = token_weights(mask * is_text, reduction="token_mean", counts=documents)
            found.append(tensors["row_weight"].unsqueeze(1) * (rl + self.args.ntp_loss_coef * text))
        return found

    def policy_loss(self, batch: PolicyBatch) -> LossOutput:
        output = super().policy_loss(batch)
        if self.args.learns_text and "sft/loss" in output.metrics:
            output.metrics["rmt/ntp_loss"] = output.metrics["sft/loss"] / self.args.ntp_loss_coef
        return output

    # ---- checkpoint ----

    def method_state(self) -> dict[str, Any]:
        return {"total_steps": self.total_steps(), "unread_rollouts": self._unread_rollouts}

    def load_method_state(self, state: dict[str, Any]) -> None:
        self._length_of_run, self._unread_rollouts = state["total_steps"], state["unread_rollouts"]


def thought_tokens(tokenizer: Any, ids: list[int], *, is_open: bool = False) -> int | None:
    """Tokens strictly between the think tags of a completion; None where a tag is missing.

    A token that holds a part of a tag and a part of the thought counts to neither.

    Args:
        ids: tokens of the completion. is_open: the prompt ends in the opened tag.
    """
    span = thought_span(tokenizer.decode(ids), is_open=is_open)
    if span is None:
        return None

    def width(count: int) -> int:
        return len(tokenizer.decode(ids[:count]))

    counts = range(len(ids) + 1)
    first = bisect.bisect_left(counts, span[0], key=width)
    last = bisect.bisect_right(counts, span[1], key=width) - 1
    return max(0, last - first)

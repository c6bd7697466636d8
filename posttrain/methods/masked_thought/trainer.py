"""Masked thought: supervised fine-tuning in which part of the demonstration's INPUT tokens are hidden.

The labels stay the true tokens, so the model has to use the question and earlier steps instead of copying the token
before. Paper: arXiv 2403.02178. Scheduled sampling, one of its baselines, is left out: it needs a second forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor

from posttrain.errors import ConfigError, DataError, PosttrainError, SupportError
from posttrain.methods.masked_thought.mask_token import WHERE, add_mask_token, find_mask_token, with_rows
from posttrain.methods.masked_thought.noise import Replacement, corrupt_target_inputs, noise_rate, row_generator
from posttrain.models.positions import with_positions
from posttrain.seam.arguments import option
from posttrain.seam.groups.row_index import row_spans
from posttrain.seam.supervised.trainer import SupervisedConfig, SupervisedTrainer


@dataclass
class MaskedThoughtConfig(SupervisedConfig):
    """Fine-tuning that does not let the model lean on the token before: hidden inputs, true labels.

    Paper: arXiv 2403.02178; the defaults are those of its mask-token variant. The tokens that may be hidden are those
    with a label, that is the demonstration with its end token, or what TRL's own masks leave.
    """

    mask_ratio: float = option(
        0.4,
        help="Largest chance that an input token is hidden; 0.4 for GSM8K, 0.1 to 0.2 for dense formulas.",
        ge=0.0,
        lt=1.0,
    )
    mask_warmup_ratio: float = option(
        2 / 3, help="Part of the run over which the chance rises from 0; 0 = at once.", ge=0.0, le=1.0
    )
    mask_schedule: Literal["linear", "constant", "linear_plus_one"] = option(
        "linear", help="How the chance rises; linear_plus_one is the official trainer's form, one step longer."
    )
    noise_type: Literal["mask_token", "random_token", "mixed", "embedding_dropout"] = option(
        "mask_token", help="What hides a token. embedding_dropout: the token stays, its embedding is dropped out."
    )
    random_token_prob: float = option(
        0.0,
        help="noise_type mixed: chance that a hidden token becomes a random one instead of the mask.",
        ge=0.0,
        le=1.0,
    )
    embedding_dropout: float = option(
        1.0, help="noise_type embedding_dropout: chance that one number of the embedding is dropped.", ge=0.0, le=1.0
    )
    mask_token: str = option(
        "<mask>", help="Token of the tokenizer that stands for hidden; one written <...> or [...] is added if new."
    )
    mask_token_init: Literal["mean", "default"] = option(
        "mean", help="Embedding of a new mask token: mean of all tokens', or the model's own initialisation."
    )
    mask_positions: Literal["target", "source", "all"] = option(
        "target", help="Tokens that may be hidden: the demonstration, the prompt, or both. For ablations."
    )
    loss_on_masked: Literal["all", "clean_only"] = option(
        "all", help="clean_only: a token that was itself hidden is not a label. For ablations."
    )
    block_attention_to_masked: bool = option(False, help="Hide the position from attention, too. For ablations.")
    noise_seed: int | None = option(None, help="Seed of the noise. None = trainer.seed.", ge=0)
    strip_mask_token_on_save: bool = option(
        True, help="Take an added mask token out of the saved model and tokenizer; checkpoints keep it."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.noise_type == "mixed") != (0 < self.random_token_prob < 1):
            raise ConfigError(
                "mixed noise needs a part of each kind, and other noise has one kind",
                where="method.random_token_prob",
                got=self.random_token_prob,
                allowed="between 0 and 1 with noise_type mixed, else 0",
                fix="Change method.noise_type or method.random_token_prob",
            )
        if self.block_attention_to_masked and (self.packing or self.padding_free):
            raise SupportError(
                "rows without padding have no attention mask to hide a position in",
                where="method.block_attention_to_masked",
                got=True,
                fix="Set it to false, or set trainer.packing and trainer.padding_free to false",
            )

    @property
    def needs_mask_token(self) -> bool:
        """Whether any token can become the mask."""
        return self.mask_ratio > 0 and self.noise_type in ("mask_token", "mixed")

    def tokenizer_findings(self, tokenizer: Any, *, has_adapter: bool) -> Iterator[PosttrainError]:
        if not self.needs_mask_token:
            return
        try:
            token = find_mask_token(tokenizer, self.mask_token)
        except ConfigError as error:
            yield error
            return
        if token.id is None and has_adapter:
            yield SupportError(
                "an adapter leaves the embeddings as they are, so a new token would never be trained",
                where=WHERE,
                got=self.mask_token,
                fix="Name an unused token that the tokenizer has, or set method.noise_type to random_token",
            )


class MaskedThoughtTrainer(SupervisedTrainer):
    """Supervised training on corrupted inputs and true labels.

    `prepare_batches` (once per optimizer step, every rank): hides tokens; one all-reduce for the log. Every draw
    follows from (noise_seed, epoch, place of the row), so a checkpoint holds nothing and any split sees the same.
    Deviation: the specification of arXiv 2403.02178 seeds by optimizer step, micro-batch and rank, which another
    split into micro-batches would change. Random tokens are ordinary ones: the paper does not say whether special
    tokens are drawn. Evaluation is never corrupted.
    `export_context` (at a save that is no checkpoint): the model without the added mask token.
    """

    config_class = MaskedThoughtConfig
    needs_row_index = True
    args: MaskedThoughtConfig
    name = "masked thought"

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        settings = self.args
        if getattr(self.model.config, "is_encoder_decoder", False):
            raise SupportError(
                "the decoder's inputs are shifted labels", where="model", got="an encoder-decoder model"
            )
        for error in settings.tokenizer_findings(self.tokenizer, has_adapter=isinstance(self.model, PeftModel)):
            raise error
        self._published: tuple[Any, int] | None = None  # tokenizer and number of embeddings before a token was added
        self._dropped: tuple[Tensor, Tensor] | None = None
        # A token may be added as special without being one of the tokenizer's named ones.
        added = {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        special = {*self.tokenizer.all_special_ids, *added}
        embeddings = self.model.get_input_embeddings().weight.size(0)
        ordinary = [i for i in range(min(len(self.tokenizer), embeddings)) if i not in special]
        mask_id = self._mask_token(embeddings) if settings.needs_mask_token else None
        shares = {"random_token": 1.0, "mixed": settings.random_token_prob}
        self.replacement = Replacement(
            mask_id,
            torch.tensor([i for i in ordinary if i != mask_id]),
            shares.get(settings.noise_type, 0.0),
        )
        if settings.noise_type == "embedding_dropout":
            self.model.get_input_embeddings().register_forward_hook(self._drop_embeddings)

    def _mask_token(self, embeddings: int) -> int:
        """Id of the mask token, after adding it where the tokenizer lacks it."""
        settings, token = self.args, find_mask_token(self.tokenizer, self.args.mask_token)
        if token.id is not None:
            return token.id
        self._published = (deepcopy(self.processing_class), embeddings)
        return add_mask_token(
            self.model, self.tokenizer, token.text, init=settings.mask_token_init, seed=self._noise_seed
        )

    @property
    def _noise_seed(self) -> int:
        return self.args.seed if self.args.noise_seed is None else self.args.noise_seed

    def rate(self) -> float:
        """Chance that a token is hidden in the coming optimizer step."""
        return noise_rate(
            self.state.global_step,
            self.state.max_steps,
            ratio=self.args.mask_ratio,
            warmup_ratio=self.args.mask_warmup_ratio,
            schedule=self.args.mask_schedule,
        )

    # ---- one optimizer step ----

    def prepare_batches(self, batches: list[dict[str, Any]]) -> None:
        rate, counts = self.rate(), torch.zeros(2, dtype=torch.float64)
        for batch in batches:
            self._refuse(batch)
            if self.args.mask_ratio > 0:
                counts += self._corrupt(batch, rate)
        noised, possible = self.accelerator.reduce(
            counts.float().to(self.accelerator.device), reduction="sum"
        ).tolist()
        self.log_metric("noise/rate", rate, training=True)
        self.log_metric("noise/noised_fraction", noised / possible if possible else float("nan"), training=True)

    def _refuse(self, batch: dict[str, Any]) -> None:
        labels = batch["labels"]
        if not bool((labels != -100).any()):
            raise DataError(
                "no token of a batch is a completion token",
                where="data.train",
                got=f"{len(labels)} rows without a label",
                fix="With trainer.assistant_only_loss the chat template must mark what is learnt by "
                "{% generation %} ... {% endgeneration %}; otherwise give prompt and demonstration",
            )
        if self.replacement.mask_id is not None and bool((labels == self.replacement.mask_id).any()):
            raise DataError(
                "the mask token is part of a demonstration", where=WHERE, got=self.args.mask_token, fix="Name another"
            )

    def _corrupt(self, batch: dict[str, Any], rate: float) -> Tensor:
        """Hide tokens of one micro-batch. Returns (2,) how many were hidden, and how many could have been."""
        shape, device = batch["input_ids"].shape, batch["input_ids"].device
        ids, labels = batch["input_ids"].flatten().cpu(), batch["labels"].flatten().cpu()
        noised, possible, factors = torch.zeros(ids.shape, dtype=torch.bool), 0, []
        ids = ids.clone()
        for place, span in row_spans(batch):
            target = self._maskable(ids[span], labels[span])
            generator = row_generator(self._noise_seed, self.data_epoch, place)
            becomes, noised[span] = corrupt_target_inputs(
                ids[span], target, rate=rate, replacement=self.replacement, generator=generator
            )
            if self.args.noise_type == "embedding_dropout":
                factors.append(self._factors(int(noised[span].sum()), generator))
            else:
                ids[span] = becomes
            possible += int(target.sum())
        is_noised = noised.view(shape).to(device)
        batch["input_ids"] = ids.view(shape).to(device)
        if self.args.loss_on_masked == "clean_only":
            batch["labels"] = batch["labels"].masked_fill(is_noised, -100)
        if self.args.block_attention_to_masked:
            # A hidden token keeps its place, also where it is a row's first.
            batch |= with_positions(self.model, batch)
            batch["attention_mask"] = batch["attention_mask"].masked_fill(is_noised, 0)
        if factors:
            batch |= {"noised": is_noised, "embedding_factors": torch.cat(factors).to(device)}
        return torch.tensor([int(noised.sum()), possible], dtype=torch.float64)

    def _maskable(self, ids: Tensor, labels: Tensor) -> Tensor:
        """(S,) tokens of one row that may be hidden. In packed rows, never one that parts two documents."""
        chosen = {"target": labels != -100, "source": labels == -100, "all": torch.ones_like(labels, dtype=torch.bool)}
        maskable = chosen[self.args.mask_positions]
        if self.args.packing or self.args.padding_free:
            for part in (self.tokenizer.eos_token_id, self.tokenizer.bos_token_id):
                maskable = maskable if part is None else maskable & (ids != part)
        return maskable

    # ---- embedding dropout ----

    def _factors(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, D) what the embeddings of hidden tokens are multiplied with."""
        width, dropped = self.model.get_input_embeddings().weight.size(1), self.args.embedding_dropout
        kept = torch.rand(count, width, generator=generator) >= dropped
        return kept / (1 - dropped) if dropped < 1 else torch.zeros(count, width)

    def _drop_embeddings(self, module: Any, inputs: Any, output: Tensor) -> Tensor:
        if self._dropped is None:
            return output
        is_noised, factors = self._dropped
        everywhere = torch.ones_like(output)
        everywhere[is_noised] = factors.to(output.dtype)
        return output * everywhere

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        is_noised, factors = inputs.pop("noised", None), inputs.pop("embedding_factors", None)
        self._dropped = None if is_noised is None else (is_noised, factors)
        try:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        finally:
            self._dropped = None

    # ---- saving ----

    def export_context(self) -> AbstractContextManager[None]:
        if self._published is None or not self.args.strip_mask_token_on_save:
            return nullcontext()
        return self._without_mask_token(*self._published)

    @contextmanager
    def _without_mask_token(self, tokenizer: Any, rows: int) -> Iterator[None]:
        with ExitStack() as stack:
            stack.callback(setattr, self, "processing_class", self.processing_class)
            self.processing_class: Any = tokenizer
            if rows < self.model.get_input_embeddings().weight.size(0):
                stack.enter_context(with_rows(self.model, rows))
            yield

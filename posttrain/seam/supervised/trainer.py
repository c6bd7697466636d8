"""`SupervisedTrainer`: TRL's SFT trainer with a replaceable per-token loss, exact normalisers and exact resume."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from datasets import Dataset, concatenate_datasets
from peft import PeftModel
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PreTrainedModel
from trl import SFTConfig, SFTTrainer

from posttrain.data.demonstrations import DOCUMENT_COLUMN, encode_rows, with_variables
from posttrain.data.streams import RowStreams
from posttrain.errors import ConfigError, PosttrainError, SupportError
from posttrain.losses.reductions import LossCounts, LossOutput, reduce_loss
from posttrain.losses.supervised import dft_loss, nll_loss
from posttrain.models.template_clock import guard_clock
from posttrain.seam.arguments import WithoutSecrets, check_options, option
from posttrain.seam.checkpoint.resumable import ResumableTrainer
from posttrain.seam.device import device_defaults
from posttrain.seam.groups.log import GROUP_IDS, GroupStats, group_column, group_numbers
from posttrain.seam.groups.row_index import ROW_INDEX, NumberedCollator, blank_rows, drop_numbers, numbered
from posttrain.seam.head import add_selective_scoring
from posttrain.seam.isolation import refuse_mixed_rows
from posttrain.seam.known_tokens import refuse_unreadable_rows
from posttrain.seam.row_use import report_left_out
from posttrain.seam.sampling import EpochSampler, in_order
from posttrain.seam.supervised.collators import WithAnswers, WithColumns, column_findings, with_answers
from posttrain.seam.supervised.stream_rows import EncodedStreams, refuse_for_streams

_LOSSES = {"nll": nll_loss, "dft": dft_loss}


@dataclass
class SupervisedConfig(WithoutSecrets, SFTConfig):
    """Supervised fine-tuning on demonstrations, tokenised exactly as the policy methods tokenise theirs.

    Rows with columns `prompt` and `demonstration_column` train the demonstration and its end token; other formats that
    TRL knows (`messages`, `text`, `prompt`/`completion`, `input_ids` with `labels`) go through TRL.
    """

    answer_columns: ClassVar[tuple[str, ...]] = ()
    """Columns with further answers to a row's prompt; each is a row of its own in the batch, below the first."""

    demonstration_column: str = option(
        "solution",
        help="Column with the text to learn, for rows that have `prompt`. prompt = the prompts are documents "
        "(`data.train.format: text`), learnt whole.",
    )
    loss_aggregation: Literal["token_mean", "seq_mean_token_mean"] = option(
        "token_mean", help="token_mean: every token counts the same; seq_mean_token_mean: every row counts the same."
    )
    logits_budget_bytes: int = option(
        256 * 2**20,
        help="Bytes of one float32 logits block off CUDA; batches that need more are scored in chunks.",
        ge=1024,
        block="trainer",
    )
    chat_template_kwargs: dict[str, Any] | None = option(None, help="Variables of the template.", block="trainer")
    # trl 1.16: "chunked_nll"-like choices move between releases; these two are written on log-probs here.
    loss_type: Literal["nll", "dft"] = option("nll", help="Per-token loss.", block="trainer")
    # trl 1.16: True. None is resolved by device, see `device_defaults`.
    gradient_checkpointing: bool | None = option(
        None, help="Recompute activations in the backward pass. None = on with CUDA, off elsewhere.", block="trainer"
    )
    # transformers 5.17: True, which replaces a NaN loss by the running mean in the log.
    logging_nan_inf_filter: bool = option(
        False, help="Hide non-finite losses from the log. Off here: a non-finite loss stops the run.", block="trainer"
    )
    logging_steps: float = option(1, help="Log every this many optimizer steps.", gt=0, block="trainer")

    def __post_init__(self) -> None:
        check_options(self)
        if (self.packing or self.padding_free) and self.loss_aggregation != "token_mean":
            raise SupportError(
                "a packed row holds several sequences, so a mean per row is not a mean per sequence",
                where="method.loss_aggregation",
                got=self.loss_aggregation,
                allowed=f"token_mean while trainer.{'packing' if self.packing else 'padding_free'} is true",
            )
        for name in ("label_smoothing_factor", "use_liger_kernel", "auto_find_batch_size"):
            if getattr(self, name):
                what = "not supported by the supervised methods"
                raise SupportError(what, where=f"trainer.{name}", fix="Remove the line")
        self.device_defaults = device_defaults(self)
        super().__post_init__()

    @property
    def number_columns(self) -> tuple[str, ...]:
        """Columns of numbers, one a row, that these settings make the loss read, beside a method's `extra_columns`."""
        return ()

    def tokenizer_findings(self, tokenizer: Any, *, has_adapter: bool) -> Iterator[PosttrainError]:
        """Mistakes that show once the tokenizer is known; `posttrain check` asks for them. Default: none."""
        yield from ()

    def model_findings(self, modules: Sequence[str], weights: Sequence[str]) -> Iterator[PosttrainError]:
        """Mistakes that show once the model's layout is known; `posttrain check` asks for them. Default: none.

        Args:
            modules, weights: names in the model without adapters; no weights where an adapter is trained.
        """
        yield from ()

    def data_findings(
        self, rows: dict[str, Any], *, world_size: int, tokenizer: Any = None, settings_complete: bool = True
    ) -> Iterator[PosttrainError]:
        """Mistakes that show once the rows are known; `posttrain check` asks for them. Default: of further columns.

        Args:
            rows: data sets by their name in the data block: train, and validation and retain where they are given.
            world_size: processes that the run will have.
            tokenizer: None where it cannot be had.
            settings_complete: whether every setting is there; False where an earlier stage writes a file one names.
        """
        yield from column_findings(rows, self, tokenizer=tokenizer)


class SupervisedTrainer(ResumableTrainer, SFTTrainer):
    """SFT base of every method whose loss is a function of the target tokens' log-probabilities.

    Hooks for methods: `token_loss`, or `batch_loss` for what is not one reduced loss, once per micro-batch on every
    rank; `prepare_batches` and `finish_batches`, once per optimizer step of training on every rank, before anything is
    counted; `export_context`, around the saving of a model that is not a checkpoint. Tensors that they add to a batch
    are named in `batch_keys`, and reach the loss in `batch`. Columns a method needs beside the tokens are named in
    `extra_columns` and reach it in the same way: numbers as a (B,) tensor, others as a list. With `needs_row_index`,
    `row_numbers.row_spans` tells `prepare_batches` which row of `train_dataset` is where in a batch. `draws_groups`
    says that `train_order` can draw from streams.

    Checkpoints hold nothing beyond `method_state`; the data order follows from (seed, epoch).

    Args:
        model, train_dataset, eval_dataset, processing_class, peft_config, callbacks, optimizers,
        optimizer_cls_and_kwargs: as in TRL. args: a `SupervisedConfig`.
    """

    # trl 1.16 leaves this unset; a per-batch mean would then be multiplied by gradient_accumulation_steps.
    loss_is_scaled_for_ga = True
    config_class: type[SupervisedConfig] = SupervisedConfig
    extra_columns: tuple[str, ...] = ()
    batch_keys: tuple[str, ...] = ()
    needs_row_index = False
    draws_groups = False
    _answers: tuple[str, ...] = ()
    args: SupervisedConfig
    data_collator: Any
    train_dataset: Any

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: SupervisedConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        *,
        processing_class: Any = None,
        **kwargs: Any,
    ):
        args = self._checked(args)
        streams = self._streamed(train_dataset, processing_class, args)
        self._counts: LossCounts | None = None
        self.group_column = group_column(train_dataset, getattr(args, "group_column", None))
        # Rows laid after one another without padding can only be told apart by their lengths.
        is_flat = (args.packing or args.padding_free) and isinstance(train_dataset, Dataset)
        self.needs_row_index = self.needs_row_index or self.group_column is not None or is_flat
        self._writes_checkpoint = False
        super().__init__(
            model,
            args=args,
            # trl 1.16 takes its own kinds of data sets; the streams take the place of their first rows.
            train_dataset=self._encoded(train_dataset, processing_class, args) if streams is None else streams.head(),
            eval_dataset=self._encoded(eval_dataset, processing_class, args, is_cut=False),
            processing_class=processing_class,
            **kwargs,
        )
        if args.answer_columns:
            self.data_collator = WithAnswers(self.data_collator, args.answer_columns)
        if self.extra_columns:
            self.data_collator = WithColumns(self.data_collator, self.extra_columns)
        self._mixture: GroupStats | None = GroupStats.of(
            self.train_dataset if streams is None else streams.rows,
            self.group_column,
            names=getattr(args, "groups", None),
        )
        if self.needs_row_index and self.train_dataset is not None:
            self.train_dataset = numbered(self.train_dataset) if streams is None else streams
            self.data_collator = NumberedCollator(self.data_collator)
        refuse_mixed_rows(self.model, args)
        refuse_unreadable_rows(self.model, self.train_dataset)
        base = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        budget = args.logits_budget_bytes
        self._scoring = add_selective_scoring(base, logits_budget_bytes=budget, entropy_gradient=False)

    # ---- hooks for methods ----

    def token_loss(self, log_probs: Tensor, label_mask: Tensor, batch: dict[str, Any]) -> LossOutput:
        """Per-token loss (B, S-1), not reduced; position t predicts token t+1. Default: `args.loss_type`."""
        output = _LOSSES[self.args.loss_type](log_probs, label_mask)
        return LossOutput(output.values, self.args.loss_aggregation, output.metrics)

    def batch_loss(
        self, log_probs: Tensor, label_mask: Tensor, batch: dict[str, Any], counts: LossCounts
    ) -> tuple[Tensor, dict[str, float | Tensor]]:
        """This micro-batch's share of the loss, and metrics of it; the shares of all micro-batches and ranks add up.

        Default: `token_loss`, reduced with the counts of the optimizer step (in evaluation, of the batch).
        """
        output = self.token_loss(log_probs, label_mask, batch)
        return reduce_loss(output, label_mask.float(), counts=counts), output.metrics

    def prepare_batches(self, batches: list[dict[str, Any]]) -> None:
        """Change the micro-batches of the coming optimizer step; collectives allowed. Not called in evaluation.

        Labels set to -100 here leave the loss and its normaliser.
        """

    def finish_batches(self, batches: list[dict[str, Any]]) -> None:
        """The same after rows that only fill up an epoch have lost their labels; rows may be added here."""

    def export_context(self) -> AbstractContextManager[None]:
        """Context in which the model is saved for use; checkpoints are written as training needs them."""
        return nullcontext()

    def train_order(self) -> Sampler[int] | None:
        """Which row of `train_dataset` is drawn when; made once per `train()`, equal on all ranks, a whole number of
        optimizer steps long. Default (None): a new permutation every epoch.
        """
        return None

    @property
    def group_stats(self) -> GroupStats | None:
        """Groups of the training rows; None if they have none."""
        return self._mixture

    @property
    def data_epoch(self) -> int:
        """Pass over the training data that the current batches belong to, from 0."""
        return 0 if self._epoch_sampler is None else self._epoch_sampler.epoch

    # ---- data ----

    def _checked(self, args: Any) -> SupervisedConfig:
        """The arguments, or the defaults of the method for None."""
        guard_clock()
        if args is None:
            args = self.config_class(output_dir=self.config_class.__name__.removesuffix("Config"))
        if not isinstance(args, self.config_class):
            raise ConfigError(
                "wrong class of arguments", where="args", got=type(args).__name__, allowed=self.config_class.__name__
            )
        self.extra_columns = (*self.extra_columns, *args.number_columns)
        own = self.extra_columns or args.answer_columns
        if own and (args.packing or (args.padding_free and args.answer_columns)):
            what = "a packed row holds several sequences, and the method needs a value for each"
            where = f"trainer.{'packing' if args.packing else 'padding_free'}"
            raise SupportError(what, where=where, got=True, fix="Set it to false")
        return args

    def _streamed(self, dataset: Any, processing_class: Any, args: SupervisedConfig) -> EncodedStreams | None:
        """Streams that encode their rows when they are drawn; None for other data sets."""
        if not isinstance(dataset, RowStreams):
            return None
        refuse_for_streams(args, draws_groups=self.draws_groups)
        column, length, variables = args.demonstration_column, args.max_length, args.chat_template_kwargs
        return EncodedStreams(dataset, processing_class, column=column, max_length=length, variables=variables)

    def _encoded(self, dataset: Any, processing_class: Any, args: SupervisedConfig, *, is_cut: bool = True) -> Any:
        """Rows of `prompt` and demonstration as token ids and labels; those of TRL's formats with their variables."""
        column = args.demonstration_column
        if not isinstance(dataset, Dataset) or not {"prompt", column} <= set(dataset.column_names):
            return with_variables(dataset, args.chat_template_kwargs, processing_class)
        if processing_class is None:
            what = "the tokenizer is needed to encode demonstrations"
            raise ConfigError(what, where="processing_class", got=None, fix="Pass it")
        # These two cut long documents into rows and lose no token; other rows, and those of validation, must fit.
        cuts = (
            is_cut and column == DOCUMENT_COLUMN and args.packing and args.packing_strategy in ("wrapped", "bfd_split")
        )
        group = [name for name in (self.group_column,) if name is not None and name in dataset.column_names]
        for finding in column_findings({"train": dataset}, args, tokenizer=None):
            raise finding
        variables, length = args.chat_template_kwargs, None if cuts else args.max_length
        options: dict[str, Any] = {"max_length": length, "variables": variables}
        encoded = encode_rows(dataset, processing_class, column=column, keep=(*self.extra_columns, *group), **options)
        encoded, self._answers = with_answers(encoded, dataset, processing_class, args.answer_columns, **options)
        return encoded

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, packing: bool, formatting_func: Any, dataset_name: str
    ) -> Any:
        """As upstream, except that rows of different groups are never packed into one row."""

        def prepare(rows: Any) -> Any:
            done = super(SupervisedTrainer, self)._prepare_dataset(
                rows, processing_class, args, packing, formatting_func, dataset_name
            )
            return report_left_out(rows, done, name=dataset_name, is_packed=packing)

        column = self.group_column
        if not packing or column is None or column not in (dataset.column_names or []):
            return prepare(dataset)
        names, numbers = group_numbers(dataset, column)
        parts = [
            prepare(dataset.select((numbers == place).nonzero()[0])).map(
                lambda row, name=name: {column: name}, desc=None, load_from_cache_file=False
            )
            for place, name in enumerate(names)
        ]
        return concatenate_datasets(parts)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        known: list[str] = self._signature_columns or []  # type: ignore[has-type]
        own = (*self.extra_columns, *self._answers, *((ROW_INDEX,) if self.needs_row_index else ()))
        self._signature_columns = [*dict.fromkeys([*known, *own])]

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        args, data = self.args, self.train_dataset if train_dataset is None else train_dataset
        if not isinstance(data, EncodedStreams) and not hasattr(data, "__len__"):
            return super()._get_train_sampler(train_dataset)
        if (order := self.train_order()) is not None:
            return in_order(order, self.row_order)
        seed = args.seed if args.data_seed is None else args.data_seed
        self._epoch_sampler = EpochSampler(data, seed=seed, shuffle=args.train_sampling_strategy == "random")
        return in_order(self._epoch_sampler, self.row_order)

    # ---- one optimizer step ----

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        samples, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.prepare_batches(samples)
        state, world = self.accelerator.gradient_state, self.accelerator.num_processes
        ends_epoch = state.end_of_dataloader and self._epoch_sampler is not None
        if samples and world > 1 and ends_epoch and state.remainder > 0:
            # accelerate 1.15 fills the last batch of an epoch up with rows from its beginning: they are not trained.
            own = state.remainder - self.accelerator.process_index * self.args.per_device_train_batch_size
            blank_rows(samples[-1], max(0, own), below=1 + len(self.args.answer_columns))
        if self._mixture is not None:
            self._mixture.count_batches(self, samples)  # adds GROUP_IDS
        for batch in samples:
            drop_numbers(batch)
        self.finish_batches(samples)
        # transformers 5.17 calls this once per optimizer step with all its micro-batches: the place to count.
        self._counts = self._count([batch["labels"] for batch in samples], device)
        self.add_cost("demonstrations", self._counts.rows)
        self.add_cost("demonstration_tokens", self._counts.tokens)
        return samples, num_items

    def _count(self, labels: list[Tensor], device: torch.device) -> LossCounts:
        masks = [(label[:, 1:] != -100) for label in labels]
        local = torch.tensor(
            [sum(m.any(dim=1).sum().item() for m in masks), sum(m.sum().item() for m in masks)],
            dtype=torch.float64 if device.type == "cpu" else torch.float32,
            device=device,
        )
        rows, tokens = self.accelerator.reduce(local, reduction="sum").tolist()
        return LossCounts(rows=rows, tokens=tokens, max_completion_length=self.args.max_length or 1)

    def _wants_metrics(self) -> bool:
        """Whether the coming optimizer step is logged; entropy and accuracy cost time and are computed only then."""
        every = self.state.logging_steps or 1
        return not self.model.training or (self.state.global_step + 1) % every == 0

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        mode = "train" if self.model.training else "eval"
        groups = inputs.pop(GROUP_IDS, None)
        extras = {key: inputs[key] for key in (*self.extra_columns, *self.batch_keys) if key in inputs}
        model_inputs = {key: value for key, value in inputs.items() if key not in extras}
        measured = self._wants_metrics()
        self._scoring.outputs = ("log_probs", "entropy", "is_top1") if measured else ("log_probs",)
        outputs = model(**model_inputs, use_cache=False, fused_lm_head=True)
        label_mask = outputs.label_mask
        counts = self._counts if mode == "train" else None
        counts = counts or self._count([inputs["labels"]], label_mask.device)
        share, metrics = self.batch_loss(outputs.log_probs, label_mask, {**inputs, **extras}, counts)
        # The counts span all ranks and DDP averages gradients over them.
        loss = share * self.accelerator.num_processes
        if self.aux_loss_enabled:
            steps = self.args.gradient_accumulation_steps if mode == "train" else 1
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss / steps
        if groups is not None and self._mixture is not None:
            self._mixture.add_losses(outputs.log_probs, label_mask, groups)
        self._log_batch(mode, outputs, inputs, metrics, measured)
        return (loss, outputs) if return_outputs else loss

    def _log_batch(
        self, mode: str, outputs: Any, inputs: dict[str, Any], metrics: dict[str, Any], measured: bool
    ) -> None:
        attended = inputs["attention_mask"].sum() if "attention_mask" in inputs else outputs.label_mask.numel()
        local = torch.stack(
            [torch.as_tensor(attended, device=outputs.label_mask.device), outputs.label_mask.sum()]
            + ([outputs.entropy.detach().sum(), outputs.is_top1.sum()] if measured else [])
        ).float()
        total = self.accelerator.reduce(local, reduction="sum").tolist()
        if mode == "train":
            self._total_train_tokens += int(total[0])
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        if measured and total[1]:
            self._metrics[mode]["entropy"].append(total[2] / total[1])
            self._metrics[mode]["mean_token_accuracy"].append(total[3] / total[1])
        for name, value in metrics.items():
            self._metrics[mode][name].append(float(value))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._mixture is not None and "loss" in logs:  # transformers 5.17: on every rank
            self._mixture.show_losses(self)
        super().log(logs, start_time)

    # ---- saving ----

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._writes_checkpoint = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._writes_checkpoint = False

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        with nullcontext() if self._writes_checkpoint else self.export_context():
            super().save_model(output_dir, _internal_call)

    def rank_state(self) -> dict[str, Any]:
        losses = None if self._mixture is None else self._mixture.losses
        own: dict[str, Any] = {"tokens": self._total_train_tokens}
        if isinstance(self.train_dataset, EncodedStreams):
            own["streams"] = self.train_dataset.rows.state()
        return own if losses is None else {**own, "group_losses": losses}

    def load_rank_state(self, state: dict[str, Any]) -> None:
        self._total_train_tokens = state["tokens"]
        if isinstance(self.train_dataset, EncodedStreams):
            self.train_dataset.rows.load(state["streams"])
        if self._mixture is not None:
            self._mixture.losses = state.get("group_losses")

"""What every posttrain trainer shares: exact resume, epoch-seeded data order, the gradient-norm hook, a stop on
non-finite numbers.

Mixed into TRL trainers by `policy.py` and `supervised.py`; it owns no loss.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import rotate_checkpoints

from posttrain import __version__
from posttrain.errors import PosttrainError, ResumeError
from posttrain.hidden import without_secrets
from posttrain.models import saving
from posttrain.seam.arguments import WithoutSecrets
from posttrain.seam.card import TAGS, paper_of
from posttrain.seam.checkpoint import manifest
from posttrain.seam.checkpoint import state as checkpoint
from posttrain.seam.checkpoint.continued import ContinuedSettings
from posttrain.seam.checkpoint.safe_loads import weights_only_loads
from posttrain.seam.memory import explain_out_of_memory
from posttrain.seam.row_use import CountedRows
from posttrain.seam.sampling import EpochSampler
from posttrain.seam.sharding import asked_engine, refuse_replaced

_logger = logging.getLogger(__name__)


class NonFiniteError(PosttrainError):
    """The loss or the gradient became NaN or infinite; every rank stops, except under DeepSpeed before the weights are
    touched.
    """


class StatefulPart(Protocol):
    """Something beside the method that changes in a run, equal on all ranks; see `ResumableTrainer.attach`."""

    def state(self) -> dict[str, Any]:
        """What it needs to continue, as JSON."""

    def load(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned; before the first batch is drawn."""


class ResumableTrainer(ContinuedSettings, CountedRows):
    """Mixin placed before a transformers `Trainer` in the bases.

    Methods override `method_state` / `load_method_state` (JSON values and tensors, equal on all ranks), `rank_state` /
    `load_rank_state` (what differs between ranks) and `on_grad_norm` (once per optimizer step, on all ranks, with the
    global norm before clipping).
    """

    # For the model card: the method's name, and {title, id, citation} of a paper in place of the one it declares.
    name: str = "posttrain"
    paper: dict[str, str] | None = None
    _epoch_sampler: EpochSampler | None = None
    _is_staging: bool = False
    last_grad_norm: float | None = None
    _tr_loss: Any = None
    _globalstep_last_logged: int = 0
    _logged: tuple[Any, int] | None = None
    _costs: dict[str, float] | None = None
    _parts: dict[str, StatefulPart] | None = None
    engine: Any = None  # of policy trainers that generate with vLLM
    # Set before `train()`: epoch -> its rows in order; (optimizer, optimizer steps) -> learning-rate schedule.
    row_order: Callable[[int], Sequence[int]] | None = None
    make_schedule: Callable[[Any, int], Any] | None = None

    # trl 1.16 reads these three for the model card.
    @property
    def _name(self) -> str:
        return self.name

    @property
    def _paper(self) -> dict[str, str]:
        return paper_of(type(self))

    @property
    def _tag_names(self) -> list[str]:
        return TAGS

    @property
    def tokenizer(self) -> Any:
        """The tokenizer; of a multimodal processor, its text part."""
        return getattr(self.processing_class, "tokenizer", self.processing_class)  # type: ignore[attr-defined]

    def log_metric(self, name: str, value: float, *, training: bool | None = None) -> None:
        """Add a number to the log of training, or of the evaluation that runs; several between two log lines are
        averaged, NaN is left out. `training` says which where the model's mode does not (between two steps).
        """
        training = self.model.training if training is None else training  # type: ignore[attr-defined]
        self._metrics["train" if training else "eval"][name].append(value)  # type: ignore[attr-defined]

    def add_cost(self, name: str, amount: float) -> None:
        """Add to a total over the whole run, interruptions included, that is logged as `cost/<name>`.

        Args:
            name: prompts (drawn for generation), generated_tokens, demonstrations (rows trained, each time they are),
                demonstration_tokens.
            amount: of all ranks together.
        """
        self.add_total(f"cost/{name}", amount)

    def add_total(self, name: str, amount: float) -> float:
        """Add to a total over the whole run that is logged as `name`, and return it; see `add_cost`."""
        self._costs = self._costs or {}
        self._costs[name] = self._costs.get(name, 0.0) + amount
        self.set_metric(name, self._costs[name])
        return self._costs[name]

    def set_metric(self, name: str, value: float) -> None:
        """Log a number of training as it is now, in place of what was to be logged under its name."""
        self._metrics["train"][name] = [value]  # type: ignore[attr-defined]

    def attach(self, name: str, part: StatefulPart) -> None:
        """Let checkpoints hold a part's state; call it before `train()`. A run with other parts is not continued."""
        self._parts = {**(self._parts or {}), name: part}

    def close(self) -> None:
        """Free what outlives the trainer otherwise: an inference engine in this process, or one it has started."""
        if self.engine is not None:
            self.engine.close()

    # ---- for methods ----

    def method_state(self) -> dict[str, Any]:
        """What the method needs to continue; called on every rank when a checkpoint is written, saved by rank 0."""
        return {}

    def load_method_state(self, state: dict[str, Any]) -> None:
        """Take back what `method_state` returned; called on every rank before the first batch is drawn."""

    def rank_state(self) -> dict[str, Any]:
        """What this rank alone needs to continue, nested dicts and lists of tensors and JSON values."""
        return {}

    def load_rank_state(self, state: dict[str, Any]) -> None:
        """Take back what `rank_state` returned."""

    def on_grad_norm(self, norm: float) -> None:
        """Called with the global pre-clip gradient norm, on every rank; before the optimizer steps, except under
        DeepSpeed.
        """

    def describe_window(self) -> str:
        """Rows of the current optimizer step, for the message of a non-finite stop."""
        return ""

    # ---- transformers hooks ----

    def _run_epoch(self, *args: Any, **kwargs: Any) -> Any:
        if self._logged is not None:
            # transformers 5.17 does not save the loss summed since the last log line.
            total, step = self._logged
            self._tr_loss, self._globalstep_last_logged, self._logged = self._tr_loss + total, step, None
        # transformers 5.17 trains one step more when the checkpoint it resumes from is the last one.
        if self.state.global_step >= self.state.max_steps:  # type: ignore[attr-defined]
            self.control.should_training_stop = True  # type: ignore[attr-defined]
            return None
        # transformers 5.17 calls this once per epoch with keywords, before the epoch's data iterator is made.
        if self._epoch_sampler is not None:
            self._epoch_sampler.set_epoch(kwargs["epoch"])
        with explain_out_of_memory(self):
            return super()._run_epoch(*args, **kwargs)  # type: ignore[misc]

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        # Before the first file of a checkpoint is read; DeepSpeed's are read in here. transformers 5.17 reads what is
        # not safetensors with weights_only.
        if resume_from_checkpoint is not None and self.args.process_index == 0:  # type: ignore[attr-defined]
            manifest.refuse_damaged(Path(resume_from_checkpoint))
        with weights_only_loads(is_deepspeed=self.is_deepspeed_enabled):  # type: ignore[attr-defined]
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)  # type: ignore[misc]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        # Without an engine the weights are read before `_prepare_for_training`.
        if self.args.process_index == 0:  # type: ignore[attr-defined]
            manifest.refuse_damaged(Path(resume_from_checkpoint))
        super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.make_schedule is None or self.lr_scheduler is not None:  # type: ignore[has-type]
            return super().create_scheduler(num_training_steps, optimizer)  # type: ignore[misc]
        self.lr_scheduler = self.make_schedule(self.optimizer if optimizer is None else optimizer, num_training_steps)  # type: ignore[attr-defined]
        self._created_lr_scheduler = True  # transformers 5.17 makes it anew at the next `train()` then
        return self.lr_scheduler

    def create_optimizer(self, model: Any = None) -> Any:
        """As upstream; stops where accelerate would put another optimizer in its place."""
        optimizer = super().create_optimizer(model)  # type: ignore[misc]
        refuse_replaced(optimizer)
        return optimizer

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[misc]
        self.last_grad_norm = float(norm)
        # With fp16 an infinite norm is routine: the loss scaler skips the step and lowers its scale.
        if not math.isfinite(self.last_grad_norm) and not self.args.fp16:  # type: ignore[attr-defined]
            # DeepSpeed updates the weights inside the backward pass, before the norm can be read.
            late = getattr(self, "is_deepspeed_enabled", False)
            told = "DeepSpeed has spoiled the weights with it" if late else "the weights were not changed"
            raise NonFiniteError(
                f"the gradient is not finite; {told}. {self.describe_window()}".strip(),
                where=f"optimizer step {self.state.global_step + 1}",  # type: ignore[attr-defined]
                got=self.last_grad_norm,
                fix="Lower trainer.learning_rate or trainer.max_grad_norm, check the named rows, and resume from the "
                "last checkpoint",
            )
        self.on_grad_norm(self.last_grad_norm)
        return norm

    def _save_rng_state(self, output_dir: str) -> None:
        # Inside transformers' checkpoint writing, before its upload starts: files written later could miss the upload.
        super()._save_rng_state(output_dir)  # type: ignore[misc]
        args, folder = self.args, Path(output_dir)  # type: ignore[attr-defined]
        own = {
            "loss_since_log": self._tr_loss,
            "logged_step": self._globalstep_last_logged,
            "costs": self._costs,
            "method": self.rank_state(),
        }
        checkpoint.save_rank_state(folder, args.process_index, own)
        shared = self.method_state()
        if args.should_save:
            tensors: dict[str, torch.Tensor] = {}
            plain = checkpoint.split_tensors(shared, "method", tensors)
            if tensors:
                checkpoint.save_file(tensors, folder / "posttrain_method.safetensors")
            parts = {name: part.state() for name, part in (self._parts or {}).items()}
            checkpoint.write_json(
                folder / checkpoint.STATE_FILE,
                {
                    "layout": self._layout(),
                    "settings": self._settings_record(),
                    "method": plain,
                    "parts": parts,
                    "posttrain": __version__,
                },
            )

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # Called by transformers 5.17 on the rank that writes, with the weights of all.
        folder = output_dir or self.args.output_dir  # type: ignore[attr-defined]
        problems = saving.save_parts(
            lambda: self._save_without_secrets(output_dir, state_dict),
            self.accelerator.unwrap_model(self.model),  # type: ignore[attr-defined]
            folder,
            tokenizer=self.processing_class,  # type: ignore[attr-defined]
            state_dict=state_dict,
        )
        if problems and self._is_staging:
            _logger.warning("the checkpoint lacks %s; the run can be continued from it", "; ".join(problems))
        elif problems:
            raise saving.unsaved(problems, folder)

    @contextmanager
    def _secrets_hidden(self) -> Iterator[None]:
        """What is written of the arguments in here, a pickle beside the weights or a card, holds no secret."""
        args, hub_id = self.args, getattr(self, "hub_model_id", None)  # type: ignore[has-type]
        self.args = args.shown() if isinstance(args, WithoutSecrets) else args
        self.hub_model_id = self.args.hub_model_id if hub_id == args.hub_model_id else hub_id
        try:
            yield
        finally:
            self.args, self.hub_model_id = args, hub_id

    def _save_without_secrets(self, output_dir: str | None, state_dict: Any) -> None:
        with self._secrets_hidden():
            super()._save(output_dir, state_dict)  # type: ignore[misc]

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """As TRL's, before every checkpoint; a card that cannot be written costs neither checkpoint nor run."""
        try:
            with self._secrets_hidden():
                super().create_model_card(*without_secrets(args), **without_secrets(kwargs))  # type: ignore[misc]
        except Exception as problem:  # noqa: BLE001 - the card is made of texts of many sources
            if manifest.is_no_room(problem):
                raise
            _logger.warning("the model card could not be written: %s", saving.reason(problem))

    # A checkpoint is staged, sealed and renamed (see `manifest`); only then is it uploaded and older ones deleted.

    def _get_output_dir(self, trial: Any) -> str:
        place = super()._get_output_dir(trial)  # type: ignore[misc]
        return str(Path(place) / manifest.STAGING) if self._is_staging else place

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self._is_staging:
            super()._push_from_checkpoint(checkpoint_folder)  # type: ignore[misc]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        args, accelerator = self.args, self.accelerator  # type: ignore[attr-defined]
        final = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"  # type: ignore[attr-defined]
        staged = final.parent / manifest.STAGING / final.name
        if accelerator.is_local_main_process:
            manifest.recover(final.parent)
            shutil.rmtree(staged.parent, ignore_errors=True)  # of an attempt that was killed while it wrote
        accelerator.wait_for_everyone()
        limit, args.save_total_limit, self._is_staging = args.save_total_limit, None, True
        try:
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
            accelerator.wait_for_everyone()
            if args.should_save:
                self._name_best(staged, final)
                if not args.save_only_model:
                    manifest.seal(staged, step=self.state.global_step)  # type: ignore[attr-defined]
                manifest.publish(staged, final)
        except Exception as error:
            told = manifest.not_written(error, final)
            if told is None:
                raise
            raise told from error
        finally:
            args.save_total_limit, self._is_staging = limit, False
        accelerator.wait_for_everyone()
        if accelerator.is_local_main_process and not args.should_save and staged.exists():
            # A machine with a disk of its own; a shared one may show for a while what is no longer there.
            with suppress(FileNotFoundError):
                manifest.publish(staged, final)
        if args.push_to_hub:
            self._push_from_checkpoint(str(final))
        if args.should_save:
            best = self.state.best_model_checkpoint  # type: ignore[attr-defined]
            rotate_checkpoints(str(final.parent), limit, best_model_checkpoint=best, use_mtime=True)

    def _name_best(self, staged: Path, final: Path) -> None:
        """Where this checkpoint is the best so far, name it by the place it will have."""
        if self.state.best_model_checkpoint == str(staged):  # type: ignore[attr-defined]
            self.state.best_model_checkpoint = str(final)  # type: ignore[attr-defined]
            self.state.save_to_json(str(staged / TRAINER_STATE_NAME))  # type: ignore[attr-defined]

    def _load_optimizer_and_scheduler(self, checkpoint_dir: str | None) -> None:
        if self.args.device == torch.device("cpu", 0):  # type: ignore[attr-defined]
            # accelerate 1.15 calls the CPU of several gloo processes "cpu:0", which torch.load cannot map tensors to.
            self.args.__dict__["_setup_devices"] = torch.device("cpu")  # type: ignore[attr-defined]
        super()._load_optimizer_and_scheduler(checkpoint_dir)  # type: ignore[misc]
        if checkpoint_dir is None:
            return
        folder = Path(checkpoint_dir)
        saved = checkpoint.read_json(folder / checkpoint.STATE_FILE)
        self._put_in_force(saved)
        path = folder / "posttrain_method.safetensors"
        tensors = checkpoint.read_tensors(path) if path.exists() else {}
        self.load_method_state(checkpoint.join_tensors(saved["method"], tensors, self.args.device))  # type: ignore[attr-defined]
        for name, part in (self._parts or {}).items():
            part.load(saved["parts"][name])
        rank = self.args.process_index  # type: ignore[attr-defined]
        own = checkpoint.load_rank_state(folder, rank, self.args.device)  # type: ignore[attr-defined]
        self._logged, self._costs = (own["loss_since_log"], own["logged_step"]), own["costs"]
        self.load_rank_state(own["method"])

    # ---- layout ----

    def _layout(self) -> dict[str, Any]:
        """What must be equal between the stopped run and the one that continues it."""
        args = self.args  # type: ignore[attr-defined]
        return {
            "trainer": type(self).__name__,
            "engine": asked_engine(),
            "world_size": args.world_size,
            "per_device_train_batch_size": args.per_device_train_batch_size,
            "gradient_accumulation_steps": args.gradient_accumulation_steps,
            "seed": args.seed,
            "data_seed": args.data_seed,
            "parts": sorted(self._parts or {}) or None,
            "train_rows": len(self.train_dataset) if hasattr(self.train_dataset, "__len__") else None,  # type: ignore[attr-defined]
        }

    def _refuse_other_layout(self, saved: dict[str, Any], folder: Path) -> None:
        now = self._layout()
        changed = [
            f"{key} was {saved.get(key)!r}, is {value!r}" for key, value in now.items() if saved.get(key) != value
        ]
        if changed:
            raise ResumeError(
                "the run to continue was laid out differently: " + "; ".join(changed),
                where=str(folder),
                fix="Restore these settings, or start anew with trainer.resume: never",
            )

"""One run of one method: data, model, trainer, evaluation before and after, the files it leaves."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState

from posttrain import registry
from posttrain.config.build import build_args, own_reward_files, reward_limits, reward_scorer
from posttrain.config.rows import load_rows, short_enough
from posttrain.config.steps import steps_of
from posttrain.config.verdict import reward_code, template_variables, verifier_name
from posttrain.console import is_main_process, say
from posttrain.data.sources import load_source
from posttrain.errors import SupportError
from posttrain.hidden import without_secrets
from posttrain.models.generation_settings import open_settings
from posttrain.models.loading import load_model, load_tokenizer, peft_config, resolve_model_path
from posttrain.reports.provenance import data_fingerprint, template_sha256, world_layout
from posttrain.reports.records import json_value
from posttrain.reports.run_report import RunFolder
from posttrain.rewards.pool import describe
from posttrain.seam.policy.reference import set_reference
from posttrain.seam.running_engine import EngineCheck, require_engine_active
from posttrain.seam.sharding import gathered_weights, measure_before_zero3, zero3_disabled
from posttrain.training.callbacks.answer_probe import AnswerProbe
from posttrain.training.callbacks.evaluation import PeriodicEvaluation
from posttrain.training.callbacks.health import HealthMonitor
from posttrain.training.callbacks.metrics import MetricsWriter
from posttrain.training.callbacks.progress import RichProgress, replace_printing
from posttrain.training.callbacks.stop_signal import StopSignal
from posttrain.training.evaluator import recipe_evaluator
from posttrain.training.lineage import lineage, refuse_changed_order, write_outcome
from posttrain.training.resuming import (
    changed_settings,
    choose_checkpoint,
    describe_resume,
    inputs,
    is_finished,
    mark_finished,
    recorded_run,
    refuse_other_origin,
    resumed_record,
    run_id,
    set_aside,
    settings_beside,
)
from posttrain.training.saved_models import MODEL_FOLDER, merged, save_trained

TASK_ROWS = "task "  # before a task's name, among the data of a run
PROBE_ROWS = "probe "  # the same of a set whose answers' log-probabilities are measured


@dataclass(frozen=True)
class Outcome:
    """What one run left behind; accuracies are those of `eval.json`, None where nothing was evaluated."""

    name: str
    folder: Path
    model: Path
    before: float | None
    after: float | None


class Stage:
    """One run of one method, from its configuration to its report.

    Args:
        config: blocks without stages.
        name: of the stage, or "run".
        parent: folder of the model it starts from instead of the model block's.
        reference: folder of the model that a divergence is measured from, or "model" for the model block's; None =
            the model it starts from.
    """

    def __init__(self, config: Any, *, name: str, parent: Path | None = None, reference: Path | str | None = None):
        self.config, self.name, self.parent, self.reference = config, name, parent, reference
        self.steps = steps_of(config)
        self.added: dict[str, Any] = {}  # key of a step -> what it has made of the training rows
        self.mixture: Any = None  # of the training rows, once they are loaded
        self.made_from: dict[str, Any] | None = None  # content of the files that it begins with
        self.entry = registry.get(config.method.name)
        self.folder = RunFolder(Path(str(config.trainer.output_dir)))
        self.model_dir = self.folder.path / MODEL_FOLDER

    def run(self) -> Outcome:
        """Train, unless this very stage was finished before."""
        refuse_changed_order(self.config, self.folder.path, is_main=is_main_process())
        if is_finished(self.folder.path, self.config, parent=self.parent, reference=self.reference):
            if is_main_process():
                say(f"{self.folder.path} is finished; nothing to do (trainer.resume: never trains it again)")
            return self.outcome()
        for step in self.steps.values():
            step.prepare(self.config, self.folder.path)
        self.made_from = inputs(self.config)
        trainer, data = self.build()
        try:
            self.train(trainer, data)
        finally:
            trainer.close()
        return self.outcome()

    def train(self, trainer: Any, data: dict[str, Any]) -> None:
        """From the checkpoint to continue from, or the start, to the finished folder."""
        fingerprints = {split: data_fingerprint(rows) for split, rows in data.items()}
        if self.mixture is not None:
            hashes = {share.name: share.indices_sha256 for share in self.mixture.shares}
            fingerprints["train"] |= {"sources": hashes}
        checkpoint = choose_checkpoint(self.config.trainer.resume, self.folder, fingerprints, say=say)
        if checkpoint:
            refuse_other_origin(checkpoint, self.record())
        template = template_sha256(trainer.processing_class)
        trainer.settings_beside = settings_beside(self.config, splits=fingerprints, template_sha256=template)
        applied = trainer.accept_checkpoint(checkpoint) if checkpoint else []
        changes = changed_settings(recorded_run(checkpoint).get("config", {}), self.record()) if checkpoint else []
        trainer.accelerator.wait_for_everyone()  # every rank has read the stopped run's record before it is replaced
        if is_main_process():
            if self.config.trainer.resume == "never" and (place := set_aside(self.folder.path)):
                say(f"starting anew; the earlier run is now in {place}")
            self.describe(trainer, fingerprints, resumed=resumed_record(checkpoint, applied))
            if trainer.args.save_only_model and trainer.args.save_strategy != "no":
                say(
                    "trainer.save_only_model: checkpoints hold weights alone, so this run cannot be continued from one"
                )
            if checkpoint is not None:
                say(describe_resume(checkpoint, applied, changes))
        if checkpoint is None:
            if self.config.eval is None or self.config.eval.at_start:
                self.evaluate(trainer, data, "before")
            measure_before_zero3(trainer)
        with StopSignal() as stop:
            trainer.add_callback(stop)
            trainer.train(resume_from_checkpoint=checkpoint)
        stop.raise_if_stopped(can_continue=not trainer.args.save_only_model)
        self.evaluate(trainer, data, "after")
        self.save(trainer)
        if is_main_process():
            if (problem := write_outcome(self.config, self.folder.path)) is not None:
                say(f"warning: {problem}")
            self.folder.write_report()
            origin, before = self.parent, self.made_from
            mark_finished(self.folder.path, self.config, parent=origin, reference=self.reference, made_from=before)
        trainer.accelerator.wait_for_everyone()

    def build(self) -> tuple[Any, dict[str, Any]]:
        """Tokenizer, data, model, arguments, trainer."""
        config = self.config
        args = build_args(config, output_dir=self.folder.path)
        with zero3_disabled(), PartialState().main_process_first():
            initial = self.folder.path / "initial"
            path = merged(self.parent, initial) if self.parent else resolve_model_path(config.model, initial)
            tokenizer = load_tokenizer(config.model, path=path)
            data = self.rows(tokenizer)
        with zero3_disabled():
            path = self.apply_steps(data, path)
        extra: dict[str, Any] = {}
        for step in self.steps.values():
            if (made := step.optimizer(config, args)) is not None:
                extra["optimizer_cls_and_kwargs"] = made
        for split, keyword in (("validation", "eval_dataset"), ("retain", "retain_dataset")):
            if split in data and self.entry.learns_rows:
                extra[keyword] = self.trainable(data[split], tokenizer, split=split)
        if config.rollout is not None:
            extra["reward_funcs"] = [reward_scorer(config, entry.name) for entry in config.rollout.rewards]
        trainer = self.entry.load_trainer()(
            model=load_model(config.model, path=path),
            args=args,
            train_dataset=self.trainable(data["train"], tokenizer),
            processing_class=tokenizer,
            peft_config=peft_config(config.model),
            **extra,
        )
        self.set_reference(trainer)
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if trainer.accelerator.num_processes != world:
            raise SupportError(
                "the processes do not train together",
                got=f"{trainer.accelerator.num_processes} of {world} in one group",
                fix="Start them with `accelerate launch --config_file accelerate_configs/ddp.yaml`",
            )
        require_engine_active(trainer.accelerator)
        name = self.name if self.name != "run" else None
        progress = RichProgress(name=name)
        replace_printing(trainer, progress)
        trainer.add_callback(MetricsWriter(self.folder.metrics_path))
        trainer.add_callback(EngineCheck(trainer, report=self.note_engine))
        trainer.add_callback(HealthMonitor(self.folder.health_path, say=progress.note))
        self.attach_steps(trainer, data)
        self.schedule_evaluation(trainer, data)
        return trainer, data

    def apply_steps(self, data: dict[str, Any], path: str) -> str:
        """What papers make of the training rows and of the model that the run starts from; the folder of that."""
        for key, step in self.steps.items():
            data["train"], record = step.rows(self.config, data["train"], model=path, folder=self.folder.path)
            self.added |= {key: dict(record)} if record else {}
        for step in self.steps.values():
            path = step.make_model(self.config, model=path, folder=self.folder.path)
        return path

    def attach_steps(self, trainer: Any, data: dict[str, Any]) -> None:
        """What papers add to the trainer: order of the rows, schedule, callbacks and parts with a state."""
        for step in self.steps.values():
            trainer.row_order = step.order(self.config, trainer.train_dataset) or trainer.row_order
            trainer.make_schedule = step.schedule(self.config) or trainer.make_schedule
            step.attach(self.config, trainer, data)

    def set_reference(self, trainer: Any) -> None:
        """Measure the divergence from another model than the one the stage starts from, if that is asked for."""
        if self.reference is None:
            return

        folder = self.folder.path / "initial" / "reference"
        own = self.reference == "model"
        path = resolve_model_path(self.config.model, folder) if own else merged(Path(self.reference), folder)
        set_reference(trainer, load_model(self.config.model, path=path))

    def rows(self, tokenizer: Any) -> dict[str, Any]:
        """Training rows and, if there are any, evaluation rows."""
        block, prompt = self.config.data, self.config.data.system_prompt
        held_out = {} if block.eval is None else {"eval": load_source(block.eval, system_prompt=prompt)}
        for name, source in (block.eval_tasks or {}).items():
            held_out[TASK_ROWS + name] = load_source(source, system_prompt=prompt)
        if self.config.eval is not None and self.config.eval.probe_every_steps is not None:
            for name, source in block.probes.items():
                held_out[PROBE_ROWS + name] = load_source(source, system_prompt=prompt)
        rows = {"train": self.trained_rows(block.train, tokenizer)}
        for name in ("validation", "retain"):
            if getattr(block, name) is not None:
                rows[name] = load_rows(self.config, getattr(block, name), tokenizer)[0]
        return {**rows, **held_out}

    def trained_rows(self, source: Any, tokenizer: Any) -> Any:
        """Rows of data.train; what a mixture holds is noted in `mixture`."""
        rows, self.mixture = load_rows(self.config, source, tokenizer, say=say if is_main_process() else None)
        return rows

    def trainable(self, rows: Any, tokenizer: Any, *, split: str = "training") -> Any:
        """Rows whose prompt is short enough; how many were left out is said. `check` has refused what is an error."""
        return short_enough(self.config, rows, tokenizer, split=split, say=say if is_main_process() else None)

    def record(self) -> dict[str, Any]:
        """The resolved recipe of this stage as `run.json` holds it, with the files of the user's own rewards."""
        origin = {
            key: {"model": str(model), "run": run_id(model.parent)} if isinstance(model, Path) else None
            for key, model in (("start_from", self.parent), ("reference", self.reference))
        }
        values = {**self.config.values, "stage": self.name, **origin, **own_reward_files(self.config)}
        return without_secrets(json_value(values))

    def describe(self, trainer: Any, fingerprints: dict[str, Any], *, resumed: dict[str, Any] | None) -> None:
        """Write `run.json`; called once nothing refuses the run any more.

        Args:
            resumed: checkpoint that the run continues from, and what was changed since.
        """
        args = trainer.args
        chosen = {**args.device_defaults, "dtype": str(trainer.model.dtype).removeprefix("torch.")}
        settings_off = open_settings(
            getattr(trainer.accelerator.unwrap_model(trainer.model), "generation_config", None)
        )
        if settings_off:
            chosen["model_generation_settings_not_used"] = settings_off
        if self.config.rollout is not None:
            chosen["rewards"] = describe(reward_limits(self.config))
            chosen |= {"reward_code_sha256": found} if (found := reward_code(self.config)) else {}
        self.folder.write_run(
            self.record(),
            data=fingerprints,
            seeds={"trainer": args.seed, "data": args.data_seed if args.data_seed is not None else args.seed},
            world=world_layout(trainer.accelerator),
            mixture=None if self.mixture is None else self.mixture.record(),
            lineage=lineage(self.config, name=self.name, parent=self.parent, data=fingerprints, added=self.added),
            defaults=chosen,
            chat_template_sha256=template_sha256(trainer.processing_class),
            resumed=resumed,
            rows={use.what: use.record() for use in trainer.row_use()},
        )

    def note_engine(self, facts: dict[str, Any]) -> None:
        """Add to `run.json` which engine trains and how much of the model one process holds."""
        if is_main_process():
            self.folder.note_world(facts)

    # ---- evaluation ----

    def evaluator(self, trainer: Any, data: dict[str, Any]) -> tuple[Any, Any] | None:
        """(evaluate(model), settings), or None without evaluation data or verifier."""
        if "eval" not in data or verifier_name(self.config) is None:
            return None
        return recipe_evaluator(
            self.config, tokenizer=trainer.processing_class, rows=data["eval"], accelerator=trainer.accelerator
        )

    def evaluate(self, trainer: Any, data: dict[str, Any], name: str) -> None:
        """Evaluate the model as it is and record the result under `name`."""
        found = self.evaluator(trainer, data)
        if found is None:
            return
        with gathered_weights(trainer.model) if trainer.model_wrapped is trainer.model else nullcontext():
            result = found[0](trainer.model)
            tasks = self.evaluate_tasks(trainer, data, result)
        if is_main_process():
            self.folder.write_eval(name, result, step=trainer.state.global_step, settings=found[1], tasks=tasks)
            label = name if self.name == "run" else f"{self.name}, {name}"
            say(
                f"{label}: accuracy {result.accuracy:.3f} ± {result.accuracy_stderr:.3f}, {result.num_prompts} prompts"
            )

    def evaluate_tasks(self, trainer: Any, data: dict[str, Any], own: Any) -> dict[str, Any]:
        """Results of `data.eval_tasks` by name; `own` stands for a task whose rows and verifier are those of it."""
        results: dict[str, Any] = {}
        usual, block = verifier_name(self.config), self.config.data
        for name, source in (block.eval_tasks or {}).items():
            verifier = source.verifier or usual
            if source.model_dump(exclude={"verifier"}) == block.eval.model_dump() and verifier == usual:
                results[name] = own
                continue
            rows, tokenizer = data[TASK_ROWS + name], trainer.processing_class
            call, _ = recipe_evaluator(
                self.config, tokenizer=tokenizer, rows=rows, accelerator=trainer.accelerator, verifier=verifier
            )
            results[name] = call(trainer.model)
        return results

    def schedule_evaluation(self, trainer: Any, data: dict[str, Any]) -> None:
        """Measure in the course of training what the recipe asks for: probes, evaluations."""
        probes = {name.removeprefix(PROBE_ROWS): rows for name, rows in data.items() if name.startswith(PROBE_ROWS)}
        if probes:
            trainer.add_callback(
                AnswerProbe(
                    trainer,
                    probes,
                    every_steps=self.config.eval.probe_every_steps,
                    batch_size=self.config.eval.batch_size,
                    chat_template_kwargs=template_variables(self.config),
                )
            )
        every = self.config.eval.every_steps if self.config.eval is not None else None
        found = self.evaluator(trainer, data) if every is not None else None
        if found is None:
            return

        def record(step: int, result: Any) -> None:
            self.folder.write_eval(f"step-{step:06d}", result, step=step, settings=found[1])

        trainer.add_callback(PeriodicEvaluation(int(every or 0), evaluate=found[0], record=record))

    # ---- results ----

    def save(self, trainer: Any) -> None:
        """The trained model with its tokenizer; to the Hub, if asked for; merged, if asked for."""
        save_trained(trainer, self.config, folder=self.folder, is_main=is_main_process())

    def outcome(self) -> Outcome:
        """The recorded result."""
        evals = self.folder.read_evals()
        before, after = (evals.get(name, {}).get("accuracy") for name in ("before", "after"))
        return Outcome(self.name, self.folder.path, self.model_dir, before, after)

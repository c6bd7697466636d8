"""The pre-flight: everything that can be known to be wrong before a weight is read, found in one go.

`posttrain check` and `posttrain train` run the same checks. Findings are collected, not raised one by one; a check
that needs what an earlier one could not provide is left out. Tokenizer and data are loaded, weights never.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from posttrain import registry
from posttrain.config.build import build_args, reward_scorer
from posttrain.config.model_facts import ModelFacts, describe
from posttrain.config.run_config import RunConfig
from posttrain.config.stages import resolve_stages
from posttrain.config.steps import steps_of
from posttrain.config.validation import RecipeError
from posttrain.errors import ConfigError, PosttrainError
from posttrain.models.loading import load_tokenizer
from posttrain.preflight import data as checks_data
from posttrain.preflight import engine as checks_engine
from posttrain.preflight import facts as checks_facts
from posttrain.preflight import mixture as checks_mixture
from posttrain.preflight import model as checks_model
from posttrain.preflight import optimizer as checks_optimizer
from posttrain.preflight import rendering as checks_rendering
from posttrain.preflight import rewards as checks_rewards
from posttrain.preflight import run as checks_run
from posttrain.preflight import saving as checks_saving
from posttrain.preflight import streams as checks_streams
from posttrain.preflight import tasks as checks_tasks
from posttrain.preflight import template as checks_template
from posttrain.preflight.data import Rows
from posttrain.preflight.length_budget import LengthBudget
from posttrain.preflight.quiet import quiet
from posttrain.preflight.report import CheckReport
from posttrain.preflight.streams import Say
from posttrain.preflight.template import PromptEncoder


def check(
    cfg: RunConfig, *, world_size: int = 1, show_rows: int = 0, will_train: bool = False, all_rows: Say | None = None
) -> CheckReport:
    """Check a recipe with its data, tokenizer and rewards.

    Args:
        cfg: a loaded recipe, with or without stages.
        world_size: number of processes of the run.
        show_rows: rows to preview with trained tokens marked.
        will_train: the run starts here and now: what this machine lacks is an error instead of a warning. Under
            several processes every rank must then call this.
        all_rows: read every row of streams, too, and tell this how far it is.

    Returns:
        All findings; `raise_if_failed` raises them.
    """
    report, loaded = CheckReport(), _Loaded()
    runs = [run for _, _, run in resolve_stages(cfg)]
    with quiet(), checks_model.offline_if_unreachable(runs):
        checks = [
            (name, _Check(run, loaded, world_size=world_size, show_rows=show_rows, will_train=will_train))
            for name, _, run in resolve_stages(cfg)
        ]
        for _, stage in checks:
            stage.run()
            checks_streams.read_all(stage.cfg, stage.trained["train"], stage.tokenizer(), stage.report, say=all_rows)
        origins = {name: start for name, start, _ in resolve_stages(cfg)}
        encoders = {name: (stage.cfg, stage.encoder) for name, stage in checks if stage.encoder is not None}
        report.warnings += checks_rendering.stage_findings(encoders, origins)
        # Last, because the config class joins the process group: from then on transformers writes on rank 0 only.
        for name, stage in checks:
            stage.arguments()
            report.merge(stage.report, prefix=f"{name}: " if cfg.stages is not None else "")
    return report


@dataclass
class _Loaded:
    """What stages share: tokenizers and data by the block that names them."""

    tokenizers: dict[str, Any] = field(default_factory=dict)
    datasets: dict[str, Any] = field(default_factory=dict)
    tasks: dict[str, Any] = field(default_factory=dict)


class _Check:
    """The checks of one run, in the order in which they depend on each other."""

    def __init__(self, cfg: RunConfig, loaded: _Loaded, *, world_size: int, show_rows: int, will_train: bool):
        self.cfg, self.loaded = cfg, loaded
        self.world_size, self.show_rows, self.will_train = world_size, show_rows, will_train
        self.entry, self.steps = registry.get(cfg.method.name), steps_of(cfg)
        self.report, self.buildable, self.has_model = CheckReport(), False, True
        self.facts: ModelFacts | None = None
        self.trained: dict[str, Rows | None] = {}
        self.encoder: PromptEncoder | None = None
        self.demonstrated = checks_data.uses_demonstrations(cfg, self.entry)

    def run(self) -> None:
        """Everything but the config class."""
        arithmetic = list(checks_run.batch_arithmetic(self.cfg, self.entry, world_size=self.world_size))
        self.report.errors += arithmetic
        self.report.errors += checks_run.support(self.cfg, self.entry, world_size=self.world_size)
        for finding in checks_run.machine(self.cfg):
            self.add(self.will_train, finding)
        self.buildable = not arithmetic and not (self.will_train and self.report.errors)
        tokenizer = self.tokenizer() if self.model() else None
        checks_saving.find(self.cfg, tokenizer, is_known=self.facts is not None, add=self.add, facts=self.report.facts)
        if tokenizer is not None and self.facts is not None:
            for stops, finding in checks_facts.token_findings(self.cfg, self.facts, tokenizer):
                self.add(stops, finding)
        train = self.rows("train")
        held_out = self.rows("eval") if self.cfg.data.eval is not None else None
        further = {name: self.rows(name) for name in ("validation", "retain") if getattr(self.cfg.data, name)}
        self.trained = {"train": train, **further}
        for rows in (train, held_out, *further.values()):
            # A trap of the template shows in training rows first; it need not be told twice.
            if rows is not None and tokenizer is not None and not self.texts(rows, tokenizer):
                break
        for stops, finding in checks_tasks.task_findings(self.cfg, train, loaded=self.loaded.tasks):
            if stops:
                self.missing(finding, "data", "eval_tasks")
            else:
                self.add(False, finding)
        for finding in checks_tasks.probe_findings(self.cfg, loaded=self.loaded.tasks):
            self.missing(finding, "data", "probes")
        self.further(tokenizer)
        if train is not None:
            for others in (held_out, further.get("validation")):
                if others is not None:
                    self.report.warnings += checks_data.shared_rows(self.cfg, train, others)
            asked = self.asked(train, held_out, tokenizer)
            if asked is not None:
                self.rewards(asked)
            if not arithmetic:
                self.length(train)

    def add(self, stops: bool, finding: PosttrainError) -> None:
        found = self.report.errors if stops else self.report.warnings
        if str(finding) not in {str(known) for known in found}:
            found.append(finding)

    def missing(self, error: PosttrainError, *key: str) -> None:
        """Something could not be loaded: an error, unless only the Hub is out of reach and nothing starts here."""
        stops = self.will_train or not checks_model.is_unreachable(error)
        self.add(stops, checks_model.explained(self.cfg, error, *key))

    # ---- what needs no rows ----

    def arguments(self) -> None:
        """Build the config class, whose own rules then apply; its warnings become ours."""
        if not self.buildable:
            return
        changes = checks_run.dry_run_changes(self.cfg, world_size=self.world_size, will_train=self.will_train)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            try:
                args = build_args(self.cfg, output_dir=str(self.cfg.trainer.output_dir), changes=changes)
            except PosttrainError as error:
                self.report.errors.append(error)
            else:
                self.report.errors += checks_optimizer.optimizer_findings(self.cfg, args)
                self.tokenizer_settings(args)
                self.model_settings(args)
                self.data_settings(args)
        told = [str(item.message) for item in caught if item.category is UserWarning]
        self.report.warnings += [ConfigError(text.rstrip("."), where=self.cfg.where("method")) for text in told]

    def tokenizer_settings(self, args: Any) -> None:
        """What the method's settings ask of tokenizer and model."""
        tokenizer = self.tokenizer()
        if tokenizer is not None and self.entry.learns_rows:
            for finding in args.tokenizer_findings(tokenizer, has_adapter=self.cfg.model.lora is not None):
                self.add(True, checks_model.explained(self.cfg, finding))
        if self.facts is not None and self.entry.learns_rows:
            weights = () if self.cfg.model.lora is not None else self.facts.weights
            for finding in args.model_findings(self.facts.modules, weights):
                self.add(True, checks_model.explained(self.cfg, finding))

    def model_settings(self, args: Any) -> None:
        """What the batches and lengths of the run ask of the architecture."""
        if self.facts is not None:
            for findings in (checks_facts.isolation, checks_facts.length_settings):
                for stops, finding in findings(self.cfg, self.facts, args):
                    self.add(stops, checks_model.explained(self.cfg, finding))

    def data_settings(self, args: Any) -> None:
        """What the method's settings ask of the rows."""
        rows = {name: found.streams or found.dataset for name, found in self.trained.items() if found is not None}
        if len(rows) < len(self.trained) or not rows:
            return
        found: Iterable[PosttrainError] = ()
        if self.entry.learns_rows:
            settings_complete = not any(step.decides_later for step in self.steps.values())
            tokenizer = self.tokenizer()
            found = args.data_findings(
                rows, world_size=self.world_size, tokenizer=tokenizer, settings_complete=settings_complete
            )
        elif args.prompt_groups is not None:
            found = checks_data.share_findings(args, rows["train"])
        added = (finding for step in self.steps.values() for finding in step.findings(self.cfg, args, rows))
        for finding in (*found, *added):
            self.add(True, checks_model.explained(self.cfg, finding))

    def model(self) -> bool:
        """The model's configuration, without weights; then the folder and the disk. Whether there is a model."""
        size, found = None, True
        try:
            facts = describe(self.cfg)
        except PosttrainError as error:
            found = self.has_model = checks_model.is_unreachable(error)
            self.missing(error)
        else:
            for stops, finding in (
                *checks_model.findings(self.cfg, facts),
                *checks_facts.weight_findings(self.cfg, facts),
            ):
                self.add(stops, finding)
            for finding in checks_engine.model_on_cpu(self.cfg, head_size=facts.head_size):
                self.add(self.will_train, finding)
            size, self.facts = facts.checkpoint_bytes, facts
            self.report.facts += facts.lines
        for stops, finding in checks_run.output_folder(self.cfg, checkpoint_bytes=size):
            self.add(stops, finding)
        return found

    def tokenizer(self) -> Any:
        """The tokenizer, or None if it cannot be had."""
        if not self.has_model:  # a folder that cannot be read is told once
            return None
        key = self.cfg.model.model_dump_json(include={"path", "tiny", "package", "revision"})
        if key not in self.loaded.tokenizers:
            try:
                self.loaded.tokenizers[key] = load_tokenizer(self.cfg.model)
            except PosttrainError as error:
                self.loaded.tokenizers[key] = None
                self.missing(error)
        return self.loaded.tokenizers[key]

    # ---- rows ----

    def rows(self, split: str) -> Rows | None:
        """One split with its findings, or None if it cannot be had."""
        source = getattr(self.cfg.data, split)
        key = source.model_dump_json() + repr((self.cfg.data.system_prompt, self.column(split)))
        if key not in self.loaded.datasets:
            try:
                self.loaded.datasets[key] = checks_mixture.load_split(self.cfg, split, self.tokenizer())
            except PosttrainError as error:
                self.loaded.datasets[key] = None
                self.missing(error, "data", split)
        loaded = self.loaded.datasets[key]
        if loaded is None:
            return None
        self.report.facts += loaded.facts
        self.report.warnings += loaded.warnings
        rows = checks_data.as_rows(split, loaded.dataset, demonstration_column=self.column(split))
        rows.streams = loaded.streams
        faults = list(checks_data.prompt_findings(self.cfg, rows))
        self.report.errors += faults
        self.report.errors += checks_data.answer_findings(self.cfg, rows, graded=self.graded(split))
        if split != "eval" and self.demonstrated:
            for stops, finding in checks_data.demonstration_findings(self.cfg, self.entry, rows):
                self.add(stops, finding)
        return None if faults else rows

    def column(self, split: str) -> str:
        """Column of the demonstrations; "prompt" where training learns its documents whole."""
        column = str(getattr(self.cfg.method, "demonstration_column", "solution"))
        return "solution" if split == "eval" and column == "prompt" else column

    def graded(self, split: str) -> list[str]:
        """Rewards in use on a split that compare with the column `answer`."""
        names = [entry.name for entry in self.cfg.rollout.rewards] if self.cfg.rollout is not None else []
        if split == "eval" and self.cfg.eval is not None and self.cfg.eval.verifier is not None:
            names.append(self.cfg.eval.verifier)
        return [name for name in names if name in ("exact", "math")]

    def texts(self, rows: Rows, tokenizer: Any) -> bool:
        """Template, lengths and previews of one split. Whether its texts can be read at all."""
        encoder = PromptEncoder.of(self.cfg, tokenizer, rows, column=self.column(rows.split))
        trained = self.demonstrated and rows.split != "eval"
        before = len(self.report.errors)
        for stops, finding in checks_template.tokenizer_findings(self.cfg, tokenizer, rows):
            self.add(stops, finding)
        if len(self.report.errors) > before:
            return False
        for stops, finding in checks_template.template_findings(self.cfg, encoder, rows, trained=trained):
            self.add(stops, finding)
        if len(self.report.errors) > before:
            return False
        for stops, finding in checks_rendering.rendering_findings(self.cfg, encoder, trained=trained):
            self.add(stops, finding)
        if len(self.report.errors) > before:
            return False
        budget, learns = LengthBudget(rows), trained and self.entry.learns_rows
        for stops, finding in checks_data.long_prompts(self.cfg, rows, budget.prompt_counter(encoder, of_rows=learns)):
            self.add(stops, finding)
        if trained:
            count = budget.row_counter(self.cfg, learns, encoder, rows)
            for stops, finding in checks_data.long_demonstrations(self.cfg, self.entry, rows, count):
                self.add(stops, finding)
        if self.facts is not None:
            for findings in (checks_facts.unknown_tokens, checks_facts.long_rows):
                for stops, finding in findings(self.cfg, self.facts, encoder, rows, budget, trained=trained):
                    self.add(stops, finding)
        self.report.facts += budget.facts()
        if rows.split == "train":
            self.report.previews += checks_rendering.previews(self.cfg, encoder, trained=trained, count=self.show_rows)
            self.report.facts += checks_rendering.reward_facts(self.cfg, tokenizer)
            self.encoder = encoder
        return True

    def further(self, tokenizer: Any) -> None:
        """Further tasks and probes: whether the template takes them, and tokens and positions of the model suffice."""
        if tokenizer is None or self.facts is None:
            return
        for rows, trained in checks_tasks.further_rows(self.cfg, loaded=self.loaded.tasks):
            encoder = PromptEncoder.of(self.cfg, tokenizer, rows, column="solution")
            found = checks_template.template_findings(self.cfg, encoder, rows, trained=trained)
            faults = [finding for stops, finding in found if stops]
            self.report.errors += faults
            for look in () if faults else (checks_facts.unknown_tokens, checks_facts.long_rows):
                for stops, finding in look(self.cfg, self.facts, encoder, rows, LengthBudget(), trained=trained):
                    self.add(stops, finding)

    def asked(self, rows: Rows, held_out: Rows | None, tokenizer: Any) -> Rows | None:
        """Rows as the rewards will see them; None if there are none, or a method cannot ask about its documents."""
        if "documents" not in self.entry.inputs:
            return rows if self.column("train") != "prompt" else held_out
        if tokenizer is None:
            return None
        try:
            for step in self.steps.values():
                rows = step.questions(self.cfg, rows, tokenizer)
            return rows
        except RecipeError as several:
            self.report.errors += several.errors
            return None
        except PosttrainError as error:
            self.missing(error, "data", "train")
            return None

    def rewards(self, rows: Rows) -> None:
        """Call each reward function once."""
        calls: list[tuple[str, str, bool]] = []
        rollout, settings = self.cfg.rollout, self.cfg.eval
        if rollout is not None:
            verdict = rollout.verifier or rollout.rewards[0].name
            for index, entry in enumerate(rollout.rewards):
                calls.append((entry.name, self.cfg.where("rollout", "rewards", index), entry.name == verdict))
        if settings is not None and settings.verifier not in (None, *(name for name, _, _ in calls)):
            calls.append((str(settings.verifier), self.cfg.where("eval", "verifier"), True))
        threshold = float(getattr(self.cfg.method, "success_threshold", 1.0))
        for place, (name, where, is_verifier) in enumerate(calls):
            in_evaluation = rollout is None or place >= len(rollout.rewards)
            try:
                reward = reward_scorer(self.cfg, name, evaluation=in_evaluation)
                reward.load()
            except PosttrainError as error:
                self.report.errors.append(checks_rewards.placed(error, where))
                continue
            for stops, finding in checks_rewards.reward_findings(
                rows,
                name=name,
                where=where,
                limits_of="eval" if in_evaluation else "rollout",
                reward=reward,
                is_verifier=is_verifier,
                threshold=threshold,
            ):
                self.add(stops, finding)

    def length(self, rows: Rows) -> None:
        """Enough rows for one batch, and the length of the run."""
        left = len(rows) - len(rows.dropped)
        if self.entry.generates and self.cfg.rollout is not None:
            steps = checks_run.steps_per_generation(self.cfg, self.world_size) or 1
            batch = checks_run.rows_per_micro_step(self.cfg, self.world_size) * steps
            prompts = batch // self.cfg.rollout.num_generations
            if left < prompts:
                self.report.errors.append(
                    ConfigError(
                        f"a generation batch needs {prompts} prompts, so no step would ever be made",
                        where=self.cfg.where("data", "train"),
                        got=f"{left} rows",
                        fix="Add rows, or lower trainer.per_device_train_batch_size or gradient_accumulation_steps",
                    )
                )
                return
            self.report.errors += checks_data.supervised_step_findings(self.cfg, rows, world_size=self.world_size)
        if left:
            counted = left if rows.streams is None else None
            total, told = checks_run.run_length(self.cfg, self.entry, num_rows=counted, world_size=self.world_size)
            self.report.facts += told
            self.report.warnings += checks_run.length_warnings(self.cfg, total_steps=total)

"""Settings of training with proportions of groups that a controller decides."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal

from posttrain.errors import ConfigError, PosttrainError
from posttrain.methods.aioli.building import check_groups
from posttrain.methods.aioli.readers import NUMBERS, ONLINE, READ_BY, explain_unread_setting
from posttrain.seam.arguments import option
from posttrain.seam.supervised.grouped import GroupedConfig

CONTROLLERS = ("aioli", "stratified", "natural", "static", "skillit", "doremi", "doge")


@dataclass
class ControllerConfig(GroupedConfig):
    """What the controllers beside Aioli's own read."""

    prior: list[float] | None = option(None, help="Proportions of the first prior_steps, one for each group.", ge=0.0)
    prior_steps: int = option(0, help="Optimizer steps with the prior before the first round.", ge=0)
    proportions: list[float] | None = option(None, help="static: one for each group.", ge=0.0)
    proportions_from: str | None = option(
        None, help="static: JSON file with the proportions, as `posttrain mix` and every run of this method write it."
    )
    skill_graph: str | None = option(None, help="skillit: JSON file that `posttrain mix skill-graph` wrote.")
    reference_model: str | None = option(None, help="doremi: folder or Hub id of the reference model.")
    step_size: float = option(
        0.01, help="doremi: factor of the excess loss. doge: what the alignment is divided by.", gt=0.0
    )
    smoothing: float = option(1e-3, help="doremi: share of equal proportions mixed into every update.", ge=0.0, lt=1.0)


@dataclass
class AioliConfig(ControllerConfig):
    """Supervised training, or continued pre-training, on groups of rows whose proportions a controller decides.

    Paper: arXiv 2411.05735 (v2). Online methods are one optimiser with different parameters: from the matrix A, where
    A[i, j] is the drop in the loss of group i by a step on group j, the proportions follow by exponentiated gradient
    descent. Defaults are those of the paper's runs with two groups; `mixing_eval_examples` and `proportions_lag` are
    our choice.
    """

    controller: Literal["aioli", "stratified", "natural", "static", "skillit", "doremi", "doge"] = option(
        "aioli",
        help="What decides the proportions. aioli: a matrix measured in the run; stratified: equal; natural: by the "
        "rows of a group; static: proportions or proportions_from; skillit: a skill graph and the losses; doremi: "
        "excess loss over a reference; doge: inner products of gradients.",
    )
    mixing_rounds_every: int = option(
        250, help="Optimizer steps of a round: measure, update, train. Validation losses are measured as often.", ge=1
    )
    learn_sweeps: int = option(4, help="aioli: times each group's mixture is trained in a round's measurement.", ge=1)
    learn_steps: int = option(4, help="aioli: optimizer steps on a mixture each time.", ge=1)
    one_hot_factor: float = option(
        0.625, help="aioli: share of the measured group in its mixture; above 1/groups, at most 1.", gt=0.0, le=1.0
    )
    eta: float = option(0.2, help="aioli, skillit: step size of exponentiated gradient descent.", ge=0.0)
    ema: float | None = option(
        None,
        help="aioli: weight of the past in a running mean of the matrix, from which the proportions follow alone. "
        "None = the weights accumulate over the rounds.",
        ge=0.0,
        lt=1.0,
    )
    normalize_matrix: bool = option(True, help="aioli: shift the matrix to be >= 0 and scale its sum to 1.")
    diagonal: bool = option(False, help="aioli: leave out what groups do for each other. For ablations.")
    static_matrix: bool = option(False, help="aioli: keep the first round's matrix. For ablations.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_steps <= 0:
            raise ConfigError(
                "the number of steps must be known in advance: rounds are parts of it",
                where="trainer.max_steps",
                got=self.max_steps,
                allowed="> 0",
                fix="Set it in place of trainer.num_train_epochs",
            )
        if self.groups is not None and len(set(self.groups)) < len(self.groups):
            raise ConfigError("a group is named twice", where="method.groups", got=self.groups, fix="Name each once")
        if self.train_sampling_strategy != "random":
            raise ConfigError(
                "rows come in the order of the groups' shares",
                where="trainer.train_sampling_strategy",
                got=self.train_sampling_strategy,
                allowed="random",
            )
        self._check_sources()
        self._check_rounds()
        if self.controller in ONLINE:
            self._check_lag()

    def data_findings(
        self, rows: dict[str, Any], *, world_size: int, tokenizer: Any = None, settings_complete: bool = True
    ) -> Iterator[PosttrainError]:
        try:
            check_groups(
                self, rows["train"], rows.get("validation"), world_size=world_size, settings_complete=settings_complete
            )
        except PosttrainError as error:
            yield error

    def _check_lag(self) -> None:
        """A decision reaches its round, and the loader has not drawn the rows that it is to reach."""
        workers, steps = int(self.dataloader_num_workers), self.gradient_accumulation_steps
        ahead = math.ceil((workers * int(self.dataloader_prefetch_factor or 2) + 1) / steps)
        if self.proportions_lag < ahead:
            raise ConfigError(
                "the data loader reads further ahead than the lag of the proportions",
                where="method.proportions_lag",
                got=self.proportions_lag,
                allowed=f"at least {ahead} with {workers} loader workers",
                fix="Raise it, or lower trainer.dataloader_num_workers or trainer.dataloader_prefetch_factor",
            )
        if self.proportions_lag >= self.mixing_rounds_every:
            raise ConfigError(
                "a decision would not reach the next round",
                where="method.proportions_lag",
                got=self.proportions_lag,
                allowed=f"below {self.mixing_rounds_every} (method.mixing_rounds_every)",
            )

    def _check_sources(self) -> None:
        """A controller has what it reads, and nothing is given that none reads."""
        defaults = {field.name: field.default for field in fields(AioliConfig)}
        unread = [n for n, who in READ_BY.items() if getattr(self, n) != defaults[n] and self.controller not in who]
        if numbers := [name for name in unread if name in NUMBERS]:
            told = ", ".join(f"method.{name} ({'/'.join(READ_BY[name])})" for name in numbers)
            warnings.warn(f"the controller {self.controller} does not read {told}", UserWarning, stacklevel=2)
        for name in unread:
            if name not in NUMBERS:
                raise ConfigError(
                    explain_unread_setting(name),
                    where=f"method.{name}",
                    got=getattr(self, name),
                    fix=f"Remove it, or change method.controller ({self.controller})",
                )
        given = [name for name in ("proportions", "proportions_from") if getattr(self, name) is not None]
        if self.controller == "static" and len(given) != 1:
            raise ConfigError(
                "static proportions are given once",
                where="method.proportions",
                got=" and ".join(given) or None,
                allowed="exactly one of proportions, proportions_from",
            )
        for name, reader in (("skill_graph", "skillit"), ("reference_model", "doremi")):
            if self.controller == reader and getattr(self, name) is None:
                raise ConfigError(f"the controller {reader} needs it", where=f"method.{name}", got=None)
        if (self.prior is None) != (self.prior_steps == 0):
            raise ConfigError(
                "a prior and the steps it holds for go together",
                where="method.prior_steps",
                got=self.prior_steps,
                allowed="> 0 with method.prior, else 0",
            )

    def _check_rounds(self) -> None:
        steps = self.max_steps - self.prior_steps
        if self.controller in ONLINE and (steps <= 0 or steps % self.mixing_rounds_every):
            raise ConfigError(
                "the rounds do not divide the steps",
                where="method.mixing_rounds_every",
                got=f"{self.mixing_rounds_every}, with {self.max_steps} - {self.prior_steps} steps "
                "(trainer.max_steps - method.prior_steps)",
                allowed="a divisor of the difference",
            )

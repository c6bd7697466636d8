"""The course of a run in rounds: which steps only measure, when losses are taken, and when a decision is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from posttrain.methods.aioli.controllers import MixingController
from posttrain.seam.groups.sampler import FixedMixture, realised_shares

# In the folder of the run: proportions, and what they followed from.
RECORD = "mixing.json"


class Order(Protocol):
    """An order of rows whose proportions can be changed, as `GroupMixtureSampler` is one."""

    history: list[tuple[int, list[float]]]

    def set_proportions(self, proportions: Sequence[float] | np.ndarray, *, after: int) -> int:
        """Change the proportions; the first step that they reach."""

    def proportions_at(self, step: int) -> np.ndarray:
        """(m,) proportions intended for a step, planned ones included."""


class Rounds:
    """Measure, decide, train: what is due after each step of a run.

    A step is what draws one set of rows: an optimizer step of a supervised run, a generation batch of a policy run.
    After `prior_steps`, a round of `every` steps begins with the blocks that the controller wants measured, each
    `learn_steps` long; then, or at the end of the round, it decides.

    Args:
        controller: that decides.
        every, learn_steps, prior_steps: see above, in steps.
        rows_per_step: over all ranks.
        measure: losses of the groups as they are now, equal on all ranks; None where nothing is measured.
        last: step after which nothing follows, so that losses are taken and nothing is decided; None = unknown.

    Attributes:
        losses: the last measured ones.
        records: what was measured and decided, in order, as JSON.
    """

    def __init__(
        self,
        controller: MixingController,
        *,
        every: int,
        learn_steps: int,
        prior_steps: int,
        rows_per_step: int,
        measure: Callable[[], Sequence[float]] | None,
        last: int | None = None,
    ):
        self.controller, self.every, self.learn_steps, self.prior_steps = controller, every, learn_steps, prior_steps
        self.rows_per_step, self.measure, self.last = rows_per_step, measure, last
        self.losses: list[float] = []
        self.records: list[dict[str, Any]] = []
        self.order: Order | None = None
        self._history: list[tuple[int, list[float]]] = []

    # ---- rows ----

    def draw(self, order: Any) -> Any:
        """Take an order of rows, give it the proportions that hold so far, and return it."""
        self.order = order
        if self._history:
            order.load_history(self._history)
        elif self.prior_steps:
            controller = self.controller
            order.load_history([(0, controller.prior), (self.prior_steps, controller.proportions.tolist())])
        return order

    def planned(self, step: int) -> FixedMixture | None:
        """The mixture of a step of a measurement; None for other steps."""
        number, place = divmod(step - self.prior_steps, self.every)
        if number < 0:
            return None
        schedule = self.controller.learn_schedule(number)
        block, within = divmod(place, self.learn_steps)
        if block >= len(schedule):
            return None
        return FixedMixture(self.controller.mixtures[schedule[block]], first=within == 0)

    # ---- between steps ----

    def begin(self, done: int) -> None:
        """Before the first step; nothing where a run is continued."""
        if not self.losses and done == 0:
            self._take(done, "start")

    def after(self, done: int) -> bool:
        """Measure, and decide, what is due after `done` steps; the same on every rank. Whether it was anything."""
        known = len(self.records)
        number, place = divmod(done - self.prior_steps, self.every)
        is_last = self.last is not None and done >= self.last
        if self.controller.decides_at_every_step and number >= 0 and not is_last and self.order is not None:
            self.order.set_proportions(self.controller.proportions, after=done - 1)
        if number >= 0:
            self._within(done, number, place, is_last)
        return len(self.records) > known

    def _within(self, done: int, number: int, place: int, is_last: bool) -> None:
        schedule = self.controller.learn_schedule(number)
        block, within = divmod(place, self.learn_steps)
        if place == 0 or is_last:
            self._take(done, "round end" if number or place else "prior end")
            if number and not is_last and self.controller.decides_at_round_end:
                self._decide(done)
        elif within == 0 and 0 < block <= len(schedule):
            before = self.losses
            self._take(done, "probe")
            group = schedule[block - 1]
            shares = realised_shares(self.controller.mixtures[group], self.rows_per_step, self.learn_steps)
            self.controller.on_probe(group, shares, before, self.losses)
            if block == len(schedule):
                self._decide(done)

    def _take(self, done: int, event: str) -> None:
        if self.measure is not None:
            self.losses = [float(loss) for loss in self.measure()]
            self.records.append({"step": done, "event": event, "losses": self.losses})

    def _decide(self, done: int) -> None:
        assert self.order is not None
        self.controller.on_round(self.losses)
        proportions = self.controller.proportions
        record: dict[str, Any] = {"step": done, "event": "update"}
        record["first_step"] = self.order.set_proportions(proportions, after=done - 1)
        record["proportions"] = [float(value) for value in proportions]
        if self.controller.matrix is not None:
            record["matrix"] = self.controller.matrix.tolist()
        self.records.append(record)

    # ---- what is left behind ----

    def account(self, **cost: Any) -> dict[str, Any]:
        """What `mixing.json` holds; cost: of the measurements."""
        return {
            "groups": self.controller.groups,
            "proportions": self.controller.result.tolist(),
            "history": [] if self.order is None else [list(entry) for entry in self.order.history],
            "records": self.records,
            "cost": {"probe_steps": self.controller.probe_steps, **cost},
        }

    def state(self) -> dict[str, Any]:
        """Everything that changes, as JSON; `load` restores it bit by bit."""
        return {
            "controller": self.controller.state(),
            "history": [] if self.order is None else [list(entry) for entry in self.order.history],
            "losses": self.losses,
            "records": self.records,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned, before or after the order is there, and before a row is drawn."""
        self.controller.load(state["controller"])
        self.losses, self.records = state["losses"], state["records"]
        self._history = [(int(first), list(values)) for first, values in state["history"]]
        if self.order is not None:
            self.draw(self.order)

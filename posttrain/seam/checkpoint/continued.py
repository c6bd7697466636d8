"""The side of every trainer that compares a run with the checkpoint it continues; the tables are in
`resumed_settings.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.trainer_utils import get_last_checkpoint

from posttrain.errors import ResumeError
from posttrain.seam.checkpoint import manifest, resumed_settings
from posttrain.seam.checkpoint import state as checkpoint

_logger = logging.getLogger(__name__)


class ContinuedSettings:
    """What a checkpoint keeps of the settings of its run, and what becomes of those that were changed since."""

    # Settings that shape the run beside the arguments, by their path in a recipe; set before `train()`.
    settings_beside: dict[str, Any] | None = None
    # Settings whose first value a method keeps through a resume -> the sentence that says so.
    kept_on_resume: Mapping[str, str] = {}
    _weights: dict[str, Any] | None = None
    _optimizer_facts: dict[str, Any] | None = None
    _accepted: tuple[Path, dict[str, Any], list[str]] | None = None  # checkpoint, its state file, lines of changes

    def accept_checkpoint(self, folder: str | Path) -> list[str]:
        """Lines of what was changed since a checkpoint was written and is in force from the next step on.

        Reads small files alone, and every rank may ask.

        Raises:
            ResumeError: the checkpoint is damaged or not ours, or something was changed that cannot be.
        """
        folder, args = Path(folder), self.args  # type: ignore[attr-defined]
        if args.process_index == 0:
            manifest.refuse_damaged(folder)
        saved = checkpoint.read_json(folder / checkpoint.STATE_FILE)
        settings = saved.get("settings", {})
        if self.settings_beside is not None and settings.get("beside") is not None:
            beside = resumed_settings.changed_beside(settings["beside"], self.settings_beside)
            resumed_settings.refuse(beside, folder)
        self._refuse_other_layout(saved["layout"], folder)  # type: ignore[attr-defined]
        applied, refused = resumed_settings.changes(settings.get("arguments", {}), args)
        resumed_settings.refuse(refused, folder)
        self._refuse_other_weights(settings.get("weights"), folder)
        kept = [told for name, told in self.kept_on_resume.items() if any(f".{name}: " in line for line in applied)]
        self._accepted = (folder, saved, applied)
        return [*applied, *kept]

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As transformers' Trainer. What was changed since the checkpoint is in force from the first step on, or
        refused before anything is loaded.
        """
        self.tell_row_use()  # type: ignore[attr-defined]
        self._weights_facts()
        self._accepted, folder = None, resume_from_checkpoint
        if folder is True:
            folder = get_last_checkpoint(self.args.output_dir)  # type: ignore[attr-defined]
        if folder:
            for line in self.accept_checkpoint(folder):
                _logger.info("changed since the checkpoint, in force from the next step on: %s", line)
        return super().train(resume_from_checkpoint, *args, **kwargs)  # type: ignore[misc]

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers'; what the settings give it is noted before a schedule or a checkpoint changes that."""
        optimizer = super().create_optimizer(*args, **kwargs)  # type: ignore[misc]
        kind = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper, in a second `train()`
        groups = resumed_settings.fresh_groups(optimizer)
        self._optimizer_facts = {"class": type(kind).__name__, "groups": groups}
        if self._accepted is not None:
            folder, saved, applied = self._accepted
            resumed_settings.refuse_other_optimizer(saved.get("settings", {}), self._optimizer_facts, folder)
            if not groups:  # DeepSpeed makes the optimizer from a file of its own
                resumed_settings.refuse(resumed_settings.of_optimizer(applied), folder)
        return optimizer

    # ---- for the checkpoint ----

    def _settings_record(self) -> dict[str, Any]:
        """What a checkpoint keeps of the settings."""
        return {
            "arguments": resumed_settings.recorded_settings(self.args),  # type: ignore[attr-defined]
            "beside": self.settings_beside,
            "optimizer": self._optimizer_facts,
            "weights": self._weights_facts(),
        }

    def _put_in_force(self, saved: Mapping[str, Any]) -> None:
        """Right after optimizer and scheduler have taken back their state."""
        before, now = saved.get("settings", {}).get("optimizer"), self._optimizer_facts
        if now is not None and now["groups"]:
            resumed_settings.put_in_force(
                self.optimizer,  # type: ignore[attr-defined]
                self.lr_scheduler,  # type: ignore[attr-defined]
                before=before["groups"] if before is not None else None,
                now=now["groups"],
            )
        # transformers 5.17 goes on with the intervals of the checkpoint.
        self.state.compute_steps(self.args, self.state.max_steps)  # type: ignore[attr-defined]

    def _weights_facts(self) -> dict[str, Any]:
        # Before the first `train()` wraps the model, which changes names and may split tensors.
        self._weights = self._weights or resumed_settings.weights_recorded(self.model)  # type: ignore[attr-defined]
        return self._weights

    def _refuse_other_weights(self, was: Mapping[str, Any] | None, folder: Path) -> None:
        now = self._weights_facts()
        if was is None or was == {name: now[name] for name in was}:
            return
        counts = [f"{facts['parameters']} parameters, {facts['trained']} of them trained" for facts in (was, now)]
        raise ResumeError(
            f"the model is not that of the run to continue, which has {counts[0]}",
            where=str(folder),
            got=counts[1] if counts[0] != counts[1] else "as many, of other names, shapes or values",
            fix="Restore the model and its adapters, or start anew with trainer.resume: never",
        )

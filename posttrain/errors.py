"""Errors a user can cause. Each message says in one line where, what, what was given, what is allowed, what to do."""

from __future__ import annotations

from typing import Any, Self

_MISSING: Any = object()


class PosttrainError(Exception):
    """A mistake or an unsupported wish of the user; the command line prints its text without a traceback.

    Args:
        what: the finding, a clause without a full stop ("unknown key").
        where: field path, file and line, or data row ("trainer.learning_rate", "recipes/a.yaml:12", "train row 7").
        got: the offending value; shown with `repr`, shortened to 120 characters.
        allowed: what would have been accepted ("float > 0", "one of: a, b").
        fix: the next step, an imperative sentence.
    """

    exit_status = 2  # of a command that ends with it
    is_told = False  # set once the user has seen it
    is_shared = False  # set where every rank raises the same, so that one of them tells it

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        got: Any = _MISSING,
        allowed: str | None = None,
        fix: str | None = None,
    ):
        self.what, self.where, self.got, self.allowed, self.fix = what, where, got, allowed, fix
        facts = []
        if got is not _MISSING:
            shown = repr(got)
            facts.append(f"got {shown if len(shown) <= 120 else shown[:117] + '...'}")
        if allowed is not None:
            facts.append(f"allowed: {allowed}")
        text = f"{where}: {what}" if where else what
        text += f" ({'; '.join(facts)})" if facts else ""
        super().__init__(text + (f". {fix.rstrip('.')}{'' if fix.endswith(('?', '!')) else '.'}" if fix else "."))

    def at(self, where: str) -> Self:
        """The same error with this place, unless it has one."""
        if self.where:
            return self
        facts = {} if self.got is _MISSING else {"got": self.got}
        return type(self)(self.what, where=where, allowed=self.allowed, fix=self.fix, **facts)


class ConfigError(PosttrainError):
    """A recipe, an override or a config object holds a value that cannot be used."""


class DataError(PosttrainError):
    """A dataset lacks a column, or a row is empty, too long or malformed."""


class RewardError(PosttrainError):
    """A reward function raised, or returned a value of the wrong type, range or number."""


class SupportError(PosttrainError):
    """The combination of method, engine, hardware and feature is not supported; refused at the start."""


class ResumeError(PosttrainError):
    """A checkpoint is incomplete, damaged or belongs to another run."""

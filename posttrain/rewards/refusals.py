"""An error that a worker process found, as an error of the training process."""

from __future__ import annotations

from typing import Any

from posttrain import errors
from posttrain.errors import PosttrainError, RewardError


def refusal_told(facts: dict[str, Any]) -> PosttrainError:
    """The error that a worker reported, as if it had been raised here."""
    kind = getattr(errors, str(facts["kind"]), RewardError)
    kind = kind if isinstance(kind, type) and issubclass(kind, PosttrainError) else RewardError
    texts = {name: None if facts[name] is None else str(facts[name])[:2000] for name in ("where", "allowed", "fix")}
    got = {"got": _Verbatim(facts["got"])} if "got" in facts else {}
    return kind(str(facts["what"])[:2000], **texts, **got)


class _Verbatim(str):
    """Text that is already what `repr` gave."""

    def __repr__(self) -> str:
        return str(self)

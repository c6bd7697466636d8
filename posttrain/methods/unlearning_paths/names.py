"""Which modules and weights of a model the settings of unlearning mean. Needs no model, only its names."""

from __future__ import annotations

import re
from collections.abc import Sequence

from posttrain.errors import ConfigError


def one_name(names: Sequence[str], pattern: str) -> str:
    """The one name of a module that a regular expression matches as a whole.

    Raises:
        ConfigError: it matches none or several; names candidates.
    """
    found = [name for name in names if name and re.fullmatch(pattern, name)]
    if len(found) == 1:
        return found[0]
    layers = [name for name in names if re.fullmatch(r".*\.\d+", name)]
    raise ConfigError(
        "the regular expression must match one module",
        where="method.module_regex",
        got=f"{pattern!r}, which matches {len(found)}",
        allowed=f"one of e.g. {', '.join(found[:8] or layers[:8])}",
    )


def chosen_weights(names: Sequence[str], patterns: Sequence[str]) -> set[str]:
    """The names of weights that one of the regular expressions matches as a whole.

    Raises:
        ConfigError: there are none.
    """
    found = {name for name in names if any(re.fullmatch(pattern, name) for pattern in patterns)}
    if not found:
        raise ConfigError(
            "no parameter would be trained",
            where="method.trainable_params_regex",
            got=list(patterns),
            allowed=f"whole names, e.g. {names[0]}" if names else None,
        )
    return found

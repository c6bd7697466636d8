"""What a reward function may return: a number, or None where it does not apply. NaN is a mistake, not an outcome."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

from posttrain.errors import RewardError


def checked_rewards(functions: Any) -> Any:
    """The reward functions with NaN refused; models and their names pass through.

    trl 1.16 turns None into NaN, after which the two cannot be told apart.

    Args:
        functions: one reward or a list, as a trainer takes them.

    Returns:
        The same shape; wrapped functions keep their name and stay asynchronous if they were.
    """
    if isinstance(functions, list):
        return [checked_rewards(function) for function in functions]
    if not callable(functions) or hasattr(functions, "forward"):
        return functions
    return _checked(functions)


def _checked(function: Callable[..., Any]) -> Callable[..., Any]:
    name = getattr(function, "__name__", type(function).__name__)

    def refuse_nan(values: Any) -> Any:
        for row, value in enumerate(values):
            if isinstance(value, float) and math.isnan(value):
                raise RewardError(
                    f"reward {name!r} returned NaN",
                    where=f"rollout {row} of this process",
                    allowed="a finite number, or None where the reward does not apply",
                )
        return values

    if inspect.iscoroutinefunction(function):

        async def checked_async(*args: Any, **kwargs: Any) -> Any:
            return refuse_nan(await function(*args, **kwargs))

        checked: Callable[..., Any] = checked_async
    else:

        def checked_sync(*args: Any, **kwargs: Any) -> Any:
            return refuse_nan(function(*args, **kwargs))

        checked = checked_sync
    functools.update_wrapper(checked, function, assigned=("__doc__", "__module__"), updated=())
    checked.__name__ = name
    return checked

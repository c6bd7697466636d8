"""The worker process: reads requests, one JSON text a line, calls the reward they name, answers the same way.

Started by `pool.py` as `python -m posttrain.rewards.worker`. The pipes are descriptors of their own, so that whatever
a reward prints (it goes to standard error) cannot be taken for an answer; nothing is pickled. torch is not loaded
here, unless a user's reward imports it.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import IO, Any

from posttrain.errors import PosttrainError, RewardError
from posttrain.rewards import REWARDS, limits, load_reward
from posttrain.rewards.outcomes import call, finish, is_async, pick, reason_of

# What TRL hands to a reward function besides the columns and what cannot leave the training process.
LIVE_ARGUMENTS = ("trainer_state", "log_extra", "log_metric", "environments")


def main() -> None:
    """Serve requests until the training process closes the pipe or is gone."""
    requests, replies, lifeline = (int(text) for text in sys.argv[1:4])
    del sys.argv[1:]
    for descriptor in (requests, replies, lifeline):
        os.set_inheritable(descriptor, False)
    limits.end_with(lifeline)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    with os.fdopen(requests, "rb") as lines, os.fdopen(replies, "wb") as answers:
        settings = json.loads(lines.readline())
        _restore_path(settings["python_path"])
        found = limits.apply(
            memory_bytes=settings["memory_bytes"], network=settings["network"], processes=settings["processes"]
        )
        _answer(answers, walls=found)
        for line in lines:
            _current["request"], _, content = line.decode("ascii").partition(" ")
            _serve(json.loads(content), answers)


def _restore_path(python_path: str | None) -> None:
    """Give programs that a reward starts the user's own PYTHONPATH; this process was started with another one."""
    if python_path is None:
        os.environ.pop("PYTHONPATH", None)
    else:
        os.environ["PYTHONPATH"] = python_path


_process = os.getpid()
_current = {"request": ""}  # the secret of the request that is being worked on, part of every answer


def _answer(answers: IO[bytes], **content: Any) -> None:
    if os.getpid() != _process:
        os._exit(0)  # a fork that a reward left behind comes back here; the answer is not its to give
    content |= _current
    answers.write(json.dumps(content).encode("ascii") + b"\n")
    answers.flush()


def _serve(request: dict[str, Any], answers: IO[bytes]) -> None:
    try:
        function = _load(request["reward"], request["base_dir"])
        _answer(answers, loaded=True)
        arguments = {"prompts": request["prompts"], "completions": request["completions"], **request["columns"]}
        count = len(request["completions"])
        if not request["row_wise"]:
            _call(function, arguments, answers, name=request["reward"])
            return
        for row in range(count):
            one = {name: pick(values, row, count) for name, values in arguments.items()}
            _call(function, one, answers, name=request["reward"])
    except PosttrainError as refusal:
        facts = {"got": repr(refusal.got)[:200]} if "(got " in str(refusal) else {}
        named = {name: getattr(refusal, name) for name in ("what", "where", "allowed", "fix")}
        _answer(answers, refused={"kind": type(refusal).__name__, **named, **facts})


def _call(function: Callable[..., Any], arguments: dict[str, Any], answers: IO[bytes], *, name: str) -> None:
    """One call and its answer: values, or why there are none. Only a mistake that no other row undoes is raised."""
    started = time.perf_counter()
    work = call(function, arguments, name=name, on_retry=lambda: _answer(answers, retrying=True))
    try:
        content: dict[str, Any] = {"values": finish(work, waits=is_async(function))}
    except PosttrainError:
        raise
    except MemoryError:
        content = {"raised": "MemoryError: more than reward_memory_bytes allows"}
    except (Exception, SystemExit) as problem:  # noqa: BLE001 - a reward may raise anything; told as a reason
        content = {"raised": reason_of(problem)}
    _answer(answers, **content, seconds=time.perf_counter() - started)


_loaded: dict[tuple[str, str], Callable[..., Any]] = {}


def _load(name: str, base_dir: str) -> Callable[..., Any]:
    """The reward function, loaded once; what it imports late is loaded here, outside the time limit of a call."""
    if (name, base_dir) in _loaded:
        return _loaded[name, base_dir]
    function = load_reward(name, base_dir)
    if name in REWARDS:
        warm_up = getattr(import_module(REWARDS[name].split(":")[0]), "warm_up", None)
        if warm_up is not None:
            warm_up()
    _refuse_live_arguments(function, name)
    _loaded[name, base_dir] = function
    return function


def _refuse_live_arguments(function: Callable[..., Any], name: str) -> None:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return  # a callable without a readable signature
    for wanted in LIVE_ARGUMENTS:
        if wanted in parameters and parameters[wanted].default is inspect.Parameter.empty:
            raise RewardError(
                f"takes {wanted!r}, which does not reach a worker process",
                where=f"reward {name!r}",
                fix=f"Give {wanted} a default and do without it, or set rollout.reward_workers: 0",
            )


if __name__ == "__main__":
    main()

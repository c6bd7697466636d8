"""The training process's side of reward workers: start them, give out rows, watch the clock, replace the dead.

One pool for each set of limits, shared by all rewards of a process. Everything happens in the calling thread, around
one poll of the workers' pipes; a worker has at most one request at a time.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import secrets
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

from posttrain.errors import RewardError, SupportError
from posttrain.rewards.limits import RewardLimits, worker_environment
from posttrain.rewards.outcomes import NOT_TRIED, RewardOutcome, failed, spread
from posttrain.rewards.refusals import refusal_told

_logger = logging.getLogger(__name__)

# Starting Python and importing a reward's libraries may take long on a busy machine or a slow disk.
START_SECONDS = 180.0
_MAX_ANSWER_BYTES = 2**24
# A worker whose pipe a grandchild holds open does not show its end there; its state is looked at this often.
_LOOK_SECONDS = 0.2
# Linux: process, user and group of the sender beside each message.
_TELLS_SENDER = hasattr(socket, "SO_PASSCRED")
_CREDENTIALS = struct.Struct("3i")
_NOTHING = (
    b'{"reward": "format", "base_dir": ".", "row_wise": true, "prompts": [], "completions": [], "columns": {}}\n'
)


@dataclass
class Task:
    """Rows for one request: a call for each of them, or one call with all."""

    rows: list[int]
    row_wise: bool


@dataclass(frozen=True)
class Job:
    """What the workers are to do with rows: which reward, on what."""

    reward: str
    encode: Callable[[Task], bytes]  # the request of a task, one line
    gives_up: Callable[[dict[int, RewardOutcome]], bool]  # whether trying further rows has become pointless


class _Gone(Exception):
    """The worker's process ended, hangs, or talks nonsense; the text says which."""


class Worker:
    """One worker process and the request it is working on."""

    def __init__(self, limits: RewardLimits):
        self.limits = limits
        request_end, self._requests = os.pipe()
        # A socket, because the kernel tells for each message of one which process sent it.
        self._replies, reply_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        if _TELLS_SENDER:
            self._replies.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        lifeline_end, self._lifeline = os.pipe()
        passed = (request_end, reply_end.detach(), lifeline_end)
        paths = [path or os.getcwd() for path in sys.path]
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "posttrain.rewards.worker", *map(str, passed)],
                stdin=subprocess.DEVNULL,
                stdout=2,
                env={**worker_environment(limits), "PYTHONPATH": os.pathsep.join(paths)},
                pass_fds=passed,
                start_new_session=True,
            )
        finally:
            for descriptor in passed:
                os.close(descriptor)
        os.set_blocking(self._requests, False)
        self._replies.setblocking(False)
        settings = {
            "memory_bytes": limits.memory_bytes,
            "network": limits.network,
            "processes": limits.processes,
            "python_path": os.environ.get("PYTHONPATH"),
        }
        self._out, self._in = json.dumps(settings).encode() + b"\n", b""
        self.task: Task | None = None
        self.walls: dict[str, str] | None = None  # as the worker found them, before it loaded any reward
        self._secret = ""  # of the request; an answer without it belongs to another one
        self.has_served = False
        self._loading, self._deadline = True, 0.0

    def begin(self, task: Task, request: bytes) -> None:
        """Take a request; the pipe is written to by `advance`."""
        self.task, self._loading = Task(list(task.rows), task.row_wise), True
        self._secret = secrets.token_hex(16)
        self._out += f"{self._secret} ".encode() + request
        self._deadline = time.monotonic() + max(START_SECONDS, self.limits.timeout_seconds)

    @property
    def is_alive(self) -> bool:
        """Whether the process still runs."""
        return self.process.poll() is None

    @property
    def seconds_left(self) -> float:
        """Until the current call is over its time."""
        return self._deadline - time.monotonic()

    def watch(self, poll: select.poll) -> None:
        """Register what this worker waits for."""
        poll.register(self._replies, select.POLLIN)
        if self._out:
            poll.register(self._requests, select.POLLOUT)

    def advance(self, outcomes: dict[int, RewardOutcome]) -> None:
        """Write and read what can be without waiting; outcomes are filled in and `task` becomes None at its end.

        Raises:
            _Gone: the process cannot finish its request. PosttrainError: the reward cannot be used at all.
        """
        with suppress(BlockingIOError, BrokenPipeError):
            while self._out:
                self._out = self._out[os.write(self._requests, self._out[: 2**16]) :]
        while self.task is not None:
            try:
                received = self._receive()
            except BlockingIOError:
                break
            if not received:
                raise _Gone(self._end())
            *lines, self._in = (self._in + received).split(b"\n")
            for line in lines:
                self._take(line, outcomes)
            if len(self._in) > _MAX_ANSWER_BYTES:
                raise _Gone("worker died: it sent something that is no answer")
        if self.task is not None and not self.is_alive:
            raise _Gone(self._end())
        if self.task is not None and self.seconds_left <= 0:
            limit = START_SECONDS if self._loading else self.limits.timeout_seconds
            raise _Gone(f"timed out: no answer within {limit:g} s (reward_timeout_seconds)")

    def _receive(self) -> bytes:
        """What there is to read; only the worker itself may have sent it, no process that it started.

        Raises:
            BlockingIOError: nothing yet. _Gone: another process wrote.
        """
        try:
            if not _TELLS_SENDER:
                return self._replies.recv(2**16)
            received, notes, _, _ = self._replies.recvmsg(2**16, socket.CMSG_SPACE(_CREDENTIALS.size))
        except ConnectionResetError:
            return b""
        senders = {_CREDENTIALS.unpack(data)[0] for _, kind, data in notes if kind == socket.SCM_CREDENTIALS}
        if received and senders != {self.process.pid}:
            raise _Gone("worker died: a process that it started wrote in its name")
        return received

    def _take(self, line: bytes, outcomes: dict[int, RewardOutcome]) -> None:
        """One line of the worker. Its process may be in the hands of a completion, so every part is checked."""
        try:
            answer = json.loads(line)
            if self.task is None or not isinstance(answer, dict):
                raise ValueError
            if self.walls is None:
                self.walls = {str(name): str(state) for name, state in answer["walls"].items()}
            elif not secrets.compare_digest(str(answer["request"]).encode(), self._secret.encode()):
                raise ValueError
            elif "refused" in answer:
                raise refusal_told(answer["refused"])
            elif "loaded" in answer or "retrying" in answer:
                self._loading = False
                self.task = self.task if self.task.rows else None
            else:
                self._settle(answer, self.task, outcomes)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise _Gone("worker died: it sent something that is no answer") from None
        if self.walls is not None and not self._loading:
            self._deadline = time.monotonic() + self.limits.timeout_seconds

    def _settle(self, answer: dict[str, Any], task: Task, outcomes: dict[int, RewardOutcome]) -> None:
        rows = task.rows[:1] if task.row_wise else task.rows
        seconds = float(answer["seconds"])
        if "raised" in answer:
            reason = str(answer["raised"])
            outcomes.update({row: failed(reason, seconds / len(rows)) for row in rows})
        else:
            values = [None if value is None else float(value) for value in answer["values"]]
            outcomes.update(zip(rows, spread(values, seconds), strict=True))
        del task.rows[: len(rows)]
        if not task.rows:
            self.task = None

    def _end(self) -> str:
        """How the process ended."""
        try:
            code = self.process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return "worker died: it closed its pipe"
        if code >= 0:
            return f"worker died: the reward ended its process with exit code {code}"
        hint = ", perhaps for lack of memory" if -code in (signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV) else ""
        return f"worker died: ended by {signal.Signals(-code).name}{hint}"

    def lose(self) -> tuple[list[int], list[int], bool]:
        """Give up the process: (rows that failed with it, rows that did not have their turn, whether it was still
        loading).
        """
        task = self.task
        self.close()
        if task is None:
            return [], [], False
        first = 1 if task.row_wise else len(task.rows)
        return task.rows[:first], task.rows[first:], self._loading

    def close(self, *, grace_seconds: float = 0.0) -> None:
        """End the process and everything it started. Given time, a worker without work ends by itself."""
        self.task = None
        if self._requests >= 0:
            os.close(self._requests)
            self._requests = -1
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=grace_seconds)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._replies.close()
        if self._lifeline >= 0:
            os.close(self._lifeline)
        self._lifeline = -1


class WorkerPool:
    """The workers of one reward file under one set of limits; they are started when there is work and kept.

    Args:
        limits: of each of them.
        is_trusted: whether what they run neither comes from the user nor works on what a model wrote with a large
            library; for others it is told which walls are missing.
    """

    def __init__(self, limits: RewardLimits, *, is_trusted: bool = True):
        if os.name != "posix":
            raise SupportError(
                "worker processes for rewards need Linux or macOS", where="rollout.reward_workers", fix="Set it to 0"
            )
        self.limits, self._idle, self._lock, self._pid = limits, list[Worker](), threading.Lock(), os.getpid()
        self.walls: dict[str, str] | None = None
        self.is_trusted = is_trusted
        atexit.register(self.close)

    def run(self, job: Job, tasks: list[Task]) -> dict[int, RewardOutcome]:
        """Outcome of every row of the tasks.

        Raises:
            PosttrainError: the reward cannot be loaded, or breaks its contract.
        """
        outcomes: dict[int, RewardOutcome] = {}
        waiting, busy = deque(tasks), list[Worker]()
        with self._lock:
            try:
                while waiting or busy:
                    if waiting and job.gives_up(outcomes):
                        outcomes.update({row: failed(NOT_TRIED, 0.0) for task in waiting for row in task.rows})
                        waiting.clear()
                    while waiting and len(busy) < self.limits.workers:
                        request = job.encode(waiting[0])
                        busy.append(self._worker())
                        busy[-1].begin(waiting.popleft(), request)
                    _wait(busy)
                    for worker in list(busy):
                        self._advance(worker, job, outcomes, waiting)
                        if worker.task is None:
                            busy.remove(worker)
            except BaseException:
                # Interrupted or refused: what is still being worked on would answer into the next call.
                for worker in busy:
                    worker.close()
                raise
        return outcomes

    def _worker(self) -> Worker:
        while self._idle:
            worker = self._idle.pop()
            if worker.is_alive:
                return worker
            worker.close()
        return Worker(self.limits)

    def _advance(self, worker: Worker, job: Job, outcomes: dict[int, RewardOutcome], waiting: deque[Task]) -> None:
        try:
            worker.advance(outcomes)
        except _Gone as end:
            row_wise = worker.task is not None and worker.task.row_wise
            lost, left, was_loading = worker.lose()
            if was_loading and worker.has_served:
                # It died between two calls, through no fault of these rows; a new one gets them.
                waiting.appendleft(Task([*lost, *left], row_wise))
                return
            if was_loading:
                raise RewardError(
                    f"cannot be loaded: {end}",
                    where=f"reward {job.reward!r}",
                    fix="Look at what it does when it is imported, and at reward_memory_bytes",
                ) from None
            seconds = self.limits.timeout_seconds if str(end).startswith("timed out") else 0.0
            outcomes.update({row: failed(str(end), seconds / len(lost)) for row in lost})
            if left:
                waiting.appendleft(Task(left, row_wise))
            return
        if self.walls is None and worker.walls is not None:
            self.walls = worker.walls
            if not self.is_trusted and (gaps := tuple(self.limits.gaps(worker.walls))):
                tell_gaps(gaps)
        if worker.task is None:
            worker.has_served = True
            self._idle.append(worker)

    def close(self) -> None:
        """End all workers; nothing is left behind."""
        if os.getpid() != self._pid:
            return  # a fork of the training process: the workers are not its children
        idle, self._idle = self._idle, []
        for worker in idle:
            worker.close(grace_seconds=0.5)


def _wait(workers: list[Worker]) -> None:
    """Until a pipe is ready, a deadline is over, or it is time to look whether a process still lives."""
    poll = select.poll()
    for worker in workers:
        worker.watch(poll)
    seconds = min([_LOOK_SECONDS, *(worker.seconds_left for worker in workers)])
    poll.poll(max(0.0, seconds) * 1000)


@cache
def tell_gaps(gaps: tuple[str, ...]) -> None:
    """Say once what untrusted reward code can reach on this machine."""
    _logger.warning(
        "this run's rewards work on untrusted code or text, and this machine leaves open to them: %s "
        "(posttrain doctor, SECURITY.md). Train in a container or as a user of its own if that matters",
        ", ".join(gaps),
    )


_pools: dict[tuple[RewardLimits, str, int], WorkerPool] = {}


def describe(limits: RewardLimits) -> str:
    """The limits in one line, with what the workers of this process found possible."""
    found = [pool.walls for (used, _, pid), pool in _pools.items() if (used, pid) == (limits, os.getpid())]
    return limits.describe(next((walls for walls in found if walls is not None), None))


def pool_of(limits: RewardLimits, group: str = "", *, is_trusted: bool = True) -> WorkerPool:
    """The pool of this process for these limits and a group of rewards that may share a process."""
    key = (limits, group, os.getpid())
    if key not in _pools:
        _pools[key] = WorkerPool(limits, is_trusted=is_trusted)
    return _pools[key]


def try_walls() -> dict[str, str]:
    """What a worker with the usual limits finds closed and open on this machine, see `walls.standing`.

    Raises:
        RewardError: no worker can be started.
    """
    pool = WorkerPool(RewardLimits(workers=1))
    try:
        job = Job("format", lambda task: _NOTHING, lambda outcomes: False)
        pool.run(job, [Task([], True)])
    finally:
        pool.close()
    return pool.walls or {}

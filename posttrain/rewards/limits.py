"""What a reward's worker process may use, and how the process takes these limits upon itself.

Loaded by every worker before anything else, so it needs only the standard library; what only Unix has is imported
where it is used. The limits protect the run from a grader that hangs, grows or dies, the walls (`walls.py`) other
processes from it. They are no jail for code that wants out: it runs as the user, with their files.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import resource
import signal
import socket
import sys
from dataclasses import dataclass
from typing import Any

from posttrain.errors import ConfigError
from posttrain.rewards.walls import CLOSED, OPEN, Openings, raise_walls, standing

_MAX_OPEN_FILES = 1024
_MAX_FILE_BYTES = 2**30
# What a worker gets of the environment, besides what the recipe names: nothing that holds a secret by its purpose.
_PASSED_ON = frozenset(
    "PATH HOME USER LOGNAME SHELL LANG LANGUAGE TZ TMPDIR TEMP TMP LD_LIBRARY_PATH DYLD_LIBRARY_PATH LD_PRELOAD "
    "PYTHONHOME PYTHONHASHSEED PYTHONUNBUFFERED PYTHONDONTWRITEBYTECODE PYTHONPYCACHEPREFIX PYTHONUTF8 "
    "PYTHONIOENCODING PYTHONWARNINGS PYTHONNOUSERSITE PYTHONUSERBASE PYTHONFAULTHANDLER VIRTUAL_ENV CONDA_PREFIX "
    "CUDA_VISIBLE_DEVICES CUDA_DEVICE_ORDER CUDA_HOME CUDA_PATH NVIDIA_VISIBLE_DEVICES HIP_VISIBLE_DEVICES "
    "ROCR_VISIBLE_DEVICES HF_HOME HF_HUB_CACHE HF_DATASETS_CACHE HF_HUB_OFFLINE HF_DATASETS_OFFLINE "
    "HF_HUB_DISABLE_TELEMETRY HF_ENDPOINT TRANSFORMERS_OFFLINE TRANSFORMERS_CACHE TORCH_HOME NLTK_DATA "
    "TOKENIZERS_PARALLELISM XDG_CACHE_HOME XDG_CONFIG_HOME XDG_DATA_HOME MPLBACKEND MPLCONFIGDIR "
    "SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE".split()
)
_PASSED_ON_FAMILY = re.compile(r"LC_[A-Z]+|[A-Z]+_NUM_THREADS")
_SECRET_VALUE = re.compile(r"://[^/\s@]*@|\b(?:hf_|sk-|gh[pousr]_|github_pat_)\w{16,}")


@dataclass(frozen=True)
class RewardLimits:
    """Worker processes that score completions, and what each of them may use."""

    workers: int = 2  # processes for each training process; 0 = rewards run inside it, without any of these limits
    timeout_seconds: float = 30.0  # for one call of a reward
    memory_bytes: int | None = 4 * 2**30  # address space of a worker; None = not limited
    network: bool = False  # whether a reward may open connections
    environment: tuple[str, ...] = ()  # environment variables that are passed on besides those known to be harmless
    processes: int = 0  # that a worker may have started at one time; 0 = it starts no programs

    def __post_init__(self) -> None:
        """Refuse values that cannot be used."""
        for name, good, allowed in (
            ("workers", self.workers >= 0, "integer >= 0"),
            ("timeout_seconds", self.timeout_seconds > 0, "float > 0"),
            ("processes", self.processes >= 0, "integer >= 0"),
            ("memory_bytes", self.memory_bytes is None or self.memory_bytes >= 2**28, "at least 268435456, or null"),
        ):
            if not good:
                got = getattr(self, name)
                raise ConfigError("out of range", where=f"rollout.reward_{name}", got=got, allowed=allowed)

    def describe(self, walls: dict[str, str] | None = None) -> str:
        """The limits in one line, for the record of a run.

        Args:
            walls: what a worker found when it tried, see `apply`; None = no worker was started yet.
        """
        if self.workers == 0:
            return "inside the training process, without limits"
        memory = "no memory limit" if self.memory_bytes is None else f"{self.memory_bytes / 2**30:.3g} GiB"
        network = "open" if self.network else "closed in Python only"
        if not self.network and (walls or {}).get("sockets") == CLOSED:
            network = "closed by the kernel"
        programs = f"{self.processes} processes" if self.processes else "no programs"
        told = "" if walls is None else f", open: {', '.join(self.gaps(walls)) or 'nothing else'}"
        return (
            f"{self.workers} worker processes for each reward file, {self.timeout_seconds:g} s a call, {memory}, "
            f"{programs}, network {network}{told}"
        )

    def gaps(self, walls: dict[str, str]) -> list[str]:
        """What is open to a reward although the recipe does not allow it, in the words of `walls.standing`."""
        allowed = {"sockets": self.network, "new processes": self.processes > 0}
        if not walls:
            return ["everything that only the kernel could close"]
        return [name for name, state in walls.items() if state == OPEN and not allowed.get(name)]


def worker_environment(limits: RewardLimits) -> dict[str, str]:
    """The environment of a worker: variables known to hold no secret and those the recipe names, with one thread a
    library. A known variable whose value looks like a secret all the same stays behind.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in limits.environment
        or ((name in _PASSED_ON or _PASSED_ON_FAMILY.fullmatch(name)) and not _SECRET_VALUE.search(value))
    }
    threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
    return {**kept, **threads}


# ---- what follows runs in the worker ----


def apply(*, memory_bytes: int | None, network: bool, processes: int) -> dict[str, str]:
    """Take the limits upon this process, for good.

    Returns:
        Which attacks the kernel keeps from this machine now, tried for real: see `walls.standing`; empty on systems
        without these walls.
    """
    _bound(resource.RLIMIT_CORE, 0)
    _bound(resource.RLIMIT_NOFILE, _MAX_OPEN_FILES)
    _bound(resource.RLIMIT_FSIZE, _MAX_FILE_BYTES)
    if memory_bytes is not None:
        _bound(resource.RLIMIT_AS, memory_bytes)
    raise_walls(Openings(network=network, processes=processes))
    found = standing() if sys.platform == "linux" else {}
    if not network:
        sys.addaudithook(_refuse_network)
    if processes == 0:
        sys.addaudithook(_refuse_programs)
    return found


def _bound(kind: int, most: int) -> None:
    _, hard = resource.getrlimit(kind)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    try:
        resource.setrlimit(kind, (most, most))
    except (ValueError, OSError):
        return  # macOS knows some of these limits by name only; SECURITY.md says so


_NETWORK_EVENTS = frozenset(f"socket.{name}" for name in "connect bind sendto getaddrinfo gethostbyname".split())


def _refuse_network(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _NETWORK_EVENTS or (event == "socket.__new__" and arguments[1] != socket.AF_UNIX):
        raise PermissionError(errno.EPERM, "rewards have no network; set rollout.reward_network: true to allow it")


_PROGRAM_EVENTS = frozenset("os.fork os.forkpty os.posix_spawn os.system os.exec subprocess.Popen".split())


def _refuse_programs(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _PROGRAM_EVENTS:
        raise PermissionError(errno.EPERM, "rewards start no processes; set rollout.reward_processes to allow some")


def end_with(lifeline: int) -> None:
    """Have the kernel kill this process group as soon as the other end of the pipe `lifeline` is closed.

    Works while the interpreter is stuck inside a C function, and when the training process is killed. Linux only;
    elsewhere a worker ends when it next looks for work.
    """
    if sys.platform != "linux":
        return

    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)

"""What a reward's worker process may use, and how the process takes these limits upon itself.

Loaded by every worker before anything else, so it needs only the standard library; what only Unix has is imported
where it is used. The limits protect the run from a grader that hangs, grows or dies, and keep what a completion may
trick it into away from the network. They are no jail for code that wants out: it runs as the user, with their files.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
import signal
import socket
import struct
import sys
from dataclasses import dataclass
from typing import Any

from posttrain.errors import ConfigError

_MAX_OPEN_FILES = 1024
_MAX_FILE_BYTES = 2**30
# Parts of a variable's name that mark its value as a secret.
_SECRET_PARTS = frozenset(
    "TOKEN TOKENS SECRET SECRETS KEY KEYS APIKEY PASS PASSWORD PASSWD PASSPHRASE CREDENTIAL CREDENTIALS AUTH "
    "AUTHORIZATION COOKIE PAT".split()
)
_SECRET_VALUE = re.compile(r"://[^/\s:@]+:[^/\s@]+@|\b(?:hf_|sk-|gh[pousr]_|github_pat_)\w{16,}")
# Linux only: prctl options, and the fields of a filter program.
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 22, 38
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _DENY = 0x7FFF0000, 0x00050000 | errno.EPERM
# Machine -> (its number in a filter, system calls refused): socket and the way round it (io_uring_setup), and reaching
# into another process (ptrace, process_vm_readv, process_vm_writev, pidfd_getfd). socketpair stays: asyncio needs it.
_FILTERS = {
    "x86_64": (0xC000003E, (41, 425, 101, 310, 311, 438)),
    "aarch64": (0xC00000B7, (198, 425, 117, 270, 271, 438)),
}


@dataclass(frozen=True)
class RewardLimits:
    """Worker processes that score completions, and what each of them may use."""

    workers: int = 2  # processes for each training process; 0 = rewards run inside it, without any of these limits
    timeout_seconds: float = 30.0  # for one call of a reward
    memory_bytes: int | None = 4 * 2**30  # address space of a worker; None = not limited
    network: bool = False  # whether a reward may open connections
    environment: tuple[str, ...] = ()  # secret environment variables that are passed on all the same

    def __post_init__(self) -> None:
        """Refuse values that cannot be used."""
        for name, good, allowed in (
            ("workers", self.workers >= 0, "integer >= 0"),
            ("timeout_seconds", self.timeout_seconds > 0, "float > 0"),
            ("memory_bytes", self.memory_bytes is None or self.memory_bytes >= 2**28, "at least 268435456, or null"),
        ):
            if not good:
                got = getattr(self, name)
                raise ConfigError("out of range", where=f"rollout.reward_{name}", got=got, allowed=allowed)

    def describe(self, network: str | None = None) -> str:
        """The limits in one line, for the record of a run.

        Args:
            network: how it is closed as a worker told, see `apply`; None = no worker was started yet.
        """
        if self.workers == 0:
            return "inside the training process, without limits"
        memory = "no memory limit" if self.memory_bytes is None else f"{self.memory_bytes / 2**30:.3g} GiB"
        by_kernel = network == "kernel" or (network is None and has_kernel_filter())
        guard = "closed by the kernel" if by_kernel else "closed in Python only"
        return (
            f"{self.workers} worker processes, {self.timeout_seconds:g} s a call, {memory}, network "
            f"{'open' if self.network else guard}"
        )


def has_kernel_filter() -> bool:
    """Whether this machine's kernel can refuse sockets to one process."""
    return sys.platform == "linux" and platform.machine() in _FILTERS and struct.calcsize("P") == 8


def worker_environment(limits: RewardLimits) -> dict[str, str]:
    """The environment of a worker: this process's, without what looks like a secret, and with one thread a library."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in limits.environment
        or not (_SECRET_PARTS & set(re.split(r"[^A-Z]+", name.upper())) or _SECRET_VALUE.search(value))
    }
    threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
    return {**kept, **threads}


# ---- what follows runs in the worker ----


def apply(*, memory_bytes: int | None, network: bool) -> str:
    """Take the limits upon this process, for good.

    Returns:
        How the network is closed: "kernel", "python" (only against code that uses Python's socket module), or "open".
    """
    import resource

    _bound(resource.RLIMIT_CORE, 0)
    _bound(resource.RLIMIT_NOFILE, _MAX_OPEN_FILES)
    _bound(resource.RLIMIT_FSIZE, _MAX_FILE_BYTES)
    if memory_bytes is not None:
        _bound(resource.RLIMIT_AS, memory_bytes)
    if network:
        return "open"
    sys.addaudithook(_refuse_network)
    return "kernel" if has_kernel_filter() and _install_filter() else "python"


def _bound(kind: int, most: int) -> None:
    import resource

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


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def _install_filter() -> bool:
    """Let the kernel refuse some system calls to this process and its children; whether it agreed."""
    architecture, refused = _FILTERS[platform.machine()]
    # Each step: (operation, steps to skip if true, steps to skip if false, operand); the last two allow and deny.
    checks = [(_EQUAL, number) for number in refused]
    if platform.machine() == "x86_64":
        checks.insert(0, (_AT_LEAST, 0x40000000))  # the same calls under the numbers of the x32 interface
    total = len(checks)
    steps = [(_LOAD, 0, 0, 4), (_EQUAL, 0, total + 2, architecture), (_LOAD, 0, 0, 0)]
    steps += [(kind, total - place, 0, number) for place, (kind, number) in enumerate(checks)]
    steps += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _DENY)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = _Program(len(steps), ctypes.cast(code, ctypes.c_void_p))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    return libc.prctl(_PR_SET_SECCOMP, 2, ctypes.byref(program), 0, 0) == 0


def end_with(lifeline: int) -> None:
    """Have the kernel kill this process group as soon as the other end of the pipe `lifeline` is closed.

    Works while the interpreter is stuck inside a C function, and when the training process is killed. Linux only;
    elsewhere a worker ends when it next looks for work.
    """
    if sys.platform != "linux":
        return
    import fcntl

    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)

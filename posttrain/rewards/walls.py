"""Walls that a reward's worker process puts around itself: Landlock, a user namespace, no capabilities, a filter of
system calls.

Each is taken if the kernel gives it, for good and for all that the process starts; `standing` then tries each attack
for real and says which are closed. Loaded by every worker before any reward, so it needs only the standard library.
None of this is there on macOS.

What holds against what:

- other processes' memory and /proc entries: Landlock, for root together with the lack of capabilities (since Linux
  6.16 whoever has CAP_PERFMON may read them); that lack alone, or for others a user namespace; the filter refuses the
  system calls that do the same.
- signals to other processes: Landlock from its version 6 (Linux 6.12), else the filter where no programs are started.
- settings of the kernel and devices, which root could write: Landlock.
- new processes, sockets, io_uring, other processes' limits, the kernel's keys: the filter.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

CLOSED, OPEN = "closed", "open"
# prctl options.
_CAPBSET_DROP, _SET_SECCOMP, _SET_NO_NEW_PRIVS = 24, 22, 38
# Operations of a filter program and what it returns.
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _DENY, _UNKNOWN = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
_CLONE_THREAD, _CLONE_NEW_USER = 0x00010000, 0x10000000
_CLONE_NEW_ANY = 0x7E020000  # every kind of namespace
_MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# Numbers of system calls on x86_64 and aarch64; None = there is no such call.
_NUMBERS: dict[str, tuple[int | None, int | None]] = {
    "clone": (56, 220),
    "clone3": (435, 435),
    "fork": (57, None),
    "vfork": (58, None),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "prlimit64": (302, 261),
    "socket": (41, 198),
    "io_uring_setup": (425, 425),
    # Into another process.
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    # Into the kernel, and out of the other walls.
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
}
_ALWAYS_REFUSED = tuple(_NUMBERS)[tuple(_NUMBERS).index("io_uring_setup") :]
_TO_OTHERS = ("rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_send_signal")
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_WRITE_FILE, _MAKE_CHAR, _MAKE_BLOCK, _REFER = 1 << 1, 1 << 6, 1 << 11, 1 << 13
_SCOPE_ABSTRACT_SOCKETS, _SCOPE_SIGNALS = 1 << 0, 1 << 1
# Devices that programs write to: the plain ones, terminals, shared memory, accelerators.
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "mqueue", "fuse", "dri", "kfd")
# Root keeps the right to read and write files of others (CAP_DAC_OVERRIDE); nothing else.
_KEPT_CAPABILITIES = 1 << 1
_TASKS_BESIDES = 16  # threads of a worker that its limit of processes must not count


@dataclass(frozen=True)
class Openings:
    """What the recipe leaves open."""

    network: bool = False
    processes: int = 0  # that a worker may have started at one time


def has_filter() -> bool:
    """Whether this machine's kernel can filter the system calls of one process."""
    return sys.platform == "linux" and platform.machine() in _MACHINES and struct.calcsize("P") == 8


def raise_walls(openings: Openings) -> None:
    """Put up every wall that this kernel gives, in the calling process. It must have one thread only."""
    if sys.platform != "linux" or struct.calcsize("P") != 8:
        return
    libc = _libc()
    if _capabilities():
        _drop_capabilities(libc)
    elif _in_a_child(_enter_user_namespace):
        _enter_user_namespace()
        if openings.processes:
            _limit_processes(openings.processes)
    if libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return
    _restrict_files_and_signals(libc, openings)
    if has_filter():
        _install_filter(libc, openings)


def standing() -> dict[str, str]:
    """Attack the parent process and this machine in every way that a wall is for, doing no harm: each "closed" or
    "open".

    Call it after `raise_walls`, in a process whose parent is the one to protect.
    """
    parent = os.getppid()
    attacks: dict[str, Callable[[], object]] = {
        "memory of other processes": lambda: _any_works(
            lambda: _open(f"/proc/{parent}/mem", os.O_RDWR),
            lambda: _open(f"/proc/{parent}/environ", os.O_RDONLY),
            lambda: _copy_memory("process_vm_readv", parent),
            lambda: _copy_memory("process_vm_writev", parent),
        ),
        "signals to other processes": lambda: os.kill(parent, 0),
        "limits of other processes": lambda: _call_kernel("prlimit64", parent, 7, 0, 0),
        "settings of the kernel": lambda: _open("/proc/sys/kernel/core_pattern", os.O_WRONLY),
        "sockets": lambda: _check(_libc().socket(2, 1, 0), os.close),
        "new processes": _fork,
    }
    return {name: OPEN if _works(attack) else CLOSED for name, attack in attacks.items()}


# ---- what `standing` tries ----


def _works(attack: Callable[[], object]) -> bool:
    try:
        attack()
    except OSError:
        return False
    return True


def _any_works(*attacks: Callable[[], object]) -> None:
    if not any(_works(attack) for attack in attacks):
        raise PermissionError


def _open(path: str, flags: int) -> None:
    os.close(os.open(path, flags))


def _call_kernel(name: str, *arguments: int) -> None:
    _check(_libc().syscall(_needed(name), *(ctypes.c_long(argument) for argument in arguments)))


def _needed(name: str) -> int:
    number = _number(name) if has_filter() else None
    if number is None:
        raise PermissionError
    return number


def _copy_memory(name: str, process: int) -> None:
    """Ask for a byte at an address where nothing is: a kernel that would do it says so, not that it may not."""
    byte = ctypes.create_string_buffer(1)
    here, there = struct.pack("2Q", ctypes.addressof(byte), 1), struct.pack("2Q", 0, 1)
    if (
        _libc().syscall(_needed(name), ctypes.c_long(process), here, 1, there, 1, 0) < 0
        and ctypes.get_errno() != errno.EFAULT
    ):
        raise PermissionError


def _fork() -> None:
    child = _libc().fork()
    if child == 0:
        os._exit(0)
    _check(child)
    os.waitpid(child, 0)


def _check(result: int, then: Callable[[int], object] = lambda _: None) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
    then(result)


# ---- capabilities, user namespace ----


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _capabilities() -> int:
    """The permitted capabilities of this process, one a bit."""
    with suppress(OSError), open("/proc/self/status", "rb") as lines:
        for line in lines:
            if line.startswith(b"CapPrm:"):
                return int(line.split()[1], 16)
    return 0


def _drop_capabilities(libc: ctypes.CDLL, kept: int = _KEPT_CAPABILITIES) -> None:
    for capability in range(64):
        if not kept >> capability & 1:
            libc.prctl(_CAPBSET_DROP, capability, 0, 0, 0)
    kept &= _capabilities()
    header = struct.pack("Ii", 0x20080522, 0)
    libc.capset(header, struct.pack("6I", kept, kept, 0, 0, 0, 0))


def _in_a_child(attempt: Callable[[], None]) -> bool:
    """Whether something that cannot be taken back works, tried in a child process."""
    child = os.fork()
    if child == 0:
        try:
            attempt()
        except BaseException:  # noqa: BLE001 - only the exit code counts
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _enter_user_namespace() -> None:
    """Be the same user in a namespace of one's own, without rights over processes outside of it."""
    user, group = os.geteuid(), os.getegid()
    _check(_libc().unshare(_CLONE_NEW_USER))
    for file, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{file}", "wb", buffering=0) as out:
            out.write(text.encode())
    _drop_capabilities(_libc(), 0)  # those over the new namespace


def _limit_processes(most: int) -> None:
    """In a user namespace of its own the kernel counts the tasks of this worker alone."""
    tasks = most + _TASKS_BESIDES
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NPROC, (tasks, tasks))


# ---- Landlock ----


def _restrict_files_and_signals(libc: ctypes.CDLL, openings: Openings) -> None:
    """Landlock: no writing to kernel settings and raw devices, no reaching into processes outside."""
    version = libc.syscall(_LANDLOCK_CREATE, None, 0, 1)
    if version < 1:
        return
    everywhere = _REFER if version >= 2 else 0
    scoped = 0
    if version >= 6:
        scoped = _SCOPE_SIGNALS | (0 if openings.network else _SCOPE_ABSTRACT_SOCKETS)
    handled = struct.pack("3Q", _WRITE_FILE | _MAKE_CHAR | _MAKE_BLOCK | everywhere, 0, scoped)
    rules = libc.syscall(_LANDLOCK_CREATE, handled, 24 if version >= 6 else 8, 0)
    if rules < 0:
        return
    try:
        if everywhere:
            _allow(libc, rules, "/", everywhere)
        for path in _writable():
            _allow(libc, rules, path, _WRITE_FILE)
        libc.syscall(_LANDLOCK_RESTRICT, rules, 0)
    finally:
        os.close(rules)


def _writable() -> list[str]:
    """Everything in the root folder but /proc, /sys and /dev, and the harmless devices."""
    found = [f"/{name}" for name in os.listdir("/") if name not in ("proc", "sys", "dev")]
    found = [path for path in found if not os.path.realpath(path).startswith(("/proc", "/sys", "/dev"))]
    with suppress(OSError):
        found += [f"/dev/{name}" for name in os.listdir("/dev") if name in _DEVICES or name.startswith("nvidia")]
    return found


def _allow(libc: ctypes.CDLL, rules: int, path: str, access: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        libc.syscall(_LANDLOCK_ADD, rules, 1, struct.pack("=Qi", access, place), 0)
    finally:
        os.close(place)


# ---- the filter ----

_Step = tuple[int, int, int, int]  # operation, steps to skip if true, steps to skip if false, operand


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def _number(name: str) -> int | None:
    return _NUMBERS[name][0 if platform.machine() == "x86_64" else 1]


def _install_filter(libc: ctypes.CDLL, openings: Openings) -> None:
    # A block a system call: the first step leaves the block for other calls, the last ones say what becomes of it.
    steps: list[_Step] = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, _MACHINES[platform.machine()]), (_RETURN, 0, 0, _DENY)]
    steps.append((_LOAD, 0, 0, 0))
    if platform.machine() == "x86_64":  # the same calls under the numbers of the x32 interface
        steps += [(_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, _DENY)]
    refused = [*_ALWAYS_REFUSED, *(() if openings.network else ("socket",))]
    own, group = os.getpid(), -os.getpid() & 0xFFFFFFFF
    steps += _only_with("prlimit64", (0, own))
    # A wish that cannot be looked at (its flags are in memory): libraries then use the older call.
    steps += _block("clone3", (_RETURN, 0, 0, _UNKNOWN))
    clone: list[_Step] = [(_LOAD, 0, 0, 16), (_ANY_BIT, 0, 1, _CLONE_NEW_ANY), (_RETURN, 0, 0, _DENY)]
    if openings.processes == 0:
        refused += ["fork", "vfork", *_TO_OTHERS]
        clone += [(_ANY_BIT, 1, 0, _CLONE_THREAD), (_RETURN, 0, 0, _DENY)]
        for name, targets in (("kill", (0, own, group)), ("tgkill", (own,)), ("tkill", (own,))):
            steps += _only_with(name, targets)
    steps += _block("clone", *clone, (_RETURN, 0, 0, _ALLOW))
    for name in refused:
        steps += _block(name, (_RETURN, 0, 0, _DENY))
    steps.append((_RETURN, 0, 0, _ALLOW))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = _Program(len(steps), ctypes.cast(code, ctypes.c_void_p))
    libc.prctl(_SET_SECCOMP, 2, ctypes.byref(program), 0, 0)


def _block(name: str, *steps: _Step) -> list[_Step]:
    number = _number(name)
    return [] if number is None else [(_EQUAL, 0, len(steps), number), *steps]


def _only_with(name: str, values: Sequence[int]) -> list[_Step]:
    """Allow a call if its first argument (32 bits of it, as for process numbers) is one of these."""
    checks: list[_Step] = [(_EQUAL, len(values) - place, 0, value) for place, value in enumerate(values)]
    return _block(name, (_LOAD, 0, 0, 16), *checks, (_RETURN, 0, 0, _DENY), (_RETURN, 0, 0, _ALLOW))

"""A vLLM server of our own: started, waited for, watched, ended."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from posttrain.errors import ConfigError, PosttrainError
from posttrain.rollouts.cpu import engine_environment
from posttrain.rollouts.guard import TOKEN_VARIABLE, WEIGHT_BYTES_VARIABLE


class EngineError(PosttrainError):
    """The inference engine died, did not answer in time, or does not hold the weights that are trained."""

    is_shared = True


@dataclass(frozen=True)
class ServerSettings:
    """What a server is started with.

    Args:
        model: folder of the weights and the tokenizer.
        dtype: e.g. "float32"; used on a CPU, where vLLM's own choice is bfloat16.
        max_model_length: tokens of prompt and completion together; None = the model's.
        seed: of the engine's sampling.
        devices: CUDA_VISIBLE_DEVICES of the server; None = as in this process.
        gpu_memory_utilization: in (0, 1], without meaning on a CPU.
    """

    model: str
    dtype: str
    max_model_length: int | None
    seed: int
    devices: str | None = None
    gpu_memory_utilization: float = 0.9

    def options(self, *, host: str, port: int, is_cpu: bool) -> list[str]:
        """Command-line options of vLLM's server."""
        options = {
            "model": self.model,
            "host": host,
            "port": port,
            "seed": self.seed,
            "logprobs-mode": "processed_logprobs",
            # vLLM 0.31's default reads defaults and a limit of length from the model's generation_config.json.
            "generation-config": "vllm",
            "middleware": "posttrain.rollouts.guard.Guard",
            "worker-extension-cls": "posttrain.rollouts.worker.EngineWorker",
        }
        if self.max_model_length is not None:
            options["max-model-len"] = self.max_model_length
        if is_cpu:
            options["dtype"] = self.dtype
        else:
            options["weight-transfer-config"] = '{"backend": "nccl"}'
            options["gpu-memory-utilization"] = self.gpu_memory_utilization
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        return words + ["--disable-uvicorn-access-log"] + ["--enforce-eager"] * is_cpu


# Addresses that only this machine, or machines of the same private network, can have (RFC 1122, RFC 1918).
_NEAR = tuple(ipaddress.IPv4Network(text) for text in ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"))


def refuse_public(host: str) -> None:
    """Refuse an address unless it is of this machine's loopback or of a private network. A name is taken if all its
    addresses are.

    Raises:
        ConfigError: with what is allowed.
    """
    for address in _addresses(host):
        is_own_v6 = isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None and address.is_private
        if is_own_v6 and not address.is_unspecified:
            raise ConfigError("not an IPv4 address", where="host", got=host, allowed="such as 127.0.0.1")
        near = isinstance(address, ipaddress.IPv4Address) and any(
            address in network and address not in (network.network_address, network.broadcast_address)
            for network in _NEAR
        )
        if not near:
            raise ConfigError(
                "an engine that takes weights does not listen on every or on a public interface",
                where="host",
                got=host,
                allowed="127.0.0.1, or the address of one private interface",
            )


def _addresses(host: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """Every address that a name stands for, or the one that is written."""
    try:
        return [ipaddress.ip_address(host)]
    except ValueError:
        pass
    try:
        # Also the old forms of a number (0, 127.1, 0x7f000001), as whatever listens would read them.
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConfigError("no such host", where="host", got=host) from error
    addresses = [ipaddress.ip_address(text) for text in sorted({str(entry[4][0]).split("%")[0] for entry in found})]
    # What listens uses an IPv4 address; a private IPv6 address beside it ("localhost" is ::1 too) does no harm.
    return [address for address in addresses if address.version == 4 or not address.is_private] or addresses


def free_port(host: str) -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def interface_of(host: str) -> str | None:
    """Name of the network interface that has an address, "lo" for 127.0.0.1; None if none has it."""
    address = socket.gethostbyname(host)
    address = "127.0.0.1" if address.startswith("127.") else address
    for name, found in psutil.net_if_addrs().items():
        if any(item.address == address for item in found):
            return name
    return None


def server_environment(
    token: str, *, host: str, is_cpu: bool, devices: str | None, model: str | None = None
) -> dict[str, str]:
    """Environment of a server's process; the token goes this way, never on the command line.

    It takes weights of four times the bytes of the files in the folder `model`, which is float32 for 8-bit ones. What
    the engine's workers open among themselves, without a token, listens on the interface of `host` alone.
    """
    # The ranks' rendezvous is not the server's: vLLM would join it.
    ranks = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")
    own = {
        k: v for k, v in os.environ.items() if k not in ranks and not k.startswith(("TORCHELASTIC_", "ACCELERATE_"))
    }
    # The routes under which trl synchronises exist in this mode alone.
    own |= {TOKEN_VARIABLE: token, "VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1"}
    own["VLLM_HOST_IP"] = socket.gethostbyname(host)
    if (interface := interface_of(host)) is not None:
        own["GLOO_SOCKET_IFNAME"] = interface
    own["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    stored = sum(file.stat().st_size for file in Path(model).glob("*.safetensors")) if model is not None else 0
    if stored:
        own[WEIGHT_BYTES_VARIABLE] = str(4 * stored + 2**20)
    if devices is not None:
        own["CUDA_VISIBLE_DEVICES"] = devices
    return own | (engine_environment() if is_cpu else {})


class EngineServer:
    """A vLLM server as a child process on loopback, with a random token in front of every route.

    It ends with `stop`, and with this process however that ends.

    Args:
        settings: what it serves.
        log: file that takes its output.
        is_cpu: whether the engine computes on the CPU.

    Attributes:
        url: "http://127.0.0.1:<port>".
        token: of this server; lives in memory and in the environment of the child.
    """

    def __init__(self, settings: ServerSettings, *, log: Path, is_cpu: bool):
        self.log, self.token = log, secrets.token_urlsafe(32)
        host = "127.0.0.1"
        port = free_port(host)
        self.url = f"http://{host}:{port}"
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = server_environment(
            self.token, host=host, is_cpu=is_cpu, devices=settings.devices, model=settings.model
        )
        command = [sys.executable, "-m", "posttrain.rollouts.serve"]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, *settings.options(host=host, port=port, is_cpu=is_cpu)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment | {"POSTTRAIN_ENGINE_PARENT": str(os.getpid())},
                start_new_session=True,
            )

    def how_it_ended(self) -> str | None:
        """Why it is not running, None while it is."""
        status = self.process.poll()
        if status is None:
            return None
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        return f"the inference server {how}"

    def wait(self, is_ready: Callable[[], bool], *, seconds: float) -> None:
        """Until it answers.

        Raises:
            EngineError: it ended, or the time is over; with the end of its output.
        """
        until = time.monotonic() + seconds
        while not is_ready():
            ended = self.how_it_ended()
            if ended is None and time.monotonic() > until:
                self.stop()
                ended = f"the inference server did not answer within {seconds:.0f} s (rollout.vllm_server_timeout)"
            if ended is not None:
                raise EngineError(f"{ended} before it was ready; the end of {self.log}: {self.last_words()}")
            time.sleep(0.5)

    def last_words(self, lines: int = 5) -> str:
        """The last lines of its output that are not empty."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return " | ".join([line.strip() for line in text.splitlines() if line.strip()][-lines:])

    def stop(self, *, seconds: float = 8.0) -> None:
        """End it: SIGTERM, and after a while SIGKILL to it and its workers."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def __enter__(self) -> EngineServer:
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()

"""trl 1.16's client of a vLLM server, with a token, deadlines, a watch on the server's life, and a transfer of weights
where trl has none (CPU).

On CUDA weights go as trl sends them (NCCL). Elsewhere they go through the server's one port as safetensors, under the
same token as everything else; no second port is opened.
"""

from __future__ import annotations

import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from functools import partial
from threading import Thread, Timer
from typing import Any

import requests
import torch
from requests.adapters import HTTPAdapter
from safetensors.torch import save
from torch import Tensor
from trl.generation.vllm_client import VLLMClient

from posttrain.rollouts.guard import TOKEN_VARIABLE, VERSION_ROUTE, WEIGHTS_ROUTE
from posttrain.rollouts.server import EngineError, EngineServer

_PART_BYTES = 64 * 2**20
_PROBE_SECONDS = 2.0
_PROBES = 3  # failures in a row that mean a server is gone; vLLM 0.31 leaves some requests open when its engine dies


class EngineClient(VLLMClient):
    """Client of one server; used by rank 0.

    A request that fails is not repeated: trl 1.16 repeats it for a minute, unaware of what the engine has done.

    Args:
        base_url, group_port, connection_timeout: as in trl; the last in seconds.
        token: goes into the header of every request.
        request_timeout: seconds that one request may take.
        server: the server, where this process has started it.
    """

    def __init__(
        self,
        base_url: str,
        *,
        token: str,
        request_timeout: float,
        server: EngineServer | None = None,
        group_port: int = 51216,
        connection_timeout: float = 0.0,
    ):
        self._token, self._seconds, self.server = token, request_timeout, server
        self._failure: EngineError | None = None
        self._on_cuda = False
        self._run, self._sync, self._version = uuid.uuid4().hex, 0, ""
        self.discarded = 0  # generations asked for early and not used
        self._ahead: tuple[list[list[int]], Future[dict[str, Any]]] | None = None
        self._last: dict[str, Any] = {}  # settings of the last generation for training
        self.is_training = True  # whether the coming generation is for training, and not for an evaluation
        super().__init__(base_url=base_url, group_port=group_port, connection_timeout=connection_timeout)

    # ---- requests ----

    def check_server(self, total_timeout: float = 0.0, retry_interval: float = 2.0) -> None:
        """Wait until the server answers to the token. Called by trl when the session has just been made."""
        # A proxy of the environment would get the token, and the weights.
        self.session.trust_env = False
        self.session.headers["Authorization"] = f"Bearer {self._token}"
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, HTTPAdapter(max_retries=0, pool_maxsize=64))
        if self.server is not None:
            self.server.wait(self._is_healthy, seconds=total_timeout)
            return
        until = time.monotonic() + total_timeout
        while not self._is_healthy():
            if time.monotonic() > until:
                raise EngineError(
                    f"rank 0 waited {total_timeout:.0f} s for the inference server at {self.base_url} (rollout."
                    "vllm_server_timeout)",
                    fix="Start it with `posttrain serve RECIPE`, and check the address",
                )
            time.sleep(0.5)

    def _is_healthy(self) -> bool:
        try:
            with requests.Session() as probe:  # of its own, since the other is in use in another thread
                probe.trust_env = False
                headers = dict(self.session.headers)
                answer = probe.get(f"{self.base_url}/health", headers=headers, timeout=_PROBE_SECONDS)
        except requests.RequestException:
            return False
        if answer.status_code == 401:
            raise EngineError(
                f"the inference server at {self.base_url} does not know this token",
                fix="Set POSTTRAIN_ENGINE_TOKEN to the one it was started with",
            )
        return answer.status_code == 200

    def _get(self, url: str, **kwargs: Any) -> Any:
        return self._request("GET", url, **kwargs).json()

    def _post(self, url: str, **kwargs: Any) -> Any:
        answer = self._request("POST", url, **kwargs)
        return answer.json() if answer.content else {}

    def _request(self, method: str, url: str, **kwargs: Any) -> requests.Response:
        doing = f"{method} {url.removeprefix(self.base_url)}"
        request = _beside(partial(self.session.request, method, url, timeout=(10, self._seconds), **kwargs))
        until, failures, probed = time.monotonic() + self._seconds, 0, time.monotonic()
        while not wait_for([request], timeout=0.5).done:
            if self.server is not None and (ended := self.server.how_it_ended()) is not None:
                raise EngineError(f"{ended} during {doing}; the end of its output: {self.server.last_words()}")
            if time.monotonic() - probed > _PROBE_SECONDS:
                failures = 0 if self._is_healthy() else failures + 1
                probed = time.monotonic()
            if failures == _PROBES or time.monotonic() > until:
                why = "is not well" if failures else f"took more than {self._seconds:.0f} s"
                raise EngineError(
                    f"rank 0 waited for {doing} and the inference server at {self.base_url} {why}",
                    fix="Look at its output; rollout.engine_timeout_seconds is the limit of one request",
                )
        try:
            answer = request.result()
        except requests.Timeout as error:
            raise EngineError(
                f"rank 0 waited for {doing} and it took more than {self._seconds:g} s",
                fix="rollout.engine_timeout_seconds is the limit of one request",
            ) from error
        except requests.RequestException as error:
            ended = self._ended(type(error).__name__)
            raise EngineError(f"{ended} during {doing}") from error
        if answer.status_code != 200:
            raise EngineError(f"the inference server answered {doing} with {answer.status_code}: {answer.text[:300]}")
        return answer

    def _ended(self, error: str) -> str:
        if self.server is None:
            return f"the connection to the inference server at {self.base_url} broke ({error})"
        for _ in range(20):  # its sockets close a moment before it can be reaped
            if (ended := self.server.how_it_ended()) is not None:
                return ended
            time.sleep(0.1)
        return (
            f"the inference server broke the connection ({error}); the end of its output: {self.server.last_words()}"
        )

    def ask(self, method: str, *args: Any) -> Any:
        """What a method of the engine's worker returns, of the first worker."""
        return self._post(f"{self.base_url}/collective_rpc", json={"method": method, "args": list(args)})["results"][0]

    # ---- whose weights the server holds ----

    def claim(self) -> None:
        """Say that the server now holds this run's weights, whole and compared."""
        self._sync += 1
        self._version = f"{self._run}:{self._sync}"
        self._request("PUT", self.base_url + VERSION_ROUTE, data=self._version)

    def _generated(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As trl's `generate`, if the server has held the same weights of this run until the end of it."""
        version = self._version
        answer = super().generate(*args, **kwargs)
        self._refuse_other(version)
        return answer

    def _refuse_other(self, version: str) -> None:
        held = self._get(self.base_url + VERSION_ROUTE)["version"]
        if held != version:
            raise EngineError(
                f"the inference server at {self.base_url} no longer holds this run's weights: another run has written "
                "its own, or the server was started anew",
                fix="Give every run a server of its own",
            )

    # ---- failures that every rank must learn of ----

    def take_failure(self) -> EngineError | None:
        """What went wrong since the last call, in `generate` or while weights were sent."""
        failure, self._failure = self._failure, None
        return failure

    def generate(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As trl's. After a failure the answer is empty, so that the other ranks, which wait for it, go on to the
        place where they learn of the failure.
        """
        try:
            settings = {name: value for name, value in kwargs.items() if name != "prompts"}
            if self._ahead is not None and self.is_training:
                (prompts, asked), self._ahead = self._ahead, None
                if prompts == kwargs.get("prompts") and settings == self._last:
                    return asked.result()
                wait_for([asked])
                self.discarded += 1
            if self.is_training:
                self._last = settings
            return self._generated(*args, **kwargs)
        except EngineError as error:
            self._failure = error
            return {"prompt_ids": [], "completion_ids": [], "logprobs": None, "logprob_token_ids": None}

    # ---- one step off ----

    def start_ahead(self, prompts: list[list[int]]) -> None:
        """Begin to generate for these prompts with the weights of now and the settings of the last training batch."""
        self.drop_ahead()
        self._ahead = (prompts, _beside(partial(self._generated, prompts=prompts, **self._last)))

    def drop_ahead(self) -> None:
        """Throw away what was asked for and not used; it is counted."""
        if self._ahead is not None:
            self.wait_ahead()
            self._ahead = None
            self.discarded += 1

    def wait_ahead(self) -> None:
        """Until nothing is being generated; weights may not change before. A failure is told when it is used."""
        if self._ahead is not None:
            wait_for([self._ahead[1]])

    # ---- weights ----

    def init_communicator(self, device: torch.device | str | int = 0) -> None:
        """Open trl's NCCL group where this process has a CUDA device; elsewhere nothing is needed."""
        self._on_cuda = torch.device(device).type == "cuda" if not isinstance(device, int) else True
        if self._on_cuda:
            with ends_by(self._seconds, f"the inference server at {self.base_url} to open the group for weights"):
                super().init_communicator(device)

    def update_named_params(self, metadata: Any, named_params: Iterator[tuple[str, Tensor]]) -> None:
        """Send tensors. `named_params` is walked to its end whatever happens: other ranks take part in it."""
        self.wait_ahead()
        try:
            if self._sync:
                self._refuse_other(self._version)
            if self._on_cuda:
                with ends_by(self._seconds, f"the inference server at {self.base_url} to take the weights"):
                    super().update_named_params(metadata, named_params)
            else:
                self._send(named_params)
        except EngineError as error:
            self._failure = error
            for _ in named_params:
                pass

    def _send(self, named_params: Iterator[tuple[str, Tensor]]) -> None:
        part: dict[str, Tensor] = {}
        size = 0
        for name, value in named_params:
            part[name] = value.detach().to("cpu", copy=True).contiguous()
            size += part[name].numel() * part[name].element_size()
            if size >= _PART_BYTES:
                self._send_part(part)
                part, size = {}, 0
        if part:
            self._send_part(part)

    def _send_part(self, part: dict[str, Tensor]) -> None:
        answer = self._request("PUT", self.base_url + WEIGHTS_ROUTE, data=save(part)).json()
        if answer["tensors"] != len(part):
            raise EngineError(f"the inference server took {answer['tensors']} of {len(part)} tensors")

    def reset_prefix_cache(self) -> None:
        """Drop what the engine computed with the old weights."""
        if self._failure is None:
            try:
                self._post(f"{self.base_url}/reset_prefix_cache")
            except EngineError as error:
                self._failure = error

    def close(self) -> None:
        """Leave the server, and end it if this process has started it."""
        self.close_communicator()
        self.session.close()
        if self.server is not None:
            self.server.stop()


@contextmanager
def ends_by(seconds: float, waiting_for: str) -> Iterator[None]:
    """End this process with a message where the block takes longer: a broadcast by NCCL cannot be called off.

    No checkpoint can be written then; the run goes on from the last one.
    """

    def end() -> None:
        rank = os.environ.get("RANK", "0")
        sys.stderr.write(
            f"error: rank {rank} waited {seconds:g} s for {waiting_for}. Look at its output, then run the same "
            "command again: it continues from the last checkpoint (rollout.engine_timeout_seconds is the limit)\n"
        )
        sys.stderr.flush()
        os._exit(2)

    timer = Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _beside(call: Callable[[], Any]) -> Future[Any]:
    """Start a call in a thread that does not keep the process alive: a server may leave a request open for ever."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - raised again where the result is asked for
            future.set_exception(error)

    Thread(target=run, daemon=True, name="engine").start()
    return future


def given_token() -> str:
    """Token of a server that runs already, from the environment; empty if there is none."""
    return os.environ.get(TOKEN_VARIABLE, "")

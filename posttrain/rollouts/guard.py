"""What stands in front of vLLM's HTTP routes: a token on every one of them, and a route that takes weights.

vLLM's own `--api-key` guards /v1 and a few more and leaves /health, /metrics, /collective_rpc, /pause and the weight
routes open; whoever reaches the port could replace the policy.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

TOKEN_VARIABLE = "POSTTRAIN_ENGINE_TOKEN"
# Most bytes of weights that are taken; without it half of the machine's memory.
WEIGHT_BYTES_VARIABLE = "POSTTRAIN_ENGINE_WEIGHT_BYTES"
# A sender of weights may pause this long, and needs a minute plus a second for each of these bytes at most.
PAUSE_SECONDS = 30.0
_LEAST_BYTES_PER_SECOND = 2**20
_GRACE_SECONDS = 60.0
WEIGHTS_ROUTE = "/posttrain/weights"
VERSION_ROUTE = "/posttrain/version"
# vLLM's own routes that replace weights, by which trl sends them on GPUs.
_TRANSFER_ROUTES = ("/init_weight_transfer_engine", "/start_weight_update", "/update_weights", "/finish_weight_update")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Guard:
    """ASGI middleware, given to vLLM by name (`--middleware`); outermost, so that nothing is answered before it.

    Without the right `Authorization: Bearer` header every request gets 401, whatever its path and method, and every
    websocket is closed. With it, PUT /posttrain/weights takes the bytes of a safetensors file into the engine's
    workers; PUT /posttrain/version keeps a text that says whose weights these are, and GET gives it back; everything
    else goes on to vLLM.

    Weights of more bytes than the environment allows get 413, before they are read where their length is told, and a
    sender that stops or trickles gets 408; nothing is loaded then.

    Args:
        app: vLLM's application.

    Raises:
        RuntimeError: the environment holds no token, or one of fewer than 32 characters.
    """

    def __init__(self, app: Any):
        token = os.environ.get(TOKEN_VARIABLE, "")
        if len(token) < 32:
            raise RuntimeError(f"{TOKEN_VARIABLE} must hold a token of at least 32 characters")
        self.app, self._expected, self._version = app, _hashed(token.encode()), ""
        half = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
        self._most_bytes = int(os.environ.get(WEIGHT_BYTES_VARIABLE) or half)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, refuse or pass on one connection."""
        kind = scope["type"]
        if kind == "lifespan":
            await self.app(scope, receive, send)
        elif not self._is_known(scope):
            await _refuse(kind, send)
        elif kind == "http" and scope["path"] == WEIGHTS_ROUTE and scope["method"] == "PUT":
            self._version = ""  # until whoever sends them says that they are all there
            if _length_told(scope) > self._most_bytes:
                await _refuse_size(self._most_bytes, send)
                return
            await _take_weights(scope["app"].state.engine_client, receive, send, most_bytes=self._most_bytes)
        elif kind == "http" and scope["path"] == VERSION_ROUTE:
            if scope["method"] == "PUT":
                try:
                    self._version = (await _body(receive)).decode(errors="replace")[:200]
                except TimeoutError:
                    await _refuse_pace(send)
                    return
            await _answer(send, 200, {"version": self._version})
        else:
            if kind == "http" and scope["path"] in _TRANSFER_ROUTES:
                self._version = ""
            await self.app(scope, receive, send)

    def _is_known(self, scope: Scope) -> bool:
        values = [value for name, value in scope.get("headers", ()) if name.lower() == b"authorization"]
        scheme, _, token = (values[0] if len(values) == 1 else b"").partition(b" ")
        return secrets.compare_digest(_hashed(token), self._expected) and scheme.lower() == b"bearer"


async def _body(receive: Receive) -> bytes:
    found, more = b"", True
    while more and len(found) < 10_000:
        message = await asyncio.wait_for(receive(), PAUSE_SECONDS)
        found, more = found + message.get("body", b""), message.get("more_body", False)
    return found


def _hashed(value: bytes) -> bytes:
    return hashlib.sha256(value).digest()


async def _refuse(kind: str, send: Send) -> None:
    if kind == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    await _answer(send, 401, {"error": "this engine takes requests with its token alone"})


def _length_told(scope: Scope) -> int:
    """Bytes that a request announces; 0 where it does not, or in words that are no number."""
    values = [value for name, value in scope.get("headers", ()) if name.lower() == b"content-length"]
    return int(values[0]) if values and values[0].isdigit() and len(values[0]) < 20 else 0


async def _refuse_size(most_bytes: int, send: Send) -> None:
    await _answer(send, 413, {"error": f"weights of more than {most_bytes} bytes are not taken"})


async def _refuse_pace(send: Send) -> None:
    await _answer(send, 408, {"error": "the request came too slowly"})


async def _answer(send: Send, status: int, body: dict[str, Any]) -> None:
    headers = [(b"content-type", b"application/json")]
    if status != 200:
        headers.append((b"connection", b"close"))  # whoever was refused holds no connection open
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})


@contextmanager
def _memory_file() -> Iterator[tuple[IO[bytes], str]]:
    """(file, path by which processes of this user open it) in memory; gone with this process, however that ends."""
    if hasattr(os, "memfd_create"):
        with os.fdopen(os.memfd_create("posttrain-weights"), "wb") as file:
            yield file, f"/proc/{os.getpid()}/fd/{file.fileno()}"
        return
    # mkdtemp: the folder is open to this user alone, and the workers run as the same user.
    with tempfile.TemporaryDirectory(prefix="posttrain-") as folder:
        path = Path(folder) / "weights.safetensors"
        with path.open("wb") as file:
            yield file, str(path)


async def _take_weights(engine: Any, receive: Receive, send: Send, *, most_bytes: int) -> None:
    with _memory_file() as (file, path):
        more, size, started = True, 0, time.monotonic()
        while more:
            left = started + _GRACE_SECONDS + size / _LEAST_BYTES_PER_SECOND - time.monotonic()
            try:
                message = await asyncio.wait_for(receive(), min(PAUSE_SECONDS, left))
            except TimeoutError:
                await _refuse_pace(send)
                return
            if message["type"] != "http.request":
                return  # the trainer went away in the middle; nothing was loaded
            part = message.get("body", b"")
            size += len(part)
            if size > most_bytes:
                await _refuse_size(most_bytes, send)
                return
            file.write(part)
            more = message.get("more_body", False)
        file.flush()
        try:
            taken = await engine.collective_rpc("posttrain_load", args=(path,))
        except Exception as error:  # noqa: BLE001 - whatever a worker raised goes to the trainer, which stops
            await _answer(send, 500, {"error": f"{type(error).__name__}: {error}"})
            return
        await _answer(send, 200, {"tensors": taken[0][0]})

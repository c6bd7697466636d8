"""Slow and greedy clients against the guard behind vLLM's own HTTP server, uvicorn; needs vLLM's environment."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from posttrain.rollouts.guard import TOKEN_VARIABLE, WEIGHT_BYTES_VARIABLE

pytestmark = pytest.mark.vllm

TOKEN = "t" * 43
SERVER = """
import sys, types, uvicorn
from posttrain.rollouts import guard, serve

guard.PAUSE_SECONDS = 1.0
serve.end_silent_connections(1.0)

async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"fine"})

class Engine:
    async def collective_rpc(self, method, args):
        return [[1]]

class Named(guard.Guard):
    async def __call__(self, scope, receive, send):
        scope["app"] = types.SimpleNamespace(state=types.SimpleNamespace(engine_client=Engine()))
        await super().__call__(scope, receive, send)

uvicorn.run(Named(app), host="127.0.0.1", port=int(sys.argv[1]), http=sys.argv[2], lifespan="off", log_level="error")
"""


@pytest.fixture(scope="module", params=["h11", "httptools"])
def port(request, tmp_path_factory):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        number = probe.getsockname()[1]
    environment = {
        TOKEN_VARIABLE: TOKEN,
        WEIGHT_BYTES_VARIABLE: "100000",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(number), request.param], env=environment)
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", number)).close()
            break
        except ConnectionRefusedError:
            time.sleep(0.1)
    yield number
    server.kill()
    server.wait()


def talk(port: int, *parts: bytes, pause: float = 0.0, limit: float = 8.0) -> tuple[bytes, float]:
    """(what came before the server closed the connection, seconds until then); fails if it stays open."""
    with socket.create_connection(("127.0.0.1", port)) as client:
        started = time.monotonic()
        for part in parts:
            try:
                client.sendall(part)
            except OSError:
                break
            time.sleep(pause)
        client.settimeout(limit)
        received = b""
        try:
            while more := client.recv(65536):
                received += more
        except ConnectionResetError:
            pass
        return received, time.monotonic() - started


def put(length: int, *, token: str = TOKEN) -> bytes:
    headers = f"Host: x\r\nAuthorization: Bearer {token}\r\nContent-Length: {length}\r\n"
    return f"PUT /posttrain/weights HTTP/1.1\r\n{headers}\r\n".encode()


def test_a_client_that_says_nothing_or_never_ends_its_headers_is_closed(port: int):
    received, seconds = talk(port)
    assert received == b"" and seconds < 5
    received, seconds = talk(port, *[b"GET / HTTP/1.1\r\nX: a"] + [b"a"] * 20, pause=0.1)
    assert b"200" not in received and seconds < 5


def test_a_client_without_the_token_cannot_hold_a_connection(port: int):
    received, seconds = talk(port, put(50_000, token="wrong"), b"x")
    assert received.startswith(b"HTTP/1.1 401") and seconds < 2


def test_weights_that_stop_are_given_up_and_too_large_ones_refused(port: int):
    received, seconds = talk(port, put(50_000), b"x" * 1000)
    assert received.startswith(b"HTTP/1.1 408") and 0.9 < seconds < 4
    received, seconds = talk(port, put(100_001))
    assert received.startswith(b"HTTP/1.1 413") and seconds < 2


def test_a_client_in_good_time_is_served(port: int):
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.settimeout(8.0)
        for _ in range(2):
            client.sendall(put(50_000) + b"x" * 50_000)
            time.sleep(1.2)  # longer than headers may take: the connection is not new any more
            assert client.recv(65536).startswith(b"HTTP/1.1 200")

"""The token before every route of an engine, told with plain ASGI messages; tests/rollouts/test_server.py has vLLM."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from posttrain.rollouts import guard
from posttrain.rollouts.guard import TOKEN_VARIABLE, WEIGHT_BYTES_VARIABLE, WEIGHTS_ROUTE, Guard

TOKEN = "t" * 43


@pytest.fixture
def reached(monkeypatch):
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    return []


def ask(reached, scope, *, token=None, body=(b"",), engine=None):
    """What the guard sends for one connection; `reached` gets what came through to the application."""

    async def app(scope, receive, send):
        reached.append(scope.get("path", scope["type"]))

    sent, parts = [], list(body)
    headers = [] if token is None else [(b"Authorization", token)]
    state = SimpleNamespace(engine_client=engine)
    scope = {"headers": headers, "app": SimpleNamespace(state=state), **scope}

    async def receive():
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message):
        sent.append(message)

    asyncio.run(Guard(app)(scope, receive, send))
    return sent


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH"])
@pytest.mark.parametrize("path", ["/health", "/v1/completions", "/collective_rpc", "/metrics", WEIGHTS_ROUTE, "/"])
@pytest.mark.parametrize(
    "token", [None, b"", b"Bearer", b"Bearer " + b"x" * 43, b"Basic " + TOKEN.encode(), TOKEN.encode()]
)
def test_without_the_token_nothing_is_answered(reached, method, path, token):
    sent = ask(reached, {"type": "http", "method": method, "path": path}, token=token)
    assert sent[0]["status"] == 401 and reached == []


def test_two_headers_are_one_too_many(reached):
    right = (b"authorization", b"Bearer " + TOKEN.encode())
    scope = {"type": "http", "method": "GET", "path": "/health", "headers": [right, right]}
    assert ask(reached, scope)[0]["status"] == 401 and reached == []


def test_a_websocket_without_the_token_is_closed(reached):
    assert ask(reached, {"type": "websocket", "path": "/v1/realtime"}) == [{"type": "websocket.close", "code": 1008}]
    assert reached == []


def test_with_the_token_requests_go_on_and_so_does_the_start(reached):
    ask(reached, {"type": "http", "method": "GET", "path": "/health"}, token=b"bearer " + TOKEN.encode())
    ask(reached, {"type": "lifespan"})
    assert reached == ["/health", "lifespan"]


def test_weights_arrive_in_the_engine_and_leave_no_file(reached):
    seen = {}

    class Engine:
        async def collective_rpc(self, method, args):
            with safe_open(args[0], framework="pt") as file:
                seen.update({name: file.get_tensor(name) for name in file.keys()}, path=args[0])  # noqa: SIM118
            return [[2]]

    data = save({"a": torch.arange(6.0), "b": torch.ones(2, 2)})
    scope = {"type": "http", "method": "PUT", "path": WEIGHTS_ROUTE}
    body = [data[:10], data[10:25], data[25:]]
    sent = ask(reached, scope, token=b"Bearer " + TOKEN.encode(), body=body, engine=Engine())
    assert sent[0]["status"] == 200 and sent[1]["body"] == b'{"tensors": 2}'
    assert torch.equal(seen["a"], torch.arange(6.0)) and torch.equal(seen["b"], torch.ones(2, 2))
    with pytest.raises(FileNotFoundError):
        Path(seen["path"]).read_bytes()


@pytest.mark.parametrize("token", ["", "short"])
def test_a_server_without_a_real_token_does_not_start(monkeypatch, token):
    monkeypatch.setenv(TOKEN_VARIABLE, token)
    with pytest.raises(RuntimeError, match="at least 32 characters"):
        Guard(None)


def weights(reached, body, *, headers=(), pause=0.0, monkeypatch):
    """What a sender of weights gets, and whether the engine was called; it pauses before each part."""
    called, parts, sent = [], list(body), []

    class Engine:
        async def collective_rpc(self, method, args):
            called.append(method)
            return [[1]]

    async def receive():
        await asyncio.sleep(pause)
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "PUT",
        "path": WEIGHTS_ROUTE,
        "headers": [(b"authorization", b"Bearer " + TOKEN.encode()), *headers],
        "app": SimpleNamespace(state=SimpleNamespace(engine_client=Engine())),
    }
    monkeypatch.setenv(WEIGHT_BYTES_VARIABLE, "1000")
    asyncio.run(Guard(None)(scope, receive, send))
    return sent[0]["status"], called, len(parts), dict(sent[0]["headers"]).get(b"connection")


def test_weights_that_are_too_large_are_not_read_to_the_end(reached, monkeypatch):
    assert weights(reached, [b"x" * 400] * 2 + [b"x" * 200], monkeypatch=monkeypatch) == (
        200,
        ["posttrain_load"],
        0,
        None,
    )
    assert weights(reached, [b"x" * 400] * 9, monkeypatch=monkeypatch) == (413, [], 6, b"close")
    told = [(b"content-length", b"1001")]
    assert weights(reached, [b"x"] * 9, headers=told, monkeypatch=monkeypatch) == (413, [], 9, b"close")


def test_a_sender_that_stops_or_trickles_is_let_go(reached, monkeypatch):
    monkeypatch.setattr(guard, "PAUSE_SECONDS", 0.05)
    assert weights(reached, [b"x"] * 3, pause=0.2, monkeypatch=monkeypatch) == (408, [], 3, b"close")
    monkeypatch.setattr(guard, "_GRACE_SECONDS", 0.1)
    status, called, left, _ = weights(reached, [b"x"] * 90, pause=0.02, monkeypatch=monkeypatch)
    assert (status, called) == (408, []) and 80 < left < 90

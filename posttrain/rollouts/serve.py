"""`python -m posttrain.rollouts.serve [options of vLLM]`: its server, which ends with the process that started it."""

from __future__ import annotations

import importlib
import os
import runpy
import signal
import sys
import threading
import time
from typing import Any

_GRACE_SECONDS = 10.0
# From the connection to the end of the first request's headers; uvicorn 0.5x waits for ever.
HEADER_SECONDS = 20.0


def end_with_parent(parent: int) -> None:
    """Ask this process to end when the one that started it has ended, also by kill -9; after a while make it.

    vLLM 0.31 waits for ever for a request that a dead engine has left open.

    Args:
        parent: process id of the one that started it. This process leads a process group of its own.
    """
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_SECONDS)
    os.killpg(0, signal.SIGKILL)


def end_silent_connections(seconds: float) -> None:
    """Have uvicorn close connections on which no request has come within this time; before it starts to listen.

    Whoever has no token needs none to hold a connection open like that. One that was refused is closed by the guard.
    """
    for module, name in (("h11_impl", "H11Protocol"), ("httptools_impl", "HttpToolsProtocol")):
        try:
            protocol = getattr(importlib.import_module(f"uvicorn.protocols.http.{module}"), name)
        except ImportError:
            continue
        _watch(protocol, seconds)


def _watch(protocol: Any, seconds: float) -> None:
    made = protocol.connection_made

    def connection_made(self: Any, transport: Any) -> None:
        made(self, transport)
        self.loop.call_later(seconds, end_if_silent, self, transport)

    def end_if_silent(self: Any, transport: Any) -> None:
        # A websocket has another protocol by now.
        if self.cycle is None and transport.get_protocol() is self:
            transport.close()

    protocol.connection_made = connection_made


if __name__ == "__main__":
    started_by = os.environ.pop("POSTTRAIN_ENGINE_PARENT", None)
    if started_by is not None:
        threading.Thread(target=end_with_parent, args=(int(started_by),), daemon=True).start()
    end_silent_connections(HEADER_SECONDS)
    sys.argv[0] = "vllm"
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")

"""`python -m posttrain.rollouts.serve [options of vLLM]`: its server, which ends with the process that started it."""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

_GRACE_SECONDS = 10.0


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


if __name__ == "__main__":
    started_by = os.environ.pop("POSTTRAIN_ENGINE_PARENT", None)
    if started_by is not None:
        threading.Thread(target=end_with_parent, args=(int(started_by),), daemon=True).start()
    sys.argv[0] = "vllm"
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")

"""Whose weights a server holds, what reaches it and what does not: no proxy, no second run, no tensor left out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest
import requests
import torch
from safetensors.torch import load_file

from posttrain.rollouts.guard import TOKEN_VARIABLE
from posttrain.rollouts.server import EngineError, free_port
from tests.batteries.runs import Recorder, build
from tests.rollouts.conftest import ENGINE, wait_until
from tests.rollouts.test_colocated import logged
from tests.rollouts.test_server_mode import RECIPE

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]
REMOTE = {**ENGINE, "vllm_mode": "server", "max_completion_length": 12, "logging_steps": 1}


@pytest.fixture
def remote(server, monkeypatch):
    monkeypatch.setenv(TOKEN_VARIABLE, server.token)
    return {**REMOTE, "vllm_server_base_url": server.url}


@pytest.fixture
def proxy(monkeypatch):
    """Headers of the requests that reach a proxy which the environment names."""
    seen: list[str] = []

    class Recording(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            seen.append(f"{self.command} {self.path} {self.headers}")
            self.send_response(200)
            self.end_headers()

        do_GET = do_POST = do_PUT = _answer

        def log_message(self, *_: object) -> None:
            pass

    running = HTTPServer(("127.0.0.1", 0), Recording)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{running.server_port}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield seen
    running.shutdown()


def test_neither_token_nor_weights_go_to_a_proxy(engine_dir, remote, proxy, tmp_path):
    assert requests.get("http://nobody.example/", timeout=5).status_code == 200 and len(proxy) == 1, (
        "the proxy is in use"
    )
    made = build("grpo", engine_dir, tmp_path, max_steps=1, **remote)
    try:
        made.train()
    finally:
        made.close()
    assert len(proxy) == 1


def test_every_socket_of_the_server_is_on_loopback(server):
    own = psutil.Process(server.process.pid)
    listening = {
        connection.laddr.ip
        for process in (own, *own.children(recursive=True))
        for connection in process.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


def test_a_second_run_on_the_same_server_stops_the_first(engine_dir, remote, tmp_path):
    made = {}

    def take_over(prompts: list, completions: list, **_: object) -> list[float]:
        if made["first"].state.global_step == 1:
            made["second"].engine.sync()
        return [float(row % 2) for row in range(len(completions))]

    made["second"] = build("grpo", engine_dir, tmp_path / "second", max_steps=1, **remote)
    made["first"] = build("grpo", engine_dir, tmp_path / "first", max_steps=6, reward=Recorder(take_over), **remote)
    try:
        with pytest.raises(EngineError, match="no longer holds this run's weights"):
            made["first"].train()
        assert made["first"].state.global_step <= 2
    finally:
        for trainer in made.values():
            trainer.close()


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight"])
def test_a_tensor_that_is_never_sent_is_named(name, engine_dir, remote, tmp_path):
    made = build("grpo", engine_dir, tmp_path, max_steps=1, **remote)
    walk = made.engine._walk
    made.engine._walk = lambda: ((key, value) for key, value in walk() if key != name)
    try:
        with pytest.raises(EngineError, match=r"never sent"):
            made.engine.sync()
    finally:
        made.close()


def test_rollouts_older_than_one_update_are_not_used(engine_dir, remote, tmp_path):
    """Supervised steps in between make a batch that was asked for early too old."""
    reward = Recorder(lambda prompts, completions, **_: [float(row % 2) for row in range(len(completions))])
    made = build(
        "sasr",
        engine_dir,
        tmp_path,
        max_steps=10,
        warmup_sft_steps=1,
        one_step_off=True,
        reward=reward,
        sft_per_device_batch_size=2,
        switch_controller="fixed",
        **remote,
    )
    asked, used = [], []
    client, drop = made.vllm_generation.vllm_client, made.engine._ahead.drop_stale
    start = client.start_ahead

    def noted(prompts):
        asked.append(made.state.global_step)
        return start(prompts)

    def watched():
        before = client.discarded
        waits = client._ahead is not None
        drop()
        if waits and client.discarded == before:
            used.append(made.state.global_step - asked[-1])

    client.start_ahead, made.engine._ahead.drop_stale = noted, watched
    try:
        made.train()
    finally:
        made.close()
    assert set(used) <= {1}
    assert sum(logged(made, "rollout/ahead_discarded")) == client.discarded > 0


def test_serve_serves_a_recipe_behind_its_token(tmp_path):
    port, output = free_port("127.0.0.1"), tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "posttrain",
        "serve",
        "recipes/grpo/smoke_vllm.yaml",
        f"trainer.output_dir={output}",
    ]
    environment = {key: value for key, value in os.environ.items() if key != TOKEN_VARIABLE}
    with (tmp_path / "log").open("wb") as log:
        running = subprocess.Popen(
            [*command, "--port", str(port)], env=environment, stdout=log, stderr=log, start_new_session=True, cwd=ROOT
        )
    try:
        token_file = output / "grpo" / "_engine.token"  # of the stage that makes rollouts

        def answers() -> bool:
            assert running.poll() is None, (tmp_path / "log").read_text()[-2000:]
            try:
                headers = {"Authorization": f"Bearer {token_file.read_text().strip()}"}
                return requests.get(f"http://127.0.0.1:{port}/health", headers=headers, timeout=5).ok
            except (OSError, requests.RequestException):
                return False

        wait_until(answers, 200)
        assert token_file.stat().st_mode & 0o077 == 0
        assert requests.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 401
        assert token_file.read_text().strip() not in (tmp_path / "log").read_text()
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()


def test_a_run_that_is_killed_goes_on_bit_equal(engine_dir, tmp_path):
    """kill -9 between two checkpoints, the engine in the process: prompts, rollouts and weights as without it."""
    text = (
        RECIPE.replace("MODEL", str(engine_dir)).replace("STEPS", "60").replace("save_steps: 1000", "save_steps: 10")
    )
    final = {}
    for name in ("whole", "killed"):
        recipe, output = tmp_path / f"{name}.yaml", tmp_path / name
        recipe.write_text(text.replace("OUTPUT", str(output)))
        command = [sys.executable, "-m", "posttrain.run", str(recipe)]
        if name == "killed":
            metrics = output / "metrics.jsonl"
            with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
                wait_until(lambda metrics=metrics: metrics.exists() and '"step": 13,' in metrics.read_text(), 200)
                run.kill()
            assert (output / "checkpoint-10").exists() and not (output / "finished.json").exists()
        done = subprocess.run(command, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stdout + done.stderr
        assert ("continuing from" in done.stdout) == (name == "killed")
        final[name] = load_file(output / "model" / "model.safetensors")
    assert all(torch.equal(value, final["killed"][key]) for key, value in final["whole"].items())

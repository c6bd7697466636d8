"""How a server is started: where it listens, what its command line and environment hold. The rest needs vLLM."""

from __future__ import annotations

import subprocess
import sys

import pytest

from posttrain.errors import ConfigError
from posttrain.rollouts.guard import TOKEN_VARIABLE
from posttrain.rollouts.server import EngineError, EngineServer, ServerSettings, refuse_public, server_environment

SETTINGS = ServerSettings(model="m", dtype="float32", max_model_length=96, seed=7)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "8.8.8.8"])
def test_it_does_not_listen_where_strangers_are(host):
    with pytest.raises(ConfigError, match="does not listen on every or on a public interface"):
        refuse_public(host)


def test_a_host_that_is_not_known_is_told():
    with pytest.raises(ConfigError, match="no such host"):
        refuse_public("no-such-host.invalid")


def test_an_address_of_the_other_family_is_refused():
    with pytest.raises(ConfigError, match="not an IPv4 address"):
        refuse_public("::1")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "10.0.0.7", "192.168.3.4"])
def test_loopback_and_private_addresses_are_allowed(host):
    refuse_public(host)


def test_the_command_line_tells_all_but_the_token():
    options = SETTINGS.options(host="127.0.0.1", port=8000, is_cpu=True)
    told = dict(zip(options[::2], options[1::2], strict=False))
    assert told["--host"] == "127.0.0.1" and told["--max-model-len"] == "96" and told["--seed"] == "7"
    assert told["--dtype"] == "float32" and "--enforce-eager" in options
    assert told["--middleware"] == "posttrain.rollouts.guard.Guard"
    assert not any("key" in word or "token" in word for word in options)
    on_gpu = SETTINGS.options(host="127.0.0.1", port=8000, is_cpu=False)
    assert "--weight-transfer-config" in on_gpu and "--enforce-eager" not in on_gpu


def test_its_environment_is_not_that_of_a_rank(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "ACCELERATE_USE_FSDP"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "3")
    own = server_environment("secret", host="127.0.0.1", is_cpu=True, devices="5")
    assert not {"RANK", "WORLD_SIZE", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "ACCELERATE_USE_FSDP"} & set(own)
    assert own[TOKEN_VARIABLE] == "secret" and own["CUDA_VISIBLE_DEVICES"] == "5"
    assert own["VLLM_CPU_KVCACHE_SPACE"] == "3", "what the user has set stays"
    assert own["GLOO_SOCKET_IFNAME"] == "lo" and own["VLLM_HOST_IP"] == "127.0.0.1", "its workers stay on loopback"


def test_a_server_that_ends_at_once_says_why(tmp_path, monkeypatch):
    """Without vLLM, or with a model that is not there, the last words of the child are in the message."""
    monkeypatch.setattr(ServerSettings, "options", lambda self, **where: ["--no-such-option"])
    server = EngineServer(SETTINGS, log=tmp_path / "engine.log", is_cpu=True)
    with pytest.raises(
        EngineError, match="the inference server ended with status [12] before it was ready; the end of"
    ):
        server.wait(lambda: False, seconds=100)
    server.stop()


def test_a_server_that_never_answers_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/sleep")
    monkeypatch.setattr(ServerSettings, "options", lambda self, **where: [])
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **kwargs: popen(["/bin/sleep", "60"], **kwargs))
    server = EngineServer(SETTINGS, log=tmp_path / "engine.log", is_cpu=True)
    with pytest.raises(EngineError, match="did not answer within 1 s"):
        server.wait(lambda: False, seconds=1)
    assert server.process.poll() is not None

"""What the fuzzers share: the libraries are imported and one good recipe is checked before a child is forked."""

from __future__ import annotations

import pytest

from posttrain.run import quiet_libraries
from tests.config.recipes import checked


@pytest.fixture(scope="session", autouse=True)
def warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    quiet_libraries()
    for base in ("sft", "grpo", "rmt"):
        assert checked(tmp_path_factory.mktemp("warm"), base, {}).ok

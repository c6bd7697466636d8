"""The model of the batteries, which has learnt to stop."""

from tests.batteries.conftest import warm_dir  # noqa: F401

"""Shared fixtures. Every test runs offline, on the weights that `latentswap models fetch` put into the user's cache."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ["LATENTSWAP_OFFLINE"] = "1"
# Workers that each start a thread per core only slow one another down. Set before torch reads it.
_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // _workers)))


@pytest.fixture(scope="session")
def default_weights() -> Callable[..., Path]:
    """`default_weights(name, file=None)`: the cached file of a network of the catalogue."""
    from latentswap.errors import WeightsError
    from latentswap.weights.fetch import weights_path

    def path(name: str, file: str | None = None) -> Path:
        try:
            return weights_path(name, file=file, offline=True)
        except WeightsError as error:
            pytest.fail(f"run `latentswap models fetch` before the tests: {error}", pytrace=False)

    return path

"""Shared fixtures. Every test runs offline, on the weights that `latentswap models fetch` put into the user's cache."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ["LATENTSWAP_OFFLINE"] = "1"
# Credentials, consents and the job record of the tests are not the user's.
os.environ["LATENTSWAP_DATA"] = tempfile.mkdtemp(prefix="latentswap-tests-")
atexit.register(shutil.rmtree, os.environ["LATENTSWAP_DATA"], ignore_errors=True)
# Workers that each start a thread per core only slow one another down. Set before torch reads it.
_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // _workers)))


@pytest.fixture(scope="session")
def made_credentials() -> Path:
    """The folder of local credentials, made once."""
    from latentswap.provenance.credentials import credentials_folder, load_credentials

    load_credentials()
    return credentials_folder()


@pytest.fixture(autouse=True)
def nobody_else_s_data(made_credentials, monkeypatch, tmp_path_factory) -> Path:
    """Consents, do-not-swap lists and job record of the test alone; credentials are there already."""
    folder = tmp_path_factory.mktemp("data")
    shutil.copytree(made_credentials, folder / made_credentials.name)
    monkeypatch.setenv("LATENTSWAP_DATA", str(folder))
    monkeypatch.delenv("LATENTSWAP_PROTECT", raising=False)
    return folder


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


def published_files(name: str) -> Path:
    """`published_folder`, with the index: the one thing that tests may fetch."""
    from latentswap.weights.fetch import published_folder

    offline = os.environ.pop("LATENTSWAP_OFFLINE")
    try:
        return published_folder(name)
    finally:
        os.environ["LATENTSWAP_OFFLINE"] = offline


@pytest.fixture(scope="session")
def published_generator():
    """(mapping, synthesis) of the published generator, compiled by OpenVINO in float32."""
    import openvino

    folder, core = published_files("mobilestylegan-ffhq-1024"), openvino.Core()
    config = {"INFERENCE_PRECISION_HINT": "f32"}
    names = ("MappingNetwork.xml", "SynthesisNetwork.xml")
    return tuple(core.compile_model(folder / name, "CPU", config) for name in names)


@pytest.fixture(scope="session")
def networks():
    """All default networks, loaded once."""
    from latentswap.networks import load_networks

    return load_networks(offline=True)


@pytest.fixture(scope="session")
def people(networks):
    """Six people who do not exist: (codes [6, 16, 512], pictures at 256² in [-1, 1])."""
    import torch

    from latentswap.pipeline import person

    codes = torch.cat([person(networks, seed=seed) for seed in range(200, 206)])
    with torch.no_grad():
        return codes, networks.generator.synthesis(codes, resolution=256)


@pytest.fixture(scope="session")
def swapper():
    """A Swapper on the default networks, `fast`: tests of quality that need `refine` make their own."""
    from latentswap.pipeline import Swapper

    return Swapper.from_pretrained(inversion="fast", offline=True)


@pytest.fixture(scope="session")
def bank_folder(networks, tmp_path_factory) -> Path:
    """A folder of twenty people to train on: `_train_support.BANK`."""
    from _train_support import BANK

    from latentswap.train.bank import build_bank

    folder = tmp_path_factory.mktemp("people")
    build_bank(networks.generator, networks.identity, networks.mesh, folder, BANK)
    return folder


@pytest.fixture(scope="session")
def bank(bank_folder):
    """The people of `bank_folder`."""
    from _train_support import BANK

    from latentswap.train.bank import Bank

    return Bank.load(bank_folder, BANK)

"""`latentswap doctor`: is everything there that the product needs, and does it work?"""

import importlib.metadata
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Literal

from latentswap.cli._common import Json, emit, table
from latentswap.errors import LatentSwapError
from latentswap.weights.assets import ASSETS, asset_path
from latentswap.weights.catalog import CATALOG
from latentswap.weights.fetch import cache_root, check, weights_path
from latentswap.weights.header import read_header

FREE_BYTES_WANTED = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report. "warn" is something to know; "fail" is something to mend."""

    what: str
    status: Literal["ok", "warn", "fail"]
    detail: str


def doctor(*, json: Json = False) -> int:
    """Check Python, the libraries, the cache folder and every network; exit with 1 when something must be mended."""
    findings = [finding for look in CHECKS for finding in _guarded(look)]
    emit([asdict(f) for f in findings], table([(f.status, f.what, f.detail) for f in findings]), as_json=json)
    return 1 if any(f.status == "fail" for f in findings) else 0


def check_libraries() -> Iterator[Finding]:
    """Versions of Python and of the libraries that do the work."""
    yield Finding(what="python", status="ok", detail=f"{platform.python_version()} on {platform.platform()}")
    for package in ("torch", "openvino", "numpy", "opencv-python-headless", "pillow", "safetensors", "c2pa-python"):
        try:
            yield Finding(what=package, status="ok", detail=importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            detail = f"not installed; run `{sys.executable} -m pip install {package}`"
            yield Finding(what=package, status="fail", detail=detail)


def check_processor() -> Iterator[Finding]:
    """What the networks will run on."""
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    status = "ok" if capability not in ("DEFAULT", "NO AVX") else "warn"
    detail = f"{capability}, {torch.get_num_threads()} threads of {os.cpu_count()} processors"
    yield Finding(what="processor", status=status, detail=detail)
    if torch.cuda.is_available():
        yield Finding(what="GPU", status="ok", detail=torch.cuda.get_device_name())


def check_cache() -> Iterator[Finding]:
    """Where fetched weights go, and whether there is room."""
    root = cache_root()
    existing = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    detail = f"{root}, {free / 1e9:.1f} GB free"
    if not os.access(existing, os.W_OK):
        yield Finding(what="cache", status="warn", detail=f"{detail}, read-only: nothing can be fetched into it")
    else:
        yield Finding(what="cache", status="ok" if free >= FREE_BYTES_WANTED else "warn", detail=detail)


def check_signing() -> Iterator[Finding]:
    """Who signs outputs, and whether that works today."""
    from latentswap.errors import ProvenanceError
    from latentswap.provenance.credentials import credentials_folder, describe, has_credentials, load_credentials
    from latentswap.provenance.sign import check_credentials

    if not has_credentials():
        detail = f"none in {credentials_folder()}: local ones are made at the first job"
        yield Finding(what="credentials", status="warn", detail=detail)
        return
    try:
        check_credentials(load_credentials())
        about = describe()
        yield Finding(what="credentials", status="ok", detail=f"{about.name}, valid until {about.not_after:%Y-%m-%d}")
    except ProvenanceError as error:
        yield Finding(what="credentials", status="fail", detail=str(error))


def check_weights() -> Iterator[Finding]:
    """Every network of the catalogue, by its full hash."""
    for spec in CATALOG.values():
        state = check(spec)
        if state == "verified":
            yield Finding(what=spec.name, status="ok", detail="verified")
        else:
            command = f"run `latentswap models fetch {spec.name}`"
            status = "fail" if state == "damaged" else "warn"
            yield Finding(what=spec.name, status=status, detail=f"{state}: {command}")


def check_assets() -> Iterator[Finding]:
    """The weights that come with the package."""
    for name in ASSETS:
        path = asset_path(name)
        if not path.is_file():
            yield Finding(what=name, status="fail", detail=f"{path} is missing: install the package again")
            continue
        header = read_header(path)
        detail = f"{header.metadata.get('kind', 'of an unstated kind')}, {header.file_bytes / 1e6:.1f} MB"
        yield Finding(what=name, status="ok", detail=detail)


def check_generator() -> Iterator[Finding]:
    """One picture of the default generator, when its weights are there."""
    spec = CATALOG["mobilestylegan-ffhq-1024"]
    if check(spec, full=False) != "present":
        return
    import torch

    from latentswap.generators.base import broadcast_w
    from latentswap.generators.mobile import MobileStyleGAN

    generator = MobileStyleGAN.load(weights_path(spec.name, offline=True))
    with torch.inference_mode():
        start = time.perf_counter()
        z_BD = torch.randn(1, generator.w_dim, generator=torch.Generator().manual_seed(0))
        w_BD = generator.mapping(z_BD, truncation_psi=0.7)
        img_BCHW = generator.synthesis(broadcast_w(w_BD, generator.num_ws))
        seconds = time.perf_counter() - start
    contrast = img_BCHW.std().item()
    detail = f"{img_BCHW.shape[-1]}×{img_BCHW.shape[-2]} in {seconds:.2f} s, contrast {contrast:.2f}"
    # A face in [-1, 1] has contrast; a broken picture has next to none, far too much, or no finite values at all.
    yield Finding(what="generator", status="ok" if 0.1 < contrast < 1.5 else "fail", detail=detail)


# In the order of the report.
CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    check_libraries,
    check_processor,
    check_cache,
    check_signing,
    check_weights,
    check_assets,
    check_generator,
)


def _guarded(look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings of a check; an error is one too, so that the other checks still run."""
    try:
        yield from look()
    except (LatentSwapError, ImportError, OSError, RuntimeError) as error:
        yield Finding(what=look.__name__.removeprefix("check_"), status="fail", detail=str(error))

"""What marking costs, on this machine: signing, the record, the watermark, verifying; on a picture of 1024².

Medians of several runs after a warm-up, without any model. The networks' files are hashed once in a process.

    python benchmarks/provenance.py [--runs 9]
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
from skimage import data

import latentswap
from latentswap.media.atomic import write_atomic
from latentswap.media.image import as_image, encode
from latentswap.provenance.apply import Marking, network_hashes, publish, watermarked
from latentswap.provenance.credentials import load_credentials
from latentswap.provenance.sign import check_credentials, sign_bytes
from latentswap.provenance.verify import verify
from latentswap.types import Making
from latentswap.weights.assets import asset_path
from latentswap.weights.fetch import weights_path


def median(call: Callable[[], object], runs: int) -> float:
    """Milliseconds of one call."""
    call()
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)


def line(what: str, milliseconds: float) -> None:
    print(f"{what:<52}{milliseconds:9.1f} ms")


def once(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=9)
    runs = parser.parse_args().runs
    print(f"latentswap {latentswap.__version__}, {platform.machine()}, {os.cpu_count()} processors\n")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LATENTSWAP_DATA"] = folder
        line("credentials made at first use, once", once(load_credentials))
        credentials, marking = load_credentials(), Marking()
        line("check before a job", median(lambda: check_credentials(credentials), runs))
        files = {name: asset_path(name) for name in ("mixer", "encoder")}
        files["generator"] = weights_path("mobilestylegan-ffhq-1024", offline=True)
        line("hashes of the networks, once", once(lambda: network_hashes(files, Making(deed="swapped"))))
        picture = PIL.Image.fromarray(data.astronaut()).resize((1024, 1024), PIL.Image.Resampling.LANCZOS)
        image = as_image(np.asarray(picture))
        line("watermark (0 where there is none)", median(lambda: watermarked(image, marking), runs))
        for suffix in (".png", ".jpg", ".webp"):
            encoded = encode(image, suffix)
            making = Making(deed="swapped", target=encoded, sources=(encoded,))
            claim = marking.claim(making, 1, {})
            path = Path(folder) / f"out{suffix}"

            def put_out(path=path, encoded=encoded, making=making) -> None:
                publish(path, encoded, making=making, marking=marking, payload=1, networks={})

            print(f"\n{suffix}, {len(encoded) / 1e6:.2f} MB")
            line("  encode", median(lambda suffix=suffix: encode(image, suffix), runs))
            line("  write", median(lambda path=path, encoded=encoded: write_atomic(path, encoded), runs))
            line("  sign", median(lambda encoded=encoded, claim=claim: sign_bytes(encoded, claim, credentials), runs))
            line("  sign, record, write", median(put_out, runs))
            signed = path.read_bytes()
            print(f"  {'the signature has':<50}{len(signed) - len(encoded):9,} bytes")
            again = Making(deed="swapped", target=signed, sources=(signed,))
            claim = marking.claim(again, 1, {})
            over = median(lambda encoded=encoded, claim=claim: sign_bytes(encoded, claim, credentials), runs)
            line("  sign, target and source with credentials", over)
            line("  verify", median(lambda path=path: verify(path), runs))


if __name__ == "__main__":
    main()

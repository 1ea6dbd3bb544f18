"""Where the time goes, on this machine: the generator against the published network, and a whole swap by stage.

Each figure is the median of several runs after a warm-up. A swap's shares are taken from outside: the names by which
its modules call their stages are replaced by timed ones while it runs.
"""

import platform
import resource
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

from latentswap.runtime.memory import keep_freed_memory

keep_freed_memory()

import numpy as np  # noqa: E402
import openvino  # noqa: E402
import torch  # noqa: E402
from skimage import data  # noqa: E402

import latentswap  # noqa: E402
from latentswap import pipeline  # noqa: E402
from latentswap.face.align import cut_face  # noqa: E402
from latentswap.face.mask import face_mask  # noqa: E402
from latentswap.face.occlusion import beside  # noqa: E402
from latentswap.face.paste import paste  # noqa: E402
from latentswap.media.image import as_image, encode  # noqa: E402
from latentswap.runtime.generator import OpenVINOSynthesis  # noqa: E402
from latentswap.swappers import latentswap as method  # noqa: E402
from latentswap.weights.fetch import cache_root, published_folder  # noqa: E402


def median(call: Callable[[], object], runs: int = 7) -> float:
    """Seconds of one call."""
    call()
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def line(what: str, seconds: float) -> None:
    print(f"{what:<52}{1000 * seconds:9.1f} ms")


class Stages:
    """Adds up the seconds of named stages. One that runs inside of another counts for itself alone."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._inside = [0.0]

    def timed(self, stage: str, call: Callable) -> Callable:
        def run(*args, **kwargs):
            self._inside.append(0.0)
            began = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                spent = time.perf_counter() - began
                self.seconds[stage] += spent - self._inside.pop()
                self._inside[-1] += spent

        return run


def stages(swapper: latentswap.Swapper) -> list[tuple[str, object, str]]:
    """(stage, owner, name): what is timed of a swap."""
    return [
        ("decode", pipeline, "read"),
        ("detect", swapper, "analyser"),
        ("align", pipeline, "cut_face"),
        ("invert", swapper.method, "encode"),
        ("invert", swapper.method, "invert"),
        ("mix", swapper.networks.mixer, "forward"),
        ("refine", method, "refine"),
        ("synthesise", swapper.method, "render"),
        ("mask", pipeline, "crop_mesh"),
        ("mask", pipeline, "face_mask"),
        ("mask", pipeline, "occlusion"),
        ("mask", pipeline, "beside"),
        ("mask", swapper.method, "reconstruction"),
        ("paste", pipeline, "paste"),
        ("check identity", pipeline, "embed"),
        ("check identity", pipeline, "cut"),
        ("mark", pipeline, "packet"),
        ("mark", pipeline, "watermarked"),
        ("encode", pipeline, "encode"),
        ("sign, record, write", pipeline, "publish"),
    ]


def shares(swapper: latentswap.Swapper, swap: Callable[[], object], runs: int, bare: float) -> None:
    """Print the stages' shares of the median run, and the generator's against the bare network's seconds."""
    swap()
    results = []
    for _ in range(runs):
        clock = Stages()
        with ExitStack() as stack:
            for stage, owner, name in stages(swapper):
                stack.enter_context(patch.object(owner, name, clock.timed(stage, getattr(owner, name))))
            clock.timed("other", swap)()
        results.append(clock.seconds)
    results.sort(key=lambda seconds: sum(seconds.values()))
    seconds = results[len(results) // 2]
    total = sum(seconds.values())
    order = dict.fromkeys([*(stage for stage, _, _ in stages(swapper)), "other"])
    for stage in (stage for stage in order if stage in seconds):
        print(f"  {stage:<50}{1000 * seconds[stage]:9.1f} ms {seconds[stage] / total:7.1%}")
    line("  in all", total)
    print(f"  {'generator / bare network':<50}{seconds['synthesise'] / bare:9.2f}")
    print(f"  {'whole swap / bare network':<50}{total / bare:9.2f}")


def main() -> None:
    print(f"latentswap {latentswap.__version__}, torch {torch.__version__}, openvino {openvino.__version__}")
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}\n")
    swapper = latentswap.Swapper.from_pretrained()
    generator = swapper.networks.generator
    w = generator.mapping(torch.randn(1, 512), truncation_psi=0.7)
    ws = w[:, None].expand(-1, generator.num_ws, -1).contiguous()

    config = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    model = published_folder("mobilestylegan-ffhq-1024") / "SynthesisNetwork.xml"
    published = openvino.Core().compile_model(model, "CPU", config)
    ours = OpenVINOSynthesis(generator, cache_dir=cache_root() / "runtime")
    style, codes = w.numpy(), ws.numpy()
    ratios, times = [], []
    for _ in range(5):  # in turns, so that both meet the same machine
        pair = median(lambda: published(style), 3), median(lambda: ours(codes), 3)
        ratios.append(pair[1] / pair[0])
        times.append(pair)
    line("generator 1024², published network", statistics.median(t[0] for t in times))
    line("generator 1024², ours (W+)", statistics.median(t[1] for t in times))
    print(f"{'ratio ours / published':<52}{statistics.median(ratios):9.2f}")
    with torch.no_grad():
        line("generator 256², torch", median(lambda: generator.synthesis(ws, resolution=256)))
    line("sample, one picture", median(lambda: swapper.sample([1])))

    print()
    picture = data.astronaut()
    (face,) = swapper.analyser(picture)
    crop = cut_face(picture, face.mesh_K3, 1024)
    person = swapper.prepare(swapper.sample([8])[0])
    mask = face_mask(crop.mesh_K3, 1024)
    line("detect and mesh", median(lambda: swapper.analyser(picture)))
    line("align and cut", median(lambda: cut_face(picture, face.mesh_K3, 1024)))
    flipped = np.flip(crop.pixels, 1)

    def paste_back() -> np.ndarray:
        mesh = crop.mesh_K3
        return paste(picture, crop.pixels, crop.affine, mask, target_crop=flipped, target_K3=mesh, swapped_K3=mesh)

    line("prepare a source crop", median(lambda: swapper.method.prepare(crop)))
    line("mask", median(lambda: face_mask(crop.mesh_K3, 1024)))
    line("the swap's hair and background", median(lambda: beside(crop.pixels, crop.mesh_K3, crop.mesh_K3)))
    line("paste back", median(paste_back))
    bare = statistics.median(t[0] for t in times)
    with tempfile.TemporaryDirectory() as folder:
        target, out = Path(folder) / "target.png", Path(folder) / "out.png"
        target.write_bytes(encode(as_image(picture), ".png"))
        for inversion, runs in (("fast", 5), ("refine", 1)):
            swapper.method.inversion = inversion
            print(f"\nswap, --inversion {inversion}, file to file")
            shares(swapper, lambda: swapper.write(swapper.swap(person, target), out), runs, bare)
    print(f"\npeak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()

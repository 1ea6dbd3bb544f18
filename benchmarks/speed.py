"""Where the time goes, on this machine: the generator against the published network, and a whole swap by stage.

Only public interfaces are called. Each figure is the median of several runs after a warm-up.
"""

import platform
import resource
import statistics
import time
from collections.abc import Callable

from latentswap.runtime.memory import keep_freed_memory

keep_freed_memory()

import numpy as np  # noqa: E402
import openvino  # noqa: E402
import torch  # noqa: E402
from skimage import data  # noqa: E402

import latentswap  # noqa: E402
from latentswap.face.align import cut_face  # noqa: E402
from latentswap.face.mask import face_mask  # noqa: E402
from latentswap.face.paste import paste  # noqa: E402
from latentswap.runtime.generator import OpenVINOSynthesis  # noqa: E402
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
    line("prepare a source crop", median(lambda: swapper.method.prepare(crop)))
    line("mask", median(lambda: face_mask(crop.mesh_K3, 1024)))
    line(
        "paste back",
        median(lambda: paste(picture, crop.pixels, crop.affine, mask, target_crop=np.flip(crop.pixels, 1))),
    )
    for inversion in ("fast", "refine"):
        swapper.method.inversion = inversion
        line(f"swap, --inversion {inversion}", median(lambda: swapper.swap(person, picture), 1))
    print(f"\npeak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()

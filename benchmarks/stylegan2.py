"""StyleGAN2 at 1024² on this machine: ours against the usual formulation, a grouped convolution with modulated weights.

Same random weights, same codes, plain eager torch, each in a process of its own. The two take turns, so that both meet
the same machine; the ratio is the median over the turns. Peak memory is each process's own.

    python benchmarks/stylegan2.py [--turns 5] [--batch 1] [--resolution 1024] [--openvino]
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from latentswap.runtime.memory import keep_freed_memory

keep_freed_memory()

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

from latentswap.generators.ops import resample_filter  # noqa: E402
from latentswap.generators.stylegan2 import StyleGAN2, StyleGAN2Config  # noqa: E402

Synthesis = Callable[[torch.Tensor], torch.Tensor]


def made(resolution: int) -> StyleGAN2:
    """A generator with random weights, the same in every process."""
    torch.manual_seed(0)
    generator = StyleGAN2(StyleGAN2Config(resolution=resolution)).eval().requires_grad_(False)
    for name, value in generator.state_dict().items():
        if name.endswith("noise_strength"):
            value.fill_(0.1)
    return generator


def codes(generator: StyleGAN2, batch: int) -> torch.Tensor:
    shape = (batch, generator.num_ws, generator.w_dim)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


class Grouped:
    """The usual formulation: modulate and demodulate the weights of every sample, then one convolution in groups."""

    def __init__(self, generator: StyleGAN2) -> None:
        self.state = generator.synthesis.state_dict()
        self.sides = generator.config.sides()

    def style(self, name: str, w_BD: torch.Tensor) -> torch.Tensor:
        weight = self.state[f"{name}.affine.weight"]
        return F.linear(w_BD, weight / weight.shape[1] ** 0.5, self.state[f"{name}.affine.bias"])

    def conv(self, x: torch.Tensor, name: str, style_BI: torch.Tensor, *, up: bool, demodulate: bool) -> torch.Tensor:
        batch, c_in, height, width = x.shape
        weight = self.state[f"{name}.weight"][None] * style_BI[:, None, :, None, None]
        if demodulate:
            weight = weight * (weight.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
        x = x.reshape(1, batch * c_in, height, width)
        if up:
            x = F.conv_transpose2d(x, weight.transpose(1, 2).flatten(0, 1), stride=2, groups=batch)
            x = x.unflatten(1, (batch, -1))[0]
            return self.resample(x, pad=(1, 1))
        x = F.conv2d(x, weight.flatten(0, 1), padding=weight.shape[-1] // 2, groups=batch)
        return x.unflatten(1, (batch, -1))[0]

    def resample(self, x: torch.Tensor, *, pad: tuple[int, int]) -> torch.Tensor:
        kernel = (4 * resample_filter()).expand(x.shape[1], 1, 4, 4)
        return F.conv2d(F.pad(x, (*pad, *pad)), kernel, groups=x.shape[1])

    def layer(self, x: torch.Tensor, name: str, w_BD: torch.Tensor, *, up: bool) -> torch.Tensor:
        x = self.conv(x, name, self.style(name, w_BD), up=up, demodulate=True)
        x = x + self.state[f"{name}.noise_const"] * self.state[f"{name}.noise_strength"]
        return F.leaky_relu(x + self.state[f"{name}.bias"][:, None, None], 0.2) * 2**0.5

    def picture(self, x: torch.Tensor, name: str, w_BD: torch.Tensor) -> torch.Tensor:
        style = self.style(name, w_BD) / x.shape[1] ** 0.5
        return self.conv(x, name, style, up=False, demodulate=False) + self.state[f"{name}.bias"][:, None, None]

    def __call__(self, ws_BLD: torch.Tensor) -> torch.Tensor:
        x = self.state["b4.const"].expand(len(ws_BLD), -1, -1, -1)
        x = self.layer(x, "b4.conv1", ws_BLD[:, 0], up=False)
        img = self.picture(x, "b4.torgb", ws_BLD[:, 1])
        for i, side in enumerate(self.sides[1:]):
            x = self.layer(x, f"b{side}.conv0", ws_BLD[:, 2 * i + 1], up=True)
            x = self.layer(x, f"b{side}.conv1", ws_BLD[:, 2 * i + 2], up=False)
            wide = img.new_zeros(*img.shape[:2], side, side)
            wide[:, :, ::2, ::2] = img
            img = self.resample(wide, pad=(2, 1)) + self.picture(x, f"b{side}.torgb", ws_BLD[:, 2 * i + 3])
        return img


def through_openvino(generator: StyleGAN2) -> Synthesis:
    from latentswap.runtime.generator import OpenVINOSynthesis

    synthesis = OpenVINOSynthesis(generator, threads=torch.get_num_threads())
    return lambda ws_BLD: torch.from_numpy(synthesis(ws_BLD.numpy()))


WAYS: dict[str, Callable[[StyleGAN2], Synthesis]] = {
    "ours": lambda generator: generator.synthesis,
    "grouped": Grouped,
    "openvino": through_openvino,
}


@torch.no_grad()
def work(way: str, resolution: int, batch: int, picture: str) -> None:
    """One process: a run to warm up, whose picture is kept, then one run for every line that comes in."""
    generator = made(resolution)
    synthesis, ws_BLD = WAYS[way](generator), codes(generator, batch)
    np.save(picture, synthesis(ws_BLD).numpy())
    print("ready", flush=True)
    for _ in sys.stdin:
        began, used = time.perf_counter(), time.process_time()
        synthesis(ws_BLD)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        print(time.perf_counter() - began, time.process_time() - used, peak, flush=True)


class Worker:
    def __init__(self, way: str, resolution: int, batch: int, folder: Path) -> None:
        self.picture = folder / f"{way}.npy"
        command = [sys.executable, __file__, "--work", way, "--picture", str(self.picture)]
        command += ["--resolution", str(resolution), "--batch", str(batch)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603
        self.answer()

    def answer(self) -> list[str]:
        assert self.process.stdout is not None
        return self.process.stdout.readline().split()

    def turn(self) -> tuple[float, ...]:
        """Seconds on the clock, seconds of processor time, and peak memory in MB."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return tuple(map(float, self.answer()))


def main() -> None:
    parser = argparse.ArgumentParser(description="StyleGAN2 against grouped convolutions")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--resolution", type=int, default=1024)
    parser.add_argument("--openvino", action="store_true", help="the exported network too")
    parser.add_argument("--work", choices=tuple(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--picture", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return work(options.work, options.resolution, options.batch, options.picture)

    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    print(f"StyleGAN2 {options.resolution}², batch {options.batch}, {options.turns} turns\n")
    ways = ["grouped", "ours", *(["openvino"] if options.openvino else [])]
    with tempfile.TemporaryDirectory() as folder:
        workers = {way: Worker(way, options.resolution, options.batch, Path(folder)) for way in ways}
        expected = np.load(workers["grouped"].picture)
        turns = [{way: worker.turn() for way, worker in workers.items()} for _ in range(options.turns)]
        print(f"{'':<10}{'clock':>9}{'processor':>11}{'peak':>10}{'ratio':>8}{'(processor)':>13}{'difference':>13}")
        for way, worker in workers.items():
            clock, used = (statistics.median(turn[way][i] for turn in turns) for i in (0, 1))
            ratios = [statistics.median(turn["grouped"][i] / turn[way][i] for turn in turns) for i in (0, 1)]
            difference = np.abs(np.load(worker.picture) - expected).max() / expected.std()
            print(
                f"{way:<10}{clock:8.2f}s{used:10.2f}s{turns[-1][way][2]:7.0f} MB{ratios[0]:8.2f}{ratios[1]:13.2f}"
                f"{difference:13.1e}"
            )
        for worker in workers.values():
            worker.process.communicate()
    return None


if __name__ == "__main__":
    main()

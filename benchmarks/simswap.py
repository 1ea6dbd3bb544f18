"""SimSwap's full-size generator on this machine: ours against the same network written plainly, in torch eager.

Same random weights, same crop, each way in turn, so that all meet the same machine; the ratio is the median over the
turns. `plain` is the network as the paper describes it: batch normalisation, instance normalisation and AdaIN as
separate steps, channels first. `ours` folds the batch normalisations and lays channels last; `openvino` is what swaps.

    python benchmarks/simswap.py [--variant legacy224] [--turns 7] [--size 224] [--threads 2]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from latentswap.runtime.injection import OpenVINOInjection
from latentswap.swappers.simswap import EPSILON, VARIANTS, SimSwapConfig, SimSwapGenerator, folded

Way = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def plain(network: SimSwapGenerator) -> Way:
    """One step after the other, from the network's own tensors."""

    def stage(sequence: nn.Module, x: torch.Tensor) -> torch.Tensor:
        for module in sequence.children():
            x = module(x)
        return x

    def adain(style: nn.Module, x: torch.Tensor, identity: torch.Tensor) -> torch.Tensor:
        mean = torch.mean(x, (2, 3), keepdim=True)
        x = x - mean
        variance = torch.mean(torch.mul(x, x), (2, 3), keepdim=True)
        x = x * torch.rsqrt(variance + EPSILON)
        styles = style.linear(identity).view(-1, 2, x.shape[1], 1, 1)  # pyright: ignore
        return x * (styles[:, 0] + 1.0) + styles[:, 1]

    def run(img_BCHW: torch.Tensor, id_BE: torch.Tensor) -> torch.Tensor:
        x = stage(network.first_layer, network.to_input(img_BCHW))
        for number in network.stages:
            x = stage(network.get_submodule(f"down{number}"), x)
        for block in network.BottleNeck:
            y = F.relu(adain(block.style1, stage(block.conv1, x), id_BE))  # pyright: ignore
            x = x + adain(block.style2, stage(block.conv2, y), id_BE)  # pyright: ignore
        for number in network.stages[::-1]:
            x = stage(network.get_submodule(f"up{number}"), x)
        x = stage(network.last_layer, x)
        return network.from_output(x.tanh() if network.config.published.output == "tanh" else x)

    return run


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description="SimSwap's generator: ours against plain torch eager")
    parser.add_argument("--variant", choices=tuple(VARIANTS), default="legacy224")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--size", type=int, default=0, help="side of the crop; the variant's own by default")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    network = SimSwapGenerator(SimSwapConfig(variant=options.variant)).eval().requires_grad_(False)
    size = options.size or network.config.published.size
    img_BCHW = torch.rand(1, 3, size, size) * 2 - 1
    id_BE = F.normalize(torch.randn(1, network.config.identity_dim), dim=1)
    lean = folded(network)
    compiled = OpenVINOInjection(lean, size=size, identity_dim=id_BE.shape[1], threads=options.threads)
    ways: dict[str, Way] = {
        "plain": plain(network),
        "ours": lean,
        "openvino": lambda img, identity: torch.from_numpy(compiled(img.numpy(), identity.numpy())),
    }
    expected = ways["plain"](img_BCHW, id_BE)
    differences = {name: float((way(img_BCHW, id_BE) - expected).abs().max()) for name, way in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.turns):
        for name, way in ways.items():
            began = time.perf_counter()
            way(img_BCHW, id_BE)
            seconds[name].append(time.perf_counter() - began)
    print(f"torch {torch.__version__}, {options.threads} threads, {torch.backends.cpu.get_cpu_capability()}")
    print(f"SimSwap {options.variant} at {size}², {options.turns} turns\n")
    print(f"{'':<10}{'median':>9}{'fastest':>10}{'ratio':>8}{'difference':>13}")
    for name, taken in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(seconds["plain"], taken, strict=True))
        print(f"{name:<10}{statistics.median(taken):8.3f}s{min(taken):9.3f}s{ratio:8.2f}{differences[name]:13.1e}")


if __name__ == "__main__":
    main()

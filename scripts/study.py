"""What rows, strength and training choices of the mixer do, on generated people that no training has seen.

    study.py layers [--mixer FILE] [--judge JUDGE.py]        one row, or group of rows, swapped at a time
    study.py strength [--mixer FILE] [--judge JUDGE.py]      the swap blended with the target
    study.py mixers FILE… [--judge JUDGE.py]                 mixers side by side

Sources and targets are seen as photographs would be: through augmentation and the encoder. Tables in Markdown; a sheet
of pictures with --sheet OUT.png. JUDGE.py as for quality.py.
"""

import argparse
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from quality import load_judge

from latentswap.identity.dlib_resnet import centred, chip
from latentswap.inversion.encoder import EMBEDDING
from latentswap.networks import Networks, load_networks
from latentswap.runtime.memory import keep_freed_memory
from latentswap.shape.measures import expression_measures, head_pose, similarity_align
from latentswap.shape.mesh import crop_mesh
from latentswap.swappers.latentswap import EMPHASIS, to_pixels
from latentswap.swappers.mixer import LatentMixer, blend_rows
from latentswap.train.bank import Bank, BankConfig, build_bank
from latentswap.train.mixer import sheet
from latentswap.weights.assets import asset_path

ROW_GROUPS = ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9, 10), (0, 1, 2, 3), (4, 5, 6, 7), tuple(range(11)))
COLUMNS = ("to source", "to target", "judge: to source", "to target", "pose °", "expression sd", "shape %", "colour")


@dataclass(frozen=True, kw_only=True, eq=False)
class People:
    """Sources and targets, P of each."""

    source_PLD: torch.Tensor  # encoder's codes of augmented pictures
    target_PLD: torch.Tensor
    embedding_PE: torch.Tensor  # of the sources' augmented pictures, centred
    source_img: torch.Tensor  # the people as they are, [P, 3, 256, 256]
    target_img: torch.Tensor

    def pictures(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.source_img, self.target_img


def draw_people(nets: Networks, count: int) -> People:
    """The first `count` pairs of a bank of another seed than the training's."""
    config = BankConfig(people=max(16, 2 * count), views=1, seed=1)
    with tempfile.TemporaryDirectory() as folder:
        build_bank(nets.generator, nets.identity, nets.mesh, Path(folder), config)
        bank = Bank.load(Path(folder), config)
    features = bank.features_NVF[:, 0].float()
    codes_NLD = nets.encoder(features)
    pictures = torch.cat([nets.generator.synthesis(ws[None], resolution=256) for ws in bank.codes_NLD[: 2 * count]])
    source, target = slice(0, 2 * count, 2), slice(1, 2 * count, 2)
    return People(
        source_PLD=codes_NLD[source],
        target_PLD=codes_NLD[target],
        embedding_PE=centred(features[source, EMBEDDING], nets.mean_E),
        source_img=pictures[source],
        target_img=pictures[target],
    )


def swapped(nets: Networks, mixer: LatentMixer, people: People) -> torch.Tensor:
    return mixer(people.source_PLD, people.target_PLD, EMPHASIS * people.embedding_PE)


def look(nets: Networks, img_BCHW: torch.Tensor) -> dict[str, torch.Tensor]:
    """Identity, pose, expression, shape of the face without pose, and its mean colour."""
    meshes = torch.cat([crop_mesh(nets.mesh, img[None]) for img in img_BCHW])
    return {
        "identity": centred(nets.identity(chip(img_BCHW)), nets.mean_E),
        "pose": head_pose(meshes),
        "expression": expression_measures(meshes),
        "shape": similarity_align(meshes).mesh_BK3,
        "colour": img_BCHW[:, :, 110:190, 90:166].mean((2, 3)),
    }


def measure(nets: Networks, judge, ws_PLD: torch.Tensor, people: People) -> tuple[list[float], torch.Tensor]:
    """The figures of `COLUMNS`, means over the pairs, and the pictures."""
    out_img = torch.cat([nets.generator.synthesis(ws[None], resolution=256) for ws in ws_PLD])
    out, source, target = (look(nets, img) for img in (out_img, *people.pictures()))
    spread = target["expression"].std(0)
    row = [float((out["identity"] * other["identity"]).sum(-1).mean()) for other in (source, target)]
    if judge is None:
        row += [float("nan")] * 2
    else:
        mine, *others = ([judge.identity(x) for x in to_pixels(img)] for img in (out_img, *people.pictures()))
        row += [float(np.mean([a @ b for a, b in zip(mine, other, strict=True)])) for other in others]
    row.append(float((out["pose"] - target["pose"]).norm(dim=-1).mean()))
    row.append(float(((out["expression"] - target["expression"]) / spread).square().mean(1).sqrt().mean()))
    row.append(float(100 * (out["shape"] - source["shape"])[..., :2].norm(dim=-1).mean()))
    row.append(float(127.5 * (out["colour"] - target["colour"]).abs().mean()))
    return row, out_img


def print_table(rows: Iterable[tuple[str, list[float]]]) -> None:
    print(f"| | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}")
    for name, values in rows:
        print(f"| {name} | {' | '.join('–' if np.isnan(v) else f'{v:.2f}' for v in values)} |")


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["layers", "strength", "mixers"])
    parser.add_argument("files", nargs="*", type=Path, help="mixers; default: the shipped one")
    parser.add_argument("--mixer", type=Path)
    parser.add_argument("--judge", type=Path)
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--sheet", type=Path)
    args = parser.parse_intermixed_args()

    keep_freed_memory()
    nets = load_networks(offline=True)
    judge = load_judge(args.judge) if args.judge else None
    people = draw_people(nets, args.pairs)
    mixer = LatentMixer.load(args.mixer or asset_path("mixer"))
    full_PLD = swapped(nets, mixer, people)
    target_PLD = people.target_PLD
    if args.what == "layers":
        codes = {f"rows {g[0]}–{g[-1]}": blend_rows(target_PLD, full_PLD, layers=g) for g in ROW_GROUPS}
    elif args.what == "strength":
        codes = {f"{s:.2f}": blend_rows(target_PLD, full_PLD, strength=s) for s in (0, 0.25, 0.5, 0.75, 1)}
    else:
        codes = {path.parent.name: swapped(nets, LatentMixer.load(path), people) for path in args.files}
    results = {name: measure(nets, judge, ws_PLD, people) for name, ws_PLD in codes.items()}
    print_table((name, values) for name, (values, _) in results.items())
    if args.sheet:
        shown = [img[:8] for img in (*people.pictures(), *(img for _, img in results.values()))]
        Image.fromarray(sheet(shown)).save(args.sheet)


if __name__ == "__main__":
    main()

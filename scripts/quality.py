"""Measure swaps with networks that the project never trains against: the tables of docs/quality.md.

    quality.py generated --judge JUDGE.py --out out/quality       100 pairs of people who do not exist
    quality.py photos --judge JUDGE.py --out out/photos A.jpg …   photographs and the astronaut among themselves, and
                                                                  with generated people, both ways

JUDGE.py is a module with a class `Judge`: `identity(img) -> unit vector` and `geometry(img) -> (angles in degrees,
shape, expression)` of FFHQ-aligned RGB squares. Swaps run through the command line, files in and files out.
"""

import argparse
import importlib.util
import json
from pathlib import Path

import numpy as np
import torch

from latentswap.cli.main import main as latentswap
from latentswap.face.align import cut, cut_face
from latentswap.face.analyse import FaceAnalyser
from latentswap.media.image import as_image, decode, encode
from latentswap.shape.measures import openness

COLUMNS = ("to_source", "to_target", "between", "pose", "expression", "eyes", "mouth")


def load_judge(path: Path):
    spec = importlib.util.spec_from_file_location("judge", path)
    assert spec and spec.loader  # noqa: S101 - for the type checker
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Judge()


class Scorer:
    """Scores (source, target, result) files; every file is aligned once, results as their target is."""

    def __init__(self, judge) -> None:
        self.judge, self.analyser, self.seen = judge, FaceAnalyser.load(), {}

    def look(self, path: Path):
        if path not in self.seen:
            pixels = decode(path).pixels
            face = next(face for face in self.analyser(pixels) if not face.reasons)
            crop = cut_face(pixels, face.mesh_K3, 512)
            self.seen[path] = (crop, *self._measure(crop.pixels), self._open(pixels))
        return self.seen[path]

    def _measure(self, pixels: np.ndarray):
        angles, _, expression = self.judge.geometry(pixels)
        return self.judge.identity(pixels), angles, expression

    def _open(self, pixels: np.ndarray) -> np.ndarray:
        faces = [face for face in self.analyser(pixels) if "not_a_face" not in face.reasons]
        eyes, mouth = openness(torch.from_numpy(faces[0].mesh_K3)[None])
        return np.array([float(eyes.mean()), float(mouth.mean())])

    def score(self, source: Path, target: Path, result: Path) -> dict[str, float]:
        _, source_id, *_ = self.look(source)
        crop, target_id, target_pose, target_expression, target_open = self.look(target)
        pixels = decode(result).pixels
        result_id, pose, expression = self._measure(cut(pixels, crop.affine, 512))
        opened = self._open(pixels)
        values = (
            result_id @ source_id,
            result_id @ target_id,
            source_id @ target_id,
            np.linalg.norm(pose - target_pose),
            np.linalg.norm(expression - target_expression),
            abs(opened[0] - target_open[0]),
            abs(opened[1] - target_open[1]),
        )
        return dict(zip(COLUMNS, map(float, values), strict=True))


def generated(out: Path, count: int) -> list[tuple[Path, Path]]:
    """(source, target) files: `count` sources × `count` targets, people who do not exist."""
    run("sample", "-o", out / "sources", "--seeds", f"1000-{999 + count}")
    run("sample", "-o", out / "targets", "--seeds", f"2000-{1999 + count}")
    return [(s, t) for s in sorted((out / "sources").iterdir()) for t in sorted((out / "targets").iterdir())]


def photographs(out: Path, photos: list[Path]) -> list[tuple[Path, Path]]:
    """Photographs among themselves, and each with two generated people as source and as target."""
    from skimage import data

    out.mkdir(parents=True, exist_ok=True)
    astronaut = out / "astronaut.png"
    astronaut.write_bytes(encode(as_image(data.astronaut()), ".png"))
    photos = [astronaut, *photos]
    run("sample", "-o", out / "people", "--seeds", "31,32")
    people = sorted((out / "people").iterdir())
    pairs = [(s, t) for s in photos for t in photos if s != t]
    return pairs + [pair for photo in photos for person in people for pair in ((photo, person), (person, photo))]


def run(*arguments: object) -> None:
    if code := latentswap([str(a) for a in arguments]):
        raise SystemExit(code)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["generated", "photos"])
    parser.add_argument("photos", nargs="*", type=Path)
    parser.add_argument("--judge", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--inversion", default="refine")
    parser.add_argument(
        "--count", type=int, default=10, help="sources and targets of `generated`: pairs are its square"
    )
    args = parser.parse_intermixed_args()

    args.out.mkdir(parents=True, exist_ok=True)
    pairs = generated(args.out, args.count) if args.what == "generated" else photographs(args.out, args.photos)
    scorer, rows = Scorer(load_judge(args.judge)), []
    for source, target in pairs:
        result = args.out / args.inversion / f"{source.stem}-onto" / f"{target.stem}.png"
        if not result.exists():
            result.parent.mkdir(parents=True, exist_ok=True)
            whole = args.what == "generated"  # every target at once: the networks are loaded once a source
            paths = (target.parent, "-o", result.parent) if whole else (target, "-o", result)
            run("swap", source, *paths, "--inversion", args.inversion, "--offline")
        rows.append({"source": source.stem, "target": target.stem, **scorer.score(source, target, result)})
        print("  ".join(f"{k} {v:.3f}" if isinstance(v, float) else str(v) for k, v in rows[-1].items()), flush=True)
    mean = {column: float(np.mean([row[column] for row in rows])) for column in COLUMNS}
    (args.out / f"{args.inversion}.json").write_text(json.dumps({"mean": mean, "pairs": rows}, indent=1))
    print(f"\n{len(rows)} pairs, mean: " + "  ".join(f"{k} {v:.3f}" for k, v in mean.items()))


if __name__ == "__main__":
    main()

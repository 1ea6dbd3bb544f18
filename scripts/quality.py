"""Measure swaps with a judge that is a Python class: the tables of docs/quality.md.

    quality.py generated --judge JUDGE.py --out out/quality       100 pairs of people who do not exist
    quality.py photos --judge JUDGE.py --out out/photos A.jpg …   photographs and the astronaut among themselves, and
                                                                  with generated people, both ways

JUDGE.py is a module with a class `Judge`: `identity(img) -> unit vector` and, if it can, `geometry(img) -> (angles in
degrees, shape, expression)` of FFHQ-aligned RGB squares. `latentswap evaluate pairs` takes networks in files instead.
"""

import argparse
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from latentswap import Swapper
from latentswap.evaluate.pairs import Pair, generated_pairs
from latentswap.evaluate.run import evaluate_pairs
from latentswap.media.image import as_image, encode


def load_judge(path: Path):
    spec = importlib.util.spec_from_file_location("judge", path)
    assert spec and spec.loader  # noqa: S101 - for the type checker
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Judge()


def photographs(swapper: Swapper, out: Path, photos: list[Path]) -> Iterator[Pair]:
    """Photographs among themselves, and each with two generated people as source and as target."""
    from skimage import data

    astronaut = out / "astronaut.png"
    astronaut.write_bytes(encode(as_image(data.astronaut()), ".png"))
    photos, people = [astronaut, *photos], [out / "seed-0031.png", out / "seed-0032.png"]
    for path, image in zip(people, swapper.sample([31, 32]), strict=True):
        swapper.write(image, path)
    pairs = [(s, t) for s in photos for t in photos if s != t]
    pairs += [pair for photo in photos for person in people for pair in ((photo, person), (person, photo))]
    for source, target in pairs:
        yield Pair(name=f"{source.stem}-onto-{target.stem}", source=source, target=target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["generated", "photos"])
    parser.add_argument("photos", nargs="*", type=Path)
    parser.add_argument("--judge", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--inversion", default="refine")
    parser.add_argument("--count", type=int, default=100, help="pairs of `generated`")
    parser.add_argument("--retrieval", type=int, default=0, help="size of the gallery")
    args = parser.parse_intermixed_args()

    args.out.mkdir(parents=True, exist_ok=True)
    swapper = Swapper.from_pretrained(inversion=args.inversion, offline=True)
    generated = args.what == "generated"
    pairs = generated_pairs(range(args.count), args.out) if generated else photographs(swapper, args.out, args.photos)
    judge = load_judge(args.judge)
    report = evaluate_pairs(list(pairs), swapper, args.out, judge=judge, retrieval=args.retrieval)
    print("\n".join(report.lines()))


if __name__ == "__main__":
    main()

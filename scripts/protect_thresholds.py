"""How often the do-not-swap list misses a person, and how often it takes a stranger for one: docs/protect.md's tables.

    protect_thresholds.py fit [-o out/protect]                       the map, from people of their own
    protect_thresholds.py table [-o out/protect] [--judge JUDGE.py]  the rates, on other people

People who do not exist, at truncation 0.7, drawn by the 256² head (in bfloat16 where the processor multiplies it), then
found, aligned and embedded as the pipeline does it. `table`: one picture of each of 200 is listed. Six other pictures
of each are looked up: three in which one thing has changed (the head turned or nodded, a smile, an open mouth, another
gaze, in turn; the directions of docs/editing.md at their usual strength), one in other light (exposure, contrast, tint,
light from a side, JPEG at quality 35 to 80), and two in which all of that changes at once. 1,000 other people, every
second one with all of that changed, are looked up in the same list.

`fit`: ways of comparing faces, on people of their own. Of 80 the plain picture and five with everything changed give a
map (`provenance.matching`), 100 are listed, and 560 pictures of strangers looked up. The map that is written is then
made of all 180. The threshold is set where `table` has about 1 % of the strangers.

Embeddings are kept in the output folder, 20 people a file; the same command goes on where it stopped.
JUDGE.py as for scripts/quality.py; it only reports.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from quality import load_judge

from latentswap.edit.directions import apply_edits, shipped
from latentswap.face.align import cut_face
from latentswap.face.analyse import FaceAnalyser
from latentswap.identity.dlib_resnet import centred
from latentswap.inversion.optimise import embed
from latentswap.inversion.pti import AnyGenerator
from latentswap.media.image import as_image, decode, encode
from latentswap.networks import Networks, load_networks
from latentswap.pipeline import person
from latentswap.provenance import matching
from latentswap.provenance.protect import THRESHOLD
from latentswap.seeds import generator_for
from latentswap.swappers.latentswap import quick, to_pixels, to_tensor
from latentswap.weights.assets import asset_path
from latentswap.weights.load import load_tensors, save_tensors

PSI, BLOCK = 0.7, 20
FOR_THE_MAP = 80  # of the people of `tuning` while ways are compared; the others are listed
FIRST_SEED = {"tuning": 3_000_000, "tuning-others": 3_500_000, "listed": 4_000_000, "others": 5_000_000}
PEOPLE = {"tuning": 180, "tuning-others": 200, "listed": 200, "others": 1000}
SINGLE = {
    "yaw +12": {"yaw": 12.0},
    "yaw −12": {"yaw": -12.0},
    "pitch +10": {"pitch": 10.0},
    "pitch −10": {"pitch": -10.0},
    "smile": {"smile": 2.2},
    "mouth open": {"mouth_open": 2.0},
    "gaze": {"gaze": 10.0},
}
EACH = 3  # of them for each person, in turn
CHANGES = (*SINGLE, "light, JPEG", "everything")
SHRINKAGE = 0.1  # of the covariance within a person towards a multiple of the identity


def uniform(rng: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=rng))


def drawn_edits(rng: torch.Generator) -> dict[str, float]:
    """A head that turns and nods, an expression and a gaze, within the usual strengths of the directions."""
    return {
        "yaw": uniform(rng, -12, 12),
        "pitch": uniform(rng, -8, 8),
        "smile": uniform(rng, -1.5, 2.2),
        "mouth_open": uniform(rng, 0, 2),
        "gaze": uniform(rng, -10, 10),
    }


def other_light(pixels_HW3: np.ndarray, rng: torch.Generator) -> np.ndarray:
    """Exposure, tint, light from a side and contrast, then JPEG: uint8 [H, W, 3] → the same."""
    linear = (pixels_HW3 / 255.0) ** 2.2 * 2 ** uniform(rng, -1.2, 0.9)
    warm = uniform(rng, -0.25, 0.25)
    linear = linear * np.array([1 + warm, 1.0, 1 - warm])
    side = uniform(rng, -0.5, 0.5)
    linear = linear * (1 + side * np.linspace(-1, 1, pixels_HW3.shape[1])[None, :, None])
    shown = np.clip(linear, 0, 1) ** (1 / 2.2)
    shown = np.clip(0.5 + uniform(rng, 0.7, 1.2) * (shown - 0.5), 0, 1)
    quality = round(uniform(rng, 35, 80))
    return decode(encode(as_image(np.rint(shown * 255).astype(np.uint8)), ".jpg", quality=quality)).pixels


@dataclass(frozen=True, kw_only=True, eq=False)
class Camera:
    """Draws people and looks at the faces that are found."""

    networks: Networks
    generator: AnyGenerator
    analyser: FaceAnalyser
    judge: Any = None

    @classmethod
    def load(cls, judge: Path | None = None) -> "Camera":
        networks = load_networks(offline=True)
        return cls(
            networks=networks,
            generator=quick(networks.shipped),
            analyser=FaceAnalyser.load(offline=True),
            judge=None if judge is None else load_judge(judge),
        )

    def look(self, pixels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """The embedding of the largest face [128] and the judge's [256]; zeros where there is no face, or no judge."""
        faces = [face for face in self.analyser(pixels) if not face.reasons]
        if not faces:
            return torch.zeros(128), torch.zeros(256)
        crop = cut_face(pixels, faces[0].mesh_K3, 256)
        embedding_BE = embed(self.networks.identity, to_tensor(crop.pixels), self.networks.mean_E)
        judged = torch.zeros(256) if self.judge is None else torch.from_numpy(self.judge.identity(crop.pixels))
        return embedding_BE[0], judged

    def pictures(self, group: str, index: int) -> list[np.ndarray]:
        """The pictures of one person: the plain one first, where the group has several."""
        ws_BLD = person(self.networks, seed=FIRST_SEED[group] + index, truncation_psi=PSI)
        rng, library = generator_for(FIRST_SEED[group], index, stream=9), shipped()

        def edited(strengths: dict[str, float]) -> torch.Tensor:
            return apply_edits(ws_BLD, [(library[name], value) for name, value in strengths.items()])

        if group.endswith("others"):
            codes, lit = [edited(drawn_edits(rng)) if index % 2 else ws_BLD], [index % 2 == 1]
        elif group == "tuning":
            codes, lit = [ws_BLD, *(edited(drawn_edits(rng)) for _ in range(5))], [False, *[True] * 5]
        else:
            singles = [edited(SINGLE[name]) for name in names_of(index)[:EACH]]
            codes = [ws_BLD, *singles, *(edited(drawn_edits(rng)) for _ in range(2))]
            lit = [False] * (1 + EACH) + [True] * 2
        with torch.no_grad():
            drawn = list(to_pixels(self.generator.synthesis(torch.cat(codes), resolution=256)))
        if group == "listed":  # the plain picture once more, in other light
            drawn.insert(1 + EACH, drawn[0])
            lit.insert(1 + EACH, True)
        return [other_light(picture, rng) if light else picture for picture, light in zip(drawn, lit, strict=True)]


def names_of(index: int) -> tuple[str, ...]:
    """What has changed in the pictures of a listed person but the first."""
    singles = tuple(SINGLE)
    mine = tuple(singles[(EACH * index + at) % len(singles)] for at in range(EACH))
    return (*mine, "light, JPEG", "everything", "everything")


def measure(group: str, folder: Path, judge: Path | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of a group's pictures, [N, P, 128], and the judge's, [N, P, 256]; made where they are missing."""
    camera, blocks = None, []
    for start in range(0, PEOPLE[group], BLOCK):
        path = folder / f"{group}-{start:04d}.safetensors"
        if not path.exists():
            camera = camera or Camera.load(judge)
            seen = [[camera.look(p) for p in camera.pictures(group, at)] for at in range(start, start + BLOCK)]
            embedding_NPE, judged_NPE = (
                torch.stack([torch.stack([one[part] for one in row]) for row in seen]) for part in (0, 1)
            )
            save_tensors(path, {"embedding": embedding_NPE, "judged": judged_NPE}, {"kind": "protect-test"})
            print(path, flush=True)
        tensors, _ = load_tensors(path, kind="protect-test")
        blocks.append((tensors["embedding"], tensors["judged"]))
    embedding_NPE, judged_NPE = (torch.cat([block[part] for block in blocks]) for part in (0, 1))
    if lost := int((embedding_NPE.norm(dim=-1) == 0).sum()):
        print(
            f"{group}: no face was found in {lost} of {embedding_NPE[..., 0].numel()} pictures; they count as refused"
        )
    return embedding_NPE, judged_NPE


def within_class_map(embedding_NPE: torch.Tensor, shrinkage: float = SHRINKAGE) -> torch.Tensor:
    """Rows times it have the same spread in every direction from picture to picture of one person: S_w^(−½), [E, E]."""
    pictures = embedding_NPE.shape[1]
    residual_XE = (embedding_NPE - embedding_NPE.mean(1, keepdim=True)).flatten(0, 1)
    within_EE = residual_XE.T @ residual_XE / (len(residual_XE) * (pictures - 1) / pictures)
    level = within_EE.trace() / len(within_EE)
    within_EE = (1 - shrinkage) * within_EE + shrinkage * level * torch.eye(len(within_EE))
    values_E, vectors_EE = torch.linalg.eigh(within_EE / level)
    return vectors_EE @ torch.diag(values_E.rsqrt()) @ vectors_EE.T


@dataclass(frozen=True, kw_only=True, eq=False)
class Looked:
    """Distances of a test: people's own, [N, P], and those of strangers to everybody listed, [M, N]."""

    own_NP: torch.Tensor
    strangers_MN: torch.Tensor

    @classmethod
    def by(
        cls,
        distances: Any,
        listed_NE: torch.Tensor,
        looked_NPE: torch.Tensor,
        others_ME: torch.Tensor,
        *,
        one_another: bool = False,
    ) -> "Looked":
        """one_another: the people listed are strangers, too, to the others on the list."""
        away_NPN = distances(looked_NPE.flatten(0, 1), listed_NE).unflatten(0, looked_NPE.shape[:2])
        own_NP = away_NPN.diagonal(dim1=0, dim2=2).T.clone()
        strangers = [distances(others_ME, listed_NE)]
        if one_another:
            itself_NN = torch.eye(len(listed_NE), dtype=torch.bool)
            plain_NN = distances(listed_NE, listed_NE)
            strangers += [plain_NN.masked_fill(itself_NN, torch.inf), away_NPN[:, 0].masked_fill(itself_NN, torch.inf)]
        return cls(own_NP=own_NP, strangers_MN=torch.cat(strangers))

    def missed(self, threshold: float) -> float:
        return float((self.own_NP > threshold).float().mean())

    def false(self, threshold: float, size: int | None = None) -> float:
        """Share of strangers that a list refuses; of `size` people: the mean over the lists that all are cut into."""
        parts = self.strangers_MN.split(size or self.strangers_MN.shape[1], dim=1)
        return float(torch.stack([(part <= threshold).any(1).float().mean() for part in parts]).mean())

    def threshold_for(self, share: float) -> float:
        """The largest distance at which at most that share of the strangers is refused."""
        nearest_M = self.strangers_MN.min(1).values.sort().values
        return float(nearest_M[int(share * len(nearest_M))]) - 1e-4


def cosine_distance(a_BE: torch.Tensor, b_NE: torch.Tensor) -> torch.Tensor:
    return 1 - F.normalize(a_BE, dim=-1) @ F.normalize(b_NE, dim=-1).T


def distances_with(map_EE: torch.Tensor) -> Any:
    """`matching.distances` with another map."""
    population, _ = load_tensors(asset_path("population"), kind="population")
    gallery, _ = load_tensors(asset_path("gallery"), kind="gallery")
    people_ME = centred(gallery["embedding"].float(), population["identity.mean_E"])

    def mapped(embedding_BE: torch.Tensor) -> torch.Tensor:
        return F.normalize(F.normalize(embedding_BE, dim=-1) @ map_EE, dim=-1)

    return lambda a_BE, b_NE: matching.ratio(mapped(a_BE), mapped(b_NE), mapped(people_ME))


def fit(out: Path) -> None:
    tuning_NPE, _ = measure("tuning", out, None)
    others_MPE, _ = measure("tuning-others", out, None)
    mapping_NPE, listed_NPE = tuning_NPE[:FOR_THE_MAP], tuning_NPE[FOR_THE_MAP:]
    others_ME = torch.cat([others_MPE[:, 0], mapping_NPE[:, 0], mapping_NPE[:, 1]])

    def look(distances: Any) -> Looked:
        return Looked.by(distances, listed_NPE[:, 0], listed_NPE[:, 1:], others_ME, one_another=True)

    ways = {"cosine": cosine_distance, "cosine / strangers": distances_with(torch.eye(128))}
    for shrinkage in (0.03, 0.1, 0.3):
        ways[f"mapped ({shrinkage}) / strangers"] = distances_with(within_class_map(mapping_NPE, shrinkage))
    strangers = len(look(cosine_distance).strangers_MN)
    print(f"{len(listed_NPE)} listed, {strangers} pictures of strangers; everything changed at once")
    print("missed, where so many strangers are refused:")
    shares = 0.0025, 0.005, 0.01
    print(" " * 28 + "".join(f"{share:8.2%}" for share in shares))
    for name, distances in ways.items():
        looked = look(distances)
        print(f"{name:28s}" + "".join(f"{looked.missed(looked.threshold_for(share)):8.2%}" for share in shares))
    map_EE = within_class_map(tuning_NPE).half()  # of everybody, once the way is chosen
    about = {
        "kind": "matching",
        "licence": "as the generator's: non-commercial",
        "trained_on": f"{len(tuning_NPE)} generated people, 6 pictures each; scripts/protect_thresholds.py fit",
        "shrinkage": str(SHRINKAGE),
    }
    save_tensors(asset_path("matching"), {"map": map_EE}, about)


def table(out: Path, judge: Path | None) -> None:
    listed_NPE, judged_NPE = measure("listed", out, judge)
    others_MPE, other_judged_MPE = measure("others", out, judge)
    looked = Looked.by(matching.distances, listed_NPE[:, 0], listed_NPE[:, 1:], others_MPE[:, 0])
    print(f"threshold {THRESHOLD}: {1 - looked.missed(THRESHOLD):.2%} of the other pictures are refused,")
    print(f"and {looked.false(THRESHOLD):.2%} of {len(others_MPE)} other people, by a list of {len(listed_NPE)}")
    for changed in (0, 1):
        part = Looked(own_NP=looked.own_NP, strangers_MN=looked.strangers_MN[changed::2])
        print(f"    {('plain', 'changed')[changed]} pictures of others: {part.false(THRESHOLD):.2%}")
    print("\nrefused, by what has changed")
    changed = [name for index in range(len(listed_NPE)) for name in names_of(index)]
    for name in CHANGES:
        own_X = looked.own_NP.flatten()[[at for at, what in enumerate(changed) if what == name]]
        share = (own_X <= THRESHOLD).float().mean()
        print(f"{name:12s} {share:7.1%} of {len(own_X):3d}   median distance {own_X.median():.2f}")
    print("\nthreshold, missed, refused of strangers by a list of 1, 10, all")
    for threshold in (0.4, 0.45, 0.5, 0.53, 0.54, 0.55, 0.56, 0.6, 0.65, 0.7, 0.8):
        sizes = "  ".join(f"{looked.false(threshold, size):8.3%}" for size in (1, 10, None))
        print(f"{threshold:5.3f}  {looked.missed(threshold):7.2%}  {sizes}")
    # A second picture listed, of those with one change; looked up are those with everything changed.
    two_NE = listed_NPE[:, :2].flatten(0, 1)
    own_NPN = matching.distances(listed_NPE[:, -2:].flatten(0, 1), two_NE).unflatten(1, (-1, 2)).amin(2)
    own_NP = own_NPN.unflatten(0, (-1, 2)).diagonal(dim1=0, dim2=2).T
    two = Looked(own_NP=own_NP, strangers_MN=matching.distances(others_MPE[:, 0], two_NE).unflatten(1, (-1, 2)).amin(2))
    one = Looked(own_NP=looked.own_NP[:, -2:], strangers_MN=looked.strangers_MN)
    print("\neverything changed at once: missed, strangers refused")
    for name, test in (("one picture listed", one), ("two", two)):
        print(f"{name:18s} {test.missed(THRESHOLD):7.2%} {test.false(THRESHOLD):7.2%}")
    print("\nother measures at 1 % of strangers refused: missed")
    plain = Looked.by(cosine_distance, listed_NPE[:, 0], listed_NPE[:, 1:], others_MPE[:, 0])
    print(f"this one           {looked.missed(looked.threshold_for(0.01)):7.2%}")
    print(f"cosine             {plain.missed(plain.threshold_for(0.01)):7.2%}")
    if judged_NPE.abs().sum() > 0:
        other = Looked.by(cosine_distance, judged_NPE[:, 0], judged_NPE[:, 1:], other_judged_MPE[:, 0])
        print(f"the judge's cosine {other.missed(other.threshold_for(0.01)):7.2%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["fit", "table"])
    parser.add_argument("-o", "--out", type=Path, default=Path("out/protect"))
    parser.add_argument("--judge", type=Path)
    parser.add_argument(
        "--listed", type=int, default=PEOPLE["listed"], help="people on the list of `table`, by twenties"
    )
    parser.add_argument("--others", type=int, default=PEOPLE["others"], help="other people, by twenties")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    PEOPLE.update(listed=args.listed, others=args.others)
    if args.what == "fit":
        fit(args.out)
    else:
        table(args.out, args.judge)


if __name__ == "__main__":
    main()

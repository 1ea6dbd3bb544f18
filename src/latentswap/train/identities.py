"""Photographs of many people, several of each, as SimSwap is trained on: aligned once, kept as one file.

The folder is the published one: `root/person/*.jpg`, any sizes. Every picture is decoded, its face found and cut out by
the project's own alignment; what training reads afterwards needs no decoder and no detector. Generated people, in
several poses, expressions and lights, can take the photographs' place.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from latentswap.edit.directions import Direction
from latentswap.errors import BadInputError, LatentSwapError, UsageError
from latentswap.generators.base import Generator
from latentswap.inversion.optimise import COLOUR_ROWS
from latentswap.seeds import generator_for
from latentswap.train.sample import BROADCAST, CodeConfig, sample_codes
from latentswap.train.taught import LessonsConfig, move, to_bytes
from latentswap.weights.load import load_tensors, save_tensors

KIND = "identities"
FEWEST = 2  # pictures of a person, and people
Cut = Callable[[Path], torch.Tensor]
"""A picture's aligned face, uint8 [3, S, S]; raises a LatentSwapError where there is none that can be used."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Identities:
    """N pictures uint8 [N, 3, S, S] and whose they are [N], numbered from 0 by the folders' names."""

    picture_N3HW: torch.Tensor
    person_N: torch.Tensor

    def __len__(self) -> int:
        return len(self.person_N)

    @property
    def people(self) -> int:
        return int(self.person_N.max()) + 1

    def save(self, path: Path, *, alignment: str) -> None:
        tensors = {"picture": self.picture_N3HW, "person": self.person_N}
        save_tensors(path, tensors, {"kind": KIND, "alignment": alignment})

    @classmethod
    def load(cls, path: Path, *, alignment: str) -> "Identities":
        """Read what `save` wrote. Raises WeightsError for any other file, BadInputError for another alignment."""
        tensors, metadata = load_tensors(path, kind=KIND)
        if metadata.get("alignment") != alignment:
            raise BadInputError(
                f"{path} holds faces of the alignment {metadata.get('alignment')!r}, and this network takes "
                f"{alignment!r}. Make it again with `latentswap train identities --alignment {alignment}`."
            )
        return cls(picture_N3HW=tensors["picture"], person_N=tensors["person"].long())


def read_identities(
    root: Path,
    cut: Cut,
    suffixes: tuple[str, ...],
    *,
    skip: bool = False,
    on_item: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Identities, list[str]]:
    """The pictures under `root`, and what was left out and why.

    skip: leave out pictures that cannot be used and people of whom fewer than two remain; without it they are refused.
    Raises BadInputError, naming what is wrong.
    """
    if not root.is_dir():
        raise BadInputError(f"{root} is not a folder; give one with a folder of pictures for every person")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    files = {folder: sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes) for folder in folders}
    if not folders:
        raise BadInputError(f"{root} holds no folders; it needs one of pictures for every person, {root.name}/person/…")
    problems = [_few(folder, len(found)) for folder, found in files.items() if len(found) < FEWEST]
    if problems and not skip:
        raise BadInputError(_listed(root, problems))
    total, done, kept = sum(map(len, files.values())), 0, []
    for folder, found in files.items():
        faces = []
        for path in found:
            try:
                faces.append(cut(path))
            except LatentSwapError as error:
                problems.append(f"{folder.name}/{path.name}: {error}")
                if not skip:
                    raise BadInputError(_listed(root, problems)) from error
            done += 1
            on_item(done, total)
        if len(faces) >= FEWEST:
            kept.append(torch.stack(faces))
        elif len(found) >= FEWEST:
            problems.append(_few(folder, len(faces)))
    if len(kept) < FEWEST:
        raise BadInputError(_listed(root, [*problems, f"{len(kept)} people can be used, and training needs two"]))
    person_N = torch.cat([torch.full((len(faces),), k) for k, faces in enumerate(kept)])
    return Identities(picture_N3HW=torch.cat(kept), person_N=person_N), problems


@torch.no_grad()
def generated_identities(
    generator: Generator,
    directions: dict[str, Direction],
    people: int,
    views: int,
    *,
    seed: int = 0,
    on_item: Callable[[int, int], None] = lambda done, total: None,
) -> Identities:
    """People who do not exist, `views` pictures of each at 256²: moved along directions, lit and coloured otherwise.

    Person p is a function of (seed, p). Raises UsageError for fewer than two people or views.
    """
    if people < FEWEST or views < FEWEST:
        raise UsageError(f"{people} people with {views} pictures each: training needs at least two of both.")
    pictures = []
    moves = LessonsConfig(moved=1.0)
    for person in range(people):
        random = generator_for(seed, person, stream=14)
        code_BLD = sample_codes(generator, 1, random, CodeConfig(jitter=0.1))
        codes_BLD = move(code_BLD.expand(views, -1, -1), directions, random, moves)
        other_BLD = sample_codes(generator, views, random, BROADCAST)
        codes_BLD[:, COLOUR_ROWS:] = torch.lerp(codes_BLD[:, COLOUR_ROWS:], other_BLD[:, COLOUR_ROWS:], 0.4)
        pictures.append(to_bytes(generator.synthesis(codes_BLD, resolution=256)).cpu())
        on_item(person + 1, people)
    person_N = torch.arange(people).repeat_interleave(views)
    return Identities(picture_N3HW=torch.cat(pictures), person_N=person_N)


def _few(folder: Path, count: int) -> str:
    return f"{folder.name}/: {count or 'no'} picture{'s' * (count != 1)} that can be used, at least {FEWEST} are needed"


def _listed(root: Path, problems: list[str]) -> str:
    more = f"\n  … and {len(problems) - 8} more" if len(problems) > 8 else ""
    return (
        f"{root} cannot be trained on as it is (--skip leaves such pictures and people out):\n  "
        + "\n  ".join(problems[:8])
        + more
    )

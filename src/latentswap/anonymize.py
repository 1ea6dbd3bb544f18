"""Anonymising: who replaces a face, who replaced it before, and whether the result may be called anonymous.

    describe the original → choose a stranger → swap → measure → the next stranger if it was not enough

Strangers come from a gallery of people who do not exist: seeds, with what the choice needs to know about them. Their
codes are made afresh from the seed. All cosines are those of `identity.dlib_resnet.centred`.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch

from latentswap.errors import LatentSwapError, UsageError
from latentswap.identity.attributes import (
    AGE_VALUES,
    AGES,
    SEX_UNCLEAR,
    AttributeModel,
    age_group,
    skin_lab,
    typology_angle,
)
from latentswap.identity.dlib_resnet import centred, chip
from latentswap.replacements import Replacements
from latentswap.seeds import generator_for
from latentswap.shape.measures import head_pose
from latentswap.shape.mesh import crop_mesh
from latentswap.swappers.base import OnStep, Prepared, no_progress
from latentswap.swappers.latentswap import to_tensor
from latentswap.types import Crop, SwapResult
from latentswap.weights.assets import asset_path
from latentswap.weights.load import load_tensors

if TYPE_CHECKING:
    from latentswap.face.select import FaceChoice
    from latentswap.networks import Networks
    from latentswap.pipeline import Picture, Swapper

GALLERY_SEED, GALLERY_PSI = 4096, 0.85
STRANGER_QUANTILES = (0.5, 0.9, 0.99)  # of the cosines of 130,816 pairs of the gallery's people: 0.01, 0.30, 0.54

Attribute = Literal["age", "sex", "skin"]
KEEP_ALL: tuple[Attribute, ...] = get_args(Attribute)

# A face is called anonymous when its cosine to the original is one that a pair of strangers in ten exceeds: a matcher
# set to that bound would make one false match in ten. One false match in a hundred, 0.54, would be easier to meet, but
# the swap was optimised on this very network, and by another one the two may look more alike.
ANONYMOUS = 0.30
_LEAN = 0.5  # of the original's identity that is taken off the stranger's
_FAR = 0.0  # cosine to the original above which a person of the gallery is no candidate: the median of strangers
_FAR_ENOUGH = -0.2  # beyond it, more distance is worth nothing
_POOL, _POOL_MARGIN = 12, 0.25  # the seed decides among so many, that cost at most so much more than the best


class NotAnonymisedError(LatentSwapError):
    """A face still resembles its original after every stranger that was tried, so the picture was not made."""

    exit_code = 8
    http_status = 422


@dataclass(frozen=True, kw_only=True, eq=False)
class Described:
    """What the choice knows about a face."""

    embedding_E: torch.Tensor  # [128], centred, unit length
    sex: float  # −1 masculine … 1 feminine presentation
    age: float  # on the scale of attributes.AGE_VALUES
    skin: float  # individual typology angle, degrees
    pose_3: torch.Tensor  # yaw, pitch, roll, degrees


def describe(img_BCHW: torch.Tensor, networks: "Networks", model: AttributeModel) -> Described:
    """A crop [1, 3, S, S] in [-1, 1], described."""
    with torch.no_grad():
        embedding_BE = centred(networks.identity(chip(img_BCHW)), networks.mean_E).cpu()
        mesh_BK3 = crop_mesh(networks.mesh, img_BCHW)
        sex_B, age_B = model(embedding_BE)
        return Described(
            embedding_E=embedding_BE[0],
            sex=float(sex_B),
            age=float(age_B),
            skin=float(typology_angle(skin_lab(img_BCHW, mesh_BK3))),
            pose_3=head_pose(mesh_BK3)[0].cpu(),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Gallery:
    """N people who do not exist. Person n has the code `pipeline.person(seed=GALLERY_SEED, index=index_N[n])`."""

    index_N: torch.Tensor  # int64
    embedding_NE: torch.Tensor  # centred, unit length
    sex_N: torch.Tensor  # 1 feminine, −1 masculine, 0 unclear; judged by eye, as is the age group
    age_N: torch.Tensor  # index into attributes.AGES
    glasses_N: torch.Tensor  # bool
    skin_N: torch.Tensor  # individual typology angle, degrees
    pose_N3: torch.Tensor  # degrees

    def __len__(self) -> int:
        return len(self.index_N)

    @classmethod
    def load(cls, mean_E: torch.Tensor) -> "Gallery":
        """The gallery that ships; `mean_E` is the population's mean embedding. Raises WeightsError."""
        tensors, _ = load_tensors(asset_path("gallery"), kind="gallery")
        return cls(
            index_N=tensors["index"],
            embedding_NE=centred(tensors["embedding"].float(), mean_E.cpu()),
            sex_N=tensors["sex"].float(),
            age_N=tensors["age"].long(),
            glasses_N=tensors["glasses"].bool(),
            skin_N=typology_angle(tensors["skin"].float()),
            pose_N3=tensors["pose"].float(),
        )


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Strangers for one face, best first: positions in the gallery."""

    ranked: tuple[int, ...]


def choose_stranger(
    original: Described,
    gallery: Gallery,
    *,
    seed: int,
    number: int = 0,
    keep: Collection[Attribute] = KEEP_ALL,
    avoid: Collection[int] = (),
) -> Choice:
    """Strangers to the original, matching it in what is to be kept, best first.

    Only people with a cosine of at most 0 to the original are candidates. What counts among them, in this order: sex
    presentation, age group, skin tone; distance; no glasses; a similar pose. Of up to twelve about equally good
    one is drawn by (seed, number of the face); the others follow by distance. `avoid`: positions that are taken.
    Raises UsageError for an unknown attribute, and when the gallery has nobody left.
    """
    check_keep(keep)
    cosine_N = gallery.embedding_NE @ original.embedding_E
    cost_N = 0.5 * cosine_N.clamp_min(_FAR_ENOUGH) + 0.15 * gallery.glasses_N
    cost_N += 0.004 * (gallery.pose_N3 - original.pose_3)[:, :2].abs().sum(1)
    if "age" in keep:
        difference_N = (torch.tensor(AGE_VALUES)[gallery.age_N] - original.age).abs()
        cost_N += 0.5 * (difference_N - 0.5).clamp_min(0)
    if "sex" in keep:
        sureness = min(1.0, abs(original.sex) / SEX_UNCLEAR)
        cost_N += 0.5 * sureness * (1 - gallery.sex_N * math.copysign(1, original.sex))
    if "skin" in keep:
        cost_N += 0.4 * ((gallery.skin_N - original.skin).abs() - 10).clamp_min(0) / 30
    open_N = cosine_N <= _FAR
    open_N[list(avoid)] = False
    candidates = torch.nonzero(open_N)[:, 0]
    if not len(candidates):
        raise UsageError(
            f"All of the {len(gallery)} people of the gallery are taken or resemble the face; split the job."
        )
    order = candidates[cost_N[candidates].argsort(stable=True)]
    pool = order[:_POOL][cost_N[order[:_POOL]] <= cost_N[order[0]] + _POOL_MARGIN]
    drawn = pool[torch.randint(len(pool), (1,), generator=generator_for(seed, number, stream=7))]
    others = pool[pool != drawn]
    others = others[cosine_N[others].argsort(stable=True)]
    return Choice(ranked=tuple(torch.cat([drawn, others, order[len(pool) :]]).tolist()))


def check_keep(keep: Collection[str]) -> None:
    """Refuse attributes that there are not."""
    if unknown := [name for name in keep if name not in KEEP_ALL]:
        raise UsageError(f"keep: {unknown[0]!r} is not an attribute; there are {', '.join(KEEP_ALL)}, or none.")


def parse_keep(text: str) -> tuple[Attribute, ...]:
    """`age,sex,skin` in any selection and order, `all` or `none`. Raises UsageError."""
    words = {"all": list(KEEP_ALL), "none": []}.get(text.strip(), [word.strip() for word in text.split(",")])
    check_keep(words)
    return tuple(name for name in KEEP_ALL if name in words)


@dataclass(kw_only=True, eq=False)
class _Candidacy:
    """A face of the picture and who is tried for it."""

    original: Described
    strangers: tuple[int, ...]  # positions in the gallery, in the order in which they are tried
    tries: int = 1
    pixels: np.ndarray | None = None  # the swapped crop of the current stranger; None: still to be made

    @property
    def stranger(self) -> int:
        return self.strangers[self.tries - 1]


class Anonymizer:
    """One job: pictures in, pictures with people who do not exist out.

    keep: what a replacement shares with the original. replacements: the job's memory, so that the same person gets the
    same replacement in every picture; None to choose for every face anew. tries: strangers that are tried for a face.
    """

    def __init__(
        self,
        swapper: "Swapper",
        *,
        seed: int = 0,
        keep: Collection[Attribute] = KEEP_ALL,
        replacements: Replacements | None = None,
        tries: int = 3,
        bound: float = ANONYMOUS,
    ) -> None:
        check_keep(keep)
        if not swapper.networks.encodes:
            raise UsageError(
                "The people who stand in are codes of the shipped generator's W space, which this generator does not "
                "share; anonymise with one that maps z as StyleGAN2-FFHQ at 1024² does."
            )
        if tries < 1:
            raise UsageError(f"tries is {tries}; at least one stranger has to be tried.")
        self.swapper, self.seed, self.keep, self.replacements = swapper, seed, tuple(keep), replacements
        self.tries, self.bound = tries, bound
        self.gallery = Gallery.load(swapper.networks.mean_E)
        self.model = AttributeModel.load()

    def __call__(
        self, target: "Picture", *, faces: "str | FaceChoice | None" = None, on_step: OnStep = no_progress
    ) -> SwapResult:
        """The TARGET with every (chosen) face replaced.

        The report says of every face who replaced it (`stranger`), after how many `tries`, what was kept of the
        original (`original`, `replacement`), and the `cosine_to_original` reached. `anonymised` is false when a face
        of the picture was left as it was: those are in `SwapResult.skipped`.
        Raises NotAnonymisedError when a face still resembles its original, UsageError, BadInputError and NoFaceError.
        """
        people: list[_Candidacy] = []

        def work(crop: Crop, number: int, step: OnStep) -> np.ndarray:
            if number == len(people):
                people.append(self._candidacy(crop, number, [n for candidacy in people for n in candidacy.strangers]))
            candidacy = people[number]
            if candidacy.pixels is None:
                stranger = leaning_away(self.stranger(candidacy.stranger), candidacy.original.embedding_E)
                candidacy.pixels = self.swapper.latent.swap(stranger, crop, on_step=step)
            return candidacy.pixels

        # What counts is the likeness in the finished picture, so a round ends with one. Faces that have passed keep
        # their crop; only those that have not are swapped again.
        while True:
            result = self.swapper._replace(target, faces, on_step, work, protects=True)
            reports = [
                {**report, **self._report(candidacy)}
                for report, candidacy in zip(result.report["faces"], people, strict=True)
            ]
            failed = [at for at, report in enumerate(reports) if report["cosine_to_original"] > self.bound]
            if not failed:
                break
            for at in failed:
                if people[at].tries == len(people[at].strangers):
                    raise _refusal(result.image.name, reports[at], self.bound)
                people[at].tries += 1
                people[at].pixels = None
        if self.replacements is not None:
            for candidacy in people:
                self.replacements.remember(candidacy.original.embedding_E, candidacy.stranger)
        report = {**result.report, "faces": reports, "anonymised": not result.skipped}
        return replace(result, report=report, making=replace(result.making, deed="anonymized"))

    def stranger(self, position: int) -> Prepared:
        """The person at a position of the gallery, to be swapped in."""
        from latentswap.pipeline import person

        index = int(self.gallery.index_N[position])
        ws_BLD = person(self.swapper.networks, seed=GALLERY_SEED, index=index, truncation_psi=GALLERY_PSI)
        return self.swapper.latent.prepare_code(ws_BLD, name=f"gallery person {index}")

    def _candidacy(self, crop: Crop, number: int, here: list[int]) -> _Candidacy:
        """Who may replace the face. `here`: who may stand in this picture for another face, now or after a retry."""
        networks = self.swapper.networks
        original = describe(to_tensor(crop.pixels, networks.mean_E.device), networks, self.model)
        known, taken = None, list(here)
        if self.replacements is not None:
            known = self.replacements.find(original.embedding_E, avoid=here)
            taken += self.replacements.strangers
        choice = choose_stranger(original, self.gallery, seed=self.seed, number=number, keep=self.keep, avoid=taken)
        strangers = choice.ranked if known is None else (known, *choice.ranked)
        return _Candidacy(original=original, strangers=strangers[: self.tries])

    def _report(self, candidacy: _Candidacy) -> dict:
        gallery, at, original = self.gallery, candidacy.stranger, candidacy.original
        return {
            "stranger": int(gallery.index_N[at]),
            "tries": candidacy.tries,
            "original": _traits(original.sex, int(age_group(torch.tensor(original.age))), original.skin),
            "replacement": _traits(float(gallery.sex_N[at]), int(gallery.age_N[at]), float(gallery.skin_N[at])),
        }


def leaning_away(stranger: Prepared, original_E: torch.Tensor) -> Prepared:
    """The stranger with an identity moved away from the original's.

    Hair, surroundings and build stay the original's and pull a matcher back towards it; nobody misses the stranger's
    exact identity, so it gives way in the other direction.
    """
    away_BE = stranger.embedding - _LEAN * original_E.to(stranger.embedding)
    return replace(stranger, embedding=torch.nn.functional.normalize(away_BE, dim=-1))


def _refusal(name: str, report: dict, bound: float) -> NotAnonymisedError:
    tries = report["tries"]
    return NotAnonymisedError(
        f"{name}: the face at {report['box']} still resembles the original (identity cosine "
        f"{report['cosine_to_original']:.2f}, the bound is {bound:.2f}) after {tries} stranger{'s' * (tries != 1)}; "
        f"nothing was written. Use --inversion refine, another --seed, or --keep none."
    )


def _traits(sex: float, age: int, skin: float) -> dict:
    clear = "feminine" if sex > 0 else "masculine"
    return {"sex": "unclear" if abs(sex) < SEX_UNCLEAR else clear, "age": AGES[age], "skin_angle": round(skin)}

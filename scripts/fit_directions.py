"""Learn `assets/directions.safetensors` from people who do not exist: no data set. Only the gallery's labels, by which
sex presentation and age group are held, were made by eye.

    latentswap train people -o PEOPLE
    python scripts/fit_directions.py PEOPLE [--only smile …] [-o FILE]

1. Start: codes are regressed on what the frozen networks measure in the pictures (pose, expression, identity, light);
   the coefficient of one measure is how a code moves when that measure does and all others stay.
2. Descent: the offset moves by normalised gradient steps through the 256² path, on the people themselves: the measure
   changes by what was asked for, the other measures, the identity and the light stay, and the offset stays short in
   units of the codes' own spread (Mahalanobis).
3. Units: the offset is scaled on people who had no part in it, so that a strength means degrees, standard deviations …

`--only` fits these and keeps the others that the file holds. All of it is a function of the people and of SEED.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from latentswap.edit.directions import Direction, Offset, Scale, load_directions, save_directions
from latentswap.generators.base import broadcast_w
from latentswap.generators.mobile import MobileStyleGAN
from latentswap.identity.attributes import AttributeModel
from latentswap.identity.dlib_resnet import DlibResNet, centred, chip
from latentswap.losses import identity_loss
from latentswap.networks import load_trunks
from latentswap.runtime.precision import bfloat16_is_native
from latentswap.seeds import generator_for
from latentswap.shape.gaze import gaze_turn, measure_gaze
from latentswap.shape.iris import IrisNet
from latentswap.shape.measures import expression_measures, expression_statistics, head_pose, openness
from latentswap.shape.mesh import MeshNet, crop_mesh
from latentswap.train.sample import BROADCAST, sample_w
from latentswap.weights.assets import asset_path
from latentswap.weights.fetch import weights_path
from latentswap.weights.load import load_tensors

SEED = 0
ROWS = 11  # those of layers that the 256² path has (inversion.optimise.EXACT_ROWS)
HELD_OUT = 20  # people for the units
MEASURES = ("yaw", "pitch", "smile", "mouth", "eyes", "brows", "sex", "age", "gaze")
IDENTITY_PARTS, LIGHT_PARTS = 64, 40  # principal components that the regression holds
CELLS = 8  # squares to a side in which the light is compared
RIDGE = 0.02


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One direction. Strengths of the descent in standard deviations of the measure; coefficients of its losses."""

    measure: str
    unit: str
    per_unit: float  # measure's change for a strength of 1; 0: its standard deviation
    low: float  # of strengths, in units
    high: float
    usual: float
    about: str
    free: tuple[str, ...] = ()  # measures that need not stay
    reach: float = 2.0  # largest strength of the descent
    steps: int = 36
    sides: tuple[int, ...] = (1, -1)  # that the unit is measured on: a shut mouth cannot shut further
    identity: float = 3.0
    light: float = 2.0
    kept: float = 0.3
    short: float = 0.02


RECIPES = {
    "yaw": Recipe(
        measure="yaw", unit="degrees", per_unit=1, low=-25, high=25, usual=12, steps=0,
        about="turns the head; positive to the picture's right",
    ),
    "pitch": Recipe(
        measure="pitch", unit="degrees", per_unit=1, low=-16, high=16, usual=10, free=("eyes", "brows"),
        steps=0, about="nods; positive down",
    ),
    "smile": Recipe(
        measure="smile", unit="standard deviations", per_unit=0, low=-2, high=4, usual=2.2,
        free=("mouth", "eyes", "brows"), about="width of the mouth and lift of its corners",
    ),
    "mouth_open": Recipe(
        measure="mouth", unit="standard deviations", per_unit=0, low=-2, high=4, usual=2, sides=(1,),
        about="gap between the lips",
    ),
    "gaze": Recipe(
        measure="gaze", unit="percent of an eye's width", per_unit=0.01, low=-20, high=20, usual=10, reach=2.5,
        steps=40, about="turns the eyes; positive to the picture's right",
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class Watchers:
    """The frozen networks that look at pictures, and the generator that makes them."""

    generator: MobileStyleGAN
    identity: DlibResNet
    mesh: MeshNet
    iris: IrisNet
    attributes: AttributeModel
    mean_E: torch.Tensor

    @classmethod
    def load(cls) -> "Watchers":
        generator, identity, mesh = load_trunks(offline=True)
        population, _ = load_tensors(asset_path("population"), kind="population")
        iris = IrisNet.load(weights_path("mediapipe-iris", offline=True))
        mean_E = population["identity.mean_E"]
        attributes = AttributeModel.load()
        return cls(generator=generator, identity=identity, mesh=mesh, iris=iris, attributes=attributes, mean_E=mean_E)


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """A batch of pictures and what is measured in them."""

    light_BX: torch.Tensor  # the picture in `CELLS`² squares
    embedding_BE: torch.Tensor  # centred
    measures_BM: torch.Tensor  # without the gaze, which is only compared
    gaze: tuple[torch.Tensor, torch.Tensor] | None


def measure(mesh_BK3: torch.Tensor, embedding_BE: torch.Tensor, attributes: AttributeModel) -> torch.Tensor:
    """`MEASURES` but the last, [B, 8]. embedding: centred."""
    mean_M, std_M = expression_statistics()
    z_BM = (expression_measures(mesh_BK3) - mean_M) / std_M
    eyes_B2, mouth_B = openness(mesh_BK3)
    pose_B3 = head_pose(mesh_BK3)
    smile_B = z_BM[:, 5] + z_BM[:, 6]
    sex_B, age_B = attributes(embedding_BE)
    return torch.stack(
        (pose_B3[:, 0], pose_B3[:, 1], smile_B, mouth_B, eyes_B2.mean(1), z_BM[:, 2:4].mean(1), sex_B, age_B), 1
    )


def see(nets: Watchers, ws_BLD: torch.Tensor, generator: MobileStyleGAN | None = None, *, gaze: bool = False) -> Seen:
    """Pictures at 256² of the codes, looked at; differentiable."""
    img_BCHW = (generator or nets.generator).synthesis(ws_BLD, resolution=256)
    mesh_BK3 = crop_mesh(nets.mesh, img_BCHW)
    embedding_BE = centred(nets.identity(chip(img_BCHW)), nets.mean_E)
    found = measure_gaze(nets.iris, img_BCHW, mesh_BK3) if gaze else None
    return Seen(
        light_BX=F.adaptive_avg_pool2d(img_BCHW, CELLS).flatten(1),
        embedding_BE=embedding_BE,
        measures_BM=measure(mesh_BK3, embedding_BE, nets.attributes),
        gaze=None if found is None else (found.gaze_BE2, found.weight_BE),
    )


def change(after: Seen, before: Seen, std_M: torch.Tensor) -> torch.Tensor:
    """How far each of `MEASURES` moved, in its standard deviations, [B, 9]; the gaze 0 where it was not looked at."""
    moved_BM = after.measures_BM - before.measures_BM
    gaze_B1 = moved_BM.new_zeros(len(moved_BM), 1)
    if after.gaze is not None and before.gaze is not None:
        gaze_B1 = gaze_turn(after.gaze[0], before.gaze[0], after.gaze[1] * before.gaze[1])[:, :1]
    return torch.cat([moved_BM, gaze_B1], 1) / std_M


@dataclass(frozen=True, kw_only=True, eq=False)
class People:
    """A bank's people, as far as the fit needs them. Spread: codes of row 0 = mean + spread · standard normal."""

    codes_NLD: torch.Tensor
    seen: Seen
    std_M: torch.Tensor
    spread_DD: torch.Tensor

    @classmethod
    def load(cls, folder: Path, nets: Watchers) -> "People":
        codes, embeddings, meshes, light = [], [], [], []
        for path in sorted(folder.glob("people-*.safetensors")):
            part, _ = load_tensors(path, kind="bank")
            codes.append(part["codes"])
            embeddings.append(part["embedding"])
            meshes.append(part["mesh"])
            light.append(F.adaptive_avg_pool2d(part["thumbnails"].float() / 127.5 - 1, CELLS).flatten(1))
        codes_NLD, embedding_NE = torch.cat(codes), centred(torch.cat(embeddings), nets.mean_E)
        measures_NM = measure(torch.cat(meshes), embedding_NE, nets.attributes)
        with torch.no_grad():
            some = [see(nets, rows.float(), gaze=True).gaze for rows in codes_NLD[:HELD_OUT].split(4)]
        seen = [gaze_turn(gaze, torch.full_like(gaze, 0.5), weight)[:, 0] for gaze, weight in filter(None, some)]
        values, vectors_DD = torch.linalg.eigh(torch.cov(codes_NLD[:, 0].float().T))
        return cls(
            codes_NLD=codes_NLD,
            seen=Seen(light_BX=torch.cat(light), embedding_BE=embedding_NE, measures_BM=measures_NM, gaze=None),
            std_M=torch.cat([measures_NM.std(0), torch.cat(seen).std()[None]]),
            spread_DD=vectors_DD * values.clamp_min(1e-8).sqrt(),
        )

    def look(self, picked_B: torch.Tensor) -> Seen:
        """What the bank knows of some of its people."""
        light_BX, embedding_BE, measures_BM = (
            x[picked_B] for x in (self.seen.light_BX, self.seen.embedding_BE, self.seen.measures_BM)
        )
        return Seen(light_BX=light_BX, embedding_BE=embedding_BE, measures_BM=measures_BM, gaze=None)


def whitened(x_NX: torch.Tensor, parts: int) -> torch.Tensor:
    """The first principal components, each of unit variance: [N, parts]."""
    left_NX, _, _ = torch.linalg.svd(x_NX - x_NX.mean(0), full_matrices=False)
    return left_NX[:, :parts] * len(x_NX) ** 0.5


def regress(people: People, recipe: Recipe) -> torch.Tensor:
    """Change of the codes [R, D] for one standard deviation of the measure, the other measures held; 0 for the gaze."""
    if recipe.measure == "gaze":
        return torch.zeros(ROWS, people.codes_NLD.shape[2])
    wanted = MEASURES.index(recipe.measure)
    held = [i for i, name in enumerate(MEASURES[:-1]) if i != wanted and name not in recipe.free]
    seen = people.seen
    z_NM = (seen.measures_BM - seen.measures_BM.mean(0)) / people.std_M[:-1]
    parts = whitened(seen.light_BX, LIGHT_PARTS), whitened(seen.embedding_BE, IDENTITY_PARTS)
    x_NX = torch.cat([z_NM[:, [wanted, *held]], *parts], 1)
    codes_NV = people.codes_NLD[:, :ROWS].float().flatten(1)
    gram_XX = x_NX.T @ x_NX / len(x_NX) + RIDGE * torch.eye(x_NX.shape[1])
    moved_XV = torch.linalg.solve(gram_XX, x_NX.T @ (codes_NV - codes_NV.mean(0)) / len(x_NX))
    return moved_XV[0].view(ROWS, -1)


def descend(
    nets: Watchers, people: People, recipe: Recipe, offset_RD: torch.Tensor, report: Callable[[str], None]
) -> torch.Tensor:
    """The offset after `recipe.steps` normalised gradient steps; still for one standard deviation."""
    generator = nets.generator
    if bfloat16_is_native("cpu"):
        generator = MobileStyleGAN.load(
            weights_path("mobilestylegan-ffhq-1024", offline=True), asset_path("head256")
        ).half_precision()
    wanted, gaze = MEASURES.index(recipe.measure), recipe.measure == "gaze"
    weight_M = torch.tensor([recipe.kept * (name not in recipe.free) for name in MEASURES])
    weight_M[wanted] = 1
    # Coordinates in which the codes are standard normal: steps go where codes go.
    own_RD = torch.linalg.solve(people.spread_DD, offset_RD.T).T.contiguous().requires_grad_()
    momentum_RD = torch.zeros_like(own_RD)
    for step in range(recipe.steps):
        random = generator_for(SEED, step, stream=11)
        picked_B = torch.randint(len(people.codes_NLD) - HELD_OUT, (4,), generator=random) + HELD_OUT
        ws_BLD = people.codes_NLD[picked_B].float()
        strength_B = torch.empty(4).uniform_(0.4, 1.0, generator=random) * recipe.reach
        strength_B = strength_B * torch.tensor((1.0, -1.0, 1.0, -1.0))
        before = people.look(picked_B)
        if gaze:
            with torch.no_grad():
                before = see(nets, ws_BLD, generator, gaze=True)
        moved_RD = own_RD @ people.spread_DD.T
        edited_BLD = ws_BLD + strength_B[:, None, None] * F.pad(moved_RD, (0, 0, 0, ws_BLD.shape[1] - ROWS))
        after = see(nets, edited_BLD, generator, gaze=gaze)
        asked_BM = strength_B[:, None] * F.one_hot(torch.tensor(wanted), len(MEASURES))
        miss_BM = change(after, before, people.std_M) - asked_BM
        loss = (
            (weight_M * miss_BM.square()).sum(1).mean()
            + recipe.identity * identity_loss(after.embedding_BE, before.embedding_BE)
            + recipe.light * (after.light_BX - before.light_BX).abs().mean()
            + recipe.short * own_RD.square().sum()
        )
        (gradient_RD,) = torch.autograd.grad(loss, own_RD)
        momentum_RD = 0.8 * momentum_RD + 0.2 * gradient_RD / gradient_RD.norm().clamp_min(1e-12)
        rate = 0.25 * (1 - step / recipe.steps)
        own_RD = (own_RD.detach() - rate * momentum_RD).requires_grad_()
        if step % 10 == 0:
            cosine = 1 - identity_loss(after.embedding_BE, before.embedding_BE)
            found = {"loss": loss, "identity": cosine, "length": own_RD.norm()}
            report(f"  step {step}: { ({key: round(value.item(), 3) for key, value in found.items()}) }")
    return (own_RD @ people.spread_DD.T).detach()


def strangers(generator: MobileStyleGAN, count: int = HELD_OUT) -> torch.Tensor:
    """Codes [count, L, D] of people who had no part in the fit."""
    return broadcast_w(sample_w(generator, count, generator_for(SEED, 0, stream=12), BROADCAST), generator.num_ws)


@torch.no_grad()
def gain(
    nets: Watchers, people: People, direction: Direction, strength: float, sides: tuple[int, ...]
) -> dict[str, float]:
    """Mean change of every measure along the strength, in its own unit, and identity cosine, on held-out people."""
    both, gaze = [], direction.name == "gaze"
    for ws_BLD in strangers(nets.generator).split(4):
        before = see(nets, ws_BLD, gaze=gaze)
        for sign in sides:
            after = see(nets, direction(ws_BLD, sign * strength), gaze=gaze)
            cosine_B1 = (after.embedding_BE * before.embedding_BE).sum(1, keepdim=True)
            both.append(torch.cat([sign * change(after, before, people.std_M) * people.std_M, cosine_B1], 1))
    mean_M = torch.cat(both).mean(0)
    return dict(zip((*MEASURES, "identity"), mean_M.tolist(), strict=True))


def fit(nets: Watchers, people: People, name: str, recipe: Recipe, report: Callable[[str], None]) -> Direction:
    """One direction, from the regression to its units."""
    std = float(people.std_M[MEASURES.index(recipe.measure)])
    per_unit = recipe.per_unit or std
    offset_RD = regress(people, recipe) if recipe.steps == 0 else descend(
        nets, people, recipe, regress(people, recipe), report
    )  # fmt: skip
    offset_RD = offset_RD * (per_unit / std)
    scale = Scale(unit=recipe.unit, low=recipe.low, high=recipe.high, usual=recipe.usual)
    for _ in range(2):  # the answer is not quite linear; what is right is the usual strength
        padded_LD = F.pad(offset_RD, (0, 0, 0, nets.generator.num_ws - ROWS))
        direction = Direction(
            name=name, change=Offset(padded_LD), rows=tuple(range(ROWS)), scale=scale, about=recipe.about
        )
        reached = gain(nets, people, direction, recipe.usual, recipe.sides)
        ratio = reached[recipe.measure] / (recipe.usual * per_unit)
        report(
            f"  reaches {ratio:.2f} of {recipe.usual}: { ({key: round(value, 3) for key, value in reached.items()}) }"
        )
        if abs(ratio - 1) < 0.04:
            break
        offset_RD = offset_RD / min(max(ratio, 0.5), 2.0)
    return direction


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("people", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("-o", "--out", type=Path, default=asset_path("directions"))
    arguments = parser.parse_args()
    nets = Watchers.load()
    people = People.load(arguments.people, nets)
    print(len(people.codes_NLD), "people; standard deviations", dict(zip(MEASURES, people.std_M.tolist(), strict=True)))
    done = load_directions(arguments.out) if arguments.out.exists() else {}
    about = {
        "people": f"{len(people.codes_NLD)} generated",
        "standard_deviations": json.dumps(dict(zip(MEASURES, people.std_M.tolist(), strict=True))),
        "licence": "non-commercial (lineage FFHQ)",
    }
    for name in arguments.only:
        print(name, flush=True)
        done[name] = fit(nets, people, name, RECIPES[name], lambda text: print(text, flush=True))
        ordered = [done[each] for each in RECIPES if each in done]
        save_directions(arguments.out, ordered, about)


if __name__ == "__main__":
    main()

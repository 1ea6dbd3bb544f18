"""Make `assets/gallery.safetensors` and `assets/attributes.safetensors` from the labels in `attribute_labels.csv`.

The labels are one annotator's judgement, by eye, of contact sheets of the gallery's people, none of whom exist. `index`
is the person's number in the gallery's seed; `note` says glasses, or unsuitable (dark glasses, hidden face,
artefact): such people are not offered as replacements. `--sheets` draws the contact sheets.

    python scripts/fit_attributes.py [--sheets FOLDER] [--pictures FILE]

`--pictures` keeps the rendered pictures in a file, or takes them from it.
"""

import argparse
import csv
import json
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from latentswap.anonymize import GALLERY_PSI, GALLERY_SEED, STRANGER_QUANTILES
from latentswap.identity.attributes import AGE_VALUES, AGES, SEX_UNCLEAR, age_group, fit_ridge, skin_lab
from latentswap.identity.dlib_resnet import centred, chip
from latentswap.networks import Networks, load_networks
from latentswap.pipeline import person
from latentswap.shape.measures import head_pose
from latentswap.shape.mesh import crop_mesh
from latentswap.swappers.latentswap import to_pixels
from latentswap.weights.load import load_tensors, save_tensors

LABELS = Path(__file__).with_name("attribute_labels.csv")
ASSETS = Path(__file__).parent.parent / "src/latentswap/assets"
SEXES = {"feminine": 1.0, "masculine": -1.0, "unclear": 0.0}
FOLDS = 8
STRENGTH = 300.0  # of 10, 100, 300, 1000, 3000: best over the folds for both models together


def render(networks: Networks, count: int) -> torch.Tensor:
    """The gallery's people, uint8 [N, 256, 256, 3]."""
    parts = []
    for index in range(count):
        ws_BLD = person(networks, seed=GALLERY_SEED, index=index, truncation_psi=GALLERY_PSI)
        with torch.no_grad():
            parts.append(torch.from_numpy(to_pixels(networks.generator.synthesis(ws_BLD, resolution=256))))
    return torch.cat(parts)


def describe(networks: Networks, pixels_NHWC: torch.Tensor) -> dict[str, torch.Tensor]:
    """Raw embeddings, skin colour and pose of the pictures."""
    parts = []
    with torch.no_grad():
        for rows in pixels_NHWC.split(8):
            img_BCHW = rows.permute(0, 3, 1, 2) / 127.5 - 1
            mesh_BK3 = crop_mesh(networks.mesh, img_BCHW)
            parts.append((networks.identity(chip(img_BCHW)), skin_lab(img_BCHW, mesh_BK3), head_pose(mesh_BK3)))
    return {
        name: torch.cat(part)
        for name, part in zip(("embedding", "skin", "pose"), zip(*parts, strict=True), strict=True)
    }


def fit(embedding_NE: torch.Tensor, sex_N: torch.Tensor, age_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight [E, 2] and bias [2]. Rare age groups count more: by one over the root of their number."""
    clear = sex_N != 0
    target_N = torch.tensor(AGE_VALUES)[age_N]
    rarity_N = (1 / torch.bincount(age_N, minlength=len(AGES)).sqrt())[age_N]
    sex = fit_ridge(embedding_NE[clear], sex_N[clear], strength=STRENGTH, weight_N=torch.ones(int(clear.sum())))
    age = fit_ridge(embedding_NE, target_N, strength=STRENGTH, weight_N=rarity_N / rarity_N.mean())
    return torch.stack([sex[0], age[0]], 1), torch.stack([sex[1], age[1]])


def cross_validate(embedding_NE: torch.Tensor, sex_N: torch.Tensor, age_N: torch.Tensor) -> dict[str, object]:
    """Accuracies on people that the model was not fitted to."""
    fold_N = torch.randperm(len(sex_N), generator=torch.Generator().manual_seed(0)) % FOLDS
    scores_N2 = torch.zeros(len(sex_N), 2)
    for fold in range(FOLDS):
        train = fold_N != fold
        weight_E2, bias_2 = fit(embedding_NE[train], sex_N[train], age_N[train])
        scores_N2[~train] = embedding_NE[~train] @ weight_E2 + bias_2
    score_N, group_N = scores_N2[:, 0], age_group(scores_N2[:, 1])
    clear = sex_N != 0
    decided = clear & (score_N.abs() >= SEX_UNCLEAR)
    confusion = [[int(((age_N == i) & (group_N == j)).sum()) for j in range(len(AGES))] for i in range(len(AGES))]

    def share(of_N: torch.Tensor) -> float:
        return round(float(of_N.float().mean()), 3)

    return {
        "sex": share((score_N.sign() == sex_N)[clear]),
        "sex_when_not_unclear": share((score_N.sign() == sex_N)[decided]),
        "sex_unclear": share(~decided[clear]),
        "age": share(group_N == age_N),
        "age_within_one_group": share((group_N - age_N).abs() <= 1),
        "age_confusion": confusion,
    }


def sheets(pixels_NHWC: torch.Tensor, folder: Path) -> None:
    """Contact sheets of 60 people, numbered."""
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(pixels_NHWC), 60):
        sheet = Image.new("RGB", (1500, 900))
        draw = ImageDraw.Draw(sheet)
        for place, pixels_HWC in enumerate(pixels_NHWC[start : start + 60]):
            x, y = place % 10 * 150, place // 10 * 150
            sheet.paste(Image.fromarray(pixels_HWC.numpy()).resize((150, 150), Image.Resampling.LANCZOS), (x, y))
            draw.text((x + 2, y + 1), str(start + place), fill=(255, 255, 0))
        sheet.save(folder / f"sheet-{start:04d}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sheets", type=Path)
    parser.add_argument("--pictures", type=Path)
    arguments = parser.parse_args()
    with LABELS.open(encoding="utf-8") as file:
        labels = list(csv.DictReader(file))
    networks = load_networks()
    if arguments.pictures and arguments.pictures.exists():
        pixels_NHWC = load_tensors(arguments.pictures, kind="pictures")[0]["pixels"]
    else:
        pixels_NHWC = render(networks, len(labels))
        if arguments.pictures:
            save_tensors(arguments.pictures, {"pixels": pixels_NHWC}, {"kind": "pictures"})
    if arguments.sheets:
        sheets(pixels_NHWC, arguments.sheets)
    described = describe(networks, pixels_NHWC)
    unit_NE = centred(described["embedding"], networks.mean_E)
    sex_N = torch.tensor([SEXES[row["sex"]] for row in labels])
    age_N = torch.tensor([AGES.index(row["age"]) for row in labels])
    accuracy = cross_validate(unit_NE, sex_N, age_N)
    print(json.dumps(accuracy))
    weight_E2, bias_2 = fit(unit_NE, sex_N, age_N)
    cosines = (unit_NE @ unit_NE.T)[tuple(torch.triu_indices(len(labels), len(labels), 1))]
    quantiles = {q: round(float(cosines.kthvalue(int(q * len(cosines))).values), 3) for q in STRANGER_QUANTILES}
    print("cosines of strangers, quantiles:", quantiles)
    about = {
        "labels": f"{len(labels)}, judged by eye on generated people by one annotator",
        "meaning": "how a picture looks; not a fact about a person",
        "licence": "non-commercial (lineage FFHQ)",
    }
    save_tensors(
        ASSETS / "attributes.safetensors",
        {"weight": weight_E2, "bias": bias_2},
        {"kind": "attributes", "accuracy": json.dumps({"folds": FOLDS, **accuracy}), **about},
    )
    usable = torch.tensor([i for i, row in enumerate(labels) if row["note"] != "unsuitable"])
    save_tensors(
        ASSETS / "gallery.safetensors",
        {
            "index": usable,
            "embedding": described["embedding"][usable].half(),
            "sex": sex_N[usable].to(torch.int8),
            "age": age_N[usable].to(torch.int8),
            "glasses": torch.tensor([row["note"] == "glasses" for row in labels])[usable].to(torch.int8),
            "skin": described["skin"][usable].half(),
            "pose": described["pose"][usable].half(),
        },
        {"kind": "gallery", "seed": str(GALLERY_SEED), "truncation_psi": str(GALLERY_PSI), **about},
    )


if __name__ == "__main__":
    main()

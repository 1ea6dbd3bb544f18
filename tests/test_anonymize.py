"""Choice of the stranger, attributes, memory of a job, and the refusal to call a face anonymised that is not."""

import csv
import stat
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from _face_support import astronaut

from latentswap.anonymize import (
    ANONYMOUS,
    GALLERY_PSI,
    GALLERY_SEED,
    KEEP_ALL,
    Anonymizer,
    Described,
    Gallery,
    NotAnonymisedError,
    choose_stranger,
    describe,
    parse_keep,
)
from latentswap.cli.main import main
from latentswap.errors import UsageError, WeightsError
from latentswap.identity.attributes import AGE_VALUES, AGES, AttributeModel, fit_ridge, skin_lab, typology_angle
from latentswap.pipeline import person
from latentswap.replacements import Replacements
from latentswap.shape.measures import mean_mesh

LABELS = Path(__file__).parent.parent / "scripts/attribute_labels.csv"


@pytest.fixture(scope="module")
def gallery(networks):
    return Gallery.load(networks.mean_E)


@pytest.fixture(scope="module")
def model():
    return AttributeModel.load()


def original_like(gallery: Gallery, at: int) -> Described:
    return Described(
        embedding_E=gallery.embedding_NE[at],
        sex=float(gallery.sex_N[at]),
        age=AGE_VALUES[int(gallery.age_N[at])],
        skin=float(gallery.skin_N[at]),
        pose_3=gallery.pose_N3[at],
    )


def test_the_gallery_is_the_labels_and_its_people_can_be_made_again(networks, gallery, model):
    with LABELS.open(encoding="utf-8") as file:
        labels = [row for row in csv.DictReader(file) if row["note"] != "unsuitable"]
    assert gallery.index_N.tolist() == [int(row["index"]) for row in labels]
    assert [AGES[i] for i in gallery.age_N.tolist()] == [row["age"] for row in labels]
    at = 100
    ws_BLD = person(networks, seed=GALLERY_SEED, index=int(gallery.index_N[at]), truncation_psi=GALLERY_PSI)
    with torch.no_grad():
        again = describe(networks.generator.synthesis(ws_BLD, resolution=256), networks, model)
    assert float(again.embedding_E @ gallery.embedding_NE[at]) > 0.99
    assert abs(again.skin - float(gallery.skin_N[at])) < 3


def test_attributes_agree_with_the_labels(gallery, model):
    """Below the cross-validated accuracies in the asset's metadata: these are the people it was fitted to."""
    sex_N, age_N = model(gallery.embedding_NE)
    clear = gallery.sex_N != 0
    assert (sex_N.sign() == gallery.sex_N)[clear].float().mean() > 0.94
    assert (age_N - torch.tensor(AGE_VALUES)[gallery.age_N]).abs().mean() < 0.6


def test_ridge_finds_a_line_again():
    x_NE = torch.randn(400, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 2, 3, 4, 5.0]) + 7
    y_N = x_NE @ torch.tensor([1.0, -2, 0, 0.5, 3]) - 4
    weight_E, bias = fit_ridge(x_NE, y_N, strength=1e-3, weight_N=torch.ones(400))
    assert torch.allclose(weight_E, torch.tensor([1.0, -2, 0, 0.5, 3]), atol=1e-3) and abs(float(bias) + 4) < 1e-2


@pytest.mark.parametrize("rgb", [(255, 255, 255), (224, 172, 105), (92, 56, 34), (128, 128, 128), (1, 2, 3)])
def test_skin_colour_against_scikit_image(rgb):
    from skimage.color import rgb2lab

    img_BCHW = (torch.tensor(rgb).float() / 127.5 - 1)[None, :, None, None].expand(1, 3, 64, 64)
    lab_B3 = skin_lab(img_BCHW, mean_mesh()[None])
    np.testing.assert_allclose(lab_B3[0], rgb2lab(np.array(rgb, np.uint8)[None, None])[0, 0], atol=0.05)


def test_typology_angle_falls_from_light_to_dark():
    lab_B3 = torch.tensor([[75.0, 8, 14], [60.0, 12, 20], [35.0, 10, 14]])
    assert typology_angle(lab_B3).diff().lt(0).all()


def test_strangers_are_far_and_share_what_is_kept(gallery):
    same = {"sex": 0, "age": 0, "skin": 0.0}
    sample = [at for at in range(0, len(gallery), 12) if gallery.sex_N[at] != 0]
    for at in sample:
        first = choose_stranger(original_like(gallery, at), gallery, seed=1).ranked[0]
        assert float(gallery.embedding_NE[first] @ gallery.embedding_NE[at]) <= 0
        same["sex"] += int(gallery.sex_N[first] == gallery.sex_N[at])
        same["age"] += int(abs(int(gallery.age_N[first]) - int(gallery.age_N[at])) <= 1)
        same["skin"] += float((gallery.skin_N[first] - gallery.skin_N[at]).abs())
    assert same["sex"] == len(sample) and same["age"] >= 0.95 * len(sample)
    anyone = (gallery.skin_N[:, None] - gallery.skin_N).abs().mean()
    assert same["skin"] / len(sample) < 0.7 * anyone


def test_what_is_not_kept_is_free(gallery):
    sample = range(0, len(gallery), 12)
    firsts = [choose_stranger(original_like(gallery, at), gallery, seed=1, keep=()).ranked[0] for at in sample]
    assert any(gallery.sex_N[a] * gallery.sex_N[b] < 0 for a, b in zip(sample, firsts, strict=True))


def test_the_choice_is_a_function_of_the_seed_and_avoids(gallery):
    original = original_like(gallery, 8)
    first = choose_stranger(original, gallery, seed=1)
    assert first == choose_stranger(original, gallery, seed=1)
    assert len({choose_stranger(original, gallery, seed=seed).ranked[0] for seed in range(12)}) > 3
    assert len(set(first.ranked)) == len(first.ranked)
    avoided = choose_stranger(original, gallery, seed=1, avoid=first.ranked[:5]).ranked
    assert not set(avoided) & set(first.ranked[:5])
    with pytest.raises(UsageError, match="split the job"):
        choose_stranger(original, gallery, seed=1, avoid=range(len(gallery)))


def test_keep_is_read_and_refused():
    assert parse_keep("all") == KEEP_ALL and parse_keep("none") == () and parse_keep("skin, age") == ("age", "skin")
    with pytest.raises(UsageError, match="'hair'"):
        parse_keep("age,hair")


def unit(*values: float) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.tensor([*values, *[0.0] * (128 - len(values))]), dim=0)


def test_the_memory_knows_people_again_and_survives_a_file(tmp_path):
    memory = Replacements()
    memory.remember(unit(1), 17)
    memory.remember(unit(0, 1), 30)
    assert memory.find(unit(1, 0.3)) == 17 and memory.find(unit(0.3, 1)) == 30 and memory.find(unit(0, 0, 1)) is None
    assert memory.find(unit(1, 0.3), avoid=[17]) is None
    path = tmp_path / "job.safetensors"
    memory.save(path, seed=4)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = Replacements.load(path, seed=4, people=100)
    assert again.strangers == (17, 30) and again.find(unit(1, 0.3)) == 17
    with pytest.raises(UsageError, match="--seed 4"):
        Replacements.load(path, seed=5, people=100)
    with pytest.raises(UsageError, match="does not have"):
        Replacements.load(path, seed=4, people=20)
    (tmp_path / "no.safetensors").write_bytes(b"no")
    with pytest.raises(WeightsError):
        Replacements.load(tmp_path / "no.safetensors", seed=4, people=20)


def test_a_photograph_is_anonymised_and_remembered(swapper):
    """The same person in a second, smaller and mirrored picture gets the same replacement."""
    small = np.asarray(PIL.Image.fromarray(astronaut()).resize((400, 400)))[:, ::-1]
    job = Anonymizer(swapper, seed=1, replacements=Replacements())
    first, second = job(astronaut()), job(np.ascontiguousarray(small))
    (a,), (b,) = first.report["faces"], second.report["faces"]
    assert first.report["anonymised"] and a["cosine_to_original"] <= ANONYMOUS
    assert a["original"]["sex"] == a["replacement"]["sex"] == "feminine"
    assert a["stranger"] == b["stranger"] and job.replacements is not None and len(job.replacements) == 1


def test_a_face_that_still_resembles_its_original_is_refused(swapper):
    with pytest.raises(NotAnonymisedError, match=r"still resembles .* after 2 strangers") as caught:
        Anonymizer(swapper, seed=1, tries=2, bound=-0.99)(astronaut())
    assert caught.value.exit_code == 8


def test_the_next_stranger_is_tried_until_it_is_enough(swapper):
    """With a bound that the first stranger misses and a later one meets, the later one's picture comes out."""
    alone = [Anonymizer(swapper, seed=seed, tries=1, bound=2.0)(astronaut()).report["faces"][0] for seed in range(3)]
    worst = max(range(3), key=lambda seed: alone[seed]["cosine_to_original"])
    bound = alone[worst]["cosine_to_original"] - 0.001
    (report,) = Anonymizer(swapper, seed=worst, tries=8, bound=bound)(astronaut()).report["faces"]
    assert report["tries"] > 1 and report["cosine_to_original"] <= bound
    assert report["stranger"] != alone[worst]["stranger"]


def test_a_face_left_alone_is_said(swapper):
    pair = np.concatenate([astronaut(), astronaut()[:, ::-1]], 1)
    result = Anonymizer(swapper, seed=1)(pair, faces="1")
    assert len(result.skipped) == 1 and result.report["anonymised"] is False


@pytest.mark.parametrize("options", [["--keep", "hair"], ["--tries", "0"], ["--memory", "job.txt"], ["--seed", "-1"]])
def test_the_command_refuses_before_anything_is_loaded(tmp_path, options):
    PIL.Image.fromarray(astronaut()).save(tmp_path / "in.png")
    out = tmp_path / "out.png"
    assert main(["anonymize", str(tmp_path / "in.png"), "-o", str(out), *options]) == 2 and not out.exists()

"""The shipped network of SimSwap's kind on the main path: whose face it is, what stays, what it refuses."""

import numpy as np
import pytest
import torch
from _face_support import astronaut

from latentswap.cli.main import main
from latentswap.errors import UsageError
from latentswap.pipeline import Swapper
from latentswap.swappers.guided import edge, over
from latentswap.swappers.latentswap import to_pixels


@pytest.fixture(scope="module")
def simswap() -> Swapper:
    return Swapper.from_pretrained(method="simswap", offline=True)


@pytest.fixture(scope="module")
def pictures(people) -> list[np.ndarray]:
    _, img_BCHW = people
    return list(to_pixels(img_BCHW))


def embedding(swapper: Swapper, pixels: np.ndarray) -> torch.Tensor:
    return swapper.prepare(pixels).embedding[0]  # pyright: ignore[reportAttributeAccessIssue]


def test_the_face_becomes_the_sources(simswap, pictures):
    source, target = pictures[0], pictures[1]
    result = simswap.swap(source, target)
    swapped_E, source_E, target_E = (embedding(simswap, p) for p in (result.image.pixels, source, target))
    assert swapped_E @ source_E > 0.4 > swapped_E @ target_E


def test_a_photograph_as_target_and_what_lies_around_the_face_stays(simswap, pictures):
    result = simswap.swap(pictures[2], astronaut())
    apart = np.abs(result.image.pixels.astype(int) - astronaut()).max(axis=2)
    (face,) = result.faces
    x0, y0, x1, y1 = (round(v) for v in face.box)
    assert apart[y0:y1, x0:x1].mean() > 5
    apart[max(0, y0 - 40) : y1 + 40, max(0, x0 - 40) : x1 + 40] = 0
    assert apart.max() == 0 and result.report["faces"][0]["cosine_to_original"] < 0.5


def test_a_person_onto_themselves_stays_that_person(simswap, pictures):
    result = simswap.swap(pictures[3], pictures[3])
    assert embedding(simswap, result.image.pixels) @ embedding(simswap, pictures[3]) > 0.7


def test_strength_goes_from_the_target_to_the_source(simswap, pictures):
    prepared = simswap.prepare(pictures[0])
    source_E = prepared.embedding[0]
    cosines = [
        float(embedding(simswap, simswap.swap(prepared, pictures[1], strength=s).image.pixels) @ source_E)
        for s in (0.0, 0.5, 1.0)
    ]
    assert cosines[0] < cosines[1] < cosines[2]


def test_a_code_is_a_source_too(simswap, swapper, people, pictures, tmp_path):
    codes, _ = people
    swapper.method.prepare_code(codes[:1]).save(tmp_path / "code.safetensors")
    from_code = simswap.swap(tmp_path / "code.safetensors", pictures[1]).image.pixels
    assert embedding(simswap, from_code) @ embedding(simswap, pictures[0]) > 0.4


def test_rows_and_edits_are_the_other_methods(simswap, pictures):
    with pytest.raises(UsageError, match="no latent codes"):
        simswap.swap(pictures[0], pictures[1], layers=(1, 2))
    with pytest.raises(UsageError, match="LatentSwap"):
        simswap.anonymize(pictures[1])


def test_over_an_unchanged_crop_nothing_changes_and_its_border_never_does():
    pixels = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    fresh, none, all_ = torch.zeros(1, 3, 64, 64), torch.zeros(1, 1, 64, 64), torch.ones(1, 1, 64, 64)
    assert np.array_equal(over(pixels, fresh, none), pixels)
    changed = over(pixels, fresh, all_)
    assert abs(changed[256, 256].astype(int) - 128).max() <= 1 and np.array_equal(changed[:90], pixels[:90])
    assert edge(100)[0, 0, 0].max() < 0.1 and edge(100)[0, 0, 50, 50] == 1


def test_the_command(pictures, tmp_path):
    import PIL.Image

    for name, pixels in (("a.png", pictures[0]), ("b.png", pictures[1])):
        PIL.Image.fromarray(pixels).save(tmp_path / name)
    command = ["swap", str(tmp_path / "a.png"), str(tmp_path / "b.png"), "-o", str(tmp_path / "c.png")]
    assert main([*command, "--method", "simswap", "--consent", "nobody who exists", "--offline"]) == 0
    assert (tmp_path / "c.png").exists()

"""Pasting a crop back."""

import numpy as np
import pytest
from _face_support import astronaut, mean_mesh_px, similarity, smooth_picture

from latentswap.face import paste as module
from latentswap.face.align import cut, invert_affine, move_points
from latentswap.face.mask import face_mask
from latentswap.face.paste import match_sharpness, membrane

SIZE = 512
# Picture pixels → crop pixels: a face smaller than the crop, of its size, larger, and at three edges of the picture.
PLACES = {
    "tiny": similarity(angle=8, scale=9.7, x=-1900, y=-1500),
    "small": similarity(angle=-20, scale=2.6, x=-400, y=-120),
    "equal": similarity(angle=0, scale=1, x=0, y=0),
    "large": similarity(angle=31, scale=0.6, x=160, y=-60),
    "left edge": similarity(angle=5, scale=1.3, x=260, y=-100),
    "top edge": similarity(angle=5, scale=1.1, x=-100, y=330),
    "corner": similarity(angle=-9, scale=0.9, x=-240, y=-230),
}


def paste(*args, **options) -> np.ndarray:
    """`paste` of a face that is where the mean face is, before and after."""
    mesh = mean_mesh_px(SIZE)
    return module.paste(*args, target_K3=mesh, swapped_K3=mesh, **options)


@pytest.fixture(scope="module")
def mask() -> np.ndarray:
    return face_mask(mean_mesh_px(SIZE), SIZE)


def weight_in_picture(mask: np.ndarray, affine: np.ndarray, height: int, width: int) -> np.ndarray:
    """The mask's value at every picture pixel's centre, nearest crop pixel; a reference without any resampling."""
    rows, columns = np.mgrid[:height, :width] + 0.5
    places = np.floor(move_points(np.stack([columns, rows], axis=-1).reshape(-1, 2), affine)).astype(int)
    valid = ((places >= 0) & (places < SIZE)).all(axis=1)
    weight = np.zeros(height * width)
    weight[valid] = mask[places[valid, 1], places[valid, 0]]
    return weight.reshape(height, width)


@pytest.mark.parametrize("place", PLACES)
def test_unmasked_bytes_are_the_pictures_own(place, mask):
    picture = np.random.default_rng(1).integers(0, 256, (600, 560, 3), np.uint8)
    before = picture.copy()
    crop = cut(picture, PLACES[place], SIZE)
    result = paste(picture, 255 - crop, PLACES[place], mask, target_crop=crop)
    assert np.array_equal(picture, before)
    weight = weight_in_picture(mask, PLACES[place], 600, 560)
    touched = np.argwhere(weight > 0)
    low, high = touched.min(axis=0) - 2, touched.max(axis=0) + 3
    outside = np.ones(weight.shape, bool)
    outside[max(low[0], 0) : high[0], max(low[1], 0) : high[1]] = False
    assert np.array_equal(result[outside], picture[outside])
    # Within the rectangle the mask's own zeros count as well, but for the reach of the resampling.
    far = weight == 0
    for axis in (0, 1):
        for step in range(-6, 7):
            far &= np.roll(weight, step, axis) == 0
    assert np.array_equal(result[far], picture[far])
    assert not np.array_equal(result, picture)


def test_empty_mask_changes_nothing():
    picture = smooth_picture(300, 300)
    affine = similarity(angle=4, scale=2, x=-50, y=-40)
    crop = cut(picture, affine, SIZE)
    result = paste(picture, 255 - crop, affine, np.zeros((SIZE, SIZE), np.float32), target_crop=crop)
    assert np.array_equal(result, picture)
    assert result is not picture


def test_face_wholly_outside_of_the_picture_changes_nothing(mask):
    picture = smooth_picture(100, 100)
    affine = similarity(angle=0, scale=1, x=3000, y=0)
    crop = cut(picture, affine, SIZE)
    assert np.array_equal(paste(picture, crop, affine, mask, target_crop=crop), picture)


@pytest.mark.parametrize("place", PLACES)
def test_an_unchanged_crop_returns_the_picture(place, mask):
    picture = smooth_picture(600, 560)
    crop = cut(picture, PLACES[place], SIZE)
    result = paste(picture, crop, PLACES[place], mask, target_crop=crop)
    assert np.abs(result.astype(int) - picture).max() <= 2


@pytest.mark.parametrize("scale", [4.4, 2.0, 1.0])
def test_an_unchanged_crop_of_a_photograph_returns_it(scale, mask):
    photo = astronaut()
    affine = similarity(angle=-5, scale=scale, x=0, y=0)
    affine[:, 2] = (SIZE / 2, SIZE * 0.55) - affine[:, :2] @ (226, 128)
    crop = cut(photo, affine, SIZE)
    difference = np.abs(paste(photo, crop, affine, mask, target_crop=crop, grain=False).astype(int) - photo)
    inside = weight_in_picture(mask, affine, 512, 512) > 0.5
    assert difference[inside].mean() < 1.5
    assert np.quantile(difference[inside], 0.95) <= 6


@pytest.mark.parametrize("shift", [(30, 30, 30), (-25, -25, -25), (18, 0, -18)])
def test_a_colour_shift_is_removed(shift, mask):
    picture = smooth_picture(600, 560)
    crop = cut(picture, PLACES["small"], SIZE)
    shifted = np.clip(crop.astype(int) + shift, 0, 255).astype(np.uint8)
    result = paste(picture, shifted, PLACES["small"], mask, target_crop=crop)
    inside = weight_in_picture(mask, PLACES["small"], 600, 560) > 0.5
    left = (result.astype(int) - picture)[inside]
    assert np.abs(left.mean(axis=0)).max() < 2
    assert np.abs(left).mean() < 4


def test_same_call_same_bytes(mask):
    picture = smooth_picture(400, 400)
    crop, other = (cut(smooth_picture(400, 400, seed=s), PLACES["small"], SIZE) for s in (0, 1))
    first, second = (paste(picture, other, PLACES["small"], mask, target_crop=crop) for _ in range(2))
    assert np.array_equal(first, second)


def test_no_dark_fringe_at_the_pictures_edge(mask):
    # A bright swap into a bright picture, cut by its edge: black from outside must not leak in.
    picture = np.full((300, 300, 3), 200, np.uint8)
    affine = similarity(angle=7, scale=1.2, x=200, y=150)
    crop = np.full((SIZE, SIZE, 3), 200, np.uint8)
    assert paste(picture, crop, affine, mask, target_crop=crop).min() >= 199


def test_a_soft_photo_softens_the_swap(mask):
    rng = np.random.default_rng(0)
    sharp = np.clip(130 + rng.normal(0, 20, (SIZE, SIZE, 1)).repeat(3, axis=2), 0, 255).astype(np.uint8)
    soft = np.full((SIZE, SIZE, 3), 130, np.uint8)
    assert match_sharpness(sharp, soft, mask, pixel=1).std() < 0.2 * sharp.std()
    assert match_sharpness(soft, sharp, mask, pixel=1) is soft  # and never the reverse
    assert match_sharpness(sharp, sharp, mask, pixel=1) is sharp


def test_shrinking_counts_as_softness_already(mask):
    # Detail finer than a photo pixel vanishes on the way back by itself and must not be blurred first.
    fine = np.full((SIZE, SIZE, 3), 130, np.uint8)
    fine[::2, ::2] += 40
    fine[1::2, 1::2] += 40
    flat = np.full((SIZE, SIZE, 3), 150, np.uint8)
    assert match_sharpness(fine, flat, mask, pixel=4) is fine
    assert match_sharpness(fine, flat, mask, pixel=1) is not fine


def test_membrane_carries_light_but_not_content(mask):
    target = np.full((SIZE, SIZE, 3), 120, np.uint8)
    lighter = np.full((SIZE, SIZE, 3), 128, np.uint8)
    assert 6 < membrane(target, lighter, mask)[SIZE // 2, SIZE // 2].mean() < 8
    hair = target.copy()
    hair[:, : SIZE // 2] = 10
    assert np.abs(membrane(target, hair, mask)).max() < 2


def test_inverse_used_for_pasting_matches_cutting(mask):
    picture = smooth_picture(500, 500)
    affine = PLACES["large"]
    np.testing.assert_allclose(invert_affine(invert_affine(affine)), affine, atol=1e-9)
    crop = cut(picture, affine, SIZE)
    marked = crop.copy()
    marked[250:262, 250:262] = (255, 0, 0)
    result = paste(picture, marked, affine, mask, target_crop=crop)
    changed = np.abs(result.astype(int) - picture).sum(axis=2) > 120
    rows, columns = np.nonzero(changed)
    expected = move_points(np.array([[256.0, 256.0]]), invert_affine(affine))[0]
    assert (columns.mean() + 0.5, rows.mean() + 0.5) == pytest.approx(expected, abs=0.8)


@pytest.mark.parametrize("place", ["small", "equal", "large"])
def test_a_noisy_photo_gets_a_noisy_face(place, mask):
    clean = smooth_picture(600, 560).astype(float)
    picture = np.clip(np.rint(clean + np.random.default_rng(3).normal(0, 6, clean.shape)), 0, 255).astype(np.uint8)
    swap = cut(clean.astype(np.uint8), PLACES[place], SIZE)
    crop = cut(picture, PLACES[place], SIZE)
    inside = weight_in_picture(mask, PLACES[place], 600, 560) > 0.99
    noisy, plain = (paste(picture, swap, PLACES[place], mask, target_crop=crop, grain=g) - clean for g in (True, False))
    assert plain[inside].std() < 2.5
    if place == "small":  # too few flat places to tell noise from features: none is added
        assert noisy[inside].std() == plain[inside].std()
    else:
        assert noisy[inside].std() == pytest.approx(6, rel=0.2)


def test_a_clean_photo_gets_no_noise(mask):
    picture = smooth_picture(600, 560)
    crop = cut(picture, PLACES["equal"], SIZE)
    swap = np.clip(crop.astype(int) + 9, 0, 255).astype(np.uint8)
    with_grain, without = (
        paste(picture, swap, PLACES["equal"], mask, target_crop=crop, grain=g) for g in (True, False)
    )
    assert np.array_equal(with_grain, without)

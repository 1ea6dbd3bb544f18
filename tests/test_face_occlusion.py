"""What lies in front of a face, on people who do not exist with things drawn before them."""

import cv2
import numpy as np
import pytest
import torch

from latentswap.face.mask import face_mask
from latentswap.face.occlusion import beside, guided_filter, occlusion
from latentswap.inversion.encoder import trunk_features
from latentswap.shape import topology as T
from latentswap.shape.mesh import crop_mesh
from latentswap.swappers.latentswap import to_pixels, to_tensor

SIZE = 256


@pytest.fixture(scope="module")
def look(networks):
    """A crop → its mesh and its inversion's picture."""

    def both(crop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.no_grad():
            img_BCHW = to_tensor(crop)
            codes = networks.encoder(trunk_features(networks.identity, networks.mesh, img_BCHW))
            mesh_K3 = crop_mesh(networks.mesh, img_BCHW)[0].numpy() * SIZE
            return mesh_K3, to_pixels(networks.generator.synthesis(codes, resolution=SIZE))[0]

    return both


def cloth(crop: np.ndarray, mesh: np.ndarray) -> np.ndarray:
    """Below the nose."""
    place = np.zeros((SIZE, SIZE), np.uint8)
    top = mesh[[234, 50, 195, 280, 454], :2] + (0, 6)
    cv2.fillPoly(place, [np.concatenate([top, [[SIZE, SIZE], [0, SIZE]]]).astype(np.int32)], (1,))
    return place


def card(crop: np.ndarray, mesh: np.ndarray) -> np.ndarray:
    """Over a cheek."""
    place = np.zeros((SIZE, SIZE), np.uint8)
    x, y = mesh[205, :2].astype(int)
    place[y - 18 : y + 18, x - 30 : x + 24] = 1
    return place


@pytest.mark.parametrize(("draw", "colour"), [(cloth, (40, 90, 190)), (card, (30, 120, 60))])
def test_finds_what_was_drawn(draw, colour, people, look):
    recalls, precisions = [], []
    for crop in to_pixels(people[1]):
        mesh, _ = look(crop)
        place = draw(crop, mesh) > 0
        covered = crop.copy()
        covered[place] = np.clip(np.random.default_rng(0).normal(colour, 6, (place.sum(), 3)), 0, 255)
        mesh, inverse = look(covered)
        face = face_mask(mesh, SIZE) > 0.5
        below = np.arange(SIZE)[:, None] > mesh[T.RIGHT_EYE[0], 1]  # above, there may be hair
        found = occlusion(covered, mesh, inverse)
        recalls.append(found[place & face].mean())
        precisions.append((found * place * face).sum() / max((found * face * below).sum(), 1))
    assert np.mean(recalls) > 0.9
    assert np.median(precisions) > 0.7


def test_leaves_features_of_clean_people_alone(people, look):
    for crop in to_pixels(people[1]):
        mesh, inverse = look(crop)
        found = occlusion(crop, mesh, inverse)
        assert found.shape == (SIZE, SIZE) and found.dtype == np.float32
        assert 0 <= found.min() <= found.max() <= 1
        features = mesh[[*T.RIGHT_EYE, *T.LEFT_EYE, *T.OUTER_LIPS, *T.NOSE], :2].astype(int)
        assert found[features[:, 1], features[:, 0]].mean() < 0.02


def test_light_is_no_object(people, look):
    crop = to_pixels(people[1])[0]
    mesh, _ = look(crop)
    ramp = np.linspace(0.6, 1.3, SIZE)[None, :, None] * np.array((1.05, 1, 0.9))
    lit = np.clip(crop * ramp, 0, 255).astype(np.uint8)
    extra = occlusion(lit, mesh, crop) - occlusion(crop, mesh, crop)
    assert np.clip(extra, 0, 1)[face_mask(mesh, SIZE) > 0.5].mean() < 0.01


def test_a_bare_cheek_is_no_object_though_the_reconstruction_has_hair_there(people, look):
    for crop in to_pixels(people[1])[:3]:
        mesh, _ = look(crop)
        x, y = mesh[50, :2].astype(int)
        place = slice(y - 12, y + 13), slice(x - 12, x + 13)
        hairy = crop.copy()
        hairy[place] = (40, 28, 22)
        assert occlusion(hairy, mesh, crop)[place].mean() > 0.9  # the other way round it is one
        assert occlusion(crop, mesh, hairy)[place].mean() < 0.05


def test_a_swaps_fringe_is_beside_the_face_and_its_features_are_not(people, look):
    for crop in to_pixels(people[1]):
        mesh, _ = look(crop)
        brows = int(mesh[[*T.RIGHT_BROW_UPPER, *T.LEFT_BROW_UPPER], 1].min())
        fringe = crop.copy()
        fringe[: brows - 6] = (28, 22, 20)
        found = beside(fringe, mesh, mesh)
        x0, x1 = sorted(int(mesh[i, 0]) for i in (T.RIGHT_BROW_UPPER[1], T.LEFT_BROW_UPPER[1]))
        assert found[int(mesh[10, 1]) + 2 : brows - 10, x0:x1].mean() > 0.8
        features = mesh[[*T.RIGHT_EYE, *T.LEFT_EYE, *T.OUTER_LIPS, *T.NOSE], :2].astype(int)
        assert found[features[:, 1], features[:, 0]].mean() < 0.02


def test_a_beard_and_the_photos_chin_stay_covered(people, look):
    crop = to_pixels(people[1])[0]
    mesh, _ = look(crop)
    bearded = crop.copy()
    place = np.zeros((SIZE, SIZE), np.uint8)
    cv2.fillPoly(place, [mesh[list(T.FACE_OVAL), :2].astype(np.int32)], (1,))
    place[: int(mesh[T.NOSE_BASE[2], 1]) + 4] = 0
    bearded[place > 0] = (60, 48, 40)
    longer = mesh + np.where(mesh[:, 1:2] > mesh[14, 1], (0, 12, 0), 0)  # the photo's chin reaches lower
    found = beside(bearded, mesh, longer)
    inner = cv2.erode(place, np.ones((11, 11), np.uint8)) > 0
    assert found[inner].mean() < 0.02
    x, y = longer[T.CHIN, :2].astype(int)
    assert found[y - 4, x] < 0.2


def test_a_mesh_outside_of_the_crop_finds_nothing(people):
    crop, away = to_pixels(people[1])[0], np.full((468, 3), 9000.0) + np.arange(468)[:, None]
    assert not occlusion(crop, away, crop).any()
    assert not beside(crop, away, away).any()


def test_guided_filter_keeps_edges_and_means():
    guide = np.zeros((64, 64), np.float32)
    guide[:, 32:] = 1
    noisy = guide + np.random.default_rng(0).normal(0, 0.2, guide.shape).astype(np.float32)
    smooth = guided_filter(guide, noisy, 6, 1e-4)
    assert np.abs(smooth - guide).mean() < 0.05
    assert np.allclose(guided_filter(guide, np.full_like(guide, 0.4), 6, 1e-4), 0.4, atol=1e-5)

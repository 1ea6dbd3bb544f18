"""Measuring and making grain."""

import cv2
import numpy as np
import pytest
from _face_support import smooth_picture

from latentswap.face.grain import added_noise, noise_covariance, noise_tile

SHAPE = (320, 300)
EVERYWHERE = np.ones(SHAPE, np.float32)


def noise(sigma: float, coarse: float, *, seed: int = 0) -> np.ndarray:
    """Noise of this strength, its channels correlated; coarse: standard deviation of a blur, as in film."""
    rng = np.random.default_rng(seed)
    white = 0.5 * rng.normal(size=(*SHAPE, 3)) + 0.87 * rng.normal(size=(*SHAPE, 1))
    if coarse:
        white = cv2.GaussianBlur(white, (0, 0), coarse)
    return sigma * white / white.std()


@pytest.mark.parametrize("coarse", [0, 0.8])
@pytest.mark.parametrize("sigma", [2, 5, 12])
def test_a_smooth_face_gets_the_photos_noise(sigma, coarse):
    face = smooth_picture(*SHAPE).astype(np.float32)
    given = noise(sigma, coarse)
    measured = noise_covariance(face + given, EVERYWHERE)
    assert measured is not None
    added = added_noise(face, measured, EVERYWHERE, seed=1)
    assert added is not None
    assert added.std() == pytest.approx(sigma, rel=0.2)
    neighbours = [np.corrcoef(x[:, 1:].ravel(), x[:, :-1].ravel())[0, 1] for x in (given, added)]
    channels = [np.corrcoef(x[..., 0].ravel(), x[..., 2].ravel())[0, 1] for x in (given, added)]
    assert neighbours[1] == pytest.approx(neighbours[0], abs=0.15)
    assert channels[1] == pytest.approx(channels[0], abs=0.12)


def test_what_the_face_has_already_is_not_added():
    clean = smooth_picture(*SHAPE).astype(np.float32)
    measured = noise_covariance(clean + noise(5, 0), EVERYWHERE)
    assert measured is not None
    assert added_noise(clean + noise(5, 0, seed=2), measured, EVERYWHERE, seed=1) is None
    partly = added_noise(clean + noise(3, 0, seed=2), measured, EVERYWHERE, seed=1)
    assert partly is not None and partly.std() == pytest.approx(4, rel=0.2)


def test_lines_are_not_noise():
    picture = smooth_picture(*SHAPE).astype(np.float32)
    picture[::40] -= 60
    picture[:, ::50] += 50
    measured = noise_covariance(picture, EVERYWHERE)
    assert measured is not None
    assert np.sqrt(np.trace(measured.sum(axis=0)) / 3) < 0.5


def test_too_little_to_measure():
    assert noise_covariance(smooth_picture(40, 40), np.ones((40, 40), np.float32)) is None
    assert noise_covariance(smooth_picture(*SHAPE), np.zeros(SHAPE, np.float32)) is None


def test_the_seed_decides_and_the_tile_has_no_seam():
    parts = np.stack([np.eye(3) * s for s in (9, 4, 4)])
    tile = noise_tile(parts, seed=7)
    assert np.array_equal(tile, noise_tile(parts, seed=7))
    assert not np.array_equal(tile, noise_tile(parts, seed=8))
    seam = np.abs(tile[0] - tile[-1]).mean()
    assert seam == pytest.approx(np.abs(np.diff(tile, axis=0)).mean(), rel=0.2)


def test_coarse_grain_gets_less_rather_than_more():
    face = smooth_picture(*SHAPE).astype(np.float32)
    measured = noise_covariance(face + noise(8, 1.2), EVERYWHERE)
    assert measured is not None
    added = added_noise(face, measured, EVERYWHERE, seed=1)
    assert added is not None and 0.7 * 8 < added.std() < 8


def test_faint_texture_is_taken_for_skin_in_part():
    face = smooth_picture(*SHAPE).astype(np.float32)
    shares = []
    for sigma in (1.0, 2.0, 8.0):
        measured = noise_covariance(face + noise(sigma, 0), EVERYWHERE)
        assert measured is not None
        added = added_noise(face, measured, EVERYWHERE, seed=1)
        assert added is not None
        shares.append(added.std() / sigma)
    assert shares[0] < 0.9 < shares[2] < 1.1
    assert shares == sorted(shares)

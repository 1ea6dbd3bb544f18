"""Judges: alignment, the networks of the closed set, and ONNX files that are, and are not, identity networks."""

import numpy as np
import pytest
import torch
from _face_support import astronaut, similarity

from latentswap.errors import NoFaceError, WeightsError
from latentswap.evaluate.judge import (
    ARCFACE_52,
    Judge,
    MeshPoints,
    NetworkJudge,
    TrainingJudge,
    fit_similarity,
    load_judge,
    template,
)
from latentswap.evaluate.mobilefacenet import KIND, MobileFaceNet
from latentswap.face.align import move_points
from latentswap.weights.load import save_tensors


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(number: int, value: int | bytes | str) -> bytes:
    """One field of a protocol buffer."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def shape_info(name: str, sides: tuple[int | str, ...]) -> bytes:
    """ValueInfoProto of a float tensor; a side given by name is dynamic."""
    dims = b"".join(field(1, field(1 if isinstance(side, int) else 2, side)) for side in sides)
    return field(1, name) + field(2, field(1, field(1, 1) + field(2, dims)))


def onnx_bytes(
    sides: tuple[int | str, ...] = ("batch", 3, 112, 112), *, units: int = 32, external: str | None = None
) -> bytes:
    """An ONNX model: global mean of each colour → a matrix [3, units] → embeddings."""
    rows = sides[1] if isinstance(sides[1], int) else 3
    weight = np.random.default_rng(0).normal(size=(rows, units)).astype(np.float32)
    tensor = field(1, rows) + field(1, units) + field(2, 1) + field(8, "w")
    if external is None:
        tensor += field(9, weight.tobytes())
    else:
        tensor += field(13, field(1, "location") + field(2, external)) + field(14, 1)
    nodes = [
        field(1, "x") + field(2, "pooled") + field(4, "GlobalAveragePool"),
        field(1, "pooled") + field(2, "flat") + field(4, "Flatten"),
        field(1, "flat") + field(1, "w") + field(2, "y") + field(4, "MatMul"),
    ]
    graph = b"".join(field(1, node) for node in nodes) + field(2, "g") + field(5, tensor)
    graph += field(11, shape_info("x", sides)) + field(12, shape_info("y", (sides[0], units)))
    return field(1, 8) + field(8, field(1, "") + field(2, 13)) + field(7, graph)


@pytest.fixture(scope="module")
def points(default_weights) -> MeshPoints:
    default_weights("mediapipe-mesh")
    return MeshPoints.load(offline=True)


@pytest.fixture(scope="module")
def crop(swapper) -> np.ndarray:
    from latentswap.face.align import cut_face

    pixels = astronaut()
    return cut_face(pixels, swapper.analyser(pixels)[0].mesh_K3, 512).pixels


def test_fit_similarity_finds_the_transform_and_ignores_nothing_else():
    affine = similarity(angle=23, scale=1.7, x=-4, y=11)
    assert fit_similarity(ARCFACE_52, move_points(ARCFACE_52, affine)) == pytest.approx(affine)
    noisy = move_points(ARCFACE_52, affine) + np.random.default_rng(0).normal(0, 1, (5, 2))
    best = fit_similarity(ARCFACE_52, noisy)
    error = np.square(move_points(ARCFACE_52, best) - noisy).sum()
    assert all(np.square(move_points(ARCFACE_52, best + d) - noisy).sum() > error for d in (0.01, -0.01))
    with pytest.raises(NoFaceError, match="coincide"):
        fit_similarity(np.ones((5, 2)), ARCFACE_52)


def test_template_of_both_variants():
    assert template(112, 112) == pytest.approx(ARCFACE_52 + 0.5)
    assert template(112, 96) == pytest.approx(ARCFACE_52 + 0.5 - (8, 0))
    assert template(224, 224) == pytest.approx(2 * (ARCFACE_52 + 0.5))


def test_the_input_shows_the_face_where_arcface_wants_it(points, crop):
    seen = []
    judge = NetworkJudge(lambda x: seen.append(x) or np.ones(8), height=112, width=96, points=points)
    judge.identity(crop)
    (x,) = seen
    assert x.shape == (1, 3, 112, 96) and x.dtype == np.float32 and -1 <= x.min() < x.max() <= 1
    face = np.rint(x[0].transpose(1, 2, 0) * 128 + 127.5).astype(np.uint8)
    found = points.runner(face, (48, 60, 110, 0.0), refine=1)[0]
    eyes = [found[list(group), :2].mean(axis=0) for group in ((33, 133), (263, 362))]
    assert np.abs(eyes - template(112, 96)[:2]).max() < 4


def test_onnx_judge(tmp_path, points, crop):
    path = tmp_path / "judge.onnx"
    path.write_bytes(onnx_bytes())
    judge = load_judge(path, points)
    assert isinstance(judge, Judge) and isinstance(judge, NetworkJudge) and (judge.height, judge.width) == (112, 112)
    seen = []
    run, judge.network = judge.network, lambda x: seen.append(x) or run(x)
    vector = judge.identity(crop)
    # The same arithmetic in NumPy.
    weight = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)
    expected = seen[0].mean(axis=(2, 3))[0] @ weight
    assert vector == pytest.approx(expected / np.linalg.norm(expected), abs=1e-4)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is not an ONNX model"),
        (b"\x80\x04pickle", "is not an ONNX model"),
        (onnx_bytes()[:300], "truncated"),
        (onnx_bytes(("batch", 112, 112, 3)), "one input"),
        (onnx_bytes(("batch", 1, 112, 112)), "one input"),
        (onnx_bytes(("batch", 3, "h", "w")), "fixed H and W"),
        (onnx_bytes((1, 3, 5000, 5000)), "sides of 32 to 1024"),
        (onnx_bytes(units=2), "one embedding"),
        (onnx_bytes(external="../secret.bin"), "outside of its own folder"),
        (onnx_bytes(external="/etc/hostname"), "outside of its own folder"),
        (onnx_bytes(external="link/secret.bin"), "outside of its own folder"),
    ],
)
def test_onnx_files_that_are_refused(tmp_path, points, data, words):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "link").symlink_to(tmp_path)
    (tmp_path / "secret.bin").write_bytes(bytes(3 * 32 * 4))
    path = tmp_path / "models" / "judge.onnx"
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=words):
        load_judge(path, points)


def test_weights_beside_the_model_are_read(tmp_path, points, crop):
    path = tmp_path / "judge.onnx"
    path.write_bytes(onnx_bytes(external="weights.bin"))
    weight = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)
    (tmp_path / "weights.bin").write_bytes(weight.tobytes())
    other = tmp_path / "whole.onnx"
    other.write_bytes(onnx_bytes())
    assert load_judge(path, points).identity(crop) == pytest.approx(load_judge(other, points).identity(crop), abs=1e-5)


def test_mobilefacenet_judge(tmp_path, points, crop):
    torch.manual_seed(0)
    network = MobileFaceNet()
    # Of the paper's table: 3×64×9 + 64×9, then 5, 1, 6, 1 and 2 bottlenecks, 128×512, 512×42, 512×128.
    counted = 2_304 + 5 * 17_536 + 51_456 + 6 * 67_840 + 135_680 + 2 * 67_840 + 65_536 + 21_504 + 65_536
    assert sum(value.numel() for value in network.state_dict().values() if value.ndim == 4) == counted
    assert {"conv1.prelu.weight", "blocks.14.conv.7.running_var", "linear1.bn.bias"} <= set(network.state_dict())
    path = tmp_path / "judge.safetensors"
    save_tensors(path, network.state_dict(), {"kind": KIND})
    judge = load_judge(path, points)
    vector = judge.identity(crop)
    assert vector.shape == (128,) and np.linalg.norm(vector) == pytest.approx(1)
    assert vector @ judge.identity(np.ascontiguousarray(crop[:, ::-1])) < 0.9999


def test_dlib_judge_is_the_training_network(swapper, default_weights, points, crop):
    judge = load_judge(default_weights("dlib-resnet-v1"), points)
    same = TrainingJudge(swapper.networks.identity, swapper.networks.mean_E)
    assert judge.identity(crop) == pytest.approx(same.identity(crop), abs=1e-5)
    assert np.linalg.norm(judge.identity(crop)) == pytest.approx(1, abs=1e-5)


def test_safetensors_that_are_no_judge(tmp_path, points):
    path = tmp_path / "judge.safetensors"
    state = MobileFaceNet().state_dict()
    for tensors, kind, words in [
        (state, "mixer", "holds mixer"),
        (state | {"extra": torch.zeros(1)}, KIND, "unexpected: extra"),
        ({name: value for name, value in state.items() if "linear7" not in name}, KIND, "missing: linear7"),
    ]:
        save_tensors(path, tensors, {"kind": kind})
        with pytest.raises(WeightsError, match=words):
            load_judge(path, points)
    for name in ("absent.onnx", "absent.safetensors", "judge.ckpt"):
        with pytest.raises(WeightsError, match=name):
            load_judge(tmp_path / name, points)


def test_an_embedding_that_is_not_finite_is_no_identity(points, crop):
    for value in (0.0, np.nan):
        with pytest.raises(NoFaceError, match="not finite"):
            NetworkJudge(lambda x, v=value: np.full(8, v), height=112, width=112, points=points).identity(crop)

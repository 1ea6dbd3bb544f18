"""The mesh network: conversion, the graph's checks, the torch port against OpenVINO, gradients, FFHQ-aligned crops."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.data import astronaut

from latentswap.errors import WeightsError
from latentswap.face.align import cut_face
from latentswap.runtime.mesh import MeshRunner, Roi, cut_roi
from latentswap.shape.graph import parse_graph
from latentswap.shape.mesh import MESH_KIND, MESH_SIZE, MeshNet, crop_mesh
from latentswap.weights.convert.tflite import convert_mesh

FACE = Roi(226.0, 120.0, 200.0, 0.0)  # about the astronaut's face


@pytest.fixture(scope="module")
def tflite(default_weights: Callable[..., Path]) -> Path:
    return default_weights("mediapipe-mesh", "face_landmark.tflite")


@pytest.fixture(scope="module")
def net(default_weights: Callable[..., Path]) -> MeshNet:
    return MeshNet.load(default_weights("mediapipe-mesh"))


@pytest.fixture(scope="module")
def converted(tflite: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    return convert_mesh({"somewhere/face_landmark.tflite": tflite.read_bytes(), "other": b""})


def face_patch() -> torch.Tensor:
    patch = cut_roi(astronaut(), FACE, MESH_SIZE)
    return torch.from_numpy(patch).permute(2, 0, 1)[None].float() / 255


def test_port_equals_openvino(net: MeshNet, tflite: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    img_BCHW = torch.cat([face_patch(), face_patch().flip(3), torch.rand(2, 3, 192, 192, generator=generator)])
    reference = openvino.Core().compile_model(tflite, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    mesh_BK3, score_B = net(img_BCHW)
    for index, img_CHW in enumerate(img_BCHW):
        found = reference([img_CHW.permute(1, 2, 0)[None].contiguous().numpy()])
        mesh, score = sorted((value.reshape(-1) for value in found.values()), key=len, reverse=True)
        assert np.abs(mesh.reshape(468, 3) - mesh_BK3[index].numpy()).max() < 2e-3  # pixels of 192
        assert torch.sigmoid(torch.tensor(score[0])) == pytest.approx(float(score_B[index]), rel=1e-3)
    assert score_B[0] > 0.99
    assert score_B[2] < 0.01


def test_channels_last_changes_nothing(net: MeshNet) -> None:
    plain, _ = net(face_patch())
    other, _ = net(face_patch().contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(plain, other, atol=1e-3, rtol=0)


def test_gradient_is_the_slope_and_weights_are_frozen(net: MeshNet) -> None:
    assert not list(net.parameters())
    double = copy.deepcopy(net).double()
    generator = torch.Generator().manual_seed(3)
    # Noise breaks the ties of flat areas, where max pooling has no slope.
    noise_BCHW = 0.05 * torch.randn(1, 3, 192, 192, generator=generator, dtype=torch.float64)
    img_BCHW = (face_patch().double() + noise_BCHW).requires_grad_()
    step_BCHW = torch.randn(img_BCHW.shape, generator=generator, dtype=torch.float64)
    weight_K3 = torch.randn(468, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)

    def value(x: torch.Tensor) -> torch.Tensor:
        return (double(x)[0] * weight_K3).sum()

    (slope_BCHW,) = torch.autograd.grad(value(img_BCHW), img_BCHW)
    size = 1e-8  # small enough to cross next to no kink
    with torch.no_grad():
        numeric = (value(img_BCHW + size * step_BCHW) - value(img_BCHW - size * step_BCHW)) / (2 * size)
    torch.testing.assert_close((slope_BCHW * step_BCHW).sum(), numeric, rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def crop(tflite: Path) -> tuple[torch.Tensor, np.ndarray]:
    """An FFHQ-aligned crop of the astronaut in [-1, 1], and its mesh from the refined square, in crop fractions."""
    pixels = astronaut()
    mesh_K3, _ = MeshRunner(tflite)(pixels, FACE, refine=2)
    cut = cut_face(pixels, mesh_K3, 256)
    img_BCHW = torch.from_numpy(np.ascontiguousarray(cut.pixels)).permute(2, 0, 1)[None].float() / 127.5 - 1
    return img_BCHW, cut.mesh_K3 / 256


def test_fixed_square_sees_what_the_refined_one_sees(net: MeshNet, crop: tuple[torch.Tensor, np.ndarray]) -> None:
    img_BCHW, mesh_K3 = crop
    off_K3 = crop_mesh(net, img_BCHW)[0].numpy() - mesh_K3
    assert np.sqrt((off_K3[:, :2] ** 2).mean()) < 0.012
    assert np.abs(off_K3[:, :2].mean(0)).max() < 0.008  # no offset by the square's shift


@pytest.mark.parametrize("size", [128, 192, 512])
def test_crop_size_hardly_matters(net: MeshNet, crop: tuple[torch.Tensor, np.ndarray], size: int) -> None:
    img_BCHW, _ = crop
    resized_BCHW = torch.nn.functional.interpolate(
        img_BCHW, size=(size, size), mode="bilinear", antialias=True
    ).requires_grad_()
    mesh_BK3 = crop_mesh(net, resized_BCHW)
    assert (mesh_BK3 - crop_mesh(net, img_BCHW)).abs().mean() < 0.003
    mesh_BK3.square().sum().backward()
    assert resized_BCHW.grad is not None
    assert resized_BCHW.grad.isfinite().all()
    assert resized_BCHW.grad.abs().sum() > 0


def test_cached_file_is_the_conversion(net: MeshNet, converted: tuple[dict[str, np.ndarray], dict[str, str]]) -> None:
    tensors, metadata = converted
    assert metadata["kind"] == MESH_KIND
    assert all(value.dtype == np.float32 for value in tensors.values())
    again = MeshNet.from_tensors({name: torch.from_numpy(value) for name, value in tensors.items()}, metadata)
    torch.testing.assert_close(again.state_dict(), net.state_dict(), atol=0, rtol=0)
    # A processor chooses a convolution by the layout of its weights in memory: the last bits may differ.
    torch.testing.assert_close(again(face_patch())[0], net(face_patch())[0], atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "members",
    [{}, {"a/face_landmark.tflite": b"", "b/face_landmark.tflite": b""}, {"face_landmark.tflite": b"not a model"}],
)
def test_unusable_members_are_refused(members: dict[str, bytes]) -> None:
    with pytest.raises(WeightsError, match=r"face_landmark\.tflite"):
        convert_mesh(members)


def test_another_network_is_refused(default_weights: Callable[..., Path]) -> None:
    with pytest.raises(WeightsError, match="use the pinned file"):
        convert_mesh({"face_landmark.tflite": default_weights("mediapipe-iris", "iris_landmark.tflite").read_bytes()})


NAMES = frozenset({"w", "b", "s"})
OUTPUTS = frozenset({"mesh", "score"})


def small_graph() -> dict[str, Any]:
    conv = {"op": "conv", "in": ["input"], "out": "v0", "weight": "w", "bias": "b"}
    return {
        "input": "input",
        "outputs": {"mesh": "v2", "score": "v1"},
        "ops": [
            {**conv, "stride": 2, "pads": [0, 1, 0, 1], "groups": 1},
            {"op": "prelu", "in": ["v0"], "out": "v1", "slope": "s"},
            {"op": "add", "in": ["v0", "v1"], "out": "v2"},
        ],
    }


def test_a_sound_graph_is_accepted() -> None:
    graph = parse_graph(json.dumps(small_graph()), NAMES, OUTPUTS)
    assert [op.kind for op in graph.ops] == ["conv", "prelu", "add"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("ops", 0, "op"), "__import__"),
        (("ops", 0, "op"), ["conv"]),
        (("ops", 0, "stride"), 0),
        (("ops", 0, "stride"), 10**9),
        (("ops", 0, "stride"), True),
        (("ops", 0, "stride"), 2.0),
        (("ops", 0, "groups"), "1"),
        (("ops", 0, "pads"), [0, 1, 0]),
        (("ops", 0, "pads"), [0, 1, 0, -1]),
        (("ops", 0, "weight"), "elsewhere"),
        (("ops", 0, "weight"), ["w"]),
        (("ops", 0, "dilation"), 2),
        (("ops", 0, "in"), ["v2"]),
        (("ops", 0, "in"), [["input"]]),
        (("ops", 1, "in"), ["v0", "v0"]),
        (("ops", 1, "out"), "v0"),
        (("ops", 1, "out"), {}),
        (("ops", 1, "slope"), "w"),  # leaves the tensor s unused
        (("ops", 2, "in"), "v0"),
        (("ops", 2), "add"),
        (("ops",), []),
        (("ops",), {}),
        (("outputs", "mesh"), "v9"),
        (("outputs", "mesh"), []),
        (("outputs", "other"), "v1"),
        (("outputs",), ["v1", "v2"]),
        (("input",), "x"),
        (("extra",), 1),
    ],
)
def test_a_bad_graph_is_refused(path: tuple[Any, ...], value: object) -> None:
    graph = small_graph()
    place: Any = graph
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(WeightsError):
        parse_graph(json.dumps(graph), NAMES, OUTPUTS)


@settings(max_examples=200, deadline=None)
@given(st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda x: st.lists(x) | st.dictionaries(
    st.sampled_from(["input", "outputs", "ops", "op", "in", "out"]), x), max_leaves=12))  # fmt: skip
def test_arbitrary_json_is_refused_cleanly(value: object) -> None:
    with pytest.raises(WeightsError):
        parse_graph(json.dumps(value), NAMES, OUTPUTS)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "x" * 300_000])
def test_text_that_is_no_graph_is_refused(text: str) -> None:
    with pytest.raises(WeightsError):
        parse_graph(text, NAMES, OUTPUTS)


def test_tensors_that_do_not_fit_the_graph_are_refused(
    converted: tuple[dict[str, np.ndarray], dict[str, str]],
) -> None:
    tensors, metadata = converted
    damaged = {name: torch.from_numpy(value) for name, value in tensors.items()}
    name = next(name for name in damaged if name.endswith("slope"))
    damaged[name] = damaged[name][:-1]
    with pytest.raises(WeightsError, match="do not fit"):
        MeshNet.from_tensors(damaged, metadata)

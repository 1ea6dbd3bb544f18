"""Directions: every published file's shape with random numbers, SeFa and GANSpace against references of their own."""

import json
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latentswap.edit.directions import (
    Direction,
    Offset,
    Scale,
    apply_edits,
    load_directions,
    parse_edits,
    save_directions,
    shipped,
)
from latentswap.edit.files import read_directions
from latentswap.edit.ganspace import Components, ganspace
from latentswap.edit.mapper import BRANCHES, LevelsMapper
from latentswap.edit.sefa import factorise, sefa, style_maps
from latentswap.errors import UsageError, WeightsError
from latentswap.generators.mobile import Affine, Mapping, Synthesis
from latentswap.generators.stylegan2 import StyleGAN2, StyleGAN2Config
from latentswap.weights.load import save_tensors


def offset_of(direction: Direction, rows: int = 18, width: int = 512) -> torch.Tensor:
    """What a strength of 1 adds to a code of zeros, [L, D]."""
    return direction(torch.zeros(1, rows, width), 1.0)[0]


# Published files


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_interfacegan_boundary(tmp_path, dtype):
    boundary = np.random.default_rng(0).normal(size=(1, 512)).astype(dtype)
    boundary /= np.linalg.norm(boundary)
    np.save(tmp_path / "smile.npy", boundary)
    assert (tmp_path / "smile.npy").stat().st_size == 128 + 512 * boundary.itemsize  # as those that are published
    (direction,) = read_directions(tmp_path / "smile.npy").values()
    assert direction.name == "smile"
    np.testing.assert_allclose(offset_of(direction, 16).numpy(), np.repeat(boundary, 16, 0), atol=1e-7)


@pytest.mark.parametrize("shape", [(512,), (1, 512), (18, 512), (1, 18, 512)])
@pytest.mark.parametrize("stream", [False, True], ids=["zip", "older"])
def test_torch_directions(tmp_path, shape, stream):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    torch.save(values, tmp_path / "pose.pt", _use_new_zipfile_serialization=not stream)
    (direction,) = read_directions(tmp_path / "pose.pt").values()
    assert torch.equal(offset_of(direction), values.reshape(-1, 512).expand(18, 512))
    # Sixteen rows: the first fifteen mean the same, and the last takes the teacher's sixteenth.
    assert torch.equal(offset_of(direction, 16), values.reshape(-1, 512).expand(18, 512)[:16])


def test_rows_of_a_file_can_be_chosen(tmp_path):
    torch.save(torch.ones(18, 512), tmp_path / "d.pt")
    direction = read_directions(tmp_path / "d.pt", name="mine", rows=(2, 4))["mine"]
    assert offset_of(direction).abs().sum(1).nonzero().flatten().tolist() == [2, 4]


def test_sefa_factors(tmp_path):
    vectors = torch.linalg.qr(torch.randn(512, 512, generator=torch.Generator().manual_seed(0)))[0][:, :5]
    torch.save({"ckpt": "stylegan2-ffhq.pt", "eigvec": vectors}, tmp_path / "factor.pt")
    found = read_directions(tmp_path / "factor.pt")
    assert list(found) == [f"factor.{i}" for i in range(5)]
    assert torch.equal(offset_of(found["factor.3"])[7], vectors[:, 3])


def test_ganspace_components(tmp_path):
    random = np.random.default_rng(0)
    mean, std = random.normal(size=(1, 512)), random.uniform(1, 2, 80)
    axes = np.linalg.qr(random.normal(size=(512, 80)))[0].T
    arrays = {"mean": mean, "comp": axes[:, None], "std": std}
    torch.save({key: torch.tensor(value, dtype=torch.float32) for key, value in arrays.items()}, tmp_path / "pca.pt")
    found = read_directions(tmp_path / "pca.pt", rows=(2, 3, 4))
    assert len(found) == 80
    ws = random.normal(size=(1, 18, 512))
    coordinate = (ws[0, 0] - mean[0]) @ axes[10] / std[10]
    expected = ws.copy()
    expected[0, 2:5] += (1.5 - coordinate) * std[10] * axes[10]
    edited = found["pca.10"](torch.tensor(ws, dtype=torch.float32), 1.5)
    np.testing.assert_allclose(edited.numpy(), expected, atol=2e-5)


def mapper_checkpoint(width: int = 512, branches=tuple(BRANCHES)) -> dict:
    random = torch.Generator().manual_seed(0)
    state = {
        f"mapper.{name}.mapping.{i}.{kind}": torch.randn(shape, generator=random) * 50
        for name in branches
        for i in range(1, 5)
        for kind, shape in (("weight", (width, width)), ("bias", (width,)))
    }
    state["decoder.style.1.weight"] = torch.zeros(3, 3)
    return {"state_dict": state, "opts": {"description": "surprised", "lr": 0.5, "no_fine_mapper": False}}


def test_styleclip_mapper(tmp_path):
    checkpoint = mapper_checkpoint()
    torch.save(checkpoint, tmp_path / "surprised.pt")
    (direction,) = read_directions(tmp_path / "surprised.pt").values()
    ws = torch.randn(2, 18, 512, generator=torch.Generator().manual_seed(1))
    expected = ws.double().clone()
    for name, rows in (("course", range(4)), ("medium", range(4, 8)), ("fine", range(8, 18))):
        for row in rows:
            x = ws[:, row].double()
            x = x / (x.square().mean(1, keepdim=True) + 1e-8).sqrt()
            for i in range(1, 5):
                weight, bias = (
                    checkpoint["state_dict"][f"mapper.{name}_mapping.mapping.{i}.{kind}"].double()
                    for kind in ("weight", "bias")
                )
                x = F.leaky_relu(x @ weight.T * 0.01 / 512**0.5 + bias * 0.01, 0.2) * 2**0.5
            expected[:, row] += 0.1 * x
    torch.testing.assert_close(direction(ws, 1.0).double(), expected, atol=1e-4, rtol=1e-4)


def test_a_mapper_without_its_fine_branch_leaves_those_rows():
    state = mapper_checkpoint(8, ("course_mapping", "medium_mapping"))["state_dict"]
    state = {key.removeprefix("mapper."): value for key, value in state.items() if key.startswith("mapper.")}
    change = LevelsMapper.from_state(state)(torch.randn(1, 16, 8), 1.0)
    assert (change[:, :8] != 0).all() and (change[:, 8:] == 0).all()


def test_what_is_no_direction_is_refused(tmp_path):
    class Program:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    files = {
        "object.npy": None,
        "program.pt": pickle.dumps(Program(), protocol=2),
        "text.pt": b"hello, this is no checkpoint at all",
        "short.npy": b"\x93NUMPY\x01\x00",
    }
    np.save(tmp_path / "object.npy", np.array([Program()]), allow_pickle=True)
    np.save(tmp_path / "cube.npy", np.zeros((2, 3, 4)))
    np.save(tmp_path / "nan.npy", np.full((1, 512), np.nan))
    np.save(tmp_path / "whole.npy", np.zeros((1, 512), np.int64))
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.pt")
    torch.save({"mean": torch.zeros(1, 4), "comp": torch.zeros(2, 1, 5), "std": torch.ones(2)}, tmp_path / "pca.pt")
    broken = mapper_checkpoint(8)
    del broken["state_dict"]["mapper.fine_mapping.mapping.4.bias"]
    torch.save(broken, tmp_path / "mapper.pt")
    save_tensors(tmp_path / "mine.safetensors", {"x": torch.zeros(2)}, {"kind": "latent"})
    for name, data in files.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(WeightsError, match=path.name):
            read_directions(path)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(UsageError, match="no file"):
        read_directions(tmp_path / "absent.pt")


# Edits


def library() -> dict[str, Direction]:
    smile = Direction(name="smile", change=Offset(torch.ones(3, 4)), rows=(1,), scale=Scale(low=-4, high=4, usual=2))
    yaw = Direction(name="yaw", change=Offset(torch.full((1, 4), 2.0)), scale=Scale(low=-20, high=20, usual=10))
    return {"smile": smile, "yaw": yaw, **{f"pca.{i}": yaw for i in range(80)}}


def test_edits_add_up_in_their_order():
    ws = torch.zeros(2, 3, 4)
    edited = apply_edits(ws, parse_edits(["smile=1.5", "yaw=-1"], library()))
    assert edited[:, 0].unique().tolist() == [-2] and edited[:, 1].unique().tolist() == [-0.5]
    assert torch.equal(ws, torch.zeros(2, 3, 4)) and apply_edits(ws, []) is ws


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("smlie=1", r"'smlie'. Did you mean 'smile'\? There are: smile, yaw, pca.0 … pca.79"),
        ("smile=9", r"from -4 to 4 .* usually 2"),
        ("smile=nan", "out of range"),
        ("smile", "for example smile=2"),
        ("smile=much", "NAME=NUMBER"),
    ],
)
def test_edits_that_cannot_be_are_refused(text, words):
    with pytest.raises(UsageError, match=words):
        parse_edits([text], library())


def test_a_direction_of_too_few_or_strange_rows_is_refused():
    with pytest.raises(UsageError, match="rows"):
        Direction(name="d", change=Offset(torch.ones(5, 4)))(torch.zeros(1, 16, 4), 1.0)
    with pytest.raises(UsageError, match="rows of 4 numbers"):
        Direction(name="d", change=Offset(torch.ones(1, 4)))(torch.zeros(1, 16, 5), 1.0)
    with pytest.raises(UsageError, match="row 7"):
        Direction(name="d", change=Offset(torch.ones(1, 4)), rows=(7,))(torch.zeros(1, 4, 4), 1.0)


def test_saved_and_loaded_directions_are_the_same(tmp_path):
    path = tmp_path / "directions.safetensors"
    save_directions(path, [library()["smile"], library()["yaw"]], {"licence": "none"})
    again = load_directions(path)
    ws = torch.randn(1, 3, 4)
    for name, direction in again.items():
        assert torch.equal(direction(ws, 1.0), library()[name](ws, 1.0))
        assert (direction.scale, direction.rows) == (library()[name].scale, library()[name].rows)
    assert read_directions(path).keys() == again.keys()


@pytest.mark.parametrize(
    "described",
    [
        "[]",
        '{"x": {}}',
        '{"x": {"rows": [1e9], "about": ""}}',
        '{"x": {"rows": null, "about": "", "low": 5, "high": 9, "usual": 6}}',
        '{"y": {"rows": null, "about": ""}}',
    ],
)
def test_a_hostile_description_is_refused(tmp_path, described):
    path = tmp_path / "d.safetensors"
    save_tensors(path, {"x": torch.zeros(2, 4)}, {"kind": "directions", "directions": described})
    with pytest.raises(WeightsError, match="does not describe"):
        load_directions(path)


# SeFa and GANSpace


def test_sefa_is_the_eigenvectors_of_the_normalised_weights():
    """Against a singular value decomposition in NumPy, columns normalised one by one after concatenation."""
    random = torch.Generator().manual_seed(0)
    weights = [torch.randn(n, 12, generator=random) * scale for n, scale in ((9, 1.0), (14, 30.0))]
    a = np.concatenate([weight.double().numpy().T for weight in weights], 1)
    for column in range(a.shape[1]):
        a[:, column] /= np.sqrt((a[:, column] ** 2).sum())
    left, singular, _ = np.linalg.svd(a)
    values, directions = factorise(weights)
    np.testing.assert_allclose(values.numpy(), singular**2, rtol=1e-5)
    np.testing.assert_allclose(np.abs((directions.double().numpy() * left.T).sum(1)), 1, atol=1e-4)
    assert (directions.gather(1, directions.abs().argmax(1, keepdim=True)) > 0).all()


class TinyMobile(nn.Module):
    """MobileStyleGAN's real networks at a tiny size."""

    def __init__(self) -> None:
        super().__init__()
        self.mapping_network = Mapping(w_dim=6)
        self.synthesis_network = Synthesis(channels=(8, 8), w_dim=6, base=8)


def test_style_maps_are_those_of_the_rows_they_read():
    """A change of one row changes exactly what the maps of that row read."""
    torch.manual_seed(0)
    generator = TinyMobile()
    maps = style_maps(generator)
    assert [row for row, _ in maps] == [0, 1, 1, 2, 3, 3, 4, 5]
    for row in range(6):
        assert read_by(generator, row) == {weight.data_ptr() for r, weight in maps if r == row}


def read_by(generator: TinyMobile, row: int) -> set[int]:
    """Where the weights lie of the affine layers whose input changes with a row, found by running the network."""
    seen: dict[nn.Module, list[torch.Tensor]] = {}
    affines = [module for module in generator.modules() if isinstance(module, Affine)]
    hooks = [m.register_forward_pre_hook(lambda m, x: seen.setdefault(m, []).append(x[0])) for m in affines]
    ws = torch.zeros(1, 6, 6)
    for amount in (0, 1):
        ws[:, row] = amount
        generator.synthesis_network(ws.clone())
    for hook in hooks:
        hook.remove()
    return {m.weight.data_ptr() for m in affines if not torch.equal(*seen[m])}


def test_sefa_of_stylegan2_reads_convolutions_and_the_last_picture():
    torch.manual_seed(0)
    generator = StyleGAN2(StyleGAN2Config(z_dim=8, w_dim=8, resolution=16, channel_base=128, channel_max=8))
    assert sorted(row for row, _ in style_maps(generator)) == [0, 1, 2, 3, 4, 5]
    found = sefa(generator, rows=(2, 3), count=3)
    assert list(found) == ["sefa.0", "sefa.1", "sefa.2"]
    offset = offset_of(found["sefa.0"], generator.num_ws, 8)
    assert torch.allclose(offset.norm(dim=1), torch.tensor([0.0, 0, 1, 1, 0, 0]), atol=1e-5)
    with pytest.raises(UsageError, match="rows 0 to 5"):
        sefa(generator, rows=(6,))
    with pytest.raises(UsageError, match="Linear"):
        sefa(nn.Linear(2, 2))


class TinyW:
    """A linear 'mapping' whose principal components are known."""

    num_ws, w_dim, resolution = 2, 6, 8

    def __init__(self) -> None:
        random = torch.Generator().manual_seed(0)
        self.axes_DD = torch.linalg.qr(torch.randn(6, 6, generator=random))[0]
        self.scales_D = torch.tensor([5.0, 3, 2, 1, 0.5, 0.1])
        self.w_avg, self.w_std = torch.linspace(50, 60, 6), torch.ones(6)

    def mapping(self, z_BD: torch.Tensor, *, truncation_psi: float = 1.0) -> torch.Tensor:
        return self.w_avg + 0.3 + truncation_psi * (z_BD * self.scales_D) @ self.axes_DD

    def synthesis(self, ws_BLD, *, resolution=None, noise="const"):
        raise NotImplementedError


def test_ganspace_finds_known_components():
    generator = TinyW()
    found = ganspace(generator, samples=20_000, components=4)
    torch.testing.assert_close(found.std_N, generator.scales_D[:4], rtol=0.03, atol=0)
    torch.testing.assert_close(found.mean_D, generator.w_avg + 0.3, rtol=0, atol=0.15)
    assert ((found.components_ND * generator.axes_DD[:4]).sum(1).abs() > 0.999).all()


def test_ganspace_against_numpy():
    """The same random people, kept and decomposed at once."""
    from latentswap.edit.ganspace import _BATCH
    from latentswap.seeds import generator_for

    generator, count = TinyW(), 5000
    sizes = [_BATCH, count - _BATCH]
    z = torch.cat([torch.randn(n, 6, generator=generator_for(3, i, stream=13)) for i, n in enumerate(sizes)])
    w = generator.mapping(z).double().numpy()
    _, singular, right = np.linalg.svd(w - w.mean(0), full_matrices=False)
    found = ganspace(generator, samples=count, components=6, seed=3)
    np.testing.assert_allclose(found.mean_D.numpy(), w.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.std_N.numpy(), singular / np.sqrt(count - 1), rtol=1e-4)
    np.testing.assert_allclose(np.abs((found.components_ND.double().numpy() * right).sum(1)), 1, atol=1e-5)


def test_ganspace_sets_the_coordinate(tmp_path):
    components = ganspace(TinyW(), samples=2000, components=3)
    components.save(tmp_path / "pca.safetensors")
    edited = read_directions(tmp_path / "pca.safetensors")["pca.1"](torch.randn(4, 2, 6) + 50, 2.0)
    coordinate = (edited[:, 0] - components.mean_D) @ components.components_ND[1] / components.std_N[1]
    torch.testing.assert_close(coordinate, torch.full((4,), 2.0), atol=1e-3, rtol=0)
    with pytest.raises(UsageError, match="belong together"):
        Components(mean_D=torch.zeros(5), components_ND=torch.zeros(3, 6), std_N=torch.ones(3))
    with pytest.raises(UsageError, match="samples"):
        ganspace(TinyW(), samples=3)


# What ships


def test_the_shipped_directions_say_what_they_are():
    assert {"yaw", "pitch", "smile", "mouth_open", "gaze"} == set(shipped())
    for name, direction in shipped().items():
        assert direction.name == name and direction.about and direction.scale.unit
        assert offset_of(direction, 16).isfinite().all()
        assert json.dumps(direction.scale.usual)


MOVES = {"yaw": (12, 0), "pitch": (8, 1), "smile": (2, 2), "mouth_open": (2, 3)}


def test_the_shipped_directions_move_what_they_name(networks, people):
    """On people they were not learnt from: the measure goes the way that the strength says, and the person stays."""
    from latentswap.identity.dlib_resnet import centred, chip
    from latentswap.shape.measures import expression_measures, head_pose, openness
    from latentswap.shape.mesh import crop_mesh

    def look(ws):
        with torch.no_grad():
            img = networks.generator.synthesis(ws, resolution=256)
            mesh = crop_mesh(networks.mesh, img)
            e = centred(networks.identity(chip(img)), networks.mean_E)
        _, mouth = openness(mesh)
        z = expression_measures(mesh)
        smile = z[:, 5] / 0.068 + z[:, 6] / 0.0146
        measures = [*head_pose(mesh)[:, :2].T, smile / 1.67, mouth / 0.085]
        return torch.stack(measures, 1), e

    codes = people[0][:3]
    for name, (strength, column) in MOVES.items():
        (up, e_up), (down, e_down) = (look(shipped()[name](codes, sign * strength)) for sign in (1, -1))
        moved = (up - down)[:, column] / (2 * strength)
        assert moved.mean() > 0.6 and (moved > 0.2).all(), (name, moved)
        assert (e_up * e_down).sum(1).mean() > 0.4, name

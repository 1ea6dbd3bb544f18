"""The paper's own setting: its codes, its losses and its mixer, on a small StyleGAN2 with real loss networks."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from _published_support import save_described, with_spread
from torch import nn

from latentswap.cli.main import main
from latentswap.errors import UsageError, WeightsError
from latentswap.generators import stylegan2
from latentswap.generators.stylegan2 import StyleGAN2, StyleGAN2Config
from latentswap.identity import smoothswap
from latentswap.identity.base import IdentityNetwork
from latentswap.identity.smoothswap import SmoothSwapConfig, SmoothSwapEmbedder
from latentswap.networks import load_identity
from latentswap.seeds import generator_for
from latentswap.shape import deep3d
from latentswap.shape.deep3d import Deep3D, Deep3DConfig, LandmarkModel
from latentswap.shape.fusion import default_shape_model
from latentswap.swappers.mixer import PAPER_HIDDEN, LatentMixer, MixerConfig
from latentswap.train.loop import LoopConfig, train
from latentswap.train.paper import (
    CentredDlib,
    LandmarkShape,
    MeshShape,
    PaperTrainee,
    PaperTraining,
    redrawn_noise,
    truncated_codes,
)
from latentswap.weights.load import save_tensors

TINY = StyleGAN2Config(z_dim=12, w_dim=12, resolution=32, channel_base=128, channel_max=8, mapping_layers=2)
SMALL = SmoothSwapConfig(units=(1, 1, 1, 1), width=2, classes=16, hidden=12, embedding_dim=8)
TRAINING = PaperTraining(hidden=(16, 16), batch=3, latent=0.1, truncation_cutoff=3, seed=3)


def frozen(module):
    return module.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def generator() -> StyleGAN2:
    torch.manual_seed(0)
    generator = frozen(StyleGAN2(TINY))
    generator.mapping.w_avg.normal_(0, 0.3)
    for name, value in generator.named_parameters():
        if name.endswith("noise_strength"):
            value.fill_(0.3)
    return generator


def attentive(network, size: int):
    """The network with weights of a spread, and the statistics of pictures, so that it tells pictures apart."""
    with_spread(network, 1).train()
    random = torch.Generator().manual_seed(8)
    for _ in range(20):
        network(F.interpolate(torch.rand(4, 3, 4, 4, generator=random), size=size, mode="bilinear"))
    return frozen(network)


@pytest.fixture(scope="module")
def identity() -> SmoothSwapEmbedder:
    return attentive(SmoothSwapEmbedder(SMALL), 256)


@pytest.fixture(scope="module")
def shape() -> LandmarkShape:
    network, model = Deep3D(Deep3DConfig(units=(1, 1, 1, 1), width=2)), LandmarkModel()
    random = torch.Generator().manual_seed(5)
    for name, buffer in model.named_buffers():
        buffer.normal_(0, 1 if name == "mean_K3" else 0.1, generator=random)
    return LandmarkShape(network=attentive(network, 224), model=model.eval())


@pytest.fixture(scope="module")
def trainee_of(generator, identity, shape):
    return lambda **changes: PaperTrainee(generator, identity, shape, replace(TRAINING, **changes))


def gradient(trainee: PaperTrainee, step: int = 0) -> list[torch.Tensor]:
    trainee.mixer.zero_grad(set_to_none=True)
    trainee.losses(step)["total"].backward()
    return [p.grad.clone() for p in trainee.mixer.parameters() if p.grad is not None]


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_the_papers_numbers():
    config = PaperTraining()
    assert (config.batch, config.same, config.truncation_psi, config.truncation_cutoff) == (32, 0.2, 0.5, 8)
    assert (config.identity, config.latent, config.shape) == (1.0, 100.0, 0.1)
    assert config.hidden == PAPER_HIDDEN and config.resolution is None


def test_the_codes_are_one_w_with_the_coarse_rows_halfway_to_the_mean(generator):
    z = torch.randn(3, TINY.z_dim, generator=torch.Generator().manual_seed(1))
    w, mean = generator.mapping(z).double(), generator.w_avg.double()
    ws = truncated_codes(generator, z, 0.5, 4)
    assert ws.shape == (3, TINY.num_ws, TINY.w_dim)
    for row in range(TINY.num_ws):
        assert torch.allclose(ws[:, row].double(), (w + mean) / 2 if row < 4 else w, atol=1e-6)
    assert torch.equal(truncated_codes(generator, z, 1.0, 99), generator.codes(z))


def test_pairs_are_a_function_of_seed_step_and_index(trainee_of):
    def pairs(trainee, step, count):
        return trainee.pairs([generator_for(trainee.config.seed, step, stream=k) for k in range(count)])

    trainee = trainee_of()
    source, target = pairs(trainee, 5, 6)
    fewer = pairs(trainee, 5, 3)
    assert torch.allclose(source[:3], fewer[0], atol=1e-6) and torch.allclose(target[:3], fewer[1], atol=1e-6)
    assert not torch.allclose(source, pairs(trainee, 6, 6)[0], atol=1e-2)
    assert not torch.allclose(source, pairs(trainee_of(seed=4), 5, 6)[0], atol=1e-2)
    everyone = pairs(trainee_of(same=1.0), 5, 6)
    assert torch.equal(everyone[0], everyone[1]) and torch.allclose(everyone[0], source, atol=1e-6)
    many = pairs(trainee, 0, 400)
    same = (many[0] == many[1]).flatten(1).all(1).float().mean()
    assert 0.14 < same < 0.26


def test_noise_is_fresh_of_unit_strength_and_each_pictures_own(generator):
    ws = torch.randn(1, TINY.num_ws, TINY.w_dim, generator=torch.Generator().manual_seed(2)).expand(2, -1, -1)
    const = generator.synthesis(ws)

    def drawn(*seeds: int) -> torch.Tensor:
        with redrawn_noise(generator, [torch.Generator().manual_seed(seed) for seed in seeds]):
            return generator.synthesis(ws[: len(seeds)])

    pair, swapped, alone = drawn(1, 2), drawn(2, 1), drawn(2)
    assert apart(pair, swapped.flip(0)) < 1e-5 and apart(pair[1:], alone) < 1e-5
    assert (pair[0] - pair[1]).abs().mean() > 1e-2 and (pair - const).abs().mean() > 1e-2
    assert torch.equal(generator.synthesis(ws), const)  # the generator's own maps are back
    with redrawn_noise(generator, [torch.Generator().manual_seed(7)]):
        assert float(generator.synthesis.b32.conv1.noise_const.std()) == pytest.approx(1, abs=0.1)


def test_losses_and_their_gradient_are_those_of_the_formula(trainee_of, generator, identity, shape):
    """Against everything computed at once and differentiated by autograd, noise included."""
    trainee = trainee_of(accumulate=2)
    found, ours = trainee.losses(2), gradient(trainee, 2)
    trainee.mixer.zero_grad(set_to_none=True)
    random = [generator_for(TRAINING.seed, 2, stream=k) for k in range(TRAINING.batch)]
    source, target = trainee.pairs(random)
    swapped = trainee.mixer(source, target)
    pictures = []
    for ws in (source, target, swapped):
        with redrawn_noise(trainee.generator, random):
            pictures.append(trainee.generator.synthesis(ws))
    e_source, _, e_swapped = (identity.embed(img) for img in pictures)
    l_id = (1 - F.cosine_similarity(e_swapped, e_source)).mean()
    l_lp = F.mse_loss(swapped, target)
    c_source, c_target, c_swapped = (
        shape.network((F.interpolate(img, size=224, mode="bilinear") + 1) / 2) for img in pictures
    )
    fused = torch.cat([c_source[:, :80], c_target[:, 80:]], 1)
    l_shape = F.l1_loss(shape.model(c_swapped), shape.model(fused))
    total = l_id + 0.1 * l_lp + 0.1 * l_shape
    values = {"identity": l_id, "latent": l_lp, "shape": l_shape, "total": total}
    for name, value in values.items():
        assert float(found[name].detach()) == pytest.approx(float(value.detach()), rel=1e-4), name
    theirs = torch.autograd.grad(total, list(trainee.mixer.parameters()))
    for a, b in zip(ours, theirs, strict=True):
        assert apart(a, b) < 1e-3


def test_a_batch_in_parts_is_the_whole_batch(trainee_of):
    whole = gradient(trainee_of(), 1)
    for parts in (2, 3):
        for a, b in zip(whole, gradient(trainee_of(accumulate=parts), 1), strict=True):
            assert apart(a, b) < 1e-3  # float32; a part left out or weighed wrongly is off by far more


def test_losses_fall_and_only_the_mixer_learns(trainee_of, generator, identity, shape, tmp_path):
    trainee = trainee_of()
    before = {name: value.clone() for name, value in identity.state_dict().items()}
    statistics = {name: value.clone() for name, value in shape.network.state_dict().items()}
    real = trainee.losses
    trainee.losses = lambda step: real(0)  # one batch over and over
    train(trainee, LoopConfig(out=tmp_path, steps=30, lr=3e-3, warmup=0, log_every=1))
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    for name in ("total", "identity", "shape"):
        assert rows[-1][name] < 0.9 * rows[0][name], (name, rows[0], rows[-1])
    assert not any(p.requires_grad for p in [*trainee.generator.parameters(), *identity.parameters()])
    assert all(torch.equal(value, before[name]) for name, value in identity.state_dict().items())
    assert all(torch.equal(value, statistics[name]) for name, value in shape.network.state_dict().items())
    assert torch.equal(trainee.generator.w_avg, generator.w_avg)
    sheet = trainee.sample_sheet()
    assert sheet.shape == (96, 256, 3) and sheet.dtype == np.uint8


def test_resumed_is_uninterrupted_whatever_the_parts(trainee_of, tmp_path):
    loop = LoopConfig(out=tmp_path / "whole", steps=6, lr=1e-3, warmup=0, save_every=3)
    whole, first = trainee_of(), trainee_of()
    train(whole, loop)

    class Stop(Exception):
        pass

    def stop(progress):
        if progress.step == 3:
            raise Stop

    with pytest.raises(Stop):
        train(first, replace(loop, out=tmp_path / "halves", log_every=3), stop)
    again = trainee_of()
    assert train(again, replace(loop, out=tmp_path / "halves")) == 3
    for a, b in zip(whole.mixer.parameters(), again.mixer.parameters(), strict=True):
        assert torch.equal(a, b)
    parts = trainee_of(accumulate=2)
    assert train(parts, replace(loop, out=tmp_path / "halves", steps=7)) == 1  # may be changed on the way
    with pytest.raises(UsageError, match="other settings \\(latent\\)"):
        train(trainee_of(latent=10.0), replace(loop, out=tmp_path / "halves", steps=8))


def test_another_generator_is_another_run(generator, identity, shape):
    torch.manual_seed(1)
    other = frozen(StyleGAN2(TINY))
    mine, theirs = (PaperTrainee(g, identity, shape, TRAINING).describe() for g in (generator, other))
    assert {key for key in mine if mine[key] != theirs[key]} == {"generator"}


def test_the_shipped_loss_networks_take_any_size(networks, generator):
    """No file of other people's: dlib's embedding and the mesh; one step, and a gradient for every parameter."""
    identity = CentredDlib(network=networks.identity, mean_E=networks.mean_E)
    assert isinstance(identity, IdentityNetwork) and identity.embedding_dim == 128
    shape = MeshShape(network=networks.mesh, model=default_shape_model())
    trainee = PaperTrainee(generator, identity, shape, replace(TRAINING, batch=2))
    embedded = identity.embed(torch.rand(2, 3, 64, 64) * 2 - 1)
    assert torch.allclose(embedded.norm(dim=1), torch.ones(2), atol=1e-5)
    assert all(torch.isfinite(g).all() and g.abs().sum() > 0 for g in gradient(trainee))


def test_the_shipped_generator_draws_its_noise_afresh(networks):
    """MobileStyleGAN's maps are baked in at their own strength; fresh ones have the same."""
    ws = networks.generator.w_avg.expand(1, 16, -1)
    layer = networks.generator.synthesis_network.conv0
    kept = layer.noise.clone()
    with torch.no_grad():
        const = networks.generator.synthesis(ws, resolution=256)
        with redrawn_noise(networks.generator, [torch.Generator().manual_seed(0)]):
            fresh = networks.generator.synthesis(ws, resolution=256)
            last = networks.generator.synthesis_network.blocks[4].conv2
            deviation = float(last.noise.std())
    assert 0 < (fresh - const).abs().mean() < 0.2 and torch.equal(layer.noise, kept)
    assert deviation == pytest.approx(float(last.noise.std()), rel=0.05)


def rows_of_linears(mixer: LatentMixer, rows: range, dtype: torch.dtype) -> list[nn.Sequential]:
    """Upstream's networks for these rows: nn.Linear and SiLU in turn, one after the other, per row."""
    networks = []
    for row in rows:
        layers: list[nn.Module] = []
        for i in range(len(mixer.layers)):
            weight, bias = (mixer.get_parameter(f"layers.{i}.{part}")[row].to(dtype) for part in ("weight", "bias"))
            linear = nn.Linear(weight.shape[1], weight.shape[0], dtype=dtype)
            linear.load_state_dict({"weight": weight, "bias": bias})
            layers += [linear, nn.SiLU()]
        networks.append(nn.Sequential(*layers[:-1]))
    return networks


@pytest.mark.parametrize(
    ("config", "rows"),
    [
        (MixerConfig(num_ws=2, hidden=PAPER_HIDDEN), range(2)),  # two rows at the published width
        (MixerConfig(num_ws=18, w_dim=16, hidden=(32, 32, 16, 16)), range(18)),
    ],
)
def test_the_published_mixer_is_upstreams_arithmetic(config, rows, tmp_path):
    """Written to a file as the converter writes it, loaded, and compared in float64 with plain networks per row."""
    torch.manual_seed(6)
    written = LatentMixer(config)
    save_described(tmp_path / "mixer.safetensors", written, "mixer")
    mixer = LatentMixer.load(tmp_path / "mixer.safetensors")
    assert torch.equal(mixer.centre, torch.zeros(config.w_dim)) and torch.equal(mixer.scale, torch.ones(config.w_dim))
    source, target = torch.randn(2, 3, config.num_ws, config.w_dim).unbind(0)
    plain = rows_of_linears(written, rows, torch.float64)
    inputs = torch.cat([source, target], -1).double()
    expected = torch.stack([plain[row](inputs[:, row]) + target[:, row].double() for row in rows], 1)
    mixed = mixer(source, target)
    assert (mixed.double() - expected).abs().max() < 2e-6
    assert (mixer(target, source) - mixed).abs().max() > 0.1  # the order matters
    other = source.clone()
    other[:, 0] += 1
    assert torch.equal(mixer(other, target)[:, 1:], mixed[:, 1:])  # no row sees another


def test_the_published_first_layers_are_as_wide_as_they_should_be():
    mixer = LatentMixer(MixerConfig(num_ws=1, hidden=PAPER_HIDDEN))
    shapes = [tuple(mixer.get_parameter(f"layers.{i}.weight").shape[1:]) for i in range(5)]
    assert shapes == [(1024, 1024), (1024, 1024), (512, 1024), (512, 512), (512, 512)]


@pytest.fixture
def files(tmp_path, generator, identity, shape):
    """Converted networks, as a user has them."""
    save_described(tmp_path / "generator.safetensors", generator, stylegan2.KIND)
    save_described(tmp_path / "identity.safetensors", identity, smoothswap.KIND)
    save_described(tmp_path / "deep3d.safetensors", shape.network, deep3d.KIND)
    save_tensors(tmp_path / "landmarks.safetensors", shape.model.state_dict(), {"kind": deep3d.LANDMARKS_KIND})
    return tmp_path


def test_train_mixer_paper_command(files, capsys):
    def command(*options: str) -> list[str]:
        networks = {"generator": "generator", "identity-network": "identity", "shape-network": "deep3d"}
        paths = [f"--{name}={files / value}.safetensors" for name, value in networks.items()]
        paths.append(f"--landmarks={files / 'landmarks.safetensors'}")
        return ["train", "mixer", "--paper", "-o", str(files / "run"), *paths, "--offline", *options]

    small = ("--batch", "2", "--hidden", "8", "--sample-every", "2")
    assert main(command("--steps", "2", *small)) == 0
    assert main(command("--steps", "3", "--accumulate", "2", *small)) == 0
    mixer = LatentMixer.load(files / "run" / "mixer.safetensors")
    assert mixer.config == MixerConfig(num_ws=TINY.num_ws, w_dim=TINY.w_dim, hidden=(8,))
    assert torch.equal(mixer.scale, torch.ones(TINY.w_dim))
    assert (files / "run" / "samples" / "step-000002.png").exists()
    last = json.loads((files / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert {"step", "total", "identity", "latent", "shape"} <= last.keys() and last["step"] == 3
    capsys.readouterr()
    assert main(command("--steps", "4", *small, "--latent", "10")) == 2
    assert "other settings (latent)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--paper --accumulate 33", "33 parts"),
        ("--paper --batch 0", "batch is 0"),
        ("--paper --same 2", "same is 2"),
        ("--paper --colour 1", "--colour has no meaning with --paper"),
        ("--paper --people-from x", "--people-from has no meaning with"),
        ("--generator x.safetensors", "--generator has no meaning without --paper"),
        ("--paper --landmarks x.safetensors", "give both or neither"),
    ],
)
def test_train_mixer_paper_refuses_before_loading(tmp_path, capsys, options, message):
    assert main(["train", "mixer", "-o", str(tmp_path / "run"), *options.split()]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_identity_networks_are_known_by_what_the_file_says(files):
    assert isinstance(load_identity(files / "identity.safetensors"), SmoothSwapEmbedder)
    with pytest.raises(WeightsError, match="holds generator/stylegan2, where an identity network is needed"):
        load_identity(files / "generator.safetensors")


def test_wrong_numbers_are_refused():
    for bad in ({"truncation_psi": 1.5}, {"truncation_cutoff": -1}, {"latent": -1.0}, {"accumulate": 0}):
        with pytest.raises(UsageError):
            PaperTraining(**{**asdict(TRAINING), **bad})

"""Pivotal tuning of any generator, and swaps in a generator of the user's own."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from _face_support import astronaut
from _published_support import save_described

from latentswap.anonymize import Anonymizer
from latentswap.cli.main import main
from latentswap.edit.directions import apply_edits, shipped
from latentswap.errors import UsageError, WeightsError
from latentswap.face.align import cut_face
from latentswap.face.analyse import FaceAnalyser
from latentswap.generators import stylegan2
from latentswap.generators.mobile import MobileStyleGAN
from latentswap.generators.stylegan2 import StyleGAN2, StyleGAN2Config
from latentswap.inversion.base import rows_for
from latentswap.inversion.delta import GeneratorDelta, fingerprint
from latentswap.inversion.pti import PtiConfig, difference, full_precision, project, ramp, self_similarity, tune_pair
from latentswap.inversion.tune import neighbour
from latentswap.networks import Networks, load_networks, shares_w_space
from latentswap.swappers.base import Prepared
from latentswap.swappers.latentswap import LatentSwap, to_pixels, to_tensor
from latentswap.swappers.mixer import LatentMixer, MixerConfig

TINY = StyleGAN2Config(z_dim=8, w_dim=8, resolution=32, channel_base=128, channel_max=8, mapping_layers=2)
QUICK = PtiConfig(project_steps=12, project_lr=0.2, steps=4, lr=0.02)
DEEP = StyleGAN2Config(resolution=1024, channel_base=1024, channel_max=4)  # 18 rows of 512, as the published one


def random_generator(config: StyleGAN2Config, seed: int = 0) -> StyleGAN2:
    torch.manual_seed(seed)
    return StyleGAN2(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def generator() -> StyleGAN2:
    return random_generator(TINY)


@pytest.fixture(scope="module")
def pictures(generator) -> torch.Tensor:
    """Two that codes can say, in colours that none says."""
    w = generator.mapping(torch.randn(2, 8, generator=torch.Generator().manual_seed(3)))
    img = generator.synthesis(w[:, None].expand(-1, generator.num_ws, -1))
    return (img * torch.tensor([0.7, 1.0, 0.6])[:, None, None] + 0.1).clamp(-1, 1)


@pytest.fixture(scope="module")
def pivots(generator, networks, pictures) -> torch.Tensor:
    return torch.cat([project(generator, networks.identity, img[None], QUICK) for img in pictures])


def state(generator: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in generator.state_dict().items()}


def unchanged(generator: torch.nn.Module, before: dict[str, torch.Tensor]) -> bool:
    same = all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())
    return same and not any(p.requires_grad for p in generator.parameters())


def test_the_published_schedule():
    config = PtiConfig()
    assert (config.project_steps, config.project_lr, config.steps, config.lr) == (450, 0.01, 350, 3e-4)
    assert (config.jitter, config.noise_maps, config.locality) == (0.05, 1e5, 0.0)
    assert ramp(0.0) == 0 and ramp(0.025) == pytest.approx(0.5) and ramp(0.05) == ramp(0.75) == 1
    assert ramp(0.875) == pytest.approx(0.5) and ramp(1.0) == pytest.approx(0)


def test_self_similarity_is_the_formula():
    noise = torch.randn(32, 32, generator=torch.Generator().manual_seed(0)).double()
    expected, level = 0.0, noise.numpy()
    while True:
        for shift in ((0, 1), (1, 0)):
            moved = np.roll(level, shift, axis=(0, 1))
            expected += float((level * moved).mean() ** 2)
        if len(level) <= 8:
            break
        level = level.reshape(len(level) // 2, 2, -1, 2).mean((1, 3))
    assert float(self_similarity(noise)) == pytest.approx(expected, rel=1e-9)
    smooth = F.interpolate(noise[None, None, :8, :8], size=32, mode="bilinear")[0, 0]
    assert self_similarity(smooth / smooth.std()) > 20 * self_similarity(noise)


def test_a_pivot_is_one_w_that_comes_closer_and_the_generator_stays(generator, networks, pictures, pivots):
    before, steps = state(generator), []
    again = project(generator, networks.identity, pictures[:1], QUICK, lambda *done: steps.append(done))
    assert torch.equal(again, pivots[:1])  # the same arguments, the same pivot
    assert unchanged(generator, before) and steps == [(n, 12) for n in range(1, 13)]
    assert pivots.shape == (2, TINY.num_ws, 8) and torch.equal(pivots, pivots[:, :1].expand_as(pivots))
    mean = generator.w_avg.expand(1, TINY.num_ws, -1)
    for img, pivot in zip(pictures[:, None], pivots[:, None], strict=True):
        was, now = (difference(networks.identity, generator.synthesis(ws), img, QUICK) for ws in (mean, pivot))
        assert now < 0.8 * was, (was, now)
    with pytest.raises(UsageError, match="One picture"):
        project(generator, networks.identity, pictures, QUICK)


@pytest.fixture(scope="module")
def delta(generator, networks, pivots, pictures) -> GeneratorDelta:
    return tune_pair(generator, networks.identity, pivots, pictures, QUICK)


def test_both_pictures_come_closer_and_only_synthesis_moves(generator, networks, pivots, pictures, delta):
    before, steps = state(generator), []
    again = tune_pair(generator, networks.identity, pivots, pictures, QUICK, lambda *done: steps.append(done))
    assert unchanged(generator, before) and steps == [(n, 8) for n in range(1, 9)]
    assert all(torch.equal(value, again.changes[name]) for name, value in delta.changes.items())
    assert delta.changes.keys() == {name for name, _ in generator.named_parameters() if name.startswith("synthesis")}
    tuned = delta.apply(generator)
    for img, pivot in zip(pictures[:, None], pivots[:, None], strict=True):
        was, now = (difference(networks.identity, g.synthesis(pivot), img, QUICK) for g in (generator, tuned))
        assert now < 0.8 * was, (was, now)
    losses = delta.about["losses"]
    assert isinstance(losses, dict) and all(b < a for a, b in zip(losses["first"], losses["last"], strict=True))


def test_the_delta_is_a_file_that_fits_this_generator_alone(tmp_path, generator, delta):
    path = tmp_path / "delta.safetensors"
    delta.save(path)
    tuned, again = delta.apply(generator), GeneratorDelta.load(path, generator).apply(generator)
    assert fingerprint(tuned) == fingerprint(again) != fingerprint(generator)
    with pytest.raises(WeightsError, match="belongs to the generator"):
        GeneratorDelta.load(path, random_generator(TINY, 1))


def test_locality_holds_what_lies_around_the_pivots(generator, networks, pivots, pictures):
    z = torch.randn(1, 8, generator=torch.Generator().manual_seed(4))
    near = neighbour(generator, pivots[:1], 3.0, z)
    moved = []
    for weight in (0.0, 20.0):
        config = replace(QUICK, steps=8, lr=0.01, locality=weight, locality_distance=3.0)
        tuned = tune_pair(generator, networks.identity, pivots, pictures, config).apply(generator)
        apart = tuned.synthesis(near, noise="none") - generator.synthesis(near, noise="none")
        moved.append(float(apart.abs().mean()))
    assert moved[1] < 0.8 * moved[0], moved


def test_a_square_is_compared_where_the_picture_is_larger_than_a_chip(networks):
    """Fine detail in one corner, invisible at 150²: the squares that fall on it see it."""
    img = torch.zeros(1, 3, 512, 512)
    fine = img.clone()
    fine[:, :, :256, :256:2] = 0.5
    fine[:, :, :256, 1:256:2] = -0.5
    config = PtiConfig(pixel=0.0)
    seeds = [torch.Generator().manual_seed(k) for k in range(8)]
    draws = [float(difference(networks.identity, fine, img, config, random)) for random in seeds]
    assert min(draws) < 0.6 * max(draws)


def test_half_precision_is_left_behind(networks):
    generator = random_generator(replace(TINY, num_fp16_res=2)).half_precision()
    wide = full_precision(generator)
    blocks = list(wide.synthesis.blocks())
    assert not any(block.float16_on_gpu or block.bfloat16_everywhere for block in blocks)
    assert all(block.bfloat16_everywhere for block in generator.synthesis.blocks())
    with pytest.raises(UsageError, match=r"pictures \[1, 3, 32, 32\]"):
        tune_pair(generator, networks.identity, torch.zeros(1, 8, 8), torch.zeros(1, 3, 64, 64))
    for bad in ({"steps": 0}, {"lr": 0.0}, {"locality": -1.0}, {"locality_distance": 0.0}):
        with pytest.raises(UsageError):
            PtiConfig(**bad)  # pyright: ignore[reportArgumentType]


# The swap in such a generator.


@pytest.fixture(scope="module")
def crop():
    return cut_face(astronaut(), FaceAnalyser.load(offline=True)(astronaut())[0].mesh_K3, 1024)


def with_generator(networks: Networks, generator: StyleGAN2, *, encodes: bool) -> Networks:
    torch.manual_seed(2)
    mixer = LatentMixer(MixerConfig(num_ws=generator.num_ws, w_dim=generator.w_dim, hidden=(16, 16))).eval()
    return replace(networks, generator=generator, mixer=mixer.requires_grad_(False), encodes=encodes)


def render(generator: StyleGAN2):
    return lambda ws_BLD: to_pixels(generator.synthesis(ws_BLD))


def test_tune_is_the_papers_inference(networks, generator: StyleGAN2, crop, people):
    """Pivots of both in W, the generator tuned to the pair, the mixer's answer drawn by the tuned one: step by step."""
    nets = with_generator(networks, generator, encodes=False)
    method = LatentSwap(nets, render(generator), inversion="tune", pti_config=QUICK)
    other = replace(crop, pixels=to_pixels(F.interpolate(people[1][:1], size=1024))[0])
    steps: list[tuple[int, int]] = []
    prepared = method.prepare(other)
    swapped = method.swap(prepared, crop, on_step=lambda *done: steps.append(done))
    assert steps == [(n, 20) for n in range(1, 21)]  # the target's pivot, then two pictures

    images = [to_tensor(c.pixels, size=256) for c in (other, crop)]
    source, target = (project(generator, nets.identity, img, QUICK) for img in images)
    wanted = torch.cat([to_tensor(c.pixels, size=32) for c in (other, crop)])
    delta = tune_pair(generator, nets.identity, torch.cat([source, target]), wanted, QUICK)
    tuned = delta.apply(generator)
    assert torch.equal(prepared.w_plus, source)
    assert nets.mixer is not None
    assert np.array_equal(swapped, to_pixels(tuned.synthesis(nets.mixer(source, target)))[0])
    assert method.reconstruction(crop).shape == (256, 256, 3)
    kept = method.swap(prepared, crop, strength=0.0)
    assert np.array_equal(kept, to_pixels(tuned.synthesis(target))[0])


def test_without_a_code_for_it_a_generator_is_refused(networks, generator):
    nets = with_generator(networks, generator, encodes=False)
    for inversion in ("fast", "refine"):
        with pytest.raises(UsageError, match=r"encoder for it \(--encoder FILE\), or.* \(--inversion tune"):
            LatentSwap(nets, render(generator), inversion=inversion)


@pytest.fixture(scope="module")
def teacher(networks) -> StyleGAN2:
    """A StyleGAN2 at 1024² with four channels, and the mapping network of the shipped generator's teacher."""
    generator, mapping = random_generator(DEEP), networks.generator.mapping_network
    for i, layer in enumerate(mapping.layers):
        generator.mapping.get_parameter(f"fc{i}.weight").copy_(layer.weight * 512**0.5 / 0.01)
        generator.mapping.get_parameter(f"fc{i}.bias").copy_(layer.bias / 0.01)
    generator.mapping.w_avg.copy_(networks.generator.w_avg)
    return generator


def test_a_shared_w_space_is_known_by_its_mapping(networks, teacher):
    mobile = networks.generator
    assert shares_w_space(teacher, mobile) and shares_w_space(mobile, mobile)
    assert not shares_w_space(random_generator(DEEP), mobile)
    assert not shares_w_space(random_generator(TINY), mobile)


@pytest.fixture(scope="module")
def files(tmp_path_factory, teacher):
    folder = tmp_path_factory.mktemp("files")
    save_described(folder / "generator.safetensors", teacher, stylegan2.KIND)
    save_described(folder / "foreign.safetensors", random_generator(DEEP), stylegan2.KIND)
    torch.manual_seed(4)
    mixer = LatentMixer(MixerConfig(num_ws=18, hidden=(16, 16)))
    save_described(folder / "mixer.safetensors", mixer, "mixer")
    PIL.Image.fromarray(astronaut()).save(folder / "target.png")
    return folder


def test_networks_of_the_users_own(files, networks, crop):
    nets = load_networks(generator=files / "generator.safetensors", mixer=files / "mixer.safetensors", offline=True)
    assert isinstance(nets.generator, StyleGAN2) and isinstance(nets.shipped, MobileStyleGAN) and nets.encodes
    method = LatentSwap(nets, render(nets.generator), inversion="fast")
    ours = LatentSwap(networks, render(nets.generator), inversion="fast")
    code = method.encode(to_tensor(crop.pixels))
    assert torch.equal(code, rows_for(ours.encode(to_tensor(crop.pixels)), 18))
    prepared = method.prepare(crop)
    assert torch.equal(prepared.w_plus, code)  # the paper's mixer restores nothing
    swapped = method.swap(prepared, crop)
    assert nets.mixer is not None
    assert np.array_equal(swapped, to_pixels(nets.generator.synthesis(nets.mixer(code, code)))[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--generator generator", "The shipped mixer mixes codes of 16 rows × 512, and the generator's have 18 × 512"),
        ("--mixer mixer", "mixer.safetensors mixes codes of 18 rows × 512, and the generator's have 16 × 512"),
        ("--generator foreign --mixer mixer", "The shipped encoder's codes mean nothing to this generator"),
        ("--generator mixer --mixer mixer", "holds mixer, where a generator is needed"),
    ],
)
def test_swap_refuses_networks_that_do_not_fit(files, tmp_path, capsys, options, message):
    paths = [word if word.startswith("--") else str(files / f"{word}.safetensors") for word in options.split()]
    target, out = str(files / "target.png"), tmp_path / "out.png"
    assert (
        main(
            [
                "swap",
                target,
                target,
                "--consent",
                "public domain",
                "-o",
                str(out),
                "--inversion",
                "fast",
                "--offline",
                *paths,
            ]
        )
        != 0
    )
    assert message in capsys.readouterr().err and not out.exists()


@pytest.mark.slow
def test_swap_command_with_the_users_generator_and_mixer(files, tmp_path):
    paths = [f"--{name}={files / name}.safetensors" for name in ("generator", "mixer")]
    target, out = str(files / "target.png"), tmp_path / "out.png"
    assert (
        main(
            [
                "swap",
                target,
                target,
                "--consent",
                "public domain",
                "-o",
                str(out),
                "--inversion",
                "fast",
                "--offline",
                *paths,
            ]
        )
        == 0
    )
    changed = np.abs(np.asarray(PIL.Image.open(out)).astype(int) - astronaut()).max(2) > 0
    assert 0.01 < changed.mean() < 0.5


def test_without_a_mixer_nothing_is_swapped_and_all_else_works(files, crop):
    nets = load_networks(generator=files / "generator.safetensors", mixes=False, offline=True)
    assert nets.mixer is None and isinstance(nets.generator, StyleGAN2)
    method = LatentSwap(nets, render(nets.generator), inversion="fast")
    code = method.invert(crop)
    prepared = method.prepare(crop)
    assert torch.equal(prepared.w_plus, code)
    smile = [(shipped()["smile"], 2.0)]
    edited = method.edit(crop, smile)
    assert np.array_equal(edited, to_pixels(nets.generator.synthesis(apply_edits(code, smile)))[0])
    with pytest.raises(UsageError, match="without a mixer"):
        method.swap(prepared, crop)


def test_commands_with_the_users_generator(files, tmp_path):
    """sample → a code of the user's generator; invert, edit and anonymize with it."""
    own, photo = ["--generator", str(files / "generator.safetensors"), "--offline"], str(files / "target.png")
    fast = ["--inversion", "fast"]
    assert main(["sample", "-o", str(tmp_path / "people"), "--seeds", "3", "--codes", *own]) == 0
    code = tmp_path / "people" / "seed-0003.safetensors"
    assert Prepared.load(code, num_ws=18, w_dim=512).w_plus.shape == (1, 18, 512)
    assert main(["edit", str(code), "-o", str(tmp_path / "smile.png"), "--edit", "smile=2", *fast, *own]) == 0
    drawn, edited = (PIL.Image.open(path) for path in (tmp_path / "people" / "seed-0003.png", tmp_path / "smile.png"))
    assert drawn.size == edited.size == (1024, 1024) and drawn.tobytes() != edited.tobytes()
    assert main(["invert", photo, "-o", str(tmp_path / "me.safetensors"), *fast, *own]) == 0
    assert Prepared.load(tmp_path / "me.safetensors", num_ws=18, w_dim=512).crop is None
    mixer = ["--mixer", str(files / "mixer.safetensors")]
    # Random networks draw nothing that a likeness to the original could be found in.
    assert main(["anonymize", photo, "-o", str(tmp_path / "safe.png"), *fast, *own, *mixer]) == 0


def test_strangers_are_codes_of_the_shipped_w_space(networks, generator):
    nets = with_generator(networks, generator, encodes=False)
    swapper: Any = SimpleNamespace(networks=nets)
    with pytest.raises(UsageError, match="which this generator does not share"):
        Anonymizer(swapper)

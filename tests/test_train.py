"""The training loop: resumable, deterministic, stopped by the first bad number; and the trainees on real networks."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from _train_support import BANK

from latentswap.cli.main import main
from latentswap.errors import UsageError
from latentswap.inversion.encoder import FEATURES, EncoderConfig, FeatureEncoder
from latentswap.seeds import generator_for
from latentswap.swappers.mixer import LatentMixer, MixerConfig
from latentswap.train.augment import augment, jpeg
from latentswap.train.bank import Bank, build_bank, part_path, people
from latentswap.train.encoder import EncoderTrainee, EncoderTraining
from latentswap.train.loop import LoopConfig, NonFiniteLossError, learning_rate, train
from latentswap.train.mixer import MixerTrainee, MixerTraining
from latentswap.train.sample import BROADCAST, CodeConfig, sample_codes


class Regression:
    """A small trainee: find a linear map from its noisy answers."""

    name = "regression"

    def __init__(self, *, bad_step: int = -1) -> None:
        torch.manual_seed(0)
        self.net, self.bad_step = torch.nn.Linear(4, 2), bad_step

    def module(self) -> torch.nn.Module:
        return self.net

    def losses(self, step: int) -> dict[str, torch.Tensor]:
        x = torch.randn(16, 4, generator=generator_for(3, step))
        error = (self.net(x) - x[:, :2]).square().mean()
        return {"total": error * (float("nan") if step == self.bad_step else 1.0), "error": error}

    def describe(self) -> dict[str, object]:
        return {"width": 2}

    def sample_sheet(self) -> np.ndarray:
        return np.zeros((4, 4, 3), np.uint8)


def config(out, **changes) -> LoopConfig:
    return replace(
        LoopConfig(out=out, steps=40, lr=0.05, warmup=4, log_every=5, save_every=10, sample_every=20), **changes
    )


def test_it_learns_logs_and_shows_samples(tmp_path):
    seen = []
    assert train(Regression(), config(tmp_path), seen.append) == 40
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(5, 45, 5))
    assert rows[-1]["total"] < 0.2 * rows[0]["total"]
    assert [p.step for p in seen if p.sheet is not None] == [20, 40]


def test_resumed_is_uninterrupted(tmp_path):
    whole, halves = Regression(), Regression()
    train(whole, config(tmp_path / "a"))

    class Stop(Exception):
        pass

    def stop(progress):
        if progress.step == 20:
            raise Stop

    with pytest.raises(Stop):
        train(halves, config(tmp_path / "b"), stop)
    again = Regression()
    assert train(again, config(tmp_path / "b")) == 20
    for a, b in zip(whole.net.parameters(), again.net.parameters(), strict=True):
        assert torch.equal(a, b)
    assert train(Regression(), config(tmp_path / "b")) == 0  # nothing is left to do


def test_a_bad_number_stops_before_the_update(tmp_path):
    trainee = Regression(bad_step=25)
    with pytest.raises(NonFiniteLossError, match="Step 25: total is not finite"):
        train(trainee, config(tmp_path))
    assert all(torch.isfinite(p).all() for p in trainee.net.parameters())
    good = Regression()
    assert train(good, config(tmp_path)) == 20  # the last save, step 20, is intact


def test_another_configuration_is_not_continued(tmp_path):
    train(Regression(), config(tmp_path))
    other = Regression()
    other.describe = lambda: {"width": 3}
    with pytest.raises(UsageError, match="other settings \\(width\\)"):
        train(other, config(tmp_path, steps=80))


def test_learning_rate():
    c = LoopConfig(out=Path("x"), steps=100, lr=1.0e-2, warmup=10)
    rates = [learning_rate(step, c) for step in range(100)]
    assert rates[0] == pytest.approx(1e-3) and max(rates) == pytest.approx(1e-2)
    assert rates[-1] == pytest.approx(1e-3, rel=0.02)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    constant = LoopConfig(out=Path("x"), steps=100, lr=1.0e-2, lr_end=1.0, warmup=0)
    assert {learning_rate(step, constant) for step in range(100)} == {1.0e-2}


def test_random_numbers_are_a_function_of_position():
    draw = [torch.rand(3, generator=generator_for(1, 2, 3)) for _ in range(2)]
    assert torch.equal(*draw)
    others = [generator_for(1, 2, 4), generator_for(1, 3, 3), generator_for(2, 2, 3)]
    assert all(not torch.equal(draw[0], torch.rand(3, generator=g)) for g in others)


def test_codes_follow_their_configuration(networks):
    generator = networks.generator
    ws = sample_codes(generator, 8, generator_for(0, 0), BROADCAST)
    assert torch.equal(ws, ws[:, :1].expand_as(ws))
    spread = ((ws[:, 0] - generator.w_avg) / generator.w_std).square().mean().sqrt()
    assert 0.5 < spread < 0.9  # ψ 0.7
    mixed = sample_codes(generator, 64, generator_for(0, 1), CodeConfig(mixed=1.0, jitter=0.0))
    assert torch.equal(mixed[:, 0], mixed[:, 1])
    assert (mixed[:, 0] != mixed[:, 15]).any(-1).float().mean() > 0.9
    with pytest.raises(UsageError):
        CodeConfig(psi_min=0.9, psi_max=0.1)


def test_a_bank_is_a_function_of_seed_and_index(bank, networks):
    some = people(networks.generator, networks.identity, networks.mesh, BANK, range(8, 14))
    assert torch.equal(some.codes_NLD, bank.codes_NLD[8:14])
    assert torch.allclose(some.embedding_NE, bank.embedding_NE[8:14], atol=1e-4)
    assert torch.allclose(some.features_NVF.float(), bank.features_NVF[8:14].float(), atol=2e-2, rtol=2e-2)
    assert bank.features_NVF.shape == (20, 2, FEATURES) and bank.thumbnails_N3HW.shape == (20, 3, 64, 64)


def test_parts_that_are_there_stay_and_other_settings_are_refused(bank_folder, networks):
    before = part_path(bank_folder, 0).stat().st_mtime_ns
    build_bank(networks.generator, networks.identity, networks.mesh, bank_folder, BANK)
    assert part_path(bank_folder, 0).stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="other settings"):
        Bank.load(bank_folder, replace(BANK, seed=5))


def test_processes_share_the_parts(networks, tmp_path, monkeypatch):
    monkeypatch.setattr("latentswap.train.bank.PART", 8)
    for share in ((0, 2), (1, 2)):
        build_bank(networks.generator, networks.identity, networks.mesh, tmp_path, BANK, share=share)
    assert len(Bank.load(tmp_path, BANK)) == 20
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"people-000{k}.safetensors" for k in range(3)]


def test_augmentation_changes_the_picture_and_little_of_what_is_in_it(networks):
    person = networks.generator.w_avg.expand(1, 16, -1)
    with torch.no_grad():
        img_BCHW = networks.generator.synthesis(person, resolution=256).clamp(-1, 1)
    seen = [augment(img_BCHW, generator_for(0, k)) for k in range(12)]
    again = augment(img_BCHW, generator_for(0, 3))
    assert torch.equal(seen[3], again) and all(x.shape == img_BCHW.shape and x.abs().max() <= 1 for x in seen)
    change = torch.stack([(x - img_BCHW).abs().mean() for x in seen])
    assert change.min() > 0.01 and change.median() < 0.3


def test_jpeg_keeps_what_pillow_keeps(networks):
    """Against Pillow's encoder at the same quality, on a grey picture: its table for colour differs from ours."""
    with torch.no_grad():
        img = networks.generator.synthesis(networks.generator.w_avg.expand(1, 16, -1), resolution=256)[0].clamp(-1, 1)
    img = (img.mean(0, keepdim=True).expand(3, -1, -1) + 1).mul(127.5).round().div(127.5) - 1
    pixels = ((img + 1) * 127.5).round().byte().permute(1, 2, 0).contiguous().numpy()
    for quality in (25, 60, 90):
        file = io.BytesIO()
        PIL.Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=0)
        theirs = torch.from_numpy(np.array(PIL.Image.open(file))).permute(2, 0, 1).float() / 127.5 - 1
        ours = jpeg(img, quality)
        assert (ours - theirs).abs().mean() < 0.6 * (ours - img).abs().mean()


def test_the_encoder_learns_codes_and_pictures(networks, bank, tmp_path):
    training = EncoderTraining(encoder=EncoderConfig(width=64), batch=16, image=1, image_from=4, held_out=4)
    trainee = EncoderTrainee(networks.generator, networks.identity, networks.mesh, bank, training)
    assert set(trainee.losses(0)) == {"total", "code"}
    assert set(trainee.losses(4)) == {"total", "code", "identity", "shape", "keep", "picture"}
    before = float(np.mean([float(trainee.losses(k)["code"].detach()) for k in range(3)]))
    trainee.config = replace(training, image=0)
    train(trainee, LoopConfig(out=tmp_path, steps=60, lr=5e-5, warmup=1))
    after = float(np.mean([float(trainee.losses(k)["code"].detach()) for k in range(3)]))
    assert after < 0.8 * before
    trainee.encoder.save(tmp_path / "encoder.safetensors", summary={})
    again = FeatureEncoder.load(tmp_path / "encoder.safetensors")
    features = bank.features_NVF[:3, 0].float()
    assert torch.allclose(again(features), trainee.encoder.eval()(features), atol=2e-2)
    assert again.config.width == 64


def test_the_mixers_losses_fall_and_only_the_mixer_learns(networks, bank, tmp_path):
    mixer = MixerConfig(hidden=(32,), rows=11, identity_dim=128)
    training = MixerTraining(mixer=mixer, batch=2, jitter=0.0)
    trainee = MixerTrainee(networks.generator, networks.identity, networks.mesh, bank, training, networks.encoder)
    assert set(trainee.losses(0)) == {
        *("total", "identity", "latent", "colour", "away", "shape", "keep"),
        *("pixel", "detail", "features"),
    }
    trainee.losses = lambda step, real=trainee.losses: real(0)  # one batch over and over
    before = trainee.losses(0)
    train(trainee, LoopConfig(out=tmp_path, steps=8, lr=3e-3, warmup=1))
    after = trainee.losses(0)
    assert after["total"] < before["total"] and after["identity"] < before["identity"]
    assert not any(p.requires_grad for p in [*networks.generator.parameters(), *networks.encoder.parameters()])
    assert trainee.sample_sheet().shape == (1024, 2048, 3)


OURS = ("shape", "keep", "colour", "away", "detail", "features", "pixel")


def test_a_loss_of_weight_0_is_not_computed(networks, bank):
    training = MixerTraining(mixer=MixerConfig(hidden=(8,)), batch=1, **dict.fromkeys(OURS, 0))
    trainee = MixerTrainee(networks.generator, networks.identity, networks.mesh, bank, training)
    assert set(trainee.losses(0)) == {"total", "identity", "latent"}


def test_train_mixer_command_resumes(tmp_path, capsys):
    def command(steps: int) -> list[str]:
        options = f"--steps {steps} --batch 1 --people 16 --hidden 8 --sample-every 2 --offline"
        return ["train", "mixer", "-o", str(tmp_path), *options.split()]

    assert main(command(2)) == 0
    assert main(command(3)) == 0
    assert LatentMixer.load(tmp_path / "mixer.safetensors").config.hidden == (8,)
    assert (tmp_path / "samples" / "step-000002.png").exists()
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])["step"] == 3
    assert main(["train", "mixer", "-o", str(tmp_path), "--batch", "2", "--people", "16", "--hidden", "8"]) == 2
    assert "other settings (batch)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", ["--batch 0", "--people 2", "--lr 7", "--same 2", "--latent -1", "--hidden 0", "--seed -1"]
)
def test_train_mixer_refuses_before_loading(tmp_path, option):
    assert main(["train", "mixer", "-o", str(tmp_path / "run"), *option.split()]) == 2
    assert not (tmp_path / "run").exists()

"""SimSwap's own training: what a step compares, what learns from what, and that it learns."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from latentswap.cli.main import main
from latentswap.edit.directions import shipped
from latentswap.errors import UsageError
from latentswap.losses_simswap import PRESETS
from latentswap.seeds import generator_for
from latentswap.swappers.compact import CompactSwap, InnerDlib, inner
from latentswap.swappers.patchgan import PatchGANConfig, TwoScales
from latentswap.swappers.simswap import SimSwapConfig, SimSwapGenerator
from latentswap.train.adversarial import AdversarialTrainee, AdversarialTraining
from latentswap.train.identities import Identities, generated_identities
from latentswap.train.loop import LoopConfig, train

PAPER = replace(PRESETS["paper"], batch=2)


@pytest.fixture(scope="module")
def faces(networks) -> Identities:
    return generated_identities(networks.generator, shipped(), 4, 2, seed=2)


@pytest.fixture(scope="module")
def file(faces, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("identities") / "faces.safetensors"
    faces.save(path, alignment="ffhq")
    return path


def trainee(networks, faces, **changes) -> AdversarialTrainee:
    torch.manual_seed(0)
    config = SimSwapConfig(variant="legacy224", width=16, identity_dim=128, blocks=1)
    return AdversarialTrainee(
        SimSwapGenerator(config),
        SimSwapGenerator(config),
        TwoScales(PatchGANConfig(width=4)),
        InnerDlib(network=networks.identity, mean_E=networks.mean_E),
        faces,
        AdversarialTraining(**{"objective": PAPER, "batch": 2, **changes}),
        prepare=inner,
    )


def test_generated_people_have_several_pictures_and_keep_their_identity(networks, faces):
    assert len(faces) == 8 and faces.people == 4
    identity = InnerDlib(network=networks.identity, mean_E=networks.mean_E)
    with torch.no_grad():
        e_NE = identity.embed(inner(faces.picture_N3HW.float() / 127.5 - 1))
    cosine_NN = e_NE @ e_NE.T
    same_NN = faces.person_N[:, None] == faces.person_N
    same_NN.fill_diagonal_(False)
    different_NN = faces.person_N[:, None] != faces.person_N
    assert cosine_NN[same_NN].mean() > cosine_NN[different_NN].mean() + 0.3
    assert not torch.equal(faces.picture_N3HW[0], faces.picture_N3HW[1])


def test_the_second_picture_is_of_the_same_person(networks, faces):
    target_B, source_B = trainee(networks, faces).draw(generator_for(0, 0), 64)
    assert torch.equal(faces.person_N[target_B], faces.person_N[source_B])
    assert (target_B != source_B).any() and set(target_B.tolist()) == set(range(8))


def test_even_steps_reconstruct_and_odd_steps_do_not(networks, faces):
    learner = trainee(networks, faces)
    assert learner.losses(0)["reconstruction"] > 0 and learner.losses(1)["reconstruction"] == 0
    assert {"identity", "adversarial", "feature", "hinge", "penalty", "total"} <= set(learner.losses(0))


def test_each_network_learns_from_its_own_loss_alone(networks, faces):
    """The generator's gradient does not depend on the discriminator's loss, nor the other way round."""
    learner = trainee(networks, faces)
    terms = learner.losses(1)
    terms["total"].backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in learner.discriminator.parameters())
    together = [p.grad.clone() for p in learner.discriminator.parameters() if p.grad is not None]
    again = trainee(networks, faces)
    again.config = replace(again.config, objective=replace(PAPER, identity=0, feature=0, reconstruction=0))
    again.losses(1)["total"].backward()
    alone = [p.grad for p in again.discriminator.parameters() if p.grad is not None]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(together, alone, strict=True))


def test_a_batch_in_parts_has_the_same_gradient_where_nothing_is_normalised(networks, faces):
    def gradient(accumulate: int) -> torch.Tensor:
        learner = trainee(networks, faces, batch=4, accumulate=accumulate)
        for module in learner.networks.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        learner.losses(0)["total"].backward()
        return torch.cat([p.grad.flatten() for p in learner.generator.parameters() if p.grad is not None])

    whole, parts = gradient(1), gradient(2)
    assert (whole - parts).norm() < 0.05 * whole.norm()  # bfloat16 where the processor has it


def test_a_step_of_the_paper_at_224_and_the_losses_fall(networks, faces, tmp_path):
    learner = trainee(networks, faces)
    learner.losses = lambda step, real=learner.losses: real(2 if step < 100 else step)  # one batch over and over
    before = learner.losses(0)
    train(learner, LoopConfig(out=tmp_path, steps=12, lr=2e-3, warmup=0, betas=PAPER.betas, clip=1e9))
    after = learner.losses(0)
    assert after["reconstruction"] < before["reconstruction"] and after["hinge"] < before["hinge"]
    assert learner.sample_sheet().shape == (3 * 224, 8 * 224, 3)


@pytest.mark.parametrize("changes", [{"batch": 1}, {"accumulate": 3, "batch": 4}, {"ema": 1.0}])
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(UsageError):
        AdversarialTraining(**changes)


def test_the_command_trains_resumes_and_writes(file, tmp_path, capsys):
    def command(steps: int, *more: str) -> list[str]:
        sizes = "--network legacy224 --width 16 --discriminator-width 4 --batch 2 --sample-every 2 --offline"
        return ["train", "simswap-gan", str(file), "-o", str(tmp_path), "--steps", str(steps), *sizes.split(), *more]

    assert main(command(1)) == 0
    assert main(command(2)) == 0
    assert SimSwapGenerator.load(tmp_path / "simswap.safetensors").config.identity_dim == 128
    assert main(command(3, "--feature-from", "0")) == 2
    assert "other settings (objective)" in capsys.readouterr().err


def test_the_compact_network_goes_on_from_a_file(file, tmp_path):
    CompactSwap().save(tmp_path / "start.safetensors", summary={})
    options = f"--start {tmp_path / 'start.safetensors'} --discriminator-width 4 --batch 2 --steps 1 --offline"
    assert main(["train", "simswap-gan", str(file), "-o", str(tmp_path / "run"), *options.split()]) == 0
    assert CompactSwap.load(tmp_path / "run" / "simswap.safetensors").config == CompactSwap().config


@pytest.mark.parametrize("option", ["--batch 1", "--width 10 --network legacy224", "--feature-from 9", "--seed -1"])
def test_the_command_refuses_what_makes_no_run(file, tmp_path, option):
    command = ["train", "simswap-gan", str(file), "-o", str(tmp_path / "run"), "--steps", "1", "--offline"]
    assert main([*command, *option.split()]) == 2
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_not_there_is_refused(tmp_path):
    assert main(["train", "simswap-gan", str(tmp_path / "no"), "-o", str(tmp_path / "run")]) == 2

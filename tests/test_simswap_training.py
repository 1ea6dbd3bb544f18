"""SimSwap taught by LatentSwap: lessons, what disturbs them, and the trainee, on real networks."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from latentswap.cli.main import main
from latentswap.edit.directions import shipped
from latentswap.errors import UsageError
from latentswap.identity.dlib_resnet import centred, chip
from latentswap.seeds import generator_for
from latentswap.shape import topology as T
from latentswap.swappers.compact import CompactConfig, CompactSwap
from latentswap.train.loop import LoopConfig, train
from latentswap.train.simswap import SimSwapTrainee, SimSwapTraining, disturb, follow, to_floats
from latentswap.train.taught import Lessons, LessonsConfig, build_lessons, lessons, outline_mask, part_path

LESSONS = LessonsConfig(targets=14, sources=2, seed=3)
TRAINING = SimSwapTraining(network=CompactConfig(widths=(16, 24, 32), blocks=2, style=32), batch=4, held_out=8)


def frozen(networks):
    return networks.generator, networks.mixer, networks.mesh, shipped()


@pytest.fixture(scope="module")
def folder(networks, bank, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("lessons")
    build_lessons(*frozen(networks), bank, out, LESSONS)
    return out


@pytest.fixture(scope="module")
def made(folder) -> Lessons:
    return Lessons.load(folder, LESSONS)


def test_lessons_are_a_function_of_seed_and_index(networks, bank, made):
    some = lessons(*frozen(networks), bank, LESSONS, range(4, 6))
    for mine, its in zip(vars(some).values(), vars(made).values(), strict=True):
        assert (mine.float() - its[4:6].float()).abs().max() <= (1 if mine.dtype == torch.uint8 else 1e-4)


def test_the_source_is_somebody_else_and_the_swap_resembles_them(networks, bank, made):
    assert (made.source_person_TK != made.target_person_T[:, None]).all()
    mean_E = networks.mean_E
    with torch.no_grad():
        swapped_TE = centred(networks.identity(chip(to_floats(made.swap_TK3HW[:, 0]))), mean_E)
        target_TE = centred(networks.identity(chip(to_floats(made.target_T3HW))), mean_E)
    source_TE = centred(bank.embedding_NE[made.source_person_TK[:, 0]], mean_E)
    assert (swapped_TE * source_TE).sum(1).mean() > 0.5 > 0.3 > (swapped_TE * target_TE).sum(1).mean()


def test_around_the_faces_a_lesson_is_the_target_itself(made):
    corners = made.target_T3HW[:, None, :, :40, :40], made.swap_TK3HW[..., :40, :40]
    assert torch.equal(corners[0].expand_as(corners[1]), corners[1])


def test_the_mask_covers_both_outlines_and_no_corner(made):
    meshes = made.mesh_TP3[:2]
    mask_B1HW = outline_mask((meshes, meshes + torch.tensor([0.05, 0.0, 0.0])), 256)
    for mesh, mask in zip(meshes, mask_B1HW[:, 0], strict=True):
        x, y = (mesh[T.NOSE_TIP, :2] * 256).long().tolist()
        assert mask[y, x] == 1
    assert mask_B1HW[..., 0, 0].max() == 0 and mask_B1HW.min() >= 0 and mask_B1HW.max() <= 1


def test_parts_that_are_there_stay_and_other_settings_are_refused(networks, bank, folder):
    before = part_path(folder, 0).stat().st_mtime_ns
    build_lessons(*frozen(networks), bank, folder, LESSONS)
    assert part_path(folder, 0).stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="other settings"):
        Lessons.load(folder, replace(LESSONS, seed=4))


def test_both_pictures_of_a_pair_are_disturbed_alike():
    flat = torch.full((6, 3, 256, 256), 0.2)
    guide = torch.cat([flat, flat[:, :1]], 1)
    chosen = torch.tensor([True] * 5 + [False])
    first, second, third = disturb(flat, flat.clone(), guide, chosen, generator_for(0, 0))
    assert torch.equal(first, second) and torch.equal(third[5], guide[5])
    assert third.shape == guide.shape and not torch.equal(third[0, :3], first[0])  # its light is its own
    assert torch.equal(first[5], flat[5]) and all((first[k] - flat[k]).abs().mean() > 1e-3 for k in range(5))


def trainee(networks, bank, made, **changes) -> SimSwapTrainee:
    return SimSwapTrainee(
        networks.generator, networks.identity, networks.mesh, bank, made, replace(TRAINING, **changes)
    )


def test_the_losses_fall_and_the_average_follows(networks, bank, made, tmp_path):
    learner = trainee(networks, bank, made, keep=0.1)
    assert set(learner.losses(0)) == {"total", "pixel", "features", "identity", "away", "keep"}
    learner.losses = lambda step, real=learner.losses: real(0) if step < 100 else real(step)  # one batch, over and over
    before = learner.losses(0)
    train(learner, LoopConfig(out=tmp_path, steps=25, lr=3e-3, warmup=1))
    after = learner.losses(0)
    assert after["total"] < 0.9 * before["total"] and after["features"] < before["features"]
    assert not any(p.requires_grad for p in learner.average.parameters())
    assert learner.sample_sheet().shape == (4 * 224, 8 * 224, 3)
    assert set(learner.held_out()) == {"to_source", "to_target", "teacher", "pixel"}


def test_the_average_is_the_formula():
    average, network = torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    network.load_state_dict(
        {**network.state_dict(), "weight": torch.full((3,), 2.0), "num_batches_tracked": torch.tensor(7)}
    )
    follow(average, network, 0.9)
    assert torch.allclose(average.weight, torch.full((3,), 1.1)) and average.num_batches_tracked == 7


def test_one_person_on_both_sides_has_the_target_as_the_answer(networks, bank, made):
    pairs = trainee(networks, bank, made, same=1.0, augment=0.0).pairs(torch.arange(4), generator_for(0, 0))
    assert pairs.same_B.all() and torch.equal(pairs.target_BCHW, pairs.wanted_BCHW)
    assert torch.equal(pairs.wanted_BE, pairs.other_BE)


@pytest.mark.parametrize("changes", [{"batch": 1}, {"same": 2}, {"pixel": -1}, {"ema": 1.0}, {"held_out": 0}])
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(UsageError):
        SimSwapTraining(**changes)


def test_too_few_targets_are_refused(networks, bank, made):
    with pytest.raises(UsageError, match="too few"):
        trainee(networks, bank, made, held_out=14)


def test_the_command_resumes_and_writes_the_network(bank_folder, folder, tmp_path, capsys):
    def command(steps: int, *more: str) -> list[str]:
        sizes = "--targets 14 --sources 2 --people 20 --batch 2 --widths 16 24 32 --blocks 1 --sample-every 2 --offline"
        return ["train", "simswap", "-o", str(tmp_path), "--steps", str(steps), *sizes.split(), *more]

    # The folders' settings are other than the command's seed: they are made anew, small.
    assert main(command(1, "--held-out", "8")) == 0
    assert main(command(2, "--held-out", "8")) == 0
    assert CompactSwap.load(tmp_path / "simswap.safetensors").config.blocks == 1
    assert (tmp_path / "samples" / "step-000002.png").exists()
    assert main(command(2, "--held-out", "8", "--pixel", "1")) == 2
    assert "other settings (pixel)" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--batch 1", "--targets 0", "--widths 1 2 3", "--lr 7", "--seed -1"])
def test_the_command_refuses_before_loading(tmp_path, option):
    assert main(["train", "simswap", "-o", str(tmp_path / "run"), *option.split()]) == 2
    assert not (tmp_path / "run").exists()


def test_bytes_and_floats():
    assert np.allclose(to_floats(torch.tensor([0, 255], dtype=torch.uint8)), [-1, 1])

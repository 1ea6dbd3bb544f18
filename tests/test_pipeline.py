"""The main path on real networks: files in, files out."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from _face_support import astronaut

from latentswap import Swapper
from latentswap.cli.main import main
from latentswap.errors import NoFaceError, UsageError, WeightsError
from latentswap.face.align import cut_face
from latentswap.inversion.optimise import InvertConfig, RefineConfig, embed
from latentswap.inversion.tune import TuneConfig
from latentswap.losses import pooled_pixel_loss
from latentswap.media.image import decode
from latentswap.pipeline import person
from latentswap.provenance.mark import read_mark
from latentswap.shape.measures import head_pose
from latentswap.swappers.latentswap import LatentSwap, to_tensor


@pytest.fixture(scope="module")
def source(swapper):
    return swapper.sample([8])[0]


@pytest.fixture(scope="module")
def swapped(swapper, source):
    return swapper.swap(source, astronaut())


def test_a_swap_changes_the_face_and_nothing_else(swapped):
    before, after = astronaut().astype(int), swapped.image.pixels.astype(int)
    (face,) = swapped.faces
    x0, y0, x1, y1 = (round(v) for v in face.box)
    changed = np.abs(after - before).max(2)
    assert changed[y0 + 40 : y1 - 40, x0 + 30 : x1 - 30].mean() > 5
    margin = 40
    changed[max(0, y0 - margin) : y1 + margin, max(0, x0 - margin) : x1 + margin] = 0
    assert changed.max() == 0


def test_a_swap_keeps_the_pose(swapper, swapped):
    (before,) = swapped.faces
    (after,) = swapper.analyser(swapped.image.pixels)
    pose = [head_pose(torch.from_numpy(f.mesh_K3)[None])[0] for f in (before, after)]
    assert (pose[0] - pose[1]).abs().max() < 8


def test_the_same_swap_twice_is_the_same_picture(swapper, source, swapped):
    again = swapper.swap(source, astronaut())
    assert np.array_equal(again.image.pixels, swapped.image.pixels)


def test_without_strength_only_the_inversion_is_pasted(swapper, source, swapped):
    nothing = swapper.swap(source, astronaut(), strength=0.0)
    full, none = (r.report["faces"][0]["cosine_to_original"] for r in (swapped, nothing))
    assert none > full + 0.1


def test_rows_can_be_chosen(swapper, source, swapped):
    fine = swapper.swap(source, astronaut(), layers=(12, 13, 14, 15))
    whole = np.abs(swapped.image.pixels.astype(int) - astronaut()).mean()
    assert not np.array_equal(fine.image.pixels, swapped.image.pixels)
    assert fine.report["faces"][0]["cosine_to_original"] > swapped.report["faces"][0]["cosine_to_original"], whole


def test_all_faces_and_one_face(swapper, source):
    pair = np.concatenate([astronaut(), astronaut()[:, ::-1]], 1)
    both = swapper.swap(source, pair)
    one = swapper.swap(source, pair, faces="1")
    assert len(both.faces) == 2 and len(one.faces) == 1 and len(one.skipped) == 1
    halves = [np.array_equal(one.image.pixels[:, half], pair[:, half]) for half in (slice(512), slice(512, None))]
    assert sorted(halves) == [False, True]
    with pytest.raises(NoFaceError, match="2 faces"):
        swapper.prepare(pair)


def test_the_face_that_matches_a_reference(swapper, source, tmp_path):
    stranger = np.asarray(PIL.Image.fromarray(swapper.sample([77])[0].pixels).resize((512, 512)))
    PIL.Image.fromarray(astronaut()).resize((400, 400)).save(tmp_path / "her.jpg")
    result = swapper.swap(source, np.concatenate([stranger, astronaut()], 1), faces=f"match:{tmp_path / 'her.jpg'}")
    assert len(result.faces) == 1 and result.faces[0].box[0] > 512


def test_turned_photographs_give_turned_swaps(swapper, source, swapped, tmp_path):
    """EXIF orientation: the swap of a turned file is the upright swap."""
    turned = PIL.Image.fromarray(np.rot90(astronaut()).copy())
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    result = swapper.swap(source, tmp_path / "turned.png")
    assert np.array_equal(result.image.pixels, swapped.image.pixels)


def test_alpha_is_carried_through(swapper, source, tmp_path):
    alpha = np.full((512, 512, 1), 255, np.uint8)
    alpha[-60:] = 0
    PIL.Image.fromarray(np.concatenate([astronaut(), alpha], 2)).save(tmp_path / "in.png")
    swapper.write(swapper.swap(source, tmp_path / "in.png"), tmp_path / "out.png")
    out = np.asarray(PIL.Image.open(tmp_path / "out.png"))
    assert out.shape == (512, 512, 4) and np.array_equal(out[..., 3:], alpha)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_outputs_are_marked(swapper, swapped, source, tmp_path, suffix):
    swapper.write(swapped, tmp_path / f"swap{suffix}")
    swapper.write(source, tmp_path / f"person{suffix}")
    marks = [read_mark((tmp_path / f"{name}{suffix}").read_bytes()) for name in ("swap", "person")]
    kinds = [mark and mark["digital_source_type"] for mark in marks]
    assert kinds == ["compositeWithTrainedAlgorithmicMedia", "trainedAlgorithmicMedia"]


def test_anonymize_is_repeatable_and_gives_a_stranger(swapper):
    first, again, other = (swapper.anonymize(astronaut(), seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first.image.pixels, again.image.pixels)
    assert not np.array_equal(first.image.pixels, other.image.pixels)
    assert first.report["faces"][0]["cosine_to_original"] < 0.5


def test_refinement_moves_identity_to_the_source(networks, swapper, source):
    """Ten steps on the pair keep the identity and come closer to the target's light than the mixer's answer."""
    from latentswap.inversion.optimise import RefineConfig

    crop = cut_face(astronaut(), swapper.analyser(astronaut())[0].mesh_K3, 1024)
    prepared = swapper.prepare(source)
    refining = LatentSwap(
        networks,
        swapper.method.render,
        inversion="refine",
        pair_config=InvertConfig(steps=4),
        refine_config=RefineConfig(steps=10),
    )
    steps = []
    results = [
        method.swap(prepared, crop, on_step=lambda *done: steps.append(done)) for method in (swapper.method, refining)
    ]
    assert steps == [(i, 14) for i in range(1, 15)]
    wanted = to_tensor(crop.pixels)
    embeddings = [embed(networks.identity, to_tensor(r), networks.mean_E) for r in results]
    fast, refined = (float((x * prepared.embedding).sum()) for x in embeddings)
    far, near = (float(pooled_pixel_loss(to_tensor(r), wanted)) for r in results)
    assert refined > max(0.6, fast - 0.1) and near < far


def test_inversion_by_optimisation_comes_closer_and_stays_near_w(networks, people):
    from latentswap.inversion.encoder import trunk_features
    from latentswap.inversion.optimise import invert

    _, pictures = people
    picture = pictures[:1]
    with torch.no_grad():
        start = networks.encoder(trunk_features(networks.identity, networks.mesh, picture))
    config = InvertConfig(steps=12)
    code = invert(networks.generator, networks.identity, networks.mesh, picture, start, networks.mean_E, config)
    with torch.no_grad():
        errors = [(networks.generator.synthesis(w, resolution=256) - picture).abs().mean() for w in (start, code)]
    assert errors[1] < 0.9 * errors[0]
    wander = ((code - code.mean(1, keepdim=True)) / networks.generator.w_std).square().mean().sqrt()
    assert wander < 0.6


def test_the_encoder_reads_people_it_has_not_seen(networks, people):
    from latentswap.inversion.encoder import trunk_features

    codes, pictures = people
    with torch.no_grad():
        got = networks.encoder(trunk_features(networks.identity, networks.mesh, pictures))
    std = networks.generator.w_std
    error = ((got - codes) / std).square().mean()
    assert error < 0.75 * ((networks.generator.w_avg - codes) / std).square().mean()


def test_python_interface_refuses_what_it_cannot_use(swapper, source):
    with pytest.raises(UsageError, match="Strength is 2"):
        swapper.swap(source, astronaut(), strength=2)
    with pytest.raises(ValueError, match="uint8"):
        swapper.swap(source, astronaut().astype(np.float32) / 255)
    with pytest.raises(UsageError, match="method is 'magic'"):
        Swapper.from_pretrained(method="magic")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match="not available here"):
        Swapper.from_pretrained(device="quantum")
    with pytest.raises(UsageError, match="truncation_psi is 9"):
        swapper.sample([1], truncation_psi=9)


def test_a_code_file_must_be_one(swapper, tmp_path):
    swapper.method.prepare_code(person(swapper.networks, seed=1)).save(tmp_path / "code.safetensors")
    assert swapper.prepare(tmp_path / "code.safetensors").synthetic
    from latentswap.weights.load import save_tensors

    save_tensors(tmp_path / "other.safetensors", {"w_plus": torch.zeros(1, 18, 512)}, {"kind": "latent"})
    with pytest.raises(WeightsError):
        swapper.prepare(tmp_path / "other.safetensors")


def test_the_commands_work_together(tmp_path, capsys):
    """sample → invert → swap with the code → anonymize, as the README has it, in one folder."""
    people, photo = tmp_path / "people", tmp_path / "photo.jpg"
    PIL.Image.fromarray(astronaut()).save(photo, quality=95)
    fast = ["--inversion", "fast", "--offline"]
    assert main(["sample", "-o", str(people), "--seeds", "0-1", "--codes", "--offline"]) == 0
    names = sorted(path.name for path in people.iterdir())
    assert names == [f"seed-000{i}.{suffix}" for i in (0, 1) for suffix in ("png", "safetensors")]
    code, view = tmp_path / "me.safetensors", tmp_path / "me.png"
    assert main(["invert", str(people / "seed-0000.png"), "-o", str(code), "--preview", str(view), *fast]) == 0
    assert decode(view).pixels.shape == (1024, 1024, 3)
    capsys.readouterr()
    assert main(["swap", str(code), str(photo), "-o", str(tmp_path / "a.png"), "--json", *fast]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["output"].endswith("a.png") and len(report["faces"]) == 1
    assert main(["anonymize", str(photo), "-o", str(tmp_path / "b.jpg"), "--seed", "3", *fast]) == 0
    assert decode(tmp_path / "b.jpg").pixels.shape == astronaut().shape


@pytest.mark.slow
def test_the_default_command_refines(tmp_path):
    """The product as it is used: `latentswap swap` with its defaults on a real photograph, within its limits."""
    import resource
    import subprocess
    import sys
    import time

    photo, out = tmp_path / "photo.png", tmp_path / "out.png"
    PIL.Image.fromarray(astronaut()).save(photo)
    assert main(["sample", "-o", str(tmp_path), "--seeds", "8", "--offline"]) == 0
    command = Path(sys.executable).with_name("latentswap")
    began = time.perf_counter()
    subprocess.run([command, "swap", tmp_path / "seed-0008.png", photo, "-o", out], check=True)
    assert time.perf_counter() - began < 90  # 45 s on an idle machine
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 3 << 20  # kilobytes
    assert decode(out).pixels.shape == (512, 512, 3)


def test_several_photographs_of_one_person_are_one_source(swapper, source, tmp_path):
    """Their mean is a source; a stranger among them is named."""
    folder = tmp_path / "person"
    folder.mkdir()
    swapper.write(source, folder / "a.png")
    swapper.write(replace(source, pixels=np.ascontiguousarray(source.pixels[:, ::-1])), folder / "b.png")
    one, both = swapper.prepare(source), swapper.prepare(folder)
    assert both.embedding.norm() == pytest.approx(1, abs=1e-4)
    assert float((one.embedding * both.embedding).sum()) > 0.9
    with pytest.raises(UsageError, match="does not seem to show the person"):
        swapper.prepare([source, source, astronaut()])


def test_a_mixed_code_restores_what_the_encoder_lost(swapper, networks):
    """`fast` inversion of a photograph: the mixer, given the person twice, brings the identity closer."""
    crop = cut_face(astronaut(), swapper.analyser(astronaut())[0].mesh_K3, 1024)
    person = swapper.method.prepare(crop).embedding
    img_BCHW = to_tensor(crop.pixels)
    with torch.no_grad():
        plain, restored = (
            networks.generator.synthesis(ws, resolution=256)
            for ws in (swapper.method.encode(img_BCHW), swapper.method.invert(crop))
        )
    before, after = (float((embed(networks.identity, x, networks.mean_E) * person).sum()) for x in (plain, restored))
    assert after > before + 0.05


@pytest.mark.parametrize(("joint", "total"), [(False, 3), (True, 5)])
def test_tuning_counts_its_steps_and_may_take_the_source_along(swapper, networks, joint, total):
    """One step of inversion and one of tuning for each picture, one of refinement."""
    quickly = {"invert_config": InvertConfig(steps=1), "refine_config": RefineConfig(steps=1)}
    method = LatentSwap(
        networks, swapper.method.render, inversion="tune", joint=joint, tune_config=TuneConfig(steps=1), **quickly
    )
    crop = cut_face(astronaut(), swapper.analyser(astronaut())[0].mesh_K3, 1024)
    seen = []
    result = method.swap(swapper.method.prepare(crop), crop, on_step=lambda *at: seen.append(at))
    assert seen == [(done, total) for done in range(1, total + 1)]
    assert result.shape == (1024, 1024, 3) and result.std() > 10


def test_joint_tuning_needs_tuning(tmp_path, capsys):
    photo, out = tmp_path / "a.png", tmp_path / "c.png"
    PIL.Image.fromarray(astronaut()).save(photo)
    assert main(["swap", str(photo), str(photo), "-o", str(out), "--joint", "--consent", "public domain"]) == 2
    assert "Only `tune`" in capsys.readouterr().err

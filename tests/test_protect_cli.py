"""`latentswap protect`, and swaps that a list refuses: source, target, folder, code; whatever the options say."""

import json
import os
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from _face_support import astronaut

from latentswap.cli.main import main
from latentswap.errors import ProtectedPersonError
from latentswap.pipeline import Swapper
from latentswap.provenance import enforce
from latentswap.provenance.enforce import enforced, own_list
from latentswap.provenance.protect import ProtectList
from latentswap.provenance.recognise import Recogniser

CONSENT = ["--consent", "public domain"]
FAST = ["--inversion", "fast", "--offline"]


@pytest.fixture(scope="module")
def recogniser() -> Recogniser:
    return Recogniser.load(offline=True)


@pytest.fixture(autouse=True)
def load_once(monkeypatch, swapper, recogniser):
    """The commands' own objects, built once."""
    monkeypatch.setattr(Swapper, "from_pretrained", classmethod(lambda cls, **_: swapper))
    monkeypatch.setattr(Recogniser, "load", classmethod(lambda cls, **_: recogniser))


@pytest.fixture(scope="module")
def files(tmp_path_factory, swapper) -> Path:
    """her.png, her again in other light and mirrored, people who do not exist, two faces, no face, no picture."""
    folder = tmp_path_factory.mktemp("files")
    her = PIL.Image.fromarray(astronaut())
    her.save(folder / "her.png")
    dim = PIL.Image.fromarray((astronaut()[40:, ::-1] * [0.7, 0.6, 0.5]).astype(np.uint8))
    dim.resize((400, 369)).save(folder / "her-again.jpg", quality=60)
    for seed in (8, 15):
        person = PIL.Image.fromarray(swapper.sample([seed])[0].pixels).resize((512, 512))
        person.save(folder / f"person-{seed}.png")
    pair = PIL.Image.new("RGB", (1024, 512))
    pair.paste(PIL.Image.open(folder / "person-8.png"), (0, 0))
    pair.paste(her, (512, 0))
    pair.save(folder / "pair.png")
    PIL.Image.new("RGB", (200, 200), (90, 120, 60)).save(folder / "lawn.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    return folder


def run(files: Path, line: str, *more: str) -> int:
    """A command line in which words that name a file of `files` stand for its path."""
    words = [str(files / word) if (files / word).is_file() else word for word in line.split()]
    return main([*words, *more])


@pytest.fixture
def listed(files, capsys) -> None:
    assert run(files, "protect add her.png --offline --name", "Eileen Collins") == 0
    assert "Eileen Collins is protected (1 embedding," in capsys.readouterr().out


# The list


def test_add_check_list_remove(files, listed, capsys):
    assert own_list().stat().st_mode & 0o777 == 0o600
    assert run(files, "protect check her-again.jpg --offline --json") == 9
    (found,) = json.loads(capsys.readouterr().out)
    assert found["protected"] and found["name"] == "Eileen Collins" and 0 < found["distance"] < found["threshold"]
    assert run(files, "protect check person-8.png --offline") == 0
    assert "not protected; closest is Eileen Collins" in capsys.readouterr().out
    assert run(files, "protect check pair.png --offline --json") == 9
    assert sorted(face["protected"] for face in json.loads(capsys.readouterr().out)) == [False, True]

    assert run(files, "protect add her-again.jpg --offline --name", "Eileen Collins", "--json") == 0
    assert json.loads(capsys.readouterr().out)["embeddings"] == 2
    assert run(files, "protect add person-8.png --offline --name", "Eileen Collins") == 0
    assert "does not look like the other pictures of Eileen Collins" in capsys.readouterr().err
    assert run(files, "protect list --json") == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert [(one["name"], one["embeddings"]) for one in entry["people"]] == [("Eileen Collins", 3)]
    assert run(files, "protect list") == 0 and "not signed" in capsys.readouterr().out
    assert run(files, "protect remove", entry["people"][0]["id"]) == 0
    assert len(ProtectList.load(own_list())) == 0 and enforced() == ()
    assert run(files, "protect check her.png --offline") == 0


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("add lawn.png", 4, "no face in the PHOTO image lawn.png"),
        ("add pair.png", 4, "2 faces in the PHOTO image pair.png"),
        ("add pair.png --face 7", 4, "no face 7"),
        ("add pair.png --face all", 2, "--face is 'all'"),
        ("add broken.jpg", 3, "PHOTO image broken.jpg"),
        ("add absent.jpg", 3, "PHOTO image absent.jpg does not exist"),
        ("add her.png --list her.png", 2, "names a .safetensors file"),
        ("add her.png --list /no/such/list.safetensors", 2, "does not exist"),
    ],
)
def test_photos_that_cannot_be_listed(files, capsys, line, code, words):
    assert run(files, f"protect {line} --offline --name", "Her") == code
    assert words in capsys.readouterr().err and not own_list().exists()


def test_a_face_is_chosen_among_several(files, capsys):
    assert run(files, "protect add pair.png --face 1 --offline --name", "One of them") == 0
    codes = [run(files, f"protect check {name}.png --offline") for name in ("her", "person-8")]
    assert sorted(codes) == [0, 9]


def test_faults_of_the_other_commands(files, listed, tmp_path, capsys):
    for line, code, words in (
        ("protect check lawn.png --offline", 4, "no face in"),
        ("protect check broken.jpg --offline", 3, "broken.jpg"),
        ("protect remove Nobody", 2, "nobody in"),
        ("protect export out.png", 2, ".safetensors file"),
        ("protect export out.safetensors --threshold 1.5", 2, "--threshold is 1.5"),
        ("protect import her.png", 2, "one of --key KEY"),
        ("protect import her.png --unsigned", 5, "safetensors"),
        ("protect verify absent.safetensors", 2, "there is no do-not-swap list"),
    ):
        assert run(files, line) == code, line
        assert words in capsys.readouterr().err, line


# Sharing


def test_export_verify_import(files, listed, tmp_path, capsys, monkeypatch):
    shared = tmp_path / "shared.safetensors"
    assert main(["protect", "key"]) == 0
    key = capsys.readouterr().out.strip()
    assert main(["protect", "export", str(shared), "--hide-names", "--threshold", "0.5"]) == 0
    assert f"signed by {key}" in capsys.readouterr().out
    assert b"Eileen" not in shared.read_bytes()
    assert main(["protect", "verify", str(shared), "--key", key, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["trusted"]
    assert main(["protect", "verify", str(shared), "--key", "0" * 64]) == 7

    monkeypatch.setenv("LATENTSWAP_DATA", str(tmp_path / "somebody else"))
    assert main(["protect", "import", str(shared), "--key", "0" * 64]) == 7 and enforced() == ()
    assert main(["protect", "import", str(shared), "--key", key]) == 0
    assert enforced()[0].threshold == 0.5 and enforced()[0].people == ("",)
    assert run(files, "protect check her.png --offline") == 9
    assert main(["protect", "key"]) == 0  # another person, another key
    assert main(["protect", "import", str(shared), "--key", key]) == 0  # an update by the same signer
    unsigned = tmp_path / "sub" / "shared.safetensors"
    unsigned.parent.mkdir()
    ProtectList.load(shared).nameless().save(unsigned)
    assert main(["protect", "import", str(unsigned), "--unsigned"]) == 2
    assert "not signed by the same key" in capsys.readouterr().err

    data = bytearray(shared.read_bytes())
    data[-20] ^= 1
    shared.write_bytes(data)
    assert main(["protect", "verify", str(shared)]) in (5, 7)
    assert main(["protect", "import", str(shared), "--key", key]) in (5, 7)


# Enforcement


def swap(source: Path, target: Path, out: Path, *options: str) -> int:
    return main(["swap", str(source), str(target), "-o", str(out), *CONSENT, *FAST, *options])


@pytest.mark.parametrize("roles", [("her-again.jpg", "person-8.png"), ("person-8.png", "her-again.jpg")])
def test_a_swap_with_a_protected_person_is_refused_with_the_distance(files, listed, tmp_path, capsys, roles):
    source, target = (files / name for name in roles)
    out = tmp_path / "out.png"
    assert swap(source, target, out) == 9 and not out.exists()
    message = capsys.readouterr().err
    role = "SOURCE" if source.name.startswith("her") else "TARGET"
    assert f"in the {role} image her-again.jpg is that of Eileen Collins" in message
    assert "(distance 0." in message and "latentswap anonymize" in message
    assert swap(source, target, out, "--json") == 9
    assert json.loads(capsys.readouterr().out)["error"]["type"] == "ProtectedPersonError"


def test_only_the_chosen_faces_count(files, listed, tmp_path, capsys, swapper):
    found = swapper.analyser(np.asarray(PIL.Image.open(files / "pair.png")))
    other = next(n for n, face in enumerate(found) if face.box[0] < 512)
    assert swap(files / "person-15.png", files / "pair.png", tmp_path / "a.png") == 9
    assert swap(files / "person-15.png", files / "pair.png", tmp_path / "b.png", "--faces", str(other)) == 0
    assert swap(files / "person-15.png", files / "pair.png", tmp_path / "c.png", "--faces", str(1 - other)) == 9


def test_a_folder_goes_on_and_leaves_out_who_is_protected(files, listed, tmp_path, capsys):
    targets, out = tmp_path / "targets", tmp_path / "out"
    targets.mkdir()
    for name in ("person-8.png", "her-again.jpg", "pair.png"):
        (targets / name).write_bytes((files / name).read_bytes())
    assert swap(files / "person-15.png", targets, out) == 9
    assert sorted(path.name for path in out.iterdir()) == ["person-8.png"]
    assert capsys.readouterr().err.count("Eileen Collins") == 2


def test_a_folder_as_source_and_a_code_as_source(files, tmp_path, capsys, swapper):
    code = tmp_path / "code.safetensors"
    swapper.invert(files / "her.png").prepared.save(code)  # before she was listed
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("her.png", "her-again.jpg"):
        (folder / name).write_bytes((files / name).read_bytes())
    prepared = swapper.prepare(files / "her.png")
    assert run(files, "protect add her.png --offline --name Her") == 0
    for source in (code, folder):
        assert swap(source, files / "person-8.png", tmp_path / "out.png") == 9
        assert "SOURCE" in capsys.readouterr().err
    with pytest.raises(ProtectedPersonError):
        swapper.swap(prepared, files / "person-8.png")  # prepared earlier
    assert not (tmp_path / "out.png").exists()


@pytest.mark.attack
def test_a_code_whose_embedding_was_replaced_is_still_recognised_by_what_it_draws(files, tmp_path, swapper):
    """A person of the generator, whom their own code draws exactly; the embedding in the file is another's."""
    from dataclasses import replace

    from latentswap.pipeline import person

    mine = swapper.method.prepare_code(person(swapper.networks, seed=8))
    other = swapper.method.prepare_code(person(swapper.networks, seed=15))
    replace(mine, embedding=other.embedding).save(tmp_path / "code.safetensors")
    assert run(files, "protect add person-8.png --offline --name", "Eight") == 0
    assert swap(tmp_path / "code.safetensors", files / "her.png", tmp_path / "out.png") == 9


def test_the_other_commands_refuse_too_and_anonymize_helps(files, listed, tmp_path, capsys):
    her = str(files / "her.png")
    assert main(["invert", her, "-o", str(tmp_path / "her.safetensors"), *FAST]) == 9
    assert main(["edit", her, "-o", str(tmp_path / "smile.png"), "--edit", "smile=1", *FAST]) == 9
    (tmp_path / "pairs.csv").write_text(f"source,target\n{her},{files / 'person-8.png'}\n".replace(str(files), "."))
    for name in ("her.png", "person-8.png"):
        (tmp_path / name).write_bytes((files / name).read_bytes())
    evaluated = main(["evaluate", "pairs", "--folder", str(tmp_path), "-o", str(tmp_path / "e"), *CONSENT, *FAST])
    assert evaluated == 9
    assert not list((tmp_path / "e" / "results").glob("*.png"))
    assert main(["anonymize", her, "-o", str(tmp_path / "safe.png"), "--seed", "3", *FAST]) == 0
    assert sorted(path.suffix for path in tmp_path.iterdir() if path.name.startswith(("her", "smile", "safe"))) == [
        ".png",
        ".png",
    ]


@pytest.mark.parametrize("how", ["environment", "system"])
def test_an_operators_list_cannot_be_switched_off(files, tmp_path, monkeypatch, capsys, how):
    """No option takes it away; nor do another data folder, an empty variable (the system's), or removing the file."""
    path = tmp_path / "operator.safetensors"
    assert run(files, f"protect add her.png --offline --list {path} --name", "Eileen Collins") == 0
    config = tmp_path / "protect.toml"
    if how == "environment":
        monkeypatch.setenv("LATENTSWAP_PROTECT", str(path))
    else:
        monkeypatch.setattr(enforce, "SYSTEM", config)
        config.write_text(f"[[list]]\npath = {json.dumps(str(path))}\n")
        monkeypatch.setenv("LATENTSWAP_PROTECT", "")
    monkeypatch.setenv("LATENTSWAP_DATA", str(tmp_path / "mine"))
    out = tmp_path / "out.png"
    options = [
        ["--strength", "0"],
        ["--layers", "12-15"],
        ["--faces", "largest"],
        ["--no-occluders"],
        ["--edit", "smile=1", "--edit-when", "before"],
        ["--consent", "she agreed"],
    ]
    for more in options:
        assert swap(files / "person-8.png", files / "her.png", out, *more) == 9, more
    assert swap(files / "her.png", files / "person-8.png", out, "--source-face", "largest") == 9
    assert run(files, "protect remove", "Eileen Collins") == 2  # the user's own list is another
    assert main(["swap", "a", "b", "-o", str(out), "--no-protect"]) == 2  # there is no such option
    path.write_bytes(path.read_bytes()[:-8])
    assert swap(files / "person-8.png", files / "person-15.png", out) == 5
    path.unlink()
    assert swap(files / "person-8.png", files / "person-15.png", out) == 2
    assert str(path) in capsys.readouterr().err and not out.exists()
    if how == "system":
        os.chmod(config, 0o600)
        config.write_text("[[list")
        assert swap(files / "person-8.png", files / "person-15.png", out) == 2


def test_a_list_that_cannot_be_had_stops_before_any_model_loads(files, tmp_path, monkeypatch, capsys):
    def loads(cls, **_):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Swapper, "from_pretrained", classmethod(loads))
    monkeypatch.setenv("LATENTSWAP_PROTECT", str(tmp_path / "no.safetensors"))
    her, out = str(files / "her.png"), str(tmp_path / "out.png")
    assert main(["swap", her, her, "-o", out, *CONSENT]) == 2
    assert main(["edit", her, "-o", out, "--edit", "smile=1"]) == 2
    assert main(["invert", her, "-o", str(tmp_path / "x.safetensors")]) == 2
    assert capsys.readouterr().err.count("no.safetensors") == 3


@pytest.mark.slow
def test_the_rates_of_the_table_on_a_small_population():
    """25 people listed, two other pictures of each with everything changed, and 40 others: the script in small."""
    import sys

    import torch

    sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
    from protect_thresholds import Camera, Looked  # pyright: ignore[reportMissingImports]

    from latentswap.provenance.matching import distances
    from latentswap.provenance.protect import THRESHOLD

    camera = Camera.load()

    def looked(group: str, start: int, count: int, pictures: slice) -> torch.Tensor:
        rows = [camera.pictures(group, index)[pictures] for index in range(start, start + count)]
        return torch.stack([torch.stack([camera.look(picture)[0] for picture in row]) for row in rows])

    mine_NPE, others_MPE = looked("tuning", 900, 25, slice(0, 3)), looked("tuning-others", 900, 40, slice(None))
    test = Looked.by(distances, mine_NPE[:, 0], mine_NPE[:, 1:], others_MPE[:, 0])
    assert test.missed(THRESHOLD) <= 0.1 and test.false(THRESHOLD) <= 0.03

"""Lists of pairs, resuming, failures, parts of a run, and what the report says."""

import csv
import json

import numpy as np
import PIL.Image
import pytest
from _face_support import astronaut
from test_evaluate_judge import onnx_bytes

from latentswap.cli.main import main
from latentswap.errors import BadInputError, UsageError
from latentswap.evaluate.measures import SIZE
from latentswap.evaluate.pairs import FIRST_SEED, Pair, generated_pairs, parse_shard, read_pairs, shard
from latentswap.evaluate.run import evaluate_pairs
from latentswap.evaluate.score import Look, Score, Scorer, retrieve
from latentswap.pipeline import Swapper
from latentswap.runtime.iris import Eyes


@pytest.fixture(autouse=True)
def one_swapper(monkeypatch, swapper):
    monkeypatch.setattr(Swapper, "from_pretrained", classmethod(lambda cls, **_: swapper))


@pytest.fixture
def folder(tmp_path):
    """Two pictures of one woman, and one without a face."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    photo = PIL.Image.fromarray(astronaut())
    photo.save(folder / "a.png")
    photo.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "b.png")
    PIL.Image.fromarray(np.full((200, 200, 3), 120, np.uint8)).save(folder / "wall.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n")
    return folder


def listed(folder, *rows, columns=("source", "target", "result")):
    with (folder / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def test_lists(folder):
    listed(folder, ("a.png", "b.png", ""), ("sub/b.png", "a.png", "r.png"))
    first, second = read_pairs(folder)
    assert (first.name, first.given) == ("0001-a-onto-b", None)
    assert (second.source, second.given) == (folder / "sub/b.png", folder / "r.png")
    (folder / "pairs.csv").unlink()
    (folder / "pairs.json").write_text(json.dumps([{"source": "a.png", "target": "b.png"}]))
    assert read_pairs(folder) == [first]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("pairs.txt", "source,target\na,b\n", "neither pairs.csv nor pairs.json"),
        ("pairs.csv", "", "lists no pairs"),
        ("pairs.csv", "source,target\n", "lists no pairs"),
        ("pairs.csv", "from,to\na,b\n", "row 1 .* has the columns from, to"),
        ("pairs.csv", "source,target\na\n", "row 1 .*: target is ''"),
        ("pairs.csv", "source,target\na,b\n../x.png,b\n", "row 2 .* lies outside"),
        ("pairs.csv", "source,target\n/etc/passwd,b\n", "lies outside"),
        ("pairs.csv", "source,target\na,b,c\n", "has the columns"),
        ("pairs.json", "{", "cannot be read"),
        ("pairs.json", '{"source": "a"}', "lists no pairs"),
        ("pairs.json", '[{"source": 1, "target": "b"}]', "source is 1"),
        ("pairs.json", "[" * 100_000, "cannot be read"),
    ],
)
def test_lists_that_are_refused(tmp_path, capsys, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(BadInputError, match=words):
        read_pairs(tmp_path)
    assert main(["evaluate", "pairs", "--folder", str(tmp_path), "-o", str(tmp_path / "out")]) == 3
    assert "error: " in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_generated_pairs_share_nobody(tmp_path):
    pairs = generated_pairs(range(50), tmp_path)
    assert len({seed for pair in pairs for seed in pair.seeds or ()}) == 100
    assert generated_pairs([3], tmp_path)[0].seeds == (FIRST_SEED + 6, FIRST_SEED + 7)


def test_parts_are_all_of_a_run(tmp_path):
    pairs = generated_pairs(range(7), tmp_path)
    parts = [shard(pairs, *parse_shard(text)) for text in ("1/3", "2/3", "3/3")]
    assert sorted(pair.name for part in parts for pair in part) == [pair.name for pair in pairs]
    for text in ("0/2", "3/2", "1", "a/b", "1/2/3", "-1/2"):
        with pytest.raises(UsageError, match="--shard"):
            parse_shard(text)


def test_retrieval_ranks_among_sources_and_strangers(tmp_path):
    def score(number: int, source: tuple[float, ...], result: tuple[float, ...]) -> Score:
        (pair,) = generated_pairs([number], tmp_path)
        nothing = np.zeros(0)
        eyes = Eyes(gaze_E2=nothing, weight_E=nothing, frames_E23=nothing, lids_EN2=nothing, iris_EN2=nothing)
        identity = {"n": np.array(source)}
        look = Look(affine=np.eye(2, 3), mesh_K3=nothing, eyes=eyes, identity=identity, geometry=None, thumbnail=b"")
        return Score(pair=pair, figures={}, source=look, result={"n": np.array(result)}, thumbnails=(b"", b"", b""))

    scores = [score(0, (1, 0, 0), (0.9, 0.1, 0.4)), score(1, (0, 1, 0), (0.9, 0.3, 0.5))]
    assert retrieve(scores, {}) == [{"n_rank": 1}, {"n_rank": 2}]
    assert retrieve(scores, {"n": np.array([(0, 0, 1.0)])}) == [{"n_rank": 1}, {"n_rank": 3}]


def test_a_run_with_failures_is_continued(folder, tmp_path, capsys):
    listed(
        folder, ("a.png", "b.png", ""), ("wall.png", "b.png", ""), ("a.png", "broken.png", ""), ("a.png", "no.png", "")
    )
    out = tmp_path / "out"
    command = ["evaluate", "pairs", "--folder", str(folder), "-o", str(out), "--inversion", "fast"]
    command += ["--consent", "nobody who exists"]
    assert main([*command, "--json"]) == 0
    streams = capsys.readouterr()
    data = json.loads(streams.out)
    assert data == json.loads((out / "report.json").read_text())
    kinds = ["NoFaceError", "UnsupportedMediaError", "BadInputError"]
    assert (data["scored"], [row["type"] for row in data["failed"]]) == (1, kinds)
    assert "no face in the SOURCE image wall.png" in data["failed"][0]["error"] and "3 pairs failed" in streams.err
    assert "broken.png" in data["failed"][1]["error"] and "no.png" in data["failed"][2]["error"]
    (row,) = data["pairs"]
    assert row["background"] == 0 and row["seam"] < 10 and row["seconds"] > 0 and row["pose"] < 8
    assert row["training_between"] > 0.5 and data["peak_memory_bytes"] > 1e8
    result = out / "results" / "0001-a-onto-b.png"
    made = result.stat().st_mtime_ns, result.read_bytes()

    page = (out / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 3 and "0002-wall-onto-b" in page and "://" not in page

    (folder / "wall.png").unlink()  # now a file that is missing, and nothing else has changed
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "1 pairs scored, 3 failed." in text and "training_to_source" in text
    assert (result.stat().st_mtime_ns, result.read_bytes()) == made

    (folder / "b.png").write_bytes((folder / "a.png").read_bytes())  # another target: its result is made again
    assert main([*command, "--shard", "1/4"]) == 0
    assert result.stat().st_mtime_ns != made[0] and "1 of 1 pairs of part 1/4" in capsys.readouterr().out

    assert main([*command, "--strength", "0.5"]) == 2
    assert "other settings (strength differ)" in capsys.readouterr().err


def test_results_of_others_are_measured_as_they_are(folder, tmp_path, capsys):
    """The target itself as a result: nothing has changed. A result of another size is no result."""
    listed(folder, ("a.png", "b.png", "b.png"), ("a.png", "b.png", "wall.png"), ("a.png", "b.png", "gone.png"))
    judge = tmp_path / "judge.onnx"
    judge.write_bytes(onnx_bytes())
    out = tmp_path / "out"
    command = ["evaluate", "pairs", "--folder", str(folder), "-o", str(out), "--judge", str(judge), "--retrieval", "3"]
    assert main([*command, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    (row,) = data["pairs"]
    for name in ("pose", "expression", "landmarks", "eyes", "mouth", "gaze", "background", "seam"):
        assert row[name] == 0, name
    assert row["judge_to_target"] == row["training_to_target"] == 1 and "seconds" not in row
    assert row["judge_to_source"] == row["judge_between"]
    assert data["judge"] == "judge.onnx" and data["retrieval"]["gallery"] == 3
    assert set(data["retrieval"]) == {"gallery", "judge", "training"} and row["training_rank"] == 1
    assert "has 200×200 pixels and its target 512×512" in data["failed"][0]["error"]
    assert list((out / "results").iterdir()) == []


def test_if_all_pairs_fail_so_does_the_command(folder, tmp_path, capsys):
    listed(folder, ("wall.png", "b.png", ""), ("broken.png", "b.png", ""))
    out = tmp_path / "out"
    assert main(["evaluate", "pairs", "--folder", str(folder), "-o", str(out), "--consent", "nobody"]) == 4
    assert "0 pairs scored, 2 failed." in capsys.readouterr().out
    assert "wall" in (out / "report.html").read_text()


def test_a_judge_of_a_users_own(folder, tmp_path, swapper):
    class Mine:
        def identity(self, crop_pixels):
            assert crop_pixels.shape == (SIZE, SIZE, 3)
            return np.array([1.0, 0.0])

        def geometry(self, crop_pixels):
            return crop_pixels.mean(axis=(0, 1)), np.zeros(4), np.ones(2)

    pair = Pair(name="p", source=folder / "a.png", target=folder / "a.png", given=folder / "a.png")
    report = evaluate_pairs([pair], swapper, _made(tmp_path / "out"), judge=Mine())
    (row,) = report.data["pairs"]
    assert (row["judge_to_source"], row["judge_pose"], row["judge_expression"]) == (1, 0, 0)
    assert report.data["judge"] == "Mine"


def _made(path):
    path.mkdir()
    return path


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ([], 2, "one of --folder DIR and --seeds"),
        (["--seeds", "0-1", "--folder", "."], 2, "one of --folder DIR and --seeds"),
        (["--seeds", "x"], 2, "--seeds"),
        (["--seeds", "0", "--retrieval", "1"], 2, "--retrieval is 1"),
        (["--seeds", "0", "--shard", "3/2"], 2, "--shard"),
        (["--seeds", "0", "--strength", "2"], 2, "--strength"),
        (["--seeds", "0", "--judge", "absent.onnx"], 5, "absent.onnx"),
        (["--seeds", "0", "--judge", "judge.pth"], 5, "must be an .onnx or a .safetensors"),
    ],
)
def test_options_are_refused_before_networks_load(tmp_path, capsys, monkeypatch, options, code, words):
    def loads(cls, **_):
        raise AssertionError("networks were loaded")

    monkeypatch.setattr(Swapper, "from_pretrained", classmethod(loads))
    assert main(["evaluate", "pairs", "-o", str(tmp_path / "out"), *options]) == code
    assert words in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_an_output_that_is_no_folder(tmp_path, capsys):
    (tmp_path / "file").write_bytes(b"kept")
    for out in ("file", "file/out"):
        assert main(["evaluate", "pairs", "--seeds", "0", "-o", str(tmp_path / out)]) == 2
    assert (tmp_path / "file").read_bytes() == b"kept"


@pytest.mark.slow
def test_two_generated_pairs_from_seeds_to_the_page(tmp_path, capsys, swapper):
    out = tmp_path / "out"
    command = ["evaluate", "pairs", "--seeds", "0,1", "-o", str(out), "--inversion", "fast"]
    assert main([*command, "--shard", "1/2"]) == main([*command, "--shard", "2/2"]) == 0
    assert sorted(path.name for path in (out / "results").glob("*.png")) == ["0000.png", "0001.png"]
    assert not (out / "report.json").exists()
    times = [path.stat().st_mtime_ns for path in sorted(out.rglob("*.png"))]
    assert main([*command, "--retrieval", "6"]) == 0
    assert times == [path.stat().st_mtime_ns for path in sorted(out.rglob("*.png"))]
    data = json.loads((out / "report.json").read_text())
    assert data["scored"] == 2 and not data["failed"] and data["measures"]["background"]["mean"] == 0
    for row in data["pairs"]:
        assert row["training_to_source"] > row["training_between"] + 0.1 and row["pose"] < 8
    assert data["retrieval"]["training"] >= 0.5
    # The stored alignment is the one that is found: measuring without the notes gives the same figures.
    pair = generated_pairs([0], out)[0]
    again = Scorer(swapper).score(pair, out / "results" / "0000.png")
    for name in ("training_to_target", "pose", "expression", "landmarks"):
        assert again.figures[name] == pytest.approx(data["pairs"][0][name], abs=1e-4)

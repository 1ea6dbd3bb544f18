"""Who is asked for consent, once, before any model loads; where what was said is kept, and where it is not."""

import hashlib
import io
import json
import stat
import sys
from pathlib import Path

import PIL.Image
import pytest
from _face_support import astronaut

from latentswap.cli.main import main
from latentswap.errors import BadInputError, ResourceError, UsageError, WeightsError
from latentswap.media.image import encode
from latentswap.pipeline import Swapper, packet, person
from latentswap.provenance.consent import LONGEST, Consents, consent_for, is_generated
from latentswap.provenance.mark import read_mark
from latentswap.swappers.base import Prepared
from latentswap.types import Image

STATEMENT = "Eileen Collins, NASA's public portrait"


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "me.png"
    PIL.Image.fromarray(astronaut()).save(path)
    return path


@pytest.fixture
def terminal(monkeypatch):
    """`terminal(answer)`: standard input is a terminal on which that is typed."""

    class Typed(io.StringIO):
        def isatty(self) -> bool:
            return True

    def type_in(answer: str) -> None:
        monkeypatch.setattr(sys, "stdin", Typed(answer))
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)

    return type_in


@pytest.fixture
def no_models(monkeypatch):
    def loads(cls, **_):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Swapper, "from_pretrained", classmethod(loads))


def test_a_photograph_without_consent_is_refused_before_any_model_loads(no_models, photo, tmp_path, capsys):
    assert main(["swap", str(photo), str(photo), "-o", str(tmp_path / "out.png")]) == 2
    message = capsys.readouterr().err
    assert "SOURCE me.png" in message and '--consent "' in message
    assert Consents().all() == ()


@pytest.mark.parametrize(
    ("statement", "words"), [("", "says nothing"), (" - ", "says nothing"), ("x" * 501, "501"), ("a\x1b[2J", "print")]
)
def test_a_consent_that_says_nothing_is_none(no_models, photo, tmp_path, capsys, statement, words):
    assert len("x" * 501) > LONGEST
    assert main(["swap", str(photo), str(photo), "-o", str(tmp_path / "o.png"), "--consent", statement]) == 2
    assert words in capsys.readouterr().err and Consents().all() == ()


def test_it_is_asked_for_once_per_content(photo, tmp_path):
    asked = []

    def ask(question: str) -> str:
        asked.append(question)
        return STATEMENT + "\n"

    assert consent_for([photo], None, ask=ask) == STATEMENT
    assert consent_for([photo], None, ask=ask) == STATEMENT
    copy = tmp_path / "another name.png"
    copy.write_bytes(photo.read_bytes())
    assert consent_for([copy], None) == STATEMENT and len(asked) == 1
    PIL.Image.fromarray(astronaut()[:, ::-1]).save(copy)
    with pytest.raises(UsageError, match=r"another name\.png"):
        consent_for([copy], None)


def test_what_is_kept_and_for_whom(photo, nobody_else_s_data):
    consent_for([photo], f"  {STATEMENT}\n")
    (made,) = Consents().all()
    assert made.sha256 == hashlib.sha256(photo.read_bytes()).hexdigest()
    assert (made.name, made.statement) == ("me.png", STATEMENT) and made.when.endswith("+00:00")
    path = nobody_else_s_data / "consents.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    consent_for([photo], "withdrawn and given again")
    assert [one.statement for one in Consents().all()] == ["withdrawn and given again"]
    path.write_text("{")
    with pytest.raises(ResourceError, match=r"consents\.json cannot be read"):
        Consents().all()


def test_a_folder_is_asked_about_once(photo, tmp_path):
    folder = tmp_path / "photos-of-me"
    folder.mkdir()
    for turn, name in enumerate(("a.png", "b.png")):
        PIL.Image.fromarray(astronaut()[:, :: 1 - 2 * turn]).save(folder / name)
    asked = []
    consent_for([folder], None, ask=lambda question: asked.append(question) or STATEMENT)
    assert len(asked) == 1 and "2 SOURCE files" in asked[0]
    assert consent_for([folder], None) == STATEMENT and len(Consents().all()) == 2


def test_bad_sources_are_named_or_passed_over(photo, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n")
    with pytest.raises(BadInputError, match=r"SOURCE image broken\.png"):
        consent_for([broken], STATEMENT)
    code = tmp_path / "code.safetensors"
    code.write_bytes(b"\x80\x04pickle")
    with pytest.raises(WeightsError):
        consent_for([code], STATEMENT)
    assert consent_for([broken, code, photo, tmp_path / "no.png"], STATEMENT, skip_bad=True) == STATEMENT
    assert len(Consents().all()) == 1


def test_people_who_do_not_exist_need_none(swapper, tmp_path):
    swapper.write(swapper.sample([8])[0], tmp_path / "person.jpg")
    swapper.method.prepare_code(person(swapper.networks, seed=8)).save(tmp_path / "person.safetensors")
    assert consent_for([tmp_path / "person.jpg", tmp_path / "person.safetensors"], None) is None
    assert Consents().all() == ()
    assert swapper.prepare(swapper.sample([8])[0]).synthetic


def test_a_picture_that_goes_back_to_a_photograph_is_no_person_who_does_not_exist(swapper, photo, tmp_path):
    """The code of a photograph, the picture drawn from it, an edit of the code, a swap: none of them says `nobody`."""
    found = swapper.invert(photo)
    swapper.write(found.picture, tmp_path / "drawn.png")
    found.prepared.save(tmp_path / "me.safetensors")
    swapper.write(swapper.swap(swapper.sample([8])[0], photo), tmp_path / "swap.png")
    for name in ("drawn.png", "me.safetensors", "swap.png"):
        path = tmp_path / name
        assert not is_generated(path, path.read_bytes())
    drawn = read_mark((tmp_path / "drawn.png").read_bytes())
    assert drawn is not None and drawn["digital_source_type"] == "trainedAlgorithmicMedia"


def test_an_edited_code_stays_that_of_a_photograph(swapper, photo, tmp_path, monkeypatch):
    monkeypatch.setattr(Swapper, "from_pretrained", classmethod(lambda cls, **_: swapper))
    code, edited = tmp_path / "me.safetensors", tmp_path / "edited.safetensors"
    swapper.invert(photo).prepared.save(code)
    assert main(["edit", str(code), "-o", str(edited), "--edit", "smile=1"]) == 0
    assert not is_generated(edited, edited.read_bytes())
    sampled, older = tmp_path / "p.safetensors", tmp_path / "q.safetensors"
    swapper.method.prepare_code(person(swapper.networks, seed=8)).save(sampled)
    assert main(["edit", str(sampled), "-o", str(older), "--edit", "smile=1"]) == 0
    assert is_generated(older, older.read_bytes())


def test_other_programs_marks_do_not_count(tmp_path):
    """Another generator's picture may show somebody who exists."""
    path = tmp_path / "theirs.png"
    path.write_bytes(encode(Image(pixels=astronaut()), ".png", xmp=packet(whole=True)))
    assert not is_generated(path, path.read_bytes())
    path.write_bytes(encode(Image(pixels=astronaut()), ".png", xmp=packet(whole=True, nobody=True)))
    assert is_generated(path, path.read_bytes())


def test_asked_on_a_terminal_and_never_published(swapper, photo, tmp_path, monkeypatch, capsys, terminal):
    monkeypatch.setattr(Swapper, "from_pretrained", classmethod(lambda cls, **_: swapper))
    out, command = tmp_path / "out.png", ["swap", str(photo), str(photo), "--inversion", "fast", "--json", "-o"]
    terminal("\n")
    assert main([*command, str(out)]) == 2 and not out.exists()
    capsys.readouterr()
    terminal(STATEMENT + "\n")
    assert main([*command, str(out)]) == 0
    shown = capsys.readouterr()
    assert "Who is shown" in shown.err
    report = json.loads(shown.out)
    assert report["source"] == {"name": "me.png", "synthetic": False, "consent": STATEMENT}
    assert STATEMENT.encode() not in out.read_bytes() and b"consent" not in out.read_bytes()


def test_the_library_carries_it_and_asks_for_nothing(swapper, photo, tmp_path):
    prepared = swapper.prepare(photo, consent=STATEMENT)
    assert prepared.consent == STATEMENT and not prepared.synthetic
    assert swapper.prepare([photo, photo], consent=STATEMENT).consent == STATEMENT
    assert swapper.prepare(photo).consent is None
    prepared.save(tmp_path / "me.safetensors")
    assert STATEMENT.encode() not in (tmp_path / "me.safetensors").read_bytes()
    again = Prepared.load(tmp_path / "me.safetensors", num_ws=16, w_dim=512)
    assert again.consent is None and not again.synthetic


def test_list_and_forget(photo, capsys):
    assert main(["consent", "list"]) == 0
    assert "nothing was attested" in capsys.readouterr().out
    consent_for([photo], STATEMENT)
    assert main(["consent", "list", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["statement"] == STATEMENT
    assert main(["consent", "forget", "ffff"]) == 2
    assert "means 0 attestations" in capsys.readouterr().err
    assert main(["consent", "forget", entry["sha256"][:8]]) == 0
    assert Consents().all() == ()
    consent_for([photo], STATEMENT)
    assert main(["consent", "forget", "all"]) == 0 and Consents().all() == ()


def test_an_evaluation_of_photographs_needs_it_too(no_models, photo, tmp_path, capsys):
    (tmp_path / "pairs.csv").write_text("source,target,result\nme.png,me.png,\n")
    (tmp_path / "me.png").write_bytes(photo.read_bytes())
    assert main(["evaluate", "pairs", "--folder", str(tmp_path), "-o", str(tmp_path / "out")]) == 2
    assert "--consent" in capsys.readouterr().err
    (tmp_path / "pairs.csv").write_text("source,target,result\nme.png,me.png,me.png\n")  # nothing to swap
    with pytest.raises(AssertionError, match="a model was loaded"):
        main(["evaluate", "pairs", "--folder", str(tmp_path), "-o", str(tmp_path / "out")])

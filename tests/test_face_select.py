"""Which faces are meant."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentswap.errors import NoFaceError, UsageError
from latentswap.face.select import FaceChoice, choose, parse_faces
from latentswap.types import Face


def face(x: float, size: float = 100, reasons: tuple[str, ...] = ()) -> Face:
    mesh = np.zeros((468, 3), np.float32)
    box = (x, 0.0, x + size, size)
    return Face(box=box, score=0.9, mesh_score=0.99, mesh_K3=mesh, yaw=0.0, pitch=0.0, roll=0.0, reasons=reasons)


BIG, MIDDLE, SMALL = face(0, 300), face(400, 200), face(700, 20, ("too_small",))
CLOTH = face(900, 500, ("not_a_face",))


def place(one: Face) -> np.ndarray:
    return np.array([one.box[0], 0.0])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all", FaceChoice(kind="all")),
        (" largest ", FaceChoice(kind="largest")),
        ("0", FaceChoice(kind="index", index=0)),
        ("12", FaceChoice(kind="index", index=12)),
        ("match:me and you.jpg", FaceChoice(kind="match", reference=Path("me and you.jpg"))),
        ("match:C:/x.png", FaceChoice(kind="match", reference=Path("C:/x.png"))),
    ],
)
def test_grammar(text, expected):
    assert parse_faces(text) == expected


@pytest.mark.parametrize("text", ["", "both", "-1", "1.5", "match", "match:", "match: ", "ALL", "²", "١", "1234567"])
def test_what_is_not_a_choice_is_refused(text):
    with pytest.raises(UsageError, match="faces: "):
        parse_faces(text)


@given(st.text(max_size=20))
def test_any_text_is_read_or_refused(text):
    try:
        choice = parse_faces(text)
    except UsageError:
        return
    assert choice.kind in ("all", "largest", "index", "match")


def test_target_takes_every_usable_face():
    assert choose([CLOTH, BIG, MIDDLE, SMALL], None, role="TARGET", name="a.jpg") == (BIG, MIDDLE)
    assert choose([BIG, MIDDLE, SMALL], parse_faces("all"), role="TARGET", name="a.jpg") == (BIG, MIDDLE)


def test_source_takes_its_only_usable_face():
    assert choose([BIG, SMALL], None, role="SOURCE", name="a.jpg") == (BIG,)


@pytest.mark.parametrize("text", [None, "all"])
def test_ambiguous_source_says_how_to_choose(text):
    choice = parse_faces(text) if text else None
    with pytest.raises(NoFaceError, match=r"2 faces in the SOURCE image me\.jpg.*largest, a number from 0 to 1"):
        choose([BIG, MIDDLE], choice, role="SOURCE", name="me.jpg")


@pytest.mark.parametrize("faces", [[], [CLOTH]])
def test_no_face_says_in_which_picture(faces):
    with pytest.raises(NoFaceError, match=r"no face in the SOURCE image me\.jpg"):
        choose(faces, None, role="SOURCE", name="me.jpg")


def test_only_unusable_faces_names_the_reasons():
    turned = face(10, 90, ("profile", "cut_by_border"))
    with pytest.raises(NoFaceError, match=r"sideways.*edge of the picture.*smaller than 32 pixels") as caught:
        choose([turned, SMALL], parse_faces("largest"), role="TARGET", name="t.png")
    assert "TARGET image t.png" in str(caught.value)


def test_by_number():
    faces = [CLOTH, BIG, MIDDLE, SMALL]
    assert choose(faces, parse_faces("1"), role="SOURCE", name="a.jpg") == (MIDDLE,)
    with pytest.raises(NoFaceError, match=r"no face 3 .*shows 3 faces"):
        choose(faces, parse_faces("3"), role="SOURCE", name="a.jpg")
    with pytest.raises(NoFaceError, match=r"face 2 .*smaller than 32"):
        choose(faces, parse_faces("2"), role="SOURCE", name="a.jpg")


def test_largest():
    assert choose([BIG, MIDDLE], parse_faces("largest"), role="SOURCE", name="a.jpg") == (BIG,)


def test_match_takes_the_nearest_and_refuses_strangers():
    choice = parse_faces("match:ref.jpg")
    reference = np.array([400.4, 0.0])
    found = choose([BIG, MIDDLE], choice, role="TARGET", name="a.jpg", embed=place, reference_E=reference)
    assert found == (MIDDLE,)
    with pytest.raises(NoFaceError, match=r"matches ref\.jpg: the closest of 2 is 100\.00 away"):
        choose([BIG, MIDDLE], choice, role="TARGET", name="a.jpg", embed=place, reference_E=np.array([500.0, 0.0]))
    with pytest.raises(UsageError, match="identity network"):
        choose([BIG], choice, role="TARGET", name="a.jpg")

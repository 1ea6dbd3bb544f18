"""The visible label: where it lies, that it can be read, and that it leaves the rest alone."""

import numpy as np
import pytest
from _face_support import astronaut

from latentswap.cli.main import main
from latentswap.errors import UsageError
from latentswap.provenance.label import draw_label, labelled
from latentswap.types import Face, Image, SwapResult


def changed(before: np.ndarray, after: np.ndarray) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of what is different."""
    rows, columns = np.nonzero((before != after).any(2))
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def overlap(a: tuple, b: tuple) -> float:
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def test_it_lies_at_the_bottom_right_when_nothing_is_there() -> None:
    pixels = np.full((600, 800, 3), 90, np.uint8)
    x0, y0, x1, y1 = changed(pixels, draw_label(pixels, []))
    assert 780 < x1 < 800 and 580 < y1 < 600
    assert y1 - y0 < 60 and x1 - x0 < 250
    assert (pixels == 90).all()  # a copy was drawn on


@pytest.mark.parametrize(
    ("boxes", "right", "bottom"),
    [
        ([(500, 300, 800, 600)], False, True),
        ([(500, 300, 800, 600), (0, 300, 200, 600)], True, False),
        ([(500, 300, 800, 600), (0, 300, 200, 600), (600, 0, 800, 200)], False, False),
    ],
)
def test_faces_stay_free(boxes: list, right: bool, bottom: bool) -> None:
    pixels = np.full((600, 800, 3), 90, np.uint8)
    place = changed(pixels, draw_label(pixels, boxes))
    assert all(overlap(place, box) == 0 for box in boxes)
    assert (place[0] > 400, place[1] > 300) == (right, bottom)


def test_random_faces_stay_free_wherever_a_place_is_left() -> None:
    rng = np.random.default_rng(0)
    pixels = np.full((480, 640, 3), 90, np.uint8)
    for _ in range(20):
        corners = rng.uniform(0, [560, 400, 560, 400], (2, 4))
        boxes = [(x, y, x + 80, y + 80) for x, y, _, _ in corners]
        place = changed(pixels, draw_label(pixels, boxes))
        assert sum(overlap(place, box) for box in boxes) == 0


def test_a_face_that_fills_the_picture_loses_little() -> None:
    pixels = np.full((256, 256, 3), 90, np.uint8)
    box = (0.0, 40.0, 256.0, 256.0)
    place = changed(pixels, draw_label(pixels, [box]))
    assert overlap(place, box) == 0  # above the face
    everything = changed(pixels, draw_label(pixels, [(0, 0, 256, 256)]))
    assert (everything[2] - everything[0]) * (everything[3] - everything[1]) < 0.06 * 256 * 256


@pytest.mark.parametrize("level", [0, 128, 255])
def test_it_is_legible_on_anything(level: int) -> None:
    pixels = np.full((400, 400, 3), level, np.uint8)
    after = draw_label(pixels, [])
    x0, y0, x1, y1 = changed(pixels, after)
    inside = after[y0 + 3 : y1 - 3, x0 + 3 : x1 - 3].mean(2)
    # White letters against the plate: at least 4.5 : 1, the contrast that WCAG 2.2 asks of text.
    light, dark = ((v / 255) ** 2.2 + 0.05 for v in (inside.max(), np.percentile(inside, 20)))
    assert light / dark > 4.5


def test_a_long_label_shrinks_to_the_picture() -> None:
    pixels = np.full((120, 120, 3), 90, np.uint8)
    x0, _, x1, _ = changed(pixels, draw_label(pixels, [], "modified with the help of a generator"))
    assert 0 <= x0 < x1 <= 120 and x1 - x0 > 80


@pytest.mark.parametrize("text", ["", "  ", "a\nb", "x" * 61, "verändert"])
def test_what_cannot_be_written_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="label"):
        draw_label(np.zeros((100, 100, 3), np.uint8), [], text)


def test_results_are_labelled_clear_of_every_face_that_was_found() -> None:
    def face(box: tuple[float, float, float, float]) -> Face:
        mesh = np.zeros((468, 3), np.float32)
        return Face(box=box, score=1, mesh_score=1, mesh_K3=mesh, yaw=0, pitch=0, roll=0)

    image = Image(pixels=astronaut())
    swapped, left = face((300, 300, 512, 512)), face((0, 300, 150, 512))
    result = SwapResult(image=image, faces=(swapped,), skipped=(left,))
    after = labelled(result, "AI-modified")
    assert isinstance(after, SwapResult)
    place = changed(image.pixels, after.image.pixels)
    assert overlap(place, swapped.box) == overlap(place, left.box) == 0
    assert labelled(result, None) is result
    drawn = labelled(image, "AI-generated")
    assert isinstance(drawn, Image) and (drawn.pixels != image.pixels).any()


def test_the_command_line_refuses_it_before_any_model_loads(tmp_path, capsys) -> None:
    out = str(tmp_path / "out.png")
    assert main(["swap", "a.jpg", "b.jpg", "-o", out, "--label-text", "verändert"]) == 2
    assert "ASCII" in capsys.readouterr().err
    code = tmp_path / "a.safetensors"
    code.write_bytes(b"")
    arguments = ["edit", str(code), "-o", str(tmp_path / "b.safetensors"), "--edit", "smile=1", "--label"]
    assert main(arguments) == 2
    assert "--label" in capsys.readouterr().err


@pytest.mark.slow
def test_a_swap_is_labelled_by_the_option(tmp_path, monkeypatch, swapper) -> None:
    import PIL.Image

    from latentswap.pipeline import Swapper

    monkeypatch.setattr(Swapper, "from_pretrained", classmethod(lambda cls, **_: swapper))
    target = tmp_path / "target.png"
    PIL.Image.fromarray(astronaut()).save(target)
    plain, with_label = tmp_path / "plain.png", tmp_path / "label.png"
    options = ["--inversion", "fast", "--no-watermark", "--consent", "public domain", "--offline"]
    assert main(["swap", str(target), str(target), "-o", str(plain), *options]) == 0
    assert main(["swap", str(target), str(target), "-o", str(with_label), "--label", *options]) == 0
    x0, y0, _, _ = changed(np.asarray(PIL.Image.open(plain)), np.asarray(PIL.Image.open(with_label)))
    assert x0 > 300 and y0 > 450

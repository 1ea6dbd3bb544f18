"""The visible label: a plate that says what the picture is, in a corner or at an edge where it hides no face."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from latentswap.errors import UsageError
from latentswap.types import Image, SwapResult

MODIFIED, GENERATED = "AI-modified", "AI-generated"
MAX_LETTERS = 60

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels

_HEIGHT = 0.034  # of the letters, in the picture's shorter side
_SMALLEST = 10  # pixels
_SHRINKS = (1.0, 0.8, 0.65)  # what is tried before a face is covered
_WIDEST = 0.9  # of the picture
_PADDING, _MARGIN, _CORNER = 0.45, 0.5, 0.3  # of the height of the letters
_AROUND = 0.05  # of a face's box, on each side, that stays free, too
_DARK, _LIGHT = (16, 16, 16), (255, 255, 255)
_OPAQUE = 0.72  # of the plate


def draw_label(pixels: np.ndarray, face_boxes: Iterable[Box], text: str = MODIFIED) -> np.ndarray:
    """A copy of the picture with the label.

    White letters on a dark plate with a light rim, legible on anything, 3.4 % of the shorter side high. The first free
    place of: the corners, bottom right first; the middles of the bottom and the top; the same with smaller letters.
    Where faces fill the picture, the place that hides least of them.

    Args:
        pixels: uint8 [H, W, 3], RGB.
        face_boxes: x0, y0, x1, y1 of the faces, in pixels.
        text: one line of 1 to 60 ASCII letters, which the font of Pillow has.

    Returns uint8 [H, W, 3]. Raises UsageError as `check_text`.
    """
    check_text(text)
    height, width = pixels.shape[:2]
    boxes = [_widened(box) for box in face_boxes]
    places = []
    for shrink in _SHRINKS:
        plate = _plate(text, max(_SMALLEST, _HEIGHT * min(height, width) * shrink), width)
        margin = round(_MARGIN * plate.height / (1 + 2 * _PADDING))
        places = [(_hidden(at, plate, boxes), at, plate) for at in _places(width, height, plate, margin)]
        if any(hidden == 0 for hidden, _, _ in places):
            break
    _, at, plate = min(places, key=lambda place: place[0])
    picture = PIL.Image.fromarray(pixels)
    picture.paste(plate.convert("RGB"), at, plate.getchannel("A"))
    return np.array(picture)


def labelled(result: SwapResult | Image, text: str | None) -> SwapResult | Image:
    """A result with the label on its picture, clear of every face that was found in it; unchanged for None."""
    if text is None:
        return result
    if isinstance(result, Image):
        return replace(result, pixels=draw_label(result.pixels, (), text))
    boxes = [face.box for face in (*result.faces, *result.skipped)]
    return replace(result, image=replace(result.image, pixels=draw_label(result.image.pixels, boxes, text)))


def check_text(text: str) -> None:
    """Raise UsageError for a label that is empty, longer than 60 letters, or not of letters that its font has."""
    if not text.strip() or len(text) > MAX_LETTERS or not (text.isascii() and text.isprintable()):
        raise UsageError(
            f"the label {text!r} is not one line of 1 to {MAX_LETTERS} ASCII letters; write for example {MODIFIED}"
        )


def _plate(text: str, size: float, width: int) -> PIL.Image.Image:
    """The plate, RGBA, drawn at twice its size for smooth edges; letters smaller where it would be too wide."""
    font = PIL.ImageFont.load_default(2 * size)
    length = font.getlength(text)
    if length / 2 > _WIDEST * width - 2 * size * (_PADDING + _MARGIN):
        size *= max(0.1, (_WIDEST * width - 2 * size * (_PADDING + _MARGIN)) / (length / 2))
        font = PIL.ImageFont.load_default(2 * size)
        length = font.getlength(text)
    side = (round(length + 4 * _PADDING * size), round(2 * size * (1 + 2 * _PADDING)))
    plate = PIL.Image.new("RGBA", side, (*_LIGHT, 0))
    draw = PIL.ImageDraw.Draw(plate)
    draw.rounded_rectangle(
        (0, 0, side[0] - 1, side[1] - 1),
        radius=2 * size * _CORNER,
        fill=(*_DARK, round(255 * _OPAQUE)),
        outline=(*_LIGHT, 150),
        width=max(2, round(size * 0.1)),
    )
    draw.text((side[0] / 2, side[1] / 2), text, font=font, fill=(*_LIGHT, 255), anchor="mm")
    return plate.resize((max(1, side[0] // 2), max(1, side[1] // 2)), PIL.Image.Resampling.BOX)


def _places(width: int, height: int, plate: PIL.Image.Image, margin: int) -> list[tuple[int, int]]:
    left, middle, right = margin, (width - plate.width) // 2, width - plate.width - margin
    top, bottom = margin, height - plate.height - margin
    return [(right, bottom), (left, bottom), (right, top), (left, top), (middle, bottom), (middle, top)]


def _hidden(at: tuple[int, int], plate: PIL.Image.Image, boxes: Sequence[Box]) -> float:
    """How many pixels of faces lie under the plate."""
    left, top = at
    right, bottom = left + plate.width, top + plate.height
    return sum(
        max(0.0, min(x1, right) - max(x0, left)) * max(0.0, min(y1, bottom) - max(y0, top)) for x0, y0, x1, y1 in boxes
    )


def _widened(box: Box) -> Box:
    x0, y0, x1, y1 = box
    across, down = _AROUND * (x1 - x0), _AROUND * (y1 - y0)
    return (x0 - across, y0 - down, x1 + across, y1 + down)

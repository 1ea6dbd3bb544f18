"""Which files `media.image.decode` opens at all, and which arrays `as_image` takes."""

import os
from pathlib import Path

import make_bad_files as bad
import numpy as np
import pytest

from latentswap.errors import BadInputError, TooLargeError
from latentswap.media.image import as_image, decode


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    cases = {
        fifo: "device or a pipe",
        Path("/dev/zero"): "device or a pipe",
        tmp_path: "is a folder",
        tmp_path / "missing.jpg": "does not exist",
        loop: "cannot be opened",
        tmp_path / "nul\0byte": "cannot be opened",
        tmp_path / ("x" * 300): "cannot be opened",
    }
    for path, word in cases.items():
        with pytest.raises(BadInputError, match=word) as caught:
            decode(path, role="source")
        assert str(caught.value).startswith("the SOURCE image ")


def test_a_file_that_may_not_be_read() -> None:
    with bad.unprivileged() as folder:
        path = folder / "private.png"
        path.write_bytes(bad.save(bad.photo(), "PNG"))
        path.chmod(0)
        with pytest.raises(BadInputError, match="may not be read"):
            decode(path)


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    with path.open("wb") as file:
        file.truncate(10**10)  # sparse: takes no room
    with pytest.raises(TooLargeError, match="400 MB"):
        decode(path)


def test_a_symlink_to_a_picture_is_read(tmp_path: Path) -> None:
    (tmp_path / "real.png").write_bytes(bad.save(bad.photo(), "PNG"))
    (tmp_path / "link.png").symlink_to("real.png")
    assert np.array_equal(decode(str(tmp_path / "link.png")).pixels, bad.photo())


def test_names_cannot_forge_output() -> None:
    with pytest.raises(BadInputError) as caught:
        decode(b"", name="a\n\x1b[2Jb.png")
    assert str(caught.value).startswith("the IMAGE a??[2Jb.png is ")


def test_as_image_copies() -> None:
    array = bad.photo()
    image = as_image(array[:, ::-1], name="mine")
    assert np.array_equal(image.pixels, array[:, ::-1])
    array[:] = 0
    assert image.pixels.max() > 0
    assert image.pixels.flags.c_contiguous


@pytest.mark.parametrize(
    ("array", "word"),
    [
        (np.full((80, 80, 3), np.nan, np.float32), "NaN or infinity"),
        (np.full((80, 80, 3), np.inf), "NaN or infinity"),
        (np.zeros((80, 80, 3), np.float32), "not float32; scale it"),
        (np.zeros((80, 80, 3), np.uint16), "not uint16"),
        (np.zeros((3, 80, 80), np.uint8), "channels first"),
        (np.zeros((1, 80, 80, 3), np.uint8), "one image at a time"),
        (np.zeros((80, 80, 4), np.uint8), "RGBA"),
        (np.zeros((80, 80), np.uint8), r"shape \(80, 80\)"),
        (np.zeros((10, 80, 3), np.uint8), "at least 64"),
        ([[0]], "not list"),
    ],
)
def test_as_image_names_the_contract(array: object, word: str) -> None:
    with pytest.raises(ValueError, match=word) as caught:
        as_image(array)  # pyright: ignore[reportArgumentType]
    assert isinstance(caught.value, BadInputError)

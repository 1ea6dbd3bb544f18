"""Putting out: whatever goes wrong, what was there stays, nothing half-written is left, and the record tells of it."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from _provenance_support import authority, encoded, pixels, video
from make_bad_files import unprivileged

from latentswap.errors import ProvenanceError, ResourceError, UsageError
from latentswap.media.atomic import output_lock
from latentswap.media.image import decode, encode
from latentswap.pipeline import packet
from latentswap.provenance.apply import Marking, finish_file, network_hashes, publish
from latentswap.provenance.credentials import load_credentials
from latentswap.provenance.mark import read_mark
from latentswap.provenance.record import check_record, read_records, record_path, sha256_of
from latentswap.provenance.verify import verify
from latentswap.types import Image, Making


@pytest.fixture(autouse=True)
def data(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("data")
    monkeypatch.setenv("LATENTSWAP_DATA", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    return folder


def _publish(path: Path, data: bytes | None = None, *, making: Making | None = None, **options) -> Marking:
    marking = Marking(**options)
    making = making or Making(deed="swapped", target=encoded("JPEG"), sources=(b"code",))
    publish(path, data or encoded("PNG"), making=making, marking=marking, payload=None, networks={"mixer": "00"})
    return marking


def test_what_is_put_out_is_signed_and_recorded(tmp_path: Path, data: Path) -> None:
    target, source = encoded("JPEG"), b"a code"
    making = Making(deed="swapped", target=target, sources=(source,))
    marking = Marking(command="swap")
    publish(
        tmp_path / "out.png",
        encoded("PNG"),
        making=making,
        marking=marking,
        payload=0xAB,
        networks={"mixer": "00"},
        consent="Ann, by letter",
    )
    (line,) = read_records()
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "job": marking.job,
        "command": "swap",
        "deed": "swapped",
        "inputs": [
            {"role": "target", "sha256": sha256_of(target)},
            {"role": "source", "sha256": sha256_of(source)},
        ],
        "output": str(tmp_path / "out.png"),
        "sha256": sha256_of(tmp_path / "out.png"),
        "signed": True,
        "watermark": "000000ab",
        "networks": {"mixer": "00"},
        "consent": "Ann, by letter",
    }
    found = verify(tmp_path / "out.png")
    assert found.outcome == "trusted" and found.job is not None and found.job["job"] == marking.job
    published = (tmp_path / "out.png").read_bytes()
    assert b"Ann" not in published and sha256_of(target).encode() not in published
    assert stat.S_IMODE(record_path().stat().st_mode) == 0o600


def test_without_a_signature_it_is_said_in_the_record(tmp_path: Path) -> None:
    _publish(tmp_path / "out.png", sign=False)
    (line,) = read_records()
    assert (line["signed"], line["watermark"]) == (False, None)
    assert verify(tmp_path / "out.png").signature == "none"
    with pytest.raises(UsageError, match="cannot both be turned off"):
        Marking(sign=False, watermark=False)


def test_jobs_have_numbers_of_their_own() -> None:
    assert Marking().job != Marking().job


def test_an_output_may_be_its_own_input(tmp_path: Path) -> None:
    """The target that is overwritten stays whole until the new file is, and its credentials are kept."""
    path = tmp_path / "me.png"
    _publish(path)
    for _ in range(3):
        image = decode(path)
        _publish(path, encode(image, ".png"), making=Making(deed="edited", target=image.encoded))
    found = verify(path)
    assert (found.outcome, found.origins[0].credentials) == ("trusted", "trusted")
    assert os.listdir(tmp_path) == ["me.png"]


def test_metadata_of_an_input_stays_behind(tmp_path: Path) -> None:
    """EXIF with its position, XMP and IPTC are dropped; the colour profile's presence is kept, as sRGB."""
    from PIL import ImageCms

    picture = PIL.Image.fromarray(pixels())
    exif = picture.getexif()
    exif[0x010F] = "SECRETMAKER"
    exif.get_ifd(0x8825)[1] = "N"
    exif.get_ifd(0x8825)[29] = "SECRETDATE"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/">SECRETXMP</x:xmpmeta>'
    for suffix in (".jpg", ".png", ".webp"):
        options: dict[str, Any] = {"exif": exif, "icc_profile": profile}
        options |= {} if suffix == ".png" else {"xmp": xmp}
        picture.save(tmp_path / f"in{suffix}", **options)
        assert b"SECRETMAKER" in (tmp_path / f"in{suffix}").read_bytes()
        image = decode(tmp_path / f"in{suffix}")
        data = encode(image, suffix, xmp=packet(whole=False))
        _publish(tmp_path / f"out{suffix}", data, making=Making(deed="edited", target=image.encoded))
        written = (tmp_path / f"out{suffix}").read_bytes()
        assert b"SECRET" not in written
        with PIL.Image.open(tmp_path / f"out{suffix}") as out:
            assert out.info.get("icc_profile") and not out.getexif()
        mark = read_mark(written)  # and ours is there, beside the signature
        assert mark is not None and mark["digital_source_type"] == "compositeWithTrainedAlgorithmicMedia"
        assert verify(tmp_path / f"out{suffix}").outcome == "trusted"


@pytest.mark.parametrize("what", ["expired", "no key", "no record", "no folder", "a folder"])
def test_what_fails_leaves_the_old_file(tmp_path: Path, data: Path, what: str) -> None:
    path = tmp_path / "out.png"
    path.write_bytes(b"old")
    options: dict[str, Any] = {}
    error = ProvenanceError
    load_credentials()
    if what == "expired":
        options = {"credentials": authority(expired=True)[0]}
    elif what == "no key":
        (data / "credentials/local/key.pem").unlink()
    elif what == "no record":
        (data / "jobs.jsonl").mkdir()
        error = ResourceError
        with pytest.raises(ResourceError, match="job record"):
            check_record()
    elif what == "no folder":
        error = UsageError
    elif what == "a folder":
        error = UsageError
    destination = {"no folder": tmp_path / "none/out.png", "a folder": tmp_path}.get(what, path)
    with pytest.raises(error):
        _publish(destination, **options)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["out.png"]


def test_a_folder_that_may_not_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    with unprivileged() as folder:
        monkeypatch.setenv("LATENTSWAP_DATA", str(folder / "data"))
        (folder / "out").mkdir()
        (folder / "out/out.png").write_bytes(b"old")
        (folder / "out").chmod(0o500)
        with pytest.raises(ResourceError, match="cannot be written"):
            _publish(folder / "out/out.png")
        assert os.listdir(folder / "out") == ["out.png"] and (folder / "out/out.png").read_bytes() == b"old"
        record_path().chmod(0o400)
        for check in (Marking().check, lambda: _publish(folder / "x.png")):
            with pytest.raises(ResourceError, match="job record"):
                check()
        assert not (folder / "x.png").exists()


def _python(script: str, *arguments: object) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


_PUBLISHER = (
    "import resource, sys; from pathlib import Path\n"
    "from _provenance_support import encoded; from latentswap.errors import LatentSwapError\n"
    "from latentswap.provenance.apply import Marking, publish; from latentswap.types import Making\n"
    "data = encoded('PNG', side=256); marking = Marking(); marking.check()\n"
    "def out(): publish(Path(sys.argv[1]), data, making=Making(deed='generated'), marking=marking, payload=None, "
    "networks={})\n"
)


@pytest.mark.parametrize("full", ["output", "record"])
def test_a_full_disk(tmp_path: Path, data: Path, full: str) -> None:
    path = tmp_path / "out.png"
    path.write_bytes(b"old")
    if full == "record":
        record_path().write_bytes(b"{}\n" * 20_000)
    script = (
        f"{_PUBLISHER}resource.setrlimit(resource.RLIMIT_FSIZE, (60_050, 60_050))\n"
        "try: out()\n"
        "except LatentSwapError as error: print(error); sys.exit(error.exit_code)\n"
    )
    process = _python(script, path)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 6, err
    assert ("job record" if full == "record" else "no space left") in out
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["out.png"]
    assert len(list(read_records())) == (20_000 if full == "record" else 1)


def test_dev_full_as_the_record(tmp_path: Path, data: Path) -> None:
    (data / "jobs.jsonl").symlink_to("/dev/full")
    with pytest.raises(ResourceError, match="No space left"):
        _publish(tmp_path / "out.png")
    assert os.listdir(tmp_path) == []


def test_killed_jobs_leave_a_signed_file_and_are_swept_up(tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    _publish(path)
    script = f"{_PUBLISHER}print('ready', flush=True)\nwhile True: out()\n"
    for attempt in range(4):
        process = _python(script, path)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.011 * (attempt + 1))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert verify(path).outcome == "trusted"
        with output_lock(path):
            assert os.listdir(tmp_path) == ["out.png"]
    for line in record_path().read_text().splitlines():
        json.loads(line)


@pytest.mark.slow
def test_records_of_many_jobs_at_once_stay_whole(tmp_path: Path) -> None:
    script = f"{_PUBLISHER}for _ in range(10): out()\n"
    jobs = [_python(script, tmp_path / f"{number}.png") for number in range(2)]
    for job in jobs:
        _, err = job.communicate(timeout=120)
        assert job.returncode == 0, err
    assert len(list(read_records())) == 20
    assert len({line["job"] for line in read_records()}) == 2


def test_a_video_is_signed_where_it_lies_and_recorded_under_its_name(tmp_path: Path) -> None:
    """Its parent is a file, too, and is never read whole into memory."""
    part, target = tmp_path / ".latentswap-0-0.part", tmp_path / "in.mp4"
    video(part)
    video(target, frames=4)
    making, marking = Making(deed="swapped", target=target), Marking(command="swap")
    finish_file(part, tmp_path / "out.mp4", making=making, marking=marking, payload=None, networks={})
    os.replace(part, tmp_path / "out.mp4")
    found = verify(tmp_path / "out.mp4")
    assert (found.outcome, found.media_type, found.origins[0].title) == ("trusted", "video/mp4", "target")
    (line,) = read_records()
    assert line["output"].endswith("/out.mp4") and line["sha256"] == sha256_of(tmp_path / "out.mp4")
    assert line["inputs"] == [{"role": "target", "sha256": sha256_of(target)}]
    again = Making(deed="edited", target=tmp_path / "out.mp4")
    video(part)
    finish_file(part, tmp_path / "b.mp4", making=again, marking=marking, payload=None, networks={})
    assert verify(part).origins[0].credentials == "trusted"
    assert sorted(os.listdir(tmp_path)) == [part.name, "in.mp4", "out.mp4"]


def test_a_broken_line_of_the_record_is_passed_over(tmp_path: Path) -> None:
    record_path().parent.mkdir(exist_ok=True)
    record_path().write_bytes(b'{"job": "cut o\n\xff\xfe\n')
    _publish(tmp_path / "out.png")
    assert [line["deed"] for line in read_records()] == ["swapped"]


def test_only_the_networks_that_had_a_part_are_named(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("generator", "mixer", "encoder", "identity")}
    for name, path in files.items():
        path.write_text(name)
    assert list(network_hashes(files, Making(deed="generated"))) == ["generator"]
    assert list(network_hashes(files, Making(deed="edited"))) == ["generator", "encoder", "identity"]
    everything = network_hashes(files, Making(deed="swapped"))
    assert everything["mixer"] == sha256_of(b"mixer") and len(everything) == 4
    files["mixer"].write_text("another one")
    assert network_hashes(files, Making(deed="swapped"))["mixer"] == sha256_of(b"another one")


def test_alpha_and_size_are_the_pictures_own(tmp_path: Path) -> None:
    alpha = np.full((96, 96), 200, np.uint8)
    _publish(tmp_path / "out.png", encode(Image(pixels=pixels(), alpha=alpha), ".png"))
    with PIL.Image.open(tmp_path / "out.png") as out:
        assert (out.mode, out.size) == ("RGBA", (96, 96))

"""The invisible watermark: what it costs a picture, what it survives, and what it finds where there is none.

    python benchmarks/watermark.py      # a few of everything, some minutes; the tables of docs/watermark.md:
    python benchmarks/watermark.py --pictures 100 --moves 10 --clips 100 --unmarked 1000 --searched 60 --peers
    python benchmarks/watermark.py --pictures 20 --moves 0 --clips 0 --unmarked 0 --strengths 0.5 1.4

Pictures are people who do not exist, at 1024², and scikit-image's photographs and textures as they are. Clips pan, zoom
and change brightness over such pictures, two seconds at 25 frames a second, with a little noise in every frame. Where
blind-watermark or invisible-watermark are installed (`pip install --no-deps blind-watermark invisible-watermark
PyWavelets`), `--peers` measures them on the same pictures.
"""

import argparse
import io
import itertools
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
from skimage import data
from skimage.metrics import structural_similarity

import latentswap
from latentswap.media.video import VideoInfo, VideoWriter, read_video
from latentswap.provenance.code import CHECK_BITS, check_of, most_likely
from latentswap.provenance.spread import fold, grid_shape, luma, residual, soft_bits, spectrum, to_cells
from latentswap.provenance.watermark import detect, detect_frames, embed, embed_frame, payload_for

PHOTOGRAPHS = ("astronaut", "camera", "coffee", "chelsea", "rocket", "brick", "grass", "gravel", "coins")
FRAMES = 50


def jpeg(quality: int, subsampling: int = 2) -> Callable[[np.ndarray], np.ndarray]:
    return lambda pixels: stored(pixels, "JPEG", quality=quality, subsampling=subsampling)


def webp(quality: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda pixels: stored(pixels, "WEBP", quality=quality)


def stored(pixels: np.ndarray, kind: str, **options: int) -> np.ndarray:
    out = io.BytesIO()
    PIL.Image.fromarray(pixels).save(out, kind, **options)
    return np.asarray(PIL.Image.open(out).convert("RGB"))


def resize(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return lambda pixels: cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=how)


def crop(share: float) -> Callable[[np.ndarray], np.ndarray]:
    """A part off the centre, with that share of each side."""

    def cut(pixels: np.ndarray) -> np.ndarray:
        rows, columns = (round(side * share) for side in pixels.shape[:2])
        top, left = (pixels.shape[0] - rows) // 3, (pixels.shape[1] - columns) * 2 // 3
        return np.ascontiguousarray(pixels[top : top + rows, left : left + columns])

    return cut


def framed(pixels: np.ndarray) -> np.ndarray:
    """As a screenshot with what is around the picture."""
    side = min(pixels.shape[:2])
    return cv2.copyMakeBorder(
        pixels, side // 9, side // 7, side // 20, side // 4, cv2.BORDER_CONSTANT, value=(250, 250, 252)
    )


def brighter(pixels: np.ndarray) -> np.ndarray:
    return cv2.convertScaleAbs(pixels, alpha=1.2, beta=15)


def darker(pixels: np.ndarray) -> np.ndarray:
    return np.rint(255 * (pixels / 255.0) ** 1.5).astype(np.uint8)


def noisy(pixels: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 8, pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


def rotated(degrees: float) -> Callable[[np.ndarray], np.ndarray]:
    def turn(pixels: np.ndarray) -> np.ndarray:
        height, width = pixels.shape[:2]
        matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1)
        return cv2.warpAffine(pixels, matrix, (width, height), borderMode=cv2.BORDER_REFLECT)

    return turn


def chain(*steps: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    def run(pixels: np.ndarray) -> np.ndarray:
        for step in steps:
            pixels = step(pixels)
        return pixels

    return run


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "PNG": lambda pixels: pixels,
    "JPEG 95, 4:2:0": jpeg(95),
    "JPEG 75, 4:2:0": jpeg(75),
    "JPEG 75, 4:4:4": jpeg(75, 0),
    "JPEG 50, 4:2:0": jpeg(50),
    "JPEG 50, 4:4:4": jpeg(50, 0),
    "JPEG 30, 4:2:0": jpeg(30),
    "WebP 80": webp(80),
    "WebP 50": webp(50),
    "half the size": resize(0.5),
    "half the size, JPEG 75": chain(resize(0.5), jpeg(75)),
    "a quarter of the size": resize(0.25),
    "twice the size": resize(2.0),
    "screenshot, 0.8 of the size": resize(0.8),
    "screenshot, 1.25 of the size": resize(1.25),
    "brighter and more contrast": brighter,
    "gamma 1.5": darker,
    "grey": lambda pixels: cv2.merge([luma(pixels)] * 3),
    "blur, 1.5 pixels": lambda pixels: cv2.GaussianBlur(pixels, (0, 0), 1.5),
    "noise, 8 levels": noisy,
}
# Those that `detect` finds by a search, or not at all.
MOVES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "screenshot with surroundings": framed,
    "mirrored": lambda pixels: np.ascontiguousarray(pixels[:, ::-1]),
    "crop, 0.9 of the sides": crop(0.9),
    "crop, 0.7, JPEG 75": chain(crop(0.7), jpeg(75)),
    "crop, 0.5, JPEG 75": chain(crop(0.5), jpeg(75)),
    "crop, 0.35": crop(0.35),
    "crop, 0.2": crop(0.2),
    "turned by 1°": rotated(1),
    "turned by 5°": rotated(5),
    "squeezed, 0.8 of the width": lambda pixels: cv2.resize(pixels, None, fx=0.8, fy=1, interpolation=cv2.INTER_AREA),
}


def people(count: int) -> list[np.ndarray]:
    swapper = latentswap.Swapper.from_pretrained(inversion="fast", mixes=False)
    return [swapper.sample([seed], truncation_psi=0.9)[0].pixels for seed in range(5000, 5000 + count)]


def photographs() -> list[np.ndarray]:
    """Those that come with scikit-image, as RGB."""
    found = [getattr(data, name)() for name in PHOTOGRAPHS]
    return [np.ascontiguousarray(cv2.merge([p] * 3) if p.ndim == 2 else p[..., :3]) for p in found]


def psnr(before: np.ndarray, after: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((before.astype(np.float32) - after) ** 2)))


def ssim(before: np.ndarray, after: np.ndarray) -> float:
    return float(structural_similarity(before, after, channel_axis=2))


def pictures(kinds: dict[str, list[np.ndarray]], strengths: list[float]) -> None:
    """What a picture pays and what the mark survives, by strength."""
    for kind, originals in kinds.items():
        rows: dict[str, list] = {}
        for strength in strengths:
            marked = [(p, embed(p, job(i), strength=strength), job(i)) for i, p in enumerate(originals)]
            noise = [psnr(before, after) for before, after, _ in marked]
            rows.setdefault("PSNR, mean, dB", []).append(f"{np.mean(noise):.1f}")
            rows.setdefault("PSNR, lowest, dB", []).append(f"{min(noise):.1f}")
            alike = np.mean([ssim(before, after) for before, after, _ in marked[:8]])
            rows.setdefault("SSIM, mean", []).append(f"{alike:.4f}")
            for name, change in CHANGES.items():
                right = sum(detect(change(after), search=False).payload == payload for _, after, payload in marked)
                rows.setdefault(name, []).append(right)
        print(f"\n{kind}, {len(originals)} pictures: how many show the right payload\n")
        table(["strength", *strengths], [[name, *row] for name, row in rows.items()])


def moves(kinds: dict[str, list[np.ndarray]]) -> None:
    """What the search for crops finds, at the default strength."""
    marked = {kind: [(embed(p, job(i)), job(i)) for i, p in enumerate(list_)] for kind, list_ in kinds.items()}
    print("\nhow many show the right payload\n")
    rows = [
        [name, *(sum(detect(change(p)).payload == payload for p, payload in pairs) for pairs in marked.values())]
        for name, change in MOVES.items()
    ]
    table(["", *(f"{kind}, {len(list_)}" for kind, list_ in kinds.items())], rows)


def job(number: int) -> int:
    return payload_for(latentswap.__version__, f"job {number}")


def table(head: list, rows: list[list]) -> None:
    for row in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


def clip(pixels: np.ndarray, number: int, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Two seconds of a camera that pans, zooms and changes its exposure over a picture."""
    rng, (width, height) = np.random.default_rng(number), size
    rows, columns = pixels.shape[:2]
    zoom, light = rng.uniform(0.55, 0.95, 2), rng.uniform(0.8, 1.15, 2)
    place = rng.uniform(0, 1, (2, 2))
    noise = rng.normal(0, 1.5, (height + 64, width + 64, 3)).astype(np.float32)
    for t in np.linspace(0, 1, FRAMES):
        scale = max(width / columns, height / rows) / (zoom[0] + (zoom[1] - zoom[0]) * t)
        left, top = (place[0] + (place[1] - place[0]) * t) * (columns - width / scale, rows - height / scale)
        matrix = np.array([[scale, 0, -left * scale], [0, scale, -top * scale]])
        frame = cv2.warpAffine(pixels, matrix, size, borderMode=cv2.BORDER_REFLECT)
        y, x = rng.integers(0, 65, 2)
        frame = frame * np.float32(light[0] + (light[1] - light[0]) * t) + noise[y : y + height, x : x + width]
        yield np.clip(frame, 0, 255).astype(np.uint8)


def clips(originals: list[np.ndarray], count: int, strengths: list[float]) -> None:
    """How many clips show the right payload after H.264, by strength; crf 18 and 28 on a quarter of them."""
    print(f"\n{count} clips of 2 s, a quarter of 1280x720, the others of 512x512: how many show the right payload\n")
    rows = []
    for strength in strengths:
        right: dict[int, list[bool]] = {18: [], 23: [], 28: []}
        lowest, first = 99.0, []
        for number in range(count):
            marked = []
            for frame in clip(
                originals[number % len(originals)], number, (1280, 720) if number % 4 == 1 else (512, 512)
            ):
                marked.append(embed_frame(frame, job(number), strength=strength))
                lowest = min(lowest, psnr(frame, marked[-1])) if len(marked) % 25 == 1 else lowest
            for crf in right if number % 4 == number // 4 % 4 else (23,):
                with through_h264(marked, crf) as frames:
                    seen = list(itertools.islice(frames, 16))
                    found = detect_frames(seen, search=False)
                    if not found.found:
                        found = detect_frames(itertools.chain(seen, frames), search=False)
                right[crf].append(found.payload == job(number))
                if crf == 23:
                    first.append(detect(seen[-1], search=False).payload == job(number))
            if number % 10 == 9:
                print(f"  {number + 1} clips, {sum(right[23])} of {len(right[23])} at crf 23", flush=True)
        cells = [f"{sum(found)} of {len(found)}" for found in (*right.values(), first)]
        rows.append([strength, f"{lowest:.1f}", *cells])
    table(["strength", "PSNR, lowest, dB", "crf 18", "crf 23", "crf 28", "crf 23, one frame"], rows)


@contextmanager
def through_h264(frames: list[np.ndarray], crf: int) -> Iterator[Iterator[np.ndarray]]:
    """The frames as they come out of a file."""
    height, width = frames[0].shape[:2]
    base = {"rate": Fraction(25), "time_base": Fraction(1, 25), "rotation": 0, "codec": "h264", "sound": ()}
    info = VideoInfo(name="clip", width=width, height=height, frames=len(frames), seconds=len(frames) / 25, **base)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        with VideoWriter(path, info, crf=crf, preset="veryfast") as writer:
            for pts, pixels in enumerate(frames):
                writer.write(pixels, pts)
        with read_video(path) as reader:
            yield (frame.pixels for frame in reader)


def unmarked_pictures(originals: list[np.ndarray], textures: list[np.ndarray]) -> Iterator[np.ndarray]:
    """Endless: people and photographs whole and cut, at several sizes and qualities, noise, ramps, stripes."""
    for number in itertools.count():
        rng = np.random.default_rng(number)
        if number % 10 == 9:
            size = tuple(int(n) for n in rng.integers(96, 900, 2))
            y, x = np.mgrid[: size[0], : size[1]]
            period = rng.uniform(2, 40)
            plane = [
                rng.normal(128, rng.uniform(1, 60), size),
                128 + 100 * np.sin((x * rng.normal() + y * rng.normal()) / period),
                x * 255 / size[1],
                255.0 * ((x // int(period) + y // int(period)) % 2),
            ][number // 10 % 4]
            yield cv2.merge([np.clip(plane, 0, 255).astype(np.uint8)] * 3)
            continue
        pool = textures if number % 10 in (3, 6) else originals
        pixels = pool[number % len(pool)]
        if number >= len(originals):
            pixels = crop(rng.uniform(0.3, 1))(pixels)
        pixels = resize(rng.uniform(0.3, 1.2) if min(pixels.shape[:2]) > 300 else 1.0)(pixels)
        yield jpeg(int(rng.integers(40, 96)))(pixels) if number % 3 else pixels


def unmarked(originals: list[np.ndarray], textures: list[np.ndarray], count: int, searched: int) -> None:
    """What the detector says of pictures without a mark, and how its statistics are spread over them."""
    found, bits, checks = 0, [], 0
    for number, pixels in enumerate(itertools.islice(unmarked_pictures(originals, textures), count)):
        found += detect(pixels, search=number < searched).found
        plane = luma(pixels)
        values = soft_bits(spectrum(fold(residual(to_cells(plane, grid_shape(*plane.shape)))[0])))
        payload, check = most_likely(values)
        checks += (check_of(payload) ^ check) & 0xFF == 0  # the last 8 of the 24 bits of the check
        bits.append(values)
    spread, fourth = np.std(bits), np.mean(np.square(np.square(bits)))
    print(f"\n{count} unmarked pictures, {searched} of them searched for crops: {found} found")
    print(f"  soft bits: standard deviation {spread:.3f} (1 by design), fourth moment {fourth:.2f} (3 if normal)")
    print(f"  8 of the {CHECK_BITS} bits of the check are right in {checks} ({count / 256:.1f} by chance)", flush=True)


def peers(originals: list[np.ndarray]) -> None:
    """Other packages on the same pictures, reduced to 512²: 32 bits without a code of their own."""
    originals = [cv2.resize(pixels, (512, 512), interpolation=cv2.INTER_AREA) for pixels in originals]
    names = ["PNG", "JPEG 95, 4:2:0", "JPEG 75, 4:2:0", "JPEG 50, 4:2:0", "half the size", "crop, 0.9 of the sides"]
    print(f"\n{len(originals)} pictures of 512x512: how many show all 32 bits\n")
    rows = []
    for peer, (write, read) in {"latentswap": (embed, lambda p: detect(p).payload), **other_packages()}.items():
        lowest, seconds, right = 99.0, [], [0] * len(names)
        for number, pixels in enumerate(originals):
            payload = job(number)
            began = time.process_time()
            marked = write(pixels, payload)
            read(marked)
            seconds.append(time.process_time() - began)
            lowest = min(lowest, psnr(pixels, marked))
            for at, name in enumerate(names):
                changed = {**CHANGES, **MOVES}[name](marked)
                if peer != "latentswap" and changed.shape != marked.shape:  # theirs know no other size
                    changed = cv2.resize(changed, (512, 512), interpolation=cv2.INTER_CUBIC)
                right[at] += read(changed) == payload
        rows.append([peer, f"{lowest:.1f}", f"{np.median(seconds):.3f}", *right])
    table(["", "PSNR, lowest, dB", "write and read, s", *names], rows)


def other_packages() -> dict:
    found = {}
    multiprocessing.set_start_method(None, force=True)  # blind-watermark sets it when it is imported
    try:
        from blind_watermark import WaterMark

        def write(pixels: np.ndarray, payload: int) -> np.ndarray:
            mark = WaterMark(password_img=1, password_wm=1)
            mark.read_img(img=np.ascontiguousarray(pixels[..., ::-1]))
            mark.read_wm([bool(payload >> i & 1) for i in range(32)], mode="bit")
            return np.clip(np.rint(mark.embed()), 0, 255).astype(np.uint8)[..., ::-1].copy()

        def read(pixels: np.ndarray) -> int:
            bits = WaterMark(password_img=1, password_wm=1).extract(
                embed_img=np.ascontiguousarray(pixels[..., ::-1]), wm_shape=32, mode="bit"
            )
            return sum(int(b > 0.5) << i for i, b in enumerate(bits))

        found["blind-watermark 0.4.4"] = write, read
    except ImportError:
        print("blind-watermark is not installed")
    try:
        from imwatermark import WatermarkDecoder, WatermarkEncoder

        def write_svd(pixels: np.ndarray, payload: int) -> np.ndarray:
            encoder = WatermarkEncoder()
            encoder.set_watermark("bits", [payload >> i & 1 for i in range(32)])
            return encoder.encode(np.ascontiguousarray(pixels[..., ::-1]), "dwtDctSvd")[..., ::-1].copy()

        def read_svd(pixels: np.ndarray) -> int:
            bits = WatermarkDecoder("bits", 32).decode(np.ascontiguousarray(pixels[..., ::-1]), "dwtDctSvd")
            return sum(int(b) << i for i, b in enumerate(bits))

        found["invisible-watermark 0.2.0, dwtDctSvd"] = write_svd, read_svd
    except ImportError:
        print("invisible-watermark is not installed")
    return found


def speed(pixels: np.ndarray) -> None:
    print()
    for name, (width, height), work in (
        ("embed and read back, 1024x1024", (1024, 1024), embed),
        ("embed a frame, 1280x720", (1280, 720), embed_frame),
        ("embed a frame, 1920x1080", (1920, 1080), embed_frame),
        ("embed and read back, 4000x3000", (4000, 3000), embed),
    ):
        picture = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_CUBIC)
        print(f"{name:<48}{1000 * median(lambda work=work, p=picture: work(p, 1)):8.1f} ms")
    marked = embed(pixels, 1)
    print(f"{'read, 1024x1024':<48}{1000 * median(lambda: detect(marked)):8.1f} ms")
    print(f"{'search in vain, 1024x1024':<48}{1000 * median(lambda: detect(pixels), 3):8.1f} ms")


def median(work: Callable[[], object], runs: int = 9) -> float:
    times = []
    for _ in range(runs):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description="The invisible watermark: cost, survival, false findings, speed.")
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--moves", type=int, default=2, help="pictures in which cropped and moved ones are searched")
    parser.add_argument("--clips", type=int, default=6)
    parser.add_argument("--strengths", type=float, nargs="+", default=[1.0])
    parser.add_argument("--unmarked", type=int, default=60)
    parser.add_argument("--searched", type=int, default=20, help="of the unmarked")
    parser.add_argument("--peers", action="store_true")
    options = parser.parse_args()
    print(f"latentswap {latentswap.__version__}, OpenCV {cv2.__version__}, {os.cpu_count()} cores")
    originals, textures = people(max(1, options.pictures, options.moves, options.clips // 2)), photographs()
    speed(originals[0])
    if options.pictures:
        kinds = {"generated people, 1024x1024": originals[: options.pictures], "photographs and textures": textures}
        pictures(kinds, options.strengths)
    if options.moves:
        moves({"people": originals[: options.moves], "photographs and textures": textures})
    if options.clips:
        mixed = [p for pair in zip(originals, itertools.cycle(textures), strict=False) for p in (pair[0], *pair)]
        clips(mixed, options.clips, options.strengths)
    if options.unmarked:
        unmarked(originals, textures, options.unmarked, min(options.searched, options.unmarked))
    if options.peers:
        peers(originals[:20])


if __name__ == "__main__":
    main()

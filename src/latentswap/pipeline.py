"""The main path, top to bottom. Each stage is one function of another module; this file is their order.

bytes → decode → detect → align → invert → mix → synthesise → paste back → mark → encode → atomic write
SOURCE once: decode → detect → align → prepare; then swap many.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Literal

import numpy as np
import torch

import latentswap
from latentswap.errors import UsageError
from latentswap.face.align import cut, cut_face
from latentswap.face.analyse import FaceAnalyser
from latentswap.face.mask import face_mask
from latentswap.face.paste import paste
from latentswap.face.select import FaceChoice, choose, parse_faces
from latentswap.identity.dlib_resnet import centred, chip
from latentswap.inversion.optimise import embed
from latentswap.media.atomic import write_atomic
from latentswap.media.image import as_image, check_output_path, decode, encode
from latentswap.networks import Networks, load_networks
from latentswap.provenance.mark import xmp_packet
from latentswap.seeds import generator_for
from latentswap.shape.mesh import crop_mesh
from latentswap.swappers.base import OnStep, Prepared, no_progress
from latentswap.swappers.latentswap import Inversion, LatentSwap, Render, to_pixels, to_tensor
from latentswap.types import Crop, Face, Image, SwapResult
from latentswap.weights.fetch import cache_root

Picture = str | Path | bytes | np.ndarray | Image
CROP_SIZE = 1024

_CANDIDATES = 24  # fictional people that one replacement is chosen from
_FAR_ENOUGH = 0.05  # centred cosine below which two people are strangers: half of all unrelated pairs


class Swapper:
    """Swaps and anonymises faces in pictures. Build one with `from_pretrained`, use it from one thread.

    >>> swapper = Swapper.from_pretrained()
    >>> person = swapper.prepare("source.jpg")
    >>> result = swapper.swap(person, "target.jpg")
    >>> swapper.write(result, "out.png")
    """

    def __init__(self, networks: Networks, method: LatentSwap, analyser: FaceAnalyser) -> None:
        self.networks, self.method, self.analyser = networks, method, analyser

    @classmethod
    def from_pretrained(
        cls,
        *,
        method: Literal["latentswap"] = "latentswap",
        inversion: Inversion = "refine",
        device: str = "cpu",
        offline: bool = False,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> "Swapper":
        """The default networks, fetched at first use.

        Raises UsageError for an unknown method, inversion or device, WeightsError when networks cannot be had.
        """
        if method != "latentswap":
            raise UsageError(f"method is {method!r}; there is: latentswap.")
        check_device(device)
        networks = load_networks(device=device, offline=offline, progress=progress)
        swapping = LatentSwap(networks, make_render(networks, device), inversion=inversion)
        return cls(networks, swapping, FaceAnalyser.load(offline=offline))

    def prepare(self, source: Picture, *, faces: str | FaceChoice | None = None) -> Prepared:
        """Look at a SOURCE once: a picture with one face (or a choice of one), or a file that `invert` wrote.

        Raises BadInputError for a picture that cannot be read, NoFaceError when no face or no single face is meant.
        """
        if isinstance(source, str | Path) and Path(source).suffix == ".safetensors":
            generator = self.networks.generator
            return Prepared.load(Path(source), num_ws=generator.num_ws, w_dim=generator.w_dim)
        image = read(source, role="SOURCE")
        (face, *_) = self._choose(image, self.analyser(image.pixels), faces, role="SOURCE")
        return self.method.prepare(cut_face(image.pixels, face.mesh_K3, CROP_SIZE), name=image.name)

    def swap(
        self,
        source: Prepared | Picture,
        target: Picture,
        *,
        faces: str | FaceChoice | None = None,
        strength: float = 1.0,
        layers: tuple[int, ...] | None = None,
        on_step: OnStep = no_progress,
    ) -> SwapResult:
        """The TARGET picture with the source's face in place of every face (or of those chosen).

        faces: `all` (default), `largest`, a number, or `match:REFERENCE.jpg`. strength: 0 keeps the target's identity,
        1 takes the source's. layers: rows of W+ that are swapped; None for all. on_step: (steps done, steps in all).
        Raises UsageError, BadInputError and NoFaceError.
        """
        if not 0 <= strength <= 1:
            raise UsageError(f"Strength is {strength}; it runs from 0 (the target) to 1 (the swap).")
        prepared = source if isinstance(source, Prepared) else self.prepare(source)
        return self._replace(
            target,
            faces,
            on_step,
            lambda crop, index, step: self.method.swap(prepared, crop, strength=strength, layers=layers, on_step=step),
        )

    def anonymize(
        self, target: Picture, *, faces: str | FaceChoice | None = None, seed: int = 0, on_step: OnStep = no_progress
    ) -> SwapResult:
        """The TARGET picture with people who do not exist. The same seed gives the same people.

        For every face a stranger to it is drawn (`stranger`). The report gives the identity cosine to the original that
        was reached, by the network the swap was made with.
        """
        return self._replace(
            target,
            faces,
            on_step,
            lambda crop, index, step: self.method.swap(self.stranger(crop, seed=seed + index), crop, on_step=step),
        )

    def stranger(self, crop: Crop, *, seed: int) -> Prepared:
        """A person who does not exist and is not the one in the crop.

        Of 24 drawn, those whose identity cosine to the original is at most 0.05 are strangers; the one of them that is
        likest in pose and skin colour is taken.
        """
        nets = self.networks
        original = self.method.prepare(crop)
        skin = _skin(to_tensor(crop.pixels, nets.mean_E.device))
        best: tuple[tuple[bool, float], torch.Tensor] | None = None
        for index in range(_CANDIDATES):
            ws_BLD = person(nets, seed=seed, index=index)
            with torch.no_grad():
                img_BCHW = nets.generator.synthesis(ws_BLD, resolution=256)
                embedding_BE = centred(nets.identity(chip(img_BCHW)), nets.mean_E)
                pose = 100 * float((crop_mesh(nets.mesh, img_BCHW) - original.mesh)[..., :2].abs().mean())
            cosine = float((embedding_BE * original.embedding).sum())
            colour = float((_skin(img_BCHW) - skin).abs().mean())
            known = cosine > _FAR_ENOUGH
            rank = (known, cosine if known else colour / 20 + pose / 2)
            if best is None or rank < best[0]:
                best = (rank, ws_BLD)
        assert best is not None  # noqa: S101 - there is always a first candidate
        return self.method.prepare_code(best[1], name=f"person of seed {seed}")

    def sample(self, seeds: Sequence[int], *, truncation_psi: float = 0.7) -> list[Image]:
        """People who do not exist, at 1024²: one Image a seed."""
        if not 0 <= truncation_psi <= 1.5:
            raise UsageError(f"truncation_psi is {truncation_psi}; it runs from 0 (the mean face) to 1.5.")
        codes = [person(self.networks, seed=seed, index=0, truncation_psi=truncation_psi) for seed in seeds]
        return [Image(pixels=self.method.render(ws)[0], name=f"person {s}") for s, ws in zip(seeds, codes, strict=True)]

    def invert(
        self, source: Picture, *, faces: str | FaceChoice | None = None, on_step: OnStep = no_progress
    ) -> tuple[Prepared, Image]:
        """A photograph's face as a W+ code, and the picture that the code makes."""
        image = read(source, role="SOURCE")
        (face, *_) = self._choose(image, self.analyser(image.pixels), faces, role="SOURCE")
        crop = cut_face(image.pixels, face.mesh_K3, CROP_SIZE)
        prepared = self.method.prepare(crop, name=image.name)
        w_plus = self.method.invert(crop, on_step=on_step)
        return (
            Prepared(w_plus=w_plus, embedding=prepared.embedding, mesh=prepared.mesh, name=image.name),
            Image(pixels=self.method.render(w_plus)[0], name=image.name),
        )

    def write(self, result: SwapResult | Image, path: str | Path, *, quality: int = 95) -> None:
        """Encode by the path's suffix, mark as synthetic, write atomically. Raises UsageError and ResourceError."""
        path = Path(path)
        check_output_path(path)
        whole = isinstance(result, Image)  # nothing in it was photographed
        packet = xmp_packet(
            digital_source_type="trainedAlgorithmicMedia" if whole else "compositeWithTrainedAlgorithmicMedia",
            software=f"latentswap {latentswap.__version__}",
            details={"method": "latentswap"},
        )
        write_atomic(path, encode(result if whole else result.image, path.suffix, quality=quality, xmp=packet))

    def _replace(
        self,
        target: Picture,
        faces: str | FaceChoice | None,
        on_step: OnStep,
        replace: Callable[[Crop, int, OnStep], np.ndarray],
    ) -> SwapResult:
        """detect → align → `replace` → paste back, for every chosen face of a TARGET."""
        began = perf_counter()
        image = read(target, role="TARGET")
        found = self.analyser(image.pixels)
        chosen = self._choose(image, found, faces, role="TARGET")
        pixels, reports = image.pixels, []
        for index, face in enumerate(chosen):
            crop = cut_face(pixels, face.mesh_K3, CROP_SIZE)
            swapped = replace(crop, index, lambda done, total, i=index: on_step(i * total + done, len(chosen) * total))
            mask = face_mask(crop.mesh_K3, CROP_SIZE, other_K3=self._mesh(swapped))
            pixels = paste(pixels, swapped, crop.affine, mask, target_crop=crop.pixels)
            reports.append({"box": [round(v) for v in face.box], "cosine_to_original": self._cosine(pixels, crop)})
        return SwapResult(
            image=Image(pixels=pixels, alpha=image.alpha, icc_profile=image.icc_profile, name=image.name),
            faces=chosen,
            skipped=tuple(face for face in found if face not in chosen and "not_a_face" not in face.reasons),
            report={"seconds": round(perf_counter() - began, 2), "faces": reports},
        )

    def _mesh(self, pixels: np.ndarray) -> np.ndarray:
        """The mesh of an aligned crop, in its pixels."""
        with torch.no_grad():
            mesh_BK3 = crop_mesh(self.networks.mesh, to_tensor(pixels, self.networks.mean_E.device))
        return mesh_BK3[0].cpu().numpy() * pixels.shape[0]

    def _cosine(self, pixels: np.ndarray, crop: Crop) -> float:
        """Identity cosine between the crop and what now stands in its place, by the network the swap was made with."""
        nets = self.networks
        before, after = (
            embed(nets.identity, to_tensor(square, nets.mean_E.device), nets.mean_E)
            for square in (crop.pixels, cut(pixels, crop.affine, crop.size))
        )
        return round(float((before * after).sum()), 3)

    def _choose(
        self,
        image: Image,
        found: tuple[Face, ...],
        faces: str | FaceChoice | None,
        *,
        role: Literal["SOURCE", "TARGET"],
    ) -> tuple[Face, ...]:
        choice = parse_faces(faces) if isinstance(faces, str) else faces
        if choice is None or choice.kind != "match" or choice.reference is None:
            return choose(found, choice, role=role, name=image.name)
        reference = read(choice.reference, role="REFERENCE")
        (wanted, *_) = choose(self.analyser(reference.pixels), None, role="SOURCE", name=reference.name)

        def describe(face: Face, pixels: np.ndarray = image.pixels) -> np.ndarray:
            with torch.no_grad():
                crop = to_tensor(cut_face(pixels, face.mesh_K3, 256).pixels, self.networks.mean_E.device)
                return self.networks.identity(chip(crop))[0].cpu().numpy()

        return choose(
            found,
            choice,
            role=role,
            name=image.name,
            embed=describe,
            reference_E=describe(wanted, reference.pixels),
        )


def read(picture: Picture, *, role: str) -> Image:
    """bytes → decode: a path, the bytes of a file, an RGB array or an Image."""
    if isinstance(picture, Image):
        return picture
    if isinstance(picture, np.ndarray):
        return as_image(picture)
    return decode(picture, role=role)


def person(networks: Networks, *, seed: int, index: int = 0, truncation_psi: float = 0.7) -> torch.Tensor:
    """The W+ code [1, L, D] of a person who does not exist, a function of (seed, index)."""
    generator = networks.generator
    z_BD = torch.randn(1, generator.w_dim, generator=generator_for(seed, index, stream=6))
    with torch.no_grad():
        w_BD = generator.mapping(z_BD.to(generator.w_avg), truncation_psi=truncation_psi)
    return w_BD[:, None].expand(-1, generator.num_ws, -1).contiguous()


def check_device(device: str) -> None:
    """Raise UsageError for a device that torch does not have here."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"--device {device!r} is not available here; use cpu. ({str(error).splitlines()[0]})"
        ) from error


def make_render(networks: Networks, device: str) -> Render:
    """The generator at full size: OpenVINO on a CPU, torch on anything else."""
    if device != "cpu":

        def on_device(ws_BLD: torch.Tensor) -> np.ndarray:
            with torch.no_grad():
                return to_pixels(networks.generator.synthesis(ws_BLD.to(device)))

        return on_device
    from latentswap.runtime.generator import OpenVINOSynthesis

    synthesis = OpenVINOSynthesis(networks.generator, cache_dir=cache_root() / "runtime")
    return lambda ws_BLD: to_pixels(torch.from_numpy(synthesis(ws_BLD.detach().cpu().numpy())))


def _skin(img_BCHW: torch.Tensor) -> torch.Tensor:
    """Mean colour of the middle of the face, 0…255."""
    return chip(img_BCHW)[:, :, 60:110, 40:110].mean((2, 3))

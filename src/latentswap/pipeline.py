"""The main path, top to bottom. Each stage is one function of another module; this file is their order.

bytes → decode → detect → align → invert → mix → synthesise → paste back → mark → encode → atomic write
SOURCE once: decode → detect → align → prepare; then swap many.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Literal

import numpy as np
import torch

import latentswap
from latentswap.edit.directions import Edits
from latentswap.errors import UsageError
from latentswap.face.align import cut, cut_face
from latentswap.face.analyse import FaceAnalyser
from latentswap.face.mask import face_mask
from latentswap.face.occlusion import beside, occlusion
from latentswap.face.paste import paste
from latentswap.face.select import FaceChoice, choose, parse_faces
from latentswap.identity.dlib_resnet import chip
from latentswap.inversion.delta import GeneratorDelta
from latentswap.inversion.optimise import embed
from latentswap.inversion.psp import EncoderName, PspEncoder, PspInverter, check_name
from latentswap.media.atomic import write_atomic
from latentswap.media.image import as_image, check_output_path, decode, encode, pictures_in
from latentswap.networks import Networks, load_networks
from latentswap.provenance.consent import NOBODY, SHOWS
from latentswap.provenance.enforce import check_face, enforced
from latentswap.provenance.mark import xmp_packet
from latentswap.provenance.recognise import embed_face
from latentswap.seeds import generator_for
from latentswap.shape.mesh import crop_mesh
from latentswap.swappers.base import OnStep, Prepared, no_progress
from latentswap.swappers.latentswap import (
    EditWhen,
    Inversion,
    LatentSwap,
    Render,
    average,
    is_pivotal,
    to_pixels,
    to_tensor,
)
from latentswap.types import Crop, Face, Image, SwapResult
from latentswap.weights.fetch import cache_root

Picture = str | Path | bytes | np.ndarray | Image
CROP_SIZE = 1024


@dataclass(frozen=True, kw_only=True, eq=False)
class Inverted:
    """What `Swapper.invert` found."""

    prepared: Prepared
    picture: Image
    delta: GeneratorDelta | None = None  # of pivotal tuning


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
        inversion: Inversion | EncoderName = "refine",
        encoder: str | Path | None = None,
        joint: bool = False,
        tuned: str | Path | None = None,
        generator: str | Path | None = None,
        mixer: str | Path | None = None,
        mixes: bool = True,
        device: str = "cpu",
        offline: bool = False,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> "Swapper":
        """The default networks, fetched at first use. tuned: a generator delta that `invert` wrote.

        encoder: a published encoder's converted file; its codes then take the place of the shipped encoder's. An
        inversion of its name (`e4e`, `psp`, `restyle`) is `fast` with it. joint: `tune` tunes to the source's
        photograph, too.
        generator, mixer: converted files in place of the shipped networks, the paper's among them (docs/training.md).
        mixes: False where nothing is swapped: codes, edits and samples of a generator of yours need no mixer.
        Raises UsageError for an unknown method, inversion or device and for networks that do not fit one another,
        WeightsError when networks cannot be had.
        """
        if method != "latentswap":
            raise UsageError(f"method is {method!r}; there is: latentswap.")
        check_device(device)
        published = None if encoder is None else PspEncoder.load(encoder)
        if joint and inversion != "tune":
            raise UsageError(f"Only `tune` can tune to the pair jointly, not inversion {inversion!r}.")
        if inversion in ("e4e", "psp", "restyle"):
            check_name(published, inversion)
            inversion = "fast"
        networks = load_networks(
            generator=generator, mixer=mixer, mixes=mixes, device=device, offline=offline, progress=progress
        )
        if tuned is not None:
            delta = GeneratorDelta.load(tuned, networks.generator)
            networks = replace(networks, generator=delta.apply(networks.generator))
        inverter = None if published is None else PspInverter(published.to(device), networks.generator)
        is_pivotal(networks, inversion, inverter)  # refused before the generator is compiled
        render = make_render(networks, device)
        swapping = LatentSwap(networks, render, inversion=inversion, joint=joint, inverter=inverter)
        return cls(networks, swapping, FaceAnalyser.load(offline=offline))

    def prepare(
        self,
        source: Picture | Sequence[Picture],
        *,
        faces: str | FaceChoice | None = None,
        consent: str | None = None,
        on_step: OnStep = no_progress,
    ) -> Prepared:
        """Look at a SOURCE once: a picture with one face (or a choice of one), several pictures or a folder of them
        that show one person, or a file that `invert` wrote.

        consent: what was attested about the person's agreement; it goes along into the report of every swap.
        Raises BadInputError for a picture that cannot be read, NoFaceError when no face or no single face is meant,
        UsageError when several pictures show different people, ProtectedPersonError for a person on a do-not-swap list.
        """
        if isinstance(source, str | Path) and Path(source).is_dir():
            source = pictures_in(Path(source), role="SOURCE")
        if isinstance(source, Sequence) and not isinstance(source, str | bytes):
            each = [self.prepare(one, faces=faces, consent=consent, on_step=on_step) for one in source]
            return self._allowed(average(each))
        if isinstance(source, str | Path) and Path(source).suffix == ".safetensors":
            generator = self.networks.generator
            prepared = Prepared.load(Path(source), num_ws=generator.num_ws, w_dim=generator.w_dim)
            if enforced():  # what the code draws counts as well as what the file says of it
                drawn = self.method.prepare_code(prepared.w_plus.to(self.networks.mean_E), name=prepared.name)
                self._allowed(drawn)
            return self._allowed(replace(prepared, consent=consent))
        image = read(source, role="SOURCE")
        (face, *_) = self._choose(image, self.analyser(image.pixels), faces, role="SOURCE")
        crop = cut_face(image.pixels, face.mesh_K3, CROP_SIZE)
        self._check_protected(image, face, role="SOURCE")  # before a pivot is looked for
        prepared = self.method.prepare(crop, name=image.name, on_step=on_step)
        return replace(prepared, synthetic=image.synthetic, consent=consent)

    def swap(
        self,
        source: Prepared | Picture | Sequence[Picture],
        target: Picture,
        *,
        faces: str | FaceChoice | None = None,
        strength: float = 1.0,
        layers: tuple[int, ...] | None = None,
        occluders: bool = True,
        edits: Edits = (),
        edit_when: EditWhen = "after",
        on_step: OnStep = no_progress,
    ) -> SwapResult:
        """The TARGET picture with the source's face in place of every face (or of those chosen).

        faces: `all` (default), `largest`, a number, or `match:REFERENCE.jpg`. strength: 0 keeps the target's identity,
        1 takes the source's. layers: rows of W+ that are swapped; None for all. occluders: keep what lies in front of
        the target's face (`face.occlusion`). edits: directions and their strengths (`edit.directions`), of the swap
        (`after`) or of the target before it is swapped. on_step: (steps done, steps in all).
        Raises UsageError, BadInputError, NoFaceError, and ProtectedPersonError when the source or a chosen face is of
        a person on a do-not-swap list.
        """
        if not 0 <= strength <= 1:
            raise UsageError(f"Strength is {strength}; it runs from 0 (the target) to 1 (the swap).")
        prepared = self._allowed(source) if isinstance(source, Prepared) else self.prepare(source)
        result = self._replace(
            target,
            faces,
            on_step,
            lambda crop, index, step: self.method.swap(
                prepared, crop, strength=strength, layers=layers, edits=edits, edit_when=edit_when, on_step=step
            ),
            occluders=occluders,
        )
        about = {"name": prepared.name, "synthetic": prepared.synthetic, "consent": prepared.consent}
        return replace(result, report={**result.report, "source": about})

    def edit(
        self,
        target: Picture,
        edits: Edits,
        *,
        faces: str | FaceChoice | None = None,
        on_step: OnStep = no_progress,
    ) -> SwapResult:
        """The TARGET picture with its own faces edited: inverted, moved along the directions, drawn and pasted back.

        Raises UsageError, BadInputError, NoFaceError and ProtectedPersonError.
        """
        return self._replace(
            target,
            faces,
            on_step,
            lambda crop, index, step: self.method.edit(crop, edits, on_step=step),
            occluders=True,
        )

    def code(
        self, source: Picture, *, faces: str | FaceChoice | None = None, on_step: OnStep = no_progress
    ) -> torch.Tensor:
        """The W+ code [1, L, D] of a file that `invert` or `sample` wrote, or of a photograph's face."""
        if isinstance(source, str | Path) and Path(source).suffix == ".safetensors":
            return self.prepare(source).w_plus
        return self.invert(source, faces=faces, on_step=on_step).prepared.w_plus

    def anonymize(
        self,
        target: Picture,
        *,
        faces: str | FaceChoice | None = None,
        seed: int = 0,
        keep: str = "all",
        on_step: OnStep = no_progress,
    ) -> SwapResult:
        """The TARGET picture with people who do not exist. The same seed gives the same people.

        keep: what a replacement shares with the original, of `age,sex,skin`; `all` or `none`. For a job of many
        pictures use `anonymize.Anonymizer`, which also remembers who replaced whom. Raises NotAnonymisedError when a
        face still resembles its original, UsageError, BadInputError and NoFaceError.
        """
        from latentswap.anonymize import Anonymizer, parse_keep

        return Anonymizer(self, seed=seed, keep=parse_keep(keep))(target, faces=faces, on_step=on_step)

    def sample(self, seeds: Sequence[int], *, truncation_psi: float = 0.7) -> list[Image]:
        """People who do not exist, at 1024²: one Image a seed."""
        if not 0 <= truncation_psi <= 1.5:
            raise UsageError(f"truncation_psi is {truncation_psi}; it runs from 0 (the mean face) to 1.5.")
        codes = [person(self.networks, seed=seed, index=0, truncation_psi=truncation_psi) for seed in seeds]
        return [
            Image(pixels=self.method.render(ws)[0], name=f"person {s}", synthetic=True)
            for s, ws in zip(seeds, codes, strict=True)
        ]

    def invert(
        self, source: Picture, *, faces: str | FaceChoice | None = None, on_step: OnStep = no_progress
    ) -> Inverted:
        """A photograph's face as a W+ code, and the picture that the code makes; with `tune` also the generator's
        change that makes it resemble the photograph. Raises as `prepare`."""
        image = read(source, role="SOURCE")
        (face, *_) = self._choose(image, self.analyser(image.pixels), faces, role="SOURCE")
        crop = cut_face(image.pixels, face.mesh_K3, CROP_SIZE)
        self._check_protected(image, face, role="SOURCE")
        prepared = self.method.prepare(crop, name=image.name, on_step=on_step)
        delta, render, w_plus = None, self.method.render, prepared.w_plus
        if not self.method.pivotal:
            w_plus = self.method.invert(crop, on_step=on_step)
        if self.method.inversion == "tune":
            delta = self.method.tune([crop], w_plus, on_step=on_step)
            tuned = delta.apply(self.networks.generator)
            render = make_render(replace(self.networks, generator=tuned), "cpu")
        return Inverted(
            prepared=replace(prepared, w_plus=w_plus, synthetic=image.synthetic),
            picture=Image(pixels=render(w_plus)[0], name=image.name),
            delta=delta,
        )

    def write(self, result: SwapResult | Image, path: str | Path, *, quality: int = 95) -> None:
        """Encode by the path's suffix, mark as synthetic, write atomically. Raises UsageError and ResourceError."""
        path = Path(path)
        check_output_path(path)
        whole = isinstance(result, Image)
        xmp = packet(whole=whole, nobody=whole and result.synthetic)
        write_atomic(path, encode(result if whole else result.image, path.suffix, quality=quality, xmp=xmp))

    def _replace(
        self,
        target: Picture,
        faces: str | FaceChoice | None,
        on_step: OnStep,
        work: Callable[[Crop, int, OnStep], np.ndarray],
        *,
        occluders: bool = False,
        protects: bool = False,
    ) -> SwapResult:
        """detect → align → `work` → paste back, for every chosen face of a TARGET.

        protects: the work protects who is shown, so that people on do-not-swap lists are welcome.
        """
        began = perf_counter()
        image = read(target, role="TARGET")
        found = self.analyser(image.pixels)
        chosen = self._choose(image, found, faces, role="TARGET")
        if not protects:
            for face in chosen:
                self._check_protected(image, face, role="TARGET")
        pixels, reports = image.pixels, []
        for index, face in enumerate(chosen):
            crop = cut_face(pixels, face.mesh_K3, CROP_SIZE)
            swapped = work(crop, index, lambda done, total, i=index: on_step(i * total + done, len(chosen) * total))
            if len(swapped) < CROP_SIZE:  # a smaller generator's
                swapped = to_pixels(to_tensor(swapped, size=CROP_SIZE))[0]
            swapped_K3 = self._mesh(swapped)
            mask = face_mask(crop.mesh_K3, CROP_SIZE, other_K3=swapped_K3)
            if occluders:
                mask *= 1 - occlusion(crop.pixels, crop.mesh_K3, self.method.reconstruction(crop))
                mask *= 1 - beside(swapped, swapped_K3, crop.mesh_K3)
            pixels = paste(
                pixels,
                swapped,
                crop.affine,
                mask,
                target_crop=crop.pixels,
                target_K3=crop.mesh_K3,
                swapped_K3=swapped_K3,
            )
            reports.append({"box": [round(v) for v in face.box], "cosine_to_original": self._cosine(pixels, crop)})
        return SwapResult(
            image=Image(pixels=pixels, alpha=image.alpha, icc_profile=image.icc_profile, name=image.name),
            faces=chosen,
            skipped=tuple(face for face in found if face not in chosen and "not_a_face" not in face.reasons),
            report={"seconds": round(perf_counter() - began, 2), "faces": reports},
        )

    def _check_protected(self, image: Image, face: Face, *, role: Literal["SOURCE", "TARGET"]) -> None:
        """Raise ProtectedPersonError when the face is of a person on a do-not-swap list (`provenance.enforce`)."""
        if not (lists := enforced()):
            return
        embedding_BE = embed_face(self.networks.identity, self.networks.mean_E, image.pixels, face)
        box = [round(v) for v in face.box]
        check_face(embedding_BE, what=f"the face at {box} in the {role} image {image.name}", lists=lists)

    def _allowed(self, prepared: Prepared) -> Prepared:
        """The same, unless it is of a person on a do-not-swap list: then ProtectedPersonError."""
        if lists := enforced():
            check_face(prepared.embedding, what=f"the face of the SOURCE {prepared.name}", lists=lists)
        return prepared

    def _mesh(self, pixels: np.ndarray) -> np.ndarray:
        """The mesh of an aligned crop, in its pixels."""
        with torch.no_grad():
            mesh_BK3 = crop_mesh(self.networks.mesh, to_tensor(pixels, self.networks.mean_E.device))
        return mesh_BK3[0].cpu().numpy() * pixels.shape[0]

    def _cosine(self, pixels: np.ndarray, crop: Crop) -> float:
        """Identity cosine between the crop and what now stands in its place, by the network the swap was made with."""
        nets = self.networks
        squares = crop.pixels, cut(pixels, crop.affine, crop.size)
        pair_BCHW = torch.cat([to_tensor(square, nets.mean_E.device) for square in squares])
        before_E, after_E = embed(nets.identity, pair_BCHW, nets.mean_E)
        return round(float(before_E @ after_E), 3)

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


def packet(*, whole: bool, nobody: bool = False) -> bytes:
    """The mark of an output (`provenance.mark`). whole: nothing in it was photographed. nobody: nor does it go back to
    a photograph, so that it needs no consent as a SOURCE."""
    return xmp_packet(
        digital_source_type="trainedAlgorithmicMedia" if whole else "compositeWithTrainedAlgorithmicMedia",
        software=f"latentswap {latentswap.__version__}",
        details={"method": "latentswap"} | ({SHOWS: NOBODY} if nobody else {}),
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

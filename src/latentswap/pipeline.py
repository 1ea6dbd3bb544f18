"""The main path, top to bottom. Each stage is one function of another module; this file is their order.

bytes → decode → detect → align → swap → paste back → mark → encode → sign → atomic write
    swap, of LatentSwap: invert → mix → synthesise; of SimSwap: inject → decode
SOURCE once: decode → detect → align → prepare; then swap many.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, TypeVar

import numpy as np
import torch

import latentswap
from latentswap.edit.directions import Edits
from latentswap.errors import UsageError
from latentswap.face.align import cut, cut_face
from latentswap.face.analyse import FaceAnalyser
from latentswap.face.frame import reframe
from latentswap.face.mask import face_mask
from latentswap.face.occlusion import beside, occlusion
from latentswap.face.paste import paste
from latentswap.face.select import MATCH_DISTANCE, FaceChoice, choose, parse_faces
from latentswap.identity.dlib_resnet import chip
from latentswap.inversion.delta import GeneratorDelta
from latentswap.inversion.optimise import embed
from latentswap.inversion.psp import EncoderName
from latentswap.mapping import Mapped, Pair, Source, prepare_map, swap_map
from latentswap.media.image import as_image, check_output_path, decode, encode, pictures_in
from latentswap.methods import Method, build_method, make_render
from latentswap.networks import Networks
from latentswap.provenance.apply import Marking, network_hashes, publish, watermarked
from latentswap.provenance.consent import NOBODY, SHOWS, shows_nobody
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
    prepare_code,
    to_pixels,
    to_tensor,
)
from latentswap.types import Crop, Face, Image, Making, SwapResult

Picture = str | Path | bytes | np.ndarray | Image
AnySource = TypeVar("AnySource", bound=Source)
Work = Callable[[Source, Crop, OnStep], np.ndarray]
"""Swaps one crop: what it does is settled by the options."""
VIEW_SIZE = 512  # side of the FFHQ-aligned crop to which the results of smaller ones of another alignment are brought


@dataclass(frozen=True, kw_only=True, eq=False)
class Inverted:
    """What `Swapper.invert` found."""

    prepared: Prepared
    picture: Image
    delta: GeneratorDelta | None = None  # of pivotal tuning
    making: Making = field(default_factory=lambda: Making(deed="inverted"))  # of the picture


class Swapper:
    """Swaps and anonymises faces in pictures. Build one with `from_pretrained`, use it from one thread.

    >>> swapper = Swapper.from_pretrained()
    >>> person = swapper.prepare("source.jpg")
    >>> result = swapper.swap(person, "target.jpg")
    >>> swapper.write(result, "out.png")
    """

    def __init__(self, networks: Networks, method: Method, analyser: FaceAnalyser) -> None:
        self.networks, self.method, self.analyser = networks, method, analyser

    @classmethod
    def from_pretrained(
        cls,
        *,
        method: Literal["latentswap", "simswap"] = "latentswap",
        inversion: Inversion | EncoderName = "refine",
        encoder: str | Path | None = None,
        joint: bool = False,
        tuned: str | Path | None = None,
        generator: str | Path | None = None,
        mixer: str | Path | None = None,
        mixes: bool = True,
        identity: str | Path | None = None,
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
        method: `simswap` swaps with the shipped network of SimSwap's kind or, with `generator` and `identity`, with a
        published one and its identity network, converted files both (docs/simswap.md); the other options are
        LatentSwap's.
        Raises UsageError for an unknown method, inversion or device and for networks that do not fit one another,
        WeightsError when networks cannot be had.
        """
        files = {"encoder": encoder, "tuned": tuned, "generator": generator, "mixer": mixer, "identity": identity}
        source = {"device": device, "offline": offline, "progress": progress}
        networks, swapping = build_method(method, inversion, files, joint=joint, mixes=mixes, **source)
        return cls(networks, swapping, FaceAnalyser.load(offline=offline))

    @property
    def latent(self) -> LatentSwap:
        """The method, for what needs latent codes. Raises UsageError for one that has none."""
        if not isinstance(self.method, LatentSwap):
            raise UsageError(
                f"Method {self.method.name} has no latent codes: inversions, edits and anonymising are "
                "LatentSwap's (--method latentswap)."
            )
        return self.method

    @cached_property
    def _render(self) -> Render:
        """What draws codes at full size, whatever the method that swaps."""
        if isinstance(self.method, LatentSwap):
            return self.method.render
        return make_render(self.networks, str(self.networks.mean_E.device))

    def prepare(
        self,
        source: Picture | Sequence[Picture],
        *,
        faces: str | FaceChoice | None = None,
        consent: str | None = None,
        on_step: OnStep = no_progress,
    ) -> Source:
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
            together = self.method.average(each)  # pyright: ignore[reportArgumentType] - all are this method's
            return self._allowed(replace(together, files=tuple(file for one in each for file in one.files)))
        if isinstance(source, str | Path) and Path(source).suffix == ".safetensors":
            return self._allowed(replace(self._code_of(source), consent=consent))
        image = read(source, role="SOURCE")
        (face, *_) = self._choose(image, self.analyser(image.pixels), faces, role="SOURCE")
        crop = self.method.crop(image.pixels, face.mesh_K3)
        self._check_protected(image, face, role="SOURCE")  # before a pivot is looked for
        prepared = self.method.prepare(crop, name=image.name, on_step=on_step)
        return replace(prepared, files=_files(image), synthetic=image.synthetic, consent=consent)

    def _code_of(self, path: str | Path) -> Prepared:
        """A file that `invert` or `sample` wrote."""
        if self.method.prepares is not Prepared:
            raise UsageError("SimSwap's published networks have no latent codes: give a picture as SOURCE.")
        nets = self.networks
        prepared = Prepared.load(Path(path), num_ws=nets.generator.num_ws, w_dim=nets.generator.w_dim)
        if enforced():  # what the code draws counts as well as what the file says of it
            self._allowed(prepare_code(nets, prepared.w_plus.to(nets.mean_E), name=prepared.name))
        return replace(prepared, files=(Path(path).read_bytes(),))

    def swap(
        self,
        source: Source | Picture | Sequence[Picture],
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
        work = self._swapping(strength, layers, edits, edit_when)
        prepared = self._allowed(source) if isinstance(source, Source) else self.prepare(source)
        self.check_prepared(prepared)
        result = self._replace(
            target, faces, on_step, lambda crop, index, step: work(prepared, crop, step), occluders=occluders
        )
        about = {"name": prepared.name, "synthetic": prepared.synthetic, "consent": prepared.consent}
        making = replace(result.making, deed="swapped", method=self.method.name, sources=prepared.files)
        return replace(result, report={**result.report, "source": about}, making=making)

    def prepare_map(
        self, pairs: Sequence[Pair], *, consent: str | None = None, on_step: OnStep = no_progress
    ) -> tuple[Mapped, ...]:
        """People of a TARGET and whose faces they get: (reference, source) pairs, looked at once for many pictures.

        A reference is a picture with one face. Raises as `prepare` does, and UsageError for no pair at all.
        """
        return prepare_map(self, pairs, consent=consent, on_step=on_step)

    def swap_map(
        self,
        people: Sequence[Mapped],
        target: Picture,
        *,
        strength: float = 1.0,
        layers: tuple[int, ...] | None = None,
        occluders: bool = True,
        threshold: float = MATCH_DISTANCE,
        on_step: OnStep = no_progress,
    ) -> SwapResult:
        """The TARGET picture with several people replaced in one pass, each by their own source.

        people: what `prepare_map` made. Every usable face goes to the reference nearest to it, if it is within the
        threshold (Euclidean distance of dlib's embeddings). The others are left alone and reported: in `skipped`, and
        under `unmatched` with the nearest reference and its distance.
        Raises UsageError, BadInputError, and NoFaceError when no face matches.
        """
        if threshold <= 0:
            raise UsageError(f"The threshold is {threshold}; it is a distance above 0, by default {MATCH_DISTANCE}.")
        work = self._swapping(strength, layers, (), "after")
        result = swap_map(self, people, target, work, occluders=occluders, threshold=threshold, on_step=on_step)
        sources = [person.source for person in people]
        about = {
            "name": ", ".join(source.name for source in sources),
            "synthetic": all(source.synthetic for source in sources),
            "consent": "; ".join(dict.fromkeys(source.consent for source in sources if source.consent)) or None,
        }
        files = tuple(file for source in sources for file in source.files)
        making = replace(result.making, deed="swapped", method=self.method.name, sources=files)
        return replace(result, report={**result.report, "source": about}, making=making)

    def _swapping(self, strength: float, layers: tuple[int, ...] | None, edits: Edits, edit_when: EditWhen) -> Work:
        """What swaps one crop. Raises UsageError for options that are out of range or not the method's."""
        if not 0 <= strength <= 1:
            raise UsageError(f"Strength is {strength}; it runs from 0 (the target) to 1 (the swap).")
        options: dict[str, Any] = {"strength": strength, "layers": layers}
        if isinstance(self.method, LatentSwap):
            options |= {"edits": edits, "edit_when": edit_when}
        elif edits or layers is not None:
            raise UsageError(f"Method {self.method.name} has no latent codes; leave out layers and edits.")
        return lambda prepared, crop, step: self.method.swap(prepared, crop, on_step=step, **options)  # pyright: ignore

    def check_prepared(self, prepared: Source) -> None:
        """Raise UsageError for what another method made of a source."""
        if not isinstance(prepared, self.method.prepares):
            raise UsageError(f"The source {prepared.name} was prepared for another method than {self.method.name}.")

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
        method = self.latent
        return self._replace(
            target,
            faces,
            on_step,
            lambda crop, index, step: method.edit(crop, edits, on_step=step),
            occluders=True,
        )

    def code(
        self, source: Picture, *, faces: str | FaceChoice | None = None, on_step: OnStep = no_progress
    ) -> torch.Tensor:
        """The W+ code [1, L, D] of a file that `invert` or `sample` wrote, or of a photograph's face."""
        if isinstance(source, str | Path) and Path(source).suffix == ".safetensors":
            return self._code_of(source).w_plus
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
            Image(pixels=self._render(ws)[0], name=f"person {s}", synthetic=True)
            for s, ws in zip(seeds, codes, strict=True)
        ]

    def invert(
        self, source: Picture, *, faces: str | FaceChoice | None = None, on_step: OnStep = no_progress
    ) -> Inverted:
        """A photograph's face as a W+ code, and the picture that the code makes; with `tune` also the generator's
        change that makes it resemble the photograph. Raises as `prepare`."""
        method = self.latent
        image = read(source, role="SOURCE")
        (face, *_) = self._choose(image, self.analyser(image.pixels), faces, role="SOURCE")
        crop = method.crop(image.pixels, face.mesh_K3)
        self._check_protected(image, face, role="SOURCE")
        prepared = method.prepare(crop, name=image.name, on_step=on_step)
        delta, render, w_plus = None, method.render, prepared.w_plus
        if not method.pivotal:
            w_plus = method.invert(crop, on_step=on_step)
        if method.inversion == "tune":
            delta = method.tune([crop], w_plus, on_step=on_step)
            tuned = delta.apply(self.networks.generator)
            render = make_render(replace(self.networks, generator=tuned), "cpu")
        return Inverted(
            prepared=replace(prepared, w_plus=w_plus, synthetic=image.synthetic),
            picture=Image(pixels=render(w_plus)[0], name=image.name),
            delta=delta,
            making=Making(deed="inverted", sources=_files(image)),
        )

    def write(
        self,
        result: SwapResult | Image | Inverted,
        path: str | Path,
        *,
        quality: int = 95,
        marking: Marking | None = None,
        making: Making | None = None,
    ) -> None:
        """Mark as synthetic, encode by the path's suffix, sign, record, write atomically.

        marking: which marks, and who signs; all of them, and the user's own credentials, by default. making: how the
        picture came to be, where that is not what this class did; an Image of `sample` needs none.
        Raises UsageError, ResourceError, and ProvenanceError when a mark cannot be put on; nothing is written then.
        """
        path, marking = Path(path), marking or Marking()
        check_output_path(path)
        consent, nobody = None, isinstance(result, Image) and result.synthetic
        match result:
            case SwapResult():
                image, made, consent = result.image, result.making, result.report.get("source", {}).get("consent")
            case Inverted():
                image, made = result.picture, result.making
            case _:
                image, made = result, Making(deed="generated")
        made = made if making is None else making
        image, payload = watermarked(image, marking)
        xmp = packet(whole=made.whole, method=made.method, nobody=nobody)
        data = encode(image, path.suffix, quality=quality, xmp=xmp)
        networks = network_hashes(self.networks.files, made)
        publish(path, data, making=made, marking=marking, payload=payload, networks=networks, consent=consent)

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
        result = self.replace_in(image, found, chosen, on_step, work, occluders=occluders, protects=protects)
        return replace(result, report={**result.report, "seconds": round(perf_counter() - began, 2)})

    def replace_in(
        self,
        image: Image,
        found: tuple[Face, ...],
        chosen: tuple[Face, ...],
        on_step: OnStep,
        work: Callable[[Crop, int, OnStep], np.ndarray],
        *,
        occluders: bool,
        protects: bool = False,
    ) -> SwapResult:
        """align → `work` → paste back, for every chosen face. protects: as for `_replace`."""
        began = perf_counter()
        if not protects:
            for face in chosen:
                self._check_protected(image, face, role="TARGET")
        pixels, reports = image.pixels, []
        for index, face in enumerate(chosen):
            crop = self.method.crop(pixels, face.mesh_K3)
            swapped = work(crop, index, lambda done, total, i=index: on_step(i * total + done, len(chosen) * total))
            if self.method.own_alignment:
                crop, swapped = reframe(pixels, face.mesh_K3, crop, swapped, VIEW_SIZE)
            elif len(swapped) < crop.size:  # a smaller generator's
                swapped = to_pixels(to_tensor(swapped, size=crop.size))[0]
            swapped_K3 = self._mesh(swapped)
            mask = face_mask(crop.mesh_K3, crop.size, other_K3=swapped_K3)
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
            making=Making(deed="edited", target=image.encoded),
        )

    def _check_protected(self, image: Image, face: Face, *, role: Literal["SOURCE", "TARGET"]) -> None:
        """Raise ProtectedPersonError when the face is of a person on a do-not-swap list (`provenance.enforce`)."""
        if not (lists := enforced()):
            return
        embedding_BE = embed_face(self.networks.identity, self.networks.mean_E, image.pixels, face)
        box = [round(v) for v in face.box]
        check_face(embedding_BE, what=f"the face at {box} in the {role} image {image.name}", lists=lists)

    def _allowed(self, prepared: AnySource) -> AnySource:
        """The same, unless it is of a person on a do-not-swap list: then ProtectedPersonError. Of a method whose
        identities are another network's, `prepare` has looked at the picture."""
        if isinstance(prepared, Prepared) and (lists := enforced()):
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

        return choose(
            found,
            choice,
            role=role,
            name=image.name,
            embed=lambda face: self.describe(face, image.pixels),
            reference_E=self.describe(wanted, reference.pixels),
        )

    @torch.no_grad()
    def describe(self, face: Face, pixels: np.ndarray) -> np.ndarray:
        """Who a face of a picture is: dlib's embedding [128], not centred."""
        crop = to_tensor(cut_face(pixels, face.mesh_K3, 256).pixels, self.networks.mean_E.device)
        return self.networks.identity(chip(crop))[0].cpu().numpy()


def packet(*, whole: bool, method: str = "latentswap", nobody: bool = False) -> bytes:
    """The mark of an output (`provenance.mark`). whole: nothing in it was photographed. nobody: nor does it go back to
    a photograph, so that it needs no consent as a SOURCE."""
    return xmp_packet(
        digital_source_type="trainedAlgorithmicMedia" if whole else "compositeWithTrainedAlgorithmicMedia",
        software=f"latentswap {latentswap.__version__}",
        details={"method": method} | ({SHOWS: NOBODY} if nobody else {}),
    )


def _files(image: Image) -> tuple[bytes, ...]:
    return () if image.encoded is None else (image.encoded,)


def read(picture: Picture, *, role: str) -> Image:
    """bytes → decode: a path, the bytes of a file, an RGB array or an Image."""
    if isinstance(picture, Image):
        return picture
    if isinstance(picture, np.ndarray):
        return as_image(picture)
    image = decode(picture, role=role)
    return replace(image, synthetic=image.encoded is not None and shows_nobody(image.encoded))


def person(networks: Networks, *, seed: int, index: int = 0, truncation_psi: float = 0.7) -> torch.Tensor:
    """The W+ code [1, L, D] of a person who does not exist, a function of (seed, index)."""
    generator = networks.generator
    z_BD = torch.randn(1, generator.w_dim, generator=generator_for(seed, index, stream=6))
    with torch.no_grad():
        w_BD = generator.mapping(z_BD.to(generator.w_avg), truncation_psi=truncation_psi)
    return w_BD[:, None].expand(-1, generator.num_ws, -1).contiguous()

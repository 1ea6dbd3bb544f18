"""The do-not-swap list: people whose face nobody is to put on another, and on whose face none is to be put.

A list holds identity embeddings, no pictures. One safetensors file:

    embedding  float32 [N, 128]   `inversion.optimise.embed`: centred, unit length; several a person are allowed
    person     int64 [N]          whose each one is: an index into `people`
    metadata   kind, format_version, network, threshold, people (JSON: names, empty where a list keeps them to itself),
               and of a signed list signer and signature (Ed25519, RFC 8032; hexadecimal) over all else in the file

How two faces are compared is `provenance.matching`; docs/protect.md has the rates of errors.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from latentswap.errors import ProvenanceError, UsageError, WeightsError
from latentswap.provenance.matching import distances
from latentswap.weights.header import FORMAT_VERSION
from latentswap.weights.load import load_tensors, save_tensors

KIND = "protect-list"
NETWORK = "dlib-resnet-v1, centred, 8 views"  # what the embeddings are of; those of another network mean nothing here
THRESHOLD = 0.54  # distance up to which two faces count as one person's; set by scripts/protect_thresholds.py
LOOSEST = 1.0  # the largest that a list may ask for: no nearer than the strangers who resemble the two most
MAX_BYTES = 64 << 20
MOST_PEOPLE = 100_000
LONGEST_NAME = 200
# So that a signature of the same key over something else is none over a list.
_SIGNED_AS = b"latentswap do-not-swap list 1\n"


@dataclass(frozen=True, kw_only=True)
class Match:
    """The person of a list whom a face comes closest to."""

    name: str  # as the list has it; the person's id where it keeps names to itself
    person_id: str
    distance: float  # 0 the same embedding … 1 no nearer than strangers who resemble the two (`matching.distances`)
    threshold: float  # of the list

    @property
    def refused(self) -> bool:
        """Whether this counts as the person."""
        return self.distance <= self.threshold


@dataclass(frozen=True, kw_only=True, eq=False)
class ProtectList:
    """A do-not-swap list in memory. Changing one gives a new one, without the signature."""

    people: tuple[str, ...] = ()  # names
    embedding_NE: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 128))
    person_N: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    threshold: float = THRESHOLD
    signer: str | None = None  # public key, 64 hexadecimal digits; the signature has been checked
    signature: str | None = None
    label: str = "the do-not-swap list"  # what messages call it

    def __len__(self) -> int:
        return len(self.people)

    @property
    def ids(self) -> tuple[str, ...]:
        """What a person is called where names are not to be seen: 12 digits that follow from the first embedding."""
        return tuple(self._id(person) for person in range(len(self)))

    def _id(self, person: int) -> str:
        first_E = self.embedding_NE[int((self.person_N == person).nonzero()[0])]
        return hashlib.sha256(first_E.numpy().tobytes()).hexdigest()[:12]

    def add(self, name: str, embedding_VE: torch.Tensor) -> "ProtectList":
        """With embeddings [V, 128] of a person; those of a name that is there are added to it. Raises UsageError."""
        name = check_name(name)
        if len(self) >= MOST_PEOPLE:
            raise UsageError(f"{self.label} has {len(self):,} people; more are not kept. Start another list.")
        people = self.people if name in self.people else (*self.people, name)
        owner_V = torch.full((len(embedding_VE),), people.index(name))
        return self._changed(
            people=people,
            embedding_NE=torch.cat([self.embedding_NE, F.normalize(embedding_VE.detach().cpu().float(), dim=-1)]),
            person_N=torch.cat([self.person_N, owner_V]),
        )

    def remove(self, who: str) -> "ProtectList":
        """Without the person of that name or id. Raises UsageError when there is none."""
        found = [at for at, known in enumerate(zip(self.people, self.ids, strict=True)) if who in known and who]
        if not found:
            raise UsageError(f"nobody in {self.label} is called {who!r}; `latentswap protect list` shows who is there.")
        kept_N = self.person_N != found[0]
        person_N = self.person_N[kept_N]
        return self._changed(
            people=tuple(name for at, name in enumerate(self.people) if at != found[0]),
            embedding_NE=self.embedding_NE[kept_N],
            person_N=person_N - (person_N > found[0]).long(),
        )

    def nameless(self) -> "ProtectList":
        """The same people without their names; `ids` still tell its owner who is who."""
        return self._changed(people=("",) * len(self))

    def nearest(self, embedding_BE: torch.Tensor) -> Match | None:
        """The person that any of the embeddings [B, 128] of one face comes closest to; None in an empty list."""
        if not len(self):
            return None
        distance_N = distances(embedding_BE.detach().cpu(), self.embedding_NE).min(0).values
        best = int(distance_N.argmin())
        person = int(self.person_N[best])
        person_id = self._id(person)
        return Match(
            name=self.people[person] or person_id,
            person_id=person_id,
            distance=float(distance_N[best]),
            threshold=self.threshold,
        )

    def _changed(self, **fields: Any) -> "ProtectList":
        return replace(self, **fields, signer=None, signature=None)

    def signed(self, key: Any) -> "ProtectList":
        """Signed with an Ed25519 private key of `cryptography`."""
        from latentswap.provenance.signing_key import public_hex, sign

        return replace(self, signer=public_hex(key), signature=sign(key, self._message()))

    def _metadata(self) -> dict[str, str]:
        about = {"kind": KIND, "format_version": FORMAT_VERSION, "network": NETWORK}
        return about | {"threshold": repr(self.threshold), "people": json.dumps(self.people, ensure_ascii=False)}

    def _message(self) -> bytes:
        """What is signed: every value of the metadata and every tensor with its dtype and shape, in order."""
        parts = [_SIGNED_AS, json.dumps(self._metadata(), sort_keys=True).encode()]
        for name, value in (("embedding", self.embedding_NE), ("person", self.person_N)):
            parts += [f"{name} {value.dtype} {list(value.shape)}".encode(), value.contiguous().numpy().tobytes()]
        return b"".join(hashlib.sha256(part).digest() for part in parts)

    def save(self, path: Path) -> None:
        """Write the file, atomically. Raises ResourceError."""
        metadata = self._metadata()
        if self.signer and self.signature:
            metadata |= {"signer": self.signer, "signature": self.signature}
        save_tensors(path, {"embedding": self.embedding_NE, "person": self.person_N}, metadata)

    @classmethod
    def load(cls, path: Path, *, key: str | None = None) -> "ProtectList":
        """Read and check a list. key: the public key that must have signed it, 64 hexadecimal digits.

        Raises UsageError when there is no file, WeightsError for one that is no list or is damaged, ProvenanceError
        when what was signed has been changed, when the signature is not of `key`, and when there is none though a
        key is asked for.
        """
        if not path.exists():
            raise UsageError(
                f"there is no do-not-swap list {path}; put it there, or take it out of LATENTSWAP_PROTECT or the "
                "system's configuration, whichever names it"
            )
        tensors, metadata = load_tensors(path, kind=KIND, max_bytes=MAX_BYTES)
        loaded = cls._checked(path, tensors, metadata)
        loaded._check_signature(path, key)
        return loaded

    @classmethod
    def _checked(cls, path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> "ProtectList":
        try:
            if (network := metadata["network"]) != NETWORK:
                raise ValueError(f"its embeddings are of {network!r}, and this release compares those of {NETWORK!r}")
            people, threshold = json.loads(metadata["people"]), float(metadata["threshold"])
            if not isinstance(people, list) or not all(isinstance(name, str) for name in people):
                raise ValueError("its names are not a list of texts")
            if not all(len(name) <= LONGEST_NAME and name.isprintable() for name in people):
                raise ValueError("its names are too long, or hold characters that do not print")
            if not 0 < threshold <= LOOSEST:
                raise ValueError(f"its threshold {threshold} is not between 0 and {LOOSEST}")
            if set(tensors) != {"embedding", "person"}:
                raise ValueError(f"it holds the tensors {sorted(tensors)}, not embedding and person")
            embedding_NE, person_N = tensors["embedding"], tensors["person"]
            if embedding_NE.dtype != torch.float32 or embedding_NE.shape != (len(person_N), 128):
                raise ValueError(f"its embeddings are {embedding_NE.dtype} {list(embedding_NE.shape)}")
            if person_N.dtype != torch.int64 or set(person_N.tolist()) != set(range(len(people))):
                raise ValueError("its embeddings do not belong to its people")
            if len(people) > MOST_PEOPLE or ((embedding_NE.norm(dim=-1) - 1).abs() > 1e-3).any():
                raise ValueError("its embeddings are not of unit length, or it has too many people")
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise WeightsError(f"{path} is no do-not-swap list that can be used: {error}") from error
        return cls(
            people=tuple(people),
            embedding_NE=embedding_NE,
            person_N=person_N,
            threshold=threshold,
            signer=metadata.get("signer"),
            signature=metadata.get("signature"),
            label=f"the do-not-swap list {path.name}",
        )

    def _check_signature(self, path: Path, key: str | None) -> None:
        from latentswap.provenance.signing_key import is_signature

        if self.signer is None and self.signature is None:
            if key is not None:
                raise ProvenanceError(
                    f"{path} is not signed, and a signature by {key} is asked for; get the signed list."
                )
            return
        if not is_signature(self.signer or "", self.signature or "", self._message()):
            raise ProvenanceError(
                f"{path} is not what was signed: it has been changed or damaged. Get it again from who published it."
            )
        if key is not None and self.signer != key.lower():
            raise ProvenanceError(
                f"{path} is signed by {self.signer}, not by {key}; get the list from who holds that key."
            )


def check_name(name: str) -> str:
    """A person's name in one line. Raises UsageError."""
    text = " ".join(name.split())
    if not text or len(text) > LONGEST_NAME or not text.isprintable():
        raise UsageError(f"--name {name!r} cannot be kept; give 1 to {LONGEST_NAME} characters that print.")
    return text


def closest(lists: Iterable[ProtectList], embedding_BE: torch.Tensor) -> Match | None:
    """Of all lists, the match that is to be reported: one that refuses before one that does not, then the closest."""
    found = [match for each in lists if (match := each.nearest(embedding_BE)) is not None]
    return min(found, key=lambda match: (not match.refused, match.distance), default=None)


def refusal(match: Match, *, what: str) -> str:
    """The message for a face that a list refuses. what: which face of which picture."""
    return (
        f"{what} is that of {match.name}, who is on a do-not-swap list (distance {match.distance:.2f}; up to "
        f"{match.threshold:.2f} counts as the same person), so it is not used. `latentswap anonymize` still works."
    )


def loaded(sources: Sequence[tuple[Path, str | None]]) -> tuple[ProtectList, ...]:
    """The lists at (path, key), each read again only when its file has changed. Raises as `ProtectList.load`."""
    return tuple(_cached(path, key, *_state(path)) for path, key in sources)


def _state(path: Path) -> tuple[int, int, int]:
    try:
        stat = path.stat()
    except OSError:
        return 0, 0, 0
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


@lru_cache(maxsize=32)
def _cached(path: Path, key: str | None, *state: int) -> ProtectList:
    return ProtectList.load(path, key=key)

"""What a method of swapping is: prepare a source once, swap it into many crops."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from latentswap.errors import UsageError
from latentswap.types import Crop
from latentswap.weights.load import load_tensors, save_tensors

_ONE_PERSON = 0.3  # least cosine of each of several sources to the mean of the others
OnStep = Callable[[int, int], None]
"""Called with (steps done, steps in all) while something is optimised."""


def no_progress(done: int, total: int) -> None:
    """The default `OnStep`: nobody is listening."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """A source, looked at once: its code, its identity, its face shape."""

    w_plus: torch.Tensor  # [1, L, D]
    embedding: torch.Tensor  # [1, E], centred, unit length
    mesh: torch.Tensor  # [1, 468, 3], crop fractions
    crop: Crop | None = None  # the photograph's; never saved
    name: str = "source"
    synthetic: bool = False  # True: a person who does not exist
    files: tuple[bytes, ...] = field(default=(), repr=False)  # what was looked at, for credentials; never saved
    consent: str | None = None  # what was attested about the person's agreement (`provenance.consent`); never saved

    def save(self, path: Path) -> None:
        """Write to safetensors: `latentswap swap` takes such a file in place of the SOURCE picture."""
        about = json.dumps({"name": self.name, "synthetic": self.synthetic})
        tensors = {"w_plus": self.w_plus, "embedding": self.embedding, "mesh": self.mesh}
        save_tensors(path, tensors, {"kind": "latent", "about": about})

    @classmethod
    def load(cls, path: Path, *, num_ws: int, w_dim: int) -> "Prepared":
        """Read what `save` wrote. Raises WeightsError for any other file."""
        expected = {
            "w_plus": ((1, num_ws, w_dim), "float32"),
            "embedding": ((1, 128), "float32"),
            "mesh": ((1, 468, 3), "float32"),
        }
        tensors, metadata = load_tensors(path, kind="latent", expected=expected, max_bytes=1 << 20)
        about = json.loads(metadata.get("about", "{}"))
        code, embedding, mesh = (tensors[name] for name in expected)
        synthetic = about.get("synthetic") is True
        return cls(w_plus=code, embedding=embedding, mesh=mesh, name=path.name, synthetic=synthetic)


def one_person(sources: Sequence[tuple[torch.Tensor, str]]) -> torch.Tensor:
    """The mean of identity embeddings [1, E] of unit length, each with the name of its picture; of unit length.

    Raises UsageError when one of them does not look like the person that the others show.
    """
    total_BE = torch.stack([embedding_BE for embedding_BE, _ in sources]).sum(0)
    for embedding_BE, name in sources:
        others_BE = F.normalize(total_BE - embedding_BE, dim=-1)
        if (cosine := float((embedding_BE * others_BE).sum())) < _ONE_PERSON:
            raise UsageError(
                f"SOURCE {name} does not seem to show the person of the other sources (identity cosine "
                f"{cosine:.2f} to their mean, at least {_ONE_PERSON:.2f} is expected). Leave it out."
            )
    return F.normalize(total_BE, dim=-1)


class FaceSwapper(Protocol):
    """A method of swapping, on crops of its own alignment and size."""

    name: str  # what an output says that it was made with
    own_alignment: bool  # whether crops are aligned otherwise than FFHQ's; results are then brought back to FFHQ's

    def crop(self, pixels: np.ndarray, mesh_K3: np.ndarray) -> Crop:
        """Align: the face of a mesh, cut out of its picture."""
        ...

    def prepare(self, crop: Crop, *, name: str = "source", on_step: OnStep = no_progress) -> Any:
        """Look at a source."""
        ...

    def swap(
        self,
        prepared: Any,
        crop: Crop,
        *,
        strength: float = 1.0,
        layers: tuple[int, ...] | None = None,
        on_step: OnStep = no_progress,
    ) -> np.ndarray:
        """The crop with the source's identity: uint8 [S, S, 3], same alignment. `strength`: 0 to 1."""
        ...

"""What a method of swapping is: prepare a source once, swap it into many crops."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from latentswap.types import Crop
from latentswap.weights.load import load_tensors, save_tensors

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


class FaceSwapper(Protocol):
    """A method of swapping, on FFHQ-aligned crops."""

    def prepare(self, crop: Crop, *, name: str = "source", on_step: OnStep = no_progress) -> Prepared:
        """Look at a source."""
        ...

    def swap(
        self,
        prepared: Prepared,
        crop: Crop,
        *,
        strength: float = 1.0,
        layers: tuple[int, ...] | None = None,
        on_step: OnStep = no_progress,
    ) -> np.ndarray:
        """The crop with the source's identity: uint8 [S, S, 3], same alignment. `strength`: 0 to 1."""
        ...

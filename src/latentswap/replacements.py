"""Who replaced whom in a job, so that the same person gets the same replacement in every picture.

What is kept of a person is identity embeddings: biometric data. They live in memory, and in a file only when `save` is
called.
"""

import os
from collections.abc import Collection
from pathlib import Path

import torch

from latentswap.errors import UsageError
from latentswap.weights.load import load_tensors, save_tensors

# Cosine from which two faces count as one person. Of the gallery's pairs of strangers 1.5 % reach it.
SAME_PERSON = 0.5
_VIEWS = 8  # embeddings that are kept of one person


class Replacements:
    """Original → stranger (a position in the gallery), by identity embedding."""

    def __init__(self) -> None:
        self._views: dict[int, list[torch.Tensor]] = {}

    def __len__(self) -> int:
        return len(self._views)

    @property
    def strangers(self) -> tuple[int, ...]:
        """Everybody who stands for somebody."""
        return tuple(self._views)

    def find(self, embedding_E: torch.Tensor, *, avoid: Collection[int] = ()) -> int | None:
        """The stranger that stands for this person, or None for somebody new.

        embedding: [E], centred, unit length. avoid: strangers that cannot be meant, as they already stand in the
        picture for another face.
        """
        found = [
            (max(float(view_E @ embedding_E) for view_E in views), stranger)
            for stranger, views in self._views.items()
            if stranger not in avoid
        ]
        cosine, stranger = max(found, default=(-1.0, None))
        return stranger if cosine >= SAME_PERSON else None

    def remember(self, embedding_E: torch.Tensor, stranger: int) -> None:
        """From now on `stranger` stands for this person."""
        views = self._views.setdefault(stranger, [])
        if len(views) < _VIEWS:
            views.append(embedding_E.detach().cpu().float())

    def save(self, path: Path, *, seed: int) -> None:
        """Write to safetensors, readable by its owner alone. Raises ResourceError.

        The file holds biometric data of the originals, and who stands for whom: with it the pictures can be undone as
        far as telling which people of a list are in them. Delete it when the job is done.
        """
        pairs = [(stranger, view_E) for stranger, views in self._views.items() for view_E in views]
        tensors = {
            "stranger": torch.tensor([stranger for stranger, _ in pairs], dtype=torch.int64),
            "embedding": torch.stack([view_E for _, view_E in pairs]) if pairs else torch.zeros(0, 128),
        }
        path.touch(mode=0o600)
        save_tensors(path, tensors, {"kind": "replacements", "seed": str(seed), "warning": "biometric data"})
        os.chmod(path, 0o600)

    @classmethod
    def load(cls, path: Path, *, seed: int, people: int) -> "Replacements":
        """Read what `save` wrote. people: size of the gallery.

        Raises WeightsError for any other file, UsageError for a job of another seed or with strangers out of range.
        """
        tensors, metadata = load_tensors(path, kind="replacements", max_bytes=1 << 28)
        if set(tensors) != {"stranger", "embedding"} or tensors["embedding"].shape != (len(tensors["stranger"]), 128):
            raise UsageError(
                f"{path} is not the memory of a job: it needs the tensors stranger [N], embedding [N, 128]."
            )
        if metadata.get("seed") != str(seed):
            raise UsageError(f"{path} belongs to a job with --seed {metadata.get('seed')}, not {seed}; give that one.")
        if not all(0 <= stranger < people for stranger in tensors["stranger"].tolist()):
            raise UsageError(f"{path} names strangers that the gallery of {people} people does not have.")
        memory = cls()
        for stranger, view_E in zip(tensors["stranger"].tolist(), tensors["embedding"], strict=True):
            memory.remember(view_E, stranger)
        return memory

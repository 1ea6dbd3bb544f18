"""What tuning leaves behind: the change of a generator's weights, without the generator.

Only the parameters that moved, as differences in float16: a few megabytes where MobileStyleGAN has forty, sixty for
StyleGAN2. A delta knows the generator that it was made from and refuses every other one.
"""

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from latentswap.errors import UsageError, WeightsError
from latentswap.weights.load import load_tensors, save_tensors

KIND = "generator-delta"
MAX_BYTES = 256 << 20  # twice what the widest published generator has, in float16

Network = TypeVar("Network", bound=torch.nn.Module)


@dataclass(frozen=True, kw_only=True, eq=False)
class GeneratorDelta:
    """The change of some of a generator's parameters.

    parent: fingerprint of the generator that it belongs to. changes: float16, by the parameter's name.
    about: how it came about (configuration, steps, losses); plain values that JSON can carry.
    """

    parent: str
    changes: Mapping[str, torch.Tensor]
    about: Mapping[str, object] = field(default_factory=dict)

    def apply(self, generator: Network) -> Network:
        """A frozen copy of the generator with the change added. Raises WeightsError when it is another generator."""
        self.check(generator)
        tuned = copy.deepcopy(generator).eval().requires_grad_(False)
        parameters = dict(tuned.named_parameters())
        for name, change in self.changes.items():
            parameters[name].add_(change.to(parameters[name]))
        return tuned

    def check(self, generator: torch.nn.Module, *, path: str | Path = "the generator delta") -> None:
        """Raise WeightsError unless every change fits a parameter of this very generator."""
        if (found := fingerprint(generator)) != self.parent:
            raise WeightsError(
                f"{path} belongs to the generator {self.parent[:16]}, and this is {found[:16]}; tune the picture again."
            )
        parameters = dict(generator.named_parameters())
        if not self.changes:
            raise WeightsError(f"{path} changes nothing.")
        if unknown := sorted(name for name in self.changes if name not in parameters):
            raise WeightsError(f"{path} changes what this generator does not have: {', '.join(unknown[:8])}")
        for name, change in self.changes.items():
            if change.dtype != torch.float16 or change.shape != parameters[name].shape:
                raise WeightsError(
                    f"{path}: the change of {name} is {_layout(change)}; it must be float16 of "
                    f"{list(parameters[name].shape)}"
                )
            # Tuning moves a weight by a tenth of its tensor's size; biases and noise strengths may start at 0. Written
            # so that NaN fails too.
            parameter = parameters[name].detach()
            largest = max(float(parameter.abs().max()), 1.0 if parameter.ndim < 2 else 0.0)
            if not float(change.abs().max()) <= largest:
                raise WeightsError(
                    f"{path} changes {name} by up to {float(change.abs().max()):g}, more than its largest weight "
                    f"or what a bias may move by ({largest:g}); that is no tuning, and the picture would be noise. "
                    "Tune the picture again."
                )

    def metadata(self) -> dict[str, str]:
        """Parent and description, as the strings that a safetensors file carries."""
        return {"parent": self.parent, "about": json.dumps(dict(self.about), sort_keys=True)}

    @classmethod
    def from_parts(
        cls,
        changes: Mapping[str, torch.Tensor],
        metadata: Mapping[str, str],
        generator: torch.nn.Module,
        *,
        path: str | Path = "the generator delta",
    ) -> "GeneratorDelta":
        """What `changes` and `metadata()` say, checked against the generator. Raises WeightsError."""
        try:
            parent, about = metadata["parent"], json.loads(metadata["about"])
        except (KeyError, ValueError, RecursionError) as error:
            raise WeightsError(f"{path} does not say which generator it belongs to: {error!r}") from error
        if not isinstance(about, dict):
            raise WeightsError(f"{path} describes itself with {about!r:.40}, not with a table.")
        delta = cls(parent=parent, changes=dict(changes), about=about)
        delta.check(generator, path=path)
        return delta

    def save(self, path: str | Path) -> None:
        """Write to safetensors. Raises WeightsError for values that are not finite, ResourceError."""
        save_tensors(path, self.changes, {"kind": KIND, **self.metadata()})

    @classmethod
    def load(cls, path: str | Path, generator: torch.nn.Module) -> "GeneratorDelta":
        """Read what `save` wrote. Raises WeightsError for any other file and for another generator's delta."""
        changes, metadata = load_tensors(path, kind=KIND, max_bytes=MAX_BYTES)
        return cls.from_parts(changes, metadata, generator, path=path)


def fingerprint(generator: torch.nn.Module) -> str:
    """sha256 over names, shapes and values of everything that the generator consists of, a 256² head too.

    Raises UsageError unless it is in float32: rounded weights say no longer which generator they come from.
    """
    if {value.dtype for value in generator.state_dict().values()} != {torch.float32}:
        raise UsageError("Tuning needs the generator in float32; tune, or apply the delta, before `half_precision`.")
    digest = hashlib.sha256()
    for name, value in sorted(generator.state_dict().items()):
        digest.update(f"{name} {list(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _layout(value: torch.Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} of {list(value.shape)}"

"""Which do-not-swap lists apply on this machine. They add up; no option and no setting takes one away.

    the user's own list       protect.safetensors in the user's data folder (`latentswap protect add`)
    lists they imported       protect.d/*.safetensors there (`latentswap protect import`)
    the environment           LATENTSWAP_PROTECT: paths, separated as in PATH; PATH#KEY asks for a signature by KEY
    the system                /etc/latentswap/protect.toml (on Windows in C:/ProgramData/latentswap):

        [[list]]
        path = "/etc/latentswap/actors.safetensors"
        key = "64 hexadecimal digits"     # optional: the list must be signed with it

A list that is named and missing, damaged or not signed as asked for stops every job that swaps: else removing the
file would switch it off. The system's file lies where users cannot write, and no variable of theirs moves it.
"""

import os
import re
import tomllib
from pathlib import Path

import torch

from latentswap.errors import ProtectedPersonError, UsageError
from latentswap.provenance.home import data_root
from latentswap.provenance.protect import Match, ProtectList, closest, loaded, refusal

SYSTEM = Path("/etc/latentswap/protect.toml" if os.name == "posix" else r"C:\ProgramData\latentswap\protect.toml")
VARIABLE = "LATENTSWAP_PROTECT"
_KEY = re.compile(r"[0-9a-fA-F]{64}")


def own_list() -> Path:
    """Where `latentswap protect add` keeps the user's list."""
    return data_root() / "protect.safetensors"


def imported_folder() -> Path:
    """Where `latentswap protect import` keeps other people's lists."""
    return data_root() / "protect.d"


def configured() -> list[tuple[Path, str | None]]:
    """(path, key that must have signed it) of every list that applies. Raises UsageError for a bad configuration."""
    own = [own_list()] if own_list().exists() else []
    theirs = sorted(imported_folder().glob("*.safetensors"))
    return [*_system(SYSTEM), *_environment(os.environ.get(VARIABLE, "")), *((path, None) for path in [*own, *theirs])]


def enforced() -> tuple[ProtectList, ...]:
    """Every list that applies and names somebody, as its file is now.

    Raises UsageError for one that is missing, WeightsError for a damaged one, ProvenanceError for one that is not what
    was signed.
    """
    return tuple(each for each in loaded(configured()) if len(each))


def check_face(embedding_BE: torch.Tensor, *, what: str, lists: tuple[ProtectList, ...] | None = None) -> Match | None:
    """Refuse a face of somebody on a list; else the closest match there is. embedding: [B, 128], of one face.

    what: which face of which picture, for the message. Raises ProtectedPersonError, and as `enforced`.
    """
    match = closest(enforced() if lists is None else lists, embedding_BE)
    if match is not None and match.refused:
        raise ProtectedPersonError(refusal(match, what=what))
    return match


def _environment(value: str) -> list[tuple[Path, str | None]]:
    entries = []
    for entry in filter(None, value.split(os.pathsep)):
        path, mark, key = entry.rpartition("#")
        signed = bool(mark) and _KEY.fullmatch(key) is not None
        entries.append((Path(path if signed else entry), key.lower() if signed else None))
    return entries


def _system(path: Path) -> list[tuple[Path, str | None]]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise UsageError(
            f"the configuration {path} cannot be read ({error}); who runs this machine has to mend it"
        ) from error
    try:
        if set(content) - {"list"}:
            raise ValueError(f"it has {sorted(set(content) - {'list'})}; known is list")
        entries = []
        for entry in content.get("list", []):
            if set(entry) - {"path", "key"} or not isinstance(entry["path"], str):
                raise ValueError(f"an entry says {entry!r}; known are path and key, both texts")
            key = entry.get("key")
            if key is not None and not _KEY.fullmatch(key):
                raise ValueError(f"the key {key!r} is not 64 hexadecimal digits")
            entries.append((Path(entry["path"]), None if key is None else key.lower()))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"the configuration {path} is wrong: {error!r}; who runs this machine has to mend it"
        ) from error
    return entries

"""`latentswap protect`: the do-not-swap list."""

import re
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from latentswap.cli._common import Json, emit, fetch_progress, table
from latentswap.cli._options import Offline
from latentswap.errors import ProtectedPersonError, UsageError

if TYPE_CHECKING:
    from latentswap.provenance.protect import ProtectList
    from latentswap.provenance.recognise import Recogniser

ListFile = Annotated[
    Path | None, tyro.conf.arg(name="list", metavar="FILE", help="another list than your own (.safetensors)")
]
Key = Annotated[
    str | None, tyro.conf.arg(metavar="KEY", help="the public key that must have signed it: 64 digits, or a PEM file")
]


def add(
    photos: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PHOTO [PHOTO ...]")],
    *,
    name: str,
    list_file: ListFile = None,
    face: str = "",
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Put a person on a list, so that they are neither source nor target of a swap. Photographs are not kept.

    Args:
        photos: Pictures of one person. Several, with other poses and other light, find them more surely.
        name: What the person is called in messages; photographs for a name that is there are added to it.
        face: Which face, where a photograph shows several: largest | INDEX (0 is the largest)
    """
    from latentswap.face.select import parse_faces
    from latentswap.provenance.protect import check_name

    if not photos:
        raise UsageError("protect add takes a photograph, or several of one person.")
    name, choice = check_name(name), parse_faces(face) if face else None
    if choice is not None and choice.kind not in ("largest", "index"):
        raise UsageError(f"--face is {face!r}; it is largest, or a number (0 is the largest face).")
    path = _writable(list_file)
    listed, recogniser = _read(path, new=True), _recogniser(offline)
    embeddings = [recogniser.one(_picture(photo), choice) for photo in photos]
    for photo, embedding_BE in zip(photos, embeddings, strict=True):
        _warn_of_a_stranger(listed, name, photo, embedding_BE)
        listed = listed.add(name, embedding_BE)
    listed.save(path)
    path.chmod(0o600)  # biometric data
    person = listed.people.index(name)
    count = int((listed.person_N == person).sum())
    data = {"name": name, "id": listed.ids[person], "embeddings": count, "list": str(path)}
    emit(data, [f"{name} is protected ({count} embedding{'s' * (count != 1)}, in {path})"], as_json=json)


def list_people(*, list_file: ListFile = None, json: Json = False) -> None:
    """List the lists that apply here, and who is on them; with --list the people of one file."""
    from latentswap.provenance.enforce import configured, own_list
    from latentswap.provenance.protect import loaded

    sources = configured() if list_file is None else [(list_file, None)]
    data, lines = [], []
    for (path, key), each in zip(sources, loaded(sources), strict=True):
        counts = [int((each.person_N == at).sum()) for at in range(len(each))]
        people = [
            {"id": id_, "name": name, "embeddings": n}
            for id_, name, n in zip(each.ids, each.people, counts, strict=True)
        ]
        data.append({"list": str(path), "signer": each.signer, "threshold": each.threshold, "people": people})
        signed = f"signed by {each.signer}" if each.signer else "not signed"
        required = " (asked for)" if key else ""
        lines.append(f"{path}: {len(each)} people, {signed}{required}, distance up to {each.threshold:.3f}")
        rows = [(f"  {one['id']}", one["name"] or "(no name)", f"{one['embeddings']} embeddings") for one in people]
        lines += table(rows) if rows else []
    emit(data, lines or [f"no list applies; `latentswap protect add` starts one at {own_list()}"], as_json=json)


def remove(
    who: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME|ID")],
    *,
    list_file: ListFile = None,
    json: Json = False,
) -> None:
    """Take a person off a list of yours."""
    path = _writable(list_file)
    _read(path).remove(who).save(path)
    emit({"removed": who, "list": str(path)}, [f"{who} is no longer on {path}"], as_json=json)


def check(
    photo: Annotated[Path, tyro.conf.Positional],
    *,
    list_file: ListFile = None,
    offline: Offline = False,
    json: Json = False,
) -> int:
    """Say whether the faces of a picture are on a list. Exit code 9 when one is, 0 when none is.

    Args:
        photo: Any picture with faces.
    """
    from latentswap.provenance.enforce import enforced
    from latentswap.provenance.protect import closest

    lists = enforced() if list_file is None else (_read(list_file),)
    data, lines = [], []
    for face, embedding_BE in _recogniser(offline).each(_picture(photo)):
        match, box = closest(lists, embedding_BE), [round(v) for v in face.box]
        entry: dict[str, Any] = {"box": box, "protected": match is not None and match.refused}
        if match is None:
            lines.append(f"face at {box}: no list applies")
        else:
            entry |= {"name": match.name, "distance": round(match.distance, 4), "threshold": match.threshold}
            verdict = f"protected: {match.name}" if match.refused else f"not protected; closest is {match.name}"
            lines.append(f"face at {box}: {verdict} (distance {match.distance:.2f}, limit {match.threshold:.2f})")
        data.append(entry)
    emit(data, lines, as_json=json)
    return ProtectedPersonError.exit_code if any(entry["protected"] for entry in data) else 0


def export(
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT.safetensors")],
    *,
    key: Annotated[
        Path | None, tyro.conf.arg(metavar="PEM", help="an Ed25519 private key in place of your own")
    ] = None,
    hide_names: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    threshold: float | None = None,
    list_file: ListFile = None,
    json: Json = False,
) -> None:
    """Write a list to share, signed, so that nobody can change it unseen.

    Args:
        out: Where to write. Tell the receivers the public key by another way than the file's.
        hide_names: Leave the names out; `protect list` still shows you which id is whose.
        threshold: Distance up to which a face counts as a person's, wherever the list is used: smaller misses more,
            larger refuses more strangers.
    """
    from dataclasses import replace

    from latentswap.media.atomic import check_destination
    from latentswap.provenance.enforce import own_list
    from latentswap.provenance.protect import LOOSEST
    from latentswap.provenance.signing_key import read_private

    if out.suffix != ".safetensors":
        raise UsageError(f"The output of export is a .safetensors file, not {out}.")
    if threshold is not None and not 0 < threshold <= LOOSEST:
        raise UsageError(f"--threshold is {threshold}; it lies above 0 and runs to {LOOSEST:g}.")
    check_destination(out)
    listed = _read(list_file or own_list())
    listed = replace(listed, threshold=listed.threshold if threshold is None else threshold)
    signed = (listed.nameless() if hide_names else listed).signed(read_private(key) if key else _own_key())
    signed.save(out)
    data = {"list": str(out), "people": len(signed), "signer": signed.signer}
    emit(data, [f"{out}: {len(signed)} people, signed by {signed.signer}"], as_json=json)


def import_list(
    file: Annotated[Path, tyro.conf.Positional],
    *,
    key: Key = None,
    unsigned: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    json: Json = False,
) -> None:
    """Take over somebody's list: it applies from now on, beside your own.

    Args:
        file: What `latentswap protect export` wrote.
        unsigned: Take a list that nobody has signed.
    """
    from latentswap.provenance.enforce import imported_folder
    from latentswap.provenance.home import private_folder
    from latentswap.provenance.protect import ProtectList
    from latentswap.provenance.signing_key import parse_public

    if (key is None) == (not unsigned):
        raise UsageError("Give one of --key KEY, the key of who publishes the list, and --unsigned.")
    listed = ProtectList.load(file, key=None if key is None else parse_public(key))
    stem = re.sub(r"[^\w.-]", "-", file.stem) or "list"
    private_folder()
    imported_folder().mkdir(mode=0o700, exist_ok=True)
    path = imported_folder() / f"{stem}.safetensors"
    if path.exists() and ProtectList.load(path).signer != listed.signer:
        raise UsageError(f"{path} is there already and not signed by the same key; delete it, or rename the new file.")
    listed.save(path)
    path.chmod(0o600)
    data = {"list": str(path), "people": len(listed), "signer": listed.signer}
    emit(data, [f"{len(listed)} people are protected by {path}"], as_json=json)


def verify(file: Annotated[Path, tyro.conf.Positional], *, key: Key = None, json: Json = False) -> None:
    """Check a list and its signature. Exit code 7 when it is not what was signed, or not signed as asked for.

    Args:
        file: A do-not-swap list.
    """
    from latentswap.provenance.protect import ProtectList
    from latentswap.provenance.signing_key import parse_public

    listed = ProtectList.load(file, key=None if key is None else parse_public(key))
    data = {"list": str(file), "people": len(listed), "signer": listed.signer, "trusted": key is not None}
    state = f"unchanged, signed by {listed.signer}" if listed.signer else "not signed"
    hint = " (give --key to make sure that this is who it should be)" if listed.signer and not key else ""
    emit(data, [f"{file}: {len(listed)} people, {state}{hint}"], as_json=json)


def show_key(*, json: Json = False) -> None:
    """Show the public key that your exports are signed with. It is made at first use."""
    from latentswap.provenance.signing_key import public_hex

    public = public_hex(_own_key())
    emit({"key": public}, [public], as_json=json)


def _own_key() -> Any:
    from latentswap.provenance.home import private_folder
    from latentswap.provenance.signing_key import own_key

    return own_key(private_folder() / "protect-key.pem")


def _writable(list_file: Path | None) -> Path:
    from latentswap.media.atomic import check_destination
    from latentswap.provenance.enforce import own_list
    from latentswap.provenance.home import private_folder

    if list_file is None:
        private_folder()
        return own_list()
    if list_file.suffix != ".safetensors":
        raise UsageError(f"--list is {list_file}; it names a .safetensors file.")
    check_destination(list_file)
    return list_file


def _read(path: Path, *, new: bool = False) -> "ProtectList":
    from latentswap.provenance.protect import ProtectList

    return ProtectList() if new and not path.exists() else ProtectList.load(path)


def _picture(path: Path) -> Any:
    from latentswap.media.image import decode

    return decode(path, role="PHOTO")


def _recogniser(offline: bool) -> "Recogniser":
    with ExitStack() as stack:
        progress = stack.enter_context(fetch_progress())
        from latentswap.provenance.recognise import Recogniser

        return Recogniser.load(offline=offline, progress=progress)


def _warn_of_a_stranger(listed: "ProtectList", name: str, photo: Path, embedding_BE: Any) -> None:
    """Say when a photograph does not look like the earlier ones of that name: it may be the wrong one."""
    from dataclasses import replace

    if name not in listed.people:
        return
    mine_N = listed.person_N == listed.people.index(name)
    alone = replace(
        listed, people=(name,), embedding_NE=listed.embedding_NE[mine_N], person_N=listed.person_N[mine_N] * 0
    )
    match = alone.nearest(embedding_BE)
    if match is not None and not match.refused:
        print(
            f"warning: {photo} does not look like the other pictures of {name} (distance {match.distance:.2f}, up to "
            f"{match.threshold:.2f} is expected)",
            file=sys.stderr,
        )


COMMANDS = {
    "add": add,
    "list": list_people,
    "remove": remove,
    "check": check,
    "export": export,
    "import": import_list,
    "verify": verify,
    "key": show_key,
}

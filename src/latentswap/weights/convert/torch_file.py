"""Files of `torch.save`, both the zip archive and the older stream, read as data. See `unpickle`."""

import zipfile
from typing import Any, BinaryIO

from latentswap.errors import WeightsError
from latentswap.weights.convert.tensors import ITEM_BYTES, Storage
from latentswap.weights.convert.unpickle import MAX_TEXT_BYTES, Name, Window, read_pickle

ZIP_MAGIC = b"PK\x03\x04"
# Protocol 2, a ten-byte integer, and that integer: the first pickle of the older stream.
STREAM_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_STREAM_VERSION = 1001
_MAX_MEMBERS = 50_000
_MEMBER_OVERHEAD = 512  # headers, names and padding of one member

# What zipfile raises over damage; the name of a member, too, may be no text.
_DAMAGED = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    EOFError,
    NotImplementedError,
    RuntimeError,
    UnicodeDecodeError,
)

_DTYPES = {
    **{f"torch.{name}Storage": dtype for name, dtype in (
        ("Double", "float64"), ("Float", "float32"), ("Half", "float16"), ("BFloat16", "bfloat16"), ("Long", "int64"),
        ("Int", "int32"), ("Short", "int16"), ("Char", "int8"), ("Byte", "uint8"), ("Bool", "bool"),
    )},
    "torch.storage.UntypedStorage": "uint8",
}  # fmt: skip


def read_zip(file: BinaryIO, size: int) -> Any:
    """The value in a zip archive of `torch.save`.

    Raises WeightsError for compressed, encrypted, overlapping or foreign members, a declared size that is not the
    archive's, and everything that `read_pickle` refuses.
    """
    try:
        archive = zipfile.ZipFile(file)
        members = {info.filename: info for info in archive.infolist()}
        _check_members(list(archive.infolist()), size)
        roots = {name.partition("/")[0] for name in members}
        root = next(iter(roots))
        if len(roots) != 1 or f"{root}/data.pkl" not in members:
            raise WeightsError("it is an archive of files, not a checkpoint: unpack it and convert what it holds")
        if f"{root}/constants.pkl" in members:
            raise WeightsError("it holds a TorchScript program, not weights alone")
        if f"{root}/byteorder" in members and archive.read(f"{root}/byteorder") != b"little":
            raise WeightsError("it was written on a machine of another byte order")

        def storage(reference: Any) -> Storage:
            dtype, key, numel = _storage_reference(reference)
            info = members.get(f"{root}/data/{key}")
            if info is None or info.file_size != numel * ITEM_BYTES[dtype]:
                raise WeightsError("a tensor's data is missing, or not as long as it should be")

            def read_bytes(start: int, count: int) -> bytes:
                try:
                    return archive.read(info)[start : start + count]
                except _DAMAGED as error:
                    raise WeightsError(f"it is a damaged zip archive: {error}") from error

            return Storage(dtype=dtype, numel=numel, read_bytes=read_bytes)

        if members[f"{root}/data.pkl"].file_size > MAX_TEXT_BYTES:
            raise WeightsError(f"it describes itself in more than {MAX_TEXT_BYTES >> 20} MB")
        data = archive.read(f"{root}/data.pkl")
    except _DAMAGED as error:
        raise WeightsError(f"it is a damaged zip archive: {error}") from error
    return read_pickle(Window.of_bytes(data), persistent=storage)


def read_stream(source: Window) -> Any:
    """The value in an older stream of `torch.save`; the tensors' data follow it. Raises WeightsError."""
    if source.bytes_at(0, min(len(STREAM_MAGIC), source.length)) != STREAM_MAGIC:
        raise WeightsError("data inside it are not what torch writes")
    read_pickle(source)  # the magic number
    if read_pickle(source) != _STREAM_VERSION:
        raise WeightsError("it was written by a version of torch that nobody published with")
    system = read_pickle(source)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise WeightsError("it was written on a machine of another byte order")
    sizes: dict[str, tuple[int, int]] = {}  # elements and bytes each, as the value refers to each storage
    starts: dict[str, int] = {}

    def storage(reference: Any) -> Storage | Name:
        if isinstance(reference, tuple) and len(reference) == 4 and reference[0] == "module":
            return _class(reference[1])
        dtype, key, numel = _storage_reference(reference)

        def read_bytes(start: int, count: int) -> bytes:
            return source.bytes_at(starts[key] + start, count)

        if sizes.setdefault(key, (numel, ITEM_BYTES[dtype])) != (numel, ITEM_BYTES[dtype]):
            raise WeightsError("it describes one storage in two ways")
        return Storage(dtype=dtype, numel=numel, read_bytes=read_bytes)

    value = read_pickle(source, persistent=storage)
    keys = read_pickle(source)
    if not isinstance(keys, list) or not all(isinstance(key, str) and key in sizes for key in keys):
        raise WeightsError("its list of storages is not one")
    at = source.tell()
    for key in keys:
        numel, bytes_each = sizes[key]
        if int.from_bytes(source.bytes_at(at, 8), "little") != numel:
            raise WeightsError("a tensor's data is missing, or not as long as it should be")
        starts[key] = at + 8
        at += 8 + numel * bytes_each
    if at > source.length or set(starts) != set(sizes):
        raise WeightsError("the file is truncated")
    return value


def read_nested(source: Window) -> Storage:
    """The storage in a stream that a pickle carries as bytes. Raises WeightsError for anything else in it."""
    value = read_stream(source)
    if not isinstance(value, Storage):
        raise WeightsError("data inside it are not those of a tensor")
    return value


def _class(value: Any) -> Name:
    """The class in ("module", class, file, source code) of a whole module; the code is never looked at."""
    if not isinstance(value, Name):
        raise WeightsError("it refers to something that is not the class of a module")
    return value


def _storage_reference(reference: Any) -> tuple[str, str, int]:
    """(dtype, key, number of elements) of ("storage", type, key, device, elements[, view])."""
    match reference:
        case ("storage", Name(name), str(key), str(), numel, *view) if name in _DTYPES and view in ([], [None]):
            if type(numel) is int and 0 <= numel < 1 << 40:
                return _DTYPES[name], key, numel
    raise WeightsError("it refers to something that is not the data of a tensor")


def _check_members(members: list[zipfile.ZipInfo], size: int) -> None:
    if len(members) > _MAX_MEMBERS or len({info.filename for info in members}) != len(members) or not members:
        raise WeightsError("it is a zip archive of too many members, of none, or with a name twice")
    if any(info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 for info in members):
        raise WeightsError("it is a compressed or encrypted archive; torch writes neither, and it could unpack to more")
    if any(info.compress_size != info.file_size for info in members):
        raise WeightsError("it is a zip archive whose sizes contradict one another")
    held = sum(info.file_size for info in members)
    if not held <= size <= held + _MEMBER_OVERHEAD * len(members) + (64 << 10):
        raise WeightsError(f"its members claim {held:,} bytes, and it has {size:,}")

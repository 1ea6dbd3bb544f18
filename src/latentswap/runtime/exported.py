"""Networks exported to OpenVINO once, and kept in the cache."""

import os
from collections.abc import Callable
from pathlib import Path

import openvino as ov

from latentswap.errors import ResourceError


def exported(folder: Path, name: str, export: Callable[[], ov.Model]) -> Path | None:
    """`folder`/`name`.xml, made by `export` if absent, in float32; None where the folder cannot be written.

    Raises ResourceError when the disk is full.
    """
    path = folder / f"{name}.xml"
    if path.exists():
        return path
    part = folder / f"part-{os.getpid()}"
    try:
        part.mkdir(parents=True, exist_ok=True)
        ov.save_model(export(), part / f"{name}.xml", compress_to_fp16=False)
        for file in (f"{name}.bin", f"{name}.xml"):  # the xml last: its presence says that both are whole
            os.replace(part / file, folder / file)
        part.rmdir()
    except OSError as error:
        if path.exists():
            return path
        if isinstance(error, PermissionError) or error.errno == 30:  # read-only
            return None
        raise ResourceError(f"The exported network could not be written to {folder}: {error.strerror}.") from error
    return path

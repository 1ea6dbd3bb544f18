"""Where what belongs to the user and is nobody else's business is kept: consents, the do-not-swap list, its key."""

import os
from pathlib import Path


def data_root() -> Path:
    """LATENTSWAP_DATA, else the user's data folder. Not created here."""
    if configured := os.environ.get("LATENTSWAP_DATA"):
        return Path(configured).expanduser()
    import platformdirs  # late: most commands never need it

    return Path(platformdirs.user_data_dir("latentswap"))


def private_folder() -> Path:
    """`data_root`, made if need be, readable by its owner alone. Raises ResourceError."""
    from latentswap.errors import ResourceError

    folder = data_root()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(
            f"the folder {folder} for your own data cannot be made ({error.strerror}); set LATENTSWAP_DATA to another"
        ) from error
    return folder

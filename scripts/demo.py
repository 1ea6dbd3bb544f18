"""`make demo`: people who do not exist, one swapped onto another and onto a real photograph, and one anonymised.

The photograph is NASA's portrait of the astronaut Eileen Collins, in the public domain, which scikit-image carries.
"""

import sys
from pathlib import Path

from latentswap.runtime.memory import keep_freed_memory

keep_freed_memory()

from skimage import data  # noqa: E402

from latentswap import Swapper  # noqa: E402
from latentswap.cli._common import fetch_progress, step_progress  # noqa: E402

OUT = Path("out")
SOURCE_SEED, TARGET_SEED = 8, 15


def main() -> int:
    OUT.mkdir(exist_ok=True)
    with fetch_progress() as progress:
        swapper = Swapper.from_pretrained(progress=progress)
    source, target = swapper.sample([SOURCE_SEED, TARGET_SEED])
    astronaut = data.astronaut()
    swapper.write(source, OUT / "source.png")
    swapper.write(target, OUT / "target.png")

    with step_progress() as bars:
        person = swapper.prepare(source)
        for name, picture in (("target", target), ("astronaut", astronaut)):
            path = OUT / f"swap-onto-{name}.png"
            result = swapper.swap(person, picture, on_step=bars(path.name))
            swapper.write(result, path)
            print(f"{path}  ({result.report['seconds']:.0f} s)")
        path = OUT / "anonymized-astronaut.png"
        result = swapper.anonymize(astronaut, seed=3, on_step=bars(path.name))
        swapper.write(result, path)
        print(f"{path}  ({result.report['seconds']:.0f} s)")
    print(f"The pictures are in {OUT.resolve()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

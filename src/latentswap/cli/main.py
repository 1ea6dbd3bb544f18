"""The `latentswap` command: finds the chosen command, imports it alone, and turns errors into exit codes.

Exit codes: 0 done · 1 a bug · 2 usage · 3 bad input · 4 no usable face · 5 weights · 6 resources · 7 provenance ·
8 not anonymised · 9 protected person · 130 interrupted.
"""

import difflib
import errno
import importlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

import latentswap
from latentswap.errors import LatentSwapError, ResourceError, UsageError

# Name → (module, attribute, what it does). The attribute is a function whose annotated parameters are the options, or
# a dictionary of such functions by subcommand. Closed: nothing else can be run.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "swap": ("latentswap.cli.swap", "swap", "put the face of one picture on the faces of another"),
    "anonymize": ("latentswap.cli.anonymize", "anonymize", "replace faces by people who do not exist"),
    "sample": ("latentswap.cli.sample", "sample", "make pictures of people who do not exist"),
    "invert": ("latentswap.cli.sample", "invert", "find the latent code of a face, to use it as a source again"),
    "edit": ("latentswap.cli.edit", "edit", "change a face: smile, pose, eyes, mixed styles, directions from files"),
    "train": ("latentswap.cli.train", "COMMANDS", "train the project's own networks (mixer | population)"),
    "evaluate": ("latentswap.cli.evaluate", "COMMANDS", "measure swaps: identity, pose, expression, seams (pairs)"),
    "verify": ("latentswap.cli.verify", "verify", "say who signed a picture or video, and what was done to it"),
    "credentials": ("latentswap.cli.credentials", "COMMANDS", "who signs outputs (init | import | show)"),
    "consent": ("latentswap.cli.consent", "COMMANDS", "what was attested about people in sources (list | forget)"),
    "protect": ("latentswap.cli.protect", "COMMANDS", "people who must not be swapped: add, list, check, share a list"),
    "models": ("latentswap.cli.models", "COMMANDS", "get, convert, describe networks (list | fetch | info | convert)"),
    "doctor": ("latentswap.cli.doctor", "doctor", "check the installation, the cache and the networks"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (by default the program's own) and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Threads that spin long stand still when another program wants the cores, and those that sleep at once take half as
    # long again on an idle machine: ours spin for some microseconds. Read when torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    if argv is None:
        signal.signal(signal.SIGTERM, _interrupt)
    as_json = "--json" in arguments
    try:
        return _dispatch(arguments)
    except LatentSwapError as error:
        return _report(error, as_json=as_json)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`| head`). Python would complain once more while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (MemoryError, OSError, RuntimeError) as error:
        if (mapped := _resource_error(error)) is None:
            raise
        return _report(mapped, as_json=as_json)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if arguments[0] == "--version":
        print(f"latentswap {latentswap.__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(COMMANDS)}."
        raise UsageError(f"{name!r} is not a command; {hint} See `latentswap --help`.")
    module, attribute, summary = COMMANDS[name]
    target = getattr(importlib.import_module(module), attribute)

    import tyro

    program = f"latentswap {name}"
    try:
        if isinstance(target, dict):
            result = tyro.extras.subcommand_cli_from_dict(target, args=rest, prog=program, description=summary)
        else:
            result = tyro.cli(target, args=rest, prog=program)
    except SystemExit as exit:  # tyro: 0 after --help, 2 after a message about the options
        return exit.code if isinstance(exit.code, int) else 2
    return result or 0


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {summary}" for name, (_, _, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: latentswap COMMAND [options]",
            "",
            "Face swapping and face anonymisation in the latent space of a face generator.",
            "",
            *lines,
            "",
            "latentswap COMMAND --help lists the options of a command; latentswap --version prints the version.",
        ]
    )


def _report(error: LatentSwapError, *, as_json: bool) -> int:
    print(f"error: {error}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": {"type": type(error).__name__, "message": str(error), "code": error.exit_code}}))
    return error.exit_code


def _resource_error(error: Exception) -> ResourceError | None:
    """The error of the project for running out of memory or disk; None for anything else."""
    if isinstance(error, OSError):
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return ResourceError("the disk is full; free some space and run the command again")
        return None
    # torch has a type of its own for a GPU that is full, and none for the CPU.
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    ):
        return ResourceError("there is not enough memory; close other programs, or use a smaller picture")
    return None


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())

"""Consent: whether a SOURCE shows somebody, and what was attested about that person's agreement.

An attestation is a sentence: who is shown, and how they agreed. It is asked for once per file, remembered by the
file's SHA-256, and goes into the job's own report, never into a picture. It is what somebody said, not a proof.
People who do not exist need none: codes that say so, and pictures that carry `sample`'s own mark.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import filelock

from latentswap.errors import BadInputError, ResourceError, UsageError, WeightsError
from latentswap.media.atomic import write_atomic
from latentswap.media.image import open_image, pictures_in, read_file
from latentswap.provenance.home import data_root, private_folder
from latentswap.provenance.mark import read_mark
from latentswap.weights.header import read_header

LONGEST = 500  # characters of a statement
SHOWS = "person_shown"  # detail of the mark that says whether somebody is shown, and its value for people who are not
NOBODY = "nobody; generated"

Ask = Callable[[str], str]
"""Shows a question to the user and gives the answer."""


@dataclass(frozen=True, kw_only=True)
class Attestation:
    """What was said about the person in one file, and when."""

    sha256: str  # of the file's bytes
    name: str  # the file's name at that time, for the list
    statement: str
    when: str  # ISO 8601, UTC


def check_statement(statement: str) -> str:
    """The statement in one line. Raises UsageError for an empty one, a long one, and characters that do not print."""
    text = " ".join(statement.split())
    if not any(character.isalnum() for character in text):
        raise UsageError(f"--consent {statement!r} says nothing; {HOW}")
    if len(text) > LONGEST:
        raise UsageError(f"--consent has {len(text)} characters; at most {LONGEST} are kept. Shorten it.")
    if not text.isprintable():
        raise UsageError(f"--consent {text!r} holds characters that do not print; write plain text.")
    return text


HOW = 'say who is shown and how they agreed, for example --consent "Ann Lee, signed release of 3 May"'


def is_generated(path: Path, data: bytes) -> bool:
    """Whether a SOURCE file, with the bytes `data`, says by itself that nobody who exists is shown.

    That is a code of a person who does not exist, or a picture that carries the mark of `sample`. Both are
    statements, not proofs. Raises BadInputError for what is no picture, WeightsError for what is no code.
    """
    if path.suffix == ".safetensors":
        try:
            about = json.loads(read_header(path, kind="latent", max_bytes=1 << 20).metadata.get("about", "{}"))
        except (ValueError, RecursionError):
            return False
        return isinstance(about, dict) and about.get("synthetic") is True
    open_image(data, label=f"the SOURCE image {path.name}")
    return shows_nobody(data)


def shows_nobody(data: bytes) -> bool:
    """Whether an encoded picture carries the mark of `sample`. Raises BadInputError for what is no picture."""
    mark = read_mark(data) or {}
    return mark.get("digital_source_type") == "trainedAlgorithmicMedia" and mark.get(SHOWS) == NOBODY


class Consents:
    """The attestations that this user has made, in a file that only they can read."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = data_root() / "consents.json" if path is None else path

    def all(self) -> tuple[Attestation, ...]:
        """In the order in which they were made. Raises ResourceError for a file that cannot be read."""
        try:
            entries = json.loads(self.path.read_text(encoding="utf-8"))
            return tuple(Attestation(**entry) for entry in entries)
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, TypeError) as error:
            raise ResourceError(
                f"the file of attestations {self.path} cannot be read ({error}); mend it or move it away"
            ) from error

    def find(self, sha256: str) -> Attestation | None:
        """The attestation for a file, by the hash of its bytes."""
        return next((made for made in reversed(self.all()) if made.sha256 == sha256), None)

    def remember(self, made: Sequence[Attestation]) -> None:
        """Keep them, in place of earlier ones for the same files. Raises ResourceError."""
        new = {attestation.sha256 for attestation in made}
        with self._held():
            self._write([*(old for old in self.all() if old.sha256 not in new), *made])

    def forget(self, start: str) -> tuple[Attestation, ...]:
        """Drop those whose hash starts so, or `all`; returns them. Raises UsageError when none does or several do."""
        with self._held():
            kept = self.all()
            gone = kept if start == "all" else tuple(made for made in kept if made.sha256.startswith(start.lower()))
            if start != "all" and (len(start) < 4 or len(gone) != 1):
                raise UsageError(
                    f"{start!r} means {len(gone)} attestations; give `all`, or the first four or more "
                    "letters of one hash in `latentswap consent list`."
                )
            self._write([made for made in kept if made not in gone])
        return gone

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Two jobs that remember at once must not lose one another's."""
        if self.path.parent == data_root():
            private_folder()
        try:
            with filelock.FileLock(self.path.with_suffix(".lock"), timeout=10):
                yield
        except filelock.Timeout:
            raise ResourceError(f"another job holds {self.path}; wait for it to end") from None
        except OSError as error:
            raise ResourceError(f"{self.path} cannot be written: {error.strerror or error}") from error

    def _write(self, entries: Sequence[Attestation]) -> None:
        text = json.dumps([asdict(entry) for entry in entries], indent=1, ensure_ascii=False) + "\n"
        self.path.touch(mode=0o600)
        self.path.chmod(0o600)
        write_atomic(self.path, text.encode())


def consent_for(
    sources: Sequence[Path],
    statement: str | None,
    *,
    consents: Consents | None = None,
    ask: Ask | None = None,
    skip_bad: bool = False,
) -> str | None:
    """What is attested about the people whom SOURCE files show; None where they are people who do not exist.

    sources: pictures, codes, or folders of pictures. statement: said now, and remembered for each of them. Without one
    the statements remembered are taken; where one is missing it is asked for (`ask`), once for all of them. No model is
    needed. skip_bad: pass over files that cannot be read; whoever swaps them reports them.
    Raises UsageError when nothing was said and nobody can be asked, BadInputError and WeightsError for files that are
    no sources, ResourceError when what was said cannot be kept.
    """
    consents = Consents() if consents is None else consents
    said = None if statement is None else check_statement(statement)
    files = [
        path for source in sources for path in (pictures_in(source, role="SOURCE") if source.is_dir() else [source])
    ]
    known: dict[str, str] = {}
    new: dict[str, str] = {}  # hash → name
    for path in dict.fromkeys(files):
        try:
            data = read_file(path, role="SOURCE")
            if is_generated(path, data):
                continue
        except (BadInputError, WeightsError):
            if not skip_bad:
                raise
            continue
        sha256 = hashlib.sha256(data).hexdigest()
        made = None if said is not None else consents.find(sha256)
        if made is None:
            new[sha256] = path.name
        else:
            known[sha256] = made.statement
    if new:
        said = check_statement(ask(_question(list(new.values())))) if said is None and ask is not None else said
        if said is None:
            raise UsageError(f"{_shown(list(new.values()))}, and swaps of people need their consent: {HOW}")
        when = datetime.now(UTC).isoformat(timespec="seconds")
        consents.remember([Attestation(sha256=s, name=name, statement=said, when=when) for s, name in new.items()])
        known |= dict.fromkeys(new, said)
    return "; ".join(dict.fromkeys(known.values())) or None


def _shown(names: list[str]) -> str:
    if len(names) == 1:
        return f"the SOURCE {names[0]} does not say that it is generated, so it counts as a photograph"
    return f"{len(names)} SOURCE files ({names[0]} …) do not say that they are generated, so they count as photographs"


def _question(names: list[str]) -> str:
    return f"{_shown(names)}.\nWho is shown, and how did they agree to this? "

"""Bodies of messages in the forms that signatures are made over (RFC 6376, section 3.4).

Small ones at once; those that lie in files step by step, so that they are never whole in memory.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

STEP = 256 << 10  # bytes of a file that are read at once

_CRLF = b"\r\n"
_TO_SPACE = bytes.maketrans(b"\t", b" ")


@dataclass(frozen=True, slots=True)
class Rest:
    """What stands in a file from a place on."""

    path: Path
    start: int  # bytes before it

    def steps(self) -> Iterator[bytes]:
        """The bytes, in pieces; OSError."""
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.start)
            while step := file.read(STEP):
                yield step


def wired(text: bytes) -> bytes:
    """The text with CRLF where a line ends in LF alone."""
    if text.count(b"\n") == text.count(_CRLF):
        return text
    return text.replace(_CRLF, b"\n").replace(b"\n", _CRLF)


def relaxed_body(body: bytes) -> bytes:
    """A body, wired, in the relaxed form. It is made by few passes, none of them byte by byte."""
    body = _spaced(body).replace(b" \r\n", _CRLF)
    bare = _unended(body.removesuffix(b" "))
    return bare + _CRLF if bare else b""


def simple_body(body: bytes) -> bytes:
    """A body, wired, in the simple form."""
    return _unended(body) + _CRLF


def relaxed(steps: Iterable[bytes]) -> Iterator[bytes]:
    """The relaxed form of a body that comes in pieces cut anywhere, wired or not."""
    made = Relaxed()
    for step in steps:
        yield from made.more(step)
    yield from made.end()


class Relaxed:
    """The relaxed form, for those who are handed a body piece by piece."""

    def __init__(self) -> None:
        self._held, self._any = b"", False  # what may be a part of a line's end, or of a blank
        self._ends = _Ends()

    def more(self, step: bytes) -> Iterator[bytes]:
        """What is certain with another piece."""
        text = _spaced(self._held + step)
        kept = text.removesuffix(b"\r").removesuffix(b" ")
        self._held = text[len(kept) :]
        yield from self._told(wired(kept).replace(b" \r\n", _CRLF))

    def end(self) -> Iterator[bytes]:
        """What is left."""
        yield from self._told(self._held.removesuffix(b" "))
        if self._any:
            yield _CRLF

    def _told(self, text: bytes) -> Iterator[bytes]:
        for piece in self._ends.before(text):
            self._any = True
            yield piece


def simple(steps: Iterable[bytes]) -> Iterator[bytes]:
    """The simple form, likewise."""
    held, ends = b"", _Ends()
    for step in steps:
        text = held + step
        kept = text.removesuffix(b"\r")
        held = text[len(kept) :]
        yield from ends.before(wired(kept))
    yield from chain(ends.before(held), (_CRLF,))


FORMS = {"relaxed": relaxed, "simple": simple}


def digests(path: Path | bytes, start: int, forms: Collection[str]) -> dict[str, bytes]:
    """SHA-256 of the body that begins there, by form. Work for a process, or a thread."""
    steps = Rest(path, start).steps if isinstance(path, Path) else lambda: iter((path[start:],))
    found = {}
    for form in forms:
        made = hashlib.sha256()
        for piece in FORMS[form](steps()):
            made.update(piece)
        found[form] = made.digest()
    return found


class _Ends:
    """Ends of lines that are kept back, as they may be the last: so many, and no bytes."""

    def __init__(self) -> None:
        self._many = 0

    def before(self, text: bytes) -> Iterator[bytes]:
        """What is certain with this text, which is wired: what was kept back, and its beginning."""
        bare = _unended(text)
        more = (len(text) - len(bare)) // len(_CRLF)
        if not bare:
            self._many += more
            return
        while self._many:
            some = min(self._many, STEP)
            self._many -= some
            yield _CRLF * some
        self._many = more
        yield bare


def _spaced(text: bytes) -> bytes:
    """The text with one space for each run of blanks."""
    text = text.translate(_TO_SPACE)
    while b"  " in text:
        text = text.replace(b"  ", b" ")
    return text


def _unended(body: bytes) -> bytes:
    """The body without the line ends at its end."""
    end = len(body.rstrip(_CRLF))
    tail = body[end:]
    odd = tail.rfind(b"\r\r") + 1  # a CR that ends no line stays
    return body[: end + odd] if tail.endswith(b"\n") else body

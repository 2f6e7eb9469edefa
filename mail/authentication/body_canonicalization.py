"""Canonical forms of message bodies for signatures (RFC 6376, section 3.4).

Small bodies are converted at once; those in files in chunks, so that they are never whole in
memory.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

READ_SIZE = 256 << 10  # bytes of one read of a file

_CRLF = b"\r\n"
_TO_SPACE = bytes.maketrans(b"\t", b" ")


@dataclass(frozen=True, slots=True)
class BodyFile:
    """The body of a message in a file, from an offset to the end."""

    path: Path
    start: int  # offset of the body

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes in chunks. Raises OSError."""
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.start)
            while step := file.read(READ_SIZE):
                yield step


def with_crlf(text: bytes) -> bytes:
    """The text with CRLF in the place of a single LF."""
    if text.count(b"\n") == text.count(_CRLF):
        return text
    return text.replace(_CRLF, b"\n").replace(b"\n", _CRLF)


def relaxed_body(body: bytes) -> bytes:
    """The relaxed form of a body with CRLF line ends. It needs few passes over the body."""
    body = _collapse_blanks(body).replace(b" \r\n", _CRLF)
    bare = _strip_line_ends(body.removesuffix(b" "))
    return bare + _CRLF if bare else b""


def simple_body(body: bytes) -> bytes:
    """The simple form of a body with CRLF line ends."""
    return _strip_line_ends(body) + _CRLF


def relaxed_chunks(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the relaxed form of a body that comes in chunks, with CRLF line ends or not."""
    converter = RelaxedBodyConverter()
    for step in chunks:
        yield from converter.convert(step)
    yield from converter.remaining_bytes()


class RelaxedBodyConverter:
    """An incremental converter of a body into the relaxed form."""

    def __init__(self) -> None:
        self._held, self._any = b"", False  # bytes of a possible line end or blank run
        self._ends = _HeldLineEnds()

    def convert(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the bytes that are final after another chunk."""
        text = _collapse_blanks(self._held + chunk)
        line = text.removesuffix(b"\r").removesuffix(b" ")
        self._held = text[len(line) :]
        yield from self._final_bytes_with(with_crlf(line).replace(b" \r\n", _CRLF))

    def remaining_bytes(self) -> Iterator[bytes]:
        """Yield the remaining bytes."""
        yield from self._final_bytes_with(self._held.removesuffix(b" "))
        if self._any:
            yield _CRLF

    def _final_bytes_with(self, text: bytes) -> Iterator[bytes]:
        for chunk in self._ends.feed_and_yield_final_bytes(text):
            self._any = True
            yield chunk


def simple_chunks(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the simple form of a body that comes in chunks."""
    held_text, line_ends = b"", _HeldLineEnds()
    for step in chunks:
        text = held_text + step
        line = text.removesuffix(b"\r")
        held_text = text[len(line) :]
        yield from line_ends.feed_and_yield_final_bytes(with_crlf(line))
    yield from chain(line_ends.feed_and_yield_final_bytes(held_text), (_CRLF,))


CHUNK_CONVERTERS = {"relaxed": relaxed_chunks, "simple": simple_chunks}


def body_digests(source: Path | bytes, body_start: int, forms: Collection[str]) -> dict[str, bytes]:
    """The SHA-256 of the body from `body_start` on, by form.

    Belongs into a thread or helper process.
    """
    steps = (
        BodyFile(source, body_start).chunks
        if isinstance(source, Path)
        else lambda: iter((source[body_start:],))
    )
    digests = {}
    for form in forms:
        body_hash = hashlib.sha256()
        for chunk in CHUNK_CONVERTERS[form](steps()):
            body_hash.update(chunk)
        digests[form] = body_hash.digest()
    return digests


class _HeldLineEnds:
    """A counter of line ends that are held back, since they can be the last of the body."""

    def __init__(self) -> None:
        self._many = 0

    def feed_and_yield_final_bytes(self, text: bytes) -> Iterator[bytes]:
        """Yield the bytes that are final with this text: held line ends, and its beginning."""
        bare = _strip_line_ends(text)
        line_end_count = (len(text) - len(bare)) // len(_CRLF)
        if not bare:
            self._many += line_end_count
            return
        while self._many:
            count = min(self._many, READ_SIZE)
            self._many -= count
            yield _CRLF * count
        self._many = line_end_count
        yield bare


def _collapse_blanks(text: bytes) -> bytes:
    """The text with one space in the place of each run of blanks."""
    text = text.translate(_TO_SPACE)
    while b"  " in text:
        text = text.replace(b"  ", b" ")
    return text


def _strip_line_ends(body: bytes) -> bytes:
    """The body without the line ends at its end."""
    end = len(body.rstrip(_CRLF))
    tail = body[end:]
    odd = tail.rfind(b"\r\r") + 1  # a CR that ends no line stays
    return body[: end + odd] if tail.endswith(b"\n") else body

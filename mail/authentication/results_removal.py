"""Removal of Authentication-Results in the name of this server (RFC 8601, section 5)."""

import asyncio
import hashlib
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import IO

from mail.authentication.body_canonicalization import STEP
from mail.authentication.header_fields import HEAD_MAX, beginning, halves
from mail.authentication.results import FIELD
from mail.mime.authentication_results import server
from mail.mime.encoded_words import unfolded
from models.runtime.options import Options

_NAME = FIELD.lower().encode()
_RECEIVED = re.compile(rb"^received[ \t]*:", re.IGNORECASE | re.MULTILINE)


def comparable(names: Iterable[str]) -> frozenset[str]:
    """The authserv-ids in the form in which they are compared."""
    return frozenset(map(_comparable, names))


def own_names(options: Options) -> frozenset[str]:
    """The authserv-ids of this server, in the form in which they are compared."""
    return comparable((options.hostname, *options.authserv_ids))


async def without_own_results(
    options: Options, source: bytes | Path, *, from_trusted_server: bool = False
) -> bytes | Path:
    """Remove Authentication-Results in the name of this server from a message.

    With `from_trusted_server`, results that `mail.mime.believed` accepts stay: those of
    `authserv_ids` above Received field number `authserv_hops`. A file is rewritten in place.
    """
    if isinstance(source, Path):
        return await asyncio.to_thread(_cleaned_file, options, source, from_trusted_server)
    head, _ = halves(source)
    hops = _trusted_hops(options, head) if from_trusted_server else 0
    return stripped(source, own_names(options), believed=_believed(options), hops=hops)


def _cleaned_file(options: Options, path: Path, from_trusted_server: bool) -> Path:
    head, _ = beginning(path)
    if _NAME in head.lower() or len(head) >= HEAD_MAX:
        hops = _trusted_hops(options, head) if from_trusted_server else 0
        rewritten(path, b"", own_names(options), believed=_believed(options), hops=hops)
    return path


def _believed(options: Options) -> frozenset[str]:
    return comparable(options.authserv_ids)


def _trusted_hops(options: Options, head: bytes) -> int:
    """The number of the Received field above which results are trusted; 0 if it is missing."""
    count = len(_RECEIVED.findall(head))
    return options.authserv_hops if count >= options.authserv_hops else 0


def stripped(
    raw: bytes, names: Collection[str], *, believed: Collection[str] = (), hops: int = 0
) -> bytes:
    """The message without results of servers with these comparable names.

    Results of `trusted_names` above Received field number `hops` stay.
    """
    head, _ = halves(raw)
    if _NAME not in head.lower():
        return raw
    cleaning = _Cleaning(names, believed, hops)
    kept = b"".join(cleaning.kept(head.splitlines(keepends=True)))
    return kept + raw[len(head) :]


def rewritten(
    path: Path,
    top: bytes,
    names: Collection[str],
    *,
    believed: Collection[str] = (),
    hops: int = 0,
) -> str:
    """Rewrite a file as `remove_results` does, with `prefix` before it.

    Returns the SHA-256 (hex) of the original.
    """
    new = path.with_name(f"{path.name}.stamped")  # a crash leaves nothing: the prefix is known
    try:
        with path.open("rb") as file, new.open("wb") as made:
            came = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            made.write(top)
            made.writelines(_Cleaning(names, believed, hops).kept(_lines(file)))
            shutil.copyfileobj(file, made, STEP)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    return came


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines of the header in a file. The empty line is the next to be read."""
    while (line := file.readline()) not in {b"", b"\n", b"\r\n"}:
        yield from line.splitlines(keepends=True)
    file.seek(-len(line), os.SEEK_CUR)


class _Cleaning:
    """A pass over the lines of a header that removes results."""

    def __init__(self, names: Collection[str], believed: Collection[str], hops: int) -> None:
        self._names = names
        self._believed = believed
        self._hops = hops
        self._above = 0  # Received fields above the current line

    def kept(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the lines except results that claim to be of the named servers.

        Results of more than MAX_HEADER_SIZE bytes are removed, too.
        """
        of, size = list[bytes](), 0  # lines of the current results field
        for line in lines:
            if of and line.startswith((b" ", b"\t")):
                size += len(line)
                of += [line] if size <= HEAD_MAX else []
                continue
            yield from self._others(of, size)
            of, size = ([line], len(line)) if _is_results(line) else ([], 0)
            if not of:
                self._above += bool(_RECEIVED.match(line))
                yield line
        yield from self._others(of, size)

    def _others(self, of: list[bytes], size: int) -> list[bytes]:
        field = b"".join(of)
        return [] if size > HEAD_MAX or (of and self._is_removed(field)) else [field]

    def _is_removed(self, field: bytes) -> bool:
        text = unfolded(field.decode("latin-1").partition(":")[2])
        name = _comparable(server(text))
        if name not in self._names:
            return False
        return not (name in self._believed and self._above < self._hops)


def _is_results(line: bytes) -> bool:
    return line.partition(b":")[0].rstrip(b" \t").lower() == _NAME


def _comparable(name: str) -> str:
    return name.casefold().rstrip(".")

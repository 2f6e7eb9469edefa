"""Removal of Authentication-Results in the name of this server (RFC 8601, section 5)."""

import asyncio
import hashlib
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import IO

from mail.authentication.body_canonicalization import READ_SIZE
from mail.authentication.header_fields import (
    MAX_HEADER_SIZE,
    read_header_and_body_offset,
    split_header_and_body,
)
from mail.authentication.results import FIELD_NAME
from mail.mime.authentication_results import authserv_id_or_empty
from mail.mime.encoded_words import unfold_and_decode_utf8
from models.runtime.options import Options

_FIELD_NAME = FIELD_NAME.lower().encode()
_RECEIVED = re.compile(rb"^received[ \t]*:", re.IGNORECASE | re.MULTILINE)


def comparable_names(names: Iterable[str]) -> frozenset[str]:
    """The authserv-ids in the form in which they are compared."""
    return frozenset(map(_comparable_server_name, names))


def own_authserv_ids(options: Options) -> frozenset[str]:
    """The authserv-ids of this server, in the form in which they are compared."""
    return comparable_names((options.hostname, *options.authserv_ids))


async def remove_own_results(
    options: Options, source: bytes | Path, *, from_trusted_server: bool = False
) -> bytes | Path:
    """Remove Authentication-Results in the name of this server from a message.

    With `from_trusted_server`, results that `mail.mime.believed` accepts stay: those of
    `authserv_ids` above Received field number `authserv_hops`. A file is rewritten in place.
    """
    if isinstance(source, Path):
        return await asyncio.to_thread(
            _remove_own_results_from_file, options, source, from_trusted_server
        )
    head, _ = split_header_and_body(source)
    trusted_hops = _trusted_hops_or_zero(options, head) if from_trusted_server else 0
    return remove_authentication_results_of_servers(
        source,
        own_authserv_ids(options),
        trusted_names=_trusted_authserv_ids(options),
        trusted_hops=trusted_hops,
    )


def _remove_own_results_from_file(options: Options, path: Path, from_trusted_server: bool) -> Path:
    head, _ = read_header_and_body_offset(path)
    if _FIELD_NAME in head.lower() or len(head) >= MAX_HEADER_SIZE:
        trusted_hops = _trusted_hops_or_zero(options, head) if from_trusted_server else 0
        rewrite_without_results_and_hash_original(
            path,
            b"",
            own_authserv_ids(options),
            trusted_names=_trusted_authserv_ids(options),
            trusted_hops=trusted_hops,
        )
    return path


def _trusted_authserv_ids(options: Options) -> frozenset[str]:
    """Return the authserv-ids whose results stay in messages from a trusted server.

    They are in the form in which they are compared.
    """
    return comparable_names(options.authserv_ids)


def _trusted_hops_or_zero(options: Options, header: bytes) -> int:
    """The number of the Received field above which results are trusted; 0 if it is missing."""
    count = len(_RECEIVED.findall(header))
    return options.authserv_hops if count >= options.authserv_hops else 0


def remove_authentication_results_of_servers(
    raw: bytes,
    server_names: Collection[str],
    *,
    trusted_names: Collection[str] = (),
    trusted_hops: int = 0,
) -> bytes:
    """The message without results of servers with these comparable names.

    Results of `trusted_names` above Received field number `trusted_hops` stay.
    """
    head, _ = split_header_and_body(raw)
    if _FIELD_NAME not in head.lower():
        return raw
    cleaning = _ResultsRemover(server_names, trusted_names, trusted_hops)
    cleaned_head = b"".join(cleaning.lines_to_keep(head.splitlines(keepends=True)))
    return cleaned_head + raw[len(head) :]


def rewrite_without_results_and_hash_original(
    path: Path,
    prefix: bytes,
    server_names: Collection[str],
    *,
    trusted_names: Collection[str] = (),
    trusted_hops: int = 0,
) -> str:
    """Rewrite a file as `remove_authentication_results_of_servers` does, with `prefix` before it.

    Returns the SHA-256 (hex) of the original.
    """
    new = path.with_name(f"{path.name}.stamped")  # a crash leaves nothing: the prefix is known
    try:
        with path.open("rb") as file, new.open("wb") as rewritten_file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            rewritten_file.write(prefix)
            rewritten_file.writelines(
                _ResultsRemover(server_names, trusted_names, trusted_hops).lines_to_keep(
                    _header_lines(file)
                )
            )
            shutil.copyfileobj(file, rewritten_file, READ_SIZE)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    return digest


def _header_lines(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines of the header in a file. The empty line is the next to be read."""
    while (line := file.readline()) not in {b"", b"\n", b"\r\n"}:
        yield from line.splitlines(keepends=True)
    file.seek(-len(line), os.SEEK_CUR)


class _ResultsRemover:
    """A pass over the lines of a header that removes results."""

    def __init__(
        self, names: Collection[str], trusted_names: Collection[str], trusted_hops: int
    ) -> None:
        self._names = names
        self._trusted_names = trusted_names
        self._hops = trusted_hops
        self._received_count = 0  # Received fields above the current line

    def lines_to_keep(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the lines except results that claim to be of the named servers.

        Results of more than MAX_HEADER_SIZE bytes are removed, too.
        """
        field_lines, size = list[bytes](), 0  # lines of the current results field
        for line in lines:
            if field_lines and line.startswith((b" ", b"\t")):
                size += len(line)
                field_lines += [line] if size <= MAX_HEADER_SIZE else []
                continue
            yield from self._field_to_keep(field_lines, size)
            field_lines, size = ([line], len(line)) if _is_results(line) else ([], 0)
            if not field_lines:
                self._received_count += bool(_RECEIVED.match(line))
                yield line
        yield from self._field_to_keep(field_lines, size)

    def _field_to_keep(self, field_lines: list[bytes], size: int) -> list[bytes]:
        field = b"".join(field_lines)
        return (
            [] if size > MAX_HEADER_SIZE or (field_lines and self._is_removed(field)) else [field]
        )

    def _is_removed(self, field: bytes) -> bool:
        text = unfold_and_decode_utf8(field.decode("latin-1").partition(":")[2])
        name = _comparable_server_name(authserv_id_or_empty(text))
        if name not in self._names:
            return False
        return not (name in self._trusted_names and self._received_count < self._hops)


def _is_results(line: bytes) -> bool:
    return line.partition(b":")[0].rstrip(b" \t").lower() == _FIELD_NAME


def _comparable_server_name(name: str) -> str:
    return name.casefold().rstrip(".")

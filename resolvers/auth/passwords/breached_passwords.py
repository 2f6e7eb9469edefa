"""Breached passwords: refused if the caller asks for safe ones."""

import asyncio
import hashlib
import http.client
import logging
import mmap
import re
from pathlib import Path
from urllib.parse import urlsplit

from models.runtime.environment import World
from resolvers.auth.passwords.common_passwords import COMMONEST

log = logging.getLogger(__name__)

PREFIX = 5  # hex digits of the SHA-1 that the range service receives
PATIENCE = 2.0  # seconds
LONGEST = 4 << 20  # bytes
_HASH = re.compile(rb"[0-9A-Fa-f]{40}(:\d+)?\s*")


async def known(world: World, password: str) -> bool:
    """True if a list or the range service knows the password.

    False if the service does not respond or the list can't be read. Must not be called inside a
    transaction.
    """
    if password.casefold() in COMMONEST:
        return True
    listed, service = world.options.breached_list, world.options.breached_range
    if listed is not None and await asyncio.to_thread(_listed, listed, password):
        return True
    if not service:
        return False
    asked = asyncio.to_thread(_asked, service, password)
    try:
        return await asyncio.wait_for(asked, PATIENCE)
    except (TimeoutError, OSError, ValueError, http.client.HTTPException) as problem:
        log.warning("the range service does not answer", extra={"problem": repr(problem)})
        return False


def _sha1(password: str) -> str:
    return hashlib.sha1(password.encode(), usedforsecurity=False).hexdigest().upper()


def _listed(path: Path, password: str) -> bool:
    """True if the sorted file of passwords or hashes has this password."""
    try:
        with path.open("rb") as file:
            first = file.readline(1024)
            if not first:
                return False
            hashed = bool(_HASH.fullmatch(first))
            wanted = _sha1(password) if hashed else password
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as lines:
                return _holds(lines, wanted.encode(), hashed=hashed)
    except (OSError, ValueError):
        log.exception("the list of known passwords cannot be read")
        return False


def _holds(lines: mmap.mmap, wanted: bytes, *, hashed: bool) -> bool:
    """True if the sorted lines contain this one: a binary search. Text after a hash is ignored."""
    low, high = 0, len(lines)
    while low < high:
        middle = (low + high) // 2
        start = lines.rfind(b"\n", low, middle) + 1 or low
        end = lines.find(b"\n", middle, high)
        end = high if end < 0 else end
        line = lines[start:end].rstrip(b"\r")
        if hashed:
            line = line[: len(wanted)].upper()
        if line == wanted:
            return True
        if line < wanted:
            low = end + 1
        else:
            high = start
    return False


def _asked(service: str, password: str) -> bool:
    """True if the range service lists the password. It responds with lines `SUFFIX:COUNT`.

    Raises OSError, ValueError or HTTPException if the request fails.
    """
    digest = _sha1(password)
    there = urlsplit(service)
    make = http.client.HTTPSConnection if there.scheme == "https" else http.client.HTTPConnection
    connection = make(there.netloc, timeout=PATIENCE)
    try:
        # Padding hides the prefix from an eavesdropper who sees the length of the response.
        headers = {"Add-Padding": "true", "User-Agent": "Merganser"}
        connection.request("GET", f"{there.path}/{digest[:PREFIX]}", headers=headers)
        with connection.getresponse() as answer:
            if answer.status != http.client.OK:
                raise ValueError(f"status {answer.status}")
            lines = answer.read(LONGEST).decode("ascii", "replace").splitlines()
    finally:
        connection.close()
    counts = dict(_counted(line) for line in lines)
    return counts.get(digest[PREFIX:], 0) > 0


def _counted(line: str) -> tuple[str, int]:
    """Parse a line into hash suffix and count; the count is 0 if it is malformed."""
    suffix, _, count = line.strip().partition(":")
    return suffix.upper(), int(count) if count.isdecimal() else 0

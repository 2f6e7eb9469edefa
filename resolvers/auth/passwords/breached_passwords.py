"""Breached passwords: refused if the caller asks for safe ones."""

import asyncio
import hashlib
import http.client
import logging
import mmap
import re
from pathlib import Path
from urllib.parse import urlsplit

from models.runtime.environment import Environment
from resolvers.auth.passwords.common_passwords import COMMON_PASSWORDS

log = logging.getLogger(__name__)

HASH_PREFIX_LENGTH = 5  # hex digits of the SHA-1 that the range service receives
RANGE_TIMEOUT = 2.0  # seconds
MAX_RESPONSE_SIZE = 4 << 20  # bytes
_HASH_LINE = re.compile(rb"[0-9A-Fa-f]{40}(:\d+)?\s*")


async def is_breached(environment: Environment, password: str) -> bool:
    """True if a list or the range service knows the password.

    False if the service does not respond or the list can't be read. Must not be called inside a
    transaction.
    """
    if password.casefold() in COMMON_PASSWORDS:
        return True
    list_path = environment.options.breached_passwords_file
    range_url = environment.options.breached_passwords_url
    if list_path is not None and await asyncio.to_thread(_is_in_list, list_path, password):
        return True
    if not range_url:
        return False
    query = asyncio.to_thread(_is_listed_by_range_service, range_url, password)
    try:
        return await asyncio.wait_for(query, RANGE_TIMEOUT)
    except (TimeoutError, OSError, ValueError, http.client.HTTPException) as problem:
        log.warning(
            "The service for breached passwords does not respond", extra={"problem": repr(problem)}
        )
        return False


def _sha1_hex(password: str) -> str:
    return hashlib.sha1(password.encode(), usedforsecurity=False).hexdigest().upper()


def _is_in_list(path: Path, password: str) -> bool:
    """True if the sorted file of passwords or hashes has this password."""
    try:
        with path.open("rb") as file:
            first_line = file.readline(1024)
            if not first_line:
                return False
            has_hashes = bool(_HASH_LINE.fullmatch(first_line))
            searched_line = _sha1_hex(password) if has_hashes else password
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as lines:
                return _has_line(lines, searched_line.encode(), has_hashes=has_hashes)
    except (OSError, ValueError):
        log.exception("Could not read the list of breached passwords")
        return False


def _has_line(lines: mmap.mmap, searched_line: bytes, *, has_hashes: bool) -> bool:
    """True if the sorted lines contain this one: a binary search. Text after a hash is ignored."""
    low, high = 0, len(lines)
    while low < high:
        middle = (low + high) // 2
        start = lines.rfind(b"\n", low, middle) + 1 or low
        end = lines.find(b"\n", middle, high)
        end = high if end < 0 else end
        line = lines[start:end].rstrip(b"\r")
        if has_hashes:
            line = line[: len(searched_line)].upper()
        if line == searched_line:
            return True
        if line < searched_line:
            low = end + 1
        else:
            high = start
    return False


def _is_listed_by_range_service(range_url: str, password: str) -> bool:
    """True if the range service lists the password. It responds with lines `SUFFIX:COUNT`.

    Raises OSError, ValueError or HTTPException if the request fails.
    """
    digest = _sha1_hex(password)
    url = urlsplit(range_url)
    connection_class = (
        http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    )
    connection = connection_class(url.netloc, timeout=RANGE_TIMEOUT)
    try:
        # Padding hides the prefix from an eavesdropper who sees the length of the response.
        headers = {"Add-Padding": "true", "User-Agent": "Merganser"}
        connection.request("GET", f"{url.path}/{digest[:HASH_PREFIX_LENGTH]}", headers=headers)
        with connection.getresponse() as response:
            if response.status != http.client.OK:
                raise ValueError(f"Unexpected status {response.status}.")
            lines = response.read(MAX_RESPONSE_SIZE).decode("ascii", "replace").splitlines()
    finally:
        connection.close()
    counts = dict(_parse_range_line(line) for line in lines)
    return counts.get(digest[HASH_PREFIX_LENGTH:], 0) > 0


def _parse_range_line(line: str) -> tuple[str, int]:
    """Parse a line into hash suffix and count; the count is 0 if it is malformed."""
    suffix, _, count = line.strip().partition(":")
    return suffix.upper(), int(count) if count.isdecimal() else 0

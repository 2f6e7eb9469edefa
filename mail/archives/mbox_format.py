"""The mailbox file (RFC 4155), quoted as mboxrd: what we write is read back byte for byte.

A line that begins with From, behind any number of `>`, has one more. Where the ordinary way of
reading would change a message, the words behind the date of its From line say so: `asis`, no
line end is to be changed; `noeol`, its last line has none.
"""

import re
from datetime import UTC, datetime

AS_IS, NO_EOL = b"asis", b"noeol"
_FROM = re.compile(rb"^(>*From )", re.MULTILINE)
_WORDS = re.compile(rb"\d{4}((?: (?:asis|noeol))+)\r?\n$")
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]


def entry(raw: bytes, sender: str | None, at: datetime) -> bytes:
    """A message as an entry of a mailbox file."""
    whole = raw.endswith(b"\n")
    words = [] if b"\r\n" in raw or b"\n" not in raw else [AS_IS]
    words += [] if whole else [NO_EOL]
    end = b"\n" if whole else b"\n\n"
    return b" ".join([line(sender, at), *words]) + b"\n" + _FROM.sub(rb">\1", raw) + end


def line(sender: str | None, at: datetime) -> bytes:
    """A From line, without its end."""
    name = "".join((sender or "").split()) or "MAILER-DAEMON"
    at = at.astimezone(UTC)
    day, month = _DAYS[at.weekday()], _MONTHS[at.month - 1]
    when = f"{day} {month} {at.day:2} {at:%H:%M:%S} {at.year:04}"
    return f"From {name} {when}".encode(errors="replace")


def words(head: bytes) -> list[bytes]:
    """What a From line of ours says of the bytes behind it."""
    found = _WORDS.search(head)
    return found[1].split() if found else []


def exact(lines: list[bytes], head: bytes) -> bytes | None:
    """The message of an entry of ours, without the quotes; None where it is another's."""
    known = words(head)
    if not known:
        return None
    raw = b"".join(lines)
    return raw.removesuffix(b"\n") if NO_EOL in known else raw

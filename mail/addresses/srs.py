"""Rewriting of envelope senders of redirected messages (Sender Rewriting Scheme, SRS).

Receivers check by SPF (RFC 7208) whether this server can send for the sender's domain. So a
redirected message gets a sender here that contains the original sender, the day and a signature:
`SRS0=signature=day=domain=local@here`. A server that redirects it again writes
`SRS1=signature=first==rest@there`: a bounce returns over the first server, and no address is nested
twice.
"""

import hmac
import re
from base64 import b32encode
from datetime import timedelta

from models.errors import Invalid
from models.runtime.environment import World

VALID = timedelta(days=21)  # later bounces are refused
DAYS = 1024  # days until the two letters of the day repeat
LETTERS = (
    "abcdefghijklmnopqrstuvwxyz234567"  # base32 in lower case, since some relays change the case
)
PROOF = 8  # letters of 5 bits

_FIRST = re.compile(r"srs0[=+-]([a-z2-7]{8})=([a-z2-7]{2})=([^=@]+)=(.+)", re.IGNORECASE)
_AGAIN = re.compile(r"srs1[=+-]([a-z2-7]{8})=([^=@]+)=(.+)", re.IGNORECASE)
_THEIRS = re.compile(r"srs([01])[=+-](.+)", re.IGNORECASE)


def rewritten(world: World, sender: str, domain: str) -> str:
    """Return the SRS sender at a local domain for a redirected message.

    The empty sender of bounces stays empty.
    """
    local, _, home = sender.rpartition("@")
    if not local:
        return ""
    if found := _THEIRS.fullmatch(local):
        again, rest = found.groups()
        first, rest = (home, f"={rest}") if again == "0" else _beyond(rest)
        return f"SRS1={_proof(world, first, rest)}={first}={rest}@{domain}"
    day = _day(world)
    proof = _proof(world, day, home, local)
    return f"SRS0={proof}={day}={home}={local}@{domain}"


def _beyond(rest: str) -> tuple[str, str]:
    """Return the first domain and the rest of an SRS1 local part, after its signature."""
    first, _, told = rest.partition("=")[2].partition("=")
    return first, told


def is_ours(local: str) -> bool:
    """True if a local part has the form of an SRS sender."""
    return bool(_THEIRS.fullmatch(local))


def origin(world: World, local: str) -> str:
    """Return the original sender that a bounce to an SRS local part goes to.

    Raises Invalid if the signature is not ours or the day is more than 21 days ago.
    """
    if found := _FIRST.fullmatch(local):
        proof, day, home, name = found.groups()
        if _same(proof, _proof(world, day.lower(), home, name)) and _recent(world, day.lower()):
            return f"{name}@{home}"
    elif found := _AGAIN.fullmatch(local):
        proof, first, rest = found.groups()
        if _same(proof, _proof(world, first, rest)):
            return f"SRS0{rest}@{first}"
    raise Invalid("not a sender of ours, or too old", constraint="srs", path=["address"])


def _same(given: str, proof: str) -> bool:
    return hmac.compare_digest(given.lower(), proof)


def _proof(world: World, *what: str) -> str:
    """Return the signature of the parts in lower case.

    Upper and lower case get the same signature, since relays may change the case.
    """
    told = "\0".join(["srs", *what]).lower().encode()
    return b32encode(hmac.digest(world.secret, told, "sha256")).decode()[:PROOF].lower()


def _day(world: World) -> str:
    return _letters(_number(world))


def _number(world: World) -> int:
    return int(world.now().timestamp() // 86400) % DAYS


def _letters(number: int) -> str:
    return LETTERS[number >> 5] + LETTERS[number & 31]


def _recent(world: World, day: str) -> bool:
    written = LETTERS.index(day[0]) << 5 | LETTERS.index(day[1])
    return (_number(world) - written) % DAYS <= VALID.days

"""Envelope senders of what is sent on, so that bounces find back (the Sender Rewriting Scheme).

A receiver asks the domain of the envelope sender whether we may send for it (SPF, RFC 7208). So
what is sent on has a sender of ours, in which the first one is written down, with the day and a
proof that we wrote it: `SRS0=proof=day=domain=local@ours`. Who sends that on again writes
`SRS1=proof=first==rest@theirs`: it comes back over the first, and is not written down twice.
"""

import hmac
import re
from base64 import b32encode
from datetime import timedelta

from models.errors import Invalid
from models.runtime.environment import World

VALID = timedelta(days=21)  # a bounce that comes later is nobody's
DAYS = 1024  # after so many the two letters of the day begin anew
LETTERS = "abcdefghijklmnopqrstuvwxyz234567"  # of base32, in lower case: some relays fold it
PROOF = 8  # letters, which are 40 bits

_FIRST = re.compile(r"srs0[=+-]([a-z2-7]{8})=([a-z2-7]{2})=([^=@]+)=(.+)", re.IGNORECASE)
_AGAIN = re.compile(r"srs1[=+-]([a-z2-7]{8})=([^=@]+)=(.+)", re.IGNORECASE)
_THEIRS = re.compile(r"srs([01])[=+-](.+)", re.IGNORECASE)


def rewritten(world: World, sender: str, domain: str) -> str:
    """The envelope sender with which a domain of ours sends on what came from `sender`.

    Nobody ("") stays nobody.
    """
    local, _, home = sender.rpartition("@")
    if not local:
        return ""
    if found := _THEIRS.fullmatch(local):
        again, rest = found.groups()
        first, rest = (home, f"={rest}") if again == "0" else _beyond(rest)
        return f"SRS1={_proof(world, first, rest)}={first}={rest}@{domain}"
    day = _day(world)
    return f"SRS0={_proof(world, day, home, local)}={day}={home}={local}@{domain}"


def _beyond(rest: str) -> tuple[str, str]:
    """The first who sent it on, and what he is to be told, behind the proof of the last."""
    first, _, told = rest.partition("=")[2].partition("=")
    return first, told


def is_ours(local: str) -> bool:
    """Whether this looks like the local part of such a sender."""
    return bool(_THEIRS.fullmatch(local))


def origin(world: World, local: str) -> str:
    """To whom a bounce to the local part of such a sender goes.

    Invalid where we have not written it, or too long ago.
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
    """What only we can write; letters count alike in both cases, as relays may fold them."""
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

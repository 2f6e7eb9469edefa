"""Password hashes that users bring from other systems.

They are recognized by their format: PBKDF2 as `$pbkdf2-sha256$i=100000$salt$hash` (PHC) or with the
bare count and `.` for `+`, bcrypt, crypt's MD5, SHA-256 and SHA-512, DES crypt, and all kinds of
Argon2. A hash is refused at import if its check would cost more than `MAX_COSTS`.
"""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from argon2 import Type
from argon2.exceptions import Argon2Error, VerifyMismatchError
from argon2.low_level import verify_secret

from models.errors import Invalid

LONGEST = 512  # characters
MOST = {
    "PBKDF2": 2_000_000,  # iterations
    "bcrypt": 14,  # its cost, 2^n rounds
    "crypt": 1_000_000,  # rounds
    "memory": 1 << 18,  # KiB that Argon2 takes
    "time": 1 << 20,  # KiB, times passes
    "lanes": 16,
}
BCRYPT = 72  # bytes of a password that bcrypt uses
BCRYPT_LEAST = 4
BCRYPT_SALT, BCRYPT_SALT_ENDS = 22, ".Oeu"  # characters; last ones that leave no extra bits
SHA_LEAST = 1000  # of SHA-256 and SHA-512 crypt
LANE_MEMORY = 8  # KiB that each lane of Argon2 needs at least
TYPES = {"argon2d": Type.D, "argon2i": Type.I, "argon2id": Type.ID}

_B64 = "A-Za-z0-9./+"
_PBKDF2 = re.compile(
    rf"\$pbkdf2-(?P<digest>sha1|sha256|sha512)\$(?:i=)?(?P<cost>\d{{1,9}})(?:,l=\d{{1,3}})?"
    rf"\$(?P<salt>[{_B64}]{{2,128}})\$(?P<hash>[{_B64}]{{22,86}})"
)
_BCRYPT = re.compile(r"\$2[aby]\$(?P<cost>\d\d)\$[./A-Za-z0-9]{53}")
_MD5 = re.compile(r"\$1\$[./A-Za-z0-9]{0,8}\$[./A-Za-z0-9]{22}")
_SHA = re.compile(
    r"\$(?:5\$(?:rounds=(?P<cost>\d{1,9})\$)?[./A-Za-z0-9]{0,16}\$[./A-Za-z0-9]{43}"
    r"|6\$(?:rounds=(?P<cost6>\d{1,9})\$)?[./A-Za-z0-9]{0,16}\$[./A-Za-z0-9]{86})"
)
_DES = re.compile(r"[./0-9A-Za-z]{13}")
_ARGON2 = re.compile(
    r"\$argon2(?:d|i|id)\$(?:v=(?:16|19)\$)?m=(?P<memory>\d{1,9}),t=(?P<time>\d{1,9}),"
    r"p=(?P<lanes>\d{1,4})\$[A-Za-z0-9+/]{11,128}\$[A-Za-z0-9+/]{6,172}"
)


@dataclass(frozen=True, slots=True)
class Format:
    """A format of password hashes, with its check of a password."""

    form: re.Pattern[str]
    costs: Callable[[re.Match[str]], bool]  # the cost is within `MAX_COSTS`
    verify: Callable[[bytes, str], bool]
    is_usable: Callable[[re.Match[str]], bool]  # `verify` can read it; computes no hash
    native: bool = True  # `verify` releases the interpreter's lock


def checked(stored: str, *, path: Sequence[str] = ("password",)) -> str:
    """Return the hash, trimmed, if passwords can be compared with it.

    Raises Invalid if its format is unknown, or if a comparison would cost too much. Computes no
    hash: the check takes less than a millisecond.
    """
    stored = stored.strip()
    for known in FORMATS:
        match = known.form.fullmatch(stored) if len(stored) <= LONGEST else None
        if match is None:
            continue
        if not known.costs(match):
            text = "to check a password against this hash would cost too much"
            raise Invalid(text, constraint="cost", path=path)
        if not known.is_usable(match):
            raise unknown(path)
        return stored
    raise unknown(path)


def unknown(path: Sequence[str]) -> Invalid:
    """Return the error for a hash that can't be checked."""
    text = "not a hash of PBKDF2, bcrypt, MD5, SHA or DES crypt, or Argon2"
    return Invalid(text, constraint="hash", path=path)


def verify(password: str, stored: str) -> bool:
    """True if this is the password of the hash. Raises ValueError for an unknown format."""
    for known in FORMATS:
        if known.form.fullmatch(stored):
            return known.verify(password.encode(), stored)
    raise ValueError("a hash of no known form")


def is_native(stored: str) -> bool:
    """True if a password can be checked without holding the interpreter's lock."""
    return any(known.native for known in FORMATS if known.form.fullmatch(stored))


def foreign(stored: str) -> bool:
    """True if the hash is of another kind than this server creates."""
    return not stored.startswith("$argon2id$")


def _bytes(text: str) -> bytes:
    """Decode unpadded base64 with `+` or `.` as the 62nd digit.

    Raises ValueError.
    """
    text = text.replace(".", "+")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error as problem:
        raise ValueError("not base64") from problem


def _pbkdf2(password: bytes, stored: str) -> bool:
    parts = _PBKDF2.fullmatch(stored)
    if parts is None:
        raise ValueError("not PBKDF2")
    kept, salt = _bytes(parts["hash"]), _bytes(parts["salt"])
    made = hashlib.pbkdf2_hmac(parts["digest"], password, salt, int(parts["cost"]), len(kept))
    return hmac.compare_digest(made, kept)


def _bcrypt(password: bytes, stored: str) -> bool:
    import bcrypt  # noqa: PLC0415 - few servers need it, and it delays the start

    return bcrypt.checkpw(password[:BCRYPT], stored.encode())


def _crypt(name: str) -> Callable[[bytes, str], bool]:
    """Return a verify function for a crypt scheme of passlib."""

    def verify(password: bytes, stored: str) -> bool:
        from passlib import hash as hashes  # noqa: PLC0415 - delays the start

        return bool(getattr(hashes, name).verify(password, stored))

    return verify


def _sha(password: bytes, stored: str) -> bool:
    return _crypt("sha256_crypt" if stored.startswith("$5$") else "sha512_crypt")(password, stored)


def _argon2(password: bytes, stored: str) -> bool:
    try:
        return verify_secret(stored.encode(), password, TYPES[stored.split("$")[1]])
    except VerifyMismatchError:
        return False


def _argon2_affordable(match: re.Match[str]) -> bool:
    memory, time, lanes = (int(match[name]) for name in ("memory", "time", "lanes"))
    return memory <= MOST["memory"] and memory * time <= MOST["time"] and lanes <= MOST["lanes"]


def _is_argon2_usable(match: re.Match[str]) -> bool:
    """True if libargon2 can decode the hash: verified with the least memory and one pass."""
    memory, time, lanes = (int(match[name]) for name in ("memory", "time", "lanes"))
    least = LANE_MEMORY * lanes
    if lanes < 1 or time < 1 or memory < least:
        return False
    start, end = match.start("memory") - len("m="), match.end("lanes")
    cheap = f"{match.string[:start]}m={least},t=1,p={lanes}{match.string[end:]}"
    try:
        _argon2(b"", cheap)
    except Argon2Error:
        return False
    return True


def _is_pbkdf2_usable(match: re.Match[str]) -> bool:
    try:
        return bool(_bytes(match["hash"]) and _bytes(match["salt"]))
    except ValueError:
        return False


def _is_bcrypt_usable(match: re.Match[str]) -> bool:
    """True if the cost is one of bcrypt's, and the salt is 16 bytes with no bits left over."""
    salt_end = match.start() + len("$2b$00$") + BCRYPT_SALT
    return int(match["cost"]) >= BCRYPT_LEAST and match.string[salt_end - 1] in BCRYPT_SALT_ENDS


def _is_sha_usable(match: re.Match[str]) -> bool:
    rounds = match["cost"] or match["cost6"]
    return rounds is None or (not rounds.startswith("0") and int(rounds) >= SHA_LEAST)


def _any(_match: re.Match[str]) -> bool:
    return True


FORMATS = (
    Format(_ARGON2, _argon2_affordable, _argon2, _is_argon2_usable),
    Format(
        _PBKDF2,
        lambda match: 0 < int(match["cost"]) <= MOST["PBKDF2"],
        _pbkdf2,
        _is_pbkdf2_usable,
    ),
    Format(_BCRYPT, lambda match: int(match["cost"]) <= MOST["bcrypt"], _bcrypt, _is_bcrypt_usable),
    Format(
        _SHA,
        lambda match: int(match["cost"] or match["cost6"] or 0) <= MOST["crypt"],
        _sha,
        _is_sha_usable,
        native=False,
    ),
    Format(_MD5, _any, _crypt("md5_crypt"), _any, native=False),
    Format(_DES, _any, _crypt("des_crypt"), _any, native=False),
)

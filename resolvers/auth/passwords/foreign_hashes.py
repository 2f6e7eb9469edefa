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

from models.errors import InvalidInput
from models.validation_constraints import ValidationConstraint

MAX_LENGTH = 512  # characters
MAX_COSTS = {
    "PBKDF2": 2_000_000,  # iterations
    "bcrypt": 14,  # its cost, 2^n rounds
    "crypt": 1_000_000,  # rounds
    "memory": 1 << 18,  # KiB that Argon2 takes
    "time": 1 << 20,  # KiB, times passes
    "lanes": 16,
}
BCRYPT_MAX_BYTES = 72  # bytes of a password that bcrypt uses
BCRYPT_MIN_COST = 4
BCRYPT_SALT_LENGTH = 22  # characters
BCRYPT_SALT_LAST_CHARACTERS = ".Oeu"  # those that leave no extra bits
SHA_MIN_ROUNDS = 1000  # of SHA-256 and SHA-512 crypt
ARGON2_LANE_MEMORY = 8  # KiB that each lane of Argon2 needs at least
ARGON2_TYPES = {"argon2d": Type.D, "argon2i": Type.I, "argon2id": Type.ID}

_B64 = "A-Za-z0-9./+"
_PBKDF2_PATTERN = re.compile(
    rf"\$pbkdf2-(?P<digest>sha1|sha256|sha512)\$(?:i=)?(?P<cost>\d{{1,9}})(?:,l=\d{{1,3}})?"
    rf"\$(?P<salt>[{_B64}]{{2,128}})\$(?P<hash>[{_B64}]{{22,86}})"
)
_BCRYPT_PATTERN = re.compile(r"\$2[aby]\$(?P<cost>\d\d)\$[./A-Za-z0-9]{53}")
_MD5_PATTERN = re.compile(r"\$1\$[./A-Za-z0-9]{0,8}\$[./A-Za-z0-9]{22}")
_SHA_PATTERN = re.compile(
    r"\$(?:5\$(?:rounds=(?P<cost>\d{1,9})\$)?[./A-Za-z0-9]{0,16}\$[./A-Za-z0-9]{43}"
    r"|6\$(?:rounds=(?P<cost6>\d{1,9})\$)?[./A-Za-z0-9]{0,16}\$[./A-Za-z0-9]{86})"
)
_DES_PATTERN = re.compile(r"[./0-9A-Za-z]{13}")
_ARGON2_PATTERN = re.compile(
    r"\$argon2(?:d|i|id)\$(?:v=(?:16|19)\$)?m=(?P<memory>\d{1,9}),t=(?P<time>\d{1,9}),"
    r"p=(?P<lanes>\d{1,4})\$[A-Za-z0-9+/]{11,128}\$[A-Za-z0-9+/]{6,172}"
)


@dataclass(frozen=True, slots=True)
class HashFormat:
    """A format of password hashes, with its check of a password."""

    pattern: re.Pattern[str]
    is_affordable: Callable[[re.Match[str]], bool]  # the cost is within `MAX_COSTS`
    verify: Callable[[bytes, str], bool]
    is_usable: Callable[[re.Match[str]], bool]  # `verify` can read it; computes no hash
    releases_gil: bool = True  # `verify` releases the interpreter's lock


def validate_foreign_hash(password_hash: str, *, path: Sequence[str] = ("password",)) -> str:
    """Return the hash, trimmed, if passwords can be compared with it.

    Raises InvalidInput if its format is unknown, or if a comparison would cost too much. Computes
    no hash: the check takes less than a millisecond.
    """
    password_hash = password_hash.strip()
    for hash_format in FORMATS:
        match = (
            hash_format.pattern.fullmatch(password_hash)
            if len(password_hash) <= MAX_LENGTH
            else None
        )
        if match is None:
            continue
        if not hash_format.is_affordable(match):
            text = "The cost parameters of the hash are too high."
            raise InvalidInput(text, constraint=ValidationConstraint.HASH_COST, path=path)
        if not hash_format.is_usable(match):
            raise unknown_hash_format(path)
        return password_hash
    raise unknown_hash_format(path)


def unknown_hash_format(path: Sequence[str]) -> InvalidInput:
    """Return the error for a hash that can't be checked."""
    text = "The hash must be PBKDF2, bcrypt, Argon2, or MD5, SHA or DES crypt."
    return InvalidInput(text, constraint=ValidationConstraint.PASSWORD_HASH, path=path)


def verify_foreign_hash(password: str, password_hash: str) -> bool:
    """True if this is the password of the hash. Raises ValueError for an unknown format."""
    for hash_format in FORMATS:
        if hash_format.pattern.fullmatch(password_hash):
            return hash_format.verify(password.encode(), password_hash)
    raise ValueError("The format of the hash is unknown.")


def releases_gil(password_hash: str) -> bool:
    """True if a password can be checked without holding the interpreter's lock."""
    return any(
        hash_format.releases_gil
        for hash_format in FORMATS
        if hash_format.pattern.fullmatch(password_hash)
    )


def is_foreign_hash(password_hash: str) -> bool:
    """True if the hash is of another kind than this server creates."""
    return not password_hash.startswith("$argon2id$")


def _decode_base64(text: str) -> bytes:
    """Decode unpadded base64 with `+` or `.` as the 62nd digit.

    Raises ValueError.
    """
    text = text.replace(".", "+")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error as problem:
        raise ValueError("The hash is not base64.") from problem


def _verify_pbkdf2(password: bytes, password_hash: str) -> bool:
    parts = _PBKDF2_PATTERN.fullmatch(password_hash)
    if parts is None:
        raise ValueError("The hash is not PBKDF2.")
    expected, salt = _decode_base64(parts["hash"]), _decode_base64(parts["salt"])
    computed = hashlib.pbkdf2_hmac(
        parts["digest"], password, salt, int(parts["cost"]), len(expected)
    )
    return hmac.compare_digest(computed, expected)


def _verify_bcrypt(password: bytes, password_hash: str) -> bool:
    import bcrypt  # noqa: PLC0415 - few servers need it, and it delays the start

    return bcrypt.checkpw(password[:BCRYPT_MAX_BYTES], password_hash.encode())


def _passlib_verifier(scheme: str) -> Callable[[bytes, str], bool]:
    """Return a verify function for a crypt scheme of passlib."""

    def verify(password: bytes, stored: str) -> bool:
        from passlib import hash as hashes  # noqa: PLC0415 - delays the start

        return bool(getattr(hashes, scheme).verify(password, stored))

    return verify


def _verify_sha_crypt(password: bytes, password_hash: str) -> bool:
    return _passlib_verifier("sha256_crypt" if password_hash.startswith("$5$") else "sha512_crypt")(
        password, password_hash
    )


def _verify_argon2(password: bytes, password_hash: str) -> bool:
    try:
        return verify_secret(
            password_hash.encode(), password, ARGON2_TYPES[password_hash.split("$")[1]]
        )
    except VerifyMismatchError:
        return False


def _is_argon2_affordable(match: re.Match[str]) -> bool:
    memory, time, lanes = (int(match[name]) for name in ("memory", "time", "lanes"))
    return (
        memory <= MAX_COSTS["memory"]
        and memory * time <= MAX_COSTS["time"]
        and lanes <= MAX_COSTS["lanes"]
    )


def _is_argon2_usable(match: re.Match[str]) -> bool:
    """True if libargon2 can decode the hash: verified with the least memory and one pass."""
    memory, time, lanes = (int(match[name]) for name in ("memory", "time", "lanes"))
    min_memory = ARGON2_LANE_MEMORY * lanes
    if lanes < 1 or time < 1 or memory < min_memory:
        return False
    start, end = match.start("memory") - len("m="), match.end("lanes")
    cheap_hash = f"{match.string[:start]}m={min_memory},t=1,p={lanes}{match.string[end:]}"
    try:
        _verify_argon2(b"", cheap_hash)
    except Argon2Error:
        return False
    return True


def _is_pbkdf2_usable(match: re.Match[str]) -> bool:
    try:
        return bool(_decode_base64(match["hash"]) and _decode_base64(match["salt"]))
    except ValueError:
        return False


def _is_bcrypt_usable(match: re.Match[str]) -> bool:
    """True if the cost is one of bcrypt's, and the salt is 16 bytes with no bits left over."""
    salt_end = match.start() + len("$2b$00$") + BCRYPT_SALT_LENGTH
    return (
        int(match["cost"]) >= BCRYPT_MIN_COST
        and match.string[salt_end - 1] in BCRYPT_SALT_LAST_CHARACTERS
    )


def _is_sha_usable(match: re.Match[str]) -> bool:
    rounds = match["cost"] or match["cost6"]
    return rounds is None or (not rounds.startswith("0") and int(rounds) >= SHA_MIN_ROUNDS)


def _accept_any_match(_match: re.Match[str]) -> bool:
    return True


FORMATS = (
    HashFormat(_ARGON2_PATTERN, _is_argon2_affordable, _verify_argon2, _is_argon2_usable),
    HashFormat(
        _PBKDF2_PATTERN,
        lambda match: 0 < int(match["cost"]) <= MAX_COSTS["PBKDF2"],
        _verify_pbkdf2,
        _is_pbkdf2_usable,
    ),
    HashFormat(
        _BCRYPT_PATTERN,
        lambda match: int(match["cost"]) <= MAX_COSTS["bcrypt"],
        _verify_bcrypt,
        _is_bcrypt_usable,
    ),
    HashFormat(
        _SHA_PATTERN,
        lambda match: int(match["cost"] or match["cost6"] or 0) <= MAX_COSTS["crypt"],
        _verify_sha_crypt,
        _is_sha_usable,
        releases_gil=False,
    ),
    HashFormat(
        _MD5_PATTERN,
        _accept_any_match,
        _passlib_verifier("md5_crypt"),
        _accept_any_match,
        releases_gil=False,
    ),
    HashFormat(
        _DES_PATTERN,
        _accept_any_match,
        _passlib_verifier("des_crypt"),
        _accept_any_match,
        releases_gil=False,
    ),
)

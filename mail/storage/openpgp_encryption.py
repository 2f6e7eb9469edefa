"""Encryption of received messages to the OpenPGP key of the user (RFC 3156).

A message that can't be encrypted is not stored.
"""

import asyncio
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from mail import mime
from mail.storage import openpgp_short_rsa, received_messages
from mail.storage.message_insert import Letter
from mail.storage.received_messages import SMALL
from models.errors import Unavailable
from models.runtime.environment import World
from models.store.columns import Picked

log = logging.getLogger(__name__)

_OF_BODY = re.compile(rb"content-[!-9;-~]*[ \t]*:", re.IGNORECASE)
_VERSION = re.compile(rb"mime-version[ \t]*:", re.IGNORECASE)


async def put_in(
    world: World, source: bytes | Path, letter: Letter, account: Picked, box: Picked
) -> Letter:
    """Encrypt a message, which is no draft, if the user or the mailbox requires it.

    Raises Unavailable if it can't be encrypted.
    """
    if not (account.encrypt_messages or box.encrypt_messages):
        return letter
    return await encrypted(world, source, letter, (account.id, account.pub_key or ""))


async def encrypted(
    world: World, source: bytes | Path, letter: Letter, to: tuple[int, str]
) -> Letter:
    """Encrypt a message to a user; `user_key` is the user id and the armoured OpenPGP key.

    A message that is already encrypted with PGP/MIME or S/MIME is returned unchanged. Raises
    Unavailable if the key can't be used.
    """
    bytes_ = await sealed(world, source, letter, to)
    if bytes_ is None:
        return letter
    made = await received_messages.read(bytes_)
    came = letter.came or letter.digest
    return replace(made, came=came, verification=letter.verification, scan=letter.scan)


async def sealed(
    world: World, source: bytes | Path, letter: Letter, to: tuple[int, str]
) -> bytes | None:
    """The bytes of `encrypt_message`; None if the message stays unchanged. Raises Unavailable."""
    if letter.facts.encrypted:
        return None
    user_id, key = to
    if isinstance(source, bytes) and len(source) + len(key) < SMALL:
        made = _sealed(world, source, letter, key)
    else:
        made = await asyncio.to_thread(_sealed, world, source, letter, key)
    if made is None:
        log.warning("it cannot be encrypted", extra={"user": user_id})
        text = "it cannot be encrypted to the key of the account, which may be over"
        raise Unavailable(text, component="encryption")
    return made


async def to_all(world: World, raw: bytes, keys: Sequence[str]) -> bytes:
    """Encrypt a message to all of these keys. Raises Unavailable if one of them can't be used."""

    def work() -> bytes | None:
        outer, inner = _divided(raw, mime.facts(raw).structure.body_start)
        armored = _armored(world, inner, *keys)
        return None if armored is None else _wrapped(outer, armored, world.random(16).hex())

    if (made := await asyncio.to_thread(work)) is None:
        text = "it cannot be encrypted to the key of a recipient, which may be over"
        raise Unavailable(text, component="encryption")
    return made


def _sealed(world: World, source: bytes | Path, letter: Letter, key: str) -> bytes | None:
    """Encrypt a message; None if the key can't be used."""
    raw = source if isinstance(source, bytes) else source.read_bytes()
    outer, inner = _divided(raw, letter.facts.structure.body_start)
    armored = _armored(world, inner, key)
    return None if armored is None else _wrapped(outer, armored, world.random(16).hex())


def _divided(raw: bytes, body_start: int) -> tuple[bytes, bytes]:
    """The header that stays readable, and the part to encrypt: the body with its Content fields."""
    outer, inner = [], []
    for field in _fields(raw[:body_start]):
        if _OF_BODY.match(field):
            inner.append(field)
        elif not _VERSION.match(field):
            outer.append(field)
    return b"".join(outer), b"".join([*inner, b"\r\n", raw[body_start:]])


def _fields(head: bytes) -> Iterator[bytes]:
    """Yield the fields of a header with their folded lines; a line without a name counts as one."""
    field = list[bytes]()
    for line in filter(None, head.splitlines()):
        if field and not line.startswith((b" ", b"\t")):
            yield b"".join(field)
            field = []
        field.append(line + b"\r\n")
    yield b"".join(field)


def _armored(world: World, content: bytes, *keys: str) -> bytes | None:
    """The armoured encryption of the content; None if a key is revoked, expired or unusable."""
    import pysequoia  # noqa: PLC0415 - few need it, and all wait for the start

    try:
        certs = [pysequoia.Cert.from_bytes(key.encode()) for key in keys]
        for cert in certs:
            if cert.is_revoked or (cert.expiration and cert.expiration <= world.now()):
                return None
        armored: bytes | None = pysequoia.encrypt(content, recipients=certs)
    except (RuntimeError, ValueError):  # their text can contain parts of the content
        armored = _armored_to_short(world, content, *keys)
    if armored is None:
        return None
    return b"\r\n".join([*armored.splitlines(), b""])


def _armored_to_short(world: World, content: bytes, *keys: str) -> bytes | None:
    """The content encrypted to a single RSA key that is too short for Sequoia's policy.

    None if there are several keys, or if the key can't be used at all.
    """
    try:
        short = openpgp_short_rsa.read(keys[0], world.now()) if len(keys) == 1 else None
    except (RuntimeError, ValueError):
        return None
    return openpgp_short_rsa.encrypt(content, short) if short else None


def _wrapped(outer: bytes, armored: bytes, mark: str) -> bytes:
    """The PGP/MIME message of two parts (RFC 3156, section 4)."""
    boundary = f"=_{mark}"
    lines = [
        "MIME-Version: 1.0",
        'Content-Type: multipart/encrypted; protocol="application/pgp-encrypted";',
        f' boundary="{boundary}"',
        "",
        f"--{boundary}",
        "Content-Type: application/pgp-encrypted",
        "",
        "Version: 1",
        "",
        f"--{boundary}",
        'Content-Type: application/octet-stream; name="encrypted.asc"',
        'Content-Disposition: inline; filename="encrypted.asc"',
        "",
        "",
    ]
    return b"".join(
        [outer, "\r\n".join(lines).encode(), armored, f"\r\n--{boundary}--\r\n".encode()]
    )

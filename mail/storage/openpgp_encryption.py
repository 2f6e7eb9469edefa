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
from mail.storage.received_messages import THREAD_THRESHOLD
from mail.storage.storable_message import StorableMessage
from models.errors import ServiceUnavailable
from models.runtime.environment import Environment
from models.store.columns import ColumnRow

log = logging.getLogger(__name__)

_CONTENT_FIELD = re.compile(rb"content-[!-9;-~]*[ \t]*:", re.IGNORECASE)
_MIME_VERSION_FIELD = re.compile(rb"mime-version[ \t]*:", re.IGNORECASE)


async def encrypt_if_required(
    environment: Environment,
    source: bytes | Path,
    message: StorableMessage,
    user: ColumnRow,
    mailbox: ColumnRow,
) -> StorableMessage:
    """Encrypt a message, which is no draft, if the user or the mailbox requires it.

    Raises ServiceUnavailable if it can't be encrypted.
    """
    if not (user.encrypt_messages or mailbox.encrypt_messages):
        return message
    return await encrypt_unless_encrypted(
        environment, source, message, (user.id, user.openpgp_public_key or "")
    )


async def encrypt_unless_encrypted(
    environment: Environment,
    source: bytes | Path,
    message: StorableMessage,
    user_key: tuple[int, str],
) -> StorableMessage:
    """Encrypt a message to a user; `user_key` is the user id and the armoured OpenPGP key.

    A message that is already encrypted with PGP/MIME or S/MIME is returned unchanged. Raises
    ServiceUnavailable if the key can't be used.
    """
    bytes_ = await encrypt_to_bytes_unless_encrypted(environment, source, message, user_key)
    if bytes_ is None:
        return message
    encrypted_message = await received_messages.parse_storable_message(bytes_)
    digest = message.received_digest or message.digest
    return replace(
        encrypted_message,
        received_digest=digest,
        authentication=message.authentication,
        scan=message.scan,
    )


async def encrypt_to_bytes_unless_encrypted(
    environment: Environment,
    source: bytes | Path,
    message: StorableMessage,
    user_key: tuple[int, str],
) -> bytes | None:
    """The bytes of `encrypt_unless_encrypted`; None if it stays unchanged.

    Raises ServiceUnavailable.
    """
    if message.facts.encrypted:
        return None
    user_id, key = user_key
    if isinstance(source, bytes) and len(source) + len(key) < THREAD_THRESHOLD:
        encrypted_message = _encrypt_source(environment, source, message, key)
    else:
        encrypted_message = await asyncio.to_thread(
            _encrypt_source, environment, source, message, key
        )
    if encrypted_message is None:
        log.warning("Message not encrypted", extra={"user": user_id})
        text = "The message can't be encrypted to the key of the account, which may have expired."
        raise ServiceUnavailable(text, component="encryption")
    return encrypted_message


async def encrypt_to_keys(
    environment: Environment, raw: bytes, armored_keys: Sequence[str]
) -> bytes:
    """Encrypt a message to all of these keys.

    Raises ServiceUnavailable if one of them can't be used.
    """

    def encrypt() -> bytes | None:
        outer, inner = _split_for_encryption(
            raw, mime.facts_from_message_bytes(raw).structure.body_start
        )
        armored = _encrypt_armored(environment, inner, *armored_keys)
        return (
            None
            if armored is None
            else _pgp_mime_message(outer, armored, environment.random_bytes(16).hex())
        )

    if (encrypted_bytes := await asyncio.to_thread(encrypt)) is None:
        text = "The message can't be encrypted to the key of a recipient, which may have expired."
        raise ServiceUnavailable(text, component="encryption")
    return encrypted_bytes


def _encrypt_source(
    environment: Environment, source: bytes | Path, message: StorableMessage, armored_key: str
) -> bytes | None:
    """Encrypt a message; None if the key can't be used."""
    raw = source if isinstance(source, bytes) else source.read_bytes()
    outer, inner = _split_for_encryption(raw, message.facts.structure.body_start)
    armored = _encrypt_armored(environment, inner, armored_key)
    return (
        None
        if armored is None
        else _pgp_mime_message(outer, armored, environment.random_bytes(16).hex())
    )


def _split_for_encryption(raw: bytes, body_start: int) -> tuple[bytes, bytes]:
    """The header that stays readable, and the part to encrypt: the body with its Content fields."""
    outer, inner = [], []
    for field in _header_fields(raw[:body_start]):
        if _CONTENT_FIELD.match(field):
            inner.append(field)
        elif not _MIME_VERSION_FIELD.match(field):
            outer.append(field)
    return b"".join(outer), b"".join([*inner, b"\r\n", raw[body_start:]])


def _header_fields(header: bytes) -> Iterator[bytes]:
    """Yield the fields of a header with their folded lines; a line without a name counts as one."""
    field = list[bytes]()
    for line in filter(None, header.splitlines()):
        if field and not line.startswith((b" ", b"\t")):
            yield b"".join(field)
            field = []
        field.append(line + b"\r\n")
    yield b"".join(field)


def _encrypt_armored(environment: Environment, content: bytes, *armored_keys: str) -> bytes | None:
    """The armoured encryption of the content; None if a key is revoked, expired or unusable."""
    import pysequoia  # noqa: PLC0415 - few need it, and all wait for the start

    try:
        certs = [pysequoia.Cert.from_bytes(key.encode()) for key in armored_keys]
        for cert in certs:
            if cert.is_revoked or (cert.expiration and cert.expiration <= environment.now()):
                return None
        armored: bytes | None = pysequoia.encrypt(content, recipients=certs)
    except (RuntimeError, ValueError):  # their text can contain parts of the content
        armored = _encrypt_to_short_key(environment, content, *armored_keys)
    if armored is None:
        return None
    return b"\r\n".join([*armored.splitlines(), b""])


def _encrypt_to_short_key(
    environment: Environment, content: bytes, *armored_keys: str
) -> bytes | None:
    """The content encrypted to a single RSA key that is too short for Sequoia's policy.

    None if there are several keys, or if the key can't be used at all.
    """
    try:
        short = (
            openpgp_short_rsa.parse_encryption_key_or_none(armored_keys[0], environment.now())
            if len(armored_keys) == 1
            else None
        )
    except (RuntimeError, ValueError):
        return None
    return openpgp_short_rsa.encrypt(content, short) if short else None


def _pgp_mime_message(header: bytes, armored: bytes, boundary_suffix: str) -> bytes:
    """The PGP/MIME message of two parts (RFC 3156, section 4)."""
    boundary = f"=_{boundary_suffix}"
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
        [header, "\r\n".join(lines).encode(), armored, f"\r\n--{boundary}--\r\n".encode()]
    )

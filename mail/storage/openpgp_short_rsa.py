"""Encrypt to OpenPGP keys (RFC 9580) that Sequoia's policy refuses: RSA from 1,024 bits.

Sequoia offers no weaker policy, so this module writes the two packets itself: a version 3 PKESK,
and version 1 SEIPD with AES-256. Self-signatures are verified; SHA-1 is accepted in them.
"""

import hashlib
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey, RSAPublicNumbers
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

MIN_RSA_BITS = 1024  # bits
AES_256, SESSION_KEY_SIZE, BLOCK_SIZE = 9, 32, 16
PKESK, LITERAL, SEIPD = 1, 11, 18  # tags of packets
RSA_ALGORITHMS = {1, 2}  # encrypt or sign, encrypt only
HASHES: dict[int, type[hashes.HashAlgorithm]] = {
    2: hashes.SHA1,
    8: hashes.SHA256,
    9: hashes.SHA384,
    10: hashes.SHA512,
    11: hashes.SHA224,
}
VERSION = 4  # of keys and signatures
MIN_PACKET_SIZE = 10  # bytes; less than any key or signature has


@dataclass(frozen=True, slots=True)
class ShortRsaKey:
    """An RSA encryption key of a certificate that is neither revoked nor expired."""

    public_key: RSAPublicKey
    key_id: bytes
    fingerprint: str  # of the certificate, lower case, hex
    user_id: str
    expires_at: datetime | None = None

    @property
    def bit_length(self) -> int:
        """Size of the modulus."""
        return self.public_key.key_size


def parse_encryption_key_or_none(certificate: str | bytes, now: datetime) -> ShortRsaKey | None:
    """The RSA encryption key of a certificate; None if it has none with 1,024 bits or more.

    None also for a revoked or expired certificate. The certificate can be in ASCII armor. Raises
    ValueError or RuntimeError if it can't be parsed.
    """
    from pysequoia.packet import (  # noqa: PLC0415 - few need it, and all wait for the start
        PacketPile,
        SignatureType,
        Tag,
    )

    packet_bytes = certificate.encode() if isinstance(certificate, str) else certificate
    packets = list(PacketPile.from_bytes(packet_bytes))
    primary = (
        _rsa_key_from_packet(packets[0].body)
        if packets and packets[0].tag == Tag.PublicKey
        else None
    )
    revocations = [SignatureType.KeyRevocation, SignatureType.SubkeyRevocation]
    if primary is None or any(packet.signature_type in revocations for packet in packets):
        return None
    user_id, email_address, expires_at = "", None, None
    for key, signature in _newest_signatures(_valid_self_signatures(packets, primary)):
        flags, period = signature.key_flags, signature.key_validity_period
        expires = key.key_created + period if period else None
        if expires and expires <= now:
            if key is packets[0]:
                return None  # the whole certificate is over
            continue
        if key is packets[0]:
            expires_at = expires
        encrypts = flags and (flags.transport_encryption or flags.storage_encryption)
        if (
            encrypts
            and (public := _rsa_key_from_packet(key.body))
            and public.key_size >= MIN_RSA_BITS
        ):
            email_address = (public, bytes.fromhex(key.key_id), expires)
    for packet in packets:
        if packet.tag == Tag.UserID:
            user_id = packet.user_id or ""
            break
    if email_address is None or primary.key_size < MIN_RSA_BITS:
        return None
    public, key_id, expires = email_address
    limits = [moment for moment in (expires, expires_at) if moment]
    return ShortRsaKey(public, key_id, packets[0].fingerprint, user_id, min(limits, default=None))


def encrypt(content: bytes, key: ShortRsaKey) -> bytes:
    """Encrypt the content to the key: an armoured OpenPGP message."""
    import pysequoia  # noqa: PLC0415 - few need it, and all wait for the start

    session_key = secrets.token_bytes(SESSION_KEY_SIZE)
    checked = bytes([AES_256]) + session_key + (sum(session_key) % 65536).to_bytes(2)
    encrypted = int.from_bytes(key.public_key.encrypt(checked, PKCS1v15()))
    wrapped = b"\x03" + key.key_id + b"\x01" + _encode_mpi(encrypted)
    prefix = secrets.token_bytes(BLOCK_SIZE)
    literal = _encode_packet(LITERAL, b"b\x00" + bytes(4) + content)
    plain = prefix + prefix[-2:] + literal + b"\xd3\x14"  # the header of the MDC packet
    plain += hashlib.sha1(plain, usedforsecurity=False).digest()  # RFC 9580, section 5.13.1
    cipher = Cipher(algorithms.AES256(session_key), CFB(bytes(BLOCK_SIZE))).encryptor()
    sealed = b"\x01" + cipher.update(plain) + cipher.finalize()
    message = _encode_packet(PKESK, wrapped) + _encode_packet(SEIPD, sealed)
    return pysequoia.armor(message, pysequoia.ArmorKind.Message).encode()


def _newest_signatures(keys_with_signatures: Iterable[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Each key with its newest self-signature, the only one that counts (RFC 9580, 5.2.3.10)."""
    signatures_by_key: dict[int, tuple[Any, Any]] = {}
    for key, signature in keys_with_signatures:
        newest = signatures_by_key.get(id(key))
        if newest is None or signature.signature_created >= newest[1].signature_created:
            signatures_by_key[id(key)] = key, signature
    return list(signatures_by_key.values())


def _valid_self_signatures(packets: list[Any], primary: RSAPublicKey) -> Iterator[tuple[Any, Any]]:
    """Yield each key of a certificate with each of its valid self-signatures."""
    from pysequoia.packet import SignatureType, Tag  # noqa: PLC0415 - as above

    first = _key_packet_for_hash(packets[0].body)
    certifications = [
        SignatureType.GenericCertification,
        SignatureType.PersonaCertification,
        SignatureType.CasualCertification,
        SignatureType.PositiveCertification,
    ]
    key, user_id_packet = packets[0], b""
    for packet in packets[1:]:
        if packet.tag == Tag.UserID:
            user_id_packet = b"\xb4" + len(packet.body).to_bytes(4) + packet.body
        elif packet.tag == Tag.PublicSubkey:
            key = packet
        elif packet.tag == Tag.Signature:
            signed = b""
            if packet.signature_type == SignatureType.SubkeyBinding:
                signed = first + _key_packet_for_hash(key.body)
            elif packet.signature_type in certifications and key is packets[0]:
                signed = first + user_id_packet
            if signed and _is_valid_signature(primary, signed, packet.body):
                yield key, packet


def _is_valid_signature(primary: RSAPublicKey, signed_data: bytes, signature: bytes) -> bool:
    """True if the primary key made this version 4 signature (RFC 9580, section 5.2.3)."""
    if (
        len(signature) < MIN_PACKET_SIZE
        or signature[0] != VERSION
        or signature[2] not in {1, 3}
        or signature[3] not in HASHES
    ):
        return False
    hashed = signature[: 6 + int.from_bytes(signature[4:6])]
    unhashed = int.from_bytes(signature[len(hashed) : len(hashed) + 2])
    number = signature[len(hashed) + 2 + unhashed + 2 + 2 :]
    trailer = b"\x04\xff" + len(hashed).to_bytes(4)
    padded = number.rjust((primary.key_size + 7) // 8, b"\0")
    try:
        primary.verify(padded, signed_data + hashed + trailer, PKCS1v15(), HASHES[signature[3]]())
    except InvalidSignature:
        return False
    return True


def _rsa_key_from_packet(body: bytes) -> RSAPublicKey | None:
    """The RSA key of a version 4 key packet; None if it is of another kind."""
    if len(body) < MIN_PACKET_SIZE or body[0] != VERSION or body[5] not in RSA_ALGORITHMS:
        return None
    bits = int.from_bytes(body[6:8])
    end = 8 + (bits + 7) // 8
    modulus, exponent = int.from_bytes(body[8:end]), int.from_bytes(body[end + 2 :])
    return RSAPublicNumbers(exponent, modulus).public_key()


def _key_packet_for_hash(packet_body: bytes) -> bytes:
    """A key packet in the form that signatures hash."""
    return b"\x99" + len(packet_body).to_bytes(2) + packet_body


def _encode_mpi(number: int) -> bytes:
    """A multiprecision integer (RFC 9580, section 3.2)."""
    bits = number.bit_length()
    return bits.to_bytes(2) + number.to_bytes((bits + 7) // 8)


def _encode_packet(tag: int, body: bytes) -> bytes:
    """A packet with a length of five octets (RFC 9580, section 4.2.1)."""
    return bytes([0xC0 | tag, 0xFF]) + len(body).to_bytes(4) + body

"""The packets of an OpenPGP certificate (RFC 9580), read before a library parses them.

A library reads each packet with much more work than its sender. So the number of packets is limited
first, which takes only their headers.
"""

import binascii
import re
from collections.abc import Iterator

MAX_PACKETS = 1000  # a certificate with 900 certifications of others has fewer
# packets of messages, which no certificate contains (RFC 9580, section 10.1)
MESSAGE_TAGS = frozenset({1, 3, 8, 9, 11, 18, 19, 20})
_ARMOR = re.compile(
    r"^[ \t]*-----BEGIN PGP PUBLIC KEY BLOCK-----[ \t]*\r?\n(.*?)^[ \t]*-----END PGP",
    re.DOTALL | re.MULTILINE,
)
_HEADER_LINE = re.compile(r"[A-Za-z]+:")


class MalformedCertificate(ValueError):
    """The text is no OpenPGP certificate, or has too many packets."""


def certificate_from_armor(armored: str) -> bytes:
    """Return the bytes of the first certificate in ASCII armor (RFC 9580, section 6.2).

    Raises MalformedCertificate if there is none, or if it has more than `MAX_PACKETS` packets or
    packets that belong to messages.
    """
    block = _ARMOR.search(armored)
    if block is None:
        raise MalformedCertificate("The text has no block in ASCII armor.")
    lines = [line.strip() for line in block[1].splitlines()]
    encoded = "".join(
        line for line in lines if not _HEADER_LINE.match(line) and not line.startswith("=")
    )
    try:
        certificate = binascii.a2b_base64(encoded, strict_mode=True)
    except (ValueError, binascii.Error) as problem:
        raise MalformedCertificate("The ASCII armor is no base64.") from problem
    for count, tag in enumerate(packet_tags(certificate), 1):
        if count > MAX_PACKETS:
            raise MalformedCertificate(f"A key has at most {MAX_PACKETS:,} packets.")
        if tag in MESSAGE_TAGS:
            raise MalformedCertificate("The packets are those of a message.")
    return certificate


def packet_tags(packets: bytes) -> Iterator[int]:
    """Yield the tag of each packet (RFC 9580, section 4.2).

    Raises MalformedCertificate for a wrong header, and for lengths that only messages have.
    """
    position = 0
    while position < len(packets):
        header = packets[position]
        if not header & 0x80:
            raise MalformedCertificate("A packet has no header.")
        position += 1
        is_new_format = bool(header & 0x40)
        yield header & 0x3F if is_new_format else header >> 2 & 0x0F
        first = packets[position] if position < len(packets) else 0
        if is_new_format:
            length, position = _new_format_length(packets, position, first)
        elif (size := header & 3) == 3:  # noqa: PLR2004 - a length that the packet doesn't have
            raise MalformedCertificate("A packet has no length.")
        else:
            end = position + (1 << size)
            length, position = int.from_bytes(packets[position:end]), end
        position += length
    if position != len(packets):
        raise MalformedCertificate("The last packet is incomplete.")


def _new_format_length(packets: bytes, position: int, first: int) -> tuple[int, int]:
    """Return the length of a packet in the new format, and the position of its body."""
    if first < 192:  # noqa: PLR2004 - RFC 9580, section 4.2.1
        return first, position + 1
    if first < 224:  # noqa: PLR2004
        second = packets[position + 1] if position + 1 < len(packets) else 0
        return ((first - 192) << 8) + second + 192, position + 2
    if first < 255:  # noqa: PLR2004
        raise MalformedCertificate("A packet has a partial length.")
    return int.from_bytes(packets[position + 1 : position + 5]), position + 5

"""The PROXY protocol: a load balancer sends the client address before the connection's data.

Version 1 is a line of text, version 2 has a binary header:
https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt
"""

import ipaddress
import struct

from mail.network.byte_stream import Vanished
from mail.smtp.line_protocol import Wire

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
LINE_MAX = 107  # bytes of version 1 with its CRLF
HEAD_MAX = 4096  # bytes after the fixed header of version 2
ADDRESSES = {0x11: 4, 0x21: 16}  # bytes of an address for TCP over IPv4 and IPv6


async def real_ip(wire: Wire) -> str | None:
    """Read the header and return the client's IP address.

    Returns None for a health check of the balancer itself. Raises ConnectionClosed if there is no
    valid header: the data after it can't be trusted.
    """
    begin = await wire.exactly(len(SIGNATURE))
    if begin == SIGNATURE:
        return await _binary(wire)
    return await _text(wire, begin)


async def _text(wire: Wire, begin: bytes) -> str | None:
    """Read the rest of a version 1 header."""
    line = begin
    while not line.endswith(b"\r\n"):
        if len(line) >= LINE_MAX:
            raise Vanished
        line += await wire.exactly(1)
    words = line[:-2].split(b" ")
    if words[:2] == [b"PROXY", b"UNKNOWN"]:
        return None
    if len(words) != 6 or words[0] != b"PROXY" or words[1] not in (b"TCP4", b"TCP6"):  # noqa: PLR2004
        raise Vanished
    version = int(words[1][-1:])
    try:
        address = ipaddress.ip_address(words[2].decode("ascii"))
    except ValueError:
        raise Vanished from None
    if address.version != version:
        raise Vanished
    return str(address)


async def _binary(wire: Wire) -> str | None:
    """Read the rest of a version 2 header."""
    command, family, size = struct.unpack("!BBH", await wire.exactly(4))
    if command not in (0x20, 0x21) or size > HEAD_MAX:
        raise Vanished
    told = await wire.exactly(size)
    if command == 0x20:  # noqa: PLR2004 - LOCAL
        return None
    width = ADDRESSES.get(family)
    if width is None:
        return None
    if size < 2 * width + 4:
        raise Vanished
    return str(ipaddress.ip_address(told[:width]))

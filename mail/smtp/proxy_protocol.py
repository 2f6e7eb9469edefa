"""The PROXY protocol: a load balancer sends the client address before the connection's data.

Version 1 is a line of text, version 2 has a binary header:
https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt
"""

import ipaddress
import struct

from mail.network.byte_stream import ConnectionClosed
from mail.smtp.line_protocol import CommandReader

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
MAX_LINE = 107  # bytes of version 1 with its CRLF
MAX_HEADER = 4096  # bytes after the fixed header of version 2
ADDRESS_SIZES = {0x11: 4, 0x21: 16}  # bytes of an address for TCP over IPv4 and IPv6


async def read_client_ip(reader: CommandReader) -> str | None:
    """Read the header and return the client's IP address.

    Returns None for a health check of the balancer itself. Raises ConnectionClosed if there is no
    valid header: the data after it can't be trusted.
    """
    begin = await reader.read_exactly(len(SIGNATURE))
    if begin == SIGNATURE:
        return await _read_version_2_client_ip_or_none(reader)
    return await _read_version_1_client_ip_or_none(reader, begin)


async def _read_version_1_client_ip_or_none(
    reader: CommandReader, first_bytes: bytes
) -> str | None:
    """Read the rest of a version 1 header."""
    line = first_bytes
    while not line.endswith(b"\r\n"):
        if len(line) >= MAX_LINE:
            raise ConnectionClosed
        line += await reader.read_exactly(1)
    words = line[:-2].split(b" ")
    if words[:2] == [b"PROXY", b"UNKNOWN"]:
        return None
    if len(words) != 6 or words[0] != b"PROXY" or words[1] not in (b"TCP4", b"TCP6"):  # noqa: PLR2004
        raise ConnectionClosed
    version = int(words[1][-1:])
    try:
        address = ipaddress.ip_address(words[2].decode("ascii"))
    except ValueError:
        raise ConnectionClosed from None
    if address.version != version:
        raise ConnectionClosed
    return str(address)


async def _read_version_2_client_ip_or_none(reader: CommandReader) -> str | None:
    """Read the rest of a version 2 header."""
    command, family, size = struct.unpack("!BBH", await reader.read_exactly(4))
    if command not in (0x20, 0x21) or size > MAX_HEADER:
        raise ConnectionClosed
    data = await reader.read_exactly(size)
    if command == 0x20:  # noqa: PLR2004 - LOCAL
        return None
    width = ADDRESS_SIZES.get(family)
    if width is None:
        return None
    if size < 2 * width + 4:
        raise ConnectionClosed
    return str(ipaddress.ip_address(data[:width]))

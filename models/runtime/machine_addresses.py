"""The IP addresses of this machine."""

import re
import socket
from contextlib import closing, suppress
from ipaddress import ip_address
from pathlib import Path

FIB_TRIE = Path("/proc/net/fib_trie")  # of Linux: IPv4 addresses
IF_INET6 = Path("/proc/net/if_inet6")
_LOCAL_IPV4 = re.compile(r"\|-- (\S+)\n\s+/32 host LOCAL")
# A UDP socket that is connected to another address has the address of the default route. No packet
# is sent. RFC 5737 and RFC 3849 reserve these addresses.
_PROBES = ((socket.AF_INET, ("192.0.2.1", 9)), (socket.AF_INET6, ("2001:db8::1", 9)))


def machine_ip_addresses() -> list[str]:
    """Return the addresses of the network interfaces, without loopback, in order."""
    texts = set(_LOCAL_IPV4.findall(_text_or_empty(FIB_TRIE)))
    for line in _text_or_empty(IF_INET6).splitlines():
        texts.add(str(ip_address(bytes.fromhex(line.split()[0]))))
    for family, target in _PROBES:
        with suppress(OSError), closing(socket.socket(family, socket.SOCK_DGRAM)) as probe:
            probe.connect(target)
            texts.add(str(probe.getsockname()[0]))
    return sorted(text for text in texts if not ip_address(text).is_loopback)


def _text_or_empty(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""

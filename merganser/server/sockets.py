"""Addresses to listen on, and their sockets."""

import ipaddress
import resource
import socket
from datetime import timedelta

from merganser.errors import CommandError
from merganser.settings.settings import PREFIX, Settings

BACKLOG = 2048


def split_host_port(address: str) -> tuple[str, int]:
    """Host and port of "127.0.0.1:8025" or "[::1]:8025"."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def socket_families_and_addresses(
    listener_name: str, listen_address: str
) -> list[tuple[int, tuple[str, int]]]:
    """Return family, and host with port, of each socket for a listen address.

    Raises CommandError if the host has no address.
    """
    host, port = split_host_port(listen_address)
    try:
        address_infos = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (socket.gaierror, OverflowError, UnicodeError) as problem:
        raise CommandError(
            f"{PREFIX}{listener_name}_LISTEN: {listen_address} is not an address of this machine."
        ) from problem
    return [
        (family, (str(address[0]), int(address[1]))) for family, _, _, _, address in address_infos
    ]


def open_listening_sockets(
    listener_name: str,
    listen_address: str,
    *,
    unread_timeout: timedelta = timedelta(0),
    is_shared: bool = False,
) -> list[socket.socket]:
    """Return sockets bound to all IP addresses of a listen address.

    If a peer reads no sent data for `unread_timeout`, the kernel ends the connection,
    also while its buffers are full. Several processes can bind shared sockets: the kernel spreads
    the connections evenly. Raises CommandError that names the setting.
    """
    bound_sockets: list[socket.socket] = []
    try:
        for family, address in socket_families_and_addresses(listener_name, listen_address):
            # asyncio sets TCP_NODELAY only if the protocol is named: without it each response on
            # a kept connection waits 40 ms for an acknowledgement
            new_socket = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
            bound_sockets.append(new_socket)
            new_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if is_shared:
                new_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            _let_kernel_drop_dead_peers(new_socket, unread_timeout)
            if family == socket.AF_INET6:
                new_socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            new_socket.bind(address)
            new_socket.listen(BACKLOG)
            new_socket.setblocking(False)
    except OSError as problem:
        for new_socket in bound_sockets:
            new_socket.close()
        raise bind_failure(listener_name, listen_address, problem) from problem
    return bound_sockets


def _let_kernel_drop_dead_peers(listener: socket.socket, unread_timeout: timedelta) -> None:
    """Let the kernel drop peers that vanished or never read; accepted sockets inherit it."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if unread_timeout and hasattr(socket, "TCP_USER_TIMEOUT"):  # only on Linux
        milliseconds = min(int(unread_timeout.total_seconds() * 1000), 2**31 - 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)


def raise_open_file_limit() -> None:
    """Let this process open as many files and connections as the system allows."""
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))


def bind_failure(listener_name: str, address: str, problem: OSError) -> CommandError:
    """Return the error that names the setting of an address that can't be bound."""
    reason = (problem.strerror or str(problem)).lower()
    return CommandError(
        f"Cannot listen on {address}: {reason}. Set "
        f"{PREFIX}{listener_name}_LISTEN to another address."
    )


def listen_addresses(settings: Settings) -> dict[str, str]:
    """Return the addresses to listen on by listener name."""
    addresses = {
        "HTTP": settings.http_listen,
        "LMTP": settings.lmtp_listen,
        "SMTP": settings.smtp_listen,
        "SUBMISSION": settings.submission_listen,
        "SUBMISSION_TLS": settings.submission_tls_listen,
        "ACME_HTTP": settings.acme_http_listen,
    }
    return {name: address for name, address in addresses.items() if address}


def exposed_listener_names(settings: Settings) -> list[str]:
    """Return the names of listeners that other machines can reach."""
    return [
        name
        for name, setting in listen_addresses(settings).items()
        if not all(
            is_loopback_address(address[0])
            for _, address in socket_families_and_addresses(name, setting)
        )
    ]


def is_loopback_address(address: str) -> bool:
    """Whether an IP address, with or without a zone, is a loopback address."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback

"""The public servers that mail programs are told: submission servers, and the HTTPS host."""

import ipaddress
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import urlsplit

from models.runtime.options import Options

HTTPS_PORT = 443
SUBMISSION_PORT = 587  # STARTTLS (RFC 6409)
SUBMISSIONS_PORT = 465  # implicit TLS (RFC 8314)


class SubmissionTlsMode(StrEnum):
    """How a submission server begins TLS."""

    IMPLICIT = "IMPLICIT"
    STARTTLS = "STARTTLS"


@dataclass(frozen=True, slots=True)
class SubmissionServer:
    """A submission server as mail programs reach it."""

    host: str
    port: int
    tls_mode: SubmissionTlsMode


def public_submission_servers(options: Options) -> tuple[SubmissionServer, ...]:
    """Return the submission servers for mail programs, the preferred one first.

    It is the server that a setting names. Without that setting, these are the listeners that other
    machines reach, under the host name of this server: implicit TLS before STARTTLS (RFC 8314).
    """
    if options.profile_smtp_server:
        host, port = split_host_and_port(options.profile_smtp_server)
        return (SubmissionServer(host, port, _tls_mode_of_port(options, port)),)
    if "." not in options.hostname:
        return ()
    return tuple(
        SubmissionServer(options.hostname, port, tls_mode)
        for address, tls_mode in (
            (options.submission_tls_listen, SubmissionTlsMode.IMPLICIT),
            (options.submission_listen, SubmissionTlsMode.STARTTLS),
        )
        if address
        for host, port in (split_host_and_port(address),)
        if not _is_loopback(host)
    )


def submission_server_of_profiles(options: Options) -> SubmissionServer:
    """Return the preferred submission server; without any, this host with implicit TLS."""
    servers = public_submission_servers(options)
    if servers:
        return servers[0]
    return SubmissionServer(options.hostname, SUBMISSIONS_PORT, SubmissionTlsMode.IMPLICIT)


def public_https_host_or_empty(options: Options) -> str:
    """Return the host of the public URL if it has HTTPS on port 443, else an empty text."""
    try:
        url = urlsplit(options.public_url)
        is_standard_port = url.port in (None, HTTPS_PORT)
    except ValueError:  # a port out of range, or brackets without an IPv6 address
        return ""
    return (url.hostname or "") if url.scheme == "https" and is_standard_port else ""


def split_host_and_port(host_and_port: str) -> tuple[str, int]:
    """Return host and port of a text such as `smtp.example.org:465` or `[::1]:465`."""
    host, _, port = host_and_port.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _tls_mode_of_port(options: Options, port: int) -> SubmissionTlsMode:
    """Return STARTTLS for port 587 and for the port of the listener with STARTTLS."""
    starttls_ports = {SUBMISSION_PORT}
    if options.submission_listen:
        starttls_ports.add(split_host_and_port(options.submission_listen)[1])
    if options.submission_tls_listen:
        starttls_ports.discard(split_host_and_port(options.submission_tls_listen)[1])
    return SubmissionTlsMode.STARTTLS if port in starttls_ports else SubmissionTlsMode.IMPLICIT


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"

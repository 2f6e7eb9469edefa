"""TLS of connections to PostgreSQL, as libpq's `sslmode` documents it (manual, section 34.19)."""

import ssl
from pathlib import Path
from typing import Any

from models.store.postgres.address import PostgresAddress, PostgresAddressError, PostgresHost

DEFAULT_FILES_FOLDER = ".postgresql"  # below the home directory, as in libpq


class NamedContext(ssl.SSLContext):
    """A TLS context that checks and announces a given host name.

    `hostaddr` is the address to connect to, `host` the name in the certificate.
    """

    server_name: str | None = None
    sends_name = True

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        """Wrap a connection for the given name."""
        if self.server_name is not None:
            kwargs["server_hostname"] = self.server_name
        if not self.sends_name and not self.check_hostname:
            kwargs["server_hostname"] = None
        return super().wrap_bio(*args, **kwargs)


def tls_context_for_host_or_none(
    address: PostgresAddress, host: PostgresHost
) -> NamedContext | None:
    """Create the TLS context for a host, or None if it is reached without TLS.

    Raises PostgresAddressError if a file of the address can't be used.
    """
    mode = address.sslmode
    if host.is_socket or mode == "disable":
        return None
    context = NamedContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = mode == "verify-full"
    context.verify_mode = ssl.CERT_REQUIRED if mode.startswith("verify") else ssl.CERT_NONE
    if mode in {"require", "verify-ca", "verify-full"}:
        _load_trusted_certificates(context, address, mode)
    _load_client_certificate(context, address)
    _set_tls_versions(context, address)
    context.set_alpn_protocols(["postgresql"])
    context.server_name = host.name if host.address else None
    context.sends_name = address.get("sslsni", "1") == "1"
    if path := address.get("sslkeylogfile"):
        context.keylog_filename = path
    return context


def _load_trusted_certificates(context: NamedContext, address: PostgresAddress, mode: str) -> None:
    """Load the trusted certificates. `require` verifies only if there is a file of them."""
    configured_path, default_path = address.get("sslrootcert"), _default_file("root.crt")
    if configured_path == "system" or (
        not configured_path and address.get("channel_binding") == "require"
    ):
        context.load_default_certs()
    elif configured_path or default_path:
        _load_certificate_file(context, "sslrootcert", configured_path or str(default_path))
        context.verify_mode = ssl.CERT_REQUIRED
    elif mode != "require":
        raise PostgresAddressError(
            f"sslmode={mode} needs certificates to trust: set sslrootcert to a file, or to system"
        )
    revoked, folder = address.get("sslcrl") or _default_file("root.crl"), address.get("sslcrldir")
    if context.verify_mode is ssl.CERT_REQUIRED and (revoked or folder):
        if revoked:
            _load_certificate_file(context, "sslcrl", str(revoked))
        if folder:
            context.load_verify_locations(capath=folder)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN


def _load_certificate_file(context: NamedContext, parameter_name: str, path: str) -> None:
    try:
        context.load_verify_locations(cafile=path)
    except (OSError, ssl.SSLError) as problem:
        raise _file_error(parameter_name, path, problem) from None


def _load_client_certificate(context: NamedContext, address: PostgresAddress) -> None:
    if address.get("sslcertmode") == "disable":
        return
    certificate = address.get("sslcert") or _default_file("postgresql.crt")
    key = address.get("sslkey") or _default_file("postgresql.key")
    if certificate:
        try:
            context.load_cert_chain(
                certificate, key or None, password=lambda: address.get("sslpassword")
            )
        except (OSError, ssl.SSLError) as problem:
            raise _file_error("sslcert or sslkey", str(certificate), problem) from None


def _set_tls_versions(context: NamedContext, address: PostgresAddress) -> None:
    min_version = address.get("ssl_min_protocol_version", "TLSv1.2")
    context.minimum_version = _parse_tls_version(min_version)
    if most := address.get("ssl_max_protocol_version"):
        context.maximum_version = _parse_tls_version(most)
        if context.maximum_version < context.minimum_version:
            raise PostgresAddressError("ssl_max_protocol_version is below ssl_min_protocol_version")


def _parse_tls_version(name: str) -> ssl.TLSVersion:
    return ssl.TLSVersion[name.replace(".", "_")]


def _default_file(name: str) -> Path | None:
    """Return libpq's default file in the home directory, if it exists."""
    try:
        path = Path.home() / DEFAULT_FILES_FOLDER / name
    except RuntimeError:
        return None
    return path if path.is_file() else None


def _file_error(parameter_name: str, path: str, problem: Exception) -> PostgresAddressError:
    reason = getattr(problem, "strerror", None) or type(problem).__name__
    return PostgresAddressError(f"the file {path} of {parameter_name} can't be used: {reason}")

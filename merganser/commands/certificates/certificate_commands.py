"""Implementations of the commands `merganser certificate …`."""
# ruff: noqa: PLR0913, PLR0917 - a parameter for each option

from pathlib import Path
from typing import Any

import typer

from merganser.commands.certificates import certificate_operations
from merganser.commands.environment_run import run_in_environment
from merganser.commands.terminal_output import print_json, print_table
from merganser.errors import EXIT_USAGE, CommandError


def list_certificates(as_json: bool) -> None:
    """Print all certificates by server name."""
    certificates = run_in_environment(
        lambda environment, _settings: certificate_operations.list_certificates(environment)
    )
    if as_json:
        print_json(certificates)
        return
    print_table(
        ("name", "expires", "ACME", "next order", "error", "names"),
        [_certificate_table_row(certificate) for certificate in certificates],
    )


def _certificate_table_row(certificate: dict[str, Any]) -> list[str]:
    expires = (certificate["expires_at"] or "none yet")[:10]
    return [
        certificate["server_name"],
        expires,
        certificate["acme_state"] or "no",
        (certificate["acme_next_order_at"] or "")[:10],
        certificate["acme_error"] or "",
        " ".join(certificate["alt_names"]),
    ]


def set_certificate(
    name: str,
    cert: Path | None,
    key: Path | None,
    acme: bool,
    also: list[str] | None,
    as_json: bool,
) -> None:
    """Set the certificate of a server, and print it with notices."""
    if cert is None and not acme:
        raise CommandError("--cert FILE or --acme is required.", exit_code=EXIT_USAGE)
    certificate, notices = run_in_environment(
        lambda environment, _settings: certificate_operations.set_certificate(
            environment, name, (cert, key), uses_acme=acme, alt_names=also or None
        )
    )
    for notice in notices:
        typer.echo(f"{notice.code}: {notice.message}", err=True)
    _print_certificate(certificate, as_json)


def _print_certificate(certificate: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(certificate)
        return
    expires_at = certificate["expires_at"]
    validity = f"valid until {expires_at[:10]}" if expires_at else "none yet"
    typer.echo(f"{certificate['server_name']}: {validity}")
    if certificate["acme_state"]:
        typer.echo(f"ACME: {certificate['acme_state']}")
    if certificate["acme_next_order_at"]:
        typer.echo(f"Next order: {certificate['acme_next_order_at']}")
    if certificate["acme_error"]:
        typer.echo(f"Error: {certificate['acme_error']}")
    if certificate["tlsa"]:
        typer.echo(f"TLSA: {certificate['tlsa']}")


def request_renewal_and_print_certificate(name: str, as_json: bool) -> None:
    """Request the renewal of a certificate, and print it."""
    certificate = run_in_environment(
        lambda environment, _settings: certificate_operations.request_certificate_renewal(
            environment, name
        )
    )
    _print_certificate(certificate, as_json)


def delete_certificate(name: str, revoke: str | None) -> None:
    """Delete the certificate of a server. With a reason it is revoked first."""
    is_revoked = run_in_environment(
        lambda environment, _settings: certificate_operations.delete_certificate_and_return_revoked(
            environment, name, revoke
        )
    )
    if is_revoked:
        typer.echo(f"The certificate of {name} is revoked.")
    typer.echo(f"{name} has no certificate here any more.")

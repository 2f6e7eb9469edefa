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
    found = run_in_environment(
        lambda environment, _settings: certificate_operations.list_certificates(environment)
    )
    if as_json:
        print_json(found)
        return
    print_table(
        ("name", "expires", "ACME", "state", "names in it"), [_table_row(each) for each in found]
    )


def _table_row(certificate: dict[str, Any]) -> list[str]:
    expires = (certificate["expires_at"] or "none yet")[:10]
    renewed = "yes" if certificate["acme"] else "no"
    return [
        certificate["server_name"],
        expires,
        renewed,
        certificate["acme_state"] or "",
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
        raise CommandError("say --cert FILE, or --acme", exit_code=EXIT_USAGE)
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
    if certificate["tlsa"]:
        typer.echo(f"TLSA: {certificate['tlsa']}")


def renew_certificate(name: str, as_json: bool) -> None:
    """Request the renewal of a certificate, and print it."""
    certificate = run_in_environment(
        lambda environment, _settings: certificate_operations.renew_certificate(environment, name)
    )
    _print_certificate(certificate, as_json)


def delete_certificate(name: str, revoke: str | None) -> None:
    """Delete the certificate of a server. With a reason it is revoked first."""
    is_revoked = run_in_environment(
        lambda environment, _settings: certificate_operations.delete_certificate(
            environment, name, revoke
        )
    )
    if is_revoked:
        typer.echo(f"The certificate of {name} is revoked.")
    typer.echo(f"{name} has no certificate here any more.")

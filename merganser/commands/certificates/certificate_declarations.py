"""Declarations of the commands `merganser certificate …`."""
# ruff: noqa: PLR0913, PLR0917 - a parameter for each option: typer reads them

from pathlib import Path
from typing import Annotated

import typer

from merganser.commands.lazy_commands import implemented_in
from merganser.commands.shared_options import JsonOption

ServerName = Annotated[str, typer.Argument(metavar="NAME", help="Host name of the server.")]

declarations = typer.Typer()


@declarations.command("list")
@implemented_in("merganser.commands.certificates.certificate_commands")
def list_certificates(as_json: JsonOption = False) -> None:
    """List the stored certificates by host name.

    Example: merganser certificate list
    """


@declarations.command("set")
@implemented_in("merganser.commands.certificates.certificate_commands")
def set_certificate(
    name: ServerName,
    cert: Annotated[
        Path | None, typer.Option(help="PEM file with the certificate and its chain.")
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(
            help="PEM file with the private key. Default: the file of the certificate, or else "
            "the stored key."
        ),
    ] = None,
    acme: Annotated[
        bool,
        typer.Option(
            "--acme",
            help="Request and renew the certificate by ACME. Without it, ACME stops to renew it.",
        ),
    ] = False,
    also: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Another name that ACME requests; can be repeated. Default: the stored names.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Store a certificate, or request it by ACME. A running server uses it at once.

    Example: merganser certificate set mx.example.org --cert mx.pem --key mx.key

    Example: merganser certificate set mx.example.org --acme --also imap.example.org
    """


@declarations.command("renew")
@implemented_in("merganser.commands.certificates.certificate_commands")
def request_renewal_and_print_certificate(name: ServerName, as_json: JsonOption = False) -> None:
    """Request a renewal by ACME now. A running server executes it.

    Example: merganser certificate renew mx.example.org
    """


@declarations.command("delete")
@implemented_in("merganser.commands.certificates.certificate_commands")
def delete_certificate(
    name: ServerName,
    revoke: Annotated[
        str | None,
        typer.Option(
            metavar="REASON",
            help="Revoke it first, with this reason: unspecified, key-compromise, superseded, "
            "affiliation-changed or cessation-of-operation.",
        ),
    ] = None,
) -> None:
    """Delete the certificate of a server. Open connections are not affected.

    Example: merganser certificate delete mx.example.org

    Example: merganser certificate delete mx.example.org --revoke key-compromise
    """

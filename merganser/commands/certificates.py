"""The commands `merganser certificate …`."""
# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help is quick
# ruff: noqa: PLR0913, PLR0917 - a parameter for each option: typer reads them

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from merganser.errors import EXIT_USAGE, CommandError

if TYPE_CHECKING:
    from merganser.settings.settings import Settings
    from models.runtime.environment import Environment
    from resolvers.certificates.certificates import CertificateWarning

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ServerName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the server.")]


def list_certificates(as_json: JsonOption = False) -> None:
    """List certificates: what servers of ours show to who asks for their names.

    Example: merganser certificate list
    """
    from merganser.commands import certificate_operations as certificates
    from merganser.commands.environment_run import run_in_environment
    from merganser.commands.terminal_tables import print_table

    async def run_operation(
        environment: "Environment", _settings: "Settings"
    ) -> list[dict[str, Any]]:
        return await certificates.list_certificates(environment)

    found = run_in_environment(run_operation)
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    print_table(
        ("name", "expires", "ACME", "state", "names in it"), [_table_row(each) for each in found]
    )


def _table_row(found: dict[str, Any]) -> list[str]:
    expires = (found["expires_at"] or "none yet")[:10]
    renewed = "yes" if found["acme"] else "no"
    return [
        found["server_name"],
        expires,
        renewed,
        found["acme_state"] or "",
        " ".join(found["alt_names"]),
    ]


def set_certificate(
    name: ServerName,
    cert: Annotated[
        Path | None, typer.Option(help="File with the certificate and its chain, PEM.")
    ] = None,
    key: Annotated[
        Path | None, typer.Option(help="File with its key; none: it is in the same file.")
    ] = None,
    acme: Annotated[
        bool, typer.Option("--acme", help="Have it made by ACME, and renewed.")
    ] = False,
    also: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Another name that ACME puts into it; may be repeated."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Store the certificate of a server, or have it made. A running server shows it at once.

    Example: merganser certificate set mx.example.org --cert mx.pem --key mx.key

    Example: merganser certificate set mx.example.org --acme --also imap.example.org
    """
    from merganser.commands import certificate_operations as certificates
    from merganser.commands.environment_run import run_in_environment

    if cert is None and not acme:
        raise CommandError("say --cert FILE, or --acme", exit_code=EXIT_USAGE)

    async def run_operation(
        environment: "Environment", _settings: "Settings"
    ) -> "tuple[dict[str, Any], list[CertificateWarning]]":
        return await certificates.set_certificate(
            environment, name, (cert, key), uses_acme=acme, alt_names=also or None
        )

    found, notices = run_in_environment(run_operation)
    for notice in notices:
        typer.echo(f"{notice.code}: {notice.message}", err=True)
    _print_certificate(found, as_json)


def _print_certificate(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    ends = found["expires_at"]
    typer.echo(f"{found['server_name']}: " + (f"valid until {ends[:10]}" if ends else "none yet"))
    if found["acme_state"]:
        typer.echo(f"ACME: {found['acme_state']}")
    if found["tlsa"]:
        typer.echo(f"TLSA: {found['tlsa']}")


def renew_certificate(name: ServerName, as_json: JsonOption = False) -> None:
    """Have a certificate renewed by ACME now; a running server does it.

    Example: merganser certificate renew mx.example.org
    """
    from merganser.commands import certificate_operations as certificates
    from merganser.commands.environment_run import run_in_environment

    async def run_operation(environment: "Environment", _settings: "Settings") -> dict[str, Any]:
        return await certificates.renew_certificate(environment, name)

    _print_certificate(run_in_environment(run_operation), as_json)


def delete_certificate(
    name: ServerName,
    revoke: Annotated[
        str | None,
        typer.Option(
            metavar="REASON",
            help="Have its authority revoke it before: unspecified, key-compromise, superseded, "
            "affiliation-changed or cessation-of-operation.",
        ),
    ] = None,
) -> None:
    """Delete the certificate of a server. Connections that are open stay as they are.

    Example: merganser certificate delete mx.example.org

    Example: merganser certificate delete mx.example.org --revoke key-compromise
    """
    from merganser.commands import certificate_operations as certificates
    from merganser.commands.environment_run import run_in_environment

    async def run_operation(environment: "Environment", _settings: "Settings") -> bool:
        return await certificates.delete_certificate(environment, name, revoke)

    if run_in_environment(run_operation):
        typer.echo(f"The certificate of {name} is revoked.")
    typer.echo(f"{name} has no certificate here any more.")


def certificate_commands() -> typer.Typer:
    """Create the command group `certificate`."""
    group = typer.Typer(help="List, set and renew certificates.", no_args_is_help=True)
    group.command("list")(list_certificates)
    group.command("set")(set_certificate)
    group.command("renew")(renew_certificate)
    group.command("delete")(delete_certificate)
    return group

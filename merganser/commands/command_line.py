"""The command line: the commands without a group, and the groups of commands."""

from typing import Annotated

import typer
from typer.core import TyperGroup
from typer.main import get_group

from merganser.commands import top_level_declarations
from merganser.commands.lazy_commands import LazyCommandGroup


def print_version_and_exit(is_requested: bool) -> None:
    """Print the version, and end."""
    if is_requested:
        # it takes 20 ms to import, which other commands don't need
        from importlib.metadata import version  # noqa: PLC0415

        typer.echo(f"merganser {version('merganser')}")
        raise typer.Exit


def main_command(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=print_version_and_exit, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Mail behind one GraphQL API.

    Environment variables set it up: `merganser settings` lists them. What changes while it runs
    is stored: `merganser setting list`.
    """


def create_command_line() -> TyperGroup:
    """Create the command line with all commands."""
    app = typer.Typer(
        name="merganser",
        no_args_is_help=True,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(main_command)
    app.add_typer(top_level_declarations.declarations)
    command_line = get_group(app)
    for group in _create_groups():
        command_line.add_command(group)
    return command_line


def _create_groups() -> list[LazyCommandGroup]:
    """Create the groups in the order of the help text."""
    return [
        LazyCommandGroup(
            "user",
            "merganser.commands.users.user_declarations",
            "Make, list and change accounts.",
        ),
        LazyCommandGroup(
            "token",
            "merganser.commands.users.api_key_declarations",
            "Make, list and revoke API keys.",
        ),
        LazyCommandGroup(
            "domain",
            "merganser.commands.domains.domain_declarations",
            "Make, list, rename and delete domains.",
        ),
        LazyCommandGroup(
            "certificate",
            "merganser.commands.certificates.certificate_declarations",
            "List, set and renew certificates.",
        ),
        LazyCommandGroup(
            "connector",
            "merganser.commands.connectors.connector_declarations",
            "List, check and run connectors.",
        ),
        LazyCommandGroup(
            "documents",
            "merganser.commands.admin.document_declarations",
            "Add, list and remove trusted documents.",
        ),
        LazyCommandGroup(
            "setting",
            "merganser.commands.admin.setting_declarations",
            "List and change settings while a server runs.",
        ),
        LazyCommandGroup(
            "keys",
            "merganser.commands.admin.key_declarations",
            "Keys that secrets in the store are sealed with.",
        ),
    ]

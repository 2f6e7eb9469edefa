"""The command line: the commands without a group, and the groups of commands."""

from typing import Annotated

import typer
from typer.core import TyperGroup
from typer.main import get_group

from merganser.commands import top_level_declarations
from merganser.commands.lazy_commands import LazyCommandGroup, join_wrapped_lines

# Name, module with the declarations, and help text, in the order of the help
COMMAND_GROUPS = (
    ("user", "users.user_declarations", "Create, list, change, delete and restore accounts."),
    ("api-key", "users.api_key_declarations", "Create, list and revoke API keys."),
    (
        "domain",
        "domains.domain_declarations",
        "Create, list, rename and delete domains, with their DNS records and keys.",
    ),
    (
        "certificate",
        "certificates.certificate_declarations",
        "List, set, renew and delete certificates.",
    ),
    ("connector", "connectors.connector_declarations", "List, check and run connectors."),
    ("session", "sessions.session_declarations", "List and end the open sessions of all nodes."),
    (
        "cache",
        "cache.cache_declarations",
        "List, flush and remove cached values and pending writes of all nodes.",
    ),
    ("documents", "admin.document_declarations", "Add, list and remove trusted documents."),
    ("setting", "admin.setting_declarations", "List and change settings while a server runs."),
    ("cluster", "cluster.cluster_declarations", "Print which node serves which user."),
    ("ban", "throttling.ban_declarations", "List, add and lift bans of networks."),
    ("keys", "admin.key_declarations", "List and rotate the keys that encrypt stored secrets."),
)


def print_version_and_exit_if_requested(is_requested: bool) -> None:
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
            "--version",
            callback=print_version_and_exit_if_requested,
            is_eager=True,
            help="Print the version.",
        ),
    ] = False,
) -> None:
    """A mail platform with one GraphQL API.

    Environment variables configure it: see `merganser settings`. Some settings can be changed
    while a server runs: see `merganser setting list`.
    """


def create_command_line() -> TyperGroup:
    """Create the command line with all commands."""
    app = typer.Typer(
        name="merganser",
        no_args_is_help=True,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(help=join_wrapped_lines(main_command.__doc__ or ""))(main_command)
    app.add_typer(top_level_declarations.declarations)
    command_line = get_group(app)
    for name, module, help_text in COMMAND_GROUPS:
        group = LazyCommandGroup(name, f"merganser.commands.{module}", help_text)
        command_line.add_command(group)
    return command_line

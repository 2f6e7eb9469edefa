"""Declarations of the commands `merganser setting …`."""

from typing import Annotated

import typer

from merganser.commands.lazy_commands import implemented_in
from merganser.commands.shared_options import JsonOption

ReasonOption = Annotated[
    str | None, typer.Option(help="Why; kept in its history and in the administrative log.")
]

declarations = typer.Typer()


@declarations.command("list")
@implemented_in("merganser.commands.admin.setting_commands")
def list_settings(
    part: Annotated[str | None, typer.Argument(help="Only keys that have this in them.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the stored settings with their values, and whether these are stored or defaults.

    Environment variables set what a server needs before it opens the store: `merganser settings`.

    Example: merganser setting list retention
    """


@declarations.command("get")
@implemented_in("merganser.commands.admin.setting_commands")
def print_setting(
    key: Annotated[str, typer.Argument(help="Key, as `merganser setting list` shows it.")],
    as_json: JsonOption = False,
) -> None:
    """Print the value of one stored setting; with --json all that is known of it.

    Example: merganser setting get submission.maxRecipients
    """


@declarations.command("set")
@implemented_in("merganser.commands.admin.setting_commands")
def set_setting(
    key: Annotated[str, typer.Argument(help="Key, as `merganser setting list` shows it.")],
    value: Annotated[
        str,
        typer.Argument(help='As in 50, "3 GiB", "14 days", P14D, off, null; else JSON or a text.'),
    ],
    reason: ReasonOption = None,
) -> None:
    """Store another value of a setting. Running servers go by it within seconds.

    Settings of your own begin with custom.

    Example: merganser setting set submission.maxRecipients 50

    Example: merganser setting set tokens.idleTimeout "14 days" --reason "as agreed"
    """


@declarations.command("unset")
@implemented_in("merganser.commands.admin.setting_commands")
def unset_settings(
    keys: Annotated[
        list[str], typer.Argument(help="Keys, as `merganser setting list` shows them.")
    ],
    reason: ReasonOption = None,
) -> None:
    """Let settings have their defaults again, all or none. Those of your own are gone then.

    Example: merganser setting unset submission.maxRecipients
    """

"""Declarations of the commands `merganser setting …`."""

from typing import Annotated

import typer

from merganser.commands.lazy_commands import implemented_in
from merganser.commands.shared_options import JsonOption

ReasonOption = Annotated[
    str | None, typer.Option(help="Reason, for the history of the setting and the audit log.")
]

declarations = typer.Typer()


@declarations.command("list")
@implemented_in("merganser.commands.admin.setting_commands")
def list_settings(
    part: Annotated[
        str | None, typer.Argument(help="List only keys that contain this text.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the settings that can be stored, with their values and whether these are stored.

    Values that are not stored come from environment variables or are defaults. `merganser
    settings` lists the environment variables.

    Example: merganser setting list retention
    """


@declarations.command("get")
@implemented_in("merganser.commands.admin.setting_commands")
def print_setting(
    key: Annotated[str, typer.Argument(help="Key, as `merganser setting list` shows it.")],
    as_json: JsonOption = False,
) -> None:
    """Print the value of a setting; with --json also its type and default.

    Example: merganser setting get submission.maxRecipients
    """


@declarations.command("set")
@implemented_in("merganser.commands.admin.setting_commands")
def set_setting(
    key: Annotated[str, typer.Argument(help="Key, as `merganser setting list` shows it.")],
    value: Annotated[
        str,
        typer.Argument(
            help='Such as 50, "3 GiB", "14 days", P14D, off or null; otherwise JSON or a text.'
        ),
    ],
    reason: ReasonOption = None,
) -> None:
    """Store a value of a setting. Running servers use it within a second.

    The keys of your own settings begin with `custom.`.

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
    """Delete stored settings, all or none. Their variables or defaults apply again.

    Example: merganser setting unset submission.maxRecipients
    """

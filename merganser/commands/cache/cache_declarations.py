"""Declarations of the commands `merganser cache …`."""
# ruff: noqa: PLR0913, PLR0917 - a parameter for each option: typer reads them

from typing import Annotated

import typer

from merganser.commands.lazy_commands import implemented_in
from merganser.commands.shared_options import JsonOption, PatternOption, UserOption

declarations = typer.Typer()


@declarations.command("list")
@implemented_in("merganser.commands.cache.cache_commands")
def list_entries(
    user: UserOption = None,
    pattern: PatternOption = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            help="BLOB, CREDENTIAL, DNS_ANSWER, LIST_ROW, LOG_ENTRY, MESSAGE_STEP, PARSED_MESSAGE, "
            "PASSWORD_CHECK, SECURITY_EVENT or TOKEN_USE; can be repeated."
        ),
    ] = None,
    dirty: Annotated[bool, typer.Option("--dirty", help="Only pending writes.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Largest number of entries.")] = 1000,
    as_json: JsonOption = False,
) -> None:
    """List cached values and pending writes of all nodes, those used last first.

    The exit code is 1 if a node does not answer.

    Example: merganser cache list --kind BLOB
    """


@declarations.command("flush")
@implemented_in("merganser.commands.cache.cache_commands")
def flush_caches() -> None:
    """Write the pending writes of all nodes, and wait until they are durable.

    The exit code is 1 if a node does not answer, or if writes are lost. Run it before a backup.

    Example: merganser cache flush
    """


@declarations.command("clean")
@implemented_in("merganser.commands.cache.cache_commands")
def remove_unused_cached_values(
    user: UserOption = None,
    pattern: PatternOption = None,
    days: Annotated[
        int, typer.Option(help="Days without use, from 0 to 36500. 0 removes all values.")
    ] = 0,
) -> None:
    """Remove cached values that were not used for a number of days, on all nodes.

    Without --user and --pattern, values without a user are removed too. Pending writes stay.

    Example: merganser cache clean --days 30

    Example: merganser cache clean --user ada
    """


@declarations.command("rescan")
@implemented_in("merganser.commands.cache.cache_commands")
def rescan_caches(
    path: Annotated[
        str, typer.Option(help="Beginning of the paths of the objects to verify.")
    ] = "",
    max_age: Annotated[
        str | None, typer.Option(help="Also remove files that are older, such as 30 days.")
    ] = None,
) -> None:
    """Verify the files of the blob caches of all nodes.

    Removes damaged and foreign files, and corrects the size. The exit code is 1 if a node does
    not answer, or stops after 20 seconds: give --path to verify a part.

    Example: merganser cache rescan --path a7/
    """

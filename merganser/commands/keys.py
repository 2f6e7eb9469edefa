"""The commands `merganser keys …`."""
# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help is quick

from typing import TYPE_CHECKING, Annotated

import typer

from merganser.errors import Trouble

if TYPE_CHECKING:
    from merganser.commands.key_rotation import Key, Rotated
    from merganser.settings.settings import Settings
    from models.runtime.environment import World

TOLD = 20


def rotate(
    keep_old: Annotated[
        bool, typer.Option("--keep-old", help="Leave the old keys in the file.")
    ] = False,
) -> None:
    """Make a new key, seal all secrets in the store with it, and remove the old keys.

    Needs the servers stopped. Killed at any point it loses nothing: run it again. Backups of the
    store that were made before need the old file of keys: keep it as long as them. Where several
    machines serve the store, give all of them the new file before they start.

    Example: merganser keys rotate
    """
    from merganser.commands.environment_run import run
    from merganser.commands.progress_bar import progress_bar

    async def run_operation(environment: "World", settings: "Settings") -> "Rotated":
        from merganser.commands import key_rotation

        with progress_bar() as bar:
            task = bar.add_task("Sealing", total=None)

            def progress(done: int, total: int) -> None:
                bar.update(task, completed=done, total=total)

            return await key_rotation.rotate(environment, settings, progress, keep_old=keep_old)

    done = run(run_operation)
    typer.echo(f"Key {done.name} is made, and {done.sealed} secrets are sealed with it.")
    if done.removed:
        typer.echo(f"Removed {' '.join(done.removed)}: only older backups need that.")
    for place in done.closed[:TOLD]:
        typer.echo(f"No key opens {place}: it stays as it is.", err=True)
    if done.closed:
        raise Trouble(f"{len(done.closed)} secrets could not be opened; their keys stay")


def list_keys(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the keys by name, and how many secrets are sealed with each. Never the keys.

    Example: merganser keys list
    """
    import json

    from merganser.commands.environment_run import run
    from merganser.commands.terminal_tables import shown

    async def run_operation(environment: "World", _settings: "Settings") -> "list[Key]":
        from merganser.commands import key_rotation

        return await key_rotation.listed(environment)

    rows = [
        {
            "name": key.name,
            "made": key.made_at.isoformat(timespec="seconds") if key.made_at else "",
            "sealed": key.sealed,
            "newest": key.newest,
        }
        for key in run(run_operation)
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    titles = ("name", "made", "secrets", "")
    shown(
        titles,
        [
            [
                str(row["name"]),
                str(row["made"]),
                str(row["sealed"]),
                "newest" if row["newest"] else "",
            ]
            for row in rows
        ],
    )


def keys() -> typer.Typer:
    """Create the command group `keys`."""
    made = typer.Typer(help="Keys that secrets in the store are sealed with.", no_args_is_help=True)
    made.command("list")(list_keys)
    made.command("rotate")(rotate)
    return made

"""The commands `merganser keys …`."""
# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help is quick

from typing import TYPE_CHECKING, Annotated

import typer

from merganser.errors import CommandError

if TYPE_CHECKING:
    from merganser.commands.key_rotation import KeyRotationResult, SecretBoxKeyInfo
    from merganser.settings.settings import Settings
    from models.runtime.environment import Environment

MAX_PRINTED_ERRORS = 20


def rotate_keys(
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
    from merganser.commands.environment_run import run_in_environment
    from merganser.commands.progress_bar import create_progress_bar

    async def run_operation(
        environment: "Environment", settings: "Settings"
    ) -> "KeyRotationResult":
        from merganser.commands import key_rotation

        with create_progress_bar() as bar:
            task = bar.add_task("Sealing", total=None)

            def progress(result: int, total: int) -> None:
                bar.update(task, completed=result, total=total)

            return await key_rotation.rotate_keys(
                environment, settings, progress, keeps_old_keys=keep_old
            )

    result = run_in_environment(run_operation)
    typer.echo(
        f"Key {result.new_key_name} is made, and {result.encrypted_count} secrets are sealed "
        "with it."
    )
    if result.removed_keys:
        typer.echo(f"Removed {' '.join(result.removed_keys)}: only older backups need that.")
    for location in result.undecryptable[:MAX_PRINTED_ERRORS]:
        typer.echo(f"No key opens {location}: it stays as it is.", err=True)
    if result.undecryptable:
        raise CommandError(
            f"{len(result.undecryptable)} secrets could not be opened; their keys stay"
        )


def list_keys(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the keys by name, and how many secrets are sealed with each. Never the keys.

    Example: merganser keys list
    """
    import json

    from merganser.commands.environment_run import run_in_environment
    from merganser.commands.terminal_tables import print_table

    async def run_operation(
        environment: "Environment", _settings: "Settings"
    ) -> "list[SecretBoxKeyInfo]":
        from merganser.commands import key_rotation

        return await key_rotation.list_keys(environment)

    rows = [
        {
            "name": key.name,
            "made": key.created_at.isoformat(timespec="seconds") if key.created_at else "",
            "sealed": key.secret_count,
            "newest": key.is_newest,
        }
        for key in run_in_environment(run_operation)
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    titles = ("name", "made", "secrets", "")
    print_table(
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


def key_commands() -> typer.Typer:
    """Create the command group `keys`."""
    app = typer.Typer(help="Keys that secrets in the store are sealed with.", no_args_is_help=True)
    app.command("list")(list_keys)
    app.command("rotate")(rotate_keys)
    return app

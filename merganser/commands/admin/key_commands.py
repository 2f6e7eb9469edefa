"""Implementations of the commands `merganser keys …`."""

import typer

from merganser.commands.admin import key_rotation
from merganser.commands.admin.key_rotation import KeyRotationResult
from merganser.commands.environment_run import run_in_environment
from merganser.commands.progress_bar import create_progress_bar
from merganser.commands.terminal_output import print_json, print_table
from merganser.errors import CommandError
from merganser.settings.settings import Settings
from models.runtime.environment import Environment

MAX_PRINTED_ERRORS = 20


def rotate_encryption_keys(keep_old: bool) -> None:
    """Rotate the keys, and print how many secrets are encrypted with the new one."""

    async def run_operation(environment: Environment, settings: Settings) -> KeyRotationResult:
        with create_progress_bar() as bar:
            task = bar.add_task("Sealing", total=None)

            def report_progress(done_count: int, total: int) -> None:
                bar.update(task, completed=done_count, total=total)

            return await key_rotation.rotate_encryption_keys(
                environment, settings, report_progress, keeps_old_keys=keep_old
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
            f"{len(result.undecryptable)} secrets could not be decrypted. Their keys remain."
        )


def print_encryption_keys(as_json: bool) -> None:
    """Print the keys with their number of secrets."""
    keys = run_in_environment(
        lambda environment, _settings: key_rotation.load_encryption_keys_with_secret_counts(
            environment
        )
    )
    rows = [
        {
            "name": key.name,
            "made": key.created_at.isoformat(timespec="seconds") if key.created_at else "",
            "sealed": key.secret_count,
            "newest": key.is_newest,
        }
        for key in keys
    ]
    if as_json:
        print_json(rows)
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

"""`merganser user import`: create the users of a CSV or JSON Lines file."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import NamedTuple

import typer

from merganser.commands.environment_run import run_in_environment
from merganser.errors import EXIT_FAILURE, CommandError
from merganser.server.environment_factory import root_context
from merganser.settings.settings import Settings
from models.errors import RequestError
from models.runtime.environment import Environment
from models.users.list_formats import UserFileFormat
from resolvers.transfer import record_tasks
from resolvers.transfer.record_tasks import BatchResult
from resolvers.users.creation import file_create


class _ImportedUserCounts(NamedTuple):
    """How many users were created, and how many lines of the file were refused."""

    created: int
    refused: int


def import_users(file: Path, form: UserFileFormat | None) -> None:
    """Create the users of a file, and print each rejected one with its line."""

    async def create_users(environment: Environment, _settings: Settings) -> _ImportedUserCounts:
        created = refused = 0
        async with aclosing(_create_users_from_file(environment, file, form)) as outcomes:
            async for outcome in outcomes:
                created += outcome.created_count
                refused += len({error["line"] for error in outcome.errors})
                for error in outcome.errors:
                    location = ".".join(error["path"]) or "record"
                    text = f"Line {error['line']}: {location}: {error['message']} ({error['code']})"
                    typer.echo(text, err=True)
        return _ImportedUserCounts(created, refused)

    created, refused = run_in_environment(create_users)
    typer.echo(f"{created} accounts created, {refused} refused.")
    if refused:
        raise typer.Exit(EXIT_FAILURE)


async def _create_users_from_file(
    environment: Environment, path: Path, file_format: UserFileFormat | None
) -> AsyncGenerator[BatchResult]:
    """Create the users of a CSV or JSON Lines file; yield the results of each batch.

    A user that exists is rejected, so the same file can be given again after a crash. Raises
    CommandError if the file can't be read or is invalid.
    """
    ctx = root_context(environment)
    try:
        with path.open("rb") as file:
            head = file.read(record_tasks.HEAD_SIZE)
    except OSError as problem:
        text = f"Cannot read {path}: {(problem.strerror or '').lower()}."
        raise CommandError(text) from problem
    try:
        async with aclosing(
            record_tasks.create_from_local_file(
                ctx, file_create.USERS_CREATE, path, head, file_format
            )
        ) as outcomes:
            async for outcome in outcomes:
                yield outcome
    except RequestError as refusal:
        raise CommandError(f"{path}: {refusal.message}") from refusal

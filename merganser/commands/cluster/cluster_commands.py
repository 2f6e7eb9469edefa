"""Implementations of the commands `merganser cluster …`."""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import typer

from merganser.commands.environment_run import run_in_environment
from merganser.errors import CommandError
from merganser.server.environment_factory import root_context
from merganser.settings.settings import Settings
from models.runtime.environment import Environment
from resolvers.cluster.affinities import load_node_table, scan_all_affinities

MAP_FILE_MODE = 0o644  # HAProxy can read it as another system user


def print_or_write_user_node_map(path: str | None) -> None:
    """Print or store the node of each user. Raises CommandError if the file can't be written."""

    async def read_lines(environment: Environment, _settings: Settings) -> list[str]:
        ctx = root_context(environment)
        nodes = (await load_node_table(ctx)).rows_by_id
        # HAProxy allows no brackets in the name of a server
        names = {node_id: f"{row.host}:{row.port}" for node_id, row in nodes.items()}
        return [
            f"{affinity.username} {names[affinity.node_id]}"
            async for affinities in scan_all_affinities(ctx)
            for affinity in affinities
            if affinity.node_id is not None
        ]

    lines = run_in_environment(read_lines)
    if path is None:
        for line in lines:
            typer.echo(line)
        return
    try:
        _replace_file(Path(path), lines)
    except OSError as problem:
        raise CommandError(f"--output: {path}: {problem.strerror or problem}.") from problem


def _replace_file(path: Path, lines: Iterable[str]) -> None:
    """Replace a file at once, so that no reader sees a part of it."""
    descriptor, temporary_name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.writelines(f"{line}\n" for line in lines)
        Path(temporary_name).chmod(MAP_FILE_MODE)
        Path(temporary_name).replace(path)
    except BaseException:
        Path(temporary_name).unlink(missing_ok=True)
        raise

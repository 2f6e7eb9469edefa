"""Implementations of the commands `merganser cache …`."""
# ruff: noqa: PLR0913, PLR0917 - a parameter for each option

import typer

from merganser.commands.cache import cache_operations
from merganser.commands.environment_run import run_in_environment
from merganser.commands.option_values import parse_duration, parse_values, user_selector
from merganser.commands.terminal_output import (
    exit_if_nodes_are_missing,
    print_table_or_json,
    text_or_empty,
)
from merganser.errors import EXIT_FAILURE
from merganser.server.environment_factory import root_context
from resolvers.cache import maintenance
from resolvers.cache.entries import CacheKind
from resolvers.cache.listing import CacheConditions
from resolvers.cache.maintenance import CacheChange


def list_entries(
    user: list[str] | None,
    pattern: list[str] | None,
    kind: list[str] | None,
    dirty: bool,
    limit: int,
    as_json: bool,
) -> None:
    """Print cached values and pending writes. The exit code is 1 if a node does not answer."""
    kinds = parse_values("--kind", CacheKind, kind)
    conditions = CacheConditions(user_selector(user, pattern), kinds, dirty or None)
    result = run_in_environment(
        lambda environment, _settings: cache_operations.load_entries_as_json(
            environment, conditions, limit
        )
    )
    columns = ("kind", "name", "user", "size", "last_used_at", "pending_count", "node", "pid")
    print_table_or_json(
        result.entries,
        columns,
        text_or_empty,
        as_json=as_json,
    )
    exit_if_nodes_are_missing("No answer from {}: its entries are missing.", result.silent_nodes)


def flush_caches() -> None:
    """Write the pending writes of all nodes, and print their number."""
    change = run_in_environment(
        lambda environment, _settings: maintenance.flush_pending_writes_and_write_audit_log(
            root_context(environment), None
        )
    )
    typer.echo(f"{change.count} pending writes are durable.")
    if change.lost_count:
        typer.echo(f"{change.lost_count} writes are lost: see the log.", err=True)
    _report_unresponsive_nodes(change)
    if change.lost_count:
        raise typer.Exit(EXIT_FAILURE)


def remove_unused_cached_values(
    user: list[str] | None, pattern: list[str] | None, days: int
) -> None:
    """Remove cached values of all nodes, and print their number."""
    change = run_in_environment(
        lambda environment, _settings: maintenance.remove_unused_values_and_write_audit_log(
            root_context(environment), "cacheClean", user_selector(user, pattern), days
        )
    )
    typer.echo(f"{change.count} entries removed, {change.size} bytes.")
    _report_unresponsive_nodes(change)


def rescan_caches(path: str, max_age: str | None) -> None:
    """Verify the blob caches of all nodes, and print the number of removed files."""
    age = parse_duration("--max-age", max_age)
    change = run_in_environment(
        lambda environment, _settings: maintenance.rescan_blob_caches_and_write_audit_log(
            root_context(environment), path, age
        )
    )
    typer.echo(f"{change.count} files removed, {change.size} bytes.")
    exit_if_nodes_are_missing("The rescan of {} is incomplete.", change.incomplete_nodes)
    _report_unresponsive_nodes(change)


def _report_unresponsive_nodes(change: CacheChange) -> None:
    exit_if_nodes_are_missing("No answer from {}.", change.unresponsive_nodes)

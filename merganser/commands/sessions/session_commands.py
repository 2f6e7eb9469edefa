"""Implementations of the commands `merganser session …`."""
# ruff: noqa: PLR0913, PLR0917 - a parameter for each option

import typer

from merganser.commands.environment_run import run_in_environment
from merganser.commands.option_values import parse_values, user_selector
from merganser.commands.sessions import session_operations
from merganser.commands.terminal_output import (
    exit_if_nodes_are_missing,
    print_table_or_json,
    text_or_empty,
)
from merganser.errors import EXIT_USAGE, CommandError
from models.sessions.live_sessions import SessionService, SessionTermination

SILENT_NODES_TEXT = "No answer from {}: its sessions are missing."


def list_sessions(
    user: list[str] | None, pattern: list[str] | None, service: list[str] | None, as_json: bool
) -> None:
    """Print the open sessions of all nodes. The exit code is 1 if a node does not answer."""
    services = parse_values("--service", SessionService, service)
    result = run_in_environment(
        lambda environment, _settings: session_operations.load_sessions_as_json(
            environment, user_selector(user, pattern), services
        )
    )
    columns = ("id", "user", "service", "ip", "proxied", "node", "pid", "connected_at")
    print_table_or_json(
        result.sessions,
        columns,
        text_or_empty,
        as_json=as_json,
    )
    exit_if_nodes_are_missing(SILENT_NODES_TEXT, result.unresponsive_nodes)


def terminate_sessions(
    user: list[str] | None,
    pattern: list[str] | None,
    session: list[str] | None,
    reason: str | None,
    force: bool,
    revoke_tokens: bool,
) -> None:
    """End sessions on all nodes, and print their number."""
    selector = user_selector(user, pattern)
    if (selector is None) is (session is None):
        raise CommandError("Give --user or --pattern, or else --session.", exit_code=EXIT_USAGE)
    if session and revoke_tokens:
        raise CommandError("--revoke-tokens requires --user.", exit_code=EXIT_USAGE)
    result = run_in_environment(
        lambda environment, _settings: session_operations.terminate_sessions(
            environment,
            selector,
            session,
            SessionTermination(reason, is_forced=force),
            revokes_tokens=revoke_tokens,
        )
    )
    typer.echo(f"{result.ended_count} ended, {result.pending_count} still ending.")
    exit_if_nodes_are_missing(SILENT_NODES_TEXT, result.unresponsive_nodes)

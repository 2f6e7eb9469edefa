"""Implementations of the commands `merganser api-key …`."""
# ruff: noqa: PLR0913, PLR0917 - a parameter for each option

import typer

from merganser.commands.environment_run import run_in_environment
from merganser.commands.option_values import parse_date_or_duration_from_now
from merganser.commands.terminal_output import print_table_or_json
from merganser.commands.users import user_operations
from merganser.commands.users.user_output import user_cell_text
from models.users.roles import Role, Scope


def create_api_key(
    name: str,
    user: str | None,
    role: Role,
    domain: list[str] | None,
    scope: list[Scope] | None,
    read_only: bool,
    expires: str | None,
) -> None:
    """Create an API key, and print its secret."""
    request = user_operations.ApiKeyRequest(
        name,
        user,
        role,
        tuple(domain or ()),
        tuple(scope or ()),
        is_read_only=read_only,
        expires_at=parse_date_or_duration_from_now("--expires", expires),
    )
    api_key, secret = run_in_environment(
        lambda environment, _settings: user_operations.create_api_key(environment, request)
    )
    typer.echo(f"API key {api_key} created. Keep its secret, which is not shown again:", err=True)
    typer.echo(secret)


def list_api_keys(as_json: bool) -> None:
    """Print all API keys without their secrets."""
    keys = run_in_environment(
        lambda environment, _settings: user_operations.load_api_keys_as_json(environment)
    )
    columns = ("id", "name", "user", "role", "domains", "scopes", "read_only", "expires_at")
    print_table_or_json(keys, columns, user_cell_text, as_json=as_json)


def revoke_api_keys(ids: list[str]) -> None:
    """Delete API keys."""
    run_in_environment(
        lambda environment, _settings: user_operations.delete_api_keys(environment, ids)
    )
    typer.echo(f"{len(ids)} revoked.")

"""Implementations of the commands `merganser domain …`, except those about keys."""
# ruff: noqa: PLR0913, PLR0917 - a parameter for each option

from datetime import timedelta

import typer

from merganser.commands.domains import dns_record_operations, domain_operations
from merganser.commands.domains.domain_output import (
    domain_cell_text,
    print_txt_records,
    problem_text,
)
from merganser.commands.environment_run import run_in_environment
from merganser.commands.option_values import parse_bytes, parse_duration
from merganser.commands.terminal_output import print_table_or_json
from merganser.errors import EXIT_FAILURE, EXIT_USAGE, CommandError
from resolvers.users.limit_values import Unlimited


def add_domain(
    name: str,
    description: str | None,
    max_users: int | None,
    max_addresses: int | None,
    default_user_quota: str | None,
    max_user_quota: str | None,
    quota: str | None,
    backup_mx: bool,
    dkim: bool,
) -> None:
    """Create a domain, and print its global ID and the DNS record of its DKIM key."""
    values = {
        "description": description,
        "max_users": max_users,
        "max_addresses": max_addresses,
        "default_user_quota": parse_bytes("--default-user-quota", default_user_quota),
        "max_user_quota": parse_bytes("--max-user-quota", max_user_quota),
        "quota": parse_bytes("--quota", quota),
        "backup_mx": backup_mx,
    }
    columns = {
        name: Unlimited.UNLIMITED if value == 0 and value is not False else value
        for name, value in values.items()
        if value is not None
    }
    key, keys = run_in_environment(
        lambda environment, _settings: domain_operations.create_domain(
            environment, name, columns, creates_dkim_key=dkim
        )
    )
    typer.echo(f"{name} created: {key}")
    if keys:
        print_txt_records(keys)


def list_domains(as_json: bool) -> None:
    """Print all domains with their counts and limits."""
    domains = run_in_environment(
        lambda environment, _settings: domain_operations.load_domains_as_json(environment)
    )
    columns = ("name", "active", "users", "max_users", "addresses", "allocated", "quota", "used")
    print_table_or_json(domains, columns, domain_cell_text, as_json=as_json)


def rename_domain(old: str, new: str, dry_run: bool) -> None:
    """Rename a domain, and print how much changed or would change."""
    result = run_in_environment(
        lambda environment, _settings: domain_operations.rename_domain(
            environment, old, new, dry_run=dry_run
        )
    )
    typer.echo(f"{old} {'would be' if dry_run else 'is'} {result.domain.name}.")
    typer.echo(
        f"Addresses: {result.address_count}, users: {result.user_count}, "
        f"aliases: {result.alias_count}."
    )


def delete_domains(names: list[str], cascade: bool) -> None:
    """Delete domains, and print their number."""
    count = run_in_environment(
        lambda environment, _settings: domain_operations.delete_domains(
            environment, names, deletes_content=cascade
        )
    )
    typer.echo(f"{count} deleted.")


def print_dns_records(name: str, check: bool, wait: bool, timeout: str, as_json: bool) -> None:
    """Print the DNS records that a domain needs. The exit code is 1 if one is wrong."""
    longest_wait = parse_duration("--timeout", timeout)
    if wait and not check:
        raise CommandError("--wait queries DNS: omit --no-check.", exit_code=EXIT_USAGE)
    records = run_in_environment(
        lambda environment, _settings: (
            dns_record_operations.wait_for_dns_records(
                environment, name, longest_wait or timedelta(), _print_progress
            )
            if wait
            else dns_record_operations.load_expected_dns_records(
                environment, name, queries_dns=check
            )
        )
    )
    rows = [dns_record_operations.dns_record_as_json(record) for record in records]
    if not as_json:
        rows = [{**row, "problem": problem_text(row)} for row in rows]
    columns = ("state", "type", "name", "value", "found", "problem")
    print_table_or_json(rows, columns, domain_cell_text, as_json=as_json)
    if wait and (missing_records := dns_record_operations.unpublished_records(records)):
        names = dns_record_operations.record_names(missing_records)
        raise CommandError(f"After {timeout}, DNS does not show these records: {names}")
    if any(record.is_wrong for record in records):
        raise typer.Exit(EXIT_FAILURE)


def _print_progress(text: str) -> None:
    typer.echo(text, err=True)

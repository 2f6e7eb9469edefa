"""Implementations of the commands `merganser domain dkim-…`."""

import typer

from merganser.commands.domains import dkim_key_operations
from merganser.commands.domains.dkim_key_declarations import DkimAlgorithmChoice
from merganser.commands.domains.domain_output import domain_cell_text, print_txt_records
from merganser.commands.environment_run import run_in_environment
from merganser.commands.terminal_output import print_table_or_json
from models.domains.dkim_keys import DkimAlgorithm
from resolvers.domains.dkim_key_mutations import NewDkimKey


def list_dkim_keys(name: str | None, check: bool, as_json: bool) -> None:
    """Print all DKIM keys or those of a domain."""
    keys = run_in_environment(
        lambda environment, _settings: dkim_key_operations.load_dkim_keys_as_json(
            environment, name, queries_dns=check
        )
    )
    columns = ("domain", "selector", "algorithm", "bits", "state", "dns")
    print_table_or_json(keys, columns, domain_cell_text, as_json=as_json)


def add_dkim_key(
    names: list[str], selector: str, algorithm: DkimAlgorithmChoice, bits: int
) -> None:
    """Create DKIM keys that the domains sign with at once, and print their DNS records."""
    new_key = NewDkimKey(selector, algorithm=DkimAlgorithm[algorithm.name], key_size=bits)
    keys = run_in_environment(
        lambda environment, _settings: dkim_key_operations.create_active_dkim_keys(
            environment, names, new_key
        )
    )
    print_txt_records(keys)


def rotate_dkim_keys(names: list[str]) -> None:
    """Create the next DKIM keys of the domains, and print their DNS records."""
    keys = run_in_environment(
        lambda environment, _settings: dkim_key_operations.create_next_dkim_keys(environment, names)
    )
    print_txt_records(keys)


def activate_dkim_key(name: str, selector: str) -> None:
    """Let a domain sign with the key of this selector."""
    run_in_environment(
        lambda environment, _settings: dkim_key_operations.activate_dkim_key(
            environment, name, selector
        )
    )
    typer.echo(f"{name} signs with {selector}.")

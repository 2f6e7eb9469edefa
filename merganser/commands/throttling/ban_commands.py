"""Implementations of the commands `merganser ban …`."""

from collections.abc import Sequence
from ipaddress import collapse_addresses, ip_network
from typing import Any

import typer

from mail.throttling.ban_changes import refresh_refused_networks_from_database
from merganser.commands.environment_run import run_in_environment
from merganser.commands.option_values import parse_duration
from merganser.commands.terminal_output import print_json, print_table
from merganser.errors import EXIT_USAGE, CommandError
from merganser.server.environment_factory import root_context
from merganser.settings.settings import Settings
from models.runtime.environment import Environment
from models.store.columns import ColumnRow
from models.throttling.refused_networks import networks_of_list_entries
from resolvers.throttling import bans, loaders

FORMATS = ("table", "json", "nft")
NFT_TABLE = "inet merganser"
Lists = tuple[Sequence[ColumnRow], list[str], list[str]]


def list_bans(output_format: str) -> None:
    """Print the refused networks."""
    if output_format not in FORMATS:
        raise CommandError(f"--format: Must be one of {', '.join(FORMATS)}.", exit_code=EXIT_USAGE)

    async def read_lists(environment: Environment, _settings: Settings) -> Lists:
        await refresh_refused_networks_from_database(environment)
        refused = environment.refused_networks
        policy, hosts = refused.policy, refused.host_addresses
        return (
            await loaders.read_all_bans(root_context(environment)),
            networks_of_list_entries(policy.denylist, hosts),
            [*refused.never_refused_texts, *networks_of_list_entries(policy.allowlist, hosts)],
        )

    rows, denied, accepted = run_in_environment(read_lists)
    if output_format == "nft":
        typer.echo(nft_ruleset([*(row.network for row in rows), *denied], accepted))
        return
    entries = [_ban_as_json(row) for row in rows] + [
        {"network": network, "cause": "DENYLIST"} for network in denied
    ]
    if output_format == "json":
        print_json(entries)
        return
    names = ("network", "cause", "failures", "since", "until", "reason")
    print_table(names, [[str(entry.get(name) or "") for name in names] for entry in entries])


def add_bans(networks: list[str], duration: str | None, reason: str | None) -> None:
    """Ban networks."""
    length = parse_duration("--for", duration)

    async def add(environment: Environment, _settings: Settings) -> list[int]:
        return await bans.add_bans(root_context(environment), networks, length, reason)

    typer.echo(f"Banned networks: {len(run_in_environment(add))}.")


def lift_bans_and_delete_failure_counts(networks: list[str], reason: str | None) -> None:
    """Lift bans and delays of networks."""

    async def lift(environment: Environment, _settings: Settings) -> bans.LiftedBans:
        return await bans.lift_bans(root_context(environment), networks, reason)

    lifted = run_in_environment(lift)
    typer.echo(
        f"Lifted bans: {len(lifted.ban_ids)}. Deleted counts of failures: {lifted.penalty_count}."
    )


def nft_ruleset(refused: Sequence[str], accepted: Sequence[str]) -> str:
    """Return a file for `nft -f` that replaces a table: it drops packets of refused networks.

    Packets of accepted networks pass, as they do in the server.
    """
    lines = [
        f"table {NFT_TABLE}",
        f"delete table {NFT_TABLE}",
        f"table {NFT_TABLE} {{",
        *_nft_sets("refused", refused),
        *_nft_sets("accepted", accepted),
        "  chain input {",
        "    type filter hook input priority filter - 1; policy accept;",
        "    ip saddr @accepted4 accept",
        "    ip6 saddr @accepted6 accept",
        "    ip saddr @refused4 drop",
        "    ip6 saddr @refused6 drop",
        "  }",
        "}",
    ]
    return "\n".join(lines)


def _nft_sets(name: str, networks: Sequence[str]) -> list[str]:
    """Return the lines of two sets, of IPv4 and of IPv6. nft refuses overlapping elements."""
    parsed = [ip_network(network) for network in networks]
    lines: list[str] = []
    for version in (4, 6):
        family: Any = [network for network in parsed if network.version == version]
        elements = ", ".join(map(str, collapse_addresses(family)))
        kind = f"ipv{version}_addr"
        lines += [f"  set {name}{version} {{", f"    type {kind}; flags interval;"]
        lines += [f"    elements = {{ {elements} }}"] if elements else []
        lines.append("  }")
    return lines


def _ban_as_json(ban_row: ColumnRow) -> dict[str, Any]:
    return {
        "network": ban_row.network,
        "cause": ban_row.cause,
        "failures": ban_row.failure_count,
        "since": ban_row.started_at.isoformat(),
        "until": ban_row.ends_at.isoformat(),
        "reason": ban_row.reason,
    }

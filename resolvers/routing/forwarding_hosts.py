"""Create and delete forwarding hosts, by a name that is resolved at once. For an ADMIN."""

from collections.abc import Sequence
from contextlib import suppress
from ipaddress import ip_network
from typing import Any

from sqlalchemy import delete, insert, select, update
from sqlmodel import col

from mail.addresses.address_syntax import ascii_domain, normalize_and_validate_domain
from mail.authentication.sender_networks import (
    MIN_PREFIX_LENGTH,
    find_sender_networks_or_raise,
    network_text,
)
from models.errors import Conflict, Forbidden, InvalidInput
from models.events.event_types import ids_by_event_type
from models.events.journal import PLATFORM
from models.routing.tables import ForwardingHost
from models.store.columns import ColumnRow, select_columns
from models.validation_constraints import ValidationConstraint
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.context import Context
from resolvers.routing.loaders import (
    FORWARDERS,
    require_visible_routing_rows,
    select_visible_routing_rows,
)
from resolvers.routing.mutations import audit_log_values, require_below_row_limit


def parse_network_or_none(text: str) -> str | None:
    """Return an IP address or network in normal form, or None if the text is a name.

    Raises InvalidInput if the network is too large.
    """
    try:
        network = ip_network(text.strip(), strict=False)
    except ValueError:
        return None
    if network.prefixlen < MIN_PREFIX_LENGTH[network.version]:
        message = f"The prefix length must be at least /{MIN_PREFIX_LENGTH[network.version]}."
        raise InvalidInput(message, constraint=ValidationConstraint.RANGE, path=["hostname"])
    ipv4_address = getattr(network.network_address, "ipv4_mapped", None)
    return str(ipv4_address) if ipv4_address else network_text(network)


def normalize_network(network: str) -> str:
    """Return an IP address or network in the form it is stored."""
    return network_text(ip_network(network))


async def create_or_update_forwarding_hosts(
    ctx: Context, name_or_network: str, *, filter_spam: bool
) -> list[int]:
    """Create a forwarding host for each address and network that a name sends from.

    Returns their ids. Existing hosts get the new source. Raises InvalidInput, LimitReached,
    Conflict if nothing would change, and Forbidden for a name inside a transaction, which would
    stay open during the DNS queries.
    """
    network = parse_network_or_none(name_or_network)
    if network is None:
        if ctx.is_writing:
            raise Forbidden("An @atomic request can't query DNS.")
        source_name = normalize_and_validate_domain(name_or_network, path="hostname")
        hosts = await find_sender_networks_or_raise(
            ctx.environment.options.dns_resolver, ascii_domain(source_name)
        )
    else:
        source_name, hosts = network, [network]
    statement = select(*select_columns(ForwardingHost)).where(col(ForwardingHost.host).in_(hosts))
    now = ctx.environment.now()
    async with ctx.write_session(PLATFORM) as session:
        rows_by_host = {row.host: row for row in await ctx.read(statement)}
        new_hosts = [host for host in hosts if host not in rows_by_host]
        rows_to_update = [
            row
            for row in rows_by_host.values()
            if (row.source, row.filter_spam) != (source_name, filter_spam)
        ]
        if not new_hosts and not rows_to_update:
            raise Conflict(
                "All addresses of the host are forwarding hosts already.", path=["hostname"]
            )
        await require_below_row_limit(ctx, FORWARDERS, len(new_hosts))
        common_values: dict[str, Any] = {"source": source_name, "filter_spam": filter_spam}
        ids_by_host = {host: ctx.environment.new_id() for host in new_hosts} | {
            row.host: row.id for row in rows_to_update
        }
        new_rows = [
            {"id": ids_by_host[host], "host": host, "created_at": now, **common_values}
            for host in new_hosts
        ]
        connection = await session.connection()
        if new_rows:
            await connection.execute(insert(ForwardingHost), new_rows)
        if rows_to_update:
            update_statement = update(ForwardingHost).where(
                col(ForwardingHost.id).in_([r.id for r in rows_to_update])
            )
            await connection.execute(update_statement.values(common_values))
        events = FORWARDERS.events
        types_by_id = {ids_by_host[host]: events.created for host in new_hosts}
        types_by_id |= {row.id: events.updated for row in rows_to_update}
        await ctx.record_changes(session, {PLATFORM: ids_by_event_type(types_by_id)})
        entries = (
            _create_log_entry(host, key, common_values, rows_by_host.get(host))
            for host, key in ids_by_host.items()
        )
        await audit_log.insert_audit_log_entries(ctx, session, *entries)
    return [ids_by_host.get(host) or rows_by_host[host].id for host in hosts]


def _create_log_entry(
    host: str, host_id: int, common_values: dict[str, Any], before: ColumnRow | None
) -> NewAuditLogEntry:
    values_after = {
        "host": host,
        "source": common_values["source"],
        "filterSpam": common_values["filter_spam"],
    }
    values_before = None if before is None else _audit_log_values(before)
    return NewAuditLogEntry(
        "forwardingHostCreate", "ForwardingHost", host_id, before=values_before, after=values_after
    )


def _audit_log_values(host_row: ColumnRow) -> dict[str, Any]:
    return audit_log_values(FORWARDERS, host_row)


async def load_ids_by_host(ctx: Context, hosts: Sequence[str]) -> dict[str, int]:
    """Load the ids of forwarding hosts by address or network, with one statement.

    A host that is invalid or has no row is missing in the result.
    """
    stored_forms: dict[str, str] = {}
    for host in hosts:
        with suppress(ValueError):
            stored_forms[host] = normalize_network(host)
    statement = select_visible_routing_rows(ctx, FORWARDERS, {"host"}).where(
        col(ForwardingHost.host).in_(stored_forms.values())
    )
    ids = {row.host: int(row.id) for row in await ctx.read(statement)}
    return {text: ids[form] for text, form in stored_forms.items() if form in ids}


async def delete_forwarding_hosts(ctx: Context, ids: Sequence[int]) -> list[int]:
    """Delete forwarding hosts, all or none; return their ids, each once.

    Raises InvalidInput if nothing is given, NotFound if one does not exist.
    """
    async with ctx.write_session(PLATFORM) as session:
        rows = await require_visible_routing_rows(ctx, FORWARDERS, ids)
        row_ids = [row.id for row in rows]
        connection = await session.connection()
        await connection.execute(delete(ForwardingHost).where(col(ForwardingHost.id).in_(row_ids)))
        await ctx.record_change(session, PLATFORM, FORWARDERS.events.deleted, sorted(row_ids))
        target_kind = "ForwardingHost"
        entries = (
            NewAuditLogEntry(
                "forwardingHostDelete", target_kind, row.id, before=_audit_log_values(row)
            )
            for row in rows
        )
        await audit_log.insert_audit_log_entries(ctx, session, *entries)
    return row_ids

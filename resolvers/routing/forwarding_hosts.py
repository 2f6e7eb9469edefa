"""Create and delete forwarding hosts, by a name that is resolved at once. For an ADMIN."""

from collections.abc import Sequence
from ipaddress import ip_network
from typing import Any

from sqlalchemy import delete, insert, select, update
from sqlmodel import col

from mail.addresses.address_syntax import ascii_domain, checked_domain
from mail.authentication.sender_networks import WIDEST, networks, shown
from models.errors import Conflict, Forbidden, Invalid, NotFound
from models.events.journal import PLATFORM
from models.routing.tables import ForwardingHost
from models.store.columns import Picked, picked
from resolvers.admin import admin_log
from resolvers.admin.admin_log import Done
from resolvers.context import Context
from resolvers.routing.loaders import FORWARDERS, rows_of, seen
from resolvers.routing.mutations import facts, room

SOURCE = 255  # characters


def literal(text: str) -> str | None:
    """Return an IP address or network in normal form, or None if the text is a name.

    Raises InvalidInput if the network is too large.
    """
    try:
        found = ip_network(text.strip(), strict=False)
    except ValueError:
        return None
    if found.prefixlen < WIDEST[found.version]:
        words = f"at least /{WIDEST[found.version]}"
        raise Invalid(words, constraint="range", path=["hostname"])
    mapped = getattr(found.network_address, "ipv4_mapped", None)
    return str(mapped) if mapped else shown(found)


def kept(network: str) -> str:
    """Return an IP address or network in the form it is stored."""
    return shown(ip_network(network))


async def create(ctx: Context, name: str, *, filter_spam: bool) -> list[int]:
    """Create a forwarding host for each address and network that a name sends from.

    Returns their ids. Existing hosts get the new source. Raises InvalidInput, LimitReached,
    Conflict if nothing would change, and Forbidden for a name inside a transaction, which would
    stay open during the DNS queries.
    """
    one = literal(name)
    if one is None:
        if ctx.writing:
            raise Forbidden("a look-up in DNS takes no part in a unit")
        source = checked_domain(name, path="hostname")
        hosts = await networks(ctx.world.options.dns_resolver, ascii_domain(source))
    else:
        source, hosts = one, [one]
    asked = select(*picked(ForwardingHost)).where(col(ForwardingHost.host).in_(hosts))
    now = ctx.world.now()
    async with ctx.write(PLATFORM) as session:
        there = {row.host: row for row in await ctx.read(asked)}
        new = [host for host in hosts if host not in there]
        stale = [
            row for row in there.values() if (row.source, row.filter_spam) != (source, filter_spam)
        ]
        if not new and not stale:
            raise Conflict("all of its addresses are there already", path=["hostname"])
        await room(ctx, FORWARDERS, len(new))
        same: dict[str, Any] = {"source": source, "filter_spam": filter_spam}
        keys = {host: ctx.world.key() for host in new} | {row.host: row.id for row in stale}
        made = [{"id": keys[host], "host": host, "created_at": now, **same} for host in new]
        connection = await session.connection()
        if made:
            await connection.execute(insert(ForwardingHost), made)
        if stale:
            these = update(ForwardingHost).where(col(ForwardingHost.id).in_([r.id for r in stale]))
            await connection.execute(these.values(same))
        await ctx.record(session, PLATFORM, FORWARDERS.kind, sorted(keys.values()))
        done = (_made(host, key, same, there.get(host)) for host, key in keys.items())
        await admin_log.note(ctx, session, *done)
    return [keys.get(host) or there[host].id for host in hosts]


def _made(host: str, key: int, same: dict[str, Any], before: Picked | None) -> Done:
    told = {"host": host, "source": same["source"], "filterSpam": same["filter_spam"]}
    old = None if before is None else _facts(before)
    return Done("forwardingHostCreate", "ForwardingHost", key, before=old, after=told)


def _facts(row: Picked) -> dict[str, Any]:
    return facts(FORWARDERS, row)


async def remove(ctx: Context, ids: Sequence[int], hosts: Sequence[str]) -> list[int]:
    """Delete the forwarding hosts with these ids or hosts, all or none; return their ids.

    Raises InvalidInput if nothing is given, NotFound if one does not exist.
    """
    if not ids and not hosts:
        raise Invalid("name at least one", constraint="required", path=["ids"])
    named = rows_of(ctx, FORWARDERS).where(col(ForwardingHost.host).in_(hosts))
    async with ctx.write(PLATFORM) as session:
        rows = {row.id: row for row in await seen(ctx, FORWARDERS, ids)} if ids else {}
        found = {row.host: row for row in await ctx.read(named)} if hosts else {}
        for index, host in enumerate(hosts):
            if host not in found:
                raise NotFound(host, path=["hosts"], index=index)
        rows |= {row.id: row for row in found.values()}
        connection = await session.connection()
        await connection.execute(delete(ForwardingHost).where(col(ForwardingHost.id).in_(rows)))
        await ctx.record(session, PLATFORM, FORWARDERS.kind, sorted(rows))
        kind = "ForwardingHost"
        done = (
            Done("forwardingHostDelete", kind, row.id, before=_facts(row)) for row in rows.values()
        )
        await admin_log.note(ctx, session, *done)
    return list(rows)

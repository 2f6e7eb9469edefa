"""Create, list, rename and delete domains for the command line."""

from collections.abc import Mapping, Sequence
from typing import Any

from graph.types.global_ids import encode
from merganser.commands import dkim_key_operations
from merganser.errors import Trouble
from merganser.server.environment_factory import owner
from models.runtime.environment import World
from models.store.columns import Picked
from models.store.keyset_pages import MOST, Ask, Cursor
from resolvers.context import Context
from resolvers.domains import dns_records
from resolvers.domains import listing as domain_listing
from resolvers.domains import loaders as domain_loaders
from resolvers.domains import mutations as domain_mutations
from resolvers.domains import rename as domain_rename
from resolvers.domains.dns_records import Question
from resolvers.domains.loaders import DomainWhere, Named
from resolvers.domains.mutations import Values
from resolvers.domains.rename import Renamed


async def add(
    environment: World, name: str, columns: Mapping[str, Any], *, with_key: bool
) -> tuple[str, list[dict[str, Any]]]:
    """Create a domain; return its global ID, and its DKIM keys as JSON values."""
    row = await domain_mutations.create(
        owner(environment), name, Values(columns), with_key=with_key
    )
    keys = await dkim_key_operations.listed(environment, row.name, check=False) if with_key else []
    return encode("Domain", row.id), keys


async def listed(environment: World) -> list[dict[str, Any]]:
    """Load all domains by name, with their counts and limits, as JSON values."""
    ctx, at, found = owner(environment), None, list[Any]()
    columns = {"active", "description", "tags", "user_count", "max_users", "address_count",
               "max_addresses", "quota_allocated", "quota", "backup_mx"}  # fmt: skip
    while True:
        ask = Ask("domains", MOST, at)
        page = await domain_loaders.pages(ctx, DomainWhere(), ask, columns)
        stored = await domain_listing.totals(ctx, [row.id for row in page.rows])
        found += zip(page.rows, stored, strict=True)
        if not page.next:
            break
        at = Cursor(ask.ordering, page.rows[-1].name, page.rows[-1].id)
    return [
        {
            "id": encode("Domain", row.id),
            "name": row.name,
            "description": row.description,
            "active": row.active,
            "tags": list(row.tags),
            "users": row.user_count,
            "max_users": row.max_users,
            "addresses": row.address_count,
            "max_addresses": row.max_addresses,
            "allocated": row.quota_allocated,
            "quota": row.quota,
            "used": total.bytes,
            "messages": total.messages,
            "backup_mx": row.backup_mx,
        }
        for row, total in found
    ]


async def rename(environment: World, old: str, new: str, *, dry_run: bool) -> Renamed:
    """Rename a domain, or only report what would change. Raises CommandError if there is none."""
    ctx = owner(environment)
    await _found(ctx, old)
    async with ctx.together(keep=not dry_run):
        return await domain_rename.rename(ctx, old, new)


async def delete(environment: World, names: Sequence[str], *, cascade: bool) -> int:
    """Delete domains in one transaction; return their number.

    Raises CommandError if one is missing.
    """
    ctx = owner(environment)
    refs = [Named(id=(await _found(ctx, name)).id) for name in names]
    return len(await domain_mutations.remove(ctx, refs, cascade=cascade))


async def _found(ctx: Context, name: str) -> Picked:
    """Load a domain by name. Raises CommandError if there is none."""
    row = await domain_loaders.named(ctx, name)
    if row is None:
        raise Trouble(f"there is no domain {name}: `merganser domain list` shows all")
    return row


async def records(environment: World, name: str, *, check: bool) -> list[dict[str, Any]]:
    """Load the DNS records that a domain needs, as JSON values.

    With `queries_dns` each has what DNS answers now. Raises CommandError if there is no such
    domain.
    """
    ctx = owner(environment)
    row = await _found(ctx, name)
    (found,) = await dns_records.records(ctx, [Question.of(row, check=check)])
    return [
        {
            "type": one.advice.type,
            "name": one.advice.name,
            "value": one.advice.value,
            "purpose": one.advice.purpose,
            "state": one.judged.state.value,
            "found": list(one.judged.found),
            "problem": one.judged.problem,
        }
        for one in found
    ]

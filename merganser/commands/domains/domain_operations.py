"""Create, list, rename and delete domains for the command line."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from graph.types.global_ids import encode
from merganser.commands.domains import dkim_key_operations
from merganser.commands.domains.domain_lookup import load_domain
from merganser.server.environment_factory import root_context
from models.runtime.environment import Environment
from models.store.keyset_pages import MAX_PAGE_SIZE, Cursor, PageRequest
from resolvers.domains import listing as domain_listing
from resolvers.domains import loaders as domain_loaders
from resolvers.domains import mutations as domain_mutations
from resolvers.domains import rename as domain_rename
from resolvers.domains.loaders import DomainConditions, DomainIdOrName
from resolvers.domains.mutations import DomainValues
from resolvers.domains.rename import DomainRenameResult
from resolvers.users.limit_values import limit_or_none


class DomainWithKeys(NamedTuple):
    """The global id of a new domain, and its DKIM keys as JSON values."""

    global_id: str
    dkim_keys: list[dict[str, Any]]


async def create_domain(
    environment: Environment, name: str, settings: Mapping[str, Any], *, creates_dkim_key: bool
) -> DomainWithKeys:
    """Create a domain; return its global ID, and its DKIM keys as JSON values."""
    row = await domain_mutations.create_domain(
        root_context(environment), name, DomainValues(settings), with_dkim_key=creates_dkim_key
    )
    keys = (
        await dkim_key_operations.load_dkim_keys_as_json(environment, row.name, queries_dns=False)
        if creates_dkim_key
        else []
    )
    return DomainWithKeys(encode("Domain", row.id), keys)


async def load_domains_as_json(environment: Environment) -> list[dict[str, Any]]:
    """Load all domains by name, with their counts and limits, as JSON values."""
    ctx, cursor, domains = root_context(environment), None, list[Any]()
    columns = {"active", "description", "tags", "user_count", "max_users", "address_count",
               "max_addresses", "quota_allocated", "quota", "backup_mx"}  # fmt: skip
    while True:
        page_request = PageRequest("domains", MAX_PAGE_SIZE, cursor)
        page = await domain_loaders.read_domain_page(ctx, DomainConditions(), page_request, columns)
        totals = await domain_listing.load_storage_of_administered_domains(
            ctx, [row.id for row in page.rows]
        )
        domains += zip(page.rows, totals, strict=True)
        if not page.has_next:
            break
        cursor = Cursor(page_request.ordering, page.rows[-1].name, page.rows[-1].id)
    return [
        {
            "id": encode("Domain", row.id),
            "name": row.name,
            "description": row.description,
            "active": row.active,
            "tags": list(row.tags),
            "users": row.user_count,
            "max_users": limit_or_none(row.max_users),
            "addresses": row.address_count,
            "max_addresses": limit_or_none(row.max_addresses),
            "allocated": row.quota_allocated,
            "quota": limit_or_none(row.quota),
            "used": total.size,
            "messages": total.message_count,
            "backup_mx": row.backup_mx,
        }
        for row, total in domains
    ]


async def rename_domain(
    environment: Environment, old_name: str, new_name: str, *, dry_run: bool
) -> DomainRenameResult:
    """Rename a domain, or only report what would change. Raises CommandError if there is none."""
    ctx = root_context(environment)
    await load_domain(ctx, old_name)
    async with ctx.combined_transaction(commit=not dry_run):
        return await domain_rename.rename_domain(ctx, DomainIdOrName(name=old_name), new_name)


async def delete_domains(
    environment: Environment, names: Sequence[str], *, deletes_content: bool
) -> int:
    """Delete domains in one transaction; return their number.

    Raises CommandError if one is missing.
    """
    ctx = root_context(environment)
    refs = [DomainIdOrName(id=(await load_domain(ctx, name)).id) for name in names]
    return len(await domain_mutations.delete_domains(ctx, refs, cascade=deletes_content))

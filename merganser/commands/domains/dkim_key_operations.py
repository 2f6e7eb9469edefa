"""List, create, rotate and activate DKIM keys for the command line."""

from collections.abc import Sequence
from typing import Any

from graph.types.global_ids import encode
from merganser.errors import CommandError
from merganser.server.environment_factory import root_context
from models.domains.dkim_keys import DkimAlgorithm, DkimKeyState
from models.runtime.environment import Environment
from models.store.keyset_pages import MAX_PAGE_SIZE, Cursor, PageRequest
from resolvers.context import Context
from resolvers.domains import dkim_key_mutations, dkim_keys, dkim_rotation
from resolvers.domains.dkim_domains import resolve_dkim_domains
from resolvers.domains.dkim_key_mutations import NewDkimKey
from resolvers.domains.dkim_keys import DkimRecordKey
from resolvers.domains.dkim_rotation import DkimRotationValues


async def list_keys(
    environment: Environment, domain_name: str | None, *, queries_dns: bool
) -> list[dict[str, Any]]:
    """Load all DKIM keys or those of a domain, with their DNS records, as JSON values.

    With `queries_dns` each has the state of its record in DNS.
    """
    ctx, cursor, rows = root_context(environment), None, list[Any]()
    while True:
        page_request = PageRequest("dkim-keys", MAX_PAGE_SIZE, cursor)
        page = await dkim_keys.read_key_page(ctx, None, page_request, dkim_keys.READABLE_COLUMNS)
        rows += page.rows
        if not page.has_next:
            break
        cursor = Cursor(page_request.ordering, page.rows[-1].domain, page.rows[-1].id)
    if domain_name is not None:
        (domain,) = await resolve_dkim_domains(ctx, [domain_name])
        rows = [row for row in rows if row.domain == domain.name]
    return await _keys_as_json(ctx, rows, queries_dns=queries_dns)


async def create_keys(
    environment: Environment, domain_names: Sequence[str], new_key: NewDkimKey
) -> list[dict[str, Any]]:
    """Create DKIM keys that the domains sign with at once; return them with their DNS records."""
    ctx = root_context(environment)
    return await _load_keys_as_json(
        ctx, await dkim_key_mutations.set_active_keys(ctx, domain_names, new_key)
    )


async def rotate_keys(
    environment: Environment, domain_names: Sequence[str]
) -> list[dict[str, Any]]:
    """Create the next DKIM keys of the domains, and return them with their DNS records."""
    ctx = root_context(environment)
    return await _load_keys_as_json(
        ctx,
        await dkim_rotation.create_pending_successor_keys(ctx, domain_names, DkimRotationValues()),
    )


async def activate_key(environment: Environment, domain_name: str, selector: str) -> None:
    """Let a domain sign with the key of this selector. Raises CommandError if there is none."""
    ctx = root_context(environment)
    (domain,) = await resolve_dkim_domains(ctx, [domain_name])
    key_ids = [
        row.id
        for row in await dkim_key_mutations.load_keys_of_domains(ctx, [domain])
        if row.selector == selector
    ]
    if not key_ids:
        raise CommandError(
            f"{domain_name} has no key {selector}: `merganser domain dkim-list` shows all"
        )
    await dkim_rotation.activate_keys(ctx, key_ids)


async def _load_keys_as_json(ctx: Context, key_ids: list[int]) -> list[dict[str, Any]]:
    return await _keys_as_json(
        ctx,
        [row for row in await dkim_keys.load_visible_keys_by_id(ctx, key_ids) if row],
        queries_dns=False,
    )


async def _keys_as_json(
    ctx: Context, rows: Sequence[Any], *, queries_dns: bool
) -> list[dict[str, Any]]:
    dns_records = [dkim_keys.expected_record(DkimRecordKey.from_row(row)) for row in rows]
    dns_states = (
        await dkim_keys.query_record_states(ctx, [DkimRecordKey.from_row(row) for row in rows])
        if queries_dns
        else []
    )
    results = []
    for index, (row, advice) in enumerate(zip(rows, dns_records, strict=True)):
        results.append(
            {
                "id": encode("DkimKey", row.id),
                "domain": row.domain,
                "selector": row.selector,
                "algorithm": DkimAlgorithm(row.algorithm).value,
                "bits": row.key_size,
                "state": DkimKeyState(row.state).value,
                "dns": dns_states[index].value if dns_states else None,
                "name": advice.name,
                "record": advice.value,
            }
        )
    return results

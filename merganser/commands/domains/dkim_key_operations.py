"""List, create, rotate and activate DKIM keys for the command line."""

from collections.abc import Sequence
from typing import Any

from graph.types.global_ids import encode
from merganser.errors import CommandError
from merganser.server.environment_factory import root_context
from models.domains.dkim_keys import DkimAlgorithm, DkimKeyState
from models.runtime.environment import Environment
from models.store.keyset_pages import MAX_PAGE_SIZE, PageRequest
from resolvers.context import Context
from resolvers.domains import dkim_key_mutations, dkim_keys, dkim_rotation
from resolvers.domains.dkim_domains import require_administered_dkim_domains
from resolvers.domains.dkim_key_mutations import NewDkimKey
from resolvers.domains.dkim_keys import DkimKeyOrder, DkimRecordKey
from resolvers.domains.dkim_rotation import DkimRotationValues
from resolvers.domains.loaders import DomainIdOrName


async def load_dkim_keys_as_json(
    environment: Environment, domain_name: str | None, *, queries_dns: bool
) -> list[dict[str, Any]]:
    """Load all DKIM keys or those of a domain, with their DNS records, as JSON values.

    With `queries_dns` each has the state of its record in DNS.
    """
    ctx, cursor, rows = root_context(environment), None, list[Any]()
    while True:
        page_request = PageRequest("dkim-keys", MAX_PAGE_SIZE, cursor)
        page = await dkim_keys.read_visible_key_page(
            ctx, None, page_request, dkim_keys.READABLE_COLUMNS
        )
        rows += page.rows
        if not page.has_next:
            break
        list_order = dkim_keys.LIST_ORDERS[DkimKeyOrder.DOMAIN_ASC]
        cursor = list_order.cursor_of_row(page.rows[-1], page_request.ordering)
    if domain_name is not None:
        (domain,) = await require_administered_dkim_domains(ctx, [DomainIdOrName(name=domain_name)])
        rows = [row for row in rows if row.domain == domain.name]
    return await _dkim_keys_as_json(ctx, rows, queries_dns=queries_dns)


def _domain_references(names: Sequence[str]) -> list[DomainIdOrName]:
    return [DomainIdOrName(name=name) for name in names]


async def create_active_dkim_keys(
    environment: Environment, domain_names: Sequence[str], new_key: NewDkimKey
) -> list[dict[str, Any]]:
    """Create DKIM keys that the domains sign with at once; return them with their DNS records."""
    ctx = root_context(environment)
    return await _load_dkim_keys_as_json_by_id(
        ctx,
        await dkim_key_mutations.set_active_keys(ctx, _domain_references(domain_names), new_key),
    )


async def create_next_dkim_keys(
    environment: Environment, domain_names: Sequence[str]
) -> list[dict[str, Any]]:
    """Create the next DKIM keys of the domains, and return them with their DNS records."""
    ctx = root_context(environment)
    return await _load_dkim_keys_as_json_by_id(
        ctx,
        await dkim_rotation.create_pending_successor_keys(
            ctx, _domain_references(domain_names), DkimRotationValues()
        ),
    )


async def activate_dkim_key(environment: Environment, domain_name: str, selector: str) -> None:
    """Let a domain sign with the key of this selector. Raises CommandError if there is none."""
    ctx = root_context(environment)
    (domain,) = await require_administered_dkim_domains(ctx, [DomainIdOrName(name=domain_name)])
    key_ids = [
        row.id
        for row in await dkim_key_mutations.load_keys_of_domains(ctx, [domain])
        if row.selector == selector
    ]
    if not key_ids:
        raise CommandError(
            f"DKIM key not found: {selector} of {domain_name}. `merganser domain "
            "dkim-list` lists all keys."
        )
    await dkim_rotation.activate_dkim_keys(ctx, key_ids)


async def _load_dkim_keys_as_json_by_id(ctx: Context, key_ids: list[int]) -> list[dict[str, Any]]:
    return await _dkim_keys_as_json(
        ctx,
        [row for row in await dkim_keys.load_visible_keys_by_id(ctx, key_ids) if row],
        queries_dns=False,
    )


async def _dkim_keys_as_json(
    ctx: Context, rows: Sequence[Any], *, queries_dns: bool
) -> list[dict[str, Any]]:
    dns_records = [dkim_keys.expected_record(DkimRecordKey.from_row(row)) for row in rows]
    dns_states = (
        await dkim_keys.query_record_states_unless_writing(
            ctx, [DkimRecordKey.from_row(row) for row in rows]
        )
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

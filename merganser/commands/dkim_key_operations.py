"""List, create, rotate and activate DKIM keys for the command line."""

from collections.abc import Sequence
from typing import Any

from graph.types.global_ids import encode
from merganser.errors import Trouble
from merganser.server.environment_factory import owner
from models.domains.dkim_keys import DkimAlgorithm, DkimKeyState
from models.runtime.environment import World
from models.store.keyset_pages import MOST, Ask, Cursor
from resolvers.context import Context
from resolvers.domains import dkim_key_mutations, dkim_keys, dkim_rotation
from resolvers.domains.dkim_key_mutations import NewKey
from resolvers.domains.dkim_keys import Record
from resolvers.domains.dkim_rotation import NewKeys


async def listed(environment: World, name: str | None, *, check: bool) -> list[dict[str, Any]]:
    """Load all DKIM keys or those of a domain, with their DNS records, as JSON values.

    With `queries_dns` each has the state of its record in DNS.
    """
    ctx, at, rows = owner(environment), None, list[Any]()
    while True:
        ask = Ask("dkim-keys", MOST, at)
        page = await dkim_keys.page(ctx, None, ask, dkim_keys.SHOWN)
        rows += page.rows
        if not page.next:
            break
        at = Cursor(ask.ordering, page.rows[-1].domain, page.rows[-1].id)
    if name is not None:
        (domain,) = await dkim_key_mutations.chosen(ctx, [name])
        rows = [row for row in rows if row.domain == domain.name]
    return await _shown(ctx, rows, check=check)


async def make(environment: World, names: Sequence[str], new: NewKey) -> list[dict[str, Any]]:
    """Create DKIM keys that the domains sign with at once; return them with their DNS records."""
    ctx = owner(environment)
    return await _made(ctx, await dkim_key_mutations.put(ctx, names, new))


async def rotate(environment: World, names: Sequence[str]) -> list[dict[str, Any]]:
    """Create the next DKIM keys of the domains, and return them with their DNS records."""
    ctx = owner(environment)
    return await _made(ctx, await dkim_rotation.rotate(ctx, names, NewKeys()))


async def activate(environment: World, name: str, selector: str) -> None:
    """Let a domain sign with the key of this selector. Raises CommandError if there is none."""
    ctx = owner(environment)
    (domain,) = await dkim_key_mutations.chosen(ctx, [name])
    key_ids = [
        row.id
        for row in await dkim_key_mutations.of_places(ctx, [domain])
        if row.selector == selector
    ]
    if not key_ids:
        raise Trouble(f"{name} has no key {selector}: `merganser domain dkim-list` shows all")
    await dkim_rotation.activate(ctx, key_ids)


async def _made(ctx: Context, key_ids: list[int]) -> list[dict[str, Any]]:
    return await _shown(
        ctx, [row for row in await dkim_keys.by_ids(ctx, key_ids) if row], check=False
    )


async def _shown(ctx: Context, rows: Sequence[Any], *, check: bool) -> list[dict[str, Any]]:
    advised = [dkim_keys.advised(Record.of(row)) for row in rows]
    found = await dkim_keys.states(ctx, [Record.of(row) for row in rows]) if check else []
    shown = []
    for index, (row, advice) in enumerate(zip(rows, advised, strict=True)):
        shown.append(
            {
                "id": encode("DkimKey", row.id),
                "domain": row.domain,
                "selector": row.selector,
                "algorithm": DkimAlgorithm(row.algorithm).value,
                "bits": row.key_size,
                "state": DkimKeyState(row.state).value,
                "dns": found[index].value if found else None,
                "name": advice.name,
                "record": advice.value,
            }
        )
    return shown

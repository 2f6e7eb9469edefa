"""Keys that domains sign with, as an operator at the machine lists, makes and rotates them."""

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


async def listed(world: World, name: str | None, *, check: bool) -> list[dict[str, Any]]:
    """All keys, or those of a domain, with their records; with `check`, as DNS has them."""
    ctx, at, rows = owner(world), None, list[Any]()
    while True:
        ask = Ask("dkim-keys", MOST, at)
        page = await dkim_keys.page(ctx, None, ask, dkim_keys.SHOWN)
        rows += page.rows
        if not page.next:
            break
        at = Cursor(ask.ordering, page.rows[-1].domain, page.rows[-1].id)
    if name is not None:
        (place,) = await dkim_key_mutations.chosen(ctx, [name])
        rows = [row for row in rows if row.domain == place.name]
    return await _shown(ctx, rows, check=check)


async def make(world: World, names: Sequence[str], new: NewKey) -> list[dict[str, Any]]:
    """Have these domains sign with new keys at once; their records."""
    ctx = owner(world)
    return await _made(ctx, await dkim_key_mutations.put(ctx, names, new))


async def rotate(world: World, names: Sequence[str]) -> list[dict[str, Any]]:
    """Make keys to follow those of these domains; their records."""
    ctx = owner(world)
    return await _made(ctx, await dkim_rotation.rotate(ctx, names, NewKeys()))


async def activate(world: World, name: str, selector: str) -> None:
    """Have a domain sign with the key of this selector from now on; Trouble where it has none."""
    ctx = owner(world)
    (place,) = await dkim_key_mutations.chosen(ctx, [name])
    keys = [
        row.id
        for row in await dkim_key_mutations.of_places(ctx, [place])
        if row.selector == selector
    ]
    if not keys:
        raise Trouble(f"{name} has no key {selector}: `merganser domain dkim-list` shows all")
    await dkim_rotation.activate(ctx, keys)


async def _made(ctx: Context, keys: list[int]) -> list[dict[str, Any]]:
    return await _shown(ctx, [row for row in await dkim_keys.by_ids(ctx, keys) if row], check=False)


async def _shown(ctx: Context, rows: Sequence[Any], *, check: bool) -> list[dict[str, Any]]:
    advised = [dkim_keys.advised(Record.of(row)) for row in rows]
    found = await dkim_keys.states(ctx, [Record.of(row) for row in rows]) if check else []
    shown = []
    for nth, (row, advice) in enumerate(zip(rows, advised, strict=True)):
        shown.append(
            {
                "id": encode("DkimKey", row.id),
                "domain": row.domain,
                "selector": row.selector,
                "algorithm": DkimAlgorithm(row.algorithm).value,
                "bits": row.key_size,
                "state": DkimKeyState(row.state).value,
                "dns": found[nth].value if found else None,
                "name": advice.name,
                "record": advice.value,
            }
        )
    return shown

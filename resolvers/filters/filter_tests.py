"""A dry run of an account's filters on a message."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mail.filters import filter_compiler
from mail.filters.filter_compiler import Followed, Looked
from mail.mime import split
from mail.sieve import Letter
from models.errors import Invalid, NotFound, check_limit
from models.store.columns import Picked
from resolvers.context import Context
from resolvers.filters import descriptions
from resolvers.filters import loaders as filter_loaders
from resolvers.messages import content

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Tested:
    """A filter, whether it matches a message, and descriptions of what it would do."""

    row: Picked
    fits: bool
    acts: Sequence[str]


async def test(ctx: Context, user_id: int, message_id: int | None, raw: str | None) -> list[Tested]:
    """Run the filters of an account, also inactive ones, on a message, without any effect.

    Inactive filters report a match but no actions. Raises InvalidInput unless one of message and
    raw is given, NotFound if the viewer can't see the message, and LimitReached.
    """
    rows = await filter_loaders.all_of(ctx, user_id)
    active = [filter_loaders.rule_of(row) for row in rows if row.active]
    others = [filter_loaders.rule_of(row) for row in rows if not row.active]

    def look(letter: Letter) -> dict[int, Followed]:
        looked = Looked(letter)
        found = filter_compiler.followed(active, looked, throughout=True)
        return {one.rule.id: one for one in found} | {
            rule.id: Followed(rule, looked.fits(rule.query)[0]) for rule in others
        }

    found = await _looked(ctx, message_id, raw, look)
    words = await filter_loaders.words_of(ctx, user_id)
    return [await _tested(ctx, row, found.get(row.id), words) for row in rows]


async def _tested(
    ctx: Context, row: Picked, one: Followed | None, words: descriptions.Words
) -> Tested:
    if one is None:
        return Tested(row, False, ())
    names = await filter_loaders.names_of(ctx, one.rule.action)
    pairs = (
        descriptions.done(words, name, one.rule.action[name], names.mailboxes) for name in one.acts
    )
    return Tested(row, one.fits, [f"{name}: {value}" for name, value in pairs])


async def _looked(
    ctx: Context, message_id: int | None, raw: str | None, look: Callable[[Letter], Found]
) -> Found:
    if (message_id is None) is (raw is None):
        raise Invalid("a message that is there, or raw", constraint="exclusive", path=["message"])
    if raw is None:
        stored = await content.one(ctx, message_id or 0)
        if stored is None:
            raise NotFound(str(message_id), path=["message"])
        tree = stored.structure
        return await stored.examine(lambda source: look(Letter(source, tree)), apart=True)
    try:
        given = raw.encode()
    except UnicodeEncodeError as half:
        raise Invalid("half a character", constraint="unicode", path=["raw"]) from half
    most = ctx.world.options.message_max
    check_limit(len(given), most, f"at most {most} bytes", path=["raw"])
    return await asyncio.to_thread(lambda: look(Letter(given, split(given))))

"""Import of filters from a Sieve script: all or none."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mail.filters import sieve_import
from mail.filters.sieve_import import Read, Reading
from mail.filters.sieve_to_actions import Folder
from mail.sieve import Problem, SieveError, limits
from models.errors import Invalid, NotFound, Refused, Several
from models.mailboxes.tables import SpecialUse
from resolvers.access import own
from resolvers.context import Context
from resolvers.filters import mutations as filter_mutations
from resolvers.filters.loaders import check_room
from resolvers.filters.mutations import ORDERS, Prepared
from resolvers.filters.sieve_script_mutations import check_size, not_compiled
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.loaders import Named
from resolvers.users.selection import managed_all

MUTATION = "filterImport"
USES = {f"\\{use.lower()}": use for use in SpecialUse if use is not SpecialUse.INBOX}


@dataclass(frozen=True, slots=True)
class Imported:
    """The IDs of the created filters in script order, and warnings about differences."""

    ids: Sequence[int]
    warnings: Sequence[Problem]


async def bring(ctx: Context, user_id: int | None, content: str, *, replace: bool) -> Imported:
    """Create filters from a script, after the user's filters or in place of them.

    Raises NotCompiled or InvalidInput for each mistake, LimitReached, Forbidden or NotFound.
    """
    owner = own(ctx) if user_id is None else user_id
    filter_mutations.permitted(ctx, [owner])
    check_size(content)
    reading = await asyncio.to_thread(_read, ctx, content)
    async with ctx.write(owner) as session:
        (user,) = await managed_all(ctx, [owner], path="user")
        if replace:
            await filter_mutations.clear(ctx, session, user, MUTATION)
        await check_room(ctx, owner, len(reading.filters), "content")
        made = await _prepared(ctx, owner, reading.filters)
        first = await filter_mutations.behind_all(ctx, owner)
        for nth, one in enumerate(made):
            one.row["order"] = min(first + nth, ORDERS[-1])
        await filter_mutations.store(ctx, session, user, made, MUTATION)
    return Imported([int(one.row["id"]) for one in made], reading.warnings)


def said(problem: Problem) -> str:
    """Return the message of a problem with its line and column."""
    return f"line {problem.line}, column {problem.column}: {problem.message}"


def _read(ctx: Context, content: str) -> Reading:
    options = ctx.world.options
    interval = int(options.autoreply_interval.total_seconds())
    try:
        found = sieve_import.read(content, interval=interval, most=options.filters_max)
    except SieveError as error:
        raise not_compiled(error) from error
    _settle([_fault(one, "unsupported") for one in found.faults])
    return found


def _fault(problem: Problem, constraint: str) -> Invalid:
    return Invalid(said(problem), constraint=constraint, path=["content"])


async def _prepared(ctx: Context, owner: int, filters: Sequence[Read]) -> list[Prepared]:
    """Validate the filters. Raises the first problems together."""
    mailboxes = await _boxes(ctx, owner, filters)
    made: list[Prepared] = []
    problems: list[Refused] = []
    for one in filters:
        action = {name: _named(value, mailboxes) for name, value in one.action.items()}
        given = {"name": one.name, "query": one.query, "action": action}
        try:
            made.append(await filter_mutations.prepared(ctx, owner, given))
        except (Invalid, NotFound, Several) as refusal:
            problems += [_placed(one, each) for each in refusal.each]
        if len(problems) >= limits.PROBLEMS:
            break
    _settle(problems)
    return made


def _settle(problems: Sequence[Refused]) -> None:
    if problems:
        raise Several(problems[: limits.PROBLEMS])


def _placed(read: Read, refusal: Refused) -> Refused:
    """Return the error with the position of its filter in the script."""
    constraint = refusal.constraint if isinstance(refusal, Invalid) else "unknown"
    return _fault(Problem(*read.place, refusal.message), constraint)


async def _boxes(ctx: Context, owner: int, filters: Sequence[Read]) -> dict[Folder, Named]:
    """Find the mailbox for each folder of a script. Raises InvalidInput for each missing one."""
    wanted = list(dict.fromkeys(folder for one in filters for folder in _folders(one)))
    names = {one: _names(one) for one in wanted}
    keys = list(dict.fromkeys((owner, name) for each in names.values() for name in each))
    rows = await mailbox_loaders.named(ctx, keys) if keys else []
    there = {name for (_, name), row in zip(keys, rows, strict=True) if row is not None}
    found: dict[Folder, Named] = {}
    problems: list[Refused] = []
    for folder in wanted:
        name = next((name for name in names[folder] if name in there), None)
        if name is None:
            words = f'there is no folder "{folder.path}"'
            problems.append(_fault(Problem(*folder.place, words), "unknown"))
        else:
            found[folder] = name
    _settle(problems)
    return found


def _folders(read: Read) -> list[Folder]:
    action = read.action
    return [*([action["mailbox"]] if "mailbox" in action else ()), *action.get("copyTo", ())]


def _names(folder: Folder) -> list[Named]:
    """Return the selectors for a folder; the first one that exists counts."""
    use = USES.get(folder.use or "")
    return [*([Named(special_use=use)] if use else ()), Named(path=folder.path)]


def _named(value: Any, boxes: Mapping[Folder, Named]) -> Any:
    """Return a part of an action with selectors in place of folders."""
    if isinstance(value, Folder):
        return boxes[value]
    if isinstance(value, list):
        return [boxes[one] if isinstance(one, Folder) else one for one in value]
    return value

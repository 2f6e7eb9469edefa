"""Store imported messages and settings in an account, batch by batch."""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import groupby
from typing import Any

from sqlalchemy import select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.archives.json_lines import Account, Told, Wrong, moment
from mail.archives.source_message import Found, Unusable
from mail.archives.zip_format import Broken
from mail.authentication.results_removal import own_names, stripped
from mail.mailboxes import paths
from mail.storage import message_insert, received_messages
from mail.storage.blobs.blob_writer import Gone, Kept
from mail.storage.blobs.compression import digest_of
from mail.storage.message_insert import Letter, Place, Placed, Way
from mail.text.storable_text import storable
from models.errors import Conflict, Invalid, LimitReached, NotFound, Refused
from models.mailboxes.tables import HOLDING_USES, SpecialUse
from models.messages.tables import Message
from models.runtime.environment import Turn, World
from models.spam.sender_rules import SenderAction
from models.store.columns import Picked, picked
from models.users.roles import UserPermission
from models.users.tables import User
from resolvers.admin import key_values
from resolvers.admin.key_values import Namespace, NewValue
from resolvers.autoreply import autoreplies
from resolvers.context import Context
from resolvers.filters import sieve_script_mutations, sieve_scripts, transfer
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes import metadata
from resolvers.mailboxes import update as mailbox_update
from resolvers.mailboxes.loaders import Named, NewMailboxes
from resolvers.mailboxes.update import Updated
from resolvers.messages import labels
from resolvers.messages.bulk import flags, row_changes
from resolvers.messages.labels import Words
from resolvers.spam import sender_rule_mutations
from resolvers.spam.sender_rule_mutations import NewRules, Whom
from resolvers.submission import identity_mutations
from resolvers.submission.identity_mutations import Said
from resolvers.transfer import import_mailboxes
from resolvers.users import custom_data
from resolvers.users import update as user_update
from resolvers.users.selection import MINE
from resolvers.users.update import Patch

TOGETHER = 32
WEIGHT = 4 << 20  # a larger message has a batch of its own
TOLD = 200  # skipped items listed in the result
LONGEST = 300  # characters
FACTS = ("name", "language", "retention", "spam_level", "meta_data")
FOREVER = timedelta(0)


@dataclass(slots=True)
class Outcome:
    """The result of an import over all its runs. Its fields are stored in the checkpoint."""

    stored: int = 0
    known: int = 0  # already in the mailbox
    skipped: list[list[str]] = field(default_factory=list)  # item and reason
    untold: int = 0  # skipped items that are not listed

    def refuse(self, what: str, why: str) -> None:
        """Add an item that is not imported, with the reason."""
        if len(self.skipped) < TOLD:
            self.skipped.append([storable(what[:LONGEST]), why])
        else:
            self.untold += 1


@dataclass(slots=True)
class Import:
    """A running import into one account."""

    ctx: Context  # its viewer is the user of the account
    user: Picked  # id, tenant_id
    into: str | None  # one mailbox for all; None: the paths of the source
    begun: int  # messages with lower IDs existed before the import
    boxes: dict[str, int]  # mailboxes by path
    outcome: Outcome
    dedupe: bool = True
    subscribe: bool = True  # to new mailboxes
    there: dict[int, Counter[bytes]] = field(default_factory=dict)  # shortened digests


@dataclass(frozen=True, slots=True)
class Ready:
    """A parsed message with its target mailbox and flags."""

    found: Found
    letter: Letter
    box: int
    flags: Sequence[str]
    meta_data: dict[str, Any] | None = None
    way: Way = Way.PUT_IN


@dataclass(slots=True)
class Reading:
    """A source of messages that is read in batches, and the problem that stopped it."""

    rest: Iterator[Found]
    trouble: str | None = None

    def group(self) -> list[Found]:
        """Return the next messages; none at the end or after a problem. Runs in a thread."""
        found: list[Found] = []
        weight = 0
        while self.trouble is None and len(found) < TOGETHER and weight < WEIGHT:
            try:
                one = next(self.rest, None)
            except Broken as problem:
                self.trouble = str(problem)
                break
            if one is None:
                break
            found.append(one)
            weight += len(one.raw or b"")
        return found


async def opened(ctx: Context, user_id: int, into: str | None, begun: int) -> Import:
    """Begin an import into the account of this user, who is the viewer."""
    columns = {"id", "tenant_id", "permissions"}
    ((user),) = await ctx.read(select(*picked(User, columns)).where(col(User.id) == user_id))
    permissions = frozenset(each for each in UserPermission if each in user.permissions)
    ctx = replace(ctx, viewer=replace(ctx.viewer, permissions=permissions))
    return Import(ctx, user, into, begun, await import_mailboxes.standing(ctx, user_id), Outcome())


async def read(work: Import, found: Found, letter: Letter | None = None) -> Ready | None:
    """Return a message ready to be stored; None if it is in the mailbox already or is skipped.

    Pass `message` if the source was parsed before. Skipped messages are added to the outcome.
    """
    try:
        if found.raw is None:
            raise Unusable(found.reason)
        wanted = row_changes.Changes.of({}, add=found.flags)
        if len(wanted.add) > flags.KEYWORDS:
            raise Unusable(f"more than {flags.KEYWORDS} keywords")
        told = found.told
        meta = custom_data.checked(told.meta_data, ["metaData"]) if told else None
        into = work.into or found.folder
        box = await import_mailboxes.made(work.ctx, work.boxes, into, subscribe=work.subscribe)
    except (Unusable, Refused) as problem:
        work.outcome.refuse(found.name, str(problem))
        return None
    letter = letter or await read_letter(work.ctx.world, found.raw)
    if work.dedupe:
        there = await _digests(work, box)
        for digest in {short(letter.digest), short(letter.came or letter.digest)}:
            if there[digest]:
                there[digest] -= 1  # a message that exists twice is known twice
                work.outcome.known += 1
                return None
    return Ready(found, letter, box, wanted.touched, meta)


async def read_letter(world: World, raw: bytes) -> Letter:
    """Parse a message, without the Authentication-Results fields in this server's name.

    `received_digest` is the digest before the removal: a message that this server exported has
    such fields.
    """
    kept = stripped(raw, own_names(world.options))
    letter = await received_messages.read(kept)
    return letter if kept is raw else replace(letter, came=digest_of(raw))


async def _digests(work: Import, box: int) -> Counter[bytes]:
    """Return the shortened digests of the messages that were in the mailbox before the import."""
    if box not in work.there:
        asked = select(col(Message.digest)).where(
            col(Message.mailbox_id) == box, col(Message.id) < work.begun
        )
        work.there[box] = Counter(short(row.digest) for row in await work.ctx.read(asked))
    return work.there[box]


def short(digest: str) -> bytes:
    """Return the first 16 bytes of a digest, so that a million of them fit into memory."""
    return bytes.fromhex(digest[:32])


async def keep(work: Import, ready: Sequence[Ready], *, again: bool = False) -> list[Kept]:
    """Store the blobs of these messages before the transaction that inserts them."""
    tenant, world = work.user.tenant_id, work.ctx.world
    return [
        await received_messages.stored(world, tenant, each.letter, again=again) for each in ready
    ]


async def with_bytes(
    work: Import, ready: Sequence[Ready], unit: Callable[[Sequence[Kept]], Awaitable[None]]
) -> None:
    """Store the blobs of messages, then call `store`; once more if a blob row was deleted."""
    try:
        await unit(await keep(work, ready))
    except Gone:
        await unit(await keep(work, ready, again=True))


async def put(
    work: Import, session: AsyncSession, ready: Sequence[Ready], kept: Sequence[Kept]
) -> list[Placed]:
    """Insert messages with all their flags, and return them. Raises OverQuota, BlobRowDeleted."""
    new = await work.ctx.world.join(session, lambda turn: laid(work, turn, ready, kept))
    await _restate(work, session, ready, new)
    return new


def laid(work: Import, turn: Turn, ready: Sequence[Ready], kept: Sequence[Kept]) -> list[Placed]:
    """Insert messages in a synchronous transaction, without the deleted flag and the expiry."""
    placed: list[Placed] = []
    pairs = zip(ready, kept, strict=True)
    for way, those in groupby(pairs, key=lambda pair: pair[0].way):
        items = [(each.letter, safe, _to(work, each)) for each, safe in those]
        placed += message_insert.place_many(turn, items, way=way)
    return placed


def _to(work: Import, ready: Ready) -> Place:
    """Return the mailbox, flags and envelope under which a message is inserted."""
    found, told = ready.found, ready.found.told
    return Place(
        work.user.id,
        ready.box,
        found.received_at or work.ctx.world.now(),
        seen="\\Seen" in ready.flags,
        flagged="\\Flagged" in ready.flags,
        answered="\\Answered" in ready.flags,
        draft="\\Draft" in ready.flags,
        keywords=row_changes.flagged(ready.flags)["keywords"],
        envelope_from=found.sender,
        envelope_to=told.recipients if told else (),
        meta_data=ready.meta_data,
    )


async def _restate(
    work: Import, session: AsyncSession, ready: Sequence[Ready], new: Sequence[Placed]
) -> None:
    """Set what messages cannot be inserted with: the deleted flag and the expiry."""
    states: dict[int, dict[str, Any]] = {}
    for each, placed in zip(ready, new, strict=True):
        told = each.found.told
        if "\\Deleted" in each.flags or told:
            states[placed.message_id] = row_changes.flagged(each.flags) | _expiry(told)
    rows = await row_changes.chosen(session, list(states)) if states else []
    for with_expiry in (False, True):  # of one call all have the same columns
        some = [row for row in rows if ("expires" in states[row.id]) is with_expiry]
        if some:
            await flags.restate(work.ctx, session, some, states)


def _expiry(told: Told | None) -> dict[str, Any]:
    return {"expires": told.expires} if told else {}


async def furnish(work: Import, account: Account, *, notes: bool) -> None:
    """Create the missing mailboxes of an account record, with annotations if wanted.

    Mailboxes that can't be created are added to the skipped items.
    """
    boxes = sorted(account.mailboxes, key=lambda box: paths.in_tree(box["path"]))
    for box in boxes if work.into is None else ():
        try:
            path = await _furnish(work, box)
        except Refused as problem:
            work.outcome.refuse(f"folder {box['path']}", problem.message)
            if isinstance(problem, LimitReached):
                break  # the limit holds for all of them
        else:
            if box.get("encryptMessages") is True:
                await _encrypt(work, path)
            if notes and isinstance(box.get("metadata"), dict):
                await _annotate(work, path, box["metadata"])


async def _furnish(work: Import, box: Mapping[str, Any]) -> str:
    """Create the mailbox of a record, and return its path. Raises Refused."""
    path = paths.checked_path(box["path"])
    if path in work.boxes:
        return path
    new = NewMailboxes(
        [path],
        hidden=box.get("hidden") is True,
        retention=_life(box.get("retention")),
        subscribe=box.get("subscribed") is not False,
    )
    use = _use(box.get("specialUse"))
    try:
        made = await mailbox_loaders.create(work.ctx, replace(new, special_use=use))
    except Conflict as problem:
        made = await mailbox_loaders.create(work.ctx, new)
        work.outcome.refuse(f"role {use} of folder {path}", problem.message)
    snoozed = made[-1].special_use in HOLDING_USES
    work.boxes[path] = work.boxes["INBOX"] if snoozed else made[-1].id
    return path


async def _encrypt(work: Import, path: str) -> None:
    """Turn on the encryption of a mailbox. A refusal is added to the skipped items."""
    try:
        asked = Updated([Named(path=path)], {"encrypt_messages": True})
        await mailbox_update.change(work.ctx, asked)
    except Refused as problem:
        work.outcome.refuse(f"encryption of folder {path}", problem.message)


async def _annotate(work: Import, path: str, notes: Mapping[str, Any]) -> None:
    """Set the annotations of a mailbox. Refusals are added to the skipped items."""
    for key, value in notes.items():
        try:
            if not isinstance(value, str):
                raise Invalid("no text", constraint="type", path=["value"])
            await metadata.put(work.ctx, Named(path=path), (key, value))
        except Refused as problem:
            work.outcome.refuse(f"annotation {key} of folder {path}", problem.message)
            if isinstance(problem, LimitReached):
                break


def _use(name: Any) -> SpecialUse | None:
    return next((use for use in SpecialUse if use.value == name), None)


def _life(seconds: Any) -> timedelta:
    """Return the retention of a mailbox; unlimited if the value is missing or invalid."""
    if not isinstance(seconds, int) or not 0 <= seconds < 1 << 40:
        return FOREVER
    return timedelta(seconds=seconds)


async def settle(work: Import, account: Account) -> None:
    """Import the user's settings, key-values, labels and sender rules, as far as possible."""
    for name in FACTS:
        if account.settings.get(name) is not None:
            await _set(work, name, account.settings[name])
    if isinstance(account.settings.get("pub_key"), str):
        await _set(work, "pub_key", account.settings["pub_key"])
    if account.settings.get("encrypt_messages") is True:
        await _set(work, "encrypt_messages", True)
    for entries, import_entry in (
        (account.key_values, _key_value),
        (account.labels, _label),
        (account.sender_rules, _sender_rule),
    ):
        for entry in entries:
            if not await import_entry(work, entry):
                break


async def introduce(work: Import, account: Account) -> None:
    """Import identities, filters, autoreply and scripts, which need the mailboxes."""
    for entry in account.identities:
        if not await _identity(work, entry):
            break
    for entry in account.filters:
        if not await _filter(work, entry):
            break
    if account.autoreply:
        await _autoreply(work, account.autoreply)
    for entry in account.scripts:
        if not await _script(work, entry):
            break


async def _filter(work: Import, entry: Mapping[str, Any]) -> bool:
    """Import a filter. Returns False if the limit on filters is reached."""
    name = f"filter {str(entry.get('name') or '')[:100]}".strip()
    try:
        for target in await transfer.bring(work.ctx, entry, work.boxes):
            work.outcome.refuse(name, f"{target} is left out: a file has no passwords")
    except Refused as problem:
        work.outcome.refuse(name, str(problem))
        return not isinstance(problem, LimitReached)
    return True


async def _autoreply(work: Import, given: Mapping[str, Any]) -> None:
    """Import the autoreply. It is turned off if one of its addresses does not exist."""
    try:
        facts = autoreplies.brought(given)
        try:
            await autoreplies.set_(work.ctx, MINE, facts)
        except NotFound as problem:
            work.outcome.refuse("addresses of the automatic answer", problem.message)
            await autoreplies.set_(work.ctx, MINE, {**facts, "addresses": [], "enabled": False})
    except (Refused, Wrong) as problem:
        work.outcome.refuse("automatic answer", str(problem))


async def _script(work: Import, entry: Mapping[str, Any]) -> bool:
    """Import a Sieve script. Returns False if the limit is reached.

    An existing script of this name is not changed.
    """
    name, content = entry.get("name"), entry.get("content")
    if not isinstance(name, str) or not isinstance(content, str):
        work.outcome.refuse("script", "not what it must be")
        return True
    there = await sieve_scripts.named(work.ctx, [(work.user.id, name)])
    if there[0] is not None:
        if there[0].content != content:
            work.outcome.refuse(f"script {name}", "there is another script of this name")
        return True
    try:
        activate = entry.get("active") is True and not await sieve_scripts.runs(
            work.ctx, work.user.id
        )
        await sieve_script_mutations.put(work.ctx, MINE, name, content, activate=activate)
    except LimitReached as full:
        work.outcome.refuse(f"script {name}", full.message)
        return False
    except Refused as problem:
        work.outcome.refuse(f"script {name}", problem.each[0].message)
    return True


SAID = {  # column and type by the name in the record
    "name": ("name", str),
    "replyTo": ("reply_to", str),
    "signatureText": ("signature_text", str),
    "signatureHtml": ("signature_html", str),
    "default": ("preferred", bool),
    "bcc": ("bcc", list),
}


async def _identity(work: Import, entry: Mapping[str, Any]) -> bool:
    """Import an identity. Returns False if the limit on identities is reached."""
    address, path = entry.get("address"), entry.get("sentMailbox")
    try:
        values = {}
        for name, (column, kind) in SAID.items():
            if (value := entry.get(name)) is not None:
                values[column] = value
                if not isinstance(value, kind):
                    raise Invalid("not what it must be", constraint="type", path=[name])
        if not isinstance(address, str) or not all(
            isinstance(one, str) for one in values.get("bcc", ())
        ):
            raise Invalid("no address", constraint="type", path=["address"])
        box = Named(path=path) if isinstance(path, str) and path in work.boxes else None
        if path is not None and box is None:
            work.outcome.refuse(f"folder for copies of {address}", "there is none such")
        await identity_mutations.put(work.ctx, address, Said(values, box, boxed=box is not None))
    except Refused as problem:
        work.outcome.refuse(f"identity {address}", str(problem))
        return not isinstance(problem, LimitReached)
    return True


async def _sender_rule(work: Import, entry: Mapping[str, Any]) -> bool:
    """Import a sender rule. Returns False if the limit on rules is reached."""
    pattern, action, comment = (entry.get(name) for name in ("pattern", "action", "comment"))
    try:
        if not isinstance(pattern, str) or action not in set(SenderAction):
            raise Invalid("no pattern, or no action", constraint="type", path=["pattern"])
        said = comment if isinstance(comment, str) else None
        new = NewRules(SenderAction(action), [pattern], said, commented=True)
        await sender_rule_mutations.create(work.ctx, Whom(user_id=work.user.id), new)
    except Refused as problem:
        work.outcome.refuse(f"rule about {pattern}", str(problem))
        return not isinstance(problem, LimitReached)
    return True


async def _label(work: Import, entry: Mapping[str, Any]) -> bool:
    """Import a label. Returns False if the limit on labels is reached."""
    keyword, name, color = (entry.get(part) for part in ("keyword", "name", "color"))
    try:
        if not (isinstance(keyword, str) and isinstance(name, str)):
            raise Invalid("no keyword, or no name", constraint="type", path=["keyword"])
        shade = color if isinstance(color, str) else None
        await labels.set_(work.ctx, keyword, Words(name, shade, colored=True))
    except Refused as problem:
        work.outcome.refuse(f"label {keyword}", str(problem))
        return not isinstance(problem, LimitReached)
    return True


async def _set(work: Import, name: str, value: Any) -> None:
    """Set one setting of the user. A refusal is added to the skipped items."""
    kinds = {"retention": int, "spam_level": int, "meta_data": dict, "encrypt_messages": bool}
    try:
        if not isinstance(value, kinds.get(name, str)):
            raise Invalid("not what it must be", constraint="type", path=[name])
        if name == "pub_key":
            patch = Patch(pub_key=str(value))
        elif name == "meta_data":
            patch = Patch({name: custom_data.checked(value, [name])})
        else:
            patch = Patch({name: _life(value) if name == "retention" else value})
        await user_update.change(work.ctx, MINE, patch)
    except Refused as problem:
        work.outcome.refuse(f"setting {name}", problem.message)


async def _key_value(work: Import, entry: Mapping[str, Any]) -> bool:
    """Import a key-value. Returns False if the limit on key-values is reached."""
    store, key, value = (entry.get(name) for name in ("store", "key", "value"))
    try:
        if not (isinstance(store, str) and isinstance(key, str) and isinstance(value, str)):
            raise Invalid("no key, store or value", constraint="type", path=["key"])
        expires = moment(entry.get("expires"))
        ttl = None if expires is None else expires - work.ctx.world.now()
        await key_values.put(work.ctx, Namespace(work.user.id, store), key, NewValue(value, ttl))
    except (Refused, Wrong) as problem:
        work.outcome.refuse(f"value {key}", str(problem))
        return not isinstance(problem, LimitReached)
    return True

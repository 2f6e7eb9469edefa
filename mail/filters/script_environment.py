"""Load the active scripts of accounts and the account data that scripts can read."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Select, case, func, select
from sqlmodel import col

from mail.filters.script_cache import included, program_of
from mail.recipients.address_resolution import KEY
from mail.sieve import Circumstances, Program, SieveError
from models.addresses.tables import Address, AddressKind
from models.filters.sieve_scripts import MemoryKind, SieveMemory, SieveScript
from models.mailboxes.tables import HOLDING_USES, Mailbox, MailboxEntry, SpecialUse
from models.runtime.environment import World
from models.store.columns import Picked, picked
from models.store.prepared_statements import among, prepared
from models.users.tables import User

PERSONAL = "personal"  # RFC 6609; there are no global scripts
# Loaded only if a script uses the extension.
_ANSWERING, _ANNOTATED = "vacation", frozenset({"mboxmetadata", "servermetadata"})


@dataclass(frozen=True, slots=True)
class Box:
    """A mailbox that received mail can be stored in."""

    id: int
    path: str
    use: SpecialUse | None
    key: str | None  # OpenPGP; None: not encrypted


@dataclass(frozen=True, slots=True)
class Boxes:
    """The mailboxes of an account that received mail can be stored in."""

    all: Sequence[Box] = ()
    key: str | None = None  # encryption key of a new mailbox

    def by_path(self, path: str) -> Box | None:
        """Return the mailbox with this path, or None."""
        return next((box for box in self.all if box.path == path), None)

    def by_id(self, key: int | None) -> Box | None:
        """Return the mailbox with this ID, or None."""
        return next((box for box in self.all if box.id == key), None)

    def find(self, path: str, use: str | None) -> Box | None:
        """Return the mailbox with this special use as IMAP writes it, else with this path."""
        known = {f"\\{each.value}".lower(): each for each in SpecialUse}
        return self.by_use(known.get(use.lower()) if use else None) or self.by_path(path)

    def by_use(self, use: SpecialUse | None) -> Box | None:
        """Return the mailbox with this special use, or None."""
        return next((box for box in self.all if use and box.use is use), None)


NONE = Boxes()


@dataclass(frozen=True, slots=True)
class Script:
    """A script with the scripts it can include."""

    id: int | None  # None: a test run
    text: str
    others: Mapping[str, str] = field(default_factory=dict)  # scripts of the account, texts by name
    requires: Collection[str] = ()  # extensions of the script and of those it can include

    def find(self, location: str, name: str) -> Program | None:
        """Return the program of an included script, or None."""
        return included(self.others.get(name)) if location == PERSONAL else None


@dataclass(frozen=True, slots=True)
class Account:
    """What scripts can read of their account."""

    boxes: Boxes = NONE
    addresses: Sequence[str] = ()
    metadata: Mapping[tuple[str, str], str] = field(default_factory=dict)

    def circumstances(self, script: Script, world: World, **more: Any) -> Circumstances:
        """Return the environment of the Sieve interpreter."""
        options = world.options
        return Circumstances(
            now=world.now(),
            addresses=self.addresses,
            mailboxes={box.path for box in self.boxes.all},
            special_uses={
                box.path: [f"\\{box.use.capitalize()}"]
                for box in self.boxes.all
                if box.use and box.use is not SpecialUse.INBOX
            },
            metadata=self.metadata,
            items={
                "name": "Merganser",
                "host": options.hostname,
                "domain": options.hostname.partition(".")[2],
                "location": "MDA",
                "phase": "during",
            },
            script=script.find,
            **more,
        )


def uses(script: Script) -> frozenset[str]:
    """Return the extensions of a script and the scripts it includes. Call it in a thread."""
    try:
        found = program_of(script.text).extensions
    except SieveError:
        return frozenset()
    return found.union(*(one.extensions for one in map(included, script.others.values()) if one))


@prepared
def _scripts(dialect: str, *, active: bool) -> Select[*tuple[Any, ...]]:
    names = {"id", "user_id", "name", "content", "requires"}
    asked = select(*picked(SieveScript, names)).where(
        among(dialect, col(SieveScript.user_id), "users")
    )
    return asked.where(col(SieveScript.active)) if active else asked


async def scripts(world: World, users: Collection[int]) -> dict[int, Script]:
    """Return the active scripts by account ID: one SQL statement, two if one uses `include`."""
    asked, find = {"users": list(users)}, world.database.find
    rows = await find(_scripts(world.database.dialect, active=True), asked)
    others: defaultdict[int, dict[str, str]] = defaultdict(dict)
    required = {row.user_id: set(row.requires) for row in rows}
    if including := [row.user_id for row in rows if "include" in row.content.lower()]:
        more = _scripts(world.database.dialect, active=False)
        for row in await find(more, {"users": including}):
            others[row.user_id][row.name] = row.content
            required[row.user_id].update(row.requires)
    return {
        row.user_id: Script(row.id, row.content, others[row.user_id], required[row.user_id])
        for row in rows
    }


async def accounts(world: World, used: Mapping[int, Collection[str]]) -> dict[int, Account]:
    """Return the data that the scripts of these accounts can read, by account ID.

    Loads only what the extensions need. The number of SQL statements does not depend on the number
    of accounts.
    """
    boxes = await boxes_of(world, used)
    answering = [user for user, names in used.items() if _ANSWERING in names]
    noted = [user for user, names in used.items() if _ANNOTATED.intersection(names)]
    addresses = await _addresses(world, answering) if answering else {}
    metadata = await _metadata(world, noted) if noted else {}
    return {
        user: Account(boxes.get(user, NONE), addresses.get(user, ()), metadata.get(user, {}))
        for user in used
    }


@prepared
def _boxes(dialect: str) -> Select[*tuple[Any, ...]]:
    new = case((col(User.encrypt_messages), func.coalesce(col(User.pub_key), "")))
    return (
        select(
            *picked(Mailbox, {"id", "user_id", "path", "special_use"}),
            KEY.label("key"),
            new.label("new"),
        )
        .join(User, col(User.id) == col(Mailbox.user_id))
        .where(among(dialect, col(Mailbox.user_id), "users"))
    )


async def boxes_of(world: World, users: Collection[int]) -> dict[int, Boxes]:
    """Return the mailboxes by account ID, without the one for snoozed messages."""
    asked = _boxes(world.database.dialect)
    found: defaultdict[int, list[Picked]] = defaultdict(list)
    for row in await world.database.find(asked, {"users": list(users)}):
        if row.special_use not in HOLDING_USES:
            found[row.user_id].append(row)
    return {
        user: Boxes([Box(row.id, row.path, row.special_use, row.key) for row in rows], rows[0].new)
        for user, rows in found.items()
    }


async def _addresses(world: World, users: Sequence[int]) -> dict[int, list[str]]:
    """Return the addresses in lower case by account ID."""
    asked = select(col(Address.user_id), col(Address.shown)).where(
        col(Address.user_id).in_(users),
        col(Address.kind) == AddressKind.MAILBOX,
        col(Address.domain_id).is_not(None),
        ~col(Address.local).contains("*"),
    )
    found: defaultdict[int, list[str]] = defaultdict(list)
    for row in await world.database.read(asked):
        found[row.user_id].append(row.shown.lower())
    return found


async def _metadata(world: World, users: Sequence[int]) -> dict[int, dict[tuple[str, str], str]]:
    """Return the mailbox annotations by account ID; keys are (mailbox path, entry name)."""
    asked = (
        select(
            col(Mailbox.user_id), col(Mailbox.path), col(MailboxEntry.key), col(MailboxEntry.value)
        )
        .join(Mailbox, col(Mailbox.id) == col(MailboxEntry.mailbox_id))
        .where(col(Mailbox.user_id).in_(users))
    )
    found: defaultdict[int, dict[tuple[str, str], str]] = defaultdict(dict)
    for row in await world.database.read(asked):
        found[row.user_id][row.path, row.key] = row.value
    return found


async def seen(
    world: World, asked: Mapping[tuple[int, str], Collection[str]]
) -> dict[int, set[str]]:
    """Return the known IDs of `duplicate` tests by account ID.

    The mapping is by account ID and receipt: IDs that an earlier attempt of the same delivery has
    stored don't count.
    """
    keys = {key for wanted in asked.values() for key in wanted}
    rows = select(*picked(SieveMemory, {"user_id", "key", "receipt"})).where(
        col(SieveMemory.user_id).in_({user for user, _ in asked}),
        col(SieveMemory.kind) == MemoryKind.DUPLICATE,
        col(SieveMemory.key).in_(keys),
        col(SieveMemory.until) > world.now(),
    )
    found: defaultdict[int, set[str]] = defaultdict(set)
    for row in await world.database.read(rows):
        for (user, receipt), wanted in asked.items():
            if row.user_id == user and row.receipt != receipt and row.key in wanted:
                found[user].add(row.key)
    return found

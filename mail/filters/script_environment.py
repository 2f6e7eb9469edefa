"""Load the active scripts of accounts and the account data that scripts can read."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Select, case, func, select
from sqlmodel import col

from mail.filters.script_cache import compile_included_script_or_none, compile_script_cached
from mail.recipients.address_resolution import ENCRYPTION_KEY
from mail.sieve import SieveEnvironment, SieveError, SieveProgram
from models.addresses.tables import Address, AddressKind
from models.filters.sieve_scripts import SieveMemory, SieveMemoryKind, SieveScript
from models.mailboxes.tables import HOLDING_USES, Mailbox, MailboxAnnotation, SpecialUse
from models.runtime.environment import Environment
from models.store.columns import ColumnRow, select_columns
from models.store.prepared_statements import is_in_parameter, prepare_cached
from models.users.tables import User

PERSONAL_LOCATION = "personal"  # RFC 6609; there are no global scripts
# Loaded only if a script uses the extension.
_VACATION_EXTENSION = "vacation"
_METADATA_EXTENSIONS = frozenset({"mboxmetadata", "servermetadata"})


@dataclass(frozen=True, slots=True)
class ScriptMailbox:
    """A mailbox that received mail can be stored in."""

    id: int
    path: str
    special_use: SpecialUse | None
    encryption_key: str | None  # OpenPGP; None: not encrypted


@dataclass(frozen=True, slots=True)
class ScriptMailboxes:
    """The mailboxes of an account that received mail can be stored in."""

    mailboxes: Sequence[ScriptMailbox] = ()
    new_mailbox_key: str | None = None  # encryption key of a new mailbox

    def find_by_path(self, path: str) -> ScriptMailbox | None:
        """Return the mailbox with this path, or None."""
        return next((mailbox for mailbox in self.mailboxes if mailbox.path == path), None)

    def find_by_id(self, mailbox_id: int | None) -> ScriptMailbox | None:
        """Return the mailbox with this ID, or None."""
        return next((mailbox for mailbox in self.mailboxes if mailbox.id == mailbox_id), None)

    def find_by_special_use_or_path(
        self, path: str, special_use_name: str | None
    ) -> ScriptMailbox | None:
        """Return the mailbox with this special use as IMAP writes it, else with this path."""
        paths_by_special_use = {
            f"\\{special_use.value}".lower(): special_use for special_use in SpecialUse
        }
        return self.find_by_special_use(
            paths_by_special_use.get(special_use_name.lower()) if special_use_name else None
        ) or self.find_by_path(path)

    def find_by_special_use(self, special_use: SpecialUse | None) -> ScriptMailbox | None:
        """Return the mailbox with this special use, or None."""
        return next(
            (
                mailbox
                for mailbox in self.mailboxes
                if special_use and mailbox.special_use is special_use
            ),
            None,
        )


NO_MAILBOXES = ScriptMailboxes()


@dataclass(frozen=True, slots=True)
class UserScript:
    """A script with the scripts it can include."""

    id: int | None  # None: a test run
    text: str
    # scripts of the account, texts by name
    other_scripts: Mapping[str, str] = field(default_factory=dict)
    extensions: Collection[str] = ()  # extensions of the script and of those it can include

    def find_included(self, location: str, name: str) -> SieveProgram | None:
        """Return the program of an included script, or None."""
        return (
            compile_included_script_or_none(self.other_scripts.get(name))
            if location == PERSONAL_LOCATION
            else None
        )


@dataclass(frozen=True, slots=True)
class ScriptAccount:
    """What scripts can read of their account."""

    mailboxes: ScriptMailboxes = NO_MAILBOXES
    addresses: Sequence[str] = ()
    annotations: Mapping[tuple[str, str], str] = field(default_factory=dict)

    def sieve_environment(
        self, script: UserScript, environment: Environment, **run_options: Any
    ) -> SieveEnvironment:
        """Return the environment of the Sieve interpreter."""
        options = environment.options
        return SieveEnvironment(
            now=environment.now(),
            addresses=self.addresses,
            subaddress_delimiters=options.addresses_subaddress_delimiters,
            mailboxes={mailbox.path for mailbox in self.mailboxes.mailboxes},
            special_uses={
                mailbox.path: [f"\\{mailbox.special_use.capitalize()}"]
                for mailbox in self.mailboxes.mailboxes
                if mailbox.special_use and mailbox.special_use is not SpecialUse.INBOX
            },
            metadata=self.annotations,
            items={
                "name": "Merganser",
                "host": options.hostname,
                "domain": options.hostname.partition(".")[2],
                "location": "MDA",
                "phase": "during",
            },
            script=script.find_included,
            **run_options,
        )


def used_extensions(script: UserScript) -> frozenset[str]:
    """Return the extensions of a script and the scripts it includes. Call it in a thread."""
    try:
        extensions = compile_script_cached(script.text).extensions
    except SieveError:
        return frozenset()
    return extensions.union(
        *(
            included.extensions
            for included in map(compile_included_script_or_none, script.other_scripts.values())
            if included
        )
    )


@prepare_cached
def _select_scripts(dialect: str, *, only_active: bool) -> Select[*tuple[Any, ...]]:
    names = {"id", "user_id", "name", "content", "requires"}
    statement = select(*select_columns(SieveScript, names)).where(
        is_in_parameter(dialect, col(SieveScript.user_id), "users")
    )
    return statement.where(col(SieveScript.active)) if only_active else statement


async def load_active_scripts(
    environment: Environment, user_ids: Collection[int]
) -> dict[int, UserScript]:
    """Return the active scripts by account ID: one SQL statement, two if one uses `include`."""
    parameters, find = {"users": list(user_ids)}, environment.database.read_prepared
    rows = await find(_select_scripts(environment.database.dialect, only_active=True), parameters)
    others: defaultdict[int, dict[str, str]] = defaultdict(dict)
    required = {row.user_id: set(row.requires) for row in rows}
    if including := [row.user_id for row in rows if "include" in row.content.lower()]:
        other_scripts_statement = _select_scripts(environment.database.dialect, only_active=False)
        for row in await find(other_scripts_statement, {"users": including}):
            others[row.user_id][row.name] = row.content
            required[row.user_id].update(row.requires)
    return {
        row.user_id: UserScript(row.id, row.content, others[row.user_id], required[row.user_id])
        for row in rows
    }


async def load_script_accounts(
    environment: Environment, extensions_by_user: Mapping[int, Collection[str]]
) -> dict[int, ScriptAccount]:
    """Return the data that the scripts of these accounts can read, by account ID.

    Loads only what the extensions need. The number of SQL statements does not depend on the number
    of accounts.
    """
    mailboxes_by_user = await load_script_mailboxes(environment, extensions_by_user)
    answering = [user for user, names in extensions_by_user.items() if _VACATION_EXTENSION in names]
    metadata_users = [
        user
        for user, names in extensions_by_user.items()
        if _METADATA_EXTENSIONS.intersection(names)
    ]
    addresses = await _load_lowercase_addresses_by_user(environment, answering) if answering else {}
    metadata = (
        await _load_annotations_by_user_and_mailbox_path(environment, metadata_users)
        if metadata_users
        else {}
    )
    return {
        user: ScriptAccount(
            mailboxes_by_user.get(user, NO_MAILBOXES),
            addresses.get(user, ()),
            metadata.get(user, {}),
        )
        for user in extensions_by_user
    }


@prepare_cached
def _select_mailboxes(dialect: str) -> Select[*tuple[Any, ...]]:
    new = case((col(User.encrypt_messages), func.coalesce(col(User.openpgp_public_key), "")))
    return (
        select(
            *select_columns(Mailbox, {"id", "user_id", "path", "special_use"}),
            ENCRYPTION_KEY.label("key"),
            new.label("new"),
        )
        .join(User, col(User.id) == col(Mailbox.user_id))
        .where(is_in_parameter(dialect, col(Mailbox.user_id), "users"))
    )


async def load_script_mailboxes(
    environment: Environment, user_ids: Collection[int]
) -> dict[int, ScriptMailboxes]:
    """Return the mailboxes by account ID, without the one for snoozed messages."""
    statement = _select_mailboxes(environment.database.dialect)
    rows_by_user: defaultdict[int, list[ColumnRow]] = defaultdict(list)
    for row in await environment.database.read_prepared(statement, {"users": list(user_ids)}):
        if row.special_use not in HOLDING_USES:
            rows_by_user[row.user_id].append(row)
    return {
        user: ScriptMailboxes(
            [ScriptMailbox(row.id, row.path, row.special_use, row.key) for row in rows], rows[0].new
        )
        for user, rows in rows_by_user.items()
    }


async def _load_lowercase_addresses_by_user(
    environment: Environment, user_ids: Sequence[int]
) -> dict[int, list[str]]:
    """Return the addresses in lower case by account ID."""
    statement = select(col(Address.user_id), col(Address.display_address)).where(
        col(Address.user_id).in_(user_ids),
        col(Address.kind) == AddressKind.MAILBOX,
        col(Address.domain_id).is_not(None),
        ~col(Address.local).contains("*"),
    )
    addresses_by_user: defaultdict[int, list[str]] = defaultdict(list)
    for row in await environment.database.read(statement):
        addresses_by_user[row.user_id].append(row.display_address.lower())
    return addresses_by_user


async def _load_annotations_by_user_and_mailbox_path(
    environment: Environment, user_ids: Sequence[int]
) -> dict[int, dict[tuple[str, str], str]]:
    """Return the mailbox annotations by account ID; keys are (mailbox path, entry name)."""
    statement = (
        select(
            col(Mailbox.user_id),
            col(Mailbox.path),
            col(MailboxAnnotation.key),
            col(MailboxAnnotation.value),
        )
        .join(Mailbox, col(Mailbox.id) == col(MailboxAnnotation.mailbox_id))
        .where(col(Mailbox.user_id).in_(user_ids))
    )
    values_by_user: defaultdict[int, dict[tuple[str, str], str]] = defaultdict(dict)
    for row in await environment.database.read(statement):
        values_by_user[row.user_id][row.path, row.key] = row.value
    return values_by_user


async def load_duplicate_ids_of_other_deliveries(
    environment: Environment, ids_by_user_and_receipt: Mapping[tuple[int, str], Collection[str]]
) -> dict[int, set[str]]:
    """Return the known IDs of `duplicate` tests by account ID.

    The mapping is by account ID and receipt: IDs that an earlier attempt of the same delivery has
    stored don't count.
    """
    keys = {key for ids in ids_by_user_and_receipt.values() for key in ids}
    rows = select(*select_columns(SieveMemory, {"user_id", "key", "receipt"})).where(
        col(SieveMemory.user_id).in_({user for user, _ in ids_by_user_and_receipt}),
        col(SieveMemory.kind) == SieveMemoryKind.DUPLICATE,
        col(SieveMemory.key).in_(keys),
        col(SieveMemory.until) > environment.now(),
    )
    known_ids: defaultdict[int, set[str]] = defaultdict(set)
    for row in await environment.database.read(rows):
        for (user, receipt), ids in ids_by_user_and_receipt.items():
            if row.user_id == user and row.receipt != receipt and row.key in ids:
                known_ids[user].add(row.key)
    return known_ids

"""Store new users: check names, addresses and limits of domains, then insert all rows at once.

The same checks run twice: before passwords are hashed, so that an error costs no hash, and again in
the transaction that locks the domains.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sqlalchemy import select
from sqlmodel import col
from sqlmodel import select as instances
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.mailboxes.paths import missing_paths_with_parents
from mail.text import confusables
from models.addresses.tables import Address
from models.domains.tables import Domain, DomainAlias
from models.errors import Conflict, InvalidInput, NotFound, RequestError
from models.events import journal
from models.events.event_types import EventType
from models.events.journal import PLATFORM, JournalEntry, Stream
from models.mailboxes.tables import Mailbox, SpecialUse
from models.store.columns import ColumnRow, select_columns
from models.users.roles import Role
from models.users.tables import DomainAdmin, User, UserTag
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.context import Context
from resolvers.domains import loaders as domain_loaders
from resolvers.mailboxes.create import build_mailbox_with_next_uid_validity
from resolvers.users.creation import welcome_messages
from resolvers.users.creation.welcome_messages import WelcomeMessage
from resolvers.users.quota.quota_allocation import (
    effective_quota,
    reallocate_quotas_or_raise,
    require_user_slot,
)
from resolvers.users.validation import domain_of_username, username_in_others_domain_error

MAX_TRASH_RETENTION = 30 * 86_400  # seconds
MAX_NAMES = 1000  # in one SELECT


@dataclass(slots=True)
class PreparedUser:
    """A validated user that is ready to be stored."""

    user: User
    address: str | None  # main address, as shown
    local_part: str  # normalized
    domain_name: str | None  # normalized; None if there is no address
    paths: Mapping[SpecialUse, str]
    administers: frozenset[int]  # domain ids
    tag_address: bool  # the address has the tags of the user
    welcome: list[WelcomeMessage] = field(default_factory=list)


class AdmittedUsers(NamedTuple):
    """The users that can be stored, and the errors of the others, by key."""

    admitted: dict[int, PreparedUser]
    errors: dict[int, RequestError]


@dataclass(slots=True)
class UserAdmission:
    """The names and counters that new users can collide with.

    Each admitted user is counted, so the order of users matters.
    """

    ctx: Context
    domains: Mapping[str, Domain | RequestError]  # by name
    usernames: set[str]  # keys of those that exist
    addresses: set[tuple[int, str]]  # domain id and local part of those that exist
    forbidden_username_domains: set[str]  # domains that the viewer doesn't administer

    def count_user_in_or_raise(self, user: PreparedUser) -> None:
        """Count a user in.

        Raises Conflict, LimitReached, NotFound or Forbidden if it can't be stored.
        """
        domain = self._require_domain_with_address_room(user)
        if domain_of_username(user.user.username_key) in self.forbidden_username_domains:
            raise username_in_others_domain_error()
        if user.user.username_key in self.usernames:
            raise Conflict("The username already exists.", path=["username"])
        if domain is not None:
            domain_and_local_part = (domain.id, user.local_part)
            if domain_and_local_part in self.addresses:
                raise Conflict("The address already exists.", path=["address"])
            require_user_slot(domain, path=["address"])
            reallocate_quotas_or_raise(
                self.ctx.environment,
                domain,
                [],
                [effective_quota(self.ctx.environment, domain, user.user.quota)],
            )
            domain.user_count += 1
            domain.address_count += 1
            self.addresses.add(domain_and_local_part)
            user.user.domain_id = user.user.tenant_id = domain.id
        self.usernames.add(user.user.username_key)

    def _require_domain_with_address_room(self, user: PreparedUser) -> Domain | None:
        if user.domain_name is None:
            return None
        domain = self.domains[user.domain_name]
        if isinstance(domain, RequestError):
            raise domain
        domain_loaders.require_address_room(domain, path="address")
        return domain

    def count_users_in_and_collect_errors(
        self, prepared: Mapping[int, PreparedUser]
    ) -> AdmittedUsers:
        """Return the users that can be stored, and the errors of the others, by the same keys."""
        admitted, errors = dict[int, PreparedUser](), dict[int, RequestError]()
        for key, user in prepared.items():
            try:
                self.count_user_in_or_raise(user)
            except RequestError as refusal:
                errors[key] = refusal
            else:
                admitted[key] = user
        return AdmittedUsers(admitted, errors)


class NewUsersRefused(Exception):
    """Some users can't be stored; `errors` has the reasons, by the keys of the caller."""

    def __init__(self, errors: Mapping[int, RequestError]) -> None:
        super().__init__("The accounts are invalid.")
        self.errors = errors


async def find_collisions_and_limit_errors(
    ctx: Context, prepared: Mapping[int, PreparedUser]
) -> dict[int, RequestError]:
    """Return the errors of users that can't be stored at present, by the same keys.

    Stores nothing.
    """
    domain_names = {new_user.domain_name for new_user in prepared.values() if new_user.domain_name}
    domains = {
        row.name: Domain(**row._asdict()) for row in await _load_domain_rows(ctx, domain_names)
    }
    usable_domains = await _find_or_build_domains_by_name(ctx, domain_names, domains)
    _, errors = (
        await _load_admission(ctx, prepared.values(), usable_domains)
    ).count_users_in_and_collect_errors(prepared)
    return errors


async def store_users_and_return_errors(
    ctx: Context,
    prepared: Mapping[int, PreparedUser],
    *,
    mutation: str,
    allow_partial: bool = False,
    path_of: Callable[[int], Sequence[str]] = lambda _: (),
) -> dict[int, RequestError]:
    """Store users in one transaction; return the errors of those not stored, by the same keys.

    Raises NewUsersRefused if there are errors, unless `allow_partial`: then no user is stored. The
    audit log has one entry for each user, with the name of the `mutation`. `path_of` returns the
    input path of a user, for warnings.
    """
    if not prepared:
        return {}
    domain_names = {new_user.domain_name for new_user in prepared.values() if new_user.domain_name}
    async with ctx.write_session(*await stream_ids_to_lock(ctx, prepared.values())) as session:
        locked_domains = await _lock_domains_by_name(ctx, session, domain_names)
        usable_domains = await _find_or_build_domains_by_name(ctx, domain_names, locked_domains)
        admission = await _load_admission(ctx, prepared.values(), usable_domains)
        admitted, errors = admission.count_users_in_and_collect_errors(prepared)
        if errors and not allow_partial:
            raise NewUsersRefused(errors)
        for name, domain in usable_domains.items():
            if name not in locked_domains and isinstance(domain, Domain) and domain.user_count:
                await domain_loaders.insert_domain_with_stream(ctx, session, domain)
                first_key = next(key for key, user in admitted.items() if user.domain_name == name)
                domain_loaders.warn_domain_created(ctx, name, path=[*path_of(first_key), "address"])
        await _insert_users_and_welcome_messages(ctx, session, list(admitted.values()))
        admin_entries = (_audit_log_entry(mutation, user.user) for user in admitted.values())
        await audit_log.insert_audit_log_entries(ctx, session, *admin_entries)
    return errors


async def stream_ids_to_lock(ctx: Context, prepared: Iterable[PreparedUser]) -> list[int]:
    """Return the ids of the streams to lock for a transaction that stores these users."""
    prepared = list(prepared)
    domain_names = {new_user.domain_name for new_user in prepared if new_user.domain_name}
    rows = await _load_domain_rows(ctx, domain_names)
    stream_ids = [row.id for row in rows]
    if len(rows) < len(domain_names) or any(new_user.domain_name is None for new_user in prepared):
        stream_ids.append(PLATFORM)
    return stream_ids


async def _lock_domains_by_name(
    ctx: Context, session: AsyncSession, names: Iterable[str]
) -> dict[str, Domain]:
    """Lock the streams of the domains with these names; return the domains by name."""
    domain_ids = [row.id for row in await _load_domain_rows(ctx, names)]
    # also domains created since the transaction began
    await journal.lock_streams(session, sorted(domain_ids))
    statement = instances(Domain).where(col(Domain.id).in_(domain_ids), col(Domain.name).in_(names))
    fresh_statement = statement.execution_options(populate_existing=True)
    return {row.name: row for row in (await session.exec(fresh_statement)).all()}


async def _load_domain_rows(ctx: Context, names: Iterable[str]) -> Sequence[ColumnRow]:
    if not (names := list(names)):
        return []
    return await ctx.read(select(*select_columns(Domain)).where(col(Domain.name).in_(names)))


async def _find_or_build_domains_by_name(
    ctx: Context, names: Iterable[str], domains: Mapping[str, Domain]
) -> dict[str, Domain | RequestError]:
    """Return the domain of each name that the viewer can use, or the error.

    A missing domain is created if the viewer may create it.
    """
    if not (names := list(names)):
        return {}
    viewer, is_admin = ctx.viewer, ctx.viewer.role.includes(Role.ADMIN)
    statement = select(col(DomainAlias.alias), col(DomainAlias.domain_id))
    aliases = {
        row.alias: row.domain_id
        for row in await ctx.read(statement.where(col(DomainAlias.alias).in_(names)))
    }
    result: dict[str, Domain | RequestError] = {}
    for name in names:
        domain = domains.get(name)
        if name in aliases and (is_admin or aliases[name] in viewer.administered_domains):
            result[name] = Conflict(f"{name} is an alias of another domain.", path=["address"])
        elif domain is not None and (is_admin or domain.id in viewer.administered_domains):
            result[name] = domain
        elif domain is None and domain_loaders.can_create_domain_for_address(ctx):
            try:
                confusables.refuse_confusable_domain(name, path="address")
                result[name] = domain_loaders.new_domain_with_defaults(ctx, name)
            except InvalidInput as refusal:
                result[name] = refusal
        else:
            is_unknown = domain is None and name not in aliases
            result[name] = (
                domain_loaders.unknown_domain_error(ctx, name, path=["address"])
                if is_unknown
                else NotFound(name, path=["address"])
            )
    return result


async def _load_admission(
    ctx: Context, prepared: Iterable[PreparedUser], domains: Mapping[str, Domain | RequestError]
) -> UserAdmission:
    """Load the existing names and addresses that these users could collide with."""
    username_keys, local_parts_by_domain = set[str](), dict[int, set[str]]()
    username_domains = set[str]()
    for user in prepared:
        username_keys.add(user.user.username_key)
        domain = domains[user.domain_name] if user.domain_name else None
        if username_domain := domain_of_username(user.user.username_key):
            username_domains.add(username_domain)
        if isinstance(domain, Domain):
            local_parts_by_domain.setdefault(domain.id, set()).add(user.local_part)
    usernames = {
        row.username_key
        for part in _chunks_of_names(username_keys)
        for row in await ctx.read(
            select(col(User.username_key)).where(col(User.username_key).in_(part))
        )
    }
    addresses = {
        (domain_id, row.local)
        for domain_id, local_parts in local_parts_by_domain.items()
        for part in _chunks_of_names(local_parts)
        for row in await ctx.read(
            select(col(Address.local)).where(
                col(Address.domain_id) == domain_id, col(Address.local).in_(part)
            )
        )
    }
    forbidden_domains = await domain_loaders.load_names_of_others_domains(
        ctx, [name for name in username_domains if not isinstance(domains.get(name), Domain)]
    )
    return UserAdmission(ctx, domains, usernames, addresses, forbidden_domains)


def _chunks_of_names(names: Iterable[str]) -> list[list[str]]:
    names = sorted(names)
    return [names[start : start + MAX_NAMES] for start in range(0, len(names), MAX_NAMES)]


async def _insert_users_and_welcome_messages(
    ctx: Context, session: AsyncSession, prepared: Sequence[PreparedUser]
) -> None:
    """Insert admitted users with their journal entries and welcome messages."""
    for new_user in prepared:
        session.add_all([new_user.user, Stream(id=new_user.user.id)])
    await session.flush()  # the rows below refer to these
    entries: dict[int, list[JournalEntry]] = {}
    mailboxes_by_user = dict[int, list[Mailbox]]()
    for new_user in prepared:
        row = new_user.user
        entries[row.id] = []
        session.add_all(UserTag(tag=tag.casefold(), user_id=row.id) for tag in row.tags)
        session.add_all(
            DomainAdmin(user_id=row.id, domain_id=key) for key in sorted(new_user.administers)
        )
        if new_user.address:
            address = _address_row(ctx, new_user)
            session.add(address)
            event_type = EventType.ADDRESS_CREATED
            entries[row.id] += ctx.journal_entries(event_type, [address.id])
        mailboxes_by_user[row.id] = _special_mailboxes(ctx, row, new_user.paths)
        session.add_all(mailboxes_by_user[row.id])
        entries[row.id] += ctx.journal_entries(
            EventType.MAILBOX_CREATED,
            [mailbox.id for mailbox in mailboxes_by_user[row.id]],
            path=[mailbox.path for mailbox in mailboxes_by_user[row.id]],
        )
    await session.flush()
    await journal.record_entries_in_streams_or_raise(session, entries, at=ctx.environment.now())
    for new_user in prepared:
        if new_user.welcome:
            await welcome_messages.store_welcome_messages(
                ctx, session, new_user.user, mailboxes_by_user[new_user.user.id], new_user.welcome
            )
            await session.refresh(new_user.user)
    user_ids_by_stream: dict[int, list[int]] = {}
    for new_user in prepared:
        user_ids_by_stream.setdefault(new_user.user.domain_id or PLATFORM, []).append(
            new_user.user.id
        )
    user_entries = {
        stream: ctx.journal_entries(EventType.USER_CREATED, ids)
        for stream, ids in user_ids_by_stream.items()
    }
    await journal.record_entries_in_streams_or_raise(
        session, user_entries, at=ctx.environment.now()
    )


def _address_row(ctx: Context, user: PreparedUser) -> Address:
    now = ctx.environment.now()
    return Address(
        id=ctx.environment.new_id(),
        local=user.local_part,
        domain_id=user.user.domain_id,
        display_address=user.address or "",
        user_id=user.user.id,
        main=True,
        tags=user.user.tags if user.tag_address else [],
        created_at=now,
        updated_at=now,
    )


def _special_mailboxes(ctx: Context, user: User, paths: Mapping[SpecialUse, str]) -> list[Mailbox]:
    use_by_path = {path: use for use, path in paths.items()}
    mailboxes = [
        build_mailbox_with_next_uid_validity(ctx, user, path, use_by_path.get(path))
        for path in missing_paths_with_parents(use_by_path)
    ]
    for mailbox in mailboxes:
        if mailbox.special_use in {SpecialUse.TRASH, SpecialUse.JUNK}:
            mailbox.retention = min(MAX_TRASH_RETENTION, mailbox.retention or MAX_TRASH_RETENTION)
            mailbox.retention_inherited = False
    return mailboxes


def _audit_log_entry(mutation: str, user: User) -> NewAuditLogEntry:
    new_values = {"username": user.username, "role": user.role}
    return NewAuditLogEntry(mutation, "User", user.id, user.domain_id, None, new_values)

"""Rename a domain with its addresses, usernames and rules in one transaction."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Executable,
    Select,
    String,
    and_,
    bindparam,
    case,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.orm import aliased
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.addresses.address_syntax import (
    ascii_domain,
    normalize_and_validate_domain,
    normalize_and_validate_username,
)
from mail.text import confusables
from models.addresses.rewrites import BccRule, RecipientRewrite
from models.addresses.tables import Address
from models.domains.tables import Domain, DomainAlias
from models.errors import Conflict, InvalidInput, MultipleErrors, NotFound, RequestError
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.store.columns import ColumnRow, core_table, select_columns
from models.users.search_index import search_text
from models.users.tables import User
from models.validation_constraints import ValidationConstraint
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.context import Context
from resolvers.domains import dkim_key_mutations, references
from resolvers.domains import loaders as domain_loaders
from resolvers.domains.loaders import DomainIdOrName
from resolvers.domains.streams import address_changes_by_stream, lock_platform_domains_and_users

MAX_LISTED_CONFLICTS = 100  # conflicts of usernames in one response
MAX_USERNAME_LENGTH = 128  # characters


_UPDATE_SEARCH_WORDS = (
    update(core_table(User))
    .where(col(User.id) == bindparam("user"))
    .values(words=bindparam("found_by"))
)


@dataclass(frozen=True, slots=True)
class DomainRenameResult:
    """The renamed domain with the numbers of changed rows."""

    domain: ColumnRow
    address_count: int
    user_count: int  # with a new username or main address
    alias_count: int  # alias domains of it
    key_count: int


@dataclass(frozen=True, slots=True)
class DomainRenameNames:
    """The domain id, its old and new name, and SQL expressions for the usernames to change."""

    domain_id: int
    old_name: str
    new_name: str

    @property
    def username_suffixes(self) -> tuple[str, str]:
        """The old and new suffix of usernames, always in ASCII."""
        return (
            f"@{ascii_domain(self.old_name)}",
            f"@{ascii_domain(self.new_name)}",
        )

    @property
    def username_key_suffixes(self) -> tuple[str, str]:
        """The old and new suffix of usernames in their compared form, in Unicode."""
        return f"@{self.old_name}", f"@{self.new_name}"

    @property
    def has_renamed_username(self) -> ColumnElement[bool]:
        """Users in the domain, or with an address there, whose username ends with its name."""
        owner_ids = select(col(Address.user_id)).where(col(Address.domain_id) == self.domain_id)
        is_in_domain = or_(col(User.domain_id) == self.domain_id, col(User.id).in_(owner_ids))
        return and_(
            is_in_domain,
            col(User.username_key).endswith(self.username_key_suffixes[0], autoescape=True),
        )

    @property
    def has_main_address_in_domain(self) -> ColumnElement[bool]:
        """Users whose main address is in the domain."""
        owner_ids = select(col(Address.user_id)).where(
            col(Address.domain_id) == self.domain_id, col(Address.main)
        )
        return col(User.id).in_(owner_ids)

    @property
    def new_username(self) -> Any:
        """The usernames with the new suffix."""
        old_suffix, new_suffix = self.username_suffixes
        return cut_by_suffix_length_sql(col(User.username), old_suffix) + new_suffix

    @property
    def new_username_key(self) -> Any:
        """The compared forms of usernames with the new suffix."""
        old_suffix, new_suffix = self.username_key_suffixes
        return cut_by_suffix_length_sql(col(User.username_key), old_suffix) + new_suffix


def cut_by_suffix_length_sql(column: Any, suffix: str) -> Any:
    """Return the SQL expression for a column without this suffix."""
    return func.substr(column, 1, func.length(column) - len(suffix), type_=String)


async def rename_domain(ctx: Context, ref: DomainIdOrName, new_name: str) -> DomainRenameResult:
    """Rename a domain, its addresses, and the usernames that are addresses in it.

    Uses one transaction, and a number of statements that does not depend on the number of
    users. Raises NotFound, InvalidInput, or MultipleErrors with every conflict.
    """
    new_name = normalize_and_validate_domain(new_name, path="newName")
    confusables.refuse_confusable_domain(new_name, path="newName")
    domain = await domain_loaders.find_administered_domain_by_ref(ctx, ref)
    old_name = domain_loaders.reference_text(ref)
    if domain is None:
        raise NotFound(old_name, path=["domain"])
    if domain.name == new_name:
        raise InvalidInput(
            "The new name must differ from the current name.",
            constraint=ValidationConstraint.SAME,
            path=["newName"],
        )
    names = DomainRenameNames(domain.id, domain.name, new_name)
    async with ctx.write_session() as session:
        await lock_platform_domains_and_users(session, [domain.id])
        if (await _load_domain(ctx, domain.id, old_name)).name != domain.name:
            raise NotFound(old_name, path=["domain"])  # another transaction renamed it first
        errors = [
            *await domain_loaders.find_domain_name_conflicts(session, new_name, path="newName"),
            *await _username_problems(ctx, names),
            *await _rewrite_problems(ctx, names),
        ]
        if errors:
            raise MultipleErrors(errors)
        changed = await _rename_domain_in_all_rows_and_count(ctx, session, names)
        row_after = await _load_domain(ctx, domain.id, old_name)
        entry = NewAuditLogEntry(
            mutation="domainRename",
            target_kind="Domain",
            target_id=domain.id,
            domain_id=domain.id,
            before={"name": names.old_name},
            after={"name": new_name},
        )
        await audit_log.insert_audit_log_entries(ctx, session, entry)
    return DomainRenameResult(row_after, **changed)


async def _load_domain(ctx: Context, domain_id: int, name: str) -> ColumnRow:
    for row in await ctx.read(select(*select_columns(Domain)).where(col(Domain.id) == domain_id)):
        return row
    raise NotFound(name, path=["domain"])


async def _username_problems(ctx: Context, names: DomainRenameNames) -> list[RequestError]:
    """Return why usernames can't be changed: a new one is in use or not allowed."""
    other_user: Any = aliased(User)
    conflict_statement: Select[*tuple[Any, ...]] = (
        select(col(User.username), col(other_user.username).label("other"))
        .join(other_user, col(other_user.username_key) == names.new_username_key)
        .where(names.has_renamed_username)
        .order_by(col(User.id))
        .limit(MAX_LISTED_CONFLICTS)
    )
    errors: list[RequestError] = [
        Conflict(
            f"The user {row.username} would get the name of the user {row.other}.", path=["newName"]
        )
        for row in await ctx.read(conflict_statement)
    ]
    length_statement = select(func.max(func.length(names.new_username)).label("longest"))
    for row in await ctx.read(length_statement.where(names.has_renamed_username)):
        if row.longest is not None:
            errors += _suffix_problems(names.username_suffixes[1], row.longest)
    return errors


async def _rewrite_problems(ctx: Context, names: DomainRenameNames) -> list[RequestError]:
    """Return a Conflict if recipient rewrites use the new name already."""
    is_target = col(RecipientRewrite.target).endswith(f"@{names.new_name}", autoescape=True)
    uses_name = (col(RecipientRewrite.domain) == names.new_name) | is_target
    if await ctx.read(select(col(RecipientRewrite.id)).where(uses_name).limit(1)):
        return [Conflict(f"A recipient rewrite already uses {names.new_name}.", path=["newName"])]
    return []


def _suffix_problems(suffix: str, longest_username_length: int) -> list[RequestError]:
    if longest_username_length > MAX_USERNAME_LENGTH:
        message = (
            f"A username has at most {MAX_USERNAME_LENGTH} characters, not "
            f"{longest_username_length}."
        )
        return [InvalidInput(message, constraint=ValidationConstraint.LENGTH, path=["newName"])]
    try:
        normalize_and_validate_username(f"x{suffix}", path=["newName"])
    except InvalidInput as problem:
        return [problem]
    return []


async def _rename_domain_in_all_rows_and_count(
    ctx: Context, session: AsyncSession, names: DomainRenameNames
) -> dict[str, int]:
    """Update all rows, record the changes, and return the counts of `DomainRenameResult`."""
    changes_by_stream = await address_changes_by_stream(
        ctx, [names.domain_id], EventType.ADDRESS_UPDATED
    )
    address_count = sum(len(ids) for kinds in changes_by_stream.values() for _, ids in kinds)
    user_ids_by_stream: dict[int, list[int]] = {}
    search_word_parameters = []
    for row in await ctx.read(_changed_users_statement(names)):
        user_ids_by_stream.setdefault(row.domain_id or PLATFORM, []).append(row.id)
        search_word_parameters.append({"user": row.id, "found_by": _search_words_after(names, row)})
    alias_statement = select(func.count()).where(col(DomainAlias.domain_id) == names.domain_id)
    ((alias_count,),) = await ctx.read(alias_statement)

    at = ctx.environment.now()
    connection = await session.connection()
    await connection.execute(_user_statement(names, at))
    if search_word_parameters:
        await connection.execute(_UPDATE_SEARCH_WORDS, search_word_parameters)
    for statement in (*_address_and_domain_statements(names, at), *_rule_statements(names)):
        await connection.execute(statement)
    for stream, ids in user_ids_by_stream.items():
        changes_by_stream.setdefault(stream, []).append((EventType.USER_UPDATED, ids))
    for stream in (names.domain_id, PLATFORM):
        changes_by_stream.setdefault(stream, []).append(
            (EventType.DOMAIN_UPDATED, [names.domain_id])
        )
    await _rename_references_and_add_changes(ctx, session, names, changes_by_stream)
    await ctx.record_changes(session, changes_by_stream)
    user_count = sum(len(ids) for ids in user_ids_by_stream.values())
    key_count = await dkim_key_mutations.rename_domain_of_keys_and_count(
        ctx, session, names.domain_id, names.old_name, names.new_name
    )
    return {
        "address_count": address_count,
        "user_count": user_count,
        "alias_count": alias_count,
        "key_count": key_count,
    }


async def _rename_references_and_add_changes(
    ctx: Context,
    session: AsyncSession,
    names: DomainRenameNames,
    changes_by_stream: dict[int, list[tuple[EventType, list[int]]]],
) -> None:
    """Rename the domain in targets and allowed senders of other users and addresses.

    The stream of the platform records these changes.
    """
    for event_type, rename_references in (
        (EventType.ADDRESS_UPDATED, references.rename_domain_in_address_targets),
        (EventType.USER_UPDATED, references.rename_domain_in_user_targets_and_senders),
    ):
        if ids := await rename_references(ctx, session, names.old_name, names.new_name):
            changes_by_stream.setdefault(PLATFORM, []).append((event_type, ids))


def _changed_users_statement(names: DomainRenameNames) -> Select[*tuple[Any, ...]]:
    """Return the statement that reads the users with a renamed username or main address."""
    is_main_address = and_(col(Address.user_id) == col(User.id), col(Address.main))
    return (
        select(
            *select_columns(User, {"id", "domain_id", "username", "name"}),
            names.has_renamed_username.label("called"),
            col(Address.display_address).label("main"),
        )
        .outerjoin(Address, is_main_address)
        .where(or_(names.has_renamed_username, names.has_main_address_in_domain))
        .order_by(col(User.id))
    )


def _address_and_domain_statements(names: DomainRenameNames, now: datetime) -> list[Executable]:
    """Return the statements that rename the addresses of the domain, and the domain."""
    text_column = col(Address.display_address)
    return [
        update(Address)
        .where(col(Address.domain_id) == names.domain_id)
        .values(
            display_address=cut_by_suffix_length_sql(text_column, f"@{names.old_name}")
            + f"@{names.new_name}",
            updated_at=now,
        ),
        update(Domain)
        .where(col(Domain.id) == names.domain_id)
        .values(name=names.new_name, updated_at=now),
    ]


def _rule_statements(names: DomainRenameNames) -> list[Executable]:
    """Return the statements that rename the domain in recipient rewrites and BCC targets.

    BCC rules refer to the domain of their match by id.
    """
    old_suffix = f"@{names.old_name}"

    def suffix_update(table: Any, column: Any) -> Executable:
        has_suffix = column.endswith(old_suffix, autoescape=True)
        return (
            update(table)
            .where(has_suffix)
            .values({column: cut_by_suffix_length_sql(column, old_suffix) + f"@{names.new_name}"})
        )

    match_update = update(RecipientRewrite).where(col(RecipientRewrite.domain) == names.old_name)
    return [
        match_update.values(domain=names.new_name),
        suffix_update(RecipientRewrite, col(RecipientRewrite.target)),
        suffix_update(BccRule, col(BccRule.bcc_to)),
    ]


def _user_statement(names: DomainRenameNames, now: datetime) -> Executable:
    """Return the statement that renames usernames and touches users with renamed main address."""
    has_renamed_username = names.has_renamed_username
    username, key_column = col(User.username), col(User.username_key)
    return (
        update(User)
        .where(or_(has_renamed_username, names.has_main_address_in_domain))
        .values(
            username=case((has_renamed_username, names.new_username), else_=username),
            username_key=case((has_renamed_username, names.new_username_key), else_=key_column),
            updated_at=now,
        )
    )


def _search_words_after(names: DomainRenameNames, user: ColumnRow) -> str:
    """Return the search words of a user after the rename."""
    old_suffix, new_suffix = names.username_suffixes
    username = user.username.removesuffix(old_suffix) + new_suffix if user.called else user.username
    main_address = user.main and user.main.removesuffix(f"@{names.old_name}")
    main_address = main_address if main_address == user.main else f"{main_address}@{names.new_name}"
    return search_text(username, user.name, main_address)

"""Contacts: addresses that an account has exchanged mail with, and colleagues."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, String, bindparam, func, null, select, union, union_all
from sqlmodel import col

from mail.recipients.contacts import contact_key_or_none
from models.addresses.tables import Address, Contact
from models.domains.tables import Domain
from models.errors import InvalidInput
from models.store.columns import ColumnRow
from models.store.keyset_pages import MAX_PAGE_SIZE
from models.store.prepared_statements import integer_parameter, prepare_cached
from models.users.search_index import TRIGRAM_LENGTH, has_prefix, user_search_text_contains
from models.users.tables import User
from models.validation_constraints import ValidationConstraint
from resolvers.access import is_own_or_shared
from resolvers.context import Context
from resolvers.pagination import read_union

CONTACT_COLUMNS: tuple[Any, ...] = (
    col(Contact.id),
    col(Contact.name),
    col(Contact.address),
    col(Contact.last_used_at),
)
MAX_QUERY_LENGTH = 320  # characters


@dataclass(frozen=True, slots=True)
class ContactSearch:
    """A search for a user's contacts by the beginning of their address or name.

    Colleagues are also found by any part of their name if the query has at least three
    characters.
    """

    user_id: int
    query: str
    limit: int


async def load_visible_contacts_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load contacts by id, in the given order. None for an id that the viewer can't see.

    An id is that of a contact of the viewer, or that of the main address of a colleague.
    """
    contact_statement = select(*CONTACT_COLUMNS).where(
        is_own_or_shared(ctx, Contact), col(Contact.id).in_(ids)
    )
    colleague_statement = _select_colleagues(ctx).where(col(Address.id).in_(ids))
    union_statement: Select[*tuple[Any, ...]] = select(
        union_all(contact_statement, colleague_statement).subquery()
    )
    rows_by_id = {row.id: row for row in await ctx.read(union_statement)}
    return [rows_by_id.get(key) for key in ids]


def _select_colleagues(ctx: Context) -> Select[*tuple[Any, ...]]:
    """Select the other users of the viewer's domain as contacts.

    Selects nothing unless the domain has the global address list enabled.
    """
    domain_statement = _domain_with_global_address_list(ctx.viewer.user_id)
    return (
        select(
            col(Address.id).label("id"),
            func.coalesce(col(Address.name), col(User.name)).label("name"),
            col(Address.display_address).label("address"),
            null().label("last_used_at"),
        )
        .join(User, col(User.id) == col(Address.user_id))
        .where(
            col(Address.main),
            col(Address.active),
            col(User.active),
            col(User.domain_id).in_(domain_statement),
            col(User.id) != ctx.viewer.user_id,
        )
    )


def validated_query_and_limit(query: str, limit: int) -> tuple[str, int]:
    """Return the trimmed query and the limit. Raises InvalidInput if one is not allowed."""
    if len(query) > MAX_QUERY_LENGTH:
        error_text = f"The search text has at most {MAX_QUERY_LENGTH} characters."
        raise InvalidInput(error_text, constraint=ValidationConstraint.MAX, path=["query"])
    if not 0 < limit <= MAX_PAGE_SIZE:
        raise InvalidInput(
            f"Must be from 1 to {MAX_PAGE_SIZE}.",
            constraint=ValidationConstraint.RANGE,
            path=["first"],
        )
    return query.strip(), limit


async def load_contacts_and_colleagues_by_search(
    ctx: Context, searches: list[ContactSearch]
) -> list[list[ColumnRow]]:
    """Load the contacts of each search, the last used first, and then colleagues.

    Colleagues are added for searches of the viewer's own account only. The number of statements
    doesn't depend on that of the searches.
    """
    contact_rows = await _load_contacts_by_search(ctx, searches)
    own_searches = [key for key in searches if key.user_id == ctx.viewer.user_id]
    if own_searches and not await ctx.read_prepared(_select_global_address_list_of_viewer()):
        own_searches = []
    colleague_rows = (
        await read_union(
            ctx, [_select_colleagues_of_search(ctx, key) for key in own_searches], ["address"]
        )
        if own_searches
        else []
    )
    colleagues_by_search = dict(zip(own_searches, colleague_rows, strict=True))
    results = []
    for search, rows in zip(searches, contact_rows, strict=True):
        known_keys = {contact_key_or_none(row.address) for row in rows}
        new_colleagues = [
            row
            for row in colleagues_by_search.get(search, ())
            if contact_key_or_none(row.address) not in known_keys
        ]
        results.append([*rows, *new_colleagues][: search.limit])
    return results


async def _load_contacts_by_search(
    ctx: Context, searches: list[ContactSearch]
) -> list[Sequence[Any]]:
    """Load the contacts of each search, the last used first."""
    (first, *others), dialect = searches, ctx.environment.database.dialect
    if not others and first.user_id == ctx.viewer.user_id:
        statement = _select_contacts_of_viewer(dialect, has_query=bool(first.query))
        prefix = first.query.casefold()
        return [await ctx.read_prepared(statement, prefix=prefix, limit=first.limit)]
    selects = [
        _contacts_by_prefix(
            dialect, key.user_id, key.query.casefold() if key.query else None, key.limit
        ).where(is_own_or_shared(ctx, Contact))
        for key in searches
    ]
    rows_of_searches = await read_union(ctx, selects, ["last_used_at", "id"])
    return [rows[::-1] for rows in rows_of_searches]


@prepare_cached
def _select_contacts_of_viewer(dialect: str, *, has_query: bool) -> Select[*tuple[Any, ...]]:
    prefix = bindparam("prefix", type_=String) if has_query else None
    return _contacts_by_prefix(
        dialect, integer_parameter("viewer"), prefix, integer_parameter("limit")
    )


@prepare_cached
def _select_global_address_list_of_viewer() -> Select[*tuple[Any, ...]]:
    """Select a row if the viewer's domain has the global address list enabled."""
    return _domain_with_global_address_list(integer_parameter("viewer"))


def _domain_with_global_address_list(user_id: Any) -> Select[*tuple[Any, ...]]:
    """Select the id of a user's domain if it has the global address list enabled."""
    return (
        select(col(User.domain_id))
        .join(Domain, col(Domain.id) == col(User.domain_id))
        .where(col(User.id) == user_id, col(Domain.global_address_list))
    )


def _select_colleagues_of_search(ctx: Context, search: ContactSearch) -> Select[*tuple[Any, ...]]:
    """Select the colleagues that a search finds, ordered by address."""
    dialect, query_part = ctx.environment.database.dialect, search.query.casefold()
    statement = _select_colleagues(ctx)
    if len(query_part) >= TRIGRAM_LENGTH:
        statement = statement.where(user_search_text_contains(dialect, query_part))
    elif query_part:
        statement = statement.where(has_prefix(dialect, col(Address.local), query_part))
    return statement.order_by(col(Address.display_address)).limit(search.limit)


def _contacts_by_prefix(
    dialect: str, user_id: Any, prefix: Any, limit: Any
) -> Select[*tuple[Any, ...]]:
    """Select a user's contacts whose name or address begins with a prefix, the last used first.

    The prefix is case folded. None selects all contacts.
    """
    is_of_user = col(Contact.user_id) == user_id
    statement = select(*CONTACT_COLUMNS).where(is_of_user)
    if prefix is not None:
        # two ranges of indexes: an OR would read all of the account
        id_statement = select(col(Contact.id))
        statement = statement.where(
            col(Contact.id).in_(
                union(
                    id_statement.where(
                        is_of_user, has_prefix(dialect, col(Contact.folded_name), prefix)
                    ),
                    id_statement.where(is_of_user, has_prefix(dialect, col(Contact.key), prefix)),
                )
            )
        )
    newest = (col(Contact.last_used_at).desc(), col(Contact.id).desc())
    return statement.order_by(*newest).limit(limit)

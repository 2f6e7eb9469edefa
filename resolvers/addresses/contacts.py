"""Contacts: addresses that an account has exchanged mail with, and colleagues."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, func, null, select, union, union_all
from sqlmodel import col

from mail.recipients.contacts import contact_key_or_none
from models.addresses.tables import Address, Contact
from models.domains.tables import Domain
from models.errors import InvalidInput
from models.store.columns import ColumnRow
from models.store.keyset_pages import MAX_PAGE_SIZE
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
    domain_statement = (
        select(col(User.domain_id))
        .join(Domain, col(Domain.id) == col(User.domain_id))
        .where(col(User.id) == ctx.viewer.user_id, col(Domain.global_address_list))
    )
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

    Colleagues are added for searches of the viewer's own account only. Runs one statement for
    all contacts and one for all colleagues.
    """
    contact_rows = await read_union(
        ctx, [_select_contacts_of_search(ctx, key) for key in searches], ["last_used_at", "id"]
    )
    own_searches = [key for key in searches if key.user_id == ctx.viewer.user_id]
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
        results.append([*rows[::-1], *new_colleagues][: search.limit])
    return results


def _select_colleagues_of_search(ctx: Context, search: ContactSearch) -> Select[*tuple[Any, ...]]:
    """Select the colleagues that a search finds, ordered by address."""
    dialect, query_part = ctx.environment.database.dialect, search.query.casefold()
    statement = _select_colleagues(ctx)
    if len(query_part) >= TRIGRAM_LENGTH:
        statement = statement.where(user_search_text_contains(dialect, query_part))
    elif query_part:
        statement = statement.where(has_prefix(dialect, col(Address.local), query_part))
    return statement.order_by(col(Address.display_address)).limit(search.limit)


def _select_contacts_of_search(ctx: Context, search: ContactSearch) -> Select[*tuple[Any, ...]]:
    """Select the contacts whose name or address begins with the query, the last used first."""
    dialect, is_of_user = ctx.environment.database.dialect, col(Contact.user_id) == search.user_id
    statement = select(*CONTACT_COLUMNS).where(is_of_user, is_own_or_shared(ctx, Contact))
    if search.query:
        # two ranges of indexes: an OR would read all of the account
        id_statement = select(col(Contact.id))
        name_matches = has_prefix(dialect, col(Contact.folded_name), search.query.casefold())
        address_matches = has_prefix(dialect, col(Contact.key), search.query.casefold())
        statement = statement.where(
            col(Contact.id).in_(
                union(
                    id_statement.where(is_of_user, name_matches),
                    id_statement.where(is_of_user, address_matches),
                )
            )
        )
    newest = (col(Contact.last_used_at).desc(), col(Contact.id).desc())
    return statement.order_by(*newest).limit(search.limit)

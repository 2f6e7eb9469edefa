"""Selections of users that a mutation is for."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from sqlalchemy import ColumnElement, func, or_, select
from sqlmodel import col

from mail.addresses import address_syntax
from mail.recipients import address_resolution
from models.domains.tables import Domain
from models.errors import (
    Forbidden,
    InvalidInput,
    LimitReached,
    NotFound,
    RequestError,
    require_within_limit,
)
from models.store.columns import ColumnRow, select_columns
from models.users.roles import Role
from models.users.search_index import TRIGRAM_LENGTH, has_prefix, user_search_text_contains
from models.users.tables import User, UserTag
from models.validation_constraints import ValidationConstraint
from resolvers.access import is_managed_user, is_visible_user, require_user_id
from resolvers.context import Context
from resolvers.domains.loaders import DomainIdOrName
from resolvers.sql_text import any_holds_sql
from resolvers.viewer import GuardRule

MAX_PATTERN_LENGTH = 128  # characters, as of a username
_WILDCARDS = re.compile(r"[*?]+")


@dataclass(frozen=True, slots=True)
class UserSelector:
    """A selection of users: those that meet any of the conditions.

    A selection that was not `was_sent` and has no condition means the viewer. One that was chosen
    and has none, as with empty lists, means no user. Each id and name must be that of a user.
    """

    was_sent: bool = False  # the client sent a selection, maybe with empty lists
    is_reference: bool = False  # no list of the input names the users: a UserRef does, or nothing

    all: bool = False
    ids: tuple[int, ...] = ()
    usernames: tuple[str, ...] = ()  # or addresses
    patterns: tuple[str, ...] = ()  # usernames with * and ?
    domains: tuple[DomainIdOrName, ...] = ()
    tags: tuple[str, ...] = ()

    @property
    def is_given(self) -> bool:
        """True if the client sent a selection, even of no user."""
        return any(getattr(self, field.name) for field in fields(self))

    def path_of_list(self, path: str, name: str) -> list[str]:
        """Return the path of a list of the selection in the input, or of the single reference."""
        return [path] if self.is_reference else [path, name]

    def move_error_path_to_user(
        self, error: RequestError, user_id: int, named_ids: Sequence[int] = ()
    ) -> RequestError:
        """Return the error with the path and index of the item that names a user.

        The error has the path of the selection. `named_ids` are the IDs of `usernames`.
        """
        if self.is_reference:
            return error
        for name, ids in (("ids", self.ids), ("usernames", named_ids)):
            if user_id in ids:
                error.path, error.index = [*error.path, name], ids.index(user_id)
                break
        return error


NO_SELECTION = UserSelector()  # in the conditions of a list: all users that the viewer sees
VIEWER_ONLY = NO_SELECTION  # in a request for a change: the viewer


async def require_selected_users(
    ctx: Context, selection: UserSelector, *, only_managed: bool = True, path: str = "users"
) -> list[ColumnRow]:
    """Load the rows of the selected users, by id, up to the limit of one mutation.

    Raises NotFound if a named user is not visible, LimitReached for too many users, and Forbidden
    if the viewer may not use a condition (`_require_conditions_allowed`). With `only_managed`, also
    if the viewer can't change one of the selected users.
    """
    limit = ctx.environment.options.bulk_max_items
    if not selection.is_given:
        selection = UserSelector(ids=(require_user_id(ctx),))
    named_ids = await _validate_and_resolve_user_ids(ctx, selection, path)
    conditions = [
        *_alternative_user_conditions(ctx.environment.database.dialect, selection),
        col(User.id).in_(named_ids),
    ]
    is_visible = is_visible_user(ctx)
    is_allowed = is_managed_user(ctx).label("free") if only_managed else is_visible.label("free")
    statement = (
        select(*select_columns(User), is_allowed)
        .where(is_visible, or_(*conditions))
        .order_by(col(User.id))
    )
    rows: Sequence[ColumnRow] = await ctx.read(statement.limit(limit + 1))
    rows_by_id = {row.id: row for row in rows}
    for index, key in enumerate(selection.ids):
        if key not in rows_by_id and len(rows) <= limit:
            raise NotFound(str(key), path=selection.path_of_list(path, "ids"), index=index)
    _require_user_count_within_limit(len(rows), limit, path)
    for row in rows:
        if not row.free:
            text = f"Requires the role {row.role}."
            error = Forbidden(text, requires=row.role, path=[path])
            raise selection.move_error_path_to_user(error, row.id, named_ids)
    return list(rows)


async def selector_with_ids_of_names(
    ctx: Context, selection: UserSelector, path: str = "users"
) -> UserSelector:
    """Return the selection with the ids of its usernames and addresses in place of these.

    Raises the errors of `selection_condition`.
    """
    named_ids = await _validate_and_resolve_user_ids(ctx, selection, path)
    return replace(selection, usernames=(), ids=(*selection.ids, *named_ids))


async def selection_condition(
    ctx: Context, selection: UserSelector, *, path: str = "users"
) -> ColumnElement[bool]:
    """The WHERE clause for the selected users, without limit, as far as the viewer sees them.

    Raises NotFound for an unknown username or address, and Forbidden for conditions that the viewer
    may not use.
    """
    if not selection.is_given:
        selection = UserSelector(ids=(require_user_id(ctx),))
    named_ids = await _validate_and_resolve_user_ids(ctx, selection, path)
    conditions = [
        *_alternative_user_conditions(ctx.environment.database.dialect, selection),
        col(User.id).in_(named_ids),
    ]
    return is_visible_user(ctx) & or_(*conditions)


async def _validate_and_resolve_user_ids(
    ctx: Context, selection: UserSelector, path: str
) -> list[int]:
    """Check the sizes of a selection; return the ids of its usernames and addresses.

    Raises LimitReached, NotFound, InvalidInput if a pattern is too long, or Forbidden for
    conditions that the viewer may not use.
    """
    limit = ctx.environment.options.bulk_max_items
    await _require_conditions_allowed(ctx, selection, path)
    _require_list_lengths_within_limit(selection, limit, path)
    for index, pattern in enumerate(selection.patterns):
        _require_short_pattern(pattern, selection.path_of_list(path, "patterns"), index)
    return await _require_user_ids_of_names(ctx, selection, path)


def _require_user_count_within_limit(count: int, limit: int, path: str) -> None:
    """Raise LimitReached for more users than one mutation can change."""
    if count > limit:
        raise LimitReached(
            f"At most {limit:,} users can be selected at once: narrow the selection.",
            limit=limit,
            used=count,
            path=[path],
        )


def _require_list_lengths_within_limit(selection: UserSelector, limit: int, path: str) -> None:
    """Raise LimitReached for a list of the selection with more items than the limit."""
    text = f"At most {limit:,} items can be selected at once."
    for name in ("ids", "usernames", "patterns", "domains", "tags"):
        require_within_limit(len(getattr(selection, name)), limit, text, path=[path, name])


async def _require_conditions_allowed(ctx: Context, selection: UserSelector, path: str) -> None:
    """Raise Forbidden if a condition can select users whom the viewer can't see.

    `all` requires the role ADMIN. The other conditions require the role DOMAIN_ADMIN, and that it
    administers all `domains`. Its `patterns` and `tags` select among the users that it sees.
    """
    if selection.all:
        ctx.viewer.require(GuardRule(role=Role.ADMIN), path=selection.path_of_list(path, "all"))
    for name in ("patterns", "domains", "tags"):
        if getattr(selection, name):
            ctx.viewer.require(
                GuardRule(role=Role.DOMAIN_ADMIN), path=selection.path_of_list(path, name)
            )
    if selection.domains and not ctx.viewer.role.includes(Role.ADMIN):
        await _require_administered_domains(ctx, selection, path)


async def _require_administered_domains(ctx: Context, selection: UserSelector, path: str) -> None:
    """Raise Forbidden for a domain that the viewer does not administer, also an unknown one."""
    statement = select(col(Domain.id), col(Domain.name)).where(
        col(Domain.id).in_(ctx.viewer.administered_domains)
    )
    rows = await ctx.read(statement)
    ids, names = {row.id for row in rows}, {row.name for row in rows}
    for index, ref in enumerate(selection.domains):
        is_named = ref.name is not None and address_syntax.normalized_domain(ref.name) in names
        if not (is_named or ref.id in ids):
            raise Forbidden(
                "You don't administer this domain.",
                requires=Role.ADMIN,
                path=selection.path_of_list(path, "domains"),
                index=index,
            )


async def require_managed_user(ctx: Context, user_id: int, *, path: str = "user") -> ColumnRow:
    """Load a user that the viewer can change.

    Raises NotFound or Forbidden as `require_managed_users` does, without an index.
    """
    try:
        (row,) = await require_managed_users(ctx, [user_id], path=path)
    except (NotFound, Forbidden) as refusal:
        refusal.index = None
        raise
    return row


async def require_managed_users(
    ctx: Context, user_ids: Sequence[int], *, path: str
) -> Sequence[ColumnRow]:
    """Load users that the viewer can change, each once, by id.

    Raises NotFound if the viewer does not see one, Forbidden if one can't be changed. The index
    of these errors is that of the id in `user_ids`.
    """
    if not user_ids:
        return []
    is_managed = is_managed_user(ctx).label("free")
    statement = select(*select_columns(User), is_managed).where(
        col(User.id).in_(user_ids), is_visible_user(ctx)
    )
    rows: Sequence[ColumnRow] = await ctx.read(statement.order_by(col(User.id)))
    rows_by_id = {row.id: row for row in rows}
    for index, user_id in enumerate(user_ids):
        if user_id not in rows_by_id:
            raise NotFound(str(user_id), path=[path], index=index)
        if not (row := rows_by_id[user_id]).free:
            text = f"Requires the role {row.role}."
            raise Forbidden(text, requires=row.role, path=[path], index=index)
    return rows


async def _require_user_ids_of_names(ctx: Context, selection: UserSelector, path: str) -> list[int]:
    """Return the ids of the selected usernames and addresses.

    Raises NotFound for an unknown one.
    """
    user_ids = []
    for index, name in enumerate(selection.usernames):
        user_id = await address_resolution.find_sign_in_user_id(ctx.environment, name)
        statement = select(col(User.id)).where(col(User.id) == (user_id or 0), is_visible_user(ctx))
        if user_id is None or not await ctx.read(statement):
            list_path = selection.path_of_list(path, "usernames")
            raise NotFound(name, path=list_path, index=index, noun="User")
        user_ids.append(user_id)
    return user_ids


def _alternative_user_conditions(
    dialect: str, selection: UserSelector
) -> list[ColumnElement[bool]]:
    """The alternative conditions of a selection, without its names."""
    conditions: list[ColumnElement[bool]] = []
    if selection.all:
        conditions.append(col(User.id) > 0)
    if selection.ids:
        conditions.append(col(User.id).in_(selection.ids))
    if selection.patterns:
        conditions.append(matches_patterns_sql(dialect, selection.patterns))
    if selection.domains:
        conditions.append(is_in_domains_sql(selection.domains))
    if selection.tags:
        conditions.append(has_any_tag_sql(selection.tags))
    return conditions


def is_in_domains_sql(domains: Sequence[DomainIdOrName]) -> ColumnElement[bool]:
    """SQL: users with the main address in one of these domains."""
    names = [address_syntax.normalized_domain(ref.name) for ref in domains if ref.name is not None]
    named_ids = select(col(Domain.id)).where(col(Domain.name).in_(names))
    domain_ids = [ref.id for ref in domains if ref.id is not None]
    return col(User.domain_id).in_(named_ids) | col(User.domain_id).in_(domain_ids)


def matches_patterns_sql(dialect: str, patterns: Sequence[str]) -> ColumnElement[bool]:
    """SQL: users with a normalized username that matches one of these patterns with * and ?.

    An index finds the fixed beginning of a pattern, or else three letters at any place.
    """
    return any_holds_sql(
        [_matches_pattern_sql(dialect, pattern, nth) for nth, pattern in enumerate(patterns)]
    )


def _require_short_pattern(pattern: str, path: Sequence[str], index: int) -> None:
    if len(pattern) > MAX_PATTERN_LENGTH:
        message = f"A pattern has at most {MAX_PATTERN_LENGTH} characters."
        raise InvalidInput(message, constraint=ValidationConstraint.MAX, path=path, index=index)


def _matches_pattern_sql(dialect: str, pattern: str, index: int) -> ColumnElement[bool]:
    """SQL: users with a username that matches a pattern.

    Raises InvalidInput if the pattern is too long.
    """
    _require_short_pattern(pattern, ["patterns"], index)
    username_key: Any = col(User.username_key)
    pattern = address_syntax.username_key(pattern)
    like_pattern = pattern
    for special in "/%_":
        like_pattern = like_pattern.replace(special, "/" + special)
    matches_pattern: ColumnElement[bool] = username_key.like(
        like_pattern.replace("*", "%").replace("?", "_"), escape="/"
    )
    prefix, *fixed_parts = _WILDCARDS.split(pattern)
    if prefix:
        return has_prefix(dialect, username_key, prefix) & matches_pattern
    longest_part = max(fixed_parts, key=len, default="")
    return (
        user_search_text_contains(dialect, longest_part) & matches_pattern
        if len(longest_part) >= TRIGRAM_LENGTH
        else matches_pattern
    )


def has_any_tag_sql(tags: Sequence[str]) -> ColumnElement[bool]:
    """SQL: users with any of these tags, in any case."""
    folded = {tag.strip().casefold() for tag in tags}
    user_ids = select(col(UserTag.user_id)).where(col(UserTag.tag).in_(folded))
    return col(User.id).in_(user_ids)


def has_all_tags_sql(tags: Sequence[str]) -> ColumnElement[bool]:
    """SQL: users with all of these tags, in any case."""
    folded = {tag.strip().casefold() for tag in tags}
    count = func.count(col(UserTag.tag).distinct())
    user_ids = (
        select(col(UserTag.user_id))
        .where(col(UserTag.tag).in_(folded))
        .group_by(col(UserTag.user_id))
        .having(count == len(folded))
    )
    return col(User.id).in_(user_ids)

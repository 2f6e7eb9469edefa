"""The users whose sessions a request is about, as a request to other processes names them."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from sqlalchemy import ColumnElement, select
from sqlmodel import col

from models.runtime.environment import Environment
from models.users.roles import Role
from models.users.tables import User
from resolvers.access import is_managed_user, is_overseen_user
from resolvers.context import Context
from resolvers.domains.loaders import DomainIdOrName
from resolvers.users.selection import (
    UserSelector,
    require_selected_users,
    selection_condition,
    selector_with_ids_of_names,
)
from resolvers.viewer import Viewer

MAX_IDS_PER_SELECT = 1000


class ItemOfUser(Protocol):
    """A session or another item in the memory of a process, which can belong to a user."""

    @property
    def user_id(self) -> int | None:
        """User that the item belongs to; None without one."""


OwnedItem = TypeVar("OwnedItem", bound=ItemOfUser)


@dataclass(frozen=True, slots=True)
class SessionScope:
    """The sessions that a viewer sees, or can end: all of the selected users.

    An ADMIN without a selection also has those without a user. If `user_ids` is given, it names
    the users, and the viewer's rights were checked before.
    """

    viewer: Viewer = field(default_factory=Viewer)
    selector: UserSelector | None = None
    only_managed: bool = False
    user_ids: frozenset[int] | None = None

    @property
    def includes_sessions_without_user(self) -> bool:
        """True if sessions without a user are in the scope."""
        return (
            self.user_ids is None
            and self.selector is None
            and self.viewer.role.includes(Role.ADMIN)
        )

    async def user_ids_in_scope(
        self, environment: Environment, user_ids: Collection[int]
    ) -> Collection[int]:
        """Return those of these users that are in the scope."""
        if self.user_ids is not None:
            return self.user_ids.intersection(user_ids)
        role = self.viewer.role
        if self.selector is None and not self.only_managed and role.includes(Role.ADMIN):
            return user_ids
        if self.selector is None and not role.includes(Role.DOMAIN_ADMIN):
            return {self.viewer.user_id}.intersection(user_ids)
        ctx = Context(environment, self.viewer)
        conditions: list[ColumnElement[bool]] = [
            is_managed_user(ctx) if self.only_managed else is_overseen_user(ctx)
        ]
        if self.selector is not None:
            conditions.append(await selection_condition(ctx, self.selector))
        found_ids, all_ids = set[int](), list(user_ids)
        for start in range(0, len(all_ids), MAX_IDS_PER_SELECT):
            part = all_ids[start : start + MAX_IDS_PER_SELECT]
            statement = select(col(User.id)).where(col(User.id).in_(part), *conditions)
            found_ids.update(row.id for row in await environment.database.read(statement))
        return found_ids

    async def items_in_scope(
        self, environment: Environment, items: Iterable[OwnedItem]
    ) -> list[OwnedItem]:
        """Return those of these items whose users are in the scope."""
        items = list(items)
        user_ids = {item.user_id for item in items if item.user_id}
        allowed_ids = await self.user_ids_in_scope(environment, user_ids) if user_ids else ()
        includes_userless = self.includes_sessions_without_user
        if includes_userless and len(allowed_ids) == len(user_ids):
            return items
        return [
            item
            for item in items
            if (item.user_id in allowed_ids if item.user_id else includes_userless)
        ]

    def to_arguments(self) -> dict[str, Any]:
        """Return the scope as JSON values."""
        if self.user_ids is not None:
            return {"userIds": sorted(self.user_ids)}
        arguments: dict[str, Any] = {
            "viewer": {
                "userId": self.viewer.user_id,
                "role": self.viewer.role.value,
                "domainIds": sorted(self.viewer.administered_domains),
            },
            "onlyManaged": self.only_managed,
        }
        if self.selector is not None:
            arguments["selector"] = {
                "all": self.selector.all,
                "ids": list(self.selector.ids),
                "patterns": list(self.selector.patterns),
                "domains": [[domain.id, domain.name] for domain in self.selector.domains],
                "tags": list(self.selector.tags),
            }
        return arguments

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> "SessionScope":
        """Return the scope of the JSON values of `to_arguments`."""
        if "userIds" in arguments:
            return cls(user_ids=frozenset(arguments["userIds"]))
        viewer = arguments["viewer"]
        selector: UserSelector | None = None
        if "selector" in arguments:
            values = arguments["selector"]
            selector = UserSelector(
                was_sent=True,
                all=values["all"],
                ids=tuple(values["ids"]),
                patterns=tuple(values["patterns"]),
                domains=tuple(DomainIdOrName(id=key, name=name) for key, name in values["domains"]),
                tags=tuple(values["tags"]),
            )
        return cls(
            Viewer(
                viewer["userId"],
                Role(viewer["role"]),
                administered_domains=frozenset(viewer["domainIds"]),
            ),
            selector,
            arguments["onlyManaged"],
        )


async def create_visible_scope(ctx: Context, selector: UserSelector | None) -> SessionScope:
    """Return the scope of the sessions that the viewer sees, of the selected users or of all.

    Raises NotFound for an unknown username, Forbidden if the viewer selects `all` without the role
    ADMIN, LimitReached if a list of the selection is too long, and InvalidInput if a pattern is.
    """
    if selector is not None:
        selector = await _checked_selector(ctx, selector, "filter")
    return SessionScope(ctx.viewer, selector)


async def require_managed_scope(ctx: Context, selector: UserSelector | None) -> SessionScope:
    """Return the scope of the sessions that the viewer can end, of the selected users or of all.

    Users that the viewer can't change are left out of patterns, domains, tags and `all`. Raises
    NotFound or Forbidden for a named user that the viewer doesn't see or can't change, Forbidden
    if the viewer selects `all` without the role ADMIN, LimitReached if a list of the selection is
    too long, and InvalidInput if a pattern is. A selection without a condition means the viewer.
    """
    if selector is None:
        return SessionScope(ctx.viewer, only_managed=True)
    named_users = replace(selector, all=False, patterns=(), domains=(), tags=())
    if named_users == selector:
        rows = await require_selected_users(ctx, selector)
        return SessionScope(user_ids=frozenset(row.id for row in rows))
    if named_users.ids or named_users.usernames:
        await require_selected_users(ctx, named_users)
    selector = await _checked_selector(ctx, selector, "users")
    return SessionScope(ctx.viewer, selector, only_managed=True)


async def _checked_selector(ctx: Context, selector: UserSelector, path: str) -> UserSelector:
    """Return the selection with ids in place of names, after all checks of a selection."""
    selector = await selector_with_ids_of_names(ctx, selector, path)
    await selection_condition(ctx, selector, path=path)
    return selector

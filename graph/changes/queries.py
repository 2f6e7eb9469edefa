"""Query and subscriptions of the change stream."""

from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Annotated, Any

import strawberry
from strawberry import UNSET

from graph.changes.types import ChangeBatch
from graph.types import global_ids
from graph.types.fields import Info, query, subscription
from graph.types.references import UserRef, is_given, owner_named
from graph.types.scalars import Cursor, Duration
from graph.users.queries import UserFilter
from models.errors import Invalid
from models.events.journal import ChangeKind, Position
from models.mailboxes.shares import ShareRight
from models.users.roles import Role, Scope
from resolvers.changes import managed_streams
from resolvers.changes.stream_reader import Asked, follow, page, standing
from resolvers.changes.visible_streams import Hear
from resolvers.mailboxes.loaders import Named, find

WINDOW = timedelta(milliseconds=50)
LONGEST = timedelta(minutes=1)
FILTERS = 100  # mailboxes or kinds of one subscription
PAGE = 500
MOST = 1000  # events per page


async def _whose(info: Info, user: UserRef | None) -> Hear:
    """Return the function that lists the streams of an account; default: those of the viewer.

    Raises NotFound if the viewer can't see the user.
    """
    key = await owner_named(info, user)
    return managed_streams.account(None if key == info.context.viewer.user_id else key)


def since(info: Info, after: object) -> Position | None:
    """Return the position that a subscription continues after; None = now.

    The position that the transport was given has precedence over the argument.
    """
    trail = info.context.trail
    if trail and trail.since:
        return trail.since
    return after if isinstance(after, dict) else None


def _few(items: Sequence[object] | None, name: str) -> None:
    """Raise Invalid if a list argument has too many items."""
    if len(items or ()) > FILTERS:
        raise Invalid(f"at most {FILTERS}", constraint="max", path=[name])


async def _batches(info: Info, asked: Asked) -> AsyncIterator[ChangeBatch]:
    """Yield batches of committed changes until the client leaves."""
    async for batch in follow(info.context, asked):
        yield ChangeBatch.of(batch, info.context.world.now())


def _chosen(given: list[Any] | None) -> frozenset[Any] | None:
    """The items of an optional list; None if no list is given. An empty list selects nothing."""
    return frozenset(given or ()) if is_given(given) else None


def _boxes(given: list[strawberry.ID] | None) -> frozenset[int] | None:
    """Decode the global IDs of an optional list; None if no list is given.

    Raises Invalid if one is not the ID of a mailbox.
    """
    if not is_given(given):
        return None
    return frozenset(
        global_ids.decode("Mailbox", global_id, path="mailboxes") for global_id in given or ()
    )


@strawberry.type
class ChangeQuery:
    @query(
        "The events of the subscription by polling (delta sync), also from far behind.",
        scope=Scope.MAIL_READ,
    )
    async def changes(
        self,
        info: Info,
        after: Cursor,
        user: UserRef | None = UNSET,
        kinds: list[ChangeKind] | None = UNSET,
        first: Annotated[
            int, strawberry.argument(description=f"How many events at most: 1 to {MOST}.")
        ] = PAGE,
    ) -> ChangeBatch:
        if not 0 < first <= MOST:
            raise Invalid(f"first is 1 to {MOST}", constraint="page", path=["first"])
        _few(kinds, "kinds")
        position = after if isinstance(after, dict) else {}
        request = Asked(position, _chosen(kinds), hear=await _whose(info, user))
        batch = await page(info.context, request, first)
        return ChangeBatch.of(batch, info.context.world.now())


@strawberry.type
class ChangeSubscription:
    @subscription(
        "All changes of one account after a position: missed, then live. Of the viewer's with "
        "what is shared with it; of another's for administrators who may act as the user. "
        "batchWindow = least time between two batches.",
        standing=standing,
        scope=Scope.MAIL_READ,
    )
    async def changes(
        self,
        info: Info,
        user: UserRef | None = UNSET,
        after: Cursor | None = UNSET,
        kinds: list[ChangeKind] | None = UNSET,
        mailboxes: list[strawberry.ID] | None = UNSET,
        batch_window: Duration | None = UNSET,
        folded: Annotated[
            bool,
            strawberry.argument(
                description="Whether several changes of one message, submission or task in one "
                "batch are told as the last of them."
            ),
        ] = False,
    ) -> AsyncIterator[ChangeBatch]:
        window = batch_window if isinstance(batch_window, timedelta) else WINDOW
        if not timedelta(0) <= window <= LONGEST:
            raise Invalid("at most a minute", constraint="max", path=["batchWindow"])
        _few(kinds, "kinds")
        _few(mailboxes, "mailboxes")
        request = Asked(
            since(info, after),
            _chosen(kinds),
            _boxes(mailboxes),
            window,
            await _whose(info, user),
            folded=folded,
        )
        async for batch in _batches(info, request):
            yield batch

    @subscription(
        "Changes of one folder, own or shared, and of the messages in it. It ends when the "
        "folder is gone.",
        standing=standing,
        scope=Scope.MAIL_READ,
    )
    async def mailbox_changes(
        self,
        info: Info,
        mailbox: Annotated[strawberry.ID, strawberry.argument(description="Which.")],
        after: Cursor | None = UNSET,
    ) -> AsyncIterator[ChangeBatch]:
        mailbox_id = global_ids.decode("Mailbox", mailbox, path="mailbox")
        await find(info.context, Named(id=mailbox_id), ShareRight.LOOKUP)
        request = Asked(since(info, after), mailboxes=frozenset({mailbox_id}))
        async for batch in follow(info.context, request):
            yield ChangeBatch.of(batch, info.context.world.now())
            if any(event.kind is ChangeKind.MAILBOX_DELETED for event in batch.events):
                return

    @subscription(
        "Changes of accounts and their addresses in the domains the viewer is in charge of, for "
        "administration screens. Without a domain in the filter at most 99 are followed.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.READ,
    )
    async def user_changes(
        self, info: Info, filter: UserFilter | None = UNSET, after: Cursor | None = UNSET
    ) -> AsyncIterator[ChangeBatch]:
        where = (filter or UserFilter()).where()
        stream_source = managed_streams.places(
            where.domain, managed_streams.USERS, path=["filter", "domain"]
        )
        event_filter = managed_streams.among(where)
        async for batch in _batches(
            info, Asked(since(info, after), hear=stream_source, sift=event_filter)
        ):
            yield batch

    @subscription(
        "Changes of users, addresses, domain records and sender rules of domains: of one domain, "
        "or of all the viewer is in charge of, at most 99.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.READ,
    )
    async def domain_changes(
        self,
        info: Info,
        domain: Annotated[
            str | None, strawberry.argument(description="Its name; nothing given = all.")
        ] = UNSET,
        after: Cursor | None = UNSET,
    ) -> AsyncIterator[ChangeBatch]:
        kinds = managed_streams.USERS | managed_streams.DOMAINS | managed_streams.RULES
        stream_source = managed_streams.places(domain or None, kinds, path=["domain"])
        async for batch in _batches(info, Asked(since(info, after), hear=stream_source)):
            yield batch

"""Query and subscriptions of the change stream."""

from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Annotated, Any

import strawberry
from strawberry import UNSET

from graph.changes.types import ChangeBatch
from graph.types.fields import Info, query, subscription
from graph.types.references import (
    DomainRef,
    MailboxRef,
    UserRef,
    domain_selector_from_ref,
    is_given,
    load_named_user_id,
    mailbox_selector_from_ref,
)
from graph.types.scalars import Cursor, Duration
from graph.users.queries import UserFilter
from models.errors import InvalidInput, require_found
from models.events.event_types import DOMAIN_EVENT_TYPES, EventType
from models.events.journal import StreamPositions
from models.mailboxes.shares import ShareRight
from models.users.roles import Role, Scope
from models.validation_constraints import ValidationConstraint
from resolvers.access import require_user_id
from resolvers.changes import managed_streams
from resolvers.changes.stream_reader import (
    FollowRequest,
    follow_changes,
    load_last_stream_positions,
    read_event_page,
)
from resolvers.changes.visible_streams import SelectStreams
from resolvers.mailboxes.loaders import load_by_selectors, require_own_or_shared_mailbox

DEFAULT_DEBOUNCE = timedelta(milliseconds=50)
MAX_DEBOUNCE = timedelta(minutes=1)
MAX_FILTER_ITEMS = 100  # mailboxes or types of one subscription
DEFAULT_PAGE_SIZE = 500
MAX_PAGE_SIZE = 1000  # events per page

ResumeArgument = Annotated[
    Cursor | None,
    strawberry.argument(
        description="Streams events after this position, first the missed ones. Default: only "
        "events from "
        "the time of the request on."
    ),
]


async def _stream_selector_of_account(info: Info, user_ref: UserRef | None) -> SelectStreams:
    """Return the function that lists the streams of an account; default: those of the viewer.

    Raises NotFound if the viewer can't see the user.
    """
    key = await load_named_user_id(info, user_ref)
    return managed_streams.selector_of_user_stream(
        None if key == info.context.viewer.user_id else key
    )


def resume_position_or_now(info: Info, after: object) -> StreamPositions | None:
    """Return the position that a subscription continues after; None = now.

    The position that the transport was given has precedence over the argument.
    """
    trail = info.context.subscription_start
    if trail and trail.last_seen:
        return trail.last_seen
    return after if isinstance(after, dict) else None


def _check_item_count(items: Sequence[object] | None, argument_name: str) -> None:
    """Raise Invalid if a list argument has too many items."""
    if len(items or ()) > MAX_FILTER_ITEMS:
        raise InvalidInput(
            f"at most {MAX_FILTER_ITEMS}", constraint=ValidationConstraint.MAX, path=[argument_name]
        )


async def _follow_batches(info: Info, request: FollowRequest) -> AsyncIterator[ChangeBatch]:
    """Yield batches of committed changes until the client leaves."""
    async for batch in follow_changes(info.context, request):
        yield ChangeBatch.from_batch(batch, info.context.environment.now())


def _optional_frozenset(items: list[Any] | None) -> frozenset[Any] | None:
    """The items of an optional list; None if no list is given. An empty list selects nothing."""
    return frozenset(items or ()) if is_given(items) else None


async def _load_mailbox_ids(
    info: Info, refs: Sequence[MailboxRef] | None, user_ref: UserRef | None
) -> frozenset[int] | None:
    """Load the IDs of mailboxes of an account, by default of the viewer; None without a list.

    Raises InvalidInput if an ID is malformed, NotFound if the account has no mailbox of a name.
    """
    if not is_given(refs):
        return None
    selectors = [
        mailbox_selector_from_ref(ref, path="mailboxes", index=nth)
        for nth, ref in enumerate(refs or ())
    ]
    named = [(nth, one) for nth, one in enumerate(selectors) if one.id is None]
    ids = {one.id for one in selectors if one.id is not None}
    if named:
        owner_id = await load_named_user_id(info, user_ref) or require_user_id(info.context)
        rows = await info.context.load_many(
            load_by_selectors, [(owner_id, selector) for _, selector in named]
        )
        for (nth, selector), row in zip(named, rows, strict=True):
            ids.add(require_found(row, str(selector), path=["mailboxes", str(nth)]).id)
    return frozenset(ids)


@strawberry.type
class ChangeQuery:
    @query(
        "The events of the subscription by polling (delta sync), also from far behind.",
        scope=Scope.MAIL_READ,
    )
    async def changes(
        self,
        info: Info,
        after: Annotated[
            Cursor,
            strawberry.argument(
                description="Returns events after this position: `User.cursor`, "
                "`ChangeBatch.cursor` or `journalCursor` of a payload."
            ),
        ],
        user: UserRef | None = UNSET,
        types: list[EventType] | None = UNSET,
        first: Annotated[
            int, strawberry.argument(description=f"How many events at most: 1 to {MAX_PAGE_SIZE}.")
        ] = DEFAULT_PAGE_SIZE,
    ) -> ChangeBatch:
        if not 0 < first <= MAX_PAGE_SIZE:
            raise InvalidInput(
                f"first is 1 to {MAX_PAGE_SIZE}",
                constraint=ValidationConstraint.PAGE,
                path=["first"],
            )
        _check_item_count(types, "types")
        position = after if isinstance(after, dict) else {}
        request = FollowRequest(
            position,
            _optional_frozenset(types),
            select_streams=await _stream_selector_of_account(info, user),
        )
        batch = await read_event_page(info.context, request, first)
        return ChangeBatch.from_batch(batch, info.context.environment.now())


@strawberry.type
class ChangeSubscription:
    @subscription(
        "All changes of one account after a position: missed, then live. Of the viewer's with "
        "what is shared with it; of another's for administrators who may act as the user. "
        "debounce = least time between two batches.",
        load_positions=load_last_stream_positions,
        scope=Scope.MAIL_READ,
    )
    async def changes(
        self,
        info: Info,
        user: UserRef | None = UNSET,
        after: ResumeArgument = UNSET,
        types: list[EventType] | None = UNSET,
        mailboxes: list[MailboxRef] | None = UNSET,
        debounce: Duration | None = UNSET,
        coalesce: Annotated[
            bool,
            strawberry.argument(
                description="Whether a batch has only the last of several equal changes of a "
                "message, submission or task."
            ),
        ] = False,
    ) -> AsyncIterator[ChangeBatch]:
        window = debounce if isinstance(debounce, timedelta) else DEFAULT_DEBOUNCE
        if not timedelta(0) <= window <= MAX_DEBOUNCE:
            raise InvalidInput(
                "at most a minute", constraint=ValidationConstraint.MAX, path=["debounce"]
            )
        _check_item_count(types, "types")
        _check_item_count(mailboxes, "mailboxes")
        request = FollowRequest(
            resume_position_or_now(info, after),
            _optional_frozenset(types),
            await _load_mailbox_ids(info, mailboxes, user),
            window,
            await _stream_selector_of_account(info, user),
            folds_events=coalesce,
        )
        async for batch in _follow_batches(info, request):
            yield batch

    @subscription(
        "Changes of one folder, own or shared, and of the messages in it. It ends when the "
        "folder is gone.",
        load_positions=load_last_stream_positions,
        scope=Scope.MAIL_READ,
    )
    async def mailbox_changes(
        self,
        info: Info,
        mailbox: Annotated[
            MailboxRef,
            strawberry.argument(description="The mailbox: own by any reference, shared by ID."),
        ],
        after: ResumeArgument = UNSET,
    ) -> AsyncIterator[ChangeBatch]:
        row = await require_own_or_shared_mailbox(
            info.context, mailbox_selector_from_ref(mailbox), ShareRight.LOOKUP
        )
        request = FollowRequest(
            resume_position_or_now(info, after), mailbox_ids=frozenset({row.id})
        )
        async for batch in follow_changes(info.context, request):
            yield ChangeBatch.from_batch(batch, info.context.environment.now())
            if any(event.type is EventType.MAILBOX_DELETED for event in batch.events):
                return

    @subscription(
        "Changes of accounts and their addresses in the domains the viewer is in charge of, for "
        "administration screens. Without a domain in the filter at most 99 are followed.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.READ,
    )
    async def user_changes(
        self,
        info: Info,
        filter: Annotated[
            UserFilter | None,
            strawberry.argument(
                description="Conditions of the users whose changes are streamed. Default: all "
                "users."
            ),
        ] = UNSET,
        after: ResumeArgument = UNSET,
    ) -> AsyncIterator[ChangeBatch]:
        conditions = (filter or UserFilter()).to_conditions()
        stream_source = managed_streams.selector_of_domain_streams(
            conditions.domain,
            managed_streams.USER_AND_ADDRESS_EVENT_TYPES,
            path=["filter", "domain"],
        )
        event_filter = managed_streams.user_event_filter_ignoring_domain(conditions)
        async for batch in _follow_batches(
            info,
            FollowRequest(
                resume_position_or_now(info, after),
                select_streams=stream_source,
                filter_events=event_filter,
            ),
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
            DomainRef | None,
            strawberry.argument(description="Default: all domains that the viewer administers."),
        ] = UNSET,
        after: ResumeArgument = UNSET,
    ) -> AsyncIterator[ChangeBatch]:
        event_types = (
            managed_streams.USER_AND_ADDRESS_EVENT_TYPES
            | DOMAIN_EVENT_TYPES
            | managed_streams.DOMAIN_RULE_EVENT_TYPES
        )
        stream_source = managed_streams.selector_of_domain_streams(
            domain_selector_from_ref(domain, path="domain") if domain else None,
            event_types,
            path=["domain"],
        )
        async for batch in _follow_batches(
            info, FollowRequest(resume_position_or_now(info, after), select_streams=stream_source)
        ):
            yield batch

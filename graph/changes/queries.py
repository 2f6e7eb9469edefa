"""Query and subscriptions of the change stream."""

from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from functools import partial
from typing import Annotated

import strawberry
from strawberry import UNSET

from graph.changes.types import ChangeBatch
from graph.types.fields import Info, query, subscription
from graph.types.object_access import DOMAINS, MANAGED, OWN_OR_SHARED
from graph.types.references import (
    DomainRef,
    MailboxRef,
    UserRef,
    domain_selector_from_ref,
    is_given,
    mailbox_selector_from_ref,
    mailbox_selectors_from_refs,
    require_visible_user_id_if_named,
)
from graph.types.scalars import Cursor, Duration
from graph.users.filters import UserFilter
from models.errors import InvalidInput, require_found
from models.events.event_types import ChangeType, EventType
from models.events.journal import StreamPositions
from models.mailboxes.shares import ShareRight
from models.users.roles import AdminPermission, Role, Scope
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
from resolvers.domains.loaders import DomainIdOrName
from resolvers.mailboxes.loaders import (
    load_visible_by_ids,
    load_visible_by_selectors,
    require_own_or_shared_mailbox,
)

DEFAULT_DEBOUNCE = timedelta(milliseconds=50)
MAX_DEBOUNCE = timedelta(minutes=1)
MAX_FILTER_ITEMS = 100  # mailboxes or types of one subscription
DEFAULT_PAGE_SIZE = 500
MAX_PAGE_SIZE = 1000  # events per page

ResumeArgument = Annotated[
    Cursor | None,
    strawberry.argument(
        description=(
            "Streams events after this position, first the missed ones. One event RESYNC replaces "
            "the missed events in three cases: some are no longer kept, the position is unknown or "
            "from before a restore, or there are more than 10,000 (by default). A position of "
            "another user is an error. The header Last-Event-ID of SSE has precedence. Default: "
            "only events from the time of the request on."
        )
    ),
]


async def _stream_selector_of_account(info: Info, user_ref: UserRef | None) -> SelectStreams:
    """Return the function that lists the streams of an account; default: those of the viewer.

    Raises NotFound if the viewer can't see the user.
    """
    key = await info.context.resolve_once(
        "user", partial(require_visible_user_id_if_named, info, user_ref)
    )
    return managed_streams.selector_of_user_stream(
        None if key == info.context.viewer.user_id else key
    )


async def _domain_stream_selector(
    info: Info,
    domain: DomainIdOrName | None,
    event_types: frozenset[EventType],
    path: Sequence[str],
) -> SelectStreams:
    """Return the function that lists the streams of a domain, or of all administered ones.

    Raises NotFound if the viewer doesn't administer the domain.
    """
    domain_id = None
    if domain is not None:
        load_id = partial(managed_streams.load_administered_domain_id, path=path)
        domain_id = await info.context.resolve_once(
            "domain", partial(load_id, info.context, domain)
        )
    return managed_streams.selector_of_domain_streams(domain_id, event_types, path=path)


def resume_position_or_now(info: Info, after: object) -> StreamPositions | None:
    """Return the position that a subscription continues after; None = now.

    The position that the transport was given has precedence over the argument.
    """
    if info.context.last_seen_position:
        return info.context.last_seen_position
    return after if isinstance(after, dict) else None


def _require_few_items(items: Sequence[object] | None, argument_name: str) -> None:
    """Raise InvalidInput if a list argument has too many items."""
    if len(items or ()) > MAX_FILTER_ITEMS:
        raise InvalidInput(
            f"At most {MAX_FILTER_ITEMS} items are allowed.",
            constraint=ValidationConstraint.MAX,
            path=[argument_name],
        )


async def _follow_batches(info: Info, request: FollowRequest) -> AsyncIterator[ChangeBatch]:
    """Yield batches of committed changes until the client leaves."""
    async for batch in follow_changes(info.context, request):
        yield ChangeBatch.from_batch(batch, info.context.environment.now())


def _event_types(types: Sequence[ChangeType] | None) -> frozenset[EventType] | None:
    """The event types of an optional list; None if no list is given. Empty selects nothing."""
    return frozenset(map(EventType, types or ())) if is_given(types) else None


async def _resolve_mailbox_ids_or_raise(
    info: Info, refs: Sequence[MailboxRef] | None, user_ref: UserRef | None
) -> frozenset[int] | None:
    """Load the IDs of mailboxes of an account, by default of the viewer; None without a list.

    Raises InvalidInput if an ID is malformed, NotFound if the account has no mailbox of a name.
    """
    if not is_given(refs):
        return None
    selectors = mailbox_selectors_from_refs(refs)
    named_selectors = [
        (nth, selector) for nth, selector in enumerate(selectors) if selector.id is None
    ]
    ids = {selector.id for selector in selectors if selector.id is not None}
    if named_selectors:
        owner_id = await require_visible_user_id_if_named(info, user_ref) or require_user_id(
            info.context
        )
        rows = await info.context.load_many(
            load_visible_by_selectors, [(owner_id, selector) for _, selector in named_selectors]
        )
        for (nth, selector), row in zip(named_selectors, rows, strict=True):
            ids.add(require_found(row, str(selector), path=["mailboxes", str(nth)]).id)
    return frozenset(ids)


async def _require_mailbox_id(info: Info, mailbox: MailboxRef) -> int:
    """Return the ID of an own or shared mailbox. Raises NotFound."""
    row = await require_own_or_shared_mailbox(
        info.context, mailbox_selector_from_ref(mailbox), ShareRight.LOOKUP
    )
    return int(row.id)


async def _is_visible_mailbox(info: Info, mailbox_id: int) -> bool:
    (row,) = await load_visible_by_ids(info.context, [mailbox_id])
    return row is not None


@strawberry.type
class ChangeQuery:
    @query(
        "Returns the events of an account after a position, at most `first`, without waiting: the "
        "same as the subscription `changes`, for clients that poll. For the signed-in user they "
        "include events of mailboxes that other users share. If the position is unknown or from "
        "before a restore, the query returns one ResyncChange. So it does if the events are no "
        "longer kept: by default 30 days, and 100,000 for each user. A position of another user "
        "is an error.",
        scope=Scope.MAIL_READ,
        access=MANAGED.with_permissions(AdminPermission.IMPERSONATE),
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
        user: Annotated[
            UserRef | None,
            strawberry.argument(
                description="User whose events are returned. Default: the signed-in user."
            ),
        ] = UNSET,
        types: list[ChangeType] | None = UNSET,
        first: Annotated[
            int,
            strawberry.argument(
                description=f"Largest number of events to read, 1 to {MAX_PAGE_SIZE:,}. Events "
                "that `types` leaves out count, so fewer can be returned. "
                f"Default: {DEFAULT_PAGE_SIZE}."
            ),
        ] = DEFAULT_PAGE_SIZE,
    ) -> ChangeBatch:
        if not 0 < first <= MAX_PAGE_SIZE:
            raise InvalidInput(
                f"`first` must be from 1 to {MAX_PAGE_SIZE}.",
                constraint=ValidationConstraint.PAGE,
                path=["first"],
            )
        _require_few_items(types, "types")
        position = after if isinstance(after, dict) else {}
        request = FollowRequest(
            position,
            _event_types(types),
            select_streams=await _stream_selector_of_account(info, user),
        )
        batch = await read_event_page(info.context, request, first)
        return ChangeBatch.from_batch(batch, info.context.environment.now())


@strawberry.type
class ChangeSubscription:
    @subscription(
        "Returns the events of an account: first the missed ones after `after`, then new ones as "
        "they are committed. For the signed-in user they include events of mailboxes that other "
        "users share. A batch can be empty: it then only reports a new position.",
        load_positions=load_last_stream_positions,
        scope=Scope.MAIL_READ,
        access=MANAGED.with_permissions(AdminPermission.IMPERSONATE),
    )
    async def changes(
        self,
        info: Info,
        user: Annotated[
            UserRef | None,
            strawberry.argument(
                description="User whose events are returned. Default: the signed-in user."
            ),
        ] = UNSET,
        after: ResumeArgument = UNSET,
        types: list[ChangeType] | None = UNSET,
        mailboxes: list[MailboxRef] | None = UNSET,
        debounce: Duration | None = UNSET,
        coalesce: Annotated[
            bool,
            strawberry.argument(
                description="True leaves out an event MESSAGE_UPDATED, SUBMISSION_UPDATED or "
                "TASK_UPDATED if its batch has a later one of the same type, object and origin. "
                "The later one differs at most in flags and MODSEQ. Default: false."
            ),
        ] = False,
    ) -> AsyncIterator[ChangeBatch]:
        window = debounce if isinstance(debounce, timedelta) else DEFAULT_DEBOUNCE
        if not timedelta(0) <= window <= MAX_DEBOUNCE:
            raise InvalidInput(
                "The time must be at most PT1M.",
                constraint=ValidationConstraint.MAX,
                path=["debounce"],
            )
        _require_few_items(types, "types")
        _require_few_items(mailboxes, "mailboxes")
        request = FollowRequest(
            resume_position_or_now(info, after),
            _event_types(types),
            await info.context.resolve_once(
                "mailboxes", partial(_resolve_mailbox_ids_or_raise, info, mailboxes, user)
            ),
            window,
            await _stream_selector_of_account(info, user),
            folds_events=coalesce,
        )
        async for batch in _follow_batches(info, request):
            yield batch

    @subscription(
        "Returns events of one mailbox and of the messages in it, or moved into or out of it. A "
        "mailbox of another user that is not shared with the caller is the error NOT_FOUND. In a "
        "shared mailbox, events of messages require the right READ; without it, only events of "
        "the mailbox are returned. The subscription completes when the mailbox is deleted, or "
        "when it is no longer shared with the signed-in user.",
        load_positions=load_last_stream_positions,
        scope=Scope.MAIL_READ,
        access=OWN_OR_SHARED,
    )
    async def mailbox_changes(
        self,
        info: Info,
        mailbox: Annotated[
            MailboxRef,
            strawberry.argument(
                description="Mailbox to follow. A mailbox of another user is named by its ID."
            ),
        ],
        after: ResumeArgument = UNSET,
    ) -> AsyncIterator[ChangeBatch]:
        mailbox_id = await info.context.resolve_once(
            "mailbox", partial(_require_mailbox_id, info, mailbox)
        )
        request = FollowRequest(
            resume_position_or_now(info, after), mailbox_ids=frozenset({mailbox_id})
        )
        async for batch in follow_changes(info.context, request):
            yield ChangeBatch.from_batch(batch, info.context.environment.now())
            if any(event.type is EventType.MAILBOX_DELETED for event in batch.events):
                return
            if batch.resync_reason and not await _is_visible_mailbox(info, mailbox_id):
                return

    @subscription(
        "Returns events of users and addresses in the domains that the caller administers. An "
        "ADMIN also gets events of users and addresses without a domain. Addresses without a user "
        "are included. A caller who administers more than 99 domains must give `filter.domain`, "
        "else the error is BAD_USER_INPUT. This also applies to an ADMIN, who administers all "
        "domains.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.READ,
        access=DOMAINS,
    )
    async def user_changes(
        self,
        info: Info,
        filter: Annotated[
            UserFilter | None,
            strawberry.argument(
                description=(
                    "Conditions on the users whose events are returned. Of deleted users and "
                    "addresses, and of addresses without a user, all events in the selected domain "
                    "are returned. A domain that the caller does not administer is the error "
                    "NOT_FOUND. Default: all users."
                )
            ),
        ] = UNSET,
        after: ResumeArgument = UNSET,
    ) -> AsyncIterator[ChangeBatch]:
        conditions = (filter or UserFilter()).to_conditions()
        stream_source = await _domain_stream_selector(
            info,
            conditions.domain,
            managed_streams.USER_AND_ADDRESS_EVENT_TYPES,
            ["filter", "domain"],
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
        "Returns the events of one domain, or of all domains that the caller administers. These "
        "events are about users, addresses, sender rules, resources (rooms, things and groups) "
        "and the domain. DOMAIN_UPDATED also reports changes of alias domains, the identity "
        "provider, BCC rules, recipient rewrites and rate limits of the domain. A caller who "
        "administers more than 99 domains must give `domain`, else the error is BAD_USER_INPUT. "
        "This also applies to an ADMIN, who administers all domains. Without `domain`, an ADMIN "
        "also gets events of users, addresses and sender rules without a domain.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.READ,
        access=DOMAINS,
    )
    async def domain_changes(
        self,
        info: Info,
        domain: Annotated[
            DomainRef | None,
            strawberry.argument(
                description=(
                    "Domain whose events are returned. A domain that the caller doesn't administer "
                    "is the error NOT_FOUND. Default: all domains that the caller administers."
                )
            ),
        ] = UNSET,
        after: ResumeArgument = UNSET,
    ) -> AsyncIterator[ChangeBatch]:
        stream_source = await _domain_stream_selector(
            info,
            domain_selector_from_ref(domain, path="domain") if domain else None,
            managed_streams.DOMAIN_CHANGE_EVENT_TYPES,
            ["domain"],
        )
        async for batch in _follow_batches(
            info, FollowRequest(resume_position_or_now(info, after), select_streams=stream_source)
        ):
            yield batch

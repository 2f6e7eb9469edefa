"""GraphQL types, query and mutations of push channels."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.mailboxes.types import Mailbox
from graph.notifications.references import PushChannelDeleteInput, PushChannelTestInput
from graph.types.errors import DeletePayload, MutationPayload, Options, attribute_field
from graph.types.fields import Info, field, query
from graph.types.input_conditions import RestrictionsInput
from graph.types.mutations import mutation
from graph.types.object_access import MANAGED
from graph.types.object_references import ids_from_refs
from graph.types.object_views import DerivedField
from graph.types.references import (
    MailboxRef,
    UserSelection,
    mailbox_selectors_from_refs,
    user_selector_from_selection,
)
from graph.types.row_mapping import NodeView, global_id_field, lazy_view_factory, link
from models.notifications.push_channels import PushKind
from models.users.roles import AdminPermission, Scope, UserPermission
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.notifications import push_channels, web_push
from resolvers.notifications.push_channels import PushChannelChange
from resolvers.users import loaders as user_loaders

if TYPE_CHECKING:
    from graph.users.types import User

PLACEHOLDERS_DESCRIPTION = (
    "{SUBJECT}, {SENDER}, {SENDER_NAME}, {SENDER_ADDRESS}, {TO_NAME}, {TO_ADDRESS}, {MSG_ID}"
)


@strawberry.type(
    description="Push channel: sends push notifications of new mail to a user, who has one "
    "channel of each kind. It notifies of unread messages received in the last day, outside of "
    "Junk, Trash and muted threads. It sends at most 5 notifications in a minute. More than 3 new "
    "messages share one notification, without their content."
)
class PushChannel(NodeView):
    kind: PushKind = attribute_field(
        "Service of the channel: Pushover, Web Push, or a URL that accepts text."
    )
    user: Annotated["User", strawberry.lazy("graph.users.types")] = link(
        "user_id",
        user_loaders.load_visible_users_by_id,
        lazy_view_factory("graph.users.types", "User"),
        description="User who gets the notifications.",
    )
    active: bool = attribute_field(
        "True if the channel sends notifications, but not while the user is suspended or inactive. "
        "A response of the service that the channel is gone deactivates it: 404 or 410 of Web "
        "Push, 400 of Pushover, 410 of others."
    )
    title: str | None = attribute_field(
        f"Template of the title, with {PLACEHOLDERS_DESCRIPTION}. Null: {{SENDER}}."
    )
    text: str | None = attribute_field(
        f"Template of the text, with {PLACEHOLDERS_DESCRIPTION}. Null: {{SUBJECT}}."
    )
    senders: list[str] = attribute_field(
        "Senders whose messages are notified: addresses, domains, or patterns with one `*` at "
        "either end. Messages of a sender who matches this list or `sendersRegex` are notified. If "
        "the list is empty and `sendersRegex` is null, messages of all senders are. At most 100."
    )
    senders_regex: str | None = attribute_field(
        "Regular expression for senders, in addition to `senders`. A message causes a notification "
        "if its From address contains a match, ignoring case. Null: there is none."
    )
    high_priority_only: bool = attribute_field(
        "True if only messages of high priority are notified: X-Priority 1 or 2, Importance high, "
        "Priority urgent, or X-MSMail-Priority high."
    )
    pass_priority: bool = attribute_field(
        "True if notifications of urgent messages have high priority at the service. Urgent: "
        "X-Priority 1 or 2, Importance high, Priority urgent, or X-MSMail-Priority high."
    )
    last_error: str | None = attribute_field(
        "Error of the last notification, which can be one of pushChannelTest. Null: the service "
        "accepted it, or none was sent since the last pushChannelSet."
    )
    last_push_at: datetime | None = attribute_field(
        "Time when the service accepted the last notification, which can be one of "
        "pushChannelTest. Null: there was none."
    )
    created_at: datetime = attribute_field("Time when the push channel was created.")

    load_batch = staticmethod(push_channels.load_visible_channels_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {"id": global_id_field("PushChannel")}

    @field(
        "Mailboxes whose new messages are notified. Mailboxes that the caller can't see are left"
        " out. Empty: INBOX, also after all of them were deleted. At most 100.",
        "mailboxes",
    )
    async def mailboxes(self, info: Info) -> list[Mailbox]:
        rows = await info.context.load_many(mailbox_loaders.load_visible_by_ids, self.row.mailboxes)
        return [Mailbox.from_row(row) for row in rows if row]


@strawberry.input(
    description="Input of pushChannelSet. `users` and `kind` select the channels. If another field "
    "is absent, an existing channel keeps its value."
)
class PushChannelSetInput(Options, RestrictionsInput):
    restriction_fields = frozenset({"mailboxes", "senders"})
    users: UserSelection | None = attribute_field(
        "Users whose channel is set, at most 1,000 by default. Default: the signed-in user.",
        default=UNSET,
    )
    kind: PushKind = attribute_field(
        "Service that delivers the notifications. A user has one channel for each service, so this "
        "field selects the channel to create or change. Default: PUSHOVER.",
        default=PushKind.PUSHOVER,
    )
    active: bool | None = attribute_field(
        "True sends notifications. Messages that arrive while the channel is inactive are never "
        "notified. Null or omitted: unchanged; true for a new channel.",
        default=UNSET,
    )
    key: str | None = attribute_field(
        "Pushover key of a user or group, 1 to 512 printable ASCII characters. Required for a new "
        "PUSHOVER channel, not allowed for other kinds. Null is an error. Omitted: unchanged. It "
        "is never returned.",
        default=UNSET,
    )
    token: str | None = attribute_field(
        "PUSHOVER: token of the application, required for a new channel; null is an error. HTTP: "
        "bearer token, null removes it. Not allowed for WEB_PUSH, also not null. 1 to 512 "
        "printable ASCII characters. Omitted: unchanged. It is never returned.",
        default=UNSET,
    )
    endpoint: JSON | None = attribute_field(
        "WEB_PUSH: result of `PushSubscription.toJSON()` in the browser, with an `https` "
        "endpoint. HTTP: URL as a string, `http` or `https`. Required for a new channel of these "
        "kinds, not allowed for PUSHOVER. Private networks require the setting "
        "`push.allowPrivateNetworks`. Null is an error. Omitted: unchanged. It is never returned.",
        default=UNSET,
    )
    title: str | None = attribute_field(
        f"Template of the title, at most 250 characters, with {PLACEHOLDERS_DESCRIPTION}. Null: "
        f"{{SENDER}}. Omitted: unchanged.",
        default=UNSET,
    )
    text: str | None = attribute_field(
        f"Template of the text, at most 1,024 characters, with {PLACEHOLDERS_DESCRIPTION}. Null: "
        f"{{SUBJECT}}. Omitted: unchanged.",
        default=UNSET,
    )
    senders: list[str] | None = attribute_field(
        "Notifies only messages of these senders, at most 100: addresses, domains, or patterns "
        "with one `*` at either end, at most 128 characters each. Case is ignored. An empty list "
        "is an error. Null: all senders, unless `sendersRegex` is set. Omitted: unchanged.",
        default=UNSET,
    )
    senders_regex: str | None = attribute_field(
        "Regular expression for senders, in addition to `senders`. A message causes a "
        "notification if its From address contains a match, ignoring case. If the channel has no "
        "`senders`, messages without a match cause none. 1 to 200 characters, without look-around "
        "and back-references. Null: no expression. Omitted: unchanged.",
        default=UNSET,
    )
    high_priority_only: bool | None = attribute_field(
        "True notifies only messages of high priority: X-Priority 1 or 2, Importance high, "
        "Priority urgent, or X-MSMail-Priority high. Null or omitted: unchanged; false for a new "
        "channel.",
        default=UNSET,
    )
    pass_priority: bool | None = attribute_field(
        "True gives notifications of urgent messages a high priority at the service. Urgent: "
        "X-Priority 1 or 2, Importance high, Priority urgent, or X-MSMail-Priority high. Null or "
        "omitted: unchanged; false for a new channel.",
        default=UNSET,
    )
    mailboxes: list[MailboxRef] | None = attribute_field(
        "Notifies only new messages in these mailboxes, at most 100. Each of the users must have "
        "them, else NOT_FOUND. An empty list is an error. Null: INBOX. Omitted: unchanged.",
        default=UNSET,
    )

    def to_channel_change(self) -> PushChannelChange:
        """Convert the input to changes of a channel. Absent fields are left out.

        Raises InvalidInput if a mailbox has no valid ID.
        """
        values: dict[str, Any] = {
            name: value
            for name in ("active", "high_priority_only", "pass_priority")
            if isinstance(value := getattr(self, name), bool)
        }
        for name in ("title", "text", "senders_regex"):
            if (text := getattr(self, name)) is not UNSET:
                values[name] = text
        if self.senders is not UNSET:
            values["senders"] = self.senders or []
        target_fields = ("key", "token", "endpoint")
        target = {
            name: part for name in target_fields if (part := getattr(self, name)) is not UNSET
        }
        mailboxes = self.mailboxes
        folders = None
        if mailboxes is not UNSET:
            folders = mailbox_selectors_from_refs(mailboxes)
        return PushChannelChange(self.kind, values, target, folders)


@strawberry.type(description="Payload of pushChannelSet and pushChannelTest.")
class PushChannelsPayload(MutationPayload):
    push_channels: list[PushChannel] = attribute_field(
        "Push channels: for pushChannelSet sorted by the creation of the user, for "
        "pushChannelTest in the order of the references.",
        default_factory=list,
    )


@strawberry.type
class PushQuery:
    @query(
        "Returns the public VAPID key (RFC 8292) of the server, which browsers need as "
        "`applicationServerKey`. The first call creates it. It is in base64url without padding. "
        "Null only with an error.",
        scope=Scope.READ,
    )
    async def vapid_public_key(self, info: Info) -> str:
        return await web_push.get_or_create_public_key(info.context.environment)


WRITE_GUARD: dict[str, Any] = {"scope": Scope.FULL, "user_permission": UserPermission.PUSH_CHANNELS}


@strawberry.type
class PushMutation:
    @mutation(
        "Creates or changes the push channel of the given kind for each user, all or none. A push "
        "channel sends notifications of new mail by Pushover, Web Push or HTTP. A new or "
        "reactivated channel notifies only of messages that arrive later. The last error is "
        "cleared, and waiting notifications are tried at once. Each change is in the security log "
        "of the user. LIMIT_REACHED for more than 1,000 users (by default).",
        **WRITE_GUARD,
        access=MANAGED.with_permissions(AdminPermission.PUSH_CHANNELS, AdminPermission.IMPERSONATE),
    )
    async def push_channel_set(self, info: Info, input: PushChannelSetInput) -> PushChannelsPayload:
        user_selector = user_selector_from_selection(input.users or None)
        keys = await push_channels.create_or_update_channels(
            info.context, user_selector, input.to_channel_change()
        )
        return await _load_payload(info, keys)

    @mutation(
        "Queues a sample notification for each given push channel, for all or none. Inactive "
        "channels get it too. When a worker has sent it, `lastPushAt` or `lastError` shows the "
        "result. It is tried once, and a failure does not deactivate the channel. If the user of "
        "the channel is suspended or inactive, the notification waits until that ends. "
        "LIMIT_REACHED for more than 1,000 channels (by default).",
        **WRITE_GUARD,
        access=MANAGED.with_permissions(AdminPermission.PUSH_CHANNELS),
    )
    async def push_channel_test(
        self, info: Info, input: PushChannelTestInput
    ) -> PushChannelsPayload:
        keys = ids_from_refs(info, input.push_channels, "pushChannels")
        await push_channels.request_test_notifications(info.context, keys)
        return await _load_payload(info, keys)

    @mutation(
        "Deletes push channels, all or none. Notifications that were not sent yet are lost. Each "
        "deletion is in the security log of its user. LIMIT_REACHED for more than 1,000 "
        "references (by default).",
        **WRITE_GUARD,
        access=MANAGED.with_permissions(AdminPermission.PUSH_CHANNELS),
    )
    async def push_channel_delete(self, info: Info, input: PushChannelDeleteInput) -> DeletePayload:
        keys = ids_from_refs(info, input.push_channels, "pushChannels")
        await push_channels.delete_channels(info.context, keys)
        return DeletePayload.of_keys("PushChannel", keys)


async def _load_payload(info: Info, channel_ids: list[int]) -> PushChannelsPayload:
    """Load channels and return the payload with them."""
    rows = await info.context.load_many(push_channels.load_visible_channels_by_id, channel_ids)
    return PushChannelsPayload(push_channels=[PushChannel.from_row(row) for row in rows if row])

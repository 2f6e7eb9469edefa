"""GraphQL types, query and mutations of push channels."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.mailboxes.types import Mailbox
from graph.notifications.references import PushChannelDeleteInput, PushChannelTestInput
from graph.types import global_ids
from graph.types.errors import DeletePayload, MutationPayload, Options, attribute_field
from graph.types.fields import Info, field, query
from graph.types.input_conditions import RestrictionsInput
from graph.types.mutations import mutation
from graph.types.object_references import ids_from_refs
from graph.types.object_views import DerivedField
from graph.types.references import (
    MailboxRef,
    UserSelection,
    mailbox_selector_from_ref,
    user_selector_from_selection,
)
from graph.types.row_mapping import NodeView, global_id_field, lazy_view_factory, link
from models.notifications.push_channels import PushKind
from models.users.roles import Scope, UserPermission
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.notifications import push_channels, web_push
from resolvers.notifications.push_channels import PushChannelChange
from resolvers.users import loaders as user_loaders

if TYPE_CHECKING:
    from graph.users.types import User

PLACEHOLDERS_DESCRIPTION = (
    "{SUBJECT}, {SENDER}, {SENDER_NAME}, {SENDER_ADDRESS}, {TO_NAME}, {TO_ADDRESS}, {MSG_ID}"
)


@strawberry.type(description="Where a user is told of new mail: one of each kind.")
class PushChannel(NodeView):
    kind: PushKind = attribute_field("By which service.")
    user: Annotated["User", strawberry.lazy("graph.users.types")] = link(
        "user_id",
        user_loaders.load_visible_users_by_id,
        lazy_view_factory("graph.users.types", "User"),
        description="Who is told.",
    )
    active: bool = attribute_field(
        "In force. The service switches it off by saying that it is gone: of Web Push 404 or 410, "
        "of Pushover 400, of others 410."
    )
    title: str | None = attribute_field(
        f"Title, with {PLACEHOLDERS_DESCRIPTION}; null = {{SENDER}}."
    )
    text: str | None = attribute_field("Text, with the same; null = {SUBJECT}.")
    senders: list[str] = attribute_field(
        "Only from these: addresses, domains, patterns with one *."
    )
    senders_regex: str | None = attribute_field("Or these.")
    high_priority_only: bool = attribute_field("Only mail of high priority.")
    pass_priority: bool = attribute_field("Mail of high priority is pushed with priority.")
    last_error: str | None = attribute_field(
        "What went wrong last; null when the last push was taken."
    )
    last_push_at: datetime | None = attribute_field("Last push that was taken.")
    created_at: datetime = attribute_field("Creation.")

    load_batch = staticmethod(push_channels.load_visible_channels_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {"id": global_id_field("PushChannel")}

    @field(
        "Only mail that comes in these folders, as far as the viewer sees them; empty = INBOX. "
        "Where all are deleted it is INBOX again.",
        "mailboxes",
    )
    async def mailboxes(self, info: Info) -> list[Mailbox]:
        rows = await info.context.load_many(mailbox_loaders.load_visible_by_ids, self.row.mailboxes)
        return [Mailbox.from_row(row) for row in rows if row]


@strawberry.input(description="Input of pushChannelSet; absent = unchanged.")
class PushChannelSetInput(Options, RestrictionsInput):
    restriction_fields = frozenset({"mailboxes", "senders"})
    users: UserSelection | None = attribute_field("Whose; default: the viewer's.", default=UNSET)
    kind: PushKind = attribute_field("Which of their channels.", default=PushKind.PUSHOVER)
    active: bool | None = attribute_field(
        "In force, as a new one is. What comes while it is not is not told later.", default=UNSET
    )
    key: str | None = attribute_field(
        "PUSHOVER: key of a user or a group. Write only.", default=UNSET
    )
    token: str | None = attribute_field(
        "PUSHOVER: token of the application. HTTP: bearer, null = none. Write only.", default=UNSET
    )
    endpoint: JSON | None = attribute_field(
        "WEB_PUSH: what PushSubscription.toJSON() says. HTTP: address, as text. Public, unless "
        "push.allowPrivateNetworks is set. Write only.",
        default=UNSET,
    )
    title: str | None = attribute_field(
        f"At most 250 characters, with {PLACEHOLDERS_DESCRIPTION}; null = {{SENDER}}.",
        default=UNSET,
    )
    text: str | None = attribute_field(
        "At most 1,024 characters, with the same; null = {SUBJECT}.", default=UNSET
    )
    senders: list[str] | None = attribute_field(
        "Only from these: addresses, domains, patterns with one *; at most 100. Null = anybody.",
        default=UNSET,
    )
    senders_regex: str | None = attribute_field(
        "Or these: a regular expression, found anywhere in the address, in any case; at most 200 "
        "characters, no look-around and no references back. Null = none.",
        default=UNSET,
    )
    high_priority_only: bool | None = attribute_field("Only mail of high priority.", default=UNSET)
    pass_priority: bool | None = attribute_field(
        "Push mail of high priority with priority.", default=UNSET
    )
    mailboxes: list[MailboxRef] | None = attribute_field(
        "Only mail that comes in these folders, which each of the users has; null = INBOX.",
        default=UNSET,
    )

    def to_channel_change(self) -> PushChannelChange:
        """Convert the input to changes of a channel. Absent fields are left out.

        Raises Invalid if a mailbox has no valid ID.
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
            folders = [
                mailbox_selector_from_ref(ref, path="mailboxes", index=index)
                for index, ref in enumerate(mailboxes or ())
            ]
        return PushChannelChange(self.kind, values, target, folders)


@strawberry.type(description="Push channels after the mutation.")
class PushChannelsPayload(MutationPayload):
    push_channels: list[PushChannel] = attribute_field(
        "The push channels: of pushChannelSet in the order of the users, of pushChannelTest in the "
        "order of the references.",
        default_factory=list,
    )


@strawberry.type
class PushQuery:
    @query(
        "The applicationServerKey that browsers subscribe with (RFC 8292), in base64url.",
        scope=Scope.READ,
    )
    async def vapid_public_key(self, info: Info) -> str:
        return await web_push.get_or_create_public_key(info.context.environment)


WRITE_GUARD: dict[str, Any] = {"scope": Scope.FULL, "user_permission": UserPermission.PUSH_CHANNELS}


@strawberry.type
class PushMutation:
    @mutation(
        "Makes or changes channels: one for each user and kind. Of others it needs the "
        "permissions PUSH_CHANNELS and IMPERSONATE, and is in their security log.",
        **WRITE_GUARD,
    )
    async def push_channel_set(self, info: Info, input: PushChannelSetInput) -> PushChannelsPayload:
        user_selector = user_selector_from_selection(input.users or None)
        keys = await push_channels.create_or_update_channels(
            info.context, user_selector, input.to_channel_change()
        )
        return await _load_payload(info, keys)

    @mutation(
        "Sends a sample notification to push channels, also to inactive ones. `lastPushAt` and "
        "`lastError` show the result.",
        **WRITE_GUARD,
    )
    async def push_channel_test(
        self, info: Info, input: PushChannelTestInput
    ) -> PushChannelsPayload:
        keys = ids_from_refs(info, input.push_channels, "pushChannels")
        await push_channels.request_test(info.context, keys)
        return await _load_payload(info, keys)

    @mutation("Deletes push channels: all of them or none.", **WRITE_GUARD)
    async def push_channel_delete(self, info: Info, input: PushChannelDeleteInput) -> DeletePayload:
        keys = ids_from_refs(info, input.push_channels, "pushChannels")
        await push_channels.delete_channels(info.context, keys)
        return DeletePayload(deleted_ids=[global_ids.encode("PushChannel", key) for key in keys])


async def _load_payload(info: Info, channel_ids: list[int]) -> PushChannelsPayload:
    """Load channels and return the payload with them."""
    rows = await info.context.load_many(push_channels.load_visible_channels_by_id, channel_ids)
    return PushChannelsPayload(push_channels=[PushChannel.from_row(row) for row in rows if row])

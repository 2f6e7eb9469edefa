"""GraphQL types, query and mutations of push channels."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.mailboxes.types import Mailbox
from graph.types.errors import DeletePayload, IdsInput, MutationPayload, Options, leaf
from graph.types.fields import Info, field, query
from graph.types.input_conditions import Restrictions
from graph.types.mutations import mutation
from graph.types.object_views import Made
from graph.types.references import MailboxRef, UserSelection, keys_of, named, users_named
from graph.types.row_mapping import Shape, identified, link, shaped
from models.notifications.push_channels import PushKind
from models.users.roles import Scope, UserPermission
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.notifications import push_channels, web_push
from resolvers.notifications.push_channels import Wanted
from resolvers.users import loaders as user_loaders

if TYPE_CHECKING:
    from graph.users.types import User

PLACES = "{SUBJECT}, {SENDER}, {SENDER_NAME}, {SENDER_ADDRESS}, {TO_NAME}, {TO_ADDRESS}, {MSG_ID}"


@strawberry.type(description="Where a user is told of new mail: one of each kind.")
class PushChannel(Shape):
    kind: PushKind = leaf("By which service.")
    user: Annotated["User", strawberry.lazy("graph.users.types")] = link(
        "user_id",
        user_loaders.by_ids,
        shaped("graph.users.types", "User"),
        description="Who is told.",
    )
    active: bool = leaf(
        "In force. The service switches it off by saying that it is gone: of Web Push 404 or 410, "
        "of Pushover 400, of others 410."
    )
    title: str | None = leaf(f"Title, with {PLACES}; null = {{SENDER}}.")
    text: str | None = leaf("Text, with the same; null = {SUBJECT}.")
    senders: list[str] = leaf("Only from these: addresses, domains, patterns with one *.")
    senders_regex: str | None = leaf("Or these.")
    only_priority: bool = leaf("Only mail of high priority.")
    evaluate_priority: bool = leaf("Mail of high priority is pushed with priority.")
    last_error: str | None = leaf("What went wrong last; null when the last push was taken.")
    last_push_at: datetime | None = leaf("Last push that was taken.")
    created_at: datetime = leaf("Creation.")

    batch = staticmethod(push_channels.by_ids)
    made: ClassVar[Mapping[str, Made]] = {"id": identified("PushChannel")}

    @field(
        "Only mail that comes in these folders, as far as the viewer sees them; empty = INBOX. "
        "Where all are deleted it is INBOX again.",
        "mailboxes",
    )
    async def mailboxes(self, info: Info) -> list[Mailbox]:
        rows = await info.context.load_all(mailbox_loaders.by_ids, self.row.mailboxes)
        return [Mailbox.of(row) for row in rows if row]


@strawberry.input(description="Input of pushChannelSet; absent = unchanged.")
class PushChannelSetInput(Options, Restrictions):
    restrictions = frozenset({"mailboxes", "senders"})
    users: UserSelection | None = leaf("Whose; default: the viewer's.", default=UNSET)
    kind: PushKind = leaf("Which of their channels.", default=PushKind.PUSHOVER)
    active: bool | None = leaf(
        "In force, as a new one is. What comes while it is not is not told later.", default=UNSET
    )
    key: str | None = leaf("PUSHOVER: key of a user or a group. Write only.", default=UNSET)
    token: str | None = leaf(
        "PUSHOVER: token of the application. HTTP: bearer, null = none. Write only.", default=UNSET
    )
    endpoint: JSON | None = leaf(
        "WEB_PUSH: what PushSubscription.toJSON() says. HTTP: address, as text. Public, unless "
        "push.allowPrivate is set. Write only.",
        default=UNSET,
    )
    title: str | None = leaf(
        f"At most 250 characters, with {PLACES}; null = {{SENDER}}.", default=UNSET
    )
    text: str | None = leaf(
        "At most 1,024 characters, with the same; null = {SUBJECT}.", default=UNSET
    )
    senders: list[str] | None = leaf(
        "Only from these: addresses, domains, patterns with one *; at most 100. Null = anybody.",
        default=UNSET,
    )
    senders_regex: str | None = leaf(
        "Or these: a regular expression, found anywhere in the address, in any case; at most 200 "
        "characters, no look-around and no references back. Null = none.",
        default=UNSET,
    )
    only_priority: bool | None = leaf("Only mail of high priority.", default=UNSET)
    evaluate_priority: bool | None = leaf(
        "Push mail of high priority with priority.", default=UNSET
    )
    mailboxes: list[MailboxRef] | None = leaf(
        "Only mail that comes in these folders, which each of the users has; null = INBOX.",
        default=UNSET,
    )

    def wanted(self) -> Wanted:
        """Convert the input to changes of a channel. Absent fields are left out.

        Raises Invalid if a mailbox has no valid ID.
        """
        values: dict[str, Any] = {
            name: value
            for name in ("active", "only_priority", "evaluate_priority")
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
                named(ref, path="mailboxes", index=index)
                for index, ref in enumerate(mailboxes or ())
            ]
        return Wanted(self.kind, values, target, folders)


@strawberry.type(description="Push channels, as they are now.")
class PushChannelsPayload(MutationPayload):
    channels: list[PushChannel] = leaf("In the order of accounts, or ids.", default_factory=list)


@strawberry.type
class PushQuery:
    @query(
        "The applicationServerKey that browsers subscribe with (RFC 8292), in base64url.",
        scope=Scope.READ,
    )
    async def push_public_key(self, info: Info) -> str:
        return await web_push.public_key(info.context.world)


WRITES: dict[str, Any] = {"scope": Scope.MASTER, "user_permission": UserPermission.PUSHOVER}


@strawberry.type
class PushMutation:
    @mutation(
        "Makes or changes channels: one for each user and kind. Of others it needs the "
        "permissions PUSHOVER and LOGIN_AS, and is in their security log.",
        **WRITES,
    )
    async def push_channel_set(self, info: Info, input: PushChannelSetInput) -> PushChannelsPayload:
        user_selector = users_named(input.users or None)
        keys = await push_channels.set_(info.context, user_selector, input.wanted())
        return await _now(info, keys)

    @mutation("Pushes a sample; what came of it is in lastError and lastPushAt.", **WRITES)
    async def push_channel_test(self, info: Info, input: IdsInput) -> PushChannelsPayload:
        keys = keys_of(info, "PushChannel", input.ids)
        await push_channels.test(info.context, keys)
        return await _now(info, keys)

    @mutation("Removes channels, all or none.", **WRITES)
    async def push_channel_delete(self, info: Info, input: IdsInput) -> DeletePayload:
        await push_channels.remove(info.context, keys_of(info, "PushChannel", input.ids))
        return DeletePayload(deleted_ids=input.ids)


async def _now(info: Info, keys: list[int]) -> PushChannelsPayload:
    """Load channels and return the payload with them."""
    rows = await info.context.load_all(push_channels.by_ids, keys)
    return PushChannelsPayload(channels=[PushChannel.of(row) for row in rows if row])

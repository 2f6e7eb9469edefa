"""GraphQL types, queries and mutations of audits."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, ClassVar

import strawberry
from strawberry import UNSET

from graph.http import download_urls
from graph.messages.mime_parts import MailAddress
from graph.messages.types import Message
from graph.types.connections import Connection, connected, page_asked
from graph.types.errors import DeletePayload, IdsInput, MutationPayload, Options, leaf
from graph.types.fields import Auth, Info, field, query
from graph.types.mutations import mutation
from graph.types.object_views import Made
from graph.types.references import UserRef, keys_of, owner_named, user_of
from graph.types.row_mapping import Shape, columns, identified, link, shaped
from graph.types.scalars import URL, BigInt, ByteSize, IPAddress
from models.admin.audits import AuditRoad
from models.admin.tasks import TaskState
from models.errors import found
from models.store.keyset_pages import Cursor, ordering
from models.users.roles import Role, Scope
from resolvers.admin import audits
from resolvers.admin.admin_log import NONE
from resolvers.admin.audits import ACCESSES, COPIES, NEWEST, NewAudit, OfAudit
from resolvers.users import loaders as user_loaders

if TYPE_CHECKING:
    from graph.users.types import User

FOR_ADMINS = Auth(role=Role.ADMIN)
SHOWN = ("from_", "to", "cc", "bcc", "intro", "has_attachments")


@strawberry.type(description="Copy of a message, for an audit.", directives=[FOR_ADMINS])
class AuditedMessage(Shape):
    position: BigInt = leaf("In the chain of copies, from 1.")
    road: AuditRoad = leaf("How it came to be copied.")
    mailbox_path: str | None = leaf("Folder it lay in, or was deleted from; null = none.")
    from_: MailAddress | None = leaf("From.", name="from")
    to: list[MailAddress] = leaf("To.")
    cc: list[MailAddress] = leaf("Cc.")
    bcc: list[MailAddress] = leaf("Bcc.")
    subject: str = leaf('Decoded, "" if none.')
    date: datetime | None = leaf("Date header.")
    received_at: datetime = leaf("Arrival.")
    size: ByteSize = leaf("Bytes.")
    intro: str = leaf("First 128 bytes of text.")
    has_attachments: bool = leaf("Files attached.")
    attachment_count: int = leaf("How many files.")
    envelope_from: str | None = leaf("MAIL FROM, where it is known.")
    envelope_to: list[str] = leaf("RCPT TO, where it is known.")
    digest: str = leaf("SHA-256 of the whole message.")
    copied_at: datetime = leaf("Copied.")
    hash: str = leaf("SHA-256 of all of this that matters, and of the hash before.")

    batch = staticmethod(audits.copies_by_ids)
    made: ClassVar[Mapping[str, Made]] = {
        **{name: Message.made[name] for name in SHOWN},
        "id": identified("AuditedMessage"),
    }


@strawberry.type(description="Somebody looked at copies of an audit.", directives=[FOR_ADMINS])
class AuditAccess(Shape):
    at: datetime = leaf("When.")
    actor: str = leaf("User name, or what the key is called.")
    role: Role = leaf("In effect then.")
    ip: IPAddress | None = leaf("From.")
    action: str = leaf("list or export.")

    batch = staticmethod(audits.accesses_by_ids)
    made: ClassVar[Mapping[str, Made]] = {"id": identified("AuditAccess")}


@strawberry.type(description="Audit of an account.", directives=[FOR_ADMINS])
class Audit(Shape):
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "user_id",
        user_loaders.by_ids,
        shaped("graph.users.types", "User"),
        description="The account; null when it is gone, which ends no audit.",
    )
    username: str = leaf("What it was called.")
    start: datetime | None = leaf("Mail that arrived from here on; null = any.")
    end: datetime | None = leaf("Mail that arrived before; null = any, also what is to come.")
    expires: datetime = leaf("The copies are removed then.")
    reason: str | None = leaf("Why.")
    created_at: datetime = leaf("Begun.")
    created_by: str = leaf("By whom.")
    ended_at: datetime | None = leaf("The copies are gone since; null = they are there.")
    message_count: BigInt = leaf("Copied so far.")
    size: ByteSize = leaf("Bytes of these.")
    state: TaskState = link(
        "id", audits.states, lambda state: state, description="Of the first copy."
    )

    batch = staticmethod(audits.by_ids)
    made: ClassVar[Mapping[str, Made]] = {
        "id": identified("Audit"),
        "message_count": Made(("copies",), lambda copies: copies),
    }

    @field("Copies, in the order they were made. Who asks is noted.")
    async def messages(
        self, info: Info, first: int | None = UNSET, after: str | None = UNSET
    ) -> Connection[AuditedMessage]:
        page_key = self._wanted(info, AuditedMessage, COPIES, first, after)
        return await connected(
            info,
            AuditedMessage,
            await info.context.load(audits.copies, page_key),
            lambda row: Cursor(COPIES, row.position, row.id),
            lambda: info.context.load(audits.copy_counts, page_key),
        )

    @field("Who looked at the copies, the last first.")
    async def access_log(
        self, info: Info, first: int | None = UNSET, after: str | None = UNSET
    ) -> Connection[AuditAccess]:
        page_key = self._wanted(info, AuditAccess, ACCESSES, first, after)
        return await connected(
            info,
            AuditAccess,
            await info.context.load(audits.accesses, page_key),
            lambda row: Cursor(ACCESSES, row.at, row.id),
            lambda: info.context.load(audits.access_counts, page_key),
        )

    def _wanted(
        self, info: Info, shape: type[Shape], kind: str, first: int | None, after: str | None
    ) -> OfAudit:
        """Return the key of a page of this audit's copies or accesses."""
        requested_page = page_asked(kind, first, after, None, None)
        return OfAudit(self.row.id, requested_page, columns(info, shape))

    @field("mbox of everything. Who fetches it is noted.")
    def export_url(self, info: Info) -> URL:
        path = download_urls.audit_path(self.row.id)
        return download_urls.addressed(info, path, info.context.viewer.user_id)

    @field(
        "Place of the first copy that was tampered with, or is missing; null = the chain is whole.",
        "copies",
        "head",
        "ended_at",
        cost=1000,
    )
    async def broken_position(self, info: Info) -> BigInt | None:
        position = await audits.broken_at(info.context, self.row)
        return None if position is None else BigInt(position)


@strawberry.input(description="Input of auditCreate.")
class AuditCreateInput(Options):
    user: UserRef = leaf("Whose mail.")
    start: datetime | None = leaf("Mail that arrived from here on. Default: any.", default=UNSET)
    end: datetime | None = leaf(
        "Mail that arrives before. Default: until the audit is over.", default=UNSET
    )
    expires: datetime = leaf("The copies are removed then.")
    reason: str | None = leaf("Why; kept with the audit.", default=UNSET)


@strawberry.type(description="An audit that was begun.")
class AuditPayload(MutationPayload):
    audit: Audit | None = leaf("Its record.", default=None)


@strawberry.type
class AuditQuery:
    @query("One audit.", role=Role.ADMIN, scope=Scope.READ)
    async def audit(self, info: Info, id: strawberry.ID) -> Audit | None:
        (key,) = keys_of(info, "Audit", [id])
        return Audit.maybe(await info.context.load(audits.by_ids, key))

    @query("All audits, or those of one account, newest first.", role=Role.ADMIN, scope=Scope.READ)
    async def audits(
        self,
        info: Info,
        user: UserRef | None = UNSET,
        first: int | None = UNSET,
        after: str | None = UNSET,
    ) -> Connection[Audit]:
        ctx, user_id = info.context, await _named(info, user)
        requested_page = page_asked(ordering(NEWEST, user_id), first, after, None, None)
        return await connected(
            info,
            Audit,
            await audits.page(ctx, user_id, requested_page, columns(info, Audit)),
            lambda row: Cursor(requested_page.ordering, row.created_at, row.id),
            lambda: audits.count(ctx, user_id),
        )


async def _named(info: Info, ref: UserRef | None) -> int | None:
    """Return the id of the audited account, or None if no account is named.

    A deleted account can only be named by its id.
    """
    if not ref:
        return None
    if ref.id:
        return keys_of(info, "User", [ref.id.value])[0]
    row = await user_of(info, ref)
    return row.id if row else NONE


@strawberry.type
class AuditMutation:
    @mutation(
        "Copies past, deleted and future mail of an account, which sees nothing of it.",
        role=Role.ADMIN,
        scope=Scope.MASTER,
    )
    async def audit_create(self, info: Info, input: AuditCreateInput) -> AuditPayload:
        new = NewAudit(
            found(await owner_named(info, input.user), path=["user"]),
            input.expires,
            input.start or None,
            input.end or None,
            input.reason or None,
        )
        key = await audits.create(info.context, new)
        return AuditPayload(audit=Audit.maybe(await info.context.load(audits.by_ids, key)))

    @mutation("Ends audits before their time, all or none.", role=Role.ROOT, scope=Scope.MASTER)
    async def audit_delete(self, info: Info, input: IdsInput) -> DeletePayload:
        await audits.remove(info.context, keys_of(info, "Audit", input.ids))
        return DeletePayload(deleted_ids=input.ids)

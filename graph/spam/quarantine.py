"""GraphQL types and query of the quarantine."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import strawberry
from strawberry import UNSET

from graph.domains.types import Domain
from graph.http import download_urls
from graph.messages.mime_parts import Attachment
from graph.spam.spam_report import SpamSymbol
from graph.types.connections import Connection, connected, page_asked
from graph.types.errors import leaf
from graph.types.fields import Auth, Info, field, query
from graph.types.input_conditions import Conditions
from graph.types.object_views import Made
from graph.types.references import UserSelection, plain, users_named
from graph.types.row_mapping import Shape, columns, identified, link, shaped
from graph.types.scalars import URL
from models.errors import found
from models.store.keyset_pages import Cursor, ordering
from models.users.roles import Scope, UserPermission
from resolvers.domains import loaders as domain_loaders
from resolvers.spam import quarantine
from resolvers.spam.quarantine import NEWEST, ItemWhere, OfUser
from resolvers.users import loaders as user_loaders

if TYPE_CHECKING:
    from graph.users.types import User

BYTES: dict[str, Any] = {"user_permission": UserPermission.QUARANTINE_ATTACHMENTS}


def _symbols(known: list[dict[str, Any]]) -> list[SpamSymbol]:
    """Return the stored symbols of the scanner."""
    return [SpamSymbol(**symbol) for symbol in known]


@strawberry.type(description="Held message.", directives=[Auth(scope=Scope.READ)])
class QuarantineItem(Shape):
    queue_id: str = leaf("By which logs tell of it.")
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "user_id", user_loaders.by_ids, shaped("graph.users.types", "User"), description="For whom."
    )
    domain: Domain | None = link(
        "domain_id",
        domain_loaders.by_ids,
        Domain.maybe,
        description="Domain of the recipient, as far as the viewer is in charge of it.",
    )
    sender: str = leaf('Envelope sender, "" of a bounce.')
    recipient: str = leaf("Envelope recipient.")
    subject: str = leaf('Decoded, "" if none.')
    score: float = leaf("Points.")
    symbols: list[SpamSymbol] = leaf("Tests that matched.")
    virus: bool = leaf("A virus was found.")
    virus_name: str | None = leaf("Which one.")
    created_at: datetime = leaf("Arrival.")
    notified: bool = leaf("Told of in a letter.")
    expires_at: datetime = leaf("Deleted then.")

    batch = staticmethod(quarantine.by_ids)
    made: ClassVar[Mapping[str, Made]] = {
        "id": identified("QuarantineItem"),
        "symbols": Made(("symbols",), _symbols),
        "virus": Made(("virus",), lambda name: name is not None),
        "virus_name": Made(("virus",), lambda name: name),
    }

    @field(
        "Plain text, made from HTML where there is none; its first 65,536 characters. Whoever "
        "looks at another's is noted.",
        cost=20,
    )
    async def text(self, info: Info) -> str | None:
        stored = found(await info.context.load(quarantine.stored, self.row.id))
        return await quarantine.text(stored)

    @field("Names and downloads.", "attachments", **BYTES)
    def attachments(self) -> list[Attachment]:
        indexes = range(len(self.row.attachments))
        return [Attachment.of(self.row, index, held=True) for index in indexes]

    @field("Whole message, for a quarter of an hour.", **BYTES)
    def source_url(self, info: Info) -> URL:
        viewer = info.context.viewer
        return download_urls.addressed(info, download_urls.held_path(self.row.id), viewer.user_id)


@strawberry.input(description="Which held messages.")
class QuarantineFilter(Conditions):
    users: UserSelection | None = leaf("Of these accounts. Default: all in view.", default=UNSET)
    query: str | None = leaf(
        "Part of subject, sender, recipient, or name of a test, in any case.", default=UNSET
    )
    score_above: float | None = leaf("More points than.", default=UNSET)
    virus: bool | None = leaf("A virus was found, or none.", default=UNSET)
    since: datetime | None = leaf("From this time on.", default=UNSET)

    def where(self) -> ItemWhere:
        """Convert the filter to conditions of the resolvers."""
        return ItemWhere(
            users_named(self.users or None, path="filter"),
            self.query or None,
            plain(self.score_above),
            plain(self.virus),
            plain(self.since),
        )


async def item_page(
    info: Info, user_id: int, first: int | None, after: str | None
) -> Connection[QuarantineItem]:
    """Load a page of the quarantined messages of an account, newest first."""
    requested_page = page_asked(NEWEST, first, after, None, None)
    page_key = OfUser(user_id, requested_page, columns(info, QuarantineItem))
    return await connected(
        info,
        QuarantineItem,
        await info.context.load(quarantine.of_users, page_key),
        lambda row: Cursor(NEWEST, row.created_at, row.id),
        lambda: info.context.load(quarantine.counts_of_users, page_key),
    )


@strawberry.type
class QuarantineQuery:
    @query(
        "Held mail, newest first: the own; for DOMAIN_ADMIN with QUARANTINE that of the domains' "
        "accounts, too; for ADMIN all.",
        scope=Scope.READ,
        user_permission=UserPermission.QUARANTINE,
    )
    async def quarantine(
        self,
        info: Info,
        filter: QuarantineFilter | None = UNSET,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[QuarantineItem]:
        ctx, where = info.context, filter.where() if filter else ItemWhere()
        list_ordering = ordering(NEWEST, None if where == ItemWhere() else where)
        requested_page = page_asked(list_ordering, first, after, last, before)
        return await connected(
            info,
            QuarantineItem,
            await quarantine.page(ctx, where, requested_page, columns(info, QuarantineItem)),
            lambda row: Cursor(requested_page.ordering, row.created_at, row.id),
            lambda: quarantine.count(ctx, where),
        )

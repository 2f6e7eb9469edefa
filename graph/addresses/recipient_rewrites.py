"""GraphQL types, queries and mutations of recipient rewrites."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar

import strawberry
from strawberry import UNSET

from graph.types.connections import Connection, connected, page_asked
from graph.types.errors import DeletePayload, IdsInput, MutationPayload, Options, leaf
from graph.types.fields import Auth, Info, query
from graph.types.mutations import mutation
from graph.types.object_views import Made
from graph.types.references import given, keys_of
from graph.types.row_mapping import Shape, columns, identified
from models.store.keyset_pages import Cursor
from models.users.roles import Role, Scope
from resolvers.addresses import recipient_rewrites
from resolvers.addresses.recipient_rewrites import OLDEST, NewRewrite, Values

FROM = "Address without label, or @domain, as received; dots do not count. It need not be ours."
TO = "Address or, where from is a domain, @domain, which keeps the local part; of others, too."
WRITES: dict[str, Any] = {"role": Role.ADMIN, "scope": Scope.MASTER}


@strawberry.type(
    description="A recipient is replaced before it is looked for, once; an address before its "
    "domain.",
    directives=[Auth(role=Role.ADMIN)],
)
class RecipientRewrite(Shape):
    from_: str = leaf("Address in normal form, or @domain.", name="from")
    to: str = leaf("Instead: an address, or @domain, which keeps the local part.")
    forwarded: bool = leaf("To was in no domain of ours when it was said: mail is sent on there.")
    active: bool = leaf("In force.")
    created_at: datetime = leaf("Creation.")
    updated_at: datetime | None = leaf("Last change.")

    batch = staticmethod(recipient_rewrites.by_ids)
    made: ClassVar[Mapping[str, Made]] = {
        "id": identified("RecipientRewrite"),
        "from_": Made(("local", "domain"), lambda local, domain: f"{local}@{domain}"),
        "to": Made(("target",), str),
        "forwarded": Made(("outside",), bool),
    }


@strawberry.input(description="Input of recipientRewriteCreate.")
class RecipientRewriteCreateInput(Options):
    from_: str = leaf(FROM, name="from")
    to: str = leaf(TO)
    active: bool = leaf("In force.", default=True)


@strawberry.input(description="Input of recipientRewriteUpdate; absent = unchanged.")
class RecipientRewriteUpdateInput(Options):
    ids: list[strawberry.ID] = leaf("Global ids.")
    from_: strawberry.Maybe[str] = leaf(FROM, name="from")
    to: strawberry.Maybe[str] = leaf(TO)
    active: strawberry.Maybe[bool] = leaf("In force.")


@strawberry.type(description="Answer of recipientRewriteCreate and recipientRewriteUpdate.")
class RecipientRewritePayload(MutationPayload):
    recipient_rewrite: RecipientRewrite | None = leaf("The rewrite, where it is one.", default=None)
    recipient_rewrites: list[RecipientRewrite] = leaf(
        "All of them, in the order of ids.", default_factory=list
    )


@strawberry.type
class RecipientRewriteQuery:
    @query("All rewrites, in the order they were made.", role=Role.ADMIN, scope=Scope.READ)
    async def recipient_rewrites(
        self,
        info: Info,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[RecipientRewrite]:
        requested_page = page_asked(OLDEST, first, after, last, before)
        return await connected(
            info,
            RecipientRewrite,
            await recipient_rewrites.page(
                info.context, requested_page, columns(info, RecipientRewrite)
            ),
            lambda row: Cursor(OLDEST, row.created_at, row.id),
            lambda: recipient_rewrites.count(info.context),
        )


@strawberry.type
class RecipientRewriteMutation:
    @mutation("Replaces a recipient from now on. Neither by itself nor in a circle.", **WRITES)
    async def recipient_rewrite_create(
        self, info: Info, input: RecipientRewriteCreateInput
    ) -> RecipientRewritePayload:
        new = NewRewrite(input.from_, input.to, input.active)
        return await _now(info, [await recipient_rewrites.create(info.context, new)])

    @mutation("Changes rewrites, all or none.", **WRITES)
    async def recipient_rewrite_update(
        self, info: Info, input: RecipientRewriteUpdateInput
    ) -> RecipientRewritePayload:
        keys = keys_of(info, "RecipientRewrite", input.ids)
        values = Values(*map(given, (input.from_, input.to, input.active)))
        await recipient_rewrites.change(info.context, keys, values)
        return await _now(info, keys)

    @mutation("All or none.", **WRITES)
    async def recipient_rewrite_delete(self, info: Info, input: IdsInput) -> DeletePayload:
        await recipient_rewrites.remove(info.context, keys_of(info, "RecipientRewrite", input.ids))
        return DeletePayload(deleted_ids=input.ids)


async def _now(info: Info, keys: list[int]) -> RecipientRewritePayload:
    """Load rewrites and return the payload with them, in the order of the ids."""
    rows = await info.context.load_all(recipient_rewrites.by_ids, keys)
    rewrites = [RecipientRewrite.of(row) for row in rows if row]
    only_rewrite = rewrites[0] if len(rewrites) == 1 else None
    return RecipientRewritePayload(recipient_rewrite=only_rewrite, recipient_rewrites=rewrites)

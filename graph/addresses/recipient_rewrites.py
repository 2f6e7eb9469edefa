"""GraphQL types, queries and mutations of recipient rewrites."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar

import strawberry
from strawberry import UNSET

from graph.types.connections import Connection, connection_of_page, page_request
from graph.types.errors import DeletePayload, IdsInput, MutationPayload, Options, attribute_field
from graph.types.fields import Auth, Info, query
from graph.types.mutations import mutation
from graph.types.object_views import DerivedField
from graph.types.references import ids_from_global_ids, maybe_value
from graph.types.row_mapping import NodeView, global_id_field, selected_columns
from models.store.keyset_pages import Cursor
from models.users.roles import Role, Scope
from resolvers.addresses import recipient_rewrites
from resolvers.addresses.recipient_rewrites import (
    CURSOR_KIND,
    NewRecipientRewrite,
    RecipientRewriteChanges,
)

FROM_DESCRIPTION = (
    "Address without label, or @domain, as received; dots do not count. It need not be ours."
)
TO_DESCRIPTION = (
    "Address or, where from is a domain, @domain, which keeps the local part; of others, too."
)
WRITE_GUARD: dict[str, Any] = {"role": Role.ADMIN, "scope": Scope.FULL}


@strawberry.type(
    description="A recipient is replaced before it is looked for, once; an address before its "
    "domain.",
    directives=[Auth(role=Role.ADMIN)],
)
class RecipientRewrite(NodeView):
    from_: str = attribute_field("Address in normal form, or @domain.", name="from")
    to: str = attribute_field("Instead: an address, or @domain, which keeps the local part.")
    forwarded: bool = attribute_field(
        "To was in no domain of ours when it was said: mail is sent on there."
    )
    active: bool = attribute_field("In force.")
    created_at: datetime = attribute_field("Creation.")
    updated_at: datetime | None = attribute_field("Last change.")

    load_batch = staticmethod(recipient_rewrites.load_visible_rewrites_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("RecipientRewrite"),
        "from_": DerivedField(("local", "domain"), lambda local, domain: f"{local}@{domain}"),
        "to": DerivedField(("target",), str),
        "forwarded": DerivedField(("outside",), bool),
    }


@strawberry.input(description="Input of recipientRewriteCreate.")
class RecipientRewriteCreateInput(Options):
    from_: str = attribute_field(FROM_DESCRIPTION, name="from")
    to: str = attribute_field(TO_DESCRIPTION)
    active: bool = attribute_field("In force.", default=True)


@strawberry.input(description="Input of recipientRewriteUpdate; absent = unchanged.")
class RecipientRewriteUpdateInput(Options):
    ids: list[strawberry.ID] = attribute_field("Global ids.")
    from_: strawberry.Maybe[str] = attribute_field(FROM_DESCRIPTION, name="from")
    to: strawberry.Maybe[str] = attribute_field(TO_DESCRIPTION)
    active: strawberry.Maybe[bool] = attribute_field("In force.")


@strawberry.type(description="Answer of recipientRewriteCreate and recipientRewriteUpdate.")
class RecipientRewritePayload(MutationPayload):
    recipient_rewrite: RecipientRewrite | None = attribute_field(
        "The rewrite, where it is one.", default=None
    )
    recipient_rewrites: list[RecipientRewrite] = attribute_field(
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
        requested_page = page_request(CURSOR_KIND, first, after, last, before)
        return await connection_of_page(
            info,
            RecipientRewrite,
            await recipient_rewrites.read_rewrite_page(
                info.context, requested_page, selected_columns(info, RecipientRewrite)
            ),
            lambda row: Cursor(CURSOR_KIND, row.created_at, row.id),
            lambda: recipient_rewrites.count_rewrites(info.context),
        )


@strawberry.type
class RecipientRewriteMutation:
    @mutation("Replaces a recipient from now on. Neither by itself nor in a circle.", **WRITE_GUARD)
    async def recipient_rewrite_create(
        self, info: Info, input: RecipientRewriteCreateInput
    ) -> RecipientRewritePayload:
        new = NewRecipientRewrite(input.from_, input.to, input.active)
        return await _load_payload(
            info, [await recipient_rewrites.create_rewrite(info.context, new)]
        )

    @mutation("Changes rewrites, all or none.", **WRITE_GUARD)
    async def recipient_rewrite_update(
        self, info: Info, input: RecipientRewriteUpdateInput
    ) -> RecipientRewritePayload:
        keys = ids_from_global_ids(info, "RecipientRewrite", input.ids)
        values = RecipientRewriteChanges(*map(maybe_value, (input.from_, input.to, input.active)))
        await recipient_rewrites.update_rewrites(info.context, keys, values)
        return await _load_payload(info, keys)

    @mutation("All or none.", **WRITE_GUARD)
    async def recipient_rewrite_delete(self, info: Info, input: IdsInput) -> DeletePayload:
        await recipient_rewrites.delete_rewrites(
            info.context, ids_from_global_ids(info, "RecipientRewrite", input.ids)
        )
        return DeletePayload(deleted_ids=input.ids)


async def _load_payload(info: Info, rewrite_ids: list[int]) -> RecipientRewritePayload:
    """Load rewrites and return the payload with them, in the order of the ids."""
    rows = await info.context.load_many(recipient_rewrites.load_visible_rewrites_by_id, rewrite_ids)
    rewrites = [RecipientRewrite.from_row(row) for row in rows if row]
    only_rewrite = rewrites[0] if len(rewrites) == 1 else None
    return RecipientRewritePayload(recipient_rewrite=only_rewrite, recipient_rewrites=rewrites)

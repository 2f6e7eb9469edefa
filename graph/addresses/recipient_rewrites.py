"""GraphQL types, queries and mutations of recipient rewrites."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar

import strawberry
from strawberry import UNSET

from graph.types.connections import Connection, connection_of_page, page_request
from graph.types.errors import DeletePayload, MutationPayload, Options, attribute_field
from graph.types.fields import Auth, Info, query
from graph.types.mutations import mutation
from graph.types.object_references import ObjectRef, load_ids_from_refs
from graph.types.object_views import DerivedField
from graph.types.references import maybe_value
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
LIST_FIELD = "recipientRewrites"
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


@strawberry.input(one_of=True, description="Names one recipient rewrite.")
class RecipientRewriteRef(ObjectRef):
    from_: strawberry.Maybe[str] = attribute_field(
        "The replaced recipient: an address or @domain, in any spelling that the creation accepts.",
        name="from",
    )


@strawberry.input(description="New values of recipient rewrites. An absent field leaves the value.")
class RecipientRewritePatch:
    from_: strawberry.Maybe[str] = attribute_field(FROM_DESCRIPTION, name="from")
    to: strawberry.Maybe[str] = attribute_field(TO_DESCRIPTION)
    active: strawberry.Maybe[bool] = attribute_field("In force.")


@strawberry.input(description="Input of recipientRewriteUpdate.")
class RecipientRewriteUpdateInput(Options):
    recipient_rewrites: list[RecipientRewriteRef] = attribute_field(
        "The recipient rewrites to change."
    )
    set: RecipientRewritePatch = attribute_field("New values.")


@strawberry.input(description="Input of recipientRewriteDelete.")
class RecipientRewriteDeleteInput(Options):
    recipient_rewrites: list[RecipientRewriteRef] = attribute_field(
        "The recipient rewrites to delete."
    )


@strawberry.type(description="Payload of recipientRewriteCreate.")
class RecipientRewritePayload(MutationPayload):
    recipient_rewrite: RecipientRewrite | None = attribute_field(
        "The new recipient rewrite.", default=None
    )


@strawberry.type(description="Payload of recipientRewriteUpdate.")
class RecipientRewritesPayload(MutationPayload):
    recipient_rewrites: list[RecipientRewrite] = attribute_field(
        "The changed recipient rewrites, in the order of the references.", default_factory=list
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
    @mutation(
        "Creates a recipient rewrite, which replaces a recipient of incoming mail. Rewrites must "
        "not form a loop.",
        **WRITE_GUARD,
    )
    async def recipient_rewrite_create(
        self, info: Info, input: RecipientRewriteCreateInput
    ) -> RecipientRewritePayload:
        new = NewRecipientRewrite(input.from_, input.to, input.active)
        key = await recipient_rewrites.create_rewrite(info.context, new)
        (rewrite,) = await _load_rewrites(info, [key])
        return RecipientRewritePayload(recipient_rewrite=rewrite)

    @mutation("Changes recipient rewrites, all or none.", **WRITE_GUARD)
    async def recipient_rewrite_update(
        self, info: Info, input: RecipientRewriteUpdateInput
    ) -> RecipientRewritesPayload:
        keys, patch = await _load_ids(info, input.recipient_rewrites), input.set
        values = RecipientRewriteChanges(*map(maybe_value, (patch.from_, patch.to, patch.active)))
        await recipient_rewrites.update_rewrites(info.context, keys, values)
        return RecipientRewritesPayload(recipient_rewrites=await _load_rewrites(info, keys))

    @mutation("Deletes recipient rewrites, all or none.", **WRITE_GUARD)
    async def recipient_rewrite_delete(
        self, info: Info, input: RecipientRewriteDeleteInput
    ) -> DeletePayload:
        keys = await _load_ids(info, input.recipient_rewrites)
        await recipient_rewrites.delete_rewrites(info.context, keys)
        return DeletePayload.of_keys("RecipientRewrite", keys)


async def _load_ids(info: Info, refs: list[RecipientRewriteRef]) -> list[int]:
    """Return the row IDs of references. Raises NotFound if no rewrite replaces a recipient."""
    return await load_ids_from_refs(
        info,
        refs,
        LIST_FIELD,
        name_field="from_",
        load_ids=recipient_rewrites.load_ids_by_recipient,
    )


async def _load_rewrites(info: Info, rewrite_ids: list[int]) -> list[RecipientRewrite]:
    """Load rewrites in the order of the ids."""
    rows = await info.context.load_many(recipient_rewrites.load_visible_rewrites_by_id, rewrite_ids)
    return [RecipientRewrite.from_row(row) for row in rows if row]

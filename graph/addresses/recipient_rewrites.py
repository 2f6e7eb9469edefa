"""GraphQL types, queries and mutations of recipient rewrites."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar

import strawberry
from strawberry import UNSET

from graph.types.connections import Connection, connection_of_page, page_request
from graph.types.errors import DeletePayload, MutationPayload, Options, attribute_field
from graph.types.fields import Auth, Info, query
from graph.types.input_conditions import ConditionsInput
from graph.types.mutations import mutation
from graph.types.object_references import ObjectRef, resolve_ids_from_refs_or_raise
from graph.types.object_views import DerivedField
from graph.types.references import maybe_value
from graph.types.row_mapping import NodeView, global_id_field, selected_columns
from models.store.keyset_pages import ordering_name
from models.users.roles import Role, Scope
from resolvers.addresses import recipient_rewrites
from resolvers.addresses.recipient_rewrites import (
    NewRecipientRewrite,
    RecipientRewriteChanges,
    RecipientRewriteOrder,
)

FROM_DESCRIPTION = (
    "Recipient to replace, as the server receives it: an address without `*` and without "
    "subaddress (`+label`), or `@domain`. Case and dots are ignored. The domain need not be one of "
    "the platform."
)
TO_DESCRIPTION = (
    "New recipient: an address or, if `from` is a domain, `@domain`. With `@domain` the local part "
    "stays the same. The new recipient can be on another server, and must differ from `from`."
)
LIST_FIELD = "recipientRewrites"
WRITE_GUARD: dict[str, Any] = {"role": Role.ADMIN, "scope": Scope.FULL}


@strawberry.type(
    description="Rule that replaces a recipient of incoming mail, once and before the "
    "recipient is looked up. A rule for an address has precedence over one for "
    "its domain.",
    directives=[Auth(role=Role.ADMIN)],
)
class RecipientRewrite(NodeView):
    from_: str = attribute_field(
        "Replaced recipient: an address in normalized form (lower case, without dots and "
        "subaddress), or `@domain`.",
        name="from",
    )
    to: str = attribute_field(
        "New recipient: an address or `@domain`. With `@domain` the local part stays the same."
    )
    forwarded: bool = attribute_field(
        "True: the new recipient was in no domain of the platform when `to` was stored, so that "
        "mail can be sent to another server."
    )
    active: bool = attribute_field(
        "True if the rewrite is applied. If false, an active rewrite of the domain of the "
        "address applies instead."
    )
    created_at: datetime = attribute_field("Time when the rewrite was created.")
    updated_at: datetime | None = attribute_field("Time of the last change of the rewrite.")

    load_batch = staticmethod(recipient_rewrites.load_visible_rewrites_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("RecipientRewrite"),
        "from_": DerivedField(("local", "domain"), lambda local, domain: f"{local}@{domain}"),
        "to": DerivedField(("target",), str),
        "forwarded": DerivedField(("outside",), bool),
    }


@strawberry.input(description="Conditions on recipient rewrites.")
class RecipientRewriteFilter(ConditionsInput):
    query: str | None = attribute_field(
        "Returns only rewrites with this text in `from`, which has no dots in the local part, or "
        "in `to`. Case and accents are ignored. At most 1,000 characters.",
        default=UNSET,
    )


@strawberry.input(description="Input of recipientRewriteCreate.")
class RecipientRewriteCreateInput(Options):
    from_: str = attribute_field(FROM_DESCRIPTION, name="from")
    to: str = attribute_field(TO_DESCRIPTION)
    active: bool = attribute_field(
        "True if the rewrite is applied. If false, an active rewrite of the domain of the "
        "address applies instead.",
        default=True,
    )


@strawberry.input(one_of=True, description="Reference to one recipient rewrite.")
class RecipientRewriteRef(ObjectRef):
    from_: strawberry.Maybe[str] = attribute_field(
        "Replaced recipient: an address or `@domain`, in any spelling that the creation accepts. "
        "NOT_FOUND if it has no rewrite.",
        name="from",
    )


@strawberry.input(
    description=(
        "New values of recipient rewrites. An absent field leaves the value; null is an error. At "
        "least one field is required."
    )
)
class RecipientRewritePatch:
    from_: strawberry.Maybe[str] = attribute_field(FROM_DESCRIPTION, name="from")
    to: strawberry.Maybe[str] = attribute_field(TO_DESCRIPTION)
    active: strawberry.Maybe[bool] = attribute_field(
        "True if the rewrite is applied. If false, an active rewrite of the domain of the "
        "address applies instead."
    )


@strawberry.input(description="Input of recipientRewriteUpdate.")
class RecipientRewriteUpdateInput(Options):
    recipient_rewrites: list[RecipientRewriteRef] = attribute_field(
        "Recipient rewrites to change, 1 to 1,000 by default. Only one if `from` is given, else "
        "CONFLICT."
    )
    set: RecipientRewritePatch = attribute_field(
        "New values, the same for all rewrites. At least one value is required."
    )


@strawberry.input(description="Input of recipientRewriteDelete.")
class RecipientRewriteDeleteInput(Options):
    recipient_rewrites: list[RecipientRewriteRef] = attribute_field(
        "Recipient rewrites to delete, 1 to 1,000 by default."
    )


@strawberry.type(description="Payload of recipientRewriteCreate.")
class RecipientRewritePayload(MutationPayload):
    recipient_rewrite: RecipientRewrite | None = attribute_field(
        "Created recipient rewrite. Null if the mutation failed.", default=None
    )


@strawberry.type(description="Payload of recipientRewriteUpdate.")
class RecipientRewritesPayload(MutationPayload):
    recipient_rewrites: list[RecipientRewrite] = attribute_field(
        "Changed recipient rewrites, in the order of the references. Empty if the mutation failed.",
        default_factory=list,
    )


@strawberry.type
class RecipientRewriteQuery:
    @query(
        "Returns the recipient rewrites of the platform, active and inactive ones. They replace "
        "recipients of mail from outside and from local users by other addresses.",
        role=Role.ADMIN,
        scope=Scope.READ,
    )
    async def recipient_rewrites(
        self,
        info: Info,
        filter: RecipientRewriteFilter | None = UNSET,
        order_by: RecipientRewriteOrder = RecipientRewriteOrder.CREATED_AT_ASC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[RecipientRewrite]:
        search_text = (filter.query or None) if filter else None
        list_ordering = ordering_name(f"recipient-rewrites-{order_by}", search_text)
        list_order = recipient_rewrites.LIST_ORDERS[order_by]
        requested_page = page_request(list_ordering, first, after, last, before)
        return await connection_of_page(
            info,
            RecipientRewrite,
            await recipient_rewrites.read_visible_rewrite_page(
                info.context,
                search_text,
                requested_page,
                selected_columns(info, RecipientRewrite),
                order_by,
            ),
            lambda row: list_order.cursor_of_row(row, list_ordering),
            lambda: recipient_rewrites.count_visible_rewrites(info.context, search_text),
        )


@strawberry.type
class RecipientRewriteMutation:
    @mutation(
        "Creates a recipient rewrite, which replaces a recipient of incoming mail by another "
        "address. CONFLICT if the recipient has a rewrite already. VALIDATION if rewrites would "
        "form a loop, for which inactive ones count too. LIMIT_REACHED if the platform has 5,000 "
        "rewrites. If an ADMIN gives an address of an account with the role ROOT as `from`, the "
        "error is FORBIDDEN. A rewrite of a whole domain by an ADMIN does not apply to such "
        "accounts.",
        **WRITE_GUARD,
    )
    async def recipient_rewrite_create(
        self, info: Info, input: RecipientRewriteCreateInput
    ) -> RecipientRewritePayload:
        new = NewRecipientRewrite(input.from_, input.to, input.active)
        key = await recipient_rewrites.create_rewrite(info.context, new)
        (rewrite,) = await _load_rewrites(info, [key])
        return RecipientRewritePayload(recipient_rewrite=rewrite)

    @mutation(
        "Changes the given recipient rewrites, or none of them if one can't be changed. A rewrite "
        "replaces the recipient of mail by one other address. CONFLICT if a recipient would have "
        "two rewrites. VALIDATION if rewrites would form a loop. FORBIDDEN if `from` is an "
        "address of an account with the role ROOT and the caller is an ADMIN. A rewrite of a "
        "whole domain that an ADMIN changed does not apply to such accounts. LIMIT_REACHED for "
        "more than 1,000 given rewrites (by default).",
        **WRITE_GUARD,
    )
    async def recipient_rewrite_update(
        self, info: Info, input: RecipientRewriteUpdateInput
    ) -> RecipientRewritesPayload:
        keys, patch = await _resolve_rewrite_ids_or_raise(info, input.recipient_rewrites), input.set
        values = RecipientRewriteChanges(*map(maybe_value, (patch.from_, patch.to, patch.active)))
        await recipient_rewrites.update_rewrites(info.context, keys, values)
        return RecipientRewritesPayload(recipient_rewrites=await _load_rewrites(info, keys))

    @mutation(
        "Deletes recipient rewrites, which replace recipients of incoming mail by other "
        "addresses: all or none. LIMIT_REACHED for more than 1,000 references (by default).",
        **WRITE_GUARD,
    )
    async def recipient_rewrite_delete(
        self, info: Info, input: RecipientRewriteDeleteInput
    ) -> DeletePayload:
        keys = await _resolve_rewrite_ids_or_raise(info, input.recipient_rewrites)
        await recipient_rewrites.delete_rewrites(info.context, keys)
        return DeletePayload.of_keys("RecipientRewrite", keys)


async def _resolve_rewrite_ids_or_raise(info: Info, refs: list[RecipientRewriteRef]) -> list[int]:
    """Return the row IDs of references. Raises NotFound if no rewrite replaces a recipient."""
    return await resolve_ids_from_refs_or_raise(
        info,
        refs,
        LIST_FIELD,
        name_field="from_",
        load_ids=recipient_rewrites.load_visible_rewrite_ids_by_recipient,
    )


async def _load_rewrites(info: Info, rewrite_ids: list[int]) -> list[RecipientRewrite]:
    """Load rewrites in the order of the ids."""
    rows = await info.context.load_many(recipient_rewrites.load_visible_rewrites_by_id, rewrite_ids)
    return [RecipientRewrite.from_row(row) for row in rows if row]

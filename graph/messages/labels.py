"""GraphQL types and mutations of labels."""

from collections.abc import Mapping
from typing import ClassVar

import strawberry
from strawberry import UNSET

from graph.types.errors import DeletePayload, MutationPayload, Options, attribute_field
from graph.types.fields import Info, field
from graph.types.mutations import mutation
from graph.types.object_references import ObjectRef, resolve_ids_from_refs_or_raise
from graph.types.object_views import DerivedField
from graph.types.references import maybe_value, value_or_none
from graph.types.row_mapping import NodeView, global_id_field
from graph.types.scalars import BigInt
from models.users.roles import Scope
from resolvers.messages import labels
from resolvers.messages.labels import LabelChange, NewLabel


@strawberry.type(
    description="Name and color of a keyword (RFC 9051). Messages with the keyword among their "
    "flags have the label."
)
class Label(NodeView):
    keyword: str = attribute_field("Keyword of the label (RFC 9051). Its case does not matter.")
    name: str = attribute_field("Name of the label as clients show it.")
    color: str | None = attribute_field(
        "Color of the label as `#rrggbb` in lower case. Null: the label has none."
    )

    load_batch = staticmethod(labels.load_visible_by_ids)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {"id": global_id_field("Label")}

    @field(
        "Number of unread messages with the label (without the flag \\Seen), in all mailboxes of "
        "the user.",
        "user_id",
        "folded",
        cost=5,
    )
    async def unseen_count(self, info: Info) -> BigInt:
        counts = await info.context.load(
            labels.count_messages_by_label, (self.row.user_id, self.row.folded)
        )
        return BigInt(counts.unseen_count)

    @field(
        "Number of messages with the label, in all mailboxes of the user.",
        "user_id",
        "folded",
        cost=5,
    )
    async def message_count(self, info: Info) -> BigInt:
        counts = await info.context.load(
            labels.count_messages_by_label, (self.row.user_id, self.row.folded)
        )
        return BigInt(counts.message_count)


@strawberry.input(one_of=True, description="Reference to one label of the signed-in user.")
class LabelRef(ObjectRef):
    keyword: strawberry.Maybe[str] = attribute_field("Keyword of the label (case is ignored).")


@strawberry.input(description="Input of labelCreate.")
class LabelCreateInput(Options):
    keyword: str = attribute_field(
        "Keyword of the label (RFC 9051), 1 to 128 characters without white space and "
        "`(){%*\"\\]`. A label with the same keyword in any case is a CONFLICT. The keyword can't "
        "be changed later."
    )
    name: str | None = attribute_field(
        "Name of the label as clients show it, 1 to 128 characters; spaces at both ends are "
        "removed. Two labels can have the same name. Default, and with null: the keyword.",
        default=UNSET,
    )
    color: str | None = attribute_field(
        "Color of the label in clients, as `#rrggbb` (stored in lower case). Default: none.",
        default=UNSET,
    )


@strawberry.input(
    description="Changes to labels. An omitted field is unchanged. At least one field is required."
)
class LabelPatch:
    name: strawberry.Maybe[str] = attribute_field(
        "Name of the label as clients show it, 1 to 128 characters; spaces at both ends are "
        "removed. Null is refused."
    )
    color: strawberry.Maybe[str | None] = attribute_field(
        "Color of the label in clients, as `#rrggbb` (stored in lower case). Null removes the "
        "color."
    )


@strawberry.input(description="Input of labelUpdate.")
class LabelUpdateInput(Options):
    labels: list[LabelRef] = attribute_field("Labels to change, 1 to 1,000 by default.")
    set: LabelPatch = attribute_field(
        "Values to change, the same for all labels. At least one value is required."
    )


@strawberry.input(description="Input of labelDelete.")
class LabelDeleteInput(Options):
    labels: list[LabelRef] = attribute_field("Labels to delete, 1 to 1,000 by default.")


@strawberry.type(description="Payload of labelCreate.")
class LabelPayload(MutationPayload):
    label: Label | None = attribute_field(
        "Created label. Null if the mutation failed.", default=None
    )


@strawberry.type(description="Payload of labelUpdate.")
class LabelsPayload(MutationPayload):
    labels: list[Label] = attribute_field(
        "Changed labels, in the order of the input.", default_factory=list
    )


@strawberry.type
class LabelMutation:
    @mutation(
        "Creates a label of the signed-in user: a name and color for a keyword, which messages "
        "may already have. LIMIT_REACHED if the user has 250 labels. CONFLICT if the keyword has "
        "a label already.",
        scope=Scope.MAIL,
    )
    async def label_create(self, info: Info, input: LabelCreateInput) -> LabelPayload:
        ctx = info.context
        new_label = NewLabel(input.keyword, value_or_none(input.name), value_or_none(input.color))
        label_id = await labels.create_label(ctx, new_label)
        return LabelPayload(
            label=Label.from_row_or_none(await ctx.load(labels.load_visible_by_ids, label_id))
        )

    @mutation(
        "Changes the name and color of labels of the signed-in user, all or none. All given "
        "labels get the same values. The keyword of a label can't be changed, so that messages "
        "keep their labels. LIMIT_REACHED for more than 1,000 references (by default).",
        scope=Scope.MAIL,
    )
    async def label_update(self, info: Info, input: LabelUpdateInput) -> LabelsPayload:
        label_ids = await _ids_from_refs(info, input.labels)
        change = LabelChange(
            maybe_value(input.set.name), maybe_value(input.set.color), bool(input.set.color)
        )
        await labels.update_labels(info.context, label_ids, change)
        rows = await info.context.load_many(labels.load_visible_by_ids, label_ids)
        return LabelsPayload(labels=[Label.from_row(row) for row in rows if row])

    @mutation(
        "Deletes labels of the signed-in user, all or none. A label is the name and color of a "
        "keyword. Messages keep the keyword. LIMIT_REACHED for more than 1,000 references (by "
        "default).",
        scope=Scope.MAIL,
    )
    async def label_delete(self, info: Info, input: LabelDeleteInput) -> DeletePayload:
        label_ids = await _ids_from_refs(info, input.labels)
        await labels.delete_labels(info.context, label_ids)
        return DeletePayload.of_keys("Label", label_ids)


async def _ids_from_refs(info: Info, refs: list[LabelRef]) -> list[int]:
    """Return the row IDs of labels, in the order of the references."""
    return await resolve_ids_from_refs_or_raise(
        info, refs, "labels", name_field="keyword", load_ids=labels.load_ids_by_keyword
    )

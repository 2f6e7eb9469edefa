"""GraphQL types and mutation of labels."""

from collections.abc import Mapping
from typing import ClassVar

import strawberry
from strawberry import UNSET

from graph.types.errors import MutationPayload, Options, attribute_field
from graph.types.fields import Info, field
from graph.types.mutations import mutation
from graph.types.object_views import DerivedField
from graph.types.references import value_or_none
from graph.types.row_mapping import NodeView, global_id_field
from models.errors import InvalidInput
from models.users.roles import Scope
from resolvers.access import require_user_id
from resolvers.messages import labels
from resolvers.messages.labels import LabelChange


@strawberry.type(description="Keyword with a name and a colour.")
class Label(NodeView):
    keyword: str = attribute_field("What messages have among their flags, in any case.")
    name: str = attribute_field("For people.")
    color: str | None = attribute_field("#rrggbb.")

    load_batch = staticmethod(labels.load_visible_by_ids)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {"id": global_id_field("Label")}

    @field("Unread messages that have it.", "user_id", "folded", cost=5)
    async def unseen(self, info: Info) -> int:
        counts = await info.context.load(
            labels.count_messages_by_label, (self.row.user_id, self.row.folded)
        )
        return counts.unseen

    @field("Messages that have it, in all folders.", "user_id", "folded", cost=5)
    async def total(self, info: Info) -> int:
        counts = await info.context.load(
            labels.count_messages_by_label, (self.row.user_id, self.row.folded)
        )
        return counts.total


@strawberry.input(description="Input of labelSet; absent = unchanged.")
class LabelSetInput(Options):
    keyword: str = attribute_field("Which; a label is made where there is none.")
    name: str | None = attribute_field(
        "At most 128 characters; of a new one the keyword.", default=UNSET
    )
    color: str | None = attribute_field("#rrggbb; null = none.", default=UNSET)
    delete: bool = attribute_field(
        "Forget name and colour. Messages keep the keyword.", default=False
    )


@strawberry.type(description="Answer of labelSet.")
class LabelSetPayload(MutationPayload):
    labels: list[Label] = attribute_field("All there are now, by name.", default_factory=list)


@strawberry.type
class LabelMutation:
    @mutation("Name and colour of a keyword.", scope=Scope.MAIL)
    async def label_set(self, info: Info, input: LabelSetInput) -> LabelSetPayload:
        ctx, color = info.context, input.color
        if input.delete:
            if input.name or input.color:
                text = "what is deleted has no name and no colour"
                raise InvalidInput(text, constraint="exclusive", path=["delete"])
            await labels.delete_label(ctx, input.keyword)
        else:
            has_color = color is not UNSET
            changes = LabelChange(
                value_or_none(input.name), color if has_color else None, has_color
            )
            await labels.set_label(ctx, input.keyword, changes)
        rows = await ctx.load(labels.load_labels_by_user, require_user_id(ctx))
        return LabelSetPayload(labels=[Label.from_row(row) for row in rows])

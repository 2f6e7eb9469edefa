"""GraphQL types and mutation of labels."""

from collections.abc import Mapping
from typing import ClassVar

import strawberry
from strawberry import UNSET

from graph.types.errors import MutationPayload, Options, leaf
from graph.types.fields import Info, field
from graph.types.mutations import mutation
from graph.types.object_views import Made
from graph.types.references import plain
from graph.types.row_mapping import Shape, identified
from models.errors import Invalid
from models.users.roles import Scope
from resolvers.access import own
from resolvers.messages import labels
from resolvers.messages.labels import Words


@strawberry.type(description="Keyword with a name and a colour.")
class Label(Shape):
    keyword: str = leaf("What messages have among their flags, in any case.")
    name: str = leaf("For people.")
    color: str | None = leaf("#rrggbb.")

    batch = staticmethod(labels.by_ids)
    made: ClassVar[Mapping[str, Made]] = {"id": identified("Label")}

    @field("Unread messages that have it.", "user_id", "folded", cost=5)
    async def unseen(self, info: Info) -> int:
        counts = await info.context.load(labels.figures, (self.row.user_id, self.row.folded))
        return counts.unseen

    @field("Messages that have it, in all folders.", "user_id", "folded", cost=5)
    async def total(self, info: Info) -> int:
        counts = await info.context.load(labels.figures, (self.row.user_id, self.row.folded))
        return counts.total


@strawberry.input(description="Input of labelSet; absent = unchanged.")
class LabelSetInput(Options):
    keyword: str = leaf("Which; a label is made where there is none.")
    name: str | None = leaf("At most 128 characters; of a new one the keyword.", default=UNSET)
    color: str | None = leaf("#rrggbb; null = none.", default=UNSET)
    delete: bool = leaf("Forget name and colour. Messages keep the keyword.", default=False)


@strawberry.type(description="Answer of labelSet.")
class LabelSetPayload(MutationPayload):
    labels: list[Label] = leaf("All there are now, by name.", default_factory=list)


@strawberry.type
class LabelMutation:
    @mutation("Name and colour of a keyword.", scope=Scope.MAIL)
    async def label_set(self, info: Info, input: LabelSetInput) -> LabelSetPayload:
        ctx, color = info.context, input.color
        if input.delete:
            if input.name or input.color:
                text = "what is deleted has no name and no colour"
                raise Invalid(text, constraint="exclusive", path=["delete"])
            await labels.remove(ctx, input.keyword)
        else:
            has_color = color is not UNSET
            changes = Words(plain(input.name), color if has_color else None, has_color)
            await labels.set_(ctx, input.keyword, changes)
        rows = await ctx.load(labels.of_users, own(ctx))
        return LabelSetPayload(labels=[Label.of(row) for row in rows])

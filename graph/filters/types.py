"""GraphQL types, queries and mutations of filters."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.admin.tasks import Task
from graph.filters.inputs import (
    FilterApplyInput,
    FilterCreateInput,
    FilterListFilter,
    FilterUpdateInput,
)
from graph.mailboxes.types import Mailbox
from graph.messages.deleted_messages import TaskPayload
from graph.messages.mime_parts import HeaderField
from graph.types import global_ids
from graph.types.connections import Connection, connected, page_asked
from graph.types.errors import DeletePayload, IdsInput, MutationPayload, leaf
from graph.types.fields import Auth, Info, field, query
from graph.types.mutations import mutation
from graph.types.object_views import Made, View, Viewed
from graph.types.references import (
    MessageRef,
    UserRef,
    keys_of,
    message_of,
    owner_named,
    owner_of,
    plain,
)
from graph.types.row_mapping import Shape, columns, identified, link, shaped
from graph.types.scalars import BigInt
from mail.mime import Header
from models.errors import NotFound, found
from models.store.keyset_pages import Cursor, ordering
from models.users.roles import Role, Scope
from resolvers.filters import apply_task, filter_tests
from resolvers.filters import loaders as filter_loaders
from resolvers.filters import mutations as filter_mutations
from resolvers.filters.loaders import MADE, ORDER, Deed, FilterWhere, OfUser
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.notifications import webhooks
from resolvers.users import loaders as user_loaders

if TYPE_CHECKING:
    from graph.notifications.webhooks import Webhook
    from graph.users.types import User

WHERE = ("query",)
WHAT = ("action", "targets")
MESSAGE = strawberry.argument(description="One that is there.")
RAW = strawberry.argument(description="Or one as it would come, with its header.")
USER = strawberry.argument(description="Whose filters; default: the viewer's.")


def _of(name: str, default: Any = None) -> Made:
    """Return a field that shows a member of the stored JSON."""
    return Made((), lambda query: query.get(name, default))


def _header(query: Mapping[str, Any]) -> HeaderField | None:
    """Return the header test of a stored query as a header field; None if it has none."""
    header_test = query.get("header")
    if header_test is None:
        return None
    value = header_test["value"] or ""
    return HeaderField.of(
        Header(header_test["key"], value, f"{header_test['key']}: {value}".rstrip())
    )


@strawberry.type(description="Test by an expression (POSIX extended), in any case.")
class RegexTest(View):
    key: str | None = leaf("Name of a header; null = the texts of the body.")
    pattern: str = leaf("The expression.")

    made: ClassVar[Mapping[str, Made]] = {"key": _of("key"), "pattern": _of("pattern")}


@strawberry.type(description="All given tests must hold; null = no such test.")
class FilterQuery(View):
    from_: str | None = leaf("In From or Sender, in any case.", name="from")
    to: str | None = leaf("In To or Cc.")
    subject: str | None = leaf("In Subject.")
    list_id: str | None = leaf("In List-Id.")
    text: str | None = leaf("In a text of the body.")
    has_attachment: bool | None = leaf("With or without files.")
    size: BigInt | None = leaf(
        "Larger than so many bytes; below 0, smaller than its absolute value."
    )
    header: HeaderField | None = leaf('Another header; the value "" = it is there.')
    regex: RegexTest | None = leaf("An expression.")
    query: str | None = leaf("A search text, as it was given.")
    all: list["FilterQuery"] = leaf("Each of these holds, too; empty = no such test.")
    any: list["FilterQuery"] = leaf("At least one of these holds; empty = no such test.")
    not_: list["FilterQuery"] = leaf("None of these holds.", name="not")


FilterQuery.made = {
    "from_": _of("from"),
    "to": _of("to"),
    "subject": _of("subject"),
    "list_id": _of("listId"),
    "text": _of("text"),
    "has_attachment": _of("hasAttachment"),
    "size": _of("size"),
    "header": Made((), _header),
    "regex": Viewed((), lambda query: query.get("regex"), RegexTest),
    "query": Made((), lambda query: query["query"]["text"] if query.get("query") else None),
    "all": Viewed((), lambda query: query.get("all", ()), FilterQuery, many=True),
    "any": Viewed((), lambda query: query.get("any", ()), FilterQuery, many=True),
    "not_": Viewed((), lambda query: query.get("not", ()), FilterQuery, many=True),
}


@strawberry.type(description="Answer by a filter, under the guards of autoreply.")
class FilterReply(View):
    subject: str = leaf('"" = subject of the original.')
    text: str = leaf("Plain text.")
    html: str = leaf("HTML.")

    made: ClassVar[Mapping[str, Made]] = {
        "subject": _of("subject"),
        "text": _of("text"),
        "html": _of("html"),
    }


@strawberry.type(description="What happens to a match; null = nothing is said of it.")
class FilterAction(View):
    seen: bool | None = leaf("Mark read.")
    flag: bool | None = leaf("Flag.")
    delete: bool | None = leaf("Do not store.")
    spam: bool | None = leaf("To Junk; false = never Junk.")
    mailbox: Mailbox | None = link(
        "mailbox_id", mailbox_loaders.by_ids, Mailbox.maybe, description="Store there."
    )
    targets: list[str] = leaf(
        "Forward: addresses, smtp:// relays without their passwords, http(s):// URLs."
    )
    labels: list[str] = leaf("Keywords to set.")
    remove_labels: list[str] = leaf("Keywords not to set, whatever another filter says.")
    reply: FilterReply | None = leaf("Answer the sender, once in setting autoreply.interval.")
    webhook: Annotated["Webhook", strawberry.lazy("graph.notifications.webhooks")] | None = link(
        "webhook_id",
        webhooks.by_ids,
        shaped("graph.notifications.webhooks", "Webhook"),
        description="Told of the message; shown to those who see webhooks.",
    )
    stop: bool = leaf("No further filters.")

    made: ClassVar[Mapping[str, Made]] = {
        "reply": Viewed(("reply",), lambda reply: reply, FilterReply)
    }

    @field("Store there as well, counted against the quota each time.", "copies")
    async def copy_to(self, info: Info) -> list[Mailbox]:
        rows = await info.context.load_all(mailbox_loaders.by_ids, self.row.copies)
        return [Mailbox.of(row) for row in rows if row]


@strawberry.type(description="Rule of a user.", directives=[Auth(scope=Scope.READ)])
class Filter(Shape):
    user: Annotated["User", strawberry.lazy("graph.users.types")] = link(
        "user_id", user_loaders.by_ids, shaped("graph.users.types", "User"), description="Whose."
    )
    name: str = leaf("Name.")
    order: int = leaf("Place in the sequence: the lowest first, of equal ones the oldest.")
    query: FilterQuery = leaf("Which mail.")
    action: FilterAction = leaf("What is done.")
    active: bool = leaf("In force.")
    created_at: datetime = leaf("Creation.")
    meta_data: JSON | None = leaf("Free form.")
    match_count: BigInt = leaf("Times it acted.")

    batch = staticmethod(filter_loaders.by_ids)
    made: ClassVar[Mapping[str, Made]] = {
        "id": identified("Filter"),
        "query": Viewed(WHERE, lambda query: query, FilterQuery),
        "action": Viewed(WHAT, Deed.of, FilterAction),
    }

    @field("Tests as pairs, for people, in the user's language.", *WHERE, "user_id")
    async def query_text(self, info: Info) -> list[list[str]]:
        return await filter_loaders.query_text(info.context, self.row)

    @field("Actions as pairs, for people, in the user's language.", *WHAT, "user_id")
    async def action_text(self, info: Info) -> list[list[str]]:
        return await filter_loaders.action_text(info.context, self.row)

    @field("The same as Sieve; what that has no words for is a comment.", *WHERE, *WHAT, cost=5)
    async def sieve(self, info: Info) -> str:
        return await filter_loaders.script(info.context, self.row)


async def filter_page(
    info: Info, user_id: int, first: int | None, after: str | None
) -> Connection[Filter]:
    """Load a page of the filters of an account, in the order they are run."""
    ctx, requested_page = info.context, page_asked(ORDER, first, after, None, None)
    page_key = OfUser(user_id, requested_page, columns(info, Filter))
    return await connected(
        info,
        Filter,
        await ctx.load(filter_loaders.pages, page_key),
        lambda row: Cursor(ORDER, row.order, row.id),
        lambda: ctx.load(filter_loaders.counts, page_key),
    )


@strawberry.type(description="One filter against one message.")
class FilterTestResult:
    filter: Filter = leaf("The filter.")
    matches: bool = leaf("All tests hold.")
    actions: list[str] = leaf(
        "What it would do, in the user's language: what an earlier filter has decided, or a stop "
        "has ended, is not among it."
    )


@strawberry.type(description="Answer of filterCreate.")
class FilterPayload(MutationPayload):
    filter: Filter | None = leaf("The filter.", default=None)


@strawberry.type(description="Filters, as they are now.")
class FiltersPayload(MutationPayload):
    filters: list[Filter] = leaf("In the order of the ids, or of the script.", default_factory=list)


@strawberry.type
class FilterQueries:
    @query("One; for DOMAIN_ADMIN with FILTERS also of users of the domains.", scope=Scope.READ)
    async def filter(self, info: Info, id: strawberry.ID) -> Filter | None:
        return Filter.maybe(
            await info.context.load(filter_loaders.by_ids, global_ids.decode("Filter", id))
        )

    @query("Of all users, the oldest first.", role=Role.ADMIN, scope=Scope.READ)
    async def filters(
        self,
        info: Info,
        filter: FilterListFilter | None = UNSET,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Filter]:
        where = await filter.where(info) if filter else FilterWhere()
        list_ordering = ordering(MADE, None if where == FilterWhere() else where)
        requested_page = page_asked(list_ordering, first, after, last, before)
        return await connected(
            info,
            Filter,
            await filter_loaders.page(info.context, where, requested_page, columns(info, Filter)),
            lambda row: Cursor(requested_page.ordering, row.created_at, row.id),
            lambda: filter_loaders.count(info.context, where),
        )

    @query("What each filter of a user finds in a message, and would do with it.", scope=Scope.READ)
    async def filter_test(
        self,
        info: Info,
        user: Annotated[UserRef | None, USER] = UNSET,
        message: Annotated[MessageRef | None, MESSAGE] = UNSET,
        raw: Annotated[str | None, RAW] = UNSET,
    ) -> list[FilterTestResult]:
        owner = found(await owner_of(info, user or None), path=["user"])
        key = await message_of(info, message, path="message") if message else None
        if message and key is None:
            raise NotFound("", path=["message"])
        results = await filter_tests.test(info.context, owner, key, plain(raw))
        return [
            FilterTestResult(
                filter=Filter.of(result.row), matches=result.fits, actions=list(result.acts)
            )
            for result in results
        ]


@strawberry.type
class FilterMutation:
    @mutation(
        "Makes a filter, at the end unless order is given. Of others a DOMAIN_ADMIN needs FILTERS.",
        scope=Scope.SETTINGS,
    )
    async def filter_create(self, info: Info, input: FilterCreateInput) -> FilterPayload:
        owner = await owner_named(info, input.user or None)
        key = await filter_mutations.create(info.context, owner, input.values())
        return FilterPayload(filter=Filter.of(await info.context.load(filter_loaders.by_ids, key)))

    @mutation(
        "Changes filters, all or none; query and action are merged field by field.",
        scope=Scope.SETTINGS,
    )
    async def filter_update(self, info: Info, input: FilterUpdateInput) -> FiltersPayload:
        keys = keys_of(info, "Filter", input.ids)
        await filter_mutations.change(info.context, keys, input.set.values())
        rows = await info.context.load_all(filter_loaders.by_ids, keys)
        return FiltersPayload(filters=[Filter.of(found(row)) for row in rows])

    @mutation("Deletes filters, all or none.", scope=Scope.SETTINGS)
    async def filter_delete(self, info: Info, input: IdsInput) -> DeletePayload:
        await filter_mutations.remove(info.context, keys_of(info, "Filter", input.ids))
        return DeletePayload(deleted_ids=input.ids)

    @mutation(
        "Runs own filters, in their order, on mail that is there: it is moved, copied, marked, "
        "and to be deleted goes to the archive. Nothing is sent on, answered or posted.",
        scope=Scope.MAIL,
    )
    async def filter_apply(self, info: Info, input: FilterApplyInput) -> TaskPayload:
        keys = keys_of(info, "Filter", input.ids)
        selection = input.select.selection(info)
        return TaskPayload(task=Task.of(await apply_task.apply(info.context, keys, selection)))

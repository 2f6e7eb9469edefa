"""Queries and mutations with which administrators inspect and maintain the search index."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, ClassVar

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.admin.tasks import Task
from graph.messages.filter_inputs import MessageFilter
from graph.messages.types import Message
from graph.search.queries import json_from_filter
from graph.types.connections import Connection, connection_of_page, page_request
from graph.types.errors import MutationPayload, Options, attribute_field
from graph.types.fields import Info, field, query
from graph.types.mutations import mutation
from graph.types.object_views import DerivedField, View
from graph.types.references import UserSelection, user_selector_from_selection
from graph.types.row_mapping import lazy_view_factory, link
from graph.types.scalars import BigInt, ByteSize
from models.search.text_index import ENGINE_NAMES
from models.store.keyset_pages import Cursor, ordering_name
from models.users.roles import Role, Scope
from resolvers.messages import loaders as message_loaders
from resolvers.search import index_inspection, index_tasks, search_scope
from resolvers.search.index_inspection import IndexLookup
from resolvers.search.index_tasks import IndexBuildRequest

READ_GUARD = {"role": Role.ADMIN, "scope": Scope.MAIL_READ}
WRITE_GUARD: dict[str, Any] = {"role": Role.ADMIN, "scope": Scope.FULL}


@strawberry.type(description="How the text index is.")
class SearchIndexStatus:
    enabled: bool = attribute_field("Words are looked up in it: always, there is no other way.")
    engine: str = attribute_field("What keeps it.")

    @field("Messages in it, and such as have gone since.", cost=1000)
    async def documents(self, info: Info) -> BigInt:
        return BigInt(await index_inspection.count_indexed_messages(info.context))

    @field("Bytes it takes.", cost=1000)
    async def size(self, info: Info) -> ByteSize | None:
        return ByteSize(await index_inspection.read_index_size(info.context))

    @field("Messages that wait to be put into it; they are found all the same.", cost=100)
    async def pending(self, info: Info) -> BigInt:
        return BigInt(await index_inspection.count_unindexed_messages(info.context))

    @field("When searchIndexOptimize last ended; null where its task is not kept any more.")
    async def last_optimized_at(self, info: Info) -> datetime | None:
        return await index_inspection.load_last_optimized_at(info.context)


@strawberry.type(description="A word as it stands in the text index.")
class SearchToken:
    text: str = attribute_field("Without accents and case; of undivided scripts a pair of letters.")
    position: int = attribute_field("Place among the words of the text, the first is 1.")


@strawberry.type(description="A search as the text index is asked for it.")
class SearchExpansion:
    original: JSON = attribute_field("The filter.")
    expanded: JSON = attribute_field(
        "What the index is asked: words in a row, the last with prefix only begun; and, or, not. "
        "Other conditions are not in it; empty where it is not asked."
    )
    terms: list[str] = attribute_field("The words, each once; begun* ones with a star.")
    native: str | None = attribute_field("The same in the language of the store.")


@strawberry.type(description="A row of the text index that was found.")
class SearchHit(View):
    message: Message | None = link(
        "id",
        message_loaders.load_visible_by_ids,
        lazy_view_factory("graph.messages.types", "Message"),
        description="The message; null if it was deleted since.",
    )
    score: float = attribute_field("By the store; higher is better, within one answer.")
    exact: bool = attribute_field(
        "True if the filter consists of words only, so that the index alone decides. False: the "
        "other conditions were not checked."
    )

    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "exact": DerivedField(("is_exact",), bool)
    }


UsersArgument = Annotated[
    UserSelection | None,
    strawberry.argument(description="Accounts that are searched. Default: the signed-in user."),
]


@strawberry.type(description="How the text index splits texts and answers searches.")
class SearchDiagnostics:
    @field("Words of a text as the text index has them, in order.")
    def tokens(
        self,
        text: Annotated[str, strawberry.argument(description="At most 16,384 characters.")],
    ) -> list[SearchToken]:
        tokens = index_inspection.split_text_into_words(text)
        return [SearchToken(text=token, position=index) for index, token in enumerate(tokens, 1)]

    @field("The query that the text index gets for a filter.")
    async def expansion(
        self,
        info: Info,
        filter: Annotated[
            MessageFilter,
            strawberry.argument(description="Filter whose query of the text index is returned."),
        ],
        users: UsersArgument = UNSET,
    ) -> SearchExpansion:
        ctx = info.context
        user_ids = await search_scope.load_searched_user_ids(
            ctx, user_selector_from_selection(users or None)
        )
        expression = index_inspection.index_expression_of_conditions(filter.to_conditions(info))
        return SearchExpansion(
            original=JSON(json_from_filter(filter, ctx.environment.now())),
            expanded=JSON(index_inspection.expression_as_json(expression) if expression else {}),
            terms=index_inspection.distinct_words_in_expression(expression) if expression else [],
            native=index_inspection.index_query_for_users(ctx, user_ids, expression)
            if expression
            else None,
        )

    @field(
        "Messages that the text index alone finds, the newest first. Messages that wait to be "
        "indexed are missing, and conditions other than words are not checked."
    )
    async def hits(
        self,
        info: Info,
        filter: Annotated[
            MessageFilter,
            strawberry.argument(
                description="Filter whose words are looked up. Its other conditions are not "
                "checked."
            ),
        ],
        users: UsersArgument = UNSET,
        first: int | None = UNSET,
        after: str | None = UNSET,
    ) -> Connection[SearchHit]:
        ctx = info.context
        user_ids = await search_scope.load_searched_user_ids(
            ctx, user_selector_from_selection(users or None)
        )
        list_ordering = ordering_name("key-", (user_ids, filter))
        request = IndexLookup(
            tuple(user_ids),
            filter.to_conditions(info),
            page_request(list_ordering, first, after, None, None),
        )
        return await connection_of_page(
            info,
            SearchHit,
            await index_inspection.read_index_hit_page(ctx, request),
            lambda hit: Cursor(list_ordering, hit.id, hit.id),
            lambda: index_inspection.count_index_hits(ctx, request),
        )


@strawberry.input(description="Input of searchIndexBuild.")
class SearchIndexBuildInput(Options):
    users: UserSelection | None = attribute_field("Whose mail.", default=UNSET)
    mailbox_patterns: list[str] = attribute_field(
        "Paths with * for anything and % for anything within a level."
    )
    max_recent: int | None = attribute_field(
        "Leaves out folders in which more messages wait to be indexed.", default=UNSET
    )
    background: bool = attribute_field(
        "Always starts a task. Default: a task only for many messages.", default=False
    )


@strawberry.input(description="Input of searchIndexRebuild.")
class SearchIndexRebuildInput(Options):
    users: UserSelection | None = attribute_field("Whose mail.", default=UNSET)


@strawberry.input(description="Input of searchIndexOptimize.")
class SearchIndexOptimizeInput(Options):
    """Input without own fields: there is one search index for all accounts."""


@strawberry.type(description="Answer of searchIndexBuild, -Rebuild and -Optimize.")
class SearchIndexPayload(MutationPayload):
    task: Task | None = attribute_field("Background work, null when done at once.", default=None)
    indexed_count: BigInt | None = attribute_field(
        "Number of indexed messages. Null: a task indexes them.", default=None
    )


@strawberry.type
class SearchIndexQuery:
    @query("How the text index is.", **WRITE_GUARD)
    async def search_index_status(self, info: Info) -> SearchIndexStatus:
        engine = ENGINE_NAMES[info.context.environment.database.dialect]
        return SearchIndexStatus(enabled=True, engine=engine)

    @query("Shows how the text index splits texts and answers searches.", **READ_GUARD)
    def search_diagnostics(self) -> SearchDiagnostics:
        return SearchDiagnostics()


@strawberry.type
class SearchIndexMutation:
    @mutation("Puts into the text index what waits to be, ahead of its turn.", **WRITE_GUARD)
    async def search_index_build(
        self, info: Info, input: SearchIndexBuildInput
    ) -> SearchIndexPayload:
        max_recent = None if input.max_recent is UNSET else input.max_recent
        request = IndexBuildRequest(
            input.mailbox_patterns, max_recent, always_queue=input.background
        )
        result = await index_tasks.index_or_queue_unindexed_messages(
            info.context, request, user_selector_from_selection(input.users or None)
        )
        count = None if result.indexed_count is None else BigInt(result.indexed_count)
        return SearchIndexPayload(task=Task.from_row_or_none(result.task), indexed_count=count)

    @mutation(
        "Makes the text index of these accounts anew from the stored bytes. That of all, and on "
        "SQLite always, is a second index, which replaces the first when it is whole: searches go "
        "on meanwhile.",
        **WRITE_GUARD,
    )
    async def search_index_rebuild(
        self, info: Info, input: SearchIndexRebuildInput
    ) -> SearchIndexPayload:
        task = await index_tasks.queue_rebuild(
            info.context, user_selector_from_selection(input.users or None)
        )
        return SearchIndexPayload(task=Task.from_row(task))

    @mutation(
        "Merges what was written to the text index piece by piece (SQLite), or takes out what is "
        "of messages that have gone (PostgreSQL).",
        **WRITE_GUARD,
    )
    async def search_index_optimize(
        self, info: Info, input: SearchIndexOptimizeInput
    ) -> SearchIndexPayload:
        return SearchIndexPayload(
            task=Task.from_row(await index_tasks.queue_optimize(info.context))
        )

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
from graph.types.mutations import LONG_MUTATION_COST, mutation
from graph.types.object_access import MANAGED
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

READ_GUARD: dict[str, Any] = {"role": Role.ADMIN, "scope": Scope.MAIL_READ}
WRITE_GUARD: dict[str, Any] = {"role": Role.ADMIN, "scope": Scope.FULL}


@strawberry.type(description="State of the text index that finds words in messages.")
class SearchIndexStatus:
    enabled: bool = attribute_field(
        "True if words are looked up in the text index. It is always enabled."
    )
    engine: str = attribute_field(
        "Database feature that the text index uses, such as `SQLite FTS5`."
    )

    @field(
        "Number of messages of all users in the text index. Deleted messages count until they are "
        "removed from it: on PostgreSQL by searchIndexOptimize, on SQLite by searchIndexRebuild.",
        cost=1000,
    )
    async def documents(self, info: Info) -> BigInt:
        return BigInt(await index_inspection.count_indexed_messages(info.context))

    @field("Size of the text index of all users in bytes.", cost=1000)
    async def size(self, info: Info) -> ByteSize | None:
        return ByteSize(await index_inspection.read_index_size(info.context))

    @field(
        "Number of messages of all users that are not indexed yet. A search reads these messages "
        "itself. It fails with UNAVAILABLE if its users have more than 5,000 of them.",
        cost=100,
    )
    async def pending(self, info: Info) -> BigInt:
        return BigInt(await index_inspection.count_unindexed_messages(info.context))

    @field(
        "Time when the last successful task of searchIndexOptimize ended. Null: no such task is "
        "stored. Tasks are stored for 7 days after their end."
    )
    async def last_optimized_at(self, info: Info) -> datetime | None:
        return await index_inspection.load_last_optimized_at(info.context)


@strawberry.type(description="Word of a text, as the text index stores it.")
class SearchToken:
    text: str = attribute_field(
        "Word in lower case and without accents, at most 64 characters. In scripts without spaces "
        "between words, the words are the pairs of adjacent characters, and the last character."
    )
    position: int = attribute_field(
        "Number of the word in the text: 1 for the first word. In scripts without spaces, each "
        "pair of characters counts as a word."
    )


@strawberry.type(description="Query that the text index gets for a filter.")
class SearchExpansion:
    original: JSON = attribute_field(
        "Filter as JSON, in the form of the input `MessageFilter`. Terms in its `query` are "
        "converted to conditions; words stay in `query`."
    )
    expanded: JSON = attribute_field(
        "Query of the text index as JSON: `words` in a row, with `prefix` if the last word is a "
        "prefix, combined by `and`, `or` and `not`. Other conditions are left out. Empty if "
        "the index is not used."
    )
    terms: list[str] = attribute_field(
        "Distinct words of the query. A prefix ends with `*`. At most 1,024."
    )
    native: str | None = attribute_field(
        "Query in the syntax of the database, limited to the selected users. Null if the index is "
        "not used."
    )


@strawberry.type(description="Message that the text index finds for a filter, with its score.")
class SearchHit(View):
    message: Message | None = link(
        "id",
        message_loaders.load_visible_by_ids,
        lazy_view_factory("graph.messages.types", "Message"),
        description="Found message. Null: it was deleted, or the caller can't see it.",
    )
    score: float = attribute_field(
        "Relevance that the database computed. Higher is better. Scores of different requests "
        "can't be compared."
    )
    exact: bool = attribute_field(
        "True if the filter consists of words only, so that the index alone decides. False: its "
        "other conditions were not checked for this message."
    )

    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "exact": DerivedField(("is_exact",), bool)
    }


UsersArgument = Annotated[
    UserSelection | None,
    strawberry.argument(
        description="Users whose mail is searched, at most 100. A user with the role ROOT is "
        "FORBIDDEN for an ADMIN. Default: the signed-in user."
    ),
]


@strawberry.type(
    description="Diagnostics of the text index: splitting of texts, queries and matches."
)
class SearchDiagnostics:
    @field("Words of a text in their order, as the text index stores them. At most 16,384.")
    def tokens(
        self,
        text: Annotated[
            str, strawberry.argument(description="Text to split, at most 16,384 characters.")
        ],
    ) -> list[SearchToken]:
        tokens = index_inspection.split_text_into_words(text)
        return [SearchToken(text=token, position=index) for index, token in enumerate(tokens, 1)]

    @field("Query that the text index gets for a filter.")
    async def expansion(
        self,
        info: Info,
        filter: Annotated[
            MessageFilter,
            strawberry.argument(description="Filter to convert to a query of the text index."),
        ],
        users: UsersArgument = UNSET,
    ) -> SearchExpansion:
        ctx = info.context
        user_ids = await search_scope.require_searchable_user_ids(
            ctx, user_selector_from_selection(users or None)
        )
        expression = index_inspection.index_expression_of_conditions_or_none(
            filter.to_validated_conditions(info)
        )
        return SearchExpansion(
            original=JSON(json_from_filter(filter, ctx.environment.now())),
            expanded=JSON(index_inspection.expression_as_json(expression) if expression else {}),
            terms=index_inspection.distinct_words_in_expression(expression) if expression else [],
            native=index_inspection.index_query_for_users(ctx, user_ids, expression)
            if expression
            else None,
        )

    @field(
        "Messages that the text index finds for the words of the filter, the last stored first. "
        "Messages that are not indexed yet are missing. Deleted messages are contained until they "
        "are removed from the index. Conditions other than words are ignored. Only a ROOT can look "
        "up words in messages of other users: an ADMIN gets FORBIDDEN. The security log of these "
        "users records the access."
    )
    async def hits(
        self,
        info: Info,
        filter: Annotated[
            MessageFilter,
            strawberry.argument(
                description="Filter whose words are looked up. It must require at least one word, "
                "else the field is an error."
            ),
        ],
        users: UsersArgument = UNSET,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[SearchHit]:
        ctx = info.context
        user_ids = await search_scope.require_searchable_user_ids(
            ctx, user_selector_from_selection(users or None)
        )
        list_ordering = ordering_name("key-", (user_ids, filter))
        request = IndexLookup(
            tuple(user_ids),
            filter.to_validated_conditions(info),
            page_request(list_ordering, first, after, last, before),
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
    users: UserSelection | None = attribute_field(
        "Users whose messages are indexed. `all: true` has no limit. If the caller is an ADMIN, "
        "it leaves out users with the role ROOT. Default: the signed-in user.",
        default=UNSET,
    )
    mailbox_patterns: list[str] = attribute_field(
        "Patterns for paths of the mailboxes whose messages are indexed: `*` matches any "
        "characters, `%` any characters except `/`. Case is significant, except in INBOX. At most "
        "20 patterns of 1,000 characters. An empty list selects no mailbox."
    )
    max_recent: int | None = attribute_field(
        "Skips each mailbox with more unindexed messages than this number, at least 0. Default, "
        "and with null: no limit.",
        default=UNSET,
    )
    background: bool = attribute_field(
        "True always starts a task. False starts one only for more than 1,000 messages, and else "
        "indexes the messages before the response. Default: false.",
        default=False,
    )


@strawberry.input(description="Input of searchIndexRebuild.")
class SearchIndexRebuildInput(Options):
    users: UserSelection | None = attribute_field(
        "Users whose messages are indexed again. `all: true` has no limit. If the caller is an "
        "ADMIN, it leaves out users with the role ROOT. On SQLite all messages are always indexed "
        "again, also those of a ROOT. Default: the signed-in user.",
        default=UNSET,
    )


@strawberry.input(description="Input of searchIndexOptimize.")
class SearchIndexOptimizeInput(Options):
    """Input without own fields: there is one search index for all accounts."""


@strawberry.type(
    description="Payload of searchIndexBuild, searchIndexRebuild and searchIndexOptimize."
)
class SearchIndexPayload(MutationPayload):
    task: Task | None = attribute_field(
        "Task that does the work. Null if the messages were indexed at once, or if the mutation "
        "failed.",
        default=None,
    )
    indexed_count: BigInt | None = attribute_field(
        "Number of messages that were indexed at once. Null if a task does the work, or if the "
        "mutation failed.",
        default=None,
    )


@strawberry.type
class SearchIndexQuery:
    @query(
        "Returns size, backlog and last optimization of the text index that finds words in the "
        "messages of all users.",
        **WRITE_GUARD,
    )
    async def search_index_status(self, info: Info) -> SearchIndexStatus:
        engine = ENGINE_NAMES[info.context.environment.database.dialect]
        return SearchIndexStatus(enabled=True, engine=engine)

    @query(
        "Returns an object whose fields examine the text index. They show how the index splits a "
        "text into words, which query it gets for a filter, and which messages it finds. Nothing "
        "is changed. Only a ROOT can look up messages of other users (`hits`): an ADMIN gets "
        "FORBIDDEN. The security log of these users records it.",
        **READ_GUARD,
        access=MANAGED,
    )
    def search_diagnostics(self) -> SearchDiagnostics:
        return SearchDiagnostics()


@strawberry.type
class SearchIndexMutation:
    @mutation(
        "Adds messages to the text index that are not indexed yet, before the background worker "
        "does. If there are more than 1,000, a task indexes them. This also updates the contacts "
        "of the users. LIMIT_REACHED for more than 1,000 users (by default), except with `all: "
        "true`.",
        **WRITE_GUARD,
        access=MANAGED,
    )
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
        "Starts a task that indexes stored messages again. A full rebuild indexes the messages of "
        "all users in a new index, which replaces the old one at the end. Searches work "
        "meanwhile. On SQLite every rebuild is full; on PostgreSQL only one that a ROOT starts "
        "with `all: true`. A full rebuild is a CONFLICT if another task of searchIndexRebuild is "
        "unfinished. Other rebuilds are not checked. LIMIT_REACHED for more than 1,000 users (by "
        "default), except with `all: true`.",
        **WRITE_GUARD,
        access=MANAGED,
    )
    async def search_index_rebuild(
        self, info: Info, input: SearchIndexRebuildInput
    ) -> SearchIndexPayload:
        task = await index_tasks.queue_rebuild(
            info.context, user_selector_from_selection(input.users or None)
        )
        return SearchIndexPayload(task=Task.from_row(task))

    @mutation(
        "Starts a task that makes the text index of all users smaller and faster: it merges "
        "segments (SQLite), or removes rows of deleted messages (PostgreSQL).",
        cost=2 * LONG_MUTATION_COST,
        **WRITE_GUARD,
    )
    async def search_index_optimize(
        self, info: Info, input: SearchIndexOptimizeInput
    ) -> SearchIndexPayload:
        return SearchIndexPayload(
            task=Task.from_row(await index_tasks.queue_optimize(info.context))
        )

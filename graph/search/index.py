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
from graph.search.queries import fields_of
from graph.types.connections import Connection, connected, page_asked
from graph.types.errors import MutationPayload, Options, leaf
from graph.types.fields import Info, field, query
from graph.types.mutations import mutation
from graph.types.object_views import Made, View
from graph.types.references import UserSelection, users_named
from graph.types.row_mapping import link, shaped
from graph.types.scalars import BigInt, ByteSize
from models.search.text_index import ENGINES
from models.store.keyset_pages import Cursor, ordering
from models.users.roles import Role, Scope
from resolvers.messages import loaders as message_loaders
from resolvers.search import index_inspection, index_tasks, search_scope
from resolvers.search.index_inspection import Lookup
from resolvers.search.index_tasks import Asked

READS = {"role": Role.ADMIN, "scope": Scope.MAIL_READ}
OPERATES: dict[str, Any] = {"role": Role.ADMIN, "scope": Scope.MASTER}


@strawberry.type(description="How the text index is.")
class SearchIndexStatus:
    enabled: bool = leaf("Words are looked up in it: always, there is no other way.")
    engine: str = leaf("What keeps it.")

    @field("Messages in it, and such as have gone since.", cost=1000)
    async def documents(self, info: Info) -> BigInt:
        return BigInt(await index_inspection.documents(info.context))

    @field("Bytes it takes.", cost=1000)
    async def size(self, info: Info) -> ByteSize | None:
        return ByteSize(await index_inspection.size(info.context))

    @field("Messages that wait to be put into it; they are found all the same.", cost=100)
    async def pending(self, info: Info) -> BigInt:
        return BigInt(await index_inspection.pending(info.context))

    @field("When searchIndexOptimize last ended; null where its task is not kept any more.")
    async def last_optimized_at(self, info: Info) -> datetime | None:
        return await index_inspection.optimized_at(info.context)


@strawberry.type(description="A word as it stands in the text index.")
class SearchToken:
    text: str = leaf("Without accents and case; of undivided scripts a pair of letters.")
    position: int = leaf("Place among the words of the text, the first is 1.")


@strawberry.type(description="A text, divided into words.")
class SearchTokens:
    tokens: list[SearchToken] = leaf("The words, in order.")


@strawberry.type(description="A search as the text index is asked for it.")
class SearchExpansion:
    original: JSON = leaf("The filter.")
    expanded: JSON = leaf(
        "What the index is asked: words in a row, the last with prefix only begun; and, or, not. "
        "Other conditions are not in it; empty where it is not asked."
    )
    terms: list[str] = leaf("The words, each once; begun* ones with a star.")
    native: str | None = leaf("The same in the language of the store.")


@strawberry.type(description="A row of the text index that was found.")
class SearchHit(View):
    message: Message | None = link(
        "id",
        message_loaders.by_ids,
        shaped("graph.messages.types", "Message"),
        description="Null where it has gone since, or lies in the archive.",
    )
    score: float = leaf("By the store; higher is better, within one answer.")
    definite: bool = leaf("False = the message itself must be looked at for the rest.")

    made: ClassVar[Mapping[str, Made]] = {}


@strawberry.input(description="Input of searchIndexBuild.")
class SearchIndexBuildInput(Options):
    users: UserSelection | None = leaf("Whose mail.", default=UNSET)
    mailbox_masks: list[str] = leaf("Paths with * for anything and % for anything within a level.")
    max_recent: int | None = leaf(
        "Leaves out folders in which more messages wait to be indexed.", default=UNSET
    )
    queue: bool = leaf("By a task in any case.", default=False)


@strawberry.input(description="Input of searchIndexRebuild.")
class SearchIndexRebuildInput(Options):
    users: UserSelection | None = leaf("Whose mail.", default=UNSET)


@strawberry.input(description="Input of searchIndexOptimize.")
class SearchIndexOptimizeInput(Options):
    """Input without own fields: there is one search index for all accounts."""


@strawberry.type(description="Answer of searchIndexBuild, -Rebuild and -Optimize.")
class SearchIndexPayload(MutationPayload):
    task: Task | None = leaf("Background work, null when done at once.", default=None)
    indexed: BigInt | None = leaf("Messages put in; null where a task does it.", default=None)


@strawberry.type
class SearchIndexQuery:
    @query("How the text index is.", **OPERATES)
    async def search_index_status(self, info: Info) -> SearchIndexStatus:
        engine = ENGINES[info.context.world.database.dialect]
        return SearchIndexStatus(enabled=True, engine=engine)

    @query("A text divided into words as the text index has them.", **READS)
    async def search_tokenize(
        self,
        text: Annotated[str, strawberry.argument(description="At most 16,384 characters.")],
    ) -> SearchTokens:
        tokens = index_inspection.divided_text(text)
        return SearchTokens(
            tokens=[
                SearchToken(text=token, position=index) for index, token in enumerate(tokens, 1)
            ]
        )

    @query("A filter as the text index is asked for it.", **READS)
    async def search_expand(
        self, info: Info, filter: MessageFilter, users: UserSelection | None = UNSET
    ) -> SearchExpansion:
        ctx = info.context
        user_ids = await search_scope.owners(ctx, users_named(users or None))
        expression = index_inspection.asked_of_index(filter.where(info))
        return SearchExpansion(
            original=JSON(fields_of(filter, ctx.world.now())),
            expanded=JSON(index_inspection.described(expression) if expression else {}),
            terms=index_inspection.terms(expression) if expression else [],
            native=index_inspection.query(ctx, user_ids, expression) if expression else None,
        )

    @query(
        "What the text index alone finds, the newest key first: what waits to be indexed is not "
        "in it, and other conditions than words are not looked at.",
        **READS,
    )
    async def search_lookup(
        self,
        info: Info,
        filter: MessageFilter,
        users: UserSelection | None = UNSET,
        first: int | None = UNSET,
        after: str | None = UNSET,
    ) -> Connection[SearchHit]:
        ctx = info.context
        user_ids = await search_scope.owners(ctx, users_named(users or None))
        list_ordering = ordering("key-", (user_ids, filter))
        request = Lookup(
            tuple(user_ids), filter.where(info), page_asked(list_ordering, first, after, None, None)
        )
        return await connected(
            info,
            SearchHit,
            await index_inspection.lookup(ctx, request),
            lambda hit: Cursor(list_ordering, hit.id, hit.id),
            lambda: index_inspection.count(ctx, request),
        )


@strawberry.type
class SearchIndexMutation:
    @mutation("Puts into the text index what waits to be, ahead of its turn.", **OPERATES)
    async def search_index_build(
        self, info: Info, input: SearchIndexBuildInput
    ) -> SearchIndexPayload:
        max_recent = None if input.max_recent is UNSET else input.max_recent
        request = Asked(input.mailbox_masks, max_recent, queue=input.queue)
        result = await index_tasks.build(info.context, request, users_named(input.users or None))
        indexed = None if result.indexed is None else BigInt(result.indexed)
        return SearchIndexPayload(task=Task.maybe(result.task), indexed=indexed)

    @mutation(
        "Makes the text index of these accounts anew from the stored bytes. That of all, and on "
        "SQLite always, is a second index, which replaces the first when it is whole: searches go "
        "on meanwhile.",
        **OPERATES,
    )
    async def search_index_rebuild(
        self, info: Info, input: SearchIndexRebuildInput
    ) -> SearchIndexPayload:
        task = await index_tasks.rebuild(info.context, users_named(input.users or None))
        return SearchIndexPayload(task=Task.of(task))

    @mutation(
        "Merges what was written to the text index piece by piece (SQLite), or takes out what is "
        "of messages that have gone (PostgreSQL).",
        **OPERATES,
    )
    async def search_index_optimize(
        self, info: Info, input: SearchIndexOptimizeInput
    ) -> SearchIndexPayload:
        return SearchIndexPayload(task=Task.of(await index_tasks.optimize(info.context)))

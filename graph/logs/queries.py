"""Query and subscription of the log."""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated

import strawberry
from strawberry import UNSET

from graph.logs.types import LogEntry
from graph.types import global_ids
from graph.types.connections import Connection, connection_of_page, page_request
from graph.types.errors import attribute_field
from graph.types.fields import Info, query, subscription
from graph.types.input_conditions import ConditionsInput
from graph.types.references import (
    UserRef,
    load_visible_user_id,
    optional_tuple,
    value_or_none,
)
from models.errors import InvalidInput
from models.logs.entries import (
    MAX_ID_LENGTH,
    MAX_QUERY_LENGTH,
    MAX_QUERY_WORDS,
    LogComponent,
    LogConditions,
    LogLevel,
    clean_id,
    text_words,
)
from models.store.keyset_pages import ordering_name
from models.users.roles import Role, Scope
from models.validation_constraints import ValidationConstraint
from resolvers.logs import loaders
from resolvers.logs.loaders import LogOrder

NO_USER_ID = 0  # of a user that the caller can't see: no entry has it


@strawberry.input(description="Conditions on entries of the log. All must hold.")
class LogFilter(ConditionsInput):
    components: list[LogComponent] | None = attribute_field(
        "Returns only entries of these parts of the server. An empty list returns no entry.",
        default=UNSET,
    )
    min_level: LogLevel | None = attribute_field(
        "Returns only entries of this level or a higher one. Default: all levels that were stored.",
        default=UNSET,
    )
    since: datetime | None = attribute_field(
        "Returns only entries at this time or later.", default=UNSET
    )
    before: datetime | None = attribute_field(
        "Returns only entries before this time.", default=UNSET
    )
    query: str | None = attribute_field(
        "Returns only entries with all of these words in the message, the program or the texts of "
        "`fields`. Case, accents and punctuation are ignored. At least one word, at most 500 "
        "characters and 20 words, else an error.",
        default=UNSET,
    )
    user: UserRef | None = attribute_field(
        "Returns only entries about this user. Refer to a deleted user by the ID that the User "
        "had (`DeletedUser.userId`). An ID of a DeletedUser is the error BAD_ID. A username or "
        "address without a user whom the caller can see returns no entry.",
        default=UNSET,
    )
    queue_id: str | None = attribute_field(
        "Returns only entries about the message with exactly this queue ID. At most 500 "
        "characters; more are an error.",
        default=UNSET,
    )
    message_id_header: str | None = attribute_field(
        "Returns only entries about messages with exactly this Message-ID (RFC 5322), with or "
        "without angle brackets. At most 500 characters; more are an error.",
        default=UNSET,
    )
    correlation_id: str | None = attribute_field(
        "Returns only entries that the request with this ID (response header `X-Request-Id`) "
        "caused. At most 500 characters; more are an error.",
        default=UNSET,
    )

    async def resolve_conditions_or_match_nothing(self, info: Info) -> LogConditions:
        """Convert the filter to conditions of the resolvers. Raises InvalidInput for a bad text."""
        message_id = _validated_id_or_none(self.message_id_header, "messageIdHeader")
        if message_id is not None:
            message_id = f"<{message_id.strip().removeprefix('<').removesuffix('>')}>"
        components = optional_tuple(self.components)
        return LogConditions(
            components=None if components is None else tuple(sorted(set(components))),
            min_level=value_or_none(self.min_level) or LogLevel.DEBUG,
            since=value_or_none(self.since),
            before=value_or_none(self.before),
            words=_validated_words_of_query(value_or_none(self.query)),
            user_id=await _user_id_or_unmatchable_id(info, self.user),
            queue_id=_validated_id_or_none(self.queue_id, "queueId"),
            message_id=message_id,
            correlation_id=_validated_id_or_none(self.correlation_id, "correlationId"),
        )


def _validated_id_or_none(value: str | None, field_name: str) -> str | None:
    text = value_or_none(value)
    if text is None:
        return None
    if len(text) > MAX_ID_LENGTH:
        raise InvalidInput(
            f"At most {MAX_ID_LENGTH} characters are allowed.",
            constraint=ValidationConstraint.LENGTH,
            path=["filter", field_name],
        )
    return clean_id(text)


def _validated_words_of_query(text: str | None) -> tuple[str, ...]:
    """Return the words that an entry must have. Raises InvalidInput if there are none."""
    if text is None:
        return ()
    path = ["filter", "query"]
    if len(text) > MAX_QUERY_LENGTH:
        raise InvalidInput(
            f"At most {MAX_QUERY_LENGTH} characters are allowed.",
            constraint=ValidationConstraint.LENGTH,
            path=path,
        )
    words = tuple(dict.fromkeys(text_words(text)))
    if not words:
        raise InvalidInput(
            "Must have at least one word.", constraint=ValidationConstraint.PATTERN, path=path
        )
    if len(words) > MAX_QUERY_WORDS:
        raise InvalidInput(
            f"At most {MAX_QUERY_WORDS} words are allowed.",
            constraint=ValidationConstraint.MAX,
            path=path,
        )
    return words


async def _user_id_or_unmatchable_id(info: Info, user_ref: UserRef | None) -> int | None:
    """Return the id of the named user; None if no user is named."""
    if not user_ref:
        return None
    if user_ref.id:
        return global_ids.decode("User", user_ref.id.value, path=("filter", "user", "id"))
    return await load_visible_user_id(info, user_ref) or NO_USER_ID


@strawberry.type
class LogQuery:
    @query(
        "Returns entries of the log store, which has those of all processes of the platform. A "
        "DOMAIN_ADMIN sees entries about mail for the administered domains, and about their users "
        "with the role USER. An ADMIN sees all. Entries are kept for at most 14 days by default, "
        "and can be read a second after they were written. Levels that the setting `logs.levels` "
        "excludes are not stored. `totalCount` counts up to 10,000 entries.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.READ,
    )
    async def logs(
        self,
        info: Info,
        filter: LogFilter | None = UNSET,
        order_by: LogOrder = LogOrder.AT_DESC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[LogEntry]:
        conditions = (
            await filter.resolve_conditions_or_match_nothing(info) if filter else LogConditions()
        )
        list_ordering = ordering_name(f"logs-{order_by}", conditions)
        requested_page = page_request(list_ordering, first, after, last, before)
        return await connection_of_page(
            info,
            LogEntry,
            await loaders.read_visible_log_page(info.context, conditions, requested_page, order_by),
            lambda record: record.cursor(list_ordering),
            lambda: loaders.count_visible_log_entries(info.context, conditions),
        )


@strawberry.type
class LogSubscription:
    @subscription(
        "Streams new entries of the log store from all processes of the platform, within 2 "
        "seconds after they were written. Entries from before the start of the subscription are "
        "left out.",
        role=Role.ADMIN,
        scope=Scope.READ,
    )
    async def logs(
        self,
        info: Info,
        filter: Annotated[
            LogFilter | None,
            strawberry.argument(
                description="Conditions that the streamed entries must meet. Default: all entries."
            ),
        ] = UNSET,
    ) -> AsyncIterator[LogEntry]:
        conditions = (
            await filter.resolve_conditions_or_match_nothing(info) if filter else LogConditions()
        )
        async for record in loaders.follow_visible_log_entries(info.context, conditions):
            yield LogEntry.from_row(record)

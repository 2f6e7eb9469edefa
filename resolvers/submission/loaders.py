"""Load submissions and their queue entries in batches and pages."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Select, func, select
from sqlmodel import col

from models.queue.tables import QueueEntry
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Page, PageRequest
from models.store.prepared_statements import PreparedStatement, integer_parameter
from models.submission.tables import Submission, SubmissionState
from resolvers import pagination
from resolvers.access import is_own_or_shared, is_visible_or_managed
from resolvers.context import Context
from resolvers.list_orders import ListOrder, list_orders, read_list_pages


class SubmissionOrder(StrEnum):
    """The order of a list of submissions; ties by id."""

    CREATED_AT_ASC = "CREATED_AT_ASC"
    CREATED_AT_DESC = "CREATED_AT_DESC"


LIST_ORDERS = list_orders(SubmissionOrder)
MAX_SUBMISSIONS_OF_MESSAGE = 250

_SUBMISSION_BY_ID = PreparedStatement(
    select(*select_columns(Submission)).where(
        col(Submission.user_id) == integer_parameter("viewer"),
        col(Submission.id) == integer_parameter("id"),
    )
)


async def load_own_submissions_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load the viewer's submissions, in the order of the ids; None for an unknown id."""
    if len(ids) == 1:
        return [next(iter(await ctx.read_prepared(_SUBMISSION_BY_ID, id=ids[0])), None)]
    own_submissions = select(*select_columns(Submission)).where(is_own_or_shared(ctx, Submission))
    return await pagination.read_by_keys(ctx, own_submissions, col(Submission.id), ids)


async def load_visible_submissions_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load the submissions that the viewer sees, in the order of the ids; None for any other id.

    Administrators see those of the accounts that they manage.
    """
    visible_submissions = select(*select_columns(Submission)).where(
        is_visible_or_managed(ctx, Submission)
    )
    return await pagination.read_by_keys(ctx, visible_submissions, col(Submission.id), ids)


async def load_own_submissions_by_queue_id(
    ctx: Context, queue_ids: list[str]
) -> list[ColumnRow | None]:
    """Load the viewer's submissions by queue id, in that order; None for an unknown id."""
    own_submissions = select(*select_columns(Submission)).where(is_own_or_shared(ctx, Submission))
    return await pagination.read_by_keys(ctx, own_submissions, col(Submission.queue_id), queue_ids)


async def load_own_ids_by_queue_id(ctx: Context, queue_ids: Sequence[str]) -> dict[str, int]:
    """Load the ids of the viewer's submissions, by queue id."""
    statement = select(col(Submission.queue_id), col(Submission.id)).where(
        is_own_or_shared(ctx, Submission), col(Submission.queue_id).in_(set(queue_ids))
    )
    return {row.queue_id: row.id for row in await ctx.read(statement)}


async def load_visible_submissions_by_message(
    ctx: Context, message_ids: list[int]
) -> list[list[ColumnRow]]:
    """Load the submissions of each stored copy that the viewer sees, oldest first.

    Of each copy at most the last MAX_SUBMISSIONS_OF_MESSAGE.
    Administrators see those of the accounts that they manage.
    """
    statement = select(*select_columns(Submission)).where(
        col(Submission.message_id).in_(message_ids), is_visible_or_managed(ctx, Submission)
    )
    submissions_by_message: Mapping[int, list[ColumnRow]] = defaultdict(list)
    for row in await ctx.read(statement.order_by(col(Submission.created_at), col(Submission.id))):
        submissions_by_message[row.message_id].append(row)
    return [submissions_by_message[key][-MAX_SUBMISSIONS_OF_MESSAGE:] for key in message_ids]


async def load_visible_queue_entries_by_submission(
    ctx: Context, submission_ids: list[int]
) -> list[list[ColumnRow]]:
    """Load the queue entries of each submission, in the order of its recipients."""
    statement = select(*select_columns(QueueEntry)).where(
        col(QueueEntry.submission_id).in_(submission_ids), is_visible_or_managed(ctx, QueueEntry)
    )
    entries_by_submission: Mapping[int, list[ColumnRow]] = defaultdict(list)
    for row in await ctx.read(statement.order_by(col(QueueEntry.id))):
        entries_by_submission[row.submission_id].append(row)
    return [entries_by_submission[key] for key in submission_ids]


@dataclass(frozen=True, slots=True)
class SubmissionPageKey:
    """A page of a user's submissions. `states` None selects all."""

    user_id: int
    page_request: PageRequest
    order: ListOrder
    columns: frozenset[str]
    states: frozenset[SubmissionState] | None = None


async def load_visible_submission_pages(
    ctx: Context, page_keys: list[SubmissionPageKey]
) -> list[Page[ColumnRow]]:
    """Load pages of submissions. Raises InvalidInput for a cursor of another order."""
    return await read_list_pages(ctx, Submission, page_keys, _select_visible_submissions)


def _select_visible_submissions(
    ctx: Context, page_key: SubmissionPageKey, columns: Collection[str]
) -> Select[*tuple[Any, ...]]:
    """Return a SELECT of the visible submissions of a user, in the states of the page."""
    return select(*select_columns(Submission, columns)).where(*_list_conditions(ctx, page_key))


async def count_visible_submissions(ctx: Context, page_keys: list[SubmissionPageKey]) -> list[int]:
    """Count the submissions of each list, in the order of the keys."""
    count_column = func.count().label("many")
    scans = [
        select(count_column).select_from(Submission).where(*_list_conditions(ctx, key))
        for key in page_keys
    ]
    return [row.many for (row,) in await pagination.read_union(ctx, scans)]


def _list_conditions(ctx: Context, page_key: SubmissionPageKey) -> list[ColumnElement[bool]]:
    terms = [col(Submission.user_id) == page_key.user_id, is_visible_or_managed(ctx, Submission)]
    return (
        [*terms, col(Submission.state).in_(page_key.states)]
        if page_key.states is not None
        else terms
    )

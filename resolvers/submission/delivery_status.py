"""Read the delivery status of sent messages by their stored copies."""

from sqlalchemy import select
from sqlmodel import col

from models.store.columns import ColumnRow, select_columns
from models.submission.tables import Submission
from resolvers.access import is_visible
from resolvers.context import Context
from resolvers.submission.loaders import load_queue_entries_by_submission


async def load_own_submissions_by_message(
    ctx: Context, message_ids: list[int]
) -> list[list[tuple[ColumnRow, list[ColumnRow]]]]:
    """Load the viewer's submissions of each stored copy with their queue entries, oldest first.

    Needs two statements for any number of messages.
    """
    statement = select(*select_columns(Submission, {"id", "message_id", "queue_id"})).where(
        col(Submission.message_id).in_(message_ids), is_visible(ctx, Submission)
    )
    submissions = await ctx.read(statement.order_by(col(Submission.created_at), col(Submission.id)))
    submission_ids = [row.id for row in submissions]
    entries = (
        dict(
            zip(
                submission_ids,
                await load_queue_entries_by_submission(ctx, submission_ids),
                strict=True,
            )
        )
        if submission_ids
        else {}
    )
    submissions_by_message: dict[int, list[tuple[ColumnRow, list[ColumnRow]]]] = {
        key: [] for key in message_ids
    }
    for row in submissions:
        submissions_by_message[row.message_id].append((row, entries[row.id]))
    return [submissions_by_message[key] for key in message_ids]

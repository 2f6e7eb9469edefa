"""Checks of users and domains: their usage, and the rows that each of them needs."""

from sqlalchemy import case, func, literal, select
from sqlmodel import col

from mail.consistency.checks import ConsistencyCheck, EqualityRule, is_in_key_range, whole_sum
from mail.consistency.repair import expected_values_repair
from models.addresses.tables import Address
from models.domains.tables import Domain
from models.events.event_types import EventType
from models.events.journal import Stream
from models.mailboxes.tables import Mailbox, SpecialUse
from models.messages.tables import Message
from models.runtime.options import Options
from models.store.columns import core_table
from models.users.custom_data_usage import custom_data_bytes_sql, stored_bytes_of_message_sql
from models.users.tables import User

SUBJECT = "quota"


def user_and_domain_checks(options: Options) -> list[ConsistencyCheck]:
    """All checks of users and domains."""
    return [
        _quota_usage_check(),
        _user_inbox_and_stream_check(),
        _uid_validity_check(),
        _domain_counter_check(options),
    ]


def _quota_usage_check() -> ConsistencyCheck:
    summed = (
        select(
            col(Message.user_id).label("user_id"),
            func.count().label("many"),
            whole_sum(stored_bytes_of_message_sql()).label("size"),
        )
        .where(is_in_key_range(col(Message.user_id)), col(Message.deleted_at).is_(None))
        .group_by(col(Message.user_id))
        .subquery()
    )
    table = core_table(User)
    return ConsistencyCheck(
        SUBJECT,
        User,
        {
            "used": EqualityRule(
                func.coalesce(summed.c.size, 0) + custom_data_bytes_sql(),
                col(User.used),
                is_repairable=True,
            ),
            "message_count": EqualityRule(
                func.coalesce(summed.c.many, 0), col(User.message_count), is_repairable=True
            ),
        },
        table.outerjoin(summed, summed.c.user_id == table.c.id),
        col(User.id),
        repair=expected_values_repair(EventType.USER_UPDATED),
    )


def _user_inbox_and_stream_check() -> ConsistencyCheck:
    inboxes = select(func.count()).where(
        col(Mailbox.user_id) == col(User.id), col(Mailbox.special_use) == SpecialUse.INBOX
    )
    streams = select(func.count()).where(col(Stream.id) == col(User.id))
    return ConsistencyCheck(
        SUBJECT,
        User,
        {
            "inbox": EqualityRule(literal(1), inboxes.scalar_subquery()),
            "stream": EqualityRule(literal(1), streams.scalar_subquery()),
        },
        core_table(User),
        col(User.id),
    )


def _uid_validity_check() -> ConsistencyCheck:
    """The check that no two mailboxes share a UIDVALIDITY, and the next one is unused."""
    is_of_user = col(Mailbox.user_id) == col(User.id)
    number = col(Mailbox.uid_validity)
    highest = select(func.coalesce(func.max(number), 0)).where(is_of_user).scalar_subquery()
    twice = select(func.count() - func.count(number.distinct())).where(is_of_user)
    last = col(User.uid_validity)
    rules = {
        "uid_validity": EqualityRule(
            case((last < highest, highest), else_=last), last, is_repairable=True
        ),
        "folders_of_one_uid_validity": EqualityRule(literal(0), twice.scalar_subquery()),
    }
    return ConsistencyCheck(
        SUBJECT, User, rules, core_table(User), col(User.id), repair=expected_values_repair()
    )


def _domain_counter_check(options: Options) -> ConsistencyCheck:
    """The check of the counters of a domain; its allocated quota includes default quotas."""
    user_quota = func.coalesce(
        col(User.quota), col(Domain.default_user_quota), options.users_default_quota
    )
    users = (
        select(
            col(User.domain_id).label("domain_id"),
            func.count().label("many"),
            whole_sum(user_quota).label("quota"),
        )
        .join(Domain, col(Domain.id) == col(User.domain_id))
        .where(is_in_key_range(col(User.domain_id)))
        .group_by(col(User.domain_id))
        .subquery()
    )
    addresses = (
        select(col(Address.domain_id).label("domain_id"), func.count().label("many"))
        .where(is_in_key_range(col(Address.domain_id)))
        .group_by(col(Address.domain_id))
        .subquery()
    )
    stream = select(func.count()).where(col(Stream.id) == col(Domain.id)).scalar_subquery()
    counts = {
        "user_count": (users.c.many, col(Domain.user_count)),
        "address_count": (addresses.c.many, col(Domain.address_count)),
        "quota_allocated": (users.c.quota, col(Domain.quota_allocated)),
    }
    rules = {
        name: EqualityRule(func.coalesce(expected, 0), stored, is_repairable=True)
        for name, (expected, stored) in counts.items()
    }
    rules["stream"] = EqualityRule(case((stream > 0, stream), else_=1), stream)
    table = core_table(Domain)
    source = table.outerjoin(users, users.c.domain_id == table.c.id).outerjoin(
        addresses, addresses.c.domain_id == table.c.id
    )
    cure = expected_values_repair(EventType.DOMAIN_UPDATED)
    return ConsistencyCheck(SUBJECT, Domain, rules, source, col(Domain.id), repair=cure)

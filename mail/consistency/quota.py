"""Checks of users and domains: their usage, and the rows that each of them needs."""

from sqlalchemy import case, func, literal, select
from sqlmodel import col

from mail.consistency.checks import Check, Rule, total, within
from mail.consistency.repair import rewriting
from models.addresses.tables import Address
from models.domains.tables import Domain
from models.events.journal import ChangeKind, Stream
from models.mailboxes.tables import Mailbox, SpecialUse
from models.messages.tables import Message
from models.runtime.options import Options
from models.store.columns import table_of
from models.users.tables import User

SUBJECT = "quota"


def checks(options: Options) -> list[Check]:
    """All checks of users and domains."""
    return [_use(), _belongings(), _validities(), _domains(options)]


def _use() -> Check:
    summed = (
        select(
            col(Message.user_id).label("user_id"),
            func.count().label("many"),
            total(col(Message.size)).label("size"),
        )
        .where(within(col(Message.user_id)), col(Message.archived_at).is_(None))
        .group_by(col(Message.user_id))
        .subquery()
    )
    table = table_of(User)
    return Check(
        SUBJECT,
        User,
        {
            "used": Rule(func.coalesce(summed.c.size, 0), col(User.used), cured=True),
            "message_count": Rule(
                func.coalesce(summed.c.many, 0), col(User.message_count), cured=True
            ),
        },
        table.outerjoin(summed, summed.c.user_id == table.c.id),
        col(User.id),
        cure=rewriting(ChangeKind.USER_CHANGED),
    )


def _belongings() -> Check:
    inboxes = select(func.count()).where(
        col(Mailbox.user_id) == col(User.id), col(Mailbox.special_use) == SpecialUse.INBOX
    )
    streams = select(func.count()).where(col(Stream.id) == col(User.id))
    return Check(
        SUBJECT,
        User,
        {
            "inbox": Rule(literal(1), inboxes.scalar_subquery()),
            "stream": Rule(literal(1), streams.scalar_subquery()),
        },
        table_of(User),
        col(User.id),
    )


def _validities() -> Check:
    """The check that no two mailboxes share a UIDVALIDITY, and the next one is unused."""
    mine = col(Mailbox.user_id) == col(User.id)
    number = col(Mailbox.uid_validity)
    highest = select(func.coalesce(func.max(number), 0)).where(mine).scalar_subquery()
    twice = select(func.count() - func.count(number.distinct())).where(mine)
    last = col(User.uid_validity)
    rules = {
        "uid_validity": Rule(case((last < highest, highest), else_=last), last, cured=True),
        "folders_of_one_uid_validity": Rule(literal(0), twice.scalar_subquery()),
    }
    return Check(SUBJECT, User, rules, table_of(User), col(User.id), cure=rewriting())


def _domains(options: Options) -> Check:
    """The check of the counters of a domain; its allocated quota includes default quotas."""
    given = func.coalesce(col(User.quota), col(Domain.default_user_quota), options.default_quota)
    users = (
        select(
            col(User.domain_id).label("domain_id"),
            func.count().label("many"),
            total(given).label("quota"),
        )
        .join(Domain, col(Domain.id) == col(User.domain_id))
        .where(within(col(User.domain_id)))
        .group_by(col(User.domain_id))
        .subquery()
    )
    addresses = (
        select(col(Address.domain_id).label("domain_id"), func.count().label("many"))
        .where(within(col(Address.domain_id)))
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
        name: Rule(func.coalesce(wanted, 0), found, cured=True)
        for name, (wanted, found) in counts.items()
    }
    rules["stream"] = Rule(case((stream > 0, stream), else_=1), stream)
    table = table_of(Domain)
    source = table.outerjoin(users, users.c.domain_id == table.c.id).outerjoin(
        addresses, addresses.c.domain_id == table.c.id
    )
    cure = rewriting(ChangeKind.DOMAIN_CHANGED)
    return Check(SUBJECT, Domain, rules, source, col(Domain.id), cure=cure)

"""Create, update, test, replay and delete webhooks, and read their deliveries."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import ColumnElement, String, cast, delete, false, func, select, true, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.network.outbound_http import target
from models.admin.tasks import Task
from models.errors import Forbidden, Invalid, LimitReached, NotFound, all_found
from models.events.journal import PLATFORM, ChangeKind, Position
from models.events.wakeups import WEBHOOKS
from models.notifications.webhooks import (
    TRIED_FOR,
    PostState,
    Webhook,
    WebhookDelivery,
    WebhookLane,
    put,
)
from models.store.columns import Picked, picked
from models.store.keyset_pages import Ask, Page
from models.users.roles import Role
from models.users.tables import User
from resolvers import pagination
from resolvers.access import managed_users
from resolvers.admin import admin_log, task_steps
from resolvers.admin.admin_log import Done
from resolvers.context import Context
from resolvers.notifications.webhook_event_types import BELOW, EVERY, PING, known
from resolvers.notifications.webhook_replay import KIND, starting
from resolvers.notifications.webhook_signatures import new_secret, place_of
from resolvers.notifications.webhook_worker import TESTS
from resolvers.pagination import Scan, by_keys

NEWEST = "webhooks"
LOG = "webhook-deliveries"
MOST = 100  # of one user, of one domain, and without either
PATTERNS = 100  # of one webhook
SHOWN = frozenset(column.name for column in picked(Webhook)) - {"secret", "old_secret"}
OVERLAP = timedelta(days=7)  # the old secret also signs so long


@dataclass(frozen=True, slots=True)
class NewWebhook:
    """A webhook for a user, a domain, or everything."""

    types: Sequence[str]
    url: str
    user_id: int | None = None
    domain_id: int | None = None
    active: bool = True


@dataclass(frozen=True, slots=True)
class WebhookWhere:
    """The conditions of a list of webhooks; all of them hold."""

    type: str = EVERY  # an exact type or a prefix with `.*`
    user_id: int | None = None


def _visible(ctx: Context) -> ColumnElement[bool]:
    """Return the SQL condition for webhooks that the viewer sees."""
    viewer = ctx.viewer
    if viewer.role.includes(Role.ADMIN):
        return true()
    if viewer.role is not Role.DOMAIN_ADMIN or not viewer.administers:
        return false()
    theirs = select(col(User.id)).where(
        managed_users(ctx), col(User.domain_id).in_(viewer.administers)
    )
    return col(Webhook.domain_id).in_(viewer.administers) | col(Webhook.user_id).in_(theirs)


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load webhooks, in the order of the ids; None if the viewer does not see one."""
    seen = select(*picked(Webhook, SHOWN)).where(_visible(ctx))
    return await by_keys(ctx, seen, col(Webhook.id), ids)


def _terms(ctx: Context, where: WebhookWhere) -> list[ColumnElement[bool]]:
    terms = [_visible(ctx)]
    if where.user_id is not None:
        terms.append(col(Webhook.user_id) == where.user_id)
    if where.type != EVERY:
        if not known(where.type):
            raise Invalid("there is no such type", constraint="unknown", path=["type"])
        begin = where.type[: -len(EVERY)] if where.type.endswith(BELOW) else f'{where.type}"'
        terms.append(cast(col(Webhook.types), String).contains(f'"{begin}', autoescape=True))
    return terms


async def page(
    ctx: Context, where: WebhookWhere, ask: Ask, columns: Collection[str]
) -> Page[Picked]:
    """Read a page of webhooks, in the order of creation. Raises Invalid for an unknown type."""
    names = SHOWN.intersection(columns) | {"created_at", "id"}
    rows = select(*picked(Webhook, names)).where(*_terms(ctx, where))
    place = (col(Webhook.created_at), col(Webhook.id))
    return await pagination.one(ctx, Scan(rows, ask, place, falling=False))


async def count(ctx: Context, where: WebhookWhere) -> int:
    """Count the webhooks of a list. Raises Invalid for an unknown type."""
    many = select(func.count().label("many")).select_from(Webhook)
    (row,) = await ctx.read(many.where(*_terms(ctx, where)))
    return int(row.many)


@dataclass(frozen=True, slots=True)
class OfWebhook:
    """A page of the deliveries of a webhook, which the viewer is known to see."""

    webhook_id: int
    ask: Ask
    columns: frozenset[str]


async def deliveries(ctx: Context, wanted: list[OfWebhook]) -> list[Page[Picked]]:
    """Load pages of the deliveries of webhooks, newest first, with one statement."""
    names = frozenset({"webhook_id", "id"}).union(*(one.columns for one in wanted))
    place = (col(WebhookDelivery.webhook_id), col(WebhookDelivery.id))
    asked = select(*picked(WebhookDelivery, names))
    scans = [
        Scan(asked.where(col(WebhookDelivery.webhook_id) == one.webhook_id), one.ask, place, True)
        for one in wanted
    ]
    return await pagination.pages(ctx, scans)


async def delivery_counts(ctx: Context, wanted: list[OfWebhook]) -> list[int]:
    """Count the stored deliveries of each webhook."""
    keys = {one.webhook_id for one in wanted}
    asked = select(col(WebhookDelivery.webhook_id), func.count().label("many"))
    asked = asked.where(col(WebhookDelivery.webhook_id).in_(keys))
    rows = await ctx.read(asked.group_by(col(WebhookDelivery.webhook_id)))
    found = {row.webhook_id: row.many for row in rows}
    return [found.get(one.webhook_id, 0) for one in wanted]


async def deliveries_by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load deliveries, in the order of the ids; None if the viewer does not see one."""
    hooks = select(col(Webhook.id)).where(_visible(ctx))
    seen = select(*picked(WebhookDelivery)).where(col(WebhookDelivery.webhook_id).in_(hooks))
    return await by_keys(ctx, seen, col(WebhookDelivery.id), ids)


async def create(ctx: Context, new: NewWebhook) -> tuple[int, str]:
    """Create a webhook; returns its id and its secret, which is shown only here.

    Raises Invalid, NotFound, LimitReached at 100 webhooks, and Forbidden for an account above the
    viewer.
    """
    _check(ctx, new.types, new.url)
    domain_id = await _charge(ctx, new)
    # the webhook of a DOMAIN_ADMIN covers a user only while it is in the domain
    bound = not new.user_id or ctx.viewer.role is Role.DOMAIN_ADMIN
    world, key = ctx.world, ctx.world.key()
    secret = new_secret(world)
    row = Webhook(
        id=key,
        user_id=new.user_id,
        domain_id=domain_id if bound else None,
        types=list(dict.fromkeys(new.types)),
        url=new.url,
        active=new.active,
        secret=world.vault.seal(secret, place_of(key)),
        since=world.now(),
        created_at=world.now(),
    )
    async with ctx.write(PLATFORM) as session:
        await _check_room(ctx, row)
        session.add(row)
        await session.flush()
        after = _logged(row, ("types", "url", "active"))
        await admin_log.note(
            ctx, session, Done("webhookCreate", "Webhook", key, domain_id, None, after)
        )
    _wake(ctx)
    return key, secret


def _check(ctx: Context, types: Sequence[str] | None, url: str | None) -> None:
    if types is not None:
        if not 0 < len(types) <= PATTERNS:
            text = f"1 to {PATTERNS} types"
            raise Invalid(text, constraint="length", path=["types"])
        for index, one in enumerate(types):
            if not known(one):
                text = "there is no such type: webhookTypes has them"
                raise Invalid(text, constraint="unknown", path=["types"], index=index)
    if url is not None:
        target(url, private=ctx.world.options.webhooks_private)


async def _charge(ctx: Context, new: NewWebhook) -> int | None:
    """Return the domain of the administrators who see the webhook; None if only an ADMIN does.

    Raises NotFound, Invalid if the scope is missing or double, and Forbidden for an account above
    the viewer.
    """
    viewer = ctx.viewer
    if new.user_id and new.domain_id:
        text = "a user or a domain, not both"
        raise Invalid(text, constraint="exclusive", path=["domain"])
    if new.user_id:
        asked = select(col(User.domain_id), managed_users(ctx).label("free"))
        rows = await ctx.read(asked.where(col(User.id) == new.user_id))
        for row in rows:
            if viewer.role.includes(Role.ADMIN):
                if not row.free:
                    words = "this account is above yours"
                    raise Forbidden(words, requires=Role.ROOT, path=["user"])
                return None if row.domain_id is None else int(row.domain_id)
            if row.free and row.domain_id in viewer.administers:
                return int(row.domain_id)
        raise NotFound(str(new.user_id), path=["user"])
    if new.domain_id:
        return new.domain_id
    if not viewer.role.includes(Role.ADMIN):
        if len(viewer.administers) == 1:
            return min(viewer.administers)
        raise Invalid("say for which domain", constraint="required", path=["domain"])
    return None


async def _check_room(ctx: Context, row: Webhook) -> None:
    asked = select(func.count().label("many")).where(
        col(Webhook.user_id).is_not_distinct_from(row.user_id),
        col(Webhook.domain_id).is_not_distinct_from(row.domain_id),
    )
    (found,) = await ctx.read(asked)
    if found.many >= MOST:
        raise LimitReached(f"at most {MOST} webhooks", limit=MOST, used=found.many, path=["types"])


def _logged(row: Any, names: Sequence[str]) -> dict[str, Any]:
    """Return the values for the admin log; of a URL only the host."""
    told = {name: getattr(row, name) for name in names}
    if "url" in told:
        told["url"] = urlsplit(told["url"]).hostname
    return told


async def _held(ctx: Context, session: AsyncSession, ids: Sequence[int]) -> list[Picked]:
    """Lock these webhooks and return them in order. Raises NotFound or Forbidden."""
    asked = select(*picked(Webhook)).where(col(Webhook.id).in_(ids), _visible(ctx))
    held = asked.order_by(col(Webhook.id)).with_for_update()
    rows = {row.id: row for row in (await (await session.connection()).execute(held)).all()}
    all_found(ids, rows)
    await _require_below(ctx, list(rows.values()))
    return [rows[key] for key in dict.fromkeys(ids)]


async def _require_below(ctx: Context, rows: Sequence[Picked]) -> None:
    """Raise Forbidden if one of these webhooks belongs to a ROOT, and the viewer is an ADMIN.

    An ADMIN sees all webhooks; those that a DOMAIN_ADMIN sees are of accounts that they manage.
    """
    viewer, users = ctx.viewer, {row.user_id for row in rows if row.user_id}
    if viewer.role is not Role.ADMIN or not users:
        return
    above = select(col(User.id)).where(col(User.id).in_(users), col(User.role) == Role.ROOT)
    if await ctx.read(above):
        words = "the webhook is of an account above yours"
        raise Forbidden(words, requires=Role.ROOT, path=["ids"])


async def _domains(ctx: Context, rows: Sequence[Picked]) -> dict[int, int | None]:
    """Return the domain of each webhook, for the admin log of its administrators."""
    users = {row.user_id for row in rows if row.user_id}
    asked = select(col(User.id), col(User.domain_id)).where(col(User.id).in_(users))
    homes = {row.id: row.domain_id for row in await ctx.read(asked)} if users else {}
    return {row.id: row.domain_id or homes.get(row.user_id) for row in rows}


async def change(ctx: Context, ids: Sequence[int], values: Mapping[str, Any]) -> None:
    """Change types, URL or activity of these webhooks, all or none.

    An activated webhook receives events from now on and is tried at once. Raises NotFound, Invalid
    or Forbidden.
    """
    _check(ctx, values.get("types"), values.get("url"))
    now = ctx.world.now()
    async with ctx.write(PLATFORM) as session:
        rows, connection = await _held(ctx, session, ids), await session.connection()
        for row in rows:
            given = {name: value for name, value in values.items() if getattr(row, name) != value}
            more: dict[str, Any] = {"failures": 0, "retry_at": None}
            if given.get("active"):
                more["since"] = now
            this = update(Webhook).where(col(Webhook.id) == row.id)
            await connection.execute(this.values({**given, **more}))
        domains = await _domains(ctx, rows)
        await admin_log.note(
            ctx,
            session,
            *(
                Done(
                    "webhookUpdate",
                    "Webhook",
                    row.id,
                    domains[row.id],
                    _logged(row, tuple(values)),
                    _logged(_Values(values), tuple(values)),
                )
                for row in rows
            ),
        )

    _wake(ctx)


class _Values:
    """The values of a mapping as attributes."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        vars(self).update(values)


async def rotate(ctx: Context, key: int, overlap: timedelta) -> str:
    """Replace the secret of a webhook and return it. The old one also signs during `overlap`.

    Raises Invalid if that is longer than seven days, NotFound or Forbidden.
    """
    if not timedelta(0) <= overlap <= OVERLAP:
        text = f"at most {OVERLAP.days} days"
        raise Invalid(text, constraint="max", path=["overlap"])
    world, secret = ctx.world, new_secret(ctx.world)
    async with ctx.write(PLATFORM) as session:
        (row,) = await _held(ctx, session, [key])
        values = {
            "secret": world.vault.seal(secret, place_of(key)),
            "old_secret": row.secret if overlap else None,
            "old_until": world.now() + overlap if overlap else None,
        }
        connection = await session.connection()
        await connection.execute(update(Webhook).where(col(Webhook.id) == key).values(values))
        domains = await _domains(ctx, [row])
        await admin_log.note(
            ctx, session, Done("webhookSecretRotate", "Webhook", key, domains[key])
        )
    return secret


async def remove(ctx: Context, ids: Sequence[int]) -> None:
    """Delete these webhooks with their deliveries, all or none. Raises NotFound or Forbidden."""
    async with ctx.write(PLATFORM) as session:
        rows, connection = await _held(ctx, session, ids), await session.connection()
        domains = await _domains(ctx, rows)
        await connection.execute(delete(Webhook).where(col(Webhook.id).in_(ids)))
        names = ("types", "url", "active")
        await admin_log.note(
            ctx,
            session,
            *(
                Done("webhookDelete", "Webhook", row.id, domains[row.id], _logged(row, names))
                for row in rows
            ),
        )


async def test(ctx: Context, ids: Sequence[int]) -> None:
    """Queue a test event for these webhooks, also for inactive ones.

    Raises NotFound or Forbidden.
    """
    now = ctx.world.now()
    async with ctx.write(PLATFORM) as session:
        rows, connection = await _held(ctx, session, ids), await session.connection()
        await connection.run_sync(put, now, [_ping(ctx, row.id) for row in rows])
        first = min(row.created_at for row in rows)  # before all other lanes
        lanes = (col(WebhookLane.webhook_id).in_(ids), col(WebhookLane.stream_id) == TESTS)
        await connection.execute(update(WebhookLane).where(*lanes).values(due_at=first))
        now_too = update(Webhook).where(col(Webhook.id).in_(ids))
        await connection.execute(now_too.values(retry_at=None))
        domains = await _domains(ctx, rows)
        done = (Done("webhookTest", "Webhook", row.id, domains[row.id]) for row in rows)
        await admin_log.note(ctx, session, *done)
    _wake(ctx)


def _wake(ctx: Context) -> None:
    """Wake the webhook workers after the transaction."""
    ctx.afterwards(lambda: ctx.world.wakeups.tell({WEBHOOKS: 0}))


def _ping(ctx: Context, webhook_id: int) -> dict[str, Any]:
    key, now = ctx.world.key(), ctx.world.now()
    return {
        "id": key,
        "webhook_id": webhook_id,
        "stream_id": TESTS,
        "number": 0,
        "event": f"evt_{PING}_{key}",
        "type": PING,
        "at": now,
        "body": {"kind": None, "user": None, "domain": None, "objects": [], "origin": ctx.origin},
        "state": PostState.WAITING,
        "attempt": 0,
        "expires_at": now + TRIED_FOR,
    }


async def replay(ctx: Context, key: int, since: Position) -> Task:
    """Queue a task that repeats the events after a position, as far as the webhook covers them.

    Raises NotFound, Forbidden, and Invalid if the position is unknown or expired.
    """
    (row,) = await ctx.load_all(by_ids, [key])
    if row is None:
        raise NotFound(str(key), path=["webhook"])
    await _require_below(ctx, [row])
    order = await starting(ctx, row, since)
    total = sum(order["until"][stream] - order["after"][stream] for stream in order["until"])
    async with ctx.write(PLATFORM) as session:
        (task,) = await task_steps.queue(ctx, session, KIND, [order], total=total)
        await ctx.record(session, PLATFORM, ChangeKind.TASK_CHANGED, [task.id])
        domains = await _domains(ctx, [row])
        done = Done("webhookReplay", "Webhook", key, domains[key], None, {"events": total})
        await admin_log.note(ctx, session, done)
    return task

"""Temporary addresses, which users create for themselves with a random local part."""

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlmodel import col

from mail.addresses.address_syntax import checked_domain, normal_domain
from models.addresses.tables import Address
from models.domains.tables import Domain
from models.errors import Conflict, Invalid, LimitReached, NotFound, Problems
from models.store.columns import Picked, picked
from models.users.roles import Role, Scope
from resolvers.access import own
from resolvers.addresses import main_address
from resolvers.addresses.events import News, tell
from resolvers.addresses.mutations import TAKEN, free
from resolvers.addresses.validation import COMMENT
from resolvers.admin import admin_log
from resolvers.admin.admin_log import Done
from resolvers.context import Context, Needs
from resolvers.domains import loaders as domain_loaders
from resolvers.sql_text import checked
from resolvers.users.selection import managed_one

LETTERS = "abcdefghijkmnpqrstuvwxyz23456789"  # 32 characters that are hard to confuse
LONG = 12  # characters, which are 60 bits
YEARS = timedelta(days=3660)


@dataclass(frozen=True, slots=True)
class NewTemporary:
    """A temporary address to create."""

    user_id: int | None = None  # None: the viewer's
    domain: str | None = None  # None: that of the main address
    validity: timedelta | None = None  # None: until it is switched off
    comment: str | None = None
    for_domain: str | None = None


async def create(ctx: Context, new: NewTemporary) -> Address:
    """Create an address with a random local part that delivers to the user.

    Raises InvalidInput, NotFound if the user has no address in the domain, and LimitReached if
    the user or the domain has no room for another address.
    """
    problems, comment, site = Problems(), None, None
    with problems.caught():
        comment = checked(new.comment, most=COMMENT, path=["comment"])
    with problems.caught():
        site = checked_domain(new.for_domain, path="forDomain") if new.for_domain else None
    with problems.caught():
        if new.validity is not None and not timedelta(0) < new.validity <= YEARS:
            words = f"longer than nothing, and at most {YEARS.days} days"
            raise Invalid(words, constraint="range", path=["validity"])
    problems.settle()
    key = own(ctx) if new.user_id is None else new.user_id
    if key != ctx.viewer.user_id:
        ctx.viewer.require(Needs(role=Role.DOMAIN_ADMIN, scope=Scope.MASTER))
    user, place = await managed_one(ctx, key), await _place(ctx, key, new.domain)
    at = ctx.world.now()
    made = Address(
        id=ctx.world.key(),
        local=_random(ctx),
        domain_id=place.id,
        shown="",
        user_id=user.id,
        send_as=True,
        masked=True,
        expires_at=at + new.validity if new.validity else None,
        public_comment=comment,
        for_domain=site,
        created_at=at,
        updated_at=at,
    )
    made.shown = f"{made.local}@{place.name}"
    try:
        async with ctx.write(user.id, place.id) as session:
            await _room(ctx, user.id)
            domain = await domain_loaders.with_room(session, place.id, place.name, path="domain")
            await free(ctx, made.local, domain.id, ["domain"])
            domain.address_count += 1
            session.add_all([domain, made])
            await session.flush()
            await tell(ctx, session, [made], News("created"))
            if user.id != ctx.viewer.user_id:
                after = {"address": made.shown, "user": user.username}
                done = Done("addressCreateTemporary", "Address", made.id, domain.id, None, after)
                await admin_log.note(ctx, session, done)
    except IntegrityError as clash:
        raise Conflict(TAKEN, path=["domain"]) from clash
    return made


def _random(ctx: Context) -> str:
    return "".join(LETTERS[byte % len(LETTERS)] for byte in ctx.world.random(LONG))


async def _place(ctx: Context, user_id: int, name: str | None) -> Picked:
    """Return id and name of the domain, in which the user must have an address already.

    Without a name it is the domain of the main address. Raises NotFound or InvalidInput.
    """
    if name is None:
        main = await main_address.of(ctx, user_id)
        if main is None:
            words = "there is no main address, so say which domain"
            raise Invalid(words, constraint="required", path=["domain"])
        this = col(Domain.id) == main.domain_id
    else:
        this = col(Domain.name) == normal_domain(name)
    theirs = select(col(Address.domain_id)).where(col(Address.user_id) == user_id)
    asked = select(*picked(Domain, {"id", "name"})).where(this, col(Domain.id).in_(theirs))
    row = next(iter(await ctx.read(asked)), None)
    if row is None:
        raise NotFound(name or "", path=["domain"])
    return row


async def _room(ctx: Context, user_id: int) -> None:
    """Raise LimitReached if the user has the highest number of temporary addresses.

    The transaction must hold the lock on the user's stream.
    """
    most = ctx.world.options.temporary_addresses
    asked = select(func.count().label("many")).where(
        col(Address.user_id) == user_id, col(Address.masked)
    )
    ((many,),) = await ctx.read(asked)
    if many >= most:
        words = f"a user has at most {most} temporary addresses"
        raise LimitReached(words, limit=most, used=many, path=["user"])

"""Operations on accounts."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.exc import IntegrityError
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail import addresses
from models.addresses import Address
from models.columns import Picked, picked
from models.domains import Domain
from models.errors import Conflict, Forbidden, Invalid, LimitReached, NotFound
from models.journal import PLATFORM, ChangeKind, Stream
from models.mailboxes import Mailbox, SpecialUse
from models.prepared import number, prepared
from models.roles import AdminPermission, Role, UserPermission
from models.users import User, UserTag
from models.usersearch import words_of
from resolvers import adminlog, domains, passwords
from resolvers.access import own, visible_users
from resolvers.adminlog import Done
from resolvers.context import Context
from resolvers.listing import by_keys
from resolvers.mailboxes import checked_path, new_mailbox, with_parents

SPECIAL = {
    SpecialUse.SENT: "Sent",
    SpecialUse.TRASH: "Trash",
    SpecialUse.DRAFTS: "Drafts",
    SpecialUse.JUNK: "Junk",
}


@dataclass(frozen=True, slots=True)
class NewUser:
    """An account to be made. What is None has its default."""

    username: str | None = None
    name: str | None = None
    role: Role = Role.USER
    password: str | None = None
    password_disabled: bool = False
    require_password_change: bool = False
    address: str | None = None
    empty_address: bool = False
    disabled: bool = False
    suspended: bool = False
    quota: int | None = None  # bytes
    language: str | None = None
    tags: Sequence[str] = ()
    meta_data: dict[str, Any] | None = None
    internal_data: dict[str, Any] | None = None
    mailboxes: dict[SpecialUse, str] = field(default_factory=dict)


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """The accounts with these ids, in this order; None where the viewer sees none."""
    if ids == [ctx.viewer.user_id]:
        return [next(iter(await ctx.find(_oneself())), None)]
    seen = select(*picked(User)).where(visible_users(ctx))
    return await by_keys(ctx, seen, col(User.id), ids)


@prepared
def _oneself() -> Select[*tuple[Any, ...]]:
    return select(*picked(User)).where(col(User.id) == number("viewer"))


async def named(ctx: Context, name: str) -> Picked | None:
    """The account of this user name or address, as far as the viewer may see it."""
    key = await addresses.login_of(ctx.world, name)
    return await ctx.load(by_ids, key) if key else None


async def create(ctx: Context, new: NewUser) -> User:
    """Make an account with its folders and main address, in one unit."""
    address = _address(ctx, new)
    username = addresses.checked_username(new.username or address or "")
    _check(ctx, new, address)
    password = await passwords.make(ctx.world, new.password) if new.password else None
    paths = _paths(new)

    at = ctx.world.now()
    key = ctx.world.key()
    try:
        async with ctx.write() as session:
            domain = None
            if address:
                name = address.rpartition("@")[2]
                domain = await domains.ensure(ctx, session, name, path="address")
            user = User(
                id=key,
                username=username,
                username_key=addresses.username_key(username),
                name=new.name,
                role=new.role,
                domain_id=domain.id if domain else None,
                tenant_id=domain.id if domain else key,
                password=password,
                require_password_change=new.require_password_change,
                disabled=new.disabled,
                suspended=new.suspended,
                quota=new.quota,
                language=new.language,
                tags=_tags(new.tags),
                permissions=[permission.value for permission in UserPermission],
                words=words_of(username, new.name, address),
                meta_data=new.meta_data,
                internal_data=new.internal_data,
                created_at=at,
                updated_at=at,
            )
            await _free(session, user)
            session.add_all([user, Stream(id=key)])
            await session.flush()
            session.add_all(UserTag(tag=tag.casefold(), user_id=key) for tag in user.tags)
            uses = {path: use for use, path in paths.items()}
            boxes = [new_mailbox(ctx, user, path, uses.get(path)) for path in with_parents(uses)]
            session.add_all(boxes)
            if domain and address:
                await _take_place(ctx, session, user, domain)
                await _add_address(ctx, session, user, address)
            await session.flush()
            ids = [box.id for box in boxes]
            await ctx.record(
                session, key, ChangeKind.MAILBOX_CREATED, ids, path=[box.path for box in boxes]
            )
            stream = domain.id if domain else PLATFORM
            await ctx.record(session, stream, ChangeKind.USER_CHANGED, [key])
            given = {**_given(new), "username": username, "address": address}
            done = Done("userCreate", "User", key, user.domain_id, after=given)
            await adminlog.note(ctx, session, done)
    except IntegrityError as clash:  # somebody was quicker, on a store with several writers
        raise Conflict("user name or address is taken", path=["username"]) from clash
    return user


def _given(new: NewUser) -> dict[str, Any]:
    """What is not as it is by default."""
    usual = NewUser()
    said = {each.name: getattr(new, each.name) for each in fields(NewUser)}
    return {name: value for name, value in said.items() if value != getattr(usual, name)}


def _address(ctx: Context, new: NewUser) -> str | None:
    if new.empty_address:
        return None
    address = new.address or new.username or ""
    if "@" not in address and new.address is None and ctx.world.options.default_domain:
        address = f"{address}@{ctx.world.options.default_domain}"
    if "@" not in address:
        raise Invalid(
            "an account has an address, unless emptyAddress says it has none",
            constraint="required",
            path=["address"],
        )
    if "*" in address or "+" in address.rpartition("@")[0]:
        raise Invalid(
            "a main address has neither * nor a label", constraint="pattern", path=["address"]
        )
    return addresses.checked(address)


def _check(ctx: Context, new: NewUser, address: str | None) -> None:
    viewer = ctx.viewer
    if new.role is Role.PUBLIC:
        raise Invalid("PUBLIC is who has no account", constraint="enum", path=["role"])
    if not viewer.role.includes(new.role):
        raise Forbidden(f"to make a {new.role} needs that role", requires=new.role, path=["role"])
    if address is None and not viewer.role.includes(Role.ADMIN):
        raise Forbidden(
            "only an ADMIN makes accounts without a domain",
            requires=Role.ADMIN,
            path=["emptyAddress"],
        )
    if not new.password and not new.password_disabled:
        raise Invalid(
            "give a password, or passwordDisabled", constraint="required", path=["password"]
        )
    if new.password and new.password_disabled:
        raise Invalid(
            "passwordDisabled means: no password", constraint="exclusive", path=["password"]
        )
    unlimited = AdminPermission.UNLIMITED_QUOTA
    if new.quota == 0 and not (viewer.role.includes(Role.ADMIN) or unlimited in viewer.permissions):
        raise Forbidden(
            f"to give unlimited storage needs {unlimited}", requires=unlimited, path=["quota"]
        )


def _tags(tags: Sequence[str]) -> list[str]:
    for index, tag in enumerate(tags):
        if not 0 < len(tag.strip()) <= 128:  # noqa: PLR2004 - as documented
            raise Invalid(
                "a tag has 1 to 128 characters", constraint="length", path=["tags"], index=index
            )
    spelled = {tag.strip().casefold(): tag.strip() for tag in reversed(tags)}
    return sorted(spelled.values())


def _paths(new: NewUser) -> dict[SpecialUse, str]:
    paths = {SpecialUse.INBOX: "INBOX", **SPECIAL}
    for use, name in new.mailboxes.items():
        paths[use] = checked_path(name, path_in=["mailboxes", use.lower()])
    if len(set(paths.values())) < len(paths):
        raise Invalid("two folders of one name", constraint="unique", path=["mailboxes"])
    return paths


async def _free(session: AsyncSession, user: User) -> None:
    connection = await session.connection()
    taken = select(col(User.id)).where(col(User.username_key) == user.username_key)
    if (await connection.execute(taken)).first():
        raise Conflict("the user name is taken", path=["username"])


async def _take_place(ctx: Context, session: AsyncSession, user: User, domain: Domain) -> None:
    """Count the account in its domain, whose stream is held; LimitReached where it is full."""
    quota = user.quota
    if quota is None:
        platform = ctx.world.options.default_quota
        quota = platform if domain.default_user_quota is None else domain.default_user_quota
    if domain.max_users and domain.user_count >= domain.max_users:
        raise LimitReached(
            "the domain has all its users",
            limit=domain.max_users,
            used=domain.user_count,
            path=["address"],
        )
    if domain.max_user_quota and (quota > domain.max_user_quota or not quota):
        raise LimitReached(
            "more storage than a user of the domain may have",
            limit=domain.max_user_quota,
            used=quota,
            path=["quota"],
        )
    allocated = domain.quota_allocated + quota
    if domain.quota and (allocated > domain.quota or not quota):
        raise LimitReached(
            "more storage than the domain has left",
            limit=domain.quota,
            used=domain.quota_allocated,
            path=["quota"],
        )
    domain.user_count += 1
    domain.address_count += 1
    domain.quota_allocated = allocated
    domain.updated_at = ctx.world.now()
    session.add(domain)


async def _add_address(ctx: Context, session: AsyncSession, user: User, shown: str) -> None:
    at = ctx.world.now()
    local = addresses.normal(shown).local
    connection = await session.connection()
    taken = select(col(Address.id)).where(
        col(Address.local) == local, col(Address.domain_id) == user.domain_id
    )
    if (await connection.execute(taken)).first():
        raise Conflict("the address is taken", path=["address"])
    address = Address(
        id=ctx.world.key(),
        local=local,
        domain_id=user.domain_id,
        shown=shown,
        user_id=user.id,
        main=True,
        created_at=at,
        updated_at=at,
    )
    session.add(address)
    await session.flush()
    await ctx.record(session, user.id, ChangeKind.ADDRESS_CHANGED, [address.id])


async def reached(ctx: Context, key: int | None) -> int:
    """The account an operation is about: one the viewer sees, or the viewer's own."""
    if key is None:
        return own(ctx)
    if await ctx.load(by_ids, key) is None:
        raise NotFound(str(key), path=["user"])
    return key


async def folders_of(ctx: Context, user_id: int, use: SpecialUse) -> int | None:
    """The id of a user's folder of this role."""
    asked = select(col(Mailbox.id)).where(
        col(Mailbox.user_id) == user_id, col(Mailbox.special_use) == use
    )
    row = next(iter(await ctx.read(asked)), None)
    return None if row is None else int(row.id)

"""Making accounts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail import addresses, lookalikes
from mail.paths import checked_path, with_parents
from mail.specialnames import names_in
from models.addresses import Address
from models.domains import Domain
from models.errors import Conflict, Forbidden, Invalid, Problems
from models.journal import PLATFORM, ChangeKind, Stream
from models.mailboxes import Mailbox, SpecialUse
from models.roles import AdminPermission, Role, UserPermission
from models.users import DelimiterAction, DomainAdmin, ProtocolScope, User, UserTag
from models.usersearch import words_of
from resolvers import (
    adminlog,
    domains,
    newpasswords,
    passwordpolicy,
    publickeys,
    senders,
    usertargets,
    welcome,
)
from resolvers.addresstargets import checked_targets
from resolvers.adminlog import Done
from resolvers.context import Context
from resolvers.mailboxes import new_mailbox
from resolvers.newpasswords import NewPassword
from resolvers.quotas import effective, give, seat
from resolvers.userfacts import SPAM_LEVEL, allow, allow_quota, camel, checked
from resolvers.userrights import check_charge, domains_there, values_of

MONTH = 30 * 86_400  # seconds that messages lie in Trash and Junk, at most
FACTS = (  # what is stored as it was given, once it is checked
    "name",
    "disabled",
    "suspended",
    "quota",
    "language",
    "tags",
    "retention",
    "spam_level",
    "recipients",
    "forwards",
    "received_max",
    "from_whitelist",
    "disabled_scopes",
    "upload_sent_messages",
    "tls_enforce_in",
    "tls_enforce_out",
    "smtp_allowed_networks",
    "webmail_access",
    "encrypt_messages",
    "encrypt_forwarded",
    "delimiter_action",
    "meta_data",
    "internal_data",
)


@dataclass(frozen=True, slots=True)
class NewUser:
    """An account to be made. What is None has its default."""

    username: str | None = None
    name: str | None = None
    role: Role = Role.USER
    administers: Sequence[int] = ()  # domains, of a DOMAIN_ADMIN
    admin_permissions: Sequence[AdminPermission] = ()
    permissions: Sequence[UserPermission] | None = None  # None: all
    password: str | None = None
    hashed_password: bool = False
    allow_unsafe: bool = True
    password_disabled: bool = False
    require_password_change: bool = False
    address: str | None = None
    empty_address: bool = False
    add_tags_to_address: bool = False
    disabled: bool = False
    suspended: bool = False
    quota: int | None = None  # bytes
    language: str | None = None
    tags: Sequence[str] = ()
    retention: timedelta | None = None
    pub_key: str | None = None
    encrypt_messages: bool = False
    encrypt_forwarded: bool = False
    targets: Sequence[str] = ()
    delimiter_action: DelimiterAction = DelimiterAction.NONE
    spam_level: int | None = None
    recipients: int | None = None
    forwards: int | None = None
    received_max: int | None = None
    from_whitelist: Sequence[str] = ()
    disabled_scopes: Sequence[ProtocolScope] = ()
    upload_sent_messages: bool = False
    tls_enforce_in: bool = False
    tls_enforce_out: bool = False
    smtp_allowed_networks: Sequence[str] = ()
    webmail_access: bool = True
    meta_data: Any = None  # free data: an object, once that is checked
    internal_data: Any = None
    mailboxes: dict[SpecialUse, str] = field(default_factory=dict)


async def create(ctx: Context, new: NewUser, problems: Problems | None = None) -> User:
    """Make an account with its folders and main address, in one unit.

    All that is wrong with its fields is told at once, with the `problems` found before.
    """
    problems = problems or Problems()
    _allowed(ctx, new)
    username, address = _names(ctx, new, problems)
    facts = checked({name: getattr(new, name) for name in FACTS}, problems)
    paths = _paths(new, facts, problems)
    _check_role(new, problems)
    pub_key = await _key(ctx, new, problems)
    password = await _password(ctx, new, address, problems)
    key = ctx.world.key()
    forwarding: dict[str, Any] = {}
    with problems.caught():
        to = checked_targets(ctx, new.targets, {}, ["targets"])
        forwarding = usertargets.new(ctx, key, to, address, ["targets"])
    problems.settle()
    await _check_rights(ctx, new, facts)
    user = _row(ctx, new, {"id": key, "username": username, **facts, **pub_key, **forwarding})
    user.words = words_of(username, user.name, address)
    if password:
        user.password = await newpasswords.stored(ctx, password)
        user.password_changed_at = user.created_at
    words = {"name": user.name or "", "username": username, "address": address or ""}
    news = await welcome.letters(ctx.world, words) if address else []
    try:
        async with ctx.write() as session:
            domain = None
            if address:
                name = address.rpartition("@")[2]
                domain = await domains.ensure(ctx, session, name, path="address")
                user.domain_id = user.tenant_id = domain.id
            await _free(session, user)
            session.add_all([user, Stream(id=key)])
            await session.flush()
            session.add_all(UserTag(tag=tag.casefold(), user_id=key) for tag in user.tags)
            session.add_all(DomainAdmin(user_id=key, domain_id=one) for one in set(new.administers))
            if domain and address:
                _take_place(ctx, session, user, domain)
                await _add_address(ctx, session, user, address, with_tags=new.add_tags_to_address)
            boxes = await _add_folders(ctx, session, user, paths)
            if news:
                await welcome.put(ctx, session, user, boxes, news)
                await session.refresh(user)
            stream = user.domain_id or PLATFORM
            await ctx.record(session, stream, ChangeKind.USER_CHANGED, [key], did="created")
            await adminlog.note(ctx, session, _done(user))
    except IntegrityError as clash:  # somebody was quicker, on a store with several writers
        raise Conflict("the user name is taken", path=["username"]) from clash
    return user


def _row(ctx: Context, new: NewUser, facts: dict[str, Any]) -> User:
    """The account as it is stored, but for its password and the words it is found by."""
    return User(
        username_key=addresses.username_key(facts["username"]),
        role=new.role,
        tenant_id=facts["id"],
        admin_permissions=values_of(new.admin_permissions),
        permissions=values_of(UserPermission if new.permissions is None else new.permissions),
        require_password_change=new.require_password_change,
        created_at=ctx.world.now(),
        updated_at=ctx.world.now(),
        **facts,
    )


def _wired(address: str) -> str:
    """The address as a user name can be: its domain as it is on the wire."""
    local, at, domain = address.rpartition("@")
    return local + at + addresses.ascii_domain(domain)


def _names(ctx: Context, new: NewUser, problems: Problems) -> tuple[str, str | None]:
    """User name and main address as they are stored: either may come from the other."""
    username, address = new.username, None
    with problems.caught():
        address = _address(ctx, new)
        username = username or _wired(address or "")
    made_of_it = address is None and new.address is None and not new.empty_address
    if username is not None and not made_of_it:
        with problems.caught():
            username = addresses.checked_username(username)
    return username or "", address


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
    address = addresses.checked(address)
    lookalikes.refuse_address(address)
    return address


def _check_role(new: NewUser, problems: Problems) -> None:
    with problems.caught():
        if new.role is Role.PUBLIC:
            raise Invalid("PUBLIC is who has no account", constraint="enum", path=["role"])
    with problems.caught():
        check_charge(new.role, new.administers, new.admin_permissions)


def _allowed(ctx: Context, new: NewUser) -> None:
    """Forbidden where the role does not reach so far, whatever else is said."""
    viewer = ctx.viewer
    if not viewer.role.includes(new.role):
        raise Forbidden(f"to make a {new.role} needs that role", requires=new.role, path=["role"])
    if new.empty_address and not viewer.role.includes(Role.ADMIN):
        raise Forbidden(
            "only an ADMIN makes accounts without a domain",
            requires=Role.ADMIN,
            path=["emptyAddress"],
        )


async def _check_rights(ctx: Context, new: NewUser, facts: Mapping[str, Any]) -> None:
    """Refuse what the viewer may not give: nobody gives more than he has."""
    viewer = ctx.viewer
    usual = {
        "from_whitelist": [],
        "disabled_scopes": [],
        "smtp_allowed_networks": [],
        "webmail_access": True,
        "spam_level": SPAM_LEVEL,
    }
    allow(ctx, [name for name, value in usual.items() if facts[name] != value])
    allow_quota(ctx, facts["quota"])
    await senders.reach(ctx, facts["from_whitelist"], ["fromWhitelist"])
    await domains_there(ctx, new.administers)
    for permission in sorted(set(new.admin_permissions) - viewer.permissions):
        if not viewer.role.includes(Role.ADMIN):
            text = "nobody delegates what was not delegated to him"
            raise Forbidden(text, requires=permission, path=["adminPermissions"])


async def _key(ctx: Context, new: NewUser, problems: Problems) -> dict[str, Any]:
    """The public key and what it says, by column."""
    with problems.caught():
        if new.pub_key:
            key = await publickeys.checked(ctx.world, new.pub_key)
            return {"pub_key": key.armored, "key_info": key.info}
        for name in ("encrypt_messages", "encrypt_forwarded"):
            if getattr(new, name):
                text = "this takes an OpenPGP key of the account"
                raise Invalid(text, constraint="required", path=[camel(name)])
    return {}


async def _password(
    ctx: Context, new: NewUser, address: str | None, problems: Problems
) -> NewPassword | None:
    """The password, once it can be set; None where there is to be none."""
    with problems.caught():
        if not new.password and not new.password_disabled:
            raise Invalid(
                "give a password, or passwordDisabled", constraint="required", path=["password"]
            )
        if new.password and new.password_disabled:
            raise Invalid(
                "passwordDisabled means: no password", constraint="exclusive", path=["password"]
            )
        if new.password:
            given = NewPassword(new.password, new.hashed_password, new.allow_unsafe)
            policy = await passwordpolicy.of_address(
                ctx, address or new.address or new.username or ""
            )
            return await newpasswords.checked(ctx, given, policy)
    return None


def _paths(new: NewUser, facts: Mapping[str, Any], problems: Problems) -> dict[SpecialUse, str]:
    """The special folders, where the language says no other names."""
    paths = {SpecialUse.INBOX: "INBOX", **names_in(facts.get("language"))}
    names = Problems()
    for use, name in new.mailboxes.items():
        with names.caught():
            paths[use] = checked_path(name, path_in=["mailboxes", use.lower()])
    with problems.caught():
        names.settle()
        if "language" in facts and len(set(paths.values())) < len(paths):
            raise Invalid("two folders of one name", constraint="unique", path=["mailboxes"])
    return paths


async def _free(session: AsyncSession, user: User) -> None:
    connection = await session.connection()
    taken = select(col(User.id)).where(col(User.username_key) == user.username_key)
    if (await connection.execute(taken)).first():
        raise Conflict("the user name is taken", path=["username"])


def _take_place(ctx: Context, session: AsyncSession, user: User, domain: Domain) -> None:
    """Count the account in its domain, whose stream is held; LimitReached where it is full."""
    seat(domain, path=["address"])
    give(ctx.world, domain, [], [effective(ctx.world, domain, user.quota)])
    domain.user_count += 1
    domain.address_count += 1
    session.add(domain)


async def _add_address(
    ctx: Context, session: AsyncSession, user: User, shown: str, *, with_tags: bool
) -> None:
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
        tags=user.tags if with_tags else [],
        created_at=at,
        updated_at=at,
    )
    session.add(address)
    await session.flush()
    kind = ChangeKind.ADDRESS_CHANGED
    await ctx.record(session, user.id, kind, [address.id], did="created")


async def _add_folders(
    ctx: Context, session: AsyncSession, user: User, paths: Mapping[SpecialUse, str]
) -> list[Mailbox]:
    uses = {path: use for use, path in paths.items()}
    boxes = [new_mailbox(ctx, user, path, uses.get(path)) for path in with_parents(uses)]
    for box in boxes:
        if box.special_use in {SpecialUse.TRASH, SpecialUse.JUNK}:
            box.retention = min(MONTH, box.retention or MONTH)
    session.add_all(boxes)
    await session.flush()
    where = [box.path for box in boxes]
    kind = ChangeKind.MAILBOX_CREATED
    await ctx.record(session, user.id, kind, [box.id for box in boxes], path=where)
    return boxes


def _done(user: User) -> Done:
    after = {"username": user.username, "role": user.role}
    return Done("userCreate", "User", user.id, user.domain_id, None, after)

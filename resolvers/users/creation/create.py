"""Create a user."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from sqlalchemy.exc import IntegrityError

from mail.addresses import address_syntax
from mail.mailboxes.paths import checked_path
from mail.mailboxes.special_use_names import names_in
from mail.text import confusables
from models.errors import Conflict, Forbidden, Invalid, Problems
from models.mailboxes.tables import SpecialUse
from models.users.roles import AdminPermission, Role, UserPermission
from models.users.search_index import words_of
from models.users.tables import DelimiterAction, ProtocolScope, User
from resolvers.addresses.targets import checked_targets
from resolvers.auth.passwords import new_passwords, password_policy
from resolvers.auth.passwords.new_passwords import NewPassword
from resolvers.context import Context
from resolvers.submission import sender_patterns
from resolvers.users import forward_targets, openpgp_keys
from resolvers.users.creation import insert, welcome_messages
from resolvers.users.creation.insert import NotAdmitted, PreparedUser
from resolvers.users.roles import check_charge, domains_there, values_of
from resolvers.users.validation import SPAM_LEVEL, allow, allow_quota, camel, checked

FACTS = (  # columns that are stored as given, once they are validated
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
    """A user to create. None is the default."""

    username: str | None = None
    name: str | None = None
    role: Role = Role.USER
    administers: Sequence[int] = ()  # domain ids, of a DOMAIN_ADMIN
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
    meta_data: Any = None  # must be an object
    internal_data: Any = None
    mailboxes: dict[SpecialUse, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CheckedUser:
    """A new user with validated fields; the password is not hashed yet."""

    prepared: PreparedUser
    password: NewPassword | None


async def create(ctx: Context, new: NewUser, problems: Problems | None = None) -> User:
    """Create a user with mailboxes and main address, in one transaction.

    Raises all errors of the fields together with the `problems` found before. All checks that can
    fail come before the password is hashed.
    """
    account = await check(ctx, new, problems or Problems())
    for refusal in (await insert.check(ctx, {0: account.prepared})).values():
        raise refusal
    prepared = await complete(ctx, account)
    try:
        await insert.store(ctx, {0: prepared}, mutation="userCreate")
    except NotAdmitted as refused:
        raise refused.refusals[0] from None
    except IntegrityError as clash:  # a concurrent request took it
        raise Conflict("the user name is taken", path=["username"]) from clash
    return prepared.user


async def check(ctx: Context, new: NewUser, problems: Problems) -> CheckedUser:
    """Validate all fields of a new user. Raises all errors, with the `problems` found before."""
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
        forwarding = forward_targets.new(ctx, key, to, address, ["targets"])
    problems.settle()
    await _check_rights(ctx, new, facts)
    user = _row(ctx, new, {"id": key, "username": username, **facts, **pub_key, **forwarding})
    user.words = words_of(username, user.name, address)
    known = address_syntax.normal(address) if address else None
    prepared = PreparedUser(
        user,
        address,
        known.local if known else "",
        known.domain if known else None,
        paths,
        frozenset(new.administers),
        new.add_tags_to_address,
    )
    return CheckedUser(prepared, password)


async def complete(ctx: Context, account: CheckedUser) -> PreparedUser:
    """Hash the password of a checked user, and build its welcome messages."""
    prepared, user = account.prepared, account.prepared.user
    if account.password:
        user.password = await new_passwords.stored(ctx, account.password)
        user.password_changed_at = user.created_at
    if prepared.address:
        words = {"name": user.name or "", "username": user.username, "address": prepared.address}
        prepared.welcome = await welcome_messages.letters(ctx.world, words)
    return prepared


def _row(ctx: Context, new: NewUser, facts: dict[str, Any]) -> User:
    """Return the row of a new user, without password hash and search words."""
    return User(
        username_key=address_syntax.username_key(facts["username"]),
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
    """Return an address as a username: its domain in ASCII (IDNA)."""
    local, at, domain = address.rpartition("@")
    return local + at + address_syntax.ascii_domain(domain)


def _names(ctx: Context, new: NewUser, problems: Problems) -> tuple[str, str | None]:
    """Return username and main address in stored form: each can come from the other."""
    username, address = new.username, None
    with problems.caught():
        address = _address(ctx, new)
        username = username or _wired(address or "")
    made_of_it = address is None and new.address is None and not new.empty_address
    if username is not None and not made_of_it:
        with problems.caught():
            username = address_syntax.checked_username(username)
    return username or "", address


def _address(ctx: Context, new: NewUser) -> str | None:
    """Return the validated main address; None if the user has none. Raises Invalid."""
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
    address = address_syntax.checked(address)
    confusables.refuse_address(address)
    return address


def _check_role(new: NewUser, problems: Problems) -> None:
    with problems.caught():
        if new.role is Role.PUBLIC:
            raise Invalid("PUBLIC is who has no account", constraint="enum", path=["role"])
    with problems.caught():
        check_charge(new.role, new.administers, new.admin_permissions)


def _allowed(ctx: Context, new: NewUser) -> None:
    """Raise Forbidden if the viewer can't give this role, or create a user without a domain."""
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
    """Raise Forbidden if the new user has rights or settings that the viewer can't give."""
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
    await sender_patterns.reach(ctx, facts["from_whitelist"], ["fromWhitelist"])
    await domains_there(ctx, new.administers)
    for permission in sorted(set(new.admin_permissions) - viewer.permissions):
        if not viewer.role.includes(Role.ADMIN):
            text = "nobody delegates what was not delegated to him"
            raise Forbidden(text, requires=permission, path=["adminPermissions"])


async def _key(ctx: Context, new: NewUser, problems: Problems) -> dict[str, Any]:
    """Return the columns of the public key.

    Adds a problem, or a warning if nothing needs the key.
    """
    with problems.caught():
        if new.pub_key:
            try:
                key = await openpgp_keys.checked(ctx.world, new.pub_key)
            except Invalid as unusable:
                if new.encrypt_messages or new.encrypt_forwarded:
                    raise
                text = f"the key is not stored: {unusable.message}"
                ctx.warn("KEY_NOT_STORED", text, path=["pubKey"])
                return {}
            openpgp_keys.warn(ctx, key, path=["pubKey"])
            return {"pub_key": key.armored, "key_info": key.info}
        for name in ("encrypt_messages", "encrypt_forwarded"):
            if getattr(new, name):
                text = "this takes an OpenPGP key of the account"
                raise Invalid(text, constraint="required", path=[camel(name)])
    return {}


async def _password(
    ctx: Context, new: NewUser, address: str | None, problems: Problems
) -> NewPassword | None:
    """Return the validated password.

    None if the user has none. Adds a problem if it is unusable.
    """
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
            where = address or new.address or new.username or ""
            policy = await password_policy.of_address(ctx, "" if given.hashed else where)
            return await new_passwords.checked(ctx, given, policy)
    return None


def _paths(new: NewUser, facts: Mapping[str, Any], problems: Problems) -> dict[SpecialUse, str]:
    """Return the paths of the special mailboxes: given names, else those of the language."""
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

"""Inputs that name users, domains, mailboxes or messages, and their resolution."""

from collections.abc import Sequence
from typing import Any, TypeVar

import strawberry

from graph.types import global_ids
from graph.types.errors import attribute_field
from graph.types.fields import Info
from graph.types.input_conditions import ConditionsInput
from graph.types.object_references import ObjectRef
from graph.types.scalars import BigInt, EmailAddress
from mail.mailboxes import paths
from models.errors import InvalidInput, require_found, require_within_limit
from models.mailboxes.tables import SpecialUse
from models.store.columns import ColumnRow
from models.validation_constraints import ValidationConstraint
from resolvers.access import require_user_id
from resolvers.addresses.loaders import AddressIdOrText as Address
from resolvers.domains import loaders as domain_loaders
from resolvers.domains.loaders import DomainIdOrName as Domain
from resolvers.mailboxes.loaders import MailboxSelector, find_visible
from resolvers.messages import loaders as message_loaders
from resolvers.users import loaders as user_loaders
from resolvers.users.selection import UserSelector

Item = TypeVar("Item")


@strawberry.input(one_of=True, description="Reference to one user.")
class UserRef:
    id: strawberry.Maybe[strawberry.ID] = attribute_field("Global ID of the user.")
    username: strawberry.Maybe[str] = attribute_field(
        "Username, or an address whose mail is delivered to the user. Case is ignored, and dots "
        "in a username without `@`."
    )
    address: strawberry.Maybe[EmailAddress] = attribute_field(
        "Address whose mail is delivered to the user."
    )


@strawberry.input(one_of=True, description="Reference to one address.")
class AddressRef:
    id: strawberry.Maybe[strawberry.ID] = attribute_field("Global ID of the address.")
    address: strawberry.Maybe[str] = attribute_field(
        "Address in any spelling. A catch-all contains `*`; `@domain` means `*@domain`."
    )


@strawberry.input(one_of=True, description="Reference to one domain.")
class DomainRef:
    id: strawberry.Maybe[strawberry.ID] = attribute_field("Global ID of the domain.")
    name: strawberry.Maybe[str] = attribute_field(
        "Name of the domain, in Unicode or ASCII form. The name of an alias domain selects no "
        "domain."
    )


@strawberry.input(one_of=True, description="Reference to one alias domain.")
class AliasDomainRef(ObjectRef):
    alias: strawberry.Maybe[str] = attribute_field(
        "Name of the alias domain, in Unicode or ASCII form."
    )


@strawberry.input(
    description="Selection of users who meet any of the conditions. An empty list selects no "
    "user. A selection without a condition is an error. Each list has at most 1,000 items by "
    "default. A mutation selects at most 1,000 users by default; more are a LimitReachedError."
)
class UserSelection(ConditionsInput):
    all: bool | None = attribute_field(
        "True selects every user, also inactive and suspended ones, but no deleted ones. Requires "
        "role ADMIN. In a mutation, a user with a higher role than the caller is a "
        "ForbiddenError, unless the description of the mutation says otherwise. False selects no "
        "user.",
        default=strawberry.UNSET,
    )
    ids: list[strawberry.ID] | None = attribute_field(
        "Selects the users with these global IDs. In the filter of a list, and in the query "
        "`mailboxes`, an unknown ID selects no user; otherwise it is the error NOT_FOUND. In a "
        "mutation, a user whom the caller can see but not change is a ForbiddenError.",
        default=strawberry.UNSET,
    )
    usernames: list[str] | None = attribute_field(
        "Usernames, or addresses of the kind MAILBOX: each selects the one user to whom it "
        "belongs. NOT_FOUND for an address of another kind, an address pattern, and a name "
        "without a user whom the caller can see. In a mutation, a user whom the caller can see "
        "but not change is a ForbiddenError.",
        default=strawberry.UNSET,
    )
    patterns: list[str] | None = attribute_field(
        "Selects the users whose username matches one of these patterns, at most 128 characters "
        "each: `*` matches any characters, `?` one character. Case and dots are ignored. Requires "
        "role DOMAIN_ADMIN, which selects among the users of the domains it administers. In a "
        "mutation, a user whom the caller can see but not change is a ForbiddenError.",
        default=strawberry.UNSET,
    )
    domains: list[DomainRef] | None = attribute_field(
        "Domains: selects all users with the main address in one of them. Requires role "
        "DOMAIN_ADMIN and that the caller administers the domain. For an ADMIN, an unknown domain "
        "selects no user. In a mutation, a user whom the caller can't change is a "
        "ForbiddenError.",
        default=strawberry.UNSET,
    )
    tags: list[str] | None = attribute_field(
        "Tags of users (case is ignored): selects all users with one of them. Requires role "
        "DOMAIN_ADMIN, which selects among the users of the domains it administers. In a "
        "mutation, a user whom the caller can see but not change is a ForbiddenError.",
        default=strawberry.UNSET,
    )


def user_selector_from_selection(
    selection: UserSelection | None, *, path: str = "users", with_deleted: bool = False
) -> UserSelector:
    """Return the resolvers' selector of the users in a selection.

    With `with_deleted`, IDs of DeletedUser select users too. Raises InvalidInput if an ID is
    malformed.
    """
    if not selection:
        return UserSelector()
    return UserSelector(
        was_sent=True,
        all=bool(selection.all),
        ids=tuple(
            global_ids.decode(
                user_type_of_id(text) if with_deleted else "User",
                text,
                path=[path, "ids"],
                index=nth,
            )
            for nth, text in enumerate(selection.ids or ())
        ),
        usernames=tuple(selection.usernames or ()),
        patterns=tuple(selection.patterns or ()),
        domains=tuple(domain_selectors_from_refs(selection.domains, path=[path, "domains"])),
        tags=tuple(selection.tags or ()),
    )


def user_type_of_id(text: str) -> str:
    """Return DeletedUser if the ID has the prefix of that type, else User."""
    return "DeletedUser" if global_ids.has_type("DeletedUser", text) else "User"


def user_selector_from_ref(ref: UserRef, *, path: str) -> UserSelector:
    """Return the resolvers' selector of one named user. Raises InvalidInput for a bad ID."""
    if ref.id:
        user_id = global_ids.decode("User", ref.id.value, path=path)
        return UserSelector(is_reference=True, ids=(user_id,))
    name = maybe_value(ref.username) or maybe_value(ref.address) or ""
    return UserSelector(is_reference=True, usernames=(name,))


@strawberry.input(
    one_of=True,
    description="Reference to one mailbox. Unless it is an ID, it names a mailbox of the user "
    "that the field is for.",
)
class MailboxRef:
    id: strawberry.Maybe[strawberry.ID] = attribute_field("Global ID of the mailbox.")
    path: strawberry.Maybe[str] = attribute_field(
        "Full path of the mailbox in Unicode, with `/` between levels. Case is significant, except "
        "in INBOX. A `MessageFilter` ignores case and accents if no mailbox has exactly this path."
    )
    special_use: strawberry.Maybe[SpecialUse] = attribute_field(
        "Special use of the mailbox (RFC 6154)."
    )
    object_id: strawberry.Maybe[str] = attribute_field(
        "MAILBOXID of the mailbox (RFC 8474), as in `Mailbox.objectId`."
    )


@strawberry.input(description="Reference to a message by its mailbox and UID (RFC 9051).")
class MessageUid:
    mailbox: MailboxRef = attribute_field("Mailbox that contains the message.")
    uid: BigInt = attribute_field("UID of the message in its mailbox (RFC 9051).")


@strawberry.input(one_of=True, description="Reference to one message.")
class MessageRef:
    id: strawberry.Maybe[strawberry.ID] = attribute_field("Global ID of the message.")
    uid: strawberry.Maybe[MessageUid] = attribute_field(
        "Mailbox of the message, and its UID there."
    )
    email_id: strawberry.Maybe[str] = attribute_field(
        "EMAILID of the message (RFC 8474), 32 hexadecimal digits."
    )


def maybe_value(maybe: Any) -> Any:
    """Return the value of a `Maybe` field; None if the client omitted it."""
    return None if maybe is None or maybe is strawberry.UNSET else maybe.value


def is_true(flag: Any) -> bool:
    """True if the client sent true in this field, which can be a `Maybe` field."""
    return (flag.value if isinstance(flag, strawberry.Some) else flag) is True


def is_given(value: Any) -> bool:
    """True if the client sent a value that is not null. An empty list is a value."""
    return value is not None and value is not strawberry.UNSET


def optional_tuple(value: Sequence[Item] | None) -> tuple[Item, ...] | None:
    """Return the items of an optional list; None without a list. An empty list selects nothing."""
    return tuple(value or ()) if is_given(value) else None


def value_or_none(value: Any) -> Any:
    """Return the value of a field; None if the client omitted it."""
    return None if value is strawberry.UNSET else value


async def load_visible_user_or_require_viewer(info: Info, ref: UserRef | None) -> ColumnRow | None:
    """Load the named user, or the viewer; None if no such user is visible to the viewer."""
    ctx = info.context
    if ref is None or ref is strawberry.UNSET:
        return await ctx.load(user_loaders.load_visible_users_by_id, require_user_id(ctx))
    return await load_visible_user(info, ref)


async def load_visible_user(info: Info, ref: UserRef) -> ColumnRow | None:
    """Load the named user; None if no such user is visible to the viewer."""
    ctx = info.context
    if ref.id:
        return await ctx.load(
            user_loaders.load_visible_users_by_id,
            global_ids.decode("User", ref.id.value, path="user"),
        )
    return await user_loaders.find_user_by_name(
        ctx, maybe_value(ref.username) or maybe_value(ref.address) or ""
    )


async def require_administered_domain_ids(
    info: Info, refs: Sequence[DomainRef] | None, *, path: str = "domains"
) -> list[int]:
    """Load the IDs of the named domains.

    Raises LimitReached for too many references, and NotFound if the viewer doesn't administer one
    of the domains.
    """
    if not refs:
        return []
    ctx, selectors = info.context, domain_selectors_from_refs(refs, path=path)
    limit = ctx.environment.options.bulk_max_items
    require_within_limit(
        len(selectors), limit, f"At most {limit:,} domains are allowed.", path=[path]
    )
    rows = await domain_loaders.load_administered_domains_by_ref_or_raise(ctx, selectors, path=path)
    return [row.id for row in rows]


def require_no_user_condition(user_ref: UserRef | None, listed: str) -> None:
    """Raise InvalidInput if the filter of a list of one account names a user."""
    if user_ref:
        text = f"This list has the {listed} of one account only."
        raise InvalidInput(text, constraint=ValidationConstraint.EXCLUSIVE, path=["filter", "user"])


async def load_visible_user_id_or_viewer_id(info: Info, ref: UserRef | None) -> int | None:
    """Return the ID of the named user, or of the viewer; None if the user is not visible."""
    if ref is None or ref is strawberry.UNSET:
        return require_user_id(info.context)
    return await load_visible_user_id(info, ref)


async def load_visible_user_id(info: Info, ref: UserRef) -> int | None:
    """Return the ID of the named user; None if the user is not visible."""
    row = await load_visible_user(info, ref)
    return int(row.id) if row else None


async def require_visible_user_id_if_named(info: Info, ref: UserRef | None) -> int | None:
    """Return the ID of the named user; None without a reference.

    Raises NotFound if the user is not visible.
    """
    return int(require_found(await load_visible_user(info, ref), path=["user"]).id) if ref else None


def address_selector_from_ref(ref: AddressRef, *, path: str, index: int | None = None) -> Address:
    """Return the resolvers' selector of an address. Raises InvalidInput for a bad ID."""
    if ref.id:
        return Address(id=global_ids.decode("Address", ref.id.value, path=path, index=index))
    return Address(address=maybe_value(ref.address) or "")


def domain_selector_from_ref(
    ref: DomainRef, *, path: str | Sequence[str], index: int | None = None
) -> Domain:
    """Return the resolvers' selector of a domain. Raises InvalidInput for a bad ID."""
    if ref.id:
        return Domain(id=global_ids.decode("Domain", ref.id.value, path=path, index=index))
    return Domain(name=maybe_value(ref.name))


def mailbox_selector_from_ref(
    ref: MailboxRef, *, path: str | Sequence[str] = "mailbox", index: int | None = None
) -> MailboxSelector:
    """Return the resolvers' selector of a mailbox. Raises InvalidInput for a bad ID."""
    if ref.id:
        return MailboxSelector(
            id=global_ids.decode("Mailbox", ref.id.value, path=path, index=index)
        )
    path_ = maybe_value(ref.path)
    path_ = path_ if path_ is None else paths.canonical_path(path_)
    return MailboxSelector(
        path=path_, special_use=maybe_value(ref.special_use), object_id=maybe_value(ref.object_id)
    )


def address_selectors_from_refs(refs: Sequence[AddressRef]) -> list[Address]:
    """Return the selectors of the list `addresses`. Raises InvalidInput for a bad ID."""
    return [
        address_selector_from_ref(ref, path="addresses", index=index)
        for index, ref in enumerate(refs)
    ]


def domain_selectors_from_refs(
    refs: Sequence[DomainRef] | None, *, path: str | Sequence[str] = "domains"
) -> list[Domain]:
    """Return the selectors of a list of domains. Raises InvalidInput for a bad ID."""
    return [
        domain_selector_from_ref(ref, path=path, index=index)
        for index, ref in enumerate(refs or ())
    ]


def mailbox_selectors_from_refs(
    refs: Sequence[MailboxRef] | None, *, path: str | Sequence[str] = "mailboxes"
) -> list[MailboxSelector]:
    """Return the selectors of a list of mailboxes. Raises InvalidInput for a bad ID."""
    return [
        mailbox_selector_from_ref(ref, path=path, index=index)
        for index, ref in enumerate(refs or ())
    ]


async def find_unchecked_message_id(
    info: Info, ref: MessageRef, *, path: str | Sequence[str] = "by", user_id: int | None = None
) -> int | None:
    """Return the ID of the named message, which need not exist or be visible.

    A mailbox that is not named by ID belongs to the user `user_id`, by default the viewer. Returns
    None if the mailbox or UID doesn't exist. Raises InvalidInput for a malformed ID or EMAILID.
    """
    full_path = [path] if isinstance(path, str) else path
    if ref.id:
        return global_ids.decode("Message", ref.id.value, path=full_path)
    if ref.email_id:
        text = ref.email_id.value
        if len(text) != 32 or not all(digit in "0123456789abcdef" for digit in text.lower()):  # noqa: PLR2004
            raise InvalidInput(
                "An EMAILID must have 32 hexadecimal digits.",
                constraint=ValidationConstraint.ID,
                path=[*full_path, "emailId"],
            )
        key = int(text, 16)
        return key if key < 1 << 63 else None
    uid = maybe_value(ref.uid)
    selector = mailbox_selector_from_ref(uid.mailbox, path=[*full_path, "uid", "mailbox"])
    mailbox = await find_visible(info.context, selector, user_id)
    return (
        await message_loaders.find_message_id_by_uid(info.context, mailbox.id, uid.uid)
        if mailbox
        else None
    )

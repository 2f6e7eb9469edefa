"""Inputs that name users, domains, mailboxes or messages, and their resolution."""

from collections.abc import Sequence
from typing import Any, TypeVar

import strawberry

from graph.types import global_ids
from graph.types.errors import leaf
from graph.types.fields import Info
from graph.types.input_conditions import Conditions
from graph.types.scalars import BigInt, EmailAddress
from mail.mailboxes import paths
from models.errors import Invalid, check_limit, found
from models.mailboxes.tables import SpecialUse
from models.store.columns import Picked
from resolvers.access import own
from resolvers.addresses.loaders import Named as Address
from resolvers.domains import loaders as domain_loaders
from resolvers.domains.loaders import Named as Domain
from resolvers.mailboxes.loaders import Named, find_seen
from resolvers.messages import loaders as message_loaders
from resolvers.submission.reply_references import ReferenceAction as ReferenceAction  # noqa: PLC0414 - re-exported
from resolvers.users import loaders as user_loaders
from resolvers.users.selection import Users

Item = TypeVar("Item")


@strawberry.input(one_of=True, description="Names one user.")
class UserRef:
    id: strawberry.Maybe[strawberry.ID] = leaf("Global id.")
    username: strawberry.Maybe[str] = leaf("Dots ignored.")
    address: strawberry.Maybe[EmailAddress] = leaf("Any address that delivers to the user.")


@strawberry.input(one_of=True, description="Names one address.")
class AddressRef:
    id: strawberry.Maybe[strawberry.ID] = leaf("Global id.")
    address: strawberry.Maybe[str] = leaf(
        "As it is written, in any spelling; a pattern with its *, @domain is *@domain."
    )


@strawberry.input(one_of=True, description="Names one domain.")
class DomainRef:
    id: strawberry.Maybe[strawberry.ID] = leaf("Global id.")
    name: strawberry.Maybe[str] = leaf("Its own name, in Unicode or ASCII form.")


@strawberry.input(one_of=True, description="Names one second name of a domain.")
class DomainAliasRef:
    id: strawberry.Maybe[strawberry.ID] = leaf("Global id.")
    alias: strawberry.Maybe[str] = leaf("The name, in Unicode or ASCII form.")


@strawberry.input(
    description="Names many users. The fields are combined with OR. An empty list names nobody; "
    "an empty object is an error."
)
class UserSelection(Conditions):
    all: bool | None = leaf("Every user (ADMIN).", default=strawberry.UNSET)
    ids: list[strawberry.ID] | None = leaf("Global ids.", default=strawberry.UNSET)
    usernames: list[str] | None = leaf("User names or addresses.", default=strawberry.UNSET)
    masks: list[str] | None = leaf("User names with * and ?.", default=strawberry.UNSET)
    domains: list[str] | None = leaf(
        "Everybody whose main address is there.", default=strawberry.UNSET
    )
    tags: list[str] | None = leaf("Everybody with one of the tags.", default=strawberry.UNSET)


def users_named(selection: UserSelection | None, *, path: str = "users") -> Users:
    """Return the resolvers' selector of the users in a selection.

    Raises InvalidInput if an ID is malformed.
    """
    if not selection:
        return Users()
    return Users(
        chosen=True,
        all=bool(selection.all),
        ids=tuple(
            global_ids.decode("User", text, path=path, index=nth)
            for nth, text in enumerate(selection.ids or ())
        ),
        usernames=tuple(selection.usernames or ()),
        masks=tuple(selection.masks or ()),
        domains=tuple(selection.domains or ()),
        tags=tuple(selection.tags or ()),
    )


def user_named(ref: UserRef, *, path: str) -> Users:
    """Return the resolvers' selector of one named user. Raises InvalidInput for a bad ID."""
    if ref.id:
        return Users(ids=(global_ids.decode("User", ref.id.value, path=path),))
    return Users(usernames=(given(ref.username) or given(ref.address) or "",))


@strawberry.input(one_of=True, description="Names one folder of the user in question.")
class MailboxRef:
    id: strawberry.Maybe[strawberry.ID] = leaf("Global id.")
    path: strawberry.Maybe[str] = leaf("Unicode, slashes.")
    special_use: strawberry.Maybe[SpecialUse] = leaf("Role of the folder.")
    guid: strawberry.Maybe[str] = leaf("32 hex digits.")


@strawberry.input(description="Folder and uid.")
class MessageUid:
    mailbox: MailboxRef = leaf("Folder.")
    uid: BigInt = leaf("Uid in it.")


@strawberry.input(one_of=True, description="Names one message.")
class MessageRef:
    id: strawberry.Maybe[strawberry.ID] = leaf("Global id.")
    uid: strawberry.Maybe[MessageUid] = leaf("By folder and uid.")
    guid: strawberry.Maybe[str] = leaf("32 hex digits.")


def given(maybe: Any) -> Any:
    """Return the value of a `Maybe` field; None if the client omitted it."""
    return None if maybe is None or maybe is strawberry.UNSET else maybe.value


def is_given(value: Any) -> bool:
    """True if the client sent a value that is not null. An empty list is a value."""
    return value is not None and value is not strawberry.UNSET


def items_of(value: Sequence[Item] | None) -> tuple[Item, ...] | None:
    """Return the items of an optional list; None without a list. An empty list selects nothing."""
    return tuple(value or ()) if is_given(value) else None


def plain(value: Any) -> Any:
    """Return the value of a field; None if the client omitted it."""
    return None if value is strawberry.UNSET else value


async def user_of(info: Info, ref: UserRef | None) -> Picked | None:
    """Load the named user, or the viewer; None if no such user is visible to the viewer."""
    ctx = info.context
    if ref is None or ref is strawberry.UNSET:
        return await ctx.load(user_loaders.by_ids, own(ctx))
    if ref.id:
        return await ctx.load(
            user_loaders.by_ids, global_ids.decode("User", ref.id.value, path="user")
        )
    return await user_loaders.named(ctx, given(ref.username) or given(ref.address) or "")


async def domains_of(
    info: Info, refs: Sequence[DomainRef] | None, *, path: str = "domains"
) -> list[int]:
    """Load the IDs of the named domains.

    Raises NotFound if the viewer doesn't administer one of them.
    """
    if not refs:
        return []
    named = [domain_named(ref, path=path, index=nth) for nth, ref in enumerate(refs or ())]
    return [row.id for row in await domain_loaders.chosen(info.context, named, path=path)]


async def owner_of(info: Info, ref: UserRef | None) -> int | None:
    """Return the ID of the named user, or of the viewer; None if the user is not visible."""
    if ref is None or ref is strawberry.UNSET:
        return own(info.context)
    row = await user_of(info, ref)
    return int(row.id) if row else None


async def owner_named(info: Info, ref: UserRef | None) -> int | None:
    """Return the ID of the named user; None without a reference.

    Raises NotFound if the user is not visible.
    """
    return int(found(await user_of(info, ref), path=["user"]).id) if ref else None


def keys_of(info: Info, kind: str, texts: Sequence[str]) -> list[int]:
    """Return the row IDs of global IDs of one type.

    Raises InvalidInput if one is malformed, LimitReached if there are too many.
    """
    most = info.context.world.options.bulk
    check_limit(len(texts), most, f"at most {most} at once", path=["ids"])
    return [global_ids.decode(kind, text, path="ids", index=nth) for nth, text in enumerate(texts)]


def address_named(ref: AddressRef, *, path: str, index: int | None = None) -> Address:
    """Return the resolvers' selector of an address. Raises InvalidInput for a bad ID."""
    if ref.id:
        return Address(id=global_ids.decode("Address", ref.id.value, path=path, index=index))
    return Address(address=given(ref.address) or "")


def domain_named(ref: DomainRef, *, path: str, index: int | None = None) -> Domain:
    """Return the resolvers' selector of a domain. Raises InvalidInput for a bad ID."""
    if ref.id:
        return Domain(id=global_ids.decode("Domain", ref.id.value, path=path, index=index))
    return Domain(name=given(ref.name))


def named(ref: MailboxRef, *, path: str = "mailbox", index: int | None = None) -> Named:
    """Return the resolvers' selector of a mailbox. Raises InvalidInput for a bad ID."""
    if ref.id:
        return Named(id=global_ids.decode("Mailbox", ref.id.value, path=path, index=index))
    path_ = given(ref.path)
    path_ = path_ if path_ is None else paths.spelled(path_)
    return Named(path=path_, special_use=given(ref.special_use), guid=given(ref.guid))


async def message_of(
    info: Info, ref: MessageRef, *, path: str = "by", user_id: int | None = None
) -> int | None:
    """Return the ID of the named message, which need not exist or be visible.

    A mailbox that is not named by ID belongs to the user `user_id`, by default the viewer. Returns
    None if the mailbox or UID doesn't exist. Raises InvalidInput for a malformed ID or GUID.
    """
    if ref.id:
        return global_ids.decode("Message", ref.id.value, path=path)
    if ref.guid:
        text = ref.guid.value
        if len(text) != 32 or not all(digit in "0123456789abcdef" for digit in text.lower()):  # noqa: PLR2004
            raise Invalid("a guid has 32 hex digits", constraint="id", path=["guid"])
        key = int(text, 16)
        return key if key < 1 << 63 else None
    uid = given(ref.uid)
    box = await find_seen(info.context, named(uid.mailbox), user_id)
    return await message_loaders.by_uid(info.context, box.id, uid.uid) if box else None

"""Usernames have one normal form: all spellings find the same user."""

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mail.addresses.address_syntax import username_key
from mail.recipients.address_resolution import find_sign_in_user_id
from models.errors import Conflict
from models.runtime.environment import Environment
from models.store.keyset_pages import PageRequest
from models.users.roles import Role, Scope
from resolvers.context import Context
from resolvers.users import delete as user_delete
from resolvers.users import listing as user_listing
from resolvers.users import loaders as user_loaders
from resolvers.users import restore as user_restore
from resolvers.users.creation import create as creation_create
from resolvers.users.creation.create import NewUser
from resolvers.users.listing import UserConditions
from resolvers.users.restore import DeletedUserRef
from resolvers.users.selection import UserSelector, require_selected_users
from resolvers.viewer import Viewer
from tests.conftest import GraphQLClient

USERNAMES_AND_ADDRESSES = {  # username and address
    "ada": ("a.da-x", "ada.lovelace@bücher.example"),
    "bob": ("b.ob@xn--bcher-kva.example", "other.bob@example.org"),
    "eve": ("eve@example.org", "e.v.e@example.org"),
}
DOMAIN_SPELLINGS = {
    "bücher.example": ("bücher.example", "BÜCHER.example", "xn--bcher-kva.example",
                       "XN--BCHER-KVA.Example.", "bu\u0308cher.example"),
    "example.org": ("example.org", "Example.ORG", "example.org."),
}  # fmt: skip
NORMAL_NAMES = {
    "ada": ("ada-x", "adalovelace@bücher.example"),
    "bob": ("bob@bücher.example", "otherbob@example.org"),
    "eve": ("eve@example.org",),
}


@st.composite
def spellings(draw: st.DrawFn) -> tuple[str, str]:
    """Draw a user, and one spelling of its username or address."""
    user = draw(st.sampled_from(sorted(NORMAL_NAMES)))
    local, separator, domain = draw(st.sampled_from(NORMAL_NAMES[user])).partition("@")
    dots = draw(st.sets(st.integers(1, len(local) - 1)))
    spelled = "".join("." * (n in dots) + letter for n, letter in enumerate(local))
    upper = draw(st.sets(st.integers(0, len(spelled) - 1)))
    spelled = "".join(c.upper() if n in upper else c for n, c in enumerate(spelled))
    if separator:
        label = draw(st.sampled_from(["", "+", "+news", "+a.b+c"]))
        spelled = f"{spelled}{label}@{draw(st.sampled_from(DOMAIN_SPELLINGS[domain]))}"
    return user, draw(st.sampled_from(["", " "])) + spelled


@pytest.fixture
async def user_ids(environment: Environment) -> dict[str, int]:
    ctx = Context(environment, Viewer(role=Role.ROOT))
    return {
        user: (
            await creation_create.create_user(
                ctx, NewUser(name, address=address, password_disabled=True)
            )
        ).id
        for user, (name, address) in USERNAMES_AND_ADDRESSES.items()
    }


async def test_all_spellings_find_the_same_user(
    environment: Environment, root: GraphQLClient, user_ids: dict[str, int]
) -> None:
    loop = asyncio.get_running_loop()
    ctx = Context(environment, Viewer(role=Role.ROOT, scopes=frozenset({Scope.FULL})))

    async def check_spelling(user: str, name: str) -> None:
        assert await find_sign_in_user_id(environment, name) == user_ids[user]
        user_row = await user_loaders.find_user_by_name(ctx.fresh_copy(), name)
        assert user_row is not None
        assert user_row.id == user_ids[user]
        (row,) = await require_selected_users(ctx.fresh_copy(), UserSelector(usernames=(name,)))
        assert row.id == user_ids[user]
        if "+" not in name:
            page = await user_listing.load_visible_user_page(
                ctx, UserConditions(query=name.strip()), PageRequest("x"), {"id"}
            )
            assert [row.id for row in page.rows] == [user_ids[user]]
        new_user = NewUser(
            USERNAMES_AND_ADDRESSES[user][0], empty_address=True, password_disabled=True
        )
        with pytest.raises(Conflict):
            await creation_create.create_user(ctx, new_user)
        document = "query ($by: UserRef!) { user(by: $by) { username } }"
        assert await root(document, by={"username": name}) == {
            "user": {"username": USERNAMES_AND_ADDRESSES[user][0]}
        }

    @given(spellings())
    @settings(
        max_examples=40,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    def check_one(spelled: tuple[str, str]) -> None:
        asyncio.run_coroutine_threadsafe(check_spelling(*spelled), loop).result()

    await asyncio.to_thread(check_one)


@given(spellings())
def test_username_key_is_idempotent(spelled: tuple[str, str]) -> None:
    key = username_key(spelled[1])
    assert username_key(key) == key


async def test_patterns_and_deleted_users_use_the_normal_form(
    environment: Environment, user_ids: dict[str, int]
) -> None:
    ctx = Context(environment, Viewer(role=Role.ROOT, scopes=frozenset({Scope.FULL})))
    for pattern in ("B.ob@*", "*@XN--bcher-kva.*", "bo?@bücher.example"):
        page = await user_listing.load_visible_user_page(
            ctx, UserConditions(patterns=(pattern,)), PageRequest("x"), {"id"}
        )
        assert [row.id for row in page.rows] == [user_ids["bob"]], pattern
        assert [
            row.id for row in await require_selected_users(ctx, UserSelector(patterns=(pattern,)))
        ] == [user_ids["bob"]]
    await user_delete.delete_users_or_reschedule_purge(
        ctx, UserSelector(usernames=("BOB@xn--bcher-kva.example",))
    )
    for name in ("b.o.b@Bücher.example", "bob+x@xn--bcher-kva.example", "OTHER.bob@example.org."):
        deleted_user = await user_restore.find_deleted_user(ctx, DeletedUserRef(name=name))
        assert deleted_user is not None, name
        assert deleted_user.id == user_ids["bob"], name

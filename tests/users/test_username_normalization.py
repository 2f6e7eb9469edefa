"""One normal form of names: however somebody is spelled, it is the same account."""

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from mail.addresses.address_syntax import username_key
from mail.recipients.address_resolution import find_sign_in_user
from models.errors import Conflict
from models.runtime.environment import Environment
from models.store.keyset_pages import PageRequest
from models.users.roles import Role, Scope
from resolvers.context import Context, Viewer
from resolvers.users import delete as user_delete
from resolvers.users import listing as user_listing
from resolvers.users import loaders as user_loaders
from resolvers.users import restore as user_restore
from resolvers.users.creation import create as creation_create
from resolvers.users.creation.create import NewUser
from resolvers.users.listing import UserConditions
from resolvers.users.restore import DeletedUserRef
from resolvers.users.selection import UserSelector, load_selected_users
from tests.conftest import Client

NAMES = {  # user name, and address
    "ada": ("a.da-x", "ada.lovelace@bücher.example"),
    "bob": ("b.ob@xn--bcher-kva.example", "other.bob@example.org"),
    "eve": ("eve@example.org", "e.v.e@example.org"),
}
DOMAINS = {
    "bücher.example": ("bücher.example", "BÜCHER.example", "xn--bcher-kva.example",
                       "XN--BCHER-KVA.Example.", "bu\u0308cher.example"),
    "example.org": ("example.org", "Example.ORG", "example.org."),
}  # fmt: skip
PLAIN = {
    "ada": ("ada-x", "adalovelace@bücher.example"),
    "bob": ("bob@bücher.example", "otherbob@example.org"),
    "eve": ("eve@example.org",),
}


@some.composite
def spellings(draw: some.DrawFn) -> tuple[str, str]:
    """Who, and one way to spell a name or address of theirs."""
    who = draw(some.sampled_from(sorted(PLAIN)))
    local, at, domain = draw(some.sampled_from(PLAIN[who])).partition("@")
    dots = draw(some.sets(some.integers(1, len(local) - 1)))
    spelled = "".join("." * (n in dots) + letter for n, letter in enumerate(local))
    upper = draw(some.sets(some.integers(0, len(spelled) - 1)))
    spelled = "".join(c.upper() if n in upper else c for n, c in enumerate(spelled))
    if at:
        label = draw(some.sampled_from(["", "+", "+news", "+a.b+c"]))
        spelled = f"{spelled}{label}@{draw(some.sampled_from(DOMAINS[domain]))}"
    return who, draw(some.sampled_from(["", " "])) + spelled


@pytest.fixture
async def people(world: Environment) -> dict[str, int]:
    ctx = Context(world, Viewer(role=Role.ROOT))
    return {
        who: (
            await creation_create.create_user(
                ctx, NewUser(name, address=at, password_disabled=True)
            )
        ).id
        for who, (name, at) in NAMES.items()
    }


async def test_however_it_is_spelled_it_is_one_account(
    world: Environment, root: Client, people: dict[str, int]
) -> None:
    loop = asyncio.get_running_loop()
    ctx = Context(world, Viewer(role=Role.ROOT, scopes=frozenset({Scope.MASTER})))

    async def tried(who: str, name: str) -> None:
        assert await find_sign_in_user(world, name) == people[who]
        found = await user_loaders.find_user_by_name(ctx.fresh_copy(), name)
        assert found is not None
        assert found.id == people[who]
        (row,) = await load_selected_users(ctx.fresh_copy(), UserSelector(usernames=(name,)))
        assert row.id == people[who]
        if "+" not in name:
            page = await user_listing.load_user_page(
                ctx, UserConditions(query=name.strip()), PageRequest("x"), {"id"}
            )
            assert [row.id for row in page.rows] == [people[who]]
        with pytest.raises(Conflict):
            await creation_create.create_user(ctx, NewUser(NAMES[who][0], empty_address=True,
                                            password_disabled=True))  # fmt: skip
        document = "query ($by: UserRef!) { user(by: $by) { username } }"
        assert await root(document, by={"username": name}) == {"user": {"username": NAMES[who][0]}}

    @given(spellings())
    @settings(
        max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    def hold(spelled: tuple[str, str]) -> None:
        asyncio.run_coroutine_threadsafe(tried(*spelled), loop).result()

    await asyncio.to_thread(hold)


@given(spellings())
def test_a_key_is_its_own_key(spelled: tuple[str, str]) -> None:
    key = username_key(spelled[1])
    assert username_key(key) == key


async def test_masks_and_the_deleted_go_by_the_same_form(
    world: Environment, people: dict[str, int]
) -> None:
    ctx = Context(world, Viewer(role=Role.ROOT, scopes=frozenset({Scope.MASTER})))
    for mask in ("B.ob@*", "*@XN--bcher-kva.*", "bo?@bücher.example"):
        page = await user_listing.load_user_page(
            ctx, UserConditions(masks=(mask,)), PageRequest("x"), {"id"}
        )
        assert [row.id for row in page.rows] == [people["bob"]], mask
        assert [row.id for row in await load_selected_users(ctx, UserSelector(masks=(mask,)))] == [
            people["bob"]
        ]
    await user_delete.delete_users(ctx, UserSelector(usernames=("BOB@xn--bcher-kva.example",)))
    for name in ("b.o.b@Bücher.example", "bob+x@xn--bcher-kva.example", "OTHER.bob@example.org."):
        found = await user_restore.find_deleted_user(ctx, DeletedUserRef(name=name))
        assert found is not None, name
        assert found.id == people["bob"], name

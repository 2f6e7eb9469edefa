"""Whose address is that?"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from sqlalchemy import delete, update
from sqlmodel import col

from mail.addresses import address_syntax
from mail.addresses.address_syntax import NormalizedAddress
from mail.recipients import address_resolution, batch_resolution
from mail.storage.blobs.object_stores import FolderStore
from models.addresses.tables import Address, AddressKind
from models.domains.tables import Domain
from models.errors import InvalidInput, NotFound, OverQuota
from models.mailboxes.tables import Mailbox, SpecialUse
from models.runtime.environment import Environment
from models.runtime.options import Options
from models.store.database import Database
from models.users.tables import User
from tests.conftest import Client, Clock, make_user, receive
from tests.support.accounts.address_rows import add_addresses, add_domain
from tests.support.stores import store_fixtures

LETTERS = "ab"


async def winner(world: Environment, address: str) -> str | None:
    try:
        return str((await address_resolution.resolve_address(world, address)).shown)
    except NotFound:
        return None


@pytest.mark.parametrize(
    ("written", "local", "domain"),
    [
        ("ada@example.org", "ada", "example.org"),
        (" A.d.A+news+more@Example.ORG. ", "ada", "example.org"),
        ("ADÄ@mail.XN--BCHER-KVA.example", "adä", "mail.bücher.example"),
        ("ada@BU\u0308CHER.example", "ada", "bücher.example"),
        ("ada@xn--strae-oqa.xn--bcher-kva", "ada", "straße.bücher"),
        ("ada@ﬁ.example", "ada", "fi.example"),
        ("ada@b。example", "ada", "b.example"),
        ("ada", "ada", ""),
        ("a@b@c", "a@b", "c"),
        ("+x@example.org", "", "example.org"),
        ("x@xn--", "x", "xn--"),
    ],
)
def test_an_address_is_compared_in_one_form(written: str, local: str, domain: str) -> None:
    first, _, rest = written.rpartition("@")
    found = address_syntax.normalized_address(written if first else rest + "@")
    assert found == NormalizedAddress(local, domain)
    assert address_syntax.normalized_address("@".join(found)) == found


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("Ada.L@Example.org", "Ada.L@example.org"),
        (" o'neil!#$%&*/=?^`{|}~@a-b.example ", "o'neil!#$%&*/=?^`{|}~@a-b.example"),
        ("ada@XN--BCHER-KVA.example", "ada@bücher.example"),
        ("u\u0308@example.org", "ü@example.org"),
        ("x" * 64 + "@localhost", "x" * 64 + "@localhost"),
    ],
)
def test_a_good_address_is_kept_as_its_owner_writes_it(written: str, kept: str) -> None:
    assert address_syntax.validated_address(written) == kept


@pytest.mark.parametrize(
    "wrong",
    [
        "", "@", "ada", "ada@", "@example.org", "a b@example.org", "a@b@example.org", "a\0@b.c",
        ".ada@example.org", "ada.@example.org", "a..b@example.org", "a@-b.c", "a@b-.c", "a@b..c",
        "a@_b.d", "a@xn--zzzzzz.d", "x" * 65 + "@b.c", "a@" + "x" * 64 + ".d", "a<b>@c.d",
        "a@" + "x.d" * 100, "\ud800@b.c", "a@\ud800.c", '"a"@b.c', "a@[127.0.0.1]",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused(wrong: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        address_syntax.validated_address(wrong, path="to")
    assert refused.value.path == ["to"]


anything = some.text() | some.builds("{}@{}".format, some.text(), some.text())
likely = some.from_regex(r"[a-zäß.+*]{1,6}@(xn--)?[a-zäßﬁ.\-]{1,9}", fullmatch=True)


@given(anything | likely)
@settings(max_examples=400)
def test_checking_an_address_refuses_or_settles_it(text: str) -> None:
    try:
        once = address_syntax.validated_address(text)
    except InvalidInput:
        return
    assert address_syntax.validated_address(once) == once
    assert address_syntax.normalized_address(once) == address_syntax.normalized_address(text)
    assert address_syntax.ascii_domain(address_syntax.normalized_address(once).domain).isascii()


@given(anything)
def test_user_names_are_refused_or_settled_too(text: str) -> None:
    try:
        once = address_syntax.checked_username(text)
    except InvalidInput:
        return
    assert address_syntax.checked_username(once) == once
    assert address_syntax.username_key(once) == address_syntax.username_key(text)


@pytest.fixture
async def town(world: Environment) -> Environment:
    """Our domain with two more names, one of them off, and another domain that is off."""
    await add_domain(world, "own.example", "alias.example", "off:gone.example")
    await add_domain(world, "other.example")
    await add_domain(world, "closed.example", "close.example", active=False)
    return world


# who is there, to whom it goes, and who gets it
DECISIONS = {
    "the address itself before all patterns": (
        "sales@own.example sales*@own.example *@own.example sales@*", "sales@own.example"),
    "the longest fixed part": (
        "sal*@own.example *ales@own.example *@own.example", "*ales@own.example"),
    "of two alike the prefix": ("sal*@own.example *les@own.example", "sal*@own.example"),
    "a pattern may match nothing": ("sales*@own.example *@own.example", "sales*@own.example"),
    "a catch-all": ("*@own.example sales@*", "*@own.example"),
    "in every domain, at last": ("sales@* x@own.example", "sales@*"),
    "everywhere only by its name": ("sal*@*", None),
    "in its domain only": ("sales@other.example", None),
    "nobody": ("", None),
    "an ended one is none": ("old:sales@own.example *@own.example", "*@own.example"),
    "one that is off refuses": ("off:sales@own.example *@own.example sales@*", None),
    "a pattern that is off refuses": ("off:sal*@own.example *@own.example", None),
    "a better one is not minded": ("sales@own.example off:*@own.example", "sales@own.example"),
}  # fmt: skip


@pytest.mark.parametrize("case", DECISIONS)
async def test_the_best_match_decides(town: Environment, case: str) -> None:
    there, expected = DECISIONS[case]
    await add_addresses(town, *there.split())
    assert await winner(town, "S.a.l.es+news@OWN.example") == expected


@pytest.mark.parametrize(
    ("there", "asked", "expected"),
    [
        ("sales@own.example", "sales@alias.example", "sales@own.example"),
        ("*@own.example", "sales@alias.example", "*@own.example"),
        ("sales@*", "sales@alias.example", "sales@*"),
        ("sales@own.example", "sales@gone.example", None),
        ("sales@*", "sales@gone.example", None),
        ("sales@closed.example", "sales@closed.example", None),
        ("sales@closed.example", "sales@close.example", None),
        ("sales@*", "sales@elsewhere.example", None),
    ],
)
async def test_an_alias_stands_for_its_domain_and_a_stranger_for_none(
    town: Environment, there: str, asked: str, expected: str | None
) -> None:
    await add_addresses(town, there)
    assert await winner(town, asked) == expected


@pytest.mark.parametrize(
    "odd", ["", "@", "sales", "@own.example", "+x@own.example", "a\0@own.example", "\ud800@x"]
)
async def test_what_is_no_address_is_nobodys(town: Environment, odd: str) -> None:
    await add_addresses(town, "*@own.example")
    assert await winner(town, odd) is None
    assert await address_resolution.find_sign_in_user(town, odd) is None


@dataclass(frozen=True)
class Written:
    local: str
    domain: str | None
    state: str

    @property
    def text(self) -> str:
        return f"{self.state}:{self.local}@{self.domain or '*'}"


names = some.from_regex(r"[ab]([ab-]{0,2}[ab])?", fullmatch=True)
locals_ = names | names.map("{}*".format) | names.map("*{}".format) | some.just("*")
writings = some.builds(
    Written,
    locals_,
    some.sampled_from(["own.example", "other.example", None]),
    some.sampled_from(["", "", "", "off", "old"]),
)


def expected_of(
    there: Iterable[Written], local: str, domain: str, delimiters: str = "+"
) -> str | None:
    """The rules as they are told, one after the other, over all addresses."""
    if domain not in ("own.example", "other.example", "alias.example"):
        return None
    own = "own.example" if domain == "alias.example" else domain
    alive = [one for one in there if one.state != "old"]
    forms = [local]
    if "-" in delimiters and "-" in local:
        forms.append(local[: local.index("-")])
    steps = [(form, own) for form in forms]
    for fixed in range(len(local), 0, -1):
        for form in forms:
            if len(form) >= fixed:
                steps += [(f"{form[:fixed]}*", own), (f"*{form[-fixed:]}", own)]
    for pattern, place in [*steps, ("*", own), *((form, None) for form in forms)]:
        for one in alive:
            if (one.local, one.domain) == (pattern, place):
                return None if one.state == "off" else one.text
    return None


@pytest.fixture
async def plain_world(tmp_path: Path, sqlite_template: Path) -> Environment:
    database = Database(store_fixtures.copied(sqlite_template, tmp_path))
    world = Environment(
        database, FolderStore(tmp_path / "b"), signing_secret=b"s" * 32, now=Clock()
    )
    await add_domain(world, "own.example", "alias.example")
    await add_domain(world, "other.example")
    return world


async def test_resolution_agrees_with_its_rules_on_random_sets(plain_world: Environment) -> None:
    world = plain_world
    loop = asyncio.get_running_loop()

    async def check(there: list[Written], asked: set[tuple[str, str]], delimiters: str) -> None:
        object.__setattr__(world, "options", Options(delimiters=delimiters))
        async with world.write_session() as session:
            await session.exec(delete(Address))
        await add_addresses(world, *(one.text for one in there))
        alone, expected = {}, {}
        for local, domain in asked:
            best = expected_of(there, local, domain, delimiters)
            expected[f"{local}@{domain}"] = best and best.rpartition(":")[2]
            alone[f"{local}@{domain}"] = await winner(world, f"{local}@{domain}")
        assert alone == expected
        together = await batch_resolution.resolve_addresses(world, list(expected))
        assert expected == {
            text: row.shown if (row := together.get(text)) is not None and row.active else None
            for text in expected
        }

    domains = some.sampled_from(["own.example", "other.example", "alias.example", "far.example"])

    @given(
        some.lists(writings, unique_by=lambda one: (one.local, one.domain)),
        some.sets(some.tuples(names, domains), min_size=1, max_size=4),
        some.sampled_from(["+", "+-", "-"]),
    )
    @settings(
        max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    def hold(there: list[Written], asked: set[tuple[str, str]], delimiters: str) -> None:
        work = check(there, asked, delimiters)
        asyncio.run_coroutine_threadsafe(work, loop).result()

    await asyncio.to_thread(hold)
    await world.database.close()


@pytest.mark.parametrize(
    ("delimiters", "there", "asked", "expected"),
    [
        ("+", "sales@own.example", "sales+x@own.example", "sales@own.example"),
        ("+", "sales@own.example", "sales-x@own.example", None),
        ("-", "sales@own.example", "sales-x@own.example", "sales@own.example"),
        ("-", "sales@own.example sales-x@own.example", "sales-x@own.example",
         "sales-x@own.example"),
        ("-", "sales@own.example", "sales+x@own.example", None),
        ("-", "*@own.example", "sales+x@own.example", "*@own.example"),
        ("+-_", "sales@own.example", "s.ales_x-y+z@own.example", "sales@own.example"),
        ("-", "sales@own.example", "-sales@own.example", None),
        ("-", "sales@* *@own.example", "sales-x@own.example", "*@own.example"),
        ("-", "sales@*", "sales-x@own.example", "sales@*"),
        ("-", "sales-*@own.example sales@own.example", "sales-x@own.example",
         "sales@own.example"),
        ("", "sales@own.example", "sales+x@own.example", None),
    ],
)  # fmt: skip
async def test_labels_begin_where_the_setting_says(
    town: Environment, delimiters: str, there: str, asked: str, expected: str | None
) -> None:
    object.__setattr__(town, "options", Options(delimiters=delimiters))
    await add_addresses(town, *there.split())
    assert await winner(town, asked) == expected


async def test_many_are_resolved_in_two_statements(
    town: Environment, statements: list[str]
) -> None:
    await add_addresses(
        town, "sales@own.example", "*@other.example", "every@*", "off:gone@own.example"
    )
    for many in (1, 20):
        asked = [f"s{n}@other.example" for n in range(many)]
        asked += ["sales+x@alias.example", "every@alias.example", "nobody@own.example", "\0@own"]
        del statements[:]
        found = await batch_resolution.resolve_addresses(town, [*asked, "gone@own.example"])
        assert len(statements) == 2
        assert {found[one].shown for one in asked[:many]} == {"*@other.example"}
        assert [found[one].shown for one in asked[many : many + 2]] == [
            "sales@own.example", "every@*",
        ]  # fmt: skip
        assert not found["gone@own.example"].active
        assert not {"nobody@own.example", "\0@own"} & set(found)


async def test_however_many_patterns_there_are_it_takes_one_statement(
    town: Environment, statements: list[str]
) -> None:
    for many in (1, 30):
        await add_addresses(town, *(f"{'s' * many}{n}*@own.example" for n in range(many)))
        del statements[:]
        await winner(town, "sales@own.example")
        assert len(statements) == 1


async def test_one_signs_in_by_name_or_address_but_by_no_pattern(
    ada: Client, world: Environment
) -> None:
    await add_addresses(world, "*@example.org", "every@*", user_id=ada.user.id)
    await add_addresses(world, "list@example.org", kind=AddressKind.FORWARD)
    by = {name: await address_resolution.find_sign_in_user(world, name) for name in (
        "ada", "A.D.A", "ada@example.org", "a.da+x@Example.ORG",
        "any@example.org", "*@example.org", "every@example.org", "list@example.org", "eve", "",
    )}  # fmt: skip
    assert [name for name, key in by.items() if key == ada.user.id] == list(by)[:4]
    assert set(by.values()) == {ada.user.id, None}


async def test_one_signs_in_by_a_second_name_of_the_domain_while_it_counts(
    ada: Client, bob: Client, world: Environment
) -> None:
    await add_domain(world, "other.example", "also.example", "off:was.example", active=False)
    names = ("ada@other.example", "off:off@other.example", "old:late@other.example")
    await add_addresses(world, *names, user_id=ada.user.id)
    await add_domain(world, "also.example")  # of two places the domain itself is the first
    await add_addresses(world, "bob@also.example", user_id=bob.user.id)
    await add_addresses(world, "bob@other.example", user_id=ada.user.id)
    by = {name: await address_resolution.find_sign_in_user(world, name) for name in (
        "ada@other.example", "a.da+x@ALSO.example", "ada@was.example", "off@other.example",
        "late@other.example", "bob@also.example", "bob@other.example",
    )}  # fmt: skip
    his, hers = bob.user.id, ada.user.id
    assert list(by.values()) == [hers, hers, None, None, None, his, hers]


async def test_a_user_name_may_look_like_an_address_of_somebody_elses_domain(
    world: Environment,
) -> None:
    user = await make_user(world, "a.da")
    async with world.write_session() as session:
        name = {"username": "x.y@far.example", "username_key": "xy@far.example"}
        await session.exec(update(User).values(**name))
    assert await address_resolution.find_sign_in_user(world, "xy+label@far.example") == user.id
    assert await address_resolution.find_sign_in_user(world, "xy@fa.rexample") is None


async def test_a_disabled_user_is_refused_and_a_suspended_one_receives(
    ada: Client, world: Environment
) -> None:
    inbox = (await ada.box()).id
    for values, there in (({"suspended": True}, True), ({"disabled": True}, False)):
        async with world.write_session() as session:
            await session.exec(update(User).values(**values))
        if there:
            found = await address_resolution.load_recipient(world, "Ada+x@example.org")
            assert (found.user_id, found.mailbox_id) == (ada.user.id, inbox)
            assert found.address == "Ada+x@example.org"
        else:
            with pytest.raises(NotFound):
                await address_resolution.load_recipient(world, "ada@example.org")


async def test_only_a_mailbox_takes_mail_into_an_account(ada: Client, world: Environment) -> None:
    await add_addresses(world, "list@example.org", kind=AddressKind.DISCARD, user_id=ada.user.id)
    with pytest.raises(NotFound):
        await address_resolution.load_recipient(world, "list@example.org")


async def test_a_full_mailbox_refuses_whosever_limit_it_is(ada: Client, world: Environment) -> None:
    used = int((await receive(ada)).uid and (await ada.box()).size)
    for table, values in (
        (User, {"quota": used}),
        (Domain, {"default_user_quota": used}),
    ):
        async with world.write_session() as session:
            await session.exec(update(table).values(**values))
        with pytest.raises(OverQuota) as full:
            await address_resolution.load_recipient(world, "ada@example.org")
        assert (full.value.used, full.value.allowed) == (used, used)
        async with world.write_session() as session:
            await session.exec(update(User).values(quota=None))
            await session.exec(update(Domain).values(default_user_quota=0))
        assert (
            await address_resolution.load_recipient(world, "ada@example.org")
        ).user_id == ada.user.id
    small = Environment(
        world.database,
        world.object_store,
        signing_secret=b"s",
        options=Options(default_quota=used),
        now=world.now,
    )
    async with world.write_session() as session:
        await session.exec(update(Domain).values(default_user_quota=None))
    with pytest.raises(OverQuota):
        await address_resolution.load_recipient(small, "ada@example.org")


async def test_mail_goes_to_inbox_whatever_its_path(ada: Client, world: Environment) -> None:
    async with world.write_session() as session:
        inbox = col(Mailbox.special_use) == SpecialUse.INBOX
        await session.exec(update(Mailbox).where(inbox).values(path="Eingang"))
    found = await address_resolution.load_recipient(world, "ada@example.org")
    assert found.mailbox_id == (await ada.box("Eingang")).id

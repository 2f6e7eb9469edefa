"""Resolution of recipient addresses and sign-in names to users."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, update
from sqlmodel import col

from mail.recipients import address_resolution, batch_resolution
from mail.storage.blobs.object_stores import FolderStore
from models.addresses.tables import Address, AddressKind
from models.domains.tables import Domain
from models.errors import NotFound, OverQuota
from models.mailboxes.tables import Mailbox, SpecialUse
from models.runtime.environment import Environment
from models.runtime.options import Options
from models.store.database import Database
from models.users.tables import User
from tests.conftest import GraphQLClient, ManualClock, deliver_to, make_user
from tests.support.accounts.address_rows import add_addresses, add_domain
from tests.support.case_loop import each_case
from tests.support.stores import store_fixtures

ALPHABET = "ab"


async def resolved_address(environment: Environment, address: str) -> str | None:
    try:
        return str(
            (
                await address_resolution.require_receiving_address_row(environment, address)
            ).display_address
        )
    except NotFound:
        return None


async def replace_addresses(environment: Environment, *specs: str) -> None:
    """Delete all addresses, and add those of the specifications."""
    async with environment.write_session() as session:
        await session.exec(delete(Address))
    await add_addresses(environment, *specs)


@pytest.fixture
async def domains_environment(environment: Environment) -> Environment:
    """Return an environment with active and inactive domains and alias domains."""
    await add_domain(environment, "own.example", "alias.example", "off:gone.example")
    await add_domain(environment, "other.example")
    await add_domain(environment, "closed.example", "close.example", active=False)
    return environment


# for each case: the addresses that exist, and the one that sales@own.example resolves to
RESOLUTION_CASES = {
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


async def test_best_match_is_chosen(domains_environment: Environment) -> None:
    for case in each_case(RESOLUTION_CASES.values()):
        with case as (address_specs, expected):
            await replace_addresses(domains_environment, *address_specs.split())
            resolved = await resolved_address(domains_environment, "S.a.l.es+news@OWN.example")
            assert resolved == expected


# for each case: the address that exists, the recipient, and the address that it resolves to
ALIAS_DOMAIN_CASES = [
    ("sales@own.example", "sales@alias.example", "sales@own.example"),
    ("*@own.example", "sales@alias.example", "*@own.example"),
    ("sales@*", "sales@alias.example", "sales@*"),
    ("sales@own.example", "sales@gone.example", None),
    ("sales@*", "sales@gone.example", None),
    ("sales@closed.example", "sales@closed.example", None),
    ("sales@closed.example", "sales@close.example", None),
    ("sales@*", "sales@elsewhere.example", None),
]


async def test_alias_domain_resolves_like_its_target_domain(
    domains_environment: Environment,
) -> None:
    for case in each_case(ALIAS_DOMAIN_CASES):
        with case as (address_spec, address, expected):
            await replace_addresses(domains_environment, address_spec)
            assert await resolved_address(domains_environment, address) == expected


async def test_invalid_address_resolves_to_nothing(domains_environment: Environment) -> None:
    await add_addresses(domains_environment, "*@own.example")
    for case in each_case(
        ["", "@", "sales", "@own.example", "+x@own.example", "a\0@own.example", "\ud800@x"]
    ):
        with case as address:
            assert await resolved_address(domains_environment, address) is None
            assert (
                await address_resolution.find_sign_in_user_id(domains_environment, address) is None
            )


@dataclass(frozen=True)
class AddressSpec:
    local: str
    domain: str | None
    state: str

    @property
    def text(self) -> str:
        return f"{self.state}:{self.local}@{self.domain or '*'}"


local_parts = st.from_regex(r"[ab]([ab-]{0,2}[ab])?", fullmatch=True)
local_patterns = (
    local_parts | local_parts.map("{}*".format) | local_parts.map("*{}".format) | st.just("*")
)
random_address_specs = st.builds(
    AddressSpec,
    local_patterns,
    st.sampled_from(["own.example", "other.example", None]),
    st.sampled_from(["", "", "", "off", "old"]),
)


def expected_resolution(
    specs: Iterable[AddressSpec], local: str, domain: str, delimiters: str = "+"
) -> str | None:
    """Apply the documented rules one after the other to all addresses."""
    if domain not in ("own.example", "other.example", "alias.example"):
        return None
    target_domain = "own.example" if domain == "alias.example" else domain
    current_specs = [spec for spec in specs if spec.state != "old"]
    forms = [local]
    if "-" in delimiters and "-" in local:
        forms.append(local[: local.index("-")])
    steps = [(form, target_domain) for form in forms]
    for length in range(len(local), 0, -1):
        for form in forms:
            if len(form) >= length:
                steps += [
                    (f"{form[:length]}*", target_domain),
                    (f"*{form[-length:]}", target_domain),
                ]
    for pattern, spec_domain in [*steps, ("*", target_domain), *((form, None) for form in forms)]:
        for spec in current_specs:
            if (spec.local, spec.domain) == (pattern, spec_domain):
                return None if spec.state == "off" else spec.text
    return None


@pytest.fixture
async def sqlite_environment(tmp_path: Path, sqlite_template: Path) -> Environment:
    database = Database(store_fixtures.copy_sqlite_template(sqlite_template, tmp_path))
    environment = Environment(
        database, FolderStore(tmp_path / "b"), signing_secret=b"s" * 32, now=ManualClock()
    )
    await add_domain(environment, "own.example", "alias.example")
    await add_domain(environment, "other.example")
    return environment


async def test_resolution_of_random_addresses_follows_the_rules(
    sqlite_environment: Environment,
) -> None:
    environment, loop = sqlite_environment, asyncio.get_running_loop()

    async def check(
        specs: list[AddressSpec], recipients: set[tuple[str, str]], delimiters: str
    ) -> None:
        options = Options(addresses_subaddress_delimiters=delimiters)
        object.__setattr__(environment, "options", options)
        await replace_addresses(environment, *(spec.text for spec in specs))
        resolved, expected = {}, {}
        for local, domain in recipients:
            expected_spec = expected_resolution(specs, local, domain, delimiters)
            expected[f"{local}@{domain}"] = expected_spec and expected_spec.rpartition(":")[2]
            resolved[f"{local}@{domain}"] = await resolved_address(environment, f"{local}@{domain}")
        assert resolved == expected
        resolved_in_batch = await batch_resolution.load_receiving_address_rows(
            environment, list(expected)
        )
        assert expected == {
            text: row.display_address
            if (row := resolved_in_batch.get(text)) is not None and row.active
            else None
            for text in expected
        }

    domains = st.sampled_from(["own.example", "other.example", "alias.example", "far.example"])

    @given(
        st.lists(random_address_specs, unique_by=lambda spec: (spec.local, spec.domain)),
        st.sets(st.tuples(local_parts, domains), min_size=1, max_size=4),
        st.sampled_from(["+", "+-", "-"]),
    )
    @settings(
        max_examples=80,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    def check_examples(
        specs: list[AddressSpec], recipients: set[tuple[str, str]], delimiters: str
    ) -> None:
        check_coroutine = check(specs, recipients, delimiters)
        asyncio.run_coroutine_threadsafe(check_coroutine, loop).result()

    await asyncio.to_thread(check_examples)
    await environment.database.close()


# for each case: the delimiters, the addresses that exist, the recipient, and what it resolves to
DELIMITER_CASES = [
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
]  # fmt: skip


async def test_delimiter_setting_decides_where_the_label_begins(
    domains_environment: Environment,
) -> None:
    for case in each_case(DELIMITER_CASES):
        with case as (delimiters, address_specs, address, expected):
            options = Options(addresses_subaddress_delimiters=delimiters)
            object.__setattr__(domains_environment, "options", options)
            await replace_addresses(domains_environment, *address_specs.split())
            assert await resolved_address(domains_environment, address) == expected


async def test_batch_resolution_needs_two_statements(
    domains_environment: Environment, statements: list[str]
) -> None:
    await add_addresses(
        domains_environment,
        "sales@own.example",
        "*@other.example",
        "every@*",
        "off:gone@own.example",
    )
    for count in (1, 20):
        addresses = [f"s{n}@other.example" for n in range(count)]
        addresses += [
            "sales+x@alias.example",
            "every@alias.example",
            "nobody@own.example",
            "\0@own",
        ]
        del statements[:]
        resolved = await batch_resolution.load_receiving_address_rows(
            domains_environment, [*addresses, "gone@own.example"]
        )
        assert len(statements) == 2
        assert {resolved[address].display_address for address in addresses[:count]} == {
            "*@other.example"
        }
        assert [resolved[address].display_address for address in addresses[count : count + 2]] == [
            "sales@own.example", "every@*",
        ]  # fmt: skip
        assert not resolved["gone@own.example"].active
        assert not {"nobody@own.example", "\0@own"} & set(resolved)


async def test_resolution_needs_one_statement_with_many_patterns(
    domains_environment: Environment, statements: list[str]
) -> None:
    for pattern_count in (1, 30):
        await add_addresses(
            domains_environment,
            *(f"{'s' * pattern_count}{n}*@own.example" for n in range(pattern_count)),
        )
        del statements[:]
        await resolved_address(domains_environment, "sales@own.example")
        assert len(statements) == 1


async def test_sign_in_name_is_a_username_or_address_but_no_pattern(
    ada: GraphQLClient, environment: Environment
) -> None:
    await add_addresses(environment, "*@example.org", "every@*", user_id=ada.user.id)
    await add_addresses(environment, "list@example.org", kind=AddressKind.FORWARD)
    ids_by_name = {
        name: await address_resolution.find_sign_in_user_id(environment, name)
        for name in (
            "ada",
            "A.D.A",
            "ada@example.org",
            "a.da+x@Example.ORG",
            "any@example.org",
            "*@example.org",
            "every@example.org",
            "list@example.org",
            "eve",
            "",
        )
    }
    assert [name for name, found_id in ids_by_name.items() if found_id == ada.user.id] == list(
        ids_by_name
    )[:4]
    assert set(ids_by_name.values()) == {ada.user.id, None}


async def test_sign_in_works_with_alias_domain_while_it_is_active(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment
) -> None:
    await add_domain(environment, "other.example", "also.example", "off:was.example", active=False)
    user_addresses = ("ada@other.example", "off:off@other.example", "old:late@other.example")
    await add_addresses(environment, *user_addresses, user_id=ada.user.id)
    # a domain precedes an alias domain of the same name
    await add_domain(environment, "also.example")
    await add_addresses(environment, "bob@also.example", user_id=bob.user.id)
    await add_addresses(environment, "bob@other.example", user_id=ada.user.id)
    ids_by_name = {
        name: await address_resolution.find_sign_in_user_id(environment, name)
        for name in (
            "ada@other.example",
            "a.da+x@ALSO.example",
            "ada@was.example",
            "off@other.example",
            "late@other.example",
            "bob@also.example",
            "bob@other.example",
        )
    }
    bobs_id, adas_id = bob.user.id, ada.user.id
    assert list(ids_by_name.values()) == [adas_id, adas_id, None, None, None, bobs_id, adas_id]


async def test_username_can_look_like_an_address_of_another_domain(
    environment: Environment,
) -> None:
    user = await make_user(environment, "a.da")
    async with environment.write_session() as session:
        column_values = {"username": "x.y@far.example", "username_key": "xy@far.example"}
        await session.exec(update(User).values(**column_values))
    assert (
        await address_resolution.find_sign_in_user_id(environment, "xy+label@far.example")
        == user.id
    )
    assert await address_resolution.find_sign_in_user_id(environment, "xy@fa.rexample") is None


async def test_suspended_user_receives_mail_and_disabled_user_does_not(
    ada: GraphQLClient, environment: Environment
) -> None:
    inbox = (await ada.load_mailbox()).id
    for values, receives_mail in (({"suspended": True}, True), ({"active": False}, False)):
        async with environment.write_session() as session:
            await session.exec(update(User).values(**values))
        if receives_mail:
            recipient = await address_resolution.load_recipient_below_limits(
                environment, "Ada+x@example.org"
            )
            assert (recipient.user_id, recipient.mailbox_id) == (ada.user.id, inbox)
            assert recipient.address == "Ada+x@example.org"
        else:
            with pytest.raises(NotFound):
                await address_resolution.load_recipient_below_limits(environment, "ada@example.org")


async def test_discard_address_does_not_deliver_to_its_user(
    ada: GraphQLClient, environment: Environment
) -> None:
    await add_addresses(
        environment, "list@example.org", kind=AddressKind.DISCARD, user_id=ada.user.id
    )
    with pytest.raises(NotFound):
        await address_resolution.load_recipient_below_limits(environment, "list@example.org")


async def test_full_mailbox_is_refused_by_user_domain_or_default_quota(
    ada: GraphQLClient, environment: Environment
) -> None:
    used = int((await deliver_to(ada)).uid and (await ada.load_mailbox()).size)
    for table, values in (
        (User, {"quota": used}),
        (Domain, {"default_user_quota": used}),
    ):
        async with environment.write_session() as session:
            await session.exec(update(table).values(**values))
        with pytest.raises(OverQuota) as raised:
            await address_resolution.load_recipient_below_limits(environment, "ada@example.org")
        assert (raised.value.used, raised.value.limit) == (used, used)
        async with environment.write_session() as session:
            await session.exec(update(User).values(quota=None))
            await session.exec(update(Domain).values(default_user_quota=0))
        assert (
            await address_resolution.load_recipient_below_limits(environment, "ada@example.org")
        ).user_id == ada.user.id
    limited_environment = Environment(
        environment.database,
        environment.object_store,
        signing_secret=b"s",
        options=Options(users_default_quota=used),
        now=environment.now,
    )
    async with environment.write_session() as session:
        await session.exec(update(Domain).values(default_user_quota=None))
    with pytest.raises(OverQuota):
        await address_resolution.load_recipient_below_limits(limited_environment, "ada@example.org")


async def test_mail_goes_to_inbox_with_any_path(
    ada: GraphQLClient, environment: Environment
) -> None:
    async with environment.write_session() as session:
        is_inbox = col(Mailbox.special_use) == SpecialUse.INBOX
        await session.exec(update(Mailbox).where(is_inbox).values(path="Eingang"))
    recipient = await address_resolution.load_recipient_below_limits(environment, "ada@example.org")
    assert recipient.mailbox_id == (await ada.load_mailbox("Eingang")).id

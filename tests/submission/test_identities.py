"""Test identities: implied and created ones, their fields, and who can change them."""

import re
from typing import Any

import pytest
from sqlalchemy import insert, select, text

from graph.types import global_ids
from models.addresses.tables import Address, AddressKind
from models.events.event_types import EventType
from models.runtime.environment import Environment
from models.store.columns import core_table
from models.users.roles import AdminPermission
from resolvers.mailboxes import create as mailbox_create
from resolvers.mailboxes.create import NewMailboxes
from resolvers.submission.identities import mutations as identity_mutations
from tests.conftest import GraphQLClient, client_context, make_user
from tests.support.accounts.address_rows import add_domain
from tests.support.accounts.identity_operations import (
    IDENTITY_ADDRESSES_QUERY,
    IDENTITY_NODE_QUERY,
    add_address,
    change_address,
    create_identity,
    delete_identities,
    list_identities,
    load_identities_by_address,
    set_allowed_senders,
    try_create_identity,
    try_update_identities,
)
from tests.support.accounts.shared_mailboxes import create_team_mailbox, share_mailbox
from tests.support.accounts.user_operations import (
    execute_mutation,
    make_admin_of_domain,
    user_global_id,
)
from tests.support.case_loop import each_case
from tests.support.schema.error_paths import field_path, item_index
from tests.support.stores.counter_check import load_journal_entries, load_stream_position
from tests.support.stores.query_plans import record_query_plans

FORWARD = AddressKind.FORWARD


async def test_each_sender_is_listed_once_with_one_default(
    ada: GraphQLClient, environment: Environment
) -> None:
    owner = {"user_id": ada.user.id}
    address_id = await add_address(environment, "a.lovelace@example.org", name="Countess", **owner)
    address_columns: list[tuple[str, dict[str, Any]]] = [
        ("all*@example.org", {}),
        ("quiet@example.org", {"send_as": False}),
        ("off@example.org", {"active": False}),
        ("old@example.org", {"expires_at": environment.now()}),
    ]
    for sender, extra in address_columns:
        await add_address(environment, sender, **owner, **extra)
    team_targets = ["eve@example.net", "A.DA+x@Example.org"]
    forward_addresses: list[tuple[str, list[str], dict[str, Any]]] = [
        ("team@example.org", team_targets, {"name": "The team"}),
        ("others@example.org", ["bob@example.org", "https://ada@example.org/"], {}),
        ("mute@example.org", team_targets, {"send_as": False}),
    ]
    for sender, targets, extra in forward_addresses:
        await add_address(environment, sender, kind=FORWARD, forward_to=targets, **extra)
    await set_allowed_senders(
        ada, "*@example.net", "ada.l@example.com", "ada@example.org", "example.com"
    )
    identities = await load_identities_by_address(ada)
    assert {
        name: (identity["name"], identity["default"]) for name, identity in identities.items()
    } == {
        "a.lovelace@example.org": ("Countess", False),
        "ada.l@example.com": (None, False),
        "ada@example.org": (None, True),
        "team@example.org": ("The team", False),
    }
    assert identities["a.lovelace@example.org"]["id"] == global_ids.encode("Identity", address_id)
    assert (await list_identities(ada))["totalCount"] == 4
    for identity in identities.values():
        assert await ada(IDENTITY_NODE_QUERY, id=identity["id"]) == {"node": identity}


async def test_implied_identity_keeps_id_when_changed(
    ada: GraphQLClient, environment: Environment
) -> None:
    await add_address(environment, "team@example.org", kind=FORWARD, forward_to=["ada@example.org"])
    await set_allowed_senders(ada, "ada.l@example.com")
    last = await load_stream_position(environment, ada.user.id)
    for sender, identity in (await load_identities_by_address(ada)).items():
        fields = {"name": "Ada L.", "signatureText": "-- \nAda", "bcc": ["log@example.org"]}
        ((after,), errors) = await try_update_identities(ada, identity["id"], **fields)
        assert (errors, after) == ([], {**identity, **fields})
        assert (await load_identities_by_address(ada))[sender] == after
        assert await ada(IDENTITY_NODE_QUERY, id=identity["id"]) == {"node": after}
        assert (await try_update_identities(ada, identity["id"], **fields))[
            1
        ] == []  # nothing to do
        assert (await delete_identities(ada, identity["id"]))["deletedIds"] == [identity["id"]]
        assert (await load_identities_by_address(ada))[sender] == identity
        (error,) = (await delete_identities(ada, identity["id"]))["errors"]
        assert (error["code"], error["path"]) == ("CONFLICT", ["identities", "0"])
    kinds = [kind for kind, _ in await load_journal_entries(environment, ada.user.id, last)]
    assert kinds == [EventType.IDENTITY_CREATED, EventType.IDENTITY_DELETED] * 3


async def test_identity_fields_are_set_and_cleared(ada: GraphQLClient) -> None:
    await mailbox_create.create_mailboxes(client_context(ada), NewMailboxes(["Out"]))
    fields = {
        "name": "Ada", "replyTo": "A.da@example.net", "default": True,
        "bcc": ["x@example.net", "X@example.net", "y@xn--bcher-kva.example"],
        "signatureText": "-- \r\nAda", "signatureHtml": "<b onclick=x>Ada</b>"
        "<script>1</script><img src='https://example.net/a.png'><img src='cid:a@b'>",
    }  # fmt: skip
    identity = await create_identity(ada, "A.da@example.org", sentMailbox={"path": "Out"}, **fields)
    html = identity.pop("signatureHtml")
    assert "onclick" not in html
    assert "script" not in html
    assert "https://example.net/a.png" in html
    assert "cid:a@b" in html
    assert identity == {
        "id": identity["id"], "name": "Ada", "address": "ada@example.org", "default": True,
        "replyTo": "A.da@example.net", "bcc": ["x@example.net", "y@bücher.example"],
        "signatureText": "-- \r\nAda", "sentMailbox": {"path": "Out"},
    }  # fmt: skip
    cleared = dict.fromkeys(("name", "replyTo", "signatureText", "signatureHtml", "sentMailbox"))
    (after,), errors = await try_update_identities(
        ada, identity["id"], **cleared, bcc=None, default=None
    )
    assert errors == []
    assert after == {**identity, **cleared, "bcc": [], "default": True}


async def test_chosen_default_applies_while_sending_is_allowed(ada: GraphQLClient) -> None:
    await set_allowed_senders(ada, "a@example.com", "b@example.com")
    a = await create_identity(ada, "a@example.com", default=True)
    b = await create_identity(ada, "b@example.com")

    async def default_addresses() -> list[str]:
        return [
            sender
            for sender, identity in (await load_identities_by_address(ada)).items()
            if identity["default"]
        ]

    assert await default_addresses() == ["a@example.com"]
    assert (await try_update_identities(ada, b["id"], default=True))[1] == []
    assert await default_addresses() == ["b@example.com"]
    main_identity = (await load_identities_by_address(ada))["ada@example.org"]
    _, ((error),) = await try_update_identities(ada, a["id"], main_identity["id"], default=True)
    assert (error["code"], error["path"]) == ("VALIDATION", ["set", "default"])
    await set_allowed_senders(ada, "a@example.com")
    assert await default_addresses() == ["ada@example.org"]
    assert set(await load_identities_by_address(ada)) == {"a@example.com", "ada@example.org"}
    assert await ada(IDENTITY_NODE_QUERY, id=b["id"]) == {"node": None}
    await set_allowed_senders(ada, "b@example.com")
    assert await default_addresses() == ["b@example.com"]
    assert (await try_update_identities(ada, b["id"], default=False))[1] == []
    assert await default_addresses() == ["ada@example.org"]
    assert (await try_update_identities(ada, main_identity["id"], default=True))[1] == []
    assert await default_addresses() == ["ada@example.org"]


async def test_identity_follows_its_address(ada: GraphQLClient, environment: Environment) -> None:
    owner = {"user_id": ada.user.id}
    address_id = await add_address(environment, "late@example.org", **owner)
    identity = await create_identity(ada, "late@example.org", name="Late")
    await change_address(
        environment, address_id, local="early", display_address="Early@example.org"
    )
    assert (await load_identities_by_address(ada))["Early@example.org"]["id"] == identity["id"]
    second_address_id = await add_address(environment, "late@example.org", **owner)
    assert (await load_identities_by_address(ada))["late@example.org"]["id"] == global_ids.encode(
        "Identity", second_address_id
    )
    await change_address(environment, address_id, send_as=False)
    identities = await load_identities_by_address(ada)
    assert (identities["late@example.org"]["id"], identities["late@example.org"]["name"]) == (
        identity["id"],
        "Late",
    )
    assert await ada(IDENTITY_NODE_QUERY, id=global_ids.encode("Identity", second_address_id)) == {
        "node": None
    }
    assert len(identities) == 2
    (after,), _ = await try_update_identities(ada, identity["id"], name="Later")
    assert (after["id"], after["address"]) == (identity["id"], "late@example.org")


async def test_identity_can_be_created_for_any_allowed_sender(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment
) -> None:
    await add_domain(environment, "own.example", "also.example")
    await add_address(environment, "*@own.example", user_id=ada.user.id)
    await add_address(environment, "team@own.example", kind=FORWARD, forward_to=["ada@example.org"])
    await set_allowed_senders(ada, "*@example.net")
    for sender in ("any@own.example", "any@also.example", "team@also.example", "x@example.net"):
        identity = await create_identity(ada, sender)
        (error,) = (await try_create_identity(ada, sender.upper()))[1]
        assert (error["code"], error["path"]) == ("CONFLICT", ["address"])
        assert (await load_identities_by_address(ada))[sender] == identity
    for forbidden_sender in ("bob@example.org", "nobody@example.org", "x@example.com"):
        (error,) = (await try_create_identity(ada, forbidden_sender))[1]
        assert (error["code"], error["path"]) == ("FORBIDDEN_OPERATION", ["address"])
    await create_team_mailbox(bob)
    await share_mailbox(bob, ada, "POST")
    identity = await create_identity(ada, "bob@example.org", name="For Bob")
    assert (await load_identities_by_address(ada))["bob@example.org"] == identity
    await share_mailbox(bob, ada)
    assert "bob@example.org" not in await load_identities_by_address(ada)


# for each case: the arguments, and the path and index of the error
INVALID_FIELDS: list[tuple[dict[str, Any], list[str], int | None]] = [
    ({"address": "*@own.example"}, ["address"], None),
    ({"address": "ada"}, ["address"], None),
    ({"name": "Ada\r\nBcc: x@example.net"}, ["name"], None),
    ({"name": "x" * 256}, ["name"], None),
    ({"replyTo": "a\r\nb@example.net"}, ["replyTo"], None),
    ({"bcc": ["a@example.net", "a b@example.net"]}, ["bcc"], 1),
    ({"bcc": [f"a{n}@example.net" for n in range(21)]}, ["bcc"], None),
    ({"signatureText": "ä" * (32 << 10) + "x"}, ["signatureText"], None),
    ({"signatureHtml": "x" * ((64 << 10) + 1)}, ["signatureHtml"], None),
    ({"sentMailbox": {"path": "Nowhere"}}, ["sentMailbox"], None),
]


async def test_invalid_identity_fields_are_refused(ada: GraphQLClient) -> None:
    for case in each_case(INVALID_FIELDS):
        with case as (arguments, path, index):
            fields = {name: value for name, value in arguments.items() if name != "address"}
            identity, (error,) = await try_create_identity(
                ada, arguments.get("address", ada.address), **fields
            )
            assert (identity, field_path(error), item_index(error)) == (None, path, index)
            assert error["code"] == ("NOT_FOUND" if path == ["sentMailbox"] else "VALIDATION")
            identity_id = (await load_identities_by_address(ada))[ada.address]["id"]
            if fields:
                _, (error,) = await try_update_identities(ada, identity_id, **fields)
                assert (field_path(error), item_index(error)) == (["set", *path], index)
            _, (error,) = await try_update_identities(ada, identity_id)
            assert (error["code"], error["path"]) == ("VALIDATION", ["set"])


async def test_all_invalid_identity_fields_are_reported(ada: GraphQLClient) -> None:
    _, errors = await try_create_identity(ada, ada.address, name="a\nb", replyTo="x", bcc=["y"])
    assert [error["path"] for error in errors] == [["bcc", "0"], ["name"], ["replyTo"]]


async def test_foreign_sent_mailbox_is_not_found(ada: GraphQLClient, bob: GraphQLClient) -> None:
    await create_team_mailbox(bob)
    await share_mailbox(bob, ada, "LOOKUP", "READ", "INSERT", "POST")
    foreign_mailbox_id = global_ids.encode("Mailbox", (await bob.load_mailbox("Sent")).id)
    document = "{ viewer { user { sharedMailboxes { nodes { id } } } } }"
    (shared,) = (await ada(document))["viewer"]["user"]["sharedMailboxes"]["nodes"]
    for mailbox_id in (foreign_mailbox_id, shared["id"]):
        _, (error,) = await try_create_identity(ada, ada.address, sentMailbox={"id": mailbox_id})
        assert (error["code"], error["path"]) == ("NOT_FOUND", ["sentMailbox"])


async def test_identity_limit_ignores_lost_identities(
    ada: GraphQLClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 15
    monkeypatch.setattr(identity_mutations, "MAX_IDENTITIES", limit)
    await set_allowed_senders(ada, "*@example.net")
    for n in range(limit):
        await create_identity(ada, f"a{n}@example.net")
    _, (error,) = await try_create_identity(ada, ada.address)
    assert (error["code"], error["limit"], error["used"]) == (
        "LIMIT_REACHED",
        limit,
        limit,
    )
    own_id = (await load_identities_by_address(ada))[ada.address]["id"]
    _, (error,) = await try_update_identities(ada, own_id, name="Ada")
    assert (error["code"], error["path"]) == ("LIMIT_REACHED", ["identities"])
    await set_allowed_senders(ada, "a1@example.net")
    await create_identity(ada, ada.address)
    assert set(await load_identities_by_address(ada)) == {"a1@example.net", ada.address}
    await set_allowed_senders(ada, "*@example.net")
    assert len(await load_identities_by_address(ada)) == 2


async def test_identity_pages_are_complete(ada: GraphQLClient, environment: Environment) -> None:
    for n in range(7):
        await add_address(environment, f"{'äbC'[n % 3]}{n}@example.org", user_id=ada.user.id)
    for n in range(4):
        await add_address(
            environment, f"Z{n}z@example.org", kind=FORWARD, forward_to=["ada@example.org"]
        )
    await set_allowed_senders(ada, "a@example.com", "ada@example.com", "z@example.com")
    for sender in ("a@example.com", "b1@example.org", "z@example.com"):
        await create_identity(ada, sender)
    all_addresses = [
        identity["address"] for identity in (await list_identities(ada, first=50))["nodes"]
    ]
    assert len(all_addresses) == len(set(all_addresses)) == 15
    for size in (1, 2, 4, 15):
        paged_addresses: list[str] = []
        page: Any = {"pageInfo": {"endCursor": None, "hasNextPage": True}}
        while page["pageInfo"]["hasNextPage"]:
            page = await list_identities(ada, first=size, after=page["pageInfo"]["endCursor"])
            assert page["totalCount"] == 15
            assert 0 < len(page["nodes"]) <= size
            paged_addresses += [identity["address"] for identity in page["nodes"]]
        assert paged_addresses == all_addresses


async def test_identity_list_statement_count_is_independent_of_users(
    root: GraphQLClient, ada: GraphQLClient, statements: list[str]
) -> None:
    document = """{ users(first: 50) { nodes { username identities(first: 5) {
      totalCount nodes { address name default bcc sentMailbox { path } } } } } }"""

    async def create_identities(user_id: int, name: str) -> None:
        sender = f"list.{name}@example.org"
        await add_address(
            root.environment, sender, kind=FORWARD, forward_to=[f"{name}@example.org"]
        )
        for local in ("x", "y"):
            await add_address(root.environment, f"{local}{name}@example.org", user_id=user_id)
        user = {"user": {"id": global_ids.encode("User", user_id)}, "sentMailbox": {"path": "Sent"}}
        await create_identity(root, f"x{name}@example.org", **user)
        await create_identity(root, sender, **user)

    async def count_statements() -> int:
        del statements[:]
        users = (await root(document))["users"]["nodes"]
        assert all(user["identities"]["totalCount"] == 4 for user in users)
        assert not [statement for statement in statements if "signature" in statement]
        return len([statement for statement in statements if "api_keys" not in statement])

    await create_identities(ada.user.id, "ada")
    counts = [await count_statements()]
    for n in range(6):
        user = await make_user(ada.environment, f"n{n}")
        await create_identities(user.id, user.username)
    counts += [await count_statements(), await count_statements()]
    assert len(set(counts)) == 1


async def test_identity_of_another_user_cannot_be_read_or_changed(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    identity = await create_identity(ada, ada.address, name="Ada", signatureText="secret")
    before = await load_identities_by_address(ada)
    assert await bob(IDENTITY_NODE_QUERY, id=identity["id"]) == {"node": None}
    assert set(await load_identities_by_address(bob)) == {bob.address}
    document = "query ($id: ID!) { user(by: {id: $id}) { identities { nodes { id } } } }"
    assert await bob(document, id=user_global_id(ada)) == {"user": None}
    for answer in (
        await try_create_identity(bob, ada.address, user={"id": user_global_id(ada)}),
        await try_create_identity(bob, ada.address),
        await try_update_identities(bob, identity["id"], name="Eve"),
    ):
        (error,) = answer[1]
        assert error["code"] in {"NOT_FOUND", "FORBIDDEN_OPERATION"}
    (error,) = (await delete_identities(bob, identity["id"]))["errors"]
    assert (error["code"], error["path"]) == ("NOT_FOUND", ["identities", "0"])
    own_id = (await load_identities_by_address(bob))[bob.address]["id"]
    _, (error,) = await try_update_identities(bob, own_id, identity["id"], name="Eve")
    assert (error["code"], item_index(error)) == ("NOT_FOUND", 1)
    assert (await load_identities_by_address(bob))[bob.address]["name"] is None
    assert await load_identities_by_address(ada) == before


async def test_admin_changes_identities_within_permissions(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment
) -> None:
    without_bcc_maps = await make_admin_of_domain(root)
    with_bcc_maps = await make_admin_of_domain(root, AdminPermission.BCC_RULES, name="whole")
    await execute_mutation(
        root, "userCreate", "user { id }", address="x@own.example", passwordDisabled=True
    )
    other_domain_admin = await make_admin_of_domain(
        root, *AdminPermission, domain="own.example", name="other"
    )
    user, unknown_id = {"user": {"id": user_global_id(ada)}}, global_ids.encode("Identity", 1)
    identity = await create_identity(without_bcc_maps, ada.address, name="Ada", **user)
    for extra in ({"bcc": ["chief@example.org"]}, {"replyTo": "chief@example.org"}):
        _, (error,) = await try_update_identities(without_bcc_maps, identity["id"], **extra)
        assert (error["code"], error["requires"]) == ("FORBIDDEN", "BCC_RULES")
        (after,), errors = await try_update_identities(with_bcc_maps, identity["id"], **extra)
        assert (errors, {name: after[name] for name in extra}) == ([], extra)
        _, (error,) = await try_update_identities(other_domain_admin, identity["id"], **extra)
        assert error["code"] == "NOT_FOUND"
    assert (await try_update_identities(other_domain_admin, unknown_id, name="x"))[1][0][
        "code"
    ] == "NOT_FOUND"
    _, (error,) = await try_create_identity(without_bcc_maps, "chief@example.org", **user)
    assert (error["code"], error["path"]) == ("FORBIDDEN_OPERATION", ["address"])
    last = await load_stream_position(environment, ada.user.id)
    assert (await delete_identities(root, identity["id"]))["errors"] == []
    assert [kind for kind, _ in await load_journal_entries(environment, ada.user.id, last)] == [
        "IDENTITY_DELETED"
    ]


async def test_identity_is_deleted_and_restored_with_its_user(
    ada: GraphQLClient, root: GraphQLClient
) -> None:
    identity = await create_identity(ada, ada.address, name="Ada")
    user = {"users": {"ids": [user_global_id(ada)]}, "purgeAt": "2031-01-01T00:00:00Z"}
    document = """mutation ($d: UserDeleteInput!) { userDelete(input: $d) { errors { code } } }"""
    assert (await root(document, d=user))["userDelete"]["errors"] == []
    assert await root(IDENTITY_NODE_QUERY, id=identity["id"]) == {"node": None}
    user_restore = (
        """mutation ($r: UserRestoreInput!) { userRestore(input: $r) { errors { code } } }"""
    )
    assert (await root(user_restore, r={"user": {"id": user_global_id(ada)}}))["userRestore"][
        "errors"
    ] == []
    assert (await root(IDENTITY_NODE_QUERY, id=identity["id"]))["node"] == identity


async def test_shortest_identity_list_query(ada: GraphQLClient) -> None:
    assert await ada(IDENTITY_ADDRESSES_QUERY) == {
        "viewer": {"user": {"identities": {"nodes": [{"address": ada.address}]}}}
    }


async def test_forwards_of_others_are_not_read(
    ada: GraphQLClient, environment: Environment
) -> None:
    """The forwards of a user are found by an index, for any number of forwards."""
    await add_address(environment, "f@example.org", kind=FORWARD, forward_to=["x@example.net"])
    async with environment.database.engine.begin() as connection:
        addresses = core_table(Address)
        (row,) = await connection.execute(select(addresses).where(addresses.c.local == "f"))
        copies = [
            {"id": environment.new_id(), "local": f"f{n}", "forward_to": [f"x{n}@b.example"]}
            for n in range(2000)
        ]
        await connection.execute(insert(addresses), [row._asdict() | copy for copy in copies])
        if environment.database.dialect == "postgresql":
            await connection.execute(text("ANALYZE"))
    with record_query_plans(environment) as recorder:
        (plan,) = await recorder.explain_statements(
            list_identities(ada), lambda statement: "forward_target_keys" in statement
        )
    assert not re.search(r"(?i)scan (on )?(addresses|forward_target_keys)\b", plan), plan

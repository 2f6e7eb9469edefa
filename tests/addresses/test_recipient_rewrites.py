"""Recipient rewrites: management, loops, mail resolution and rights."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph.types import global_ids
from mail.addresses.address_syntax import NormalizedAddress
from mail.delivery import recipient_rewrites
from mail.envelope.smtp_replies import USER_UNKNOWN_REPLY
from mail.mime.header_encoding import NamedAddress
from mail.recipients import address_resolution
from mail.smtp import lmtp
from models.errors import NotFound
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.runtime.environment import Environment
from models.users.roles import AdminPermission
from tests.conftest import GraphQLClient, raw_message
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.mail_servers.lmtp_client import connect_lmtp
from tests.support.mail_servers.queue_worker import (
    load_inbox_rows,
    load_queue_entries,
    queue_message,
    relay_settings,
    run_queue_worker,
    wait_until_tried,
)
from tests.support.mail_servers.smtp_and_dns_servers import FakeSmtpServer, run_smtp_server
from tests.support.operations.domain_operations import (
    ALIAS_DOMAIN_CREATE,
    DOMAIN_DELETE,
    DOMAIN_RENAME,
    create_domain,
    error_summary,
    load_domain_id,
    run_mutation,
)
from tests.support.operations.rewrite_and_bcc_operations import (
    RECIPIENT_REWRITE_CREATE,
    RECIPIENT_REWRITE_DELETE,
    RECIPIENT_REWRITE_UPDATE,
    RECIPIENT_REWRITES_QUERY,
    create_bcc_rule,
    create_recipient_rewrite,
    deliver_incoming,
)
from tests.support.stores.counter_check import (
    load_journal_entries,
    load_stream_position,
    select_rows,
)

NODE = "query ($id: ID!) { node(id: $id) { id } }"


async def find_user_id(environment: Environment, address: str) -> int | None:
    """Return the ID of the user that receives mail for an address."""
    try:
        return (await address_resolution.load_recipient_below_limits(environment, address)).user_id
    except NotFound:
        return None


@pytest.mark.usefixtures("ada")
async def test_rewrite_is_created_updated_listed_and_deleted(root: GraphQLClient) -> None:
    answer, errors = await run_mutation(
        root, RECIPIENT_REWRITE_CREATE, **{"from": " In.Fo@OLD.example ", "to": "Ada@Example.org"}
    )
    assert errors == []
    created_rewrite = answer["recipientRewrite"]
    assert (created_rewrite["from"], created_rewrite["to"], created_rewrite["active"]) == (
        "info@old.example",
        "Ada@example.org",
        True,
    )
    assert (await root(NODE, id=created_rewrite["id"]))["node"] == {"id": created_rewrite["id"]}
    answer, errors = await run_mutation(
        root,
        RECIPIENT_REWRITE_UPDATE,
        recipientRewrites=[{"from": "in.fo@OLD.example"}],
        set={"from": "@old.example", "active": False},
    )
    assert errors == []
    assert answer["recipientRewrites"][0]["from"] == "@old.example"
    assert not answer["recipientRewrites"][0]["active"]
    page = (await root(RECIPIENT_REWRITES_QUERY))["recipientRewrites"]
    assert (page["totalCount"], [node["to"] for node in page["nodes"]]) == (1, ["Ada@example.org"])
    answer, errors = await run_mutation(
        root, RECIPIENT_REWRITE_DELETE, recipientRewrites=[{"id": created_rewrite["id"]}]
    )
    assert (answer["deletedIds"], errors) == ([created_rewrite["id"]], [])
    assert (await root(RECIPIENT_REWRITES_QUERY))["recipientRewrites"]["nodes"] == []
    assert (await root(NODE, id=created_rewrite["id"])) == {"node": None}


async def test_list_is_paged_from_both_ends(root: GraphQLClient, ada: GraphQLClient) -> None:
    rewrite_ids = [
        await create_recipient_rewrite(root, f"{name}@old.example", ada.address) for name in "abcde"
    ]
    seen, after = [], None
    while True:
        page = (await root(RECIPIENT_REWRITES_QUERY, first=2, after=after))["recipientRewrites"]
        seen += [node["id"] for node in page["nodes"]]
        if not page["pageInfo"]["hasNextPage"]:
            break
        after = page["pageInfo"]["endCursor"]
    assert seen == rewrite_ids
    page = (await root(RECIPIENT_REWRITES_QUERY, last=2))["recipientRewrites"]
    assert [node["id"] for node in page["nodes"]] == rewrite_ids[-2:]


INVALID_REWRITES: list[tuple[str, str, tuple[Any, ...]]] = [
    ("nobody", "ada@example.org", ("VALIDATION", ["from"], None, "ADDRESS")),
    ("a+b@old.example", "ada@example.org", ("VALIDATION", ["from"], None, "PATTERN")),
    ("a*@old.example", "ada@example.org", ("VALIDATION", ["from"], None, "PATTERN")),
    ("@", "ada@example.org", ("VALIDATION", ["from"], None, "DOMAIN")),
    ("a\u0001@old.example", "ada@example.org", ("VALIDATION", ["from"], None, "ADDRESS")),
    ("x" * 400 + "@old.example", "ada@example.org", ("VALIDATION", ["from"], None, "ADDRESS")),
    ("info@old.example", "@example.org", ("VALIDATION", ["to"], None, "ADDRESS")),
    ("info@old.example", "*@example.org", ("VALIDATION", ["to"], None, "PATTERN")),
    ("@old.example", "+x@example.org", ("VALIDATION", ["to"], None, "PATTERN")),
    ("info@old.example", "", ("VALIDATION", ["to"], None, "ADDRESS")),
    ("in.fo@example.org", "INFO@example.org", ("VALIDATION", ["to"], None, "SELF")),
    ("@example.org", "@Example.ORG", ("VALIDATION", ["to"], None, "SELF")),
    ("@Taken.example", "ada@example.org", ("CONFLICT", ["from"], None, None)),
]


@pytest.mark.usefixtures("ada")
async def test_invalid_rewrite_is_refused_by_field_and_rule(
    root: GraphQLClient, environment: Environment
) -> None:
    first_id = await create_recipient_rewrite(root, "@taken.example", "@example.org")
    second_id = await create_recipient_rewrite(root, "info@taken.example", "ada@example.org")
    before = await select_rows(environment, "SELECT * FROM recipient_rewrites")
    for source, target, expected_error in INVALID_REWRITES:
        _, errors = await run_mutation(
            root, RECIPIENT_REWRITE_CREATE, **{"from": source, "to": target}
        )
        assert error_summary(errors) == expected_error, (source, target)
    for fields, expected_error in (
        (
            {"recipientRewrites": [{"id": first_id}], "set": {"from": "info@taken.example"}},
            ("CONFLICT", ["set", "from"], None, None),
        ),
        (
            {
                "recipientRewrites": [{"id": first_id}, {"id": second_id}],
                "set": {"from": "@x.example"},
            },
            ("CONFLICT", ["set", "from"], None, None),
        ),
        (
            {
                "recipientRewrites": [{"id": first_id}, {"id": second_id}],
                "set": {"to": "@example.org"},
            },
            ("VALIDATION", ["set", "to"], None, "ADDRESS"),
        ),
        (
            {"recipientRewrites": [{"id": first_id}], "set": {}},
            ("VALIDATION", ["set"], None, "REQUIRED"),
        ),
        (
            {"recipientRewrites": [], "set": {"active": True}},
            ("VALIDATION", ["recipientRewrites"], None, "REQUIRED"),
        ),
    ):
        _, errors = await run_mutation(root, RECIPIENT_REWRITE_UPDATE, **fields)
        assert error_summary(errors) == expected_error, fields
    missing_id = global_ids.encode("RecipientRewrite", environment.new_id())
    for document, extra in (
        (RECIPIENT_REWRITE_UPDATE, {"set": {"active": False}}),
        (RECIPIENT_REWRITE_DELETE, {}),
    ):
        _, errors = await run_mutation(
            root, document, recipientRewrites=[{"id": first_id}, {"id": missing_id}], **extra
        )
        assert error_summary(errors)[:3] == ("NOT_FOUND", ["recipientRewrites"], 1)
    assert await select_rows(environment, "SELECT * FROM recipient_rewrites") == before


@pytest.mark.usefixtures("ada")
async def test_rewrite_that_makes_a_loop_is_refused(root: GraphQLClient) -> None:
    for name in ("b.example", "c.example"):
        await create_domain(root, name)
    await create_recipient_rewrite(root, "@example.org", "@b.example", active=False)
    rewrite_id = await create_recipient_rewrite(root, "@b.example", "@c.example")
    loop_error = ("VALIDATION", ["to"], None, "CYCLE")
    _, errors = await run_mutation(
        root, RECIPIENT_REWRITE_CREATE, **{"from": "@c.example", "to": "@example.org"}
    )
    assert error_summary(errors) == loop_error
    last_id = await create_recipient_rewrite(root, "x@c.example", "y@c.example")
    await create_recipient_rewrite(root, "y@c.example", "z@c.example")
    for document, fields in (
        (RECIPIENT_REWRITE_CREATE, {"from": "z@c.example", "to": "x@example.org"}),
        (
            RECIPIENT_REWRITE_UPDATE,
            {"recipientRewrites": [{"id": last_id}], "set": {"to": "x@b.example"}},
        ),
    ):
        _, errors = await run_mutation(root, document, **fields)
        assert error_summary(errors)[0::3] == ("VALIDATION", "CYCLE")
    _, errors = await run_mutation(
        root,
        RECIPIENT_REWRITE_UPDATE,
        recipientRewrites=[{"id": rewrite_id}],
        set={"to": "all@b.example"},
    )
    assert errors == []  # rewriting a domain to one of its own addresses is no loop


@given(st.dictionaries(st.tuples(st.sampled_from(["", "x", "y"]), st.sampled_from("abc")),
                         st.tuples(st.sampled_from(["", "x", "y"]), st.sampled_from("abc")),
                         max_size=7))  # fmt: skip
def test_loop_check_agrees_with_following_every_address(
    rewrites: dict[tuple[str, str], tuple[str, str]],
) -> None:
    rules = {
        NormalizedAddress(*source): f"{target_parts[0]}@{target_parts[1]}"
        for source, target_parts in rewrites.items()
        if target_parts[0] or not source[0]
    }

    def has_loop(address: NormalizedAddress) -> bool:
        seen = [address]
        while target := rules.get(address, rules.get(NormalizedAddress("", address.domain))):
            local, _, domain = target.partition("@")
            address = NormalizedAddress(local or address.local_part, domain)
            if address in seen:
                return address != seen[-1]
            seen.append(address)
        return False

    starts = [NormalizedAddress(local, domain) for local in ("x", "y", "other") for domain in "abc"]
    assert recipient_rewrites.has_rewrite_loop(rules) == any(map(has_loop, starts))


async def test_rewritten_recipient_reaches_the_expected_user(
    root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient, environment: Environment
) -> None:
    adas_id, bobs_id = ada.user.id, bob.user.id
    await run_mutation(
        root, ALIAS_DOMAIN_CREATE, alias="also.example", domain={"name": "example.org"}
    )
    await create_recipient_rewrite(root, "@old.example", "@example.org")
    await create_recipient_rewrite(root, "info@old.example", "bob@example.org")
    await create_recipient_rewrite(root, "@all.example", "b.ob@also.example")
    await create_recipient_rewrite(root, "bob@example.org", "ada@example.org")
    await create_recipient_rewrite(root, "off@old.example", "ada@example.org", active=False)
    for address, expected_id in {
        "ada@old.example": adas_id,  # keeps the local part
        "A.da+x@OLD.example": adas_id,
        # the rewrite of the address precedes that of its domain, and is applied once
        "in.fo+x@old.example": bobs_id,
        "anything@all.example": bobs_id,
        "bob@old.example": bobs_id,  # applied once
        "bob@example.org": adas_id,  # although this user exists
        # the alias domain is another recipient than the rewritten address
        "bob@also.example": bobs_id,
        "off@old.example": None,  # the rewrite of the domain applies, and this user doesn't exist
        "nobody@old.example": None,
        "ada@other.example": None,
        "ada@example.org": adas_id,
    }.items():
        assert await find_user_id(environment, address) == expected_id, address


async def test_rewriting_needs_one_statement_only_if_a_rewrite_exists(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment, statements: list[str]
) -> None:
    async def count_statements(address: str) -> int:
        del statements[:]
        assert await find_user_id(environment, address) == ada.user.id
        return len(statements)

    assert await count_statements(ada.address) == 2
    await create_recipient_rewrite(root, "@old.example", "@example.org")
    assert await count_statements(ada.address) == 2
    assert await count_statements("ada@old.example") == 3
    for address, expected in ((ada.address, None), ("ada@old.example", ada.address)):
        del statements[:]
        rewrite = await address_resolution.find_applied_rewrite(environment, address)
        assert (len(statements), rewrite and rewrite.address) == (1, expected)


async def test_recipients_of_local_users_are_rewritten(
    root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient, environment: Environment
) -> None:
    await create_recipient_rewrite(root, "@old.example", "bob@example.org")
    submission_id = await queue_message(ada, NamedAddress("any@old.example"))
    async with (
        run_smtp_server(FakeSmtpServer()) as smtp_server,
        run_queue_worker(environment, relay_settings(smtp_server)),
    ):
        await wait_until_tried(environment, submission_id)
    assert (await load_queue_entries(environment, submission_id))[
        "any"
    ].last_response == "2.0.0 Delivered here"
    assert len(await load_inbox_rows(bob)) == 1
    assert smtp_server.messages == []


async def test_envelope_keeps_the_received_recipient(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment
) -> None:
    await create_recipient_rewrite(root, "info@old.example", ada.address)
    await deliver_incoming(environment, "Info@old.example")
    ((envelope_to,),) = await select_rows(environment, "SELECT envelope_to FROM messages")
    assert "Info@old.example" in str(envelope_to)


async def test_rewrite_change_is_journaled_for_both_domains(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment
) -> None:
    await create_domain(root, "old.example")
    old_domain_id = await load_domain_id(environment, "old.example")
    new_domain_id = ada.user.domain_id
    assert new_domain_id is not None
    positions = {
        stream_id: await load_stream_position(environment, stream_id)
        for stream_id in (old_domain_id, new_domain_id, PLATFORM)
    }
    await create_recipient_rewrite(root, "@old.example", "@example.org")
    for stream, domain_ids in (
        (old_domain_id, [old_domain_id]),
        (new_domain_id, [new_domain_id]),
        (PLATFORM, sorted([old_domain_id, new_domain_id])),
    ):
        assert await load_journal_entries(environment, stream, positions[stream]) == [
            (EventType.DOMAIN_UPDATED, domain_ids)
        ]


async def test_only_admin_reads_or_changes_rewrites(
    root: GraphQLClient, ada: GraphQLClient, admin_client: GraphQLClient, environment: Environment
) -> None:
    rewrite_id = await create_recipient_rewrite(root, "@old.example", "@example.org")
    domain_admin = await make_domain_admin(environment, root.http, "dora", list(AdminPermission))
    before = await select_rows(environment, "SELECT * FROM recipient_rewrites")
    for client in (ada, domain_admin):
        assert (await client.execute(RECIPIENT_REWRITES_QUERY))["errors"][0]["extensions"][
            "code"
        ] == "FORBIDDEN"
        assert (await client(NODE, id=rewrite_id)) == {"node": None}
        for document, fields in (
            (RECIPIENT_REWRITE_CREATE, {"from": "x@old.example", "to": "ada@example.org"}),
            (
                RECIPIENT_REWRITE_UPDATE,
                {"recipientRewrites": [{"id": rewrite_id}], "set": {"active": False}},
            ),
            (RECIPIENT_REWRITE_DELETE, {"recipientRewrites": [{"id": rewrite_id}]}),
        ):
            _, errors = await run_mutation(client, document, **fields)
            assert [error["code"] for error in errors] == ["FORBIDDEN"]
    assert await select_rows(environment, "SELECT * FROM recipient_rewrites") == before
    assert (await admin_client(RECIPIENT_REWRITES_QUERY))["recipientRewrites"]["totalCount"] == 1


async def test_renamed_domain_keeps_its_rewrites_and_bcc_rules(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment
) -> None:
    await create_recipient_rewrite(root, "info@example.org", "ada@example.org")
    await create_recipient_rewrite(root, "@old.example", "@example.org")
    await create_bcc_rule(root, "@example.org", "ada@example.org")
    await create_recipient_rewrite(root, "@new.example", "@example.org")
    _, errors = await run_mutation(
        root, DOMAIN_RENAME, domain={"name": "example.org"}, newName="new.example"
    )
    assert error_summary(errors)[:2] == ("CONFLICT", ["newName"])
    _, errors = await run_mutation(
        root, DOMAIN_RENAME, domain={"name": "example.org"}, newName="next.example"
    )
    assert errors == []
    rewrites = {(row[0], row[1], row[2]) for row in await select_rows(
        environment, "SELECT local, domain, target FROM recipient_rewrites")}  # fmt: skip
    assert rewrites == {
        ("info", "next.example", "ada@next.example"),
        ("", "old.example", "@next.example"),
        ("", "new.example", "@next.example"),
    }
    assert await select_rows(environment, "SELECT bcc_to FROM bcc_rules") == [("ada@next.example",)]
    assert await find_user_id(environment, "info@next.example") == ada.user.id
    assert await find_user_id(environment, "info@example.org") is None


async def test_rewrite_can_be_disabled_after_its_domain_was_deleted(
    root: GraphQLClient, environment: Environment
) -> None:
    await create_domain(root, "brief.example")
    rewrite_id = await create_recipient_rewrite(root, "@old.example", "@brief.example")
    _, errors = await run_mutation(root, DOMAIN_DELETE, domains=[{"name": "brief.example"}])
    assert errors == []
    assert await find_user_id(environment, "ada@old.example") is None
    _, errors = await run_mutation(
        root,
        RECIPIENT_REWRITE_UPDATE,
        recipientRewrites=[{"id": rewrite_id}],
        set={"active": False},
    )
    assert errors == []
    _, errors = await run_mutation(
        root, RECIPIENT_REWRITE_DELETE, recipientRewrites=[{"id": rewrite_id}]
    )
    assert errors == []


@pytest.mark.usefixtures("ada")
async def test_concurrent_rewrites_make_no_duplicate_and_no_loop(root: GraphQLClient) -> None:
    await create_domain(root, "b.example")

    async def create_rewrite(source: str, target: str) -> list[str]:
        _, errors = await run_mutation(
            root, RECIPIENT_REWRITE_CREATE, **{"from": source, "to": target}
        )
        return [error["code"] for error in errors]

    pairs = [("@old.example", "@example.org")] * 2
    assert sorted(await asyncio.gather(*(create_rewrite(*pair) for pair in pairs))) == [
        [],
        ["CONFLICT"],
    ]
    pairs = [("@example.org", "@b.example"), ("@b.example", "@example.org")]
    assert sorted(await asyncio.gather(*(create_rewrite(*pair) for pair in pairs))) == [
        [], ["VALIDATION"],
    ]  # fmt: skip


async def test_lmtp_replies_do_not_reveal_the_rewrite(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment, tmp_path: Path
) -> None:
    await create_recipient_rewrite(root, "@old.example", "@example.org")
    listener = await lmtp.start_lmtp_listener(
        environment, "127.0.0.1", 0, spool_folder=tmp_path / "lmtp"
    )
    client = await connect_lmtp(listener.port)
    assert (await client.run_command("MAIL FROM:<carol@example.com>")).startswith("250")
    assert await client.run_command("RCPT TO:<nobody@old.example>") == USER_UNKNOWN_REPLY
    assert (await client.run_command("RCPT TO:<ada@old.example>")).startswith("250 2.1.5")
    await client.run_command("DATA")
    client.send_bytes(raw_message("Hello") + b".\r\n")
    assert (await client.read_reply()).startswith("250 2.0.0 OK: queued")
    assert len(await load_inbox_rows(ada)) == 1
    await client.close()
    await listener.close(1)

"""Filters and the Sieve script of the account are applied to released messages."""

from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from graph.types import global_ids
from mail.delivery.quarantine import QuarantineReason
from models.runtime.environment import Environment
from models.submission.tables import Submission
from models.users.tables import User
from tests.conftest import GraphQLClient, raw_message
from tests.support.accounts.user_operations import make_admin_of_domain, try_update_users
from tests.support.case_loop import each_case
from tests.support.mail.queued_deliveries import queued_envelopes
from tests.support.mail.stored_messages import message_flags, subjects_by_mailbox
from tests.support.operations.domain_operations import run_mutation
from tests.support.operations.filter_operations import add_filter, list_filters
from tests.support.operations.id_references import id_refs
from tests.support.operations.quarantine_operations import (
    CAROL_ADDRESS,
    QUARANTINE_RELEASE,
    QUARANTINE_RELEASE_ERRORS,
    SPAM_HEADERS,
    deliver_message_to,
    load_quarantine_rows,
    quarantine_message,
    set_options,
)
from tests.support.operations.sieve_operations import active_script_error, put_sieve_script
from tests.support.operations.trace_operations import message_id_header, trace_events, trace_steps
from tests.support.sample_mutations.mutation_call import MutationCall
from tests.support.schema.error_paths import field_path, item_index

pytestmark = pytest.mark.usefixtures("verify_consistency")
DAVE = "dave@far.example"


async def release_and_get_mailboxes(
    client: GraphQLClient, *item_ids: str, **arguments: Any
) -> list[str]:
    """Release these items and return the mailbox path of each message."""
    answer, errors = await run_mutation(
        client, QUARANTINE_RELEASE, quarantineItems=id_refs(item_ids), **arguments
    )
    assert errors == []
    return [message["mailbox"]["path"] for message in answer["messages"]]


async def match_counts(client: GraphQLClient) -> list[int]:
    return [filter_node["matchCount"] for filter_node in (await list_filters(client))["nodes"]]


async def test_filters_are_applied_to_released_message_and_counted(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    await ada('mutation { mailboxCreate(input: {paths: ["A", "B"]}) { errors { code } } }')
    actions = {"mailbox": {"path": "A"}, "copyTo": [{"path": "B"}], "seen": True, "keywords": ["n"]}
    await add_filter(ada, {"subject": "bill"}, actions)
    item_ids = [
        await quarantine_message(ada, "Bill"),
        await quarantine_message(ada, "Other"),
        await quarantine_message(bob, "Bill"),
    ]
    _, errors = await run_mutation(
        ada,
        QUARANTINE_RELEASE_ERRORS,
        quarantineItems=id_refs(item_ids[:1]),
        options={"validateOnly": True},
    )
    assert (errors, await match_counts(ada), await subjects_by_mailbox(ada.environment, ada)) == (
        [],
        [0],
        {},
    )
    assert await release_and_get_mailboxes(ada, *item_ids[:2]) == ["A", "INBOX"]
    assert await release_and_get_mailboxes(bob, item_ids[2]) == ["INBOX"]
    assert await subjects_by_mailbox(ada.environment, ada) == {
        "A": ["Bill"],
        "B": ["Bill"],
        "INBOX": ["Other"],
    }
    assert (await message_flags(ada, "A"), await match_counts(ada)) == ([["\\Seen", "n"]], [1])


async def test_script_files_released_message_but_sends_no_replies(
    ada: GraphQLClient, environment: Environment
) -> None:
    await put_sieve_script(
        ada,
        'require ["fileinto", "mailbox", "vacation", "enotify", "imap4flags"];\n'
        'fileinto :create :flags "\\\\Flagged" "Let in";\n'
        'vacation "I am away.";\nnotify "mailto:dave@far.example";\n',
    )
    await add_filter(ada, {}, {"reply": {"text": "Later"}})
    assert await release_and_get_mailboxes(ada, await quarantine_message(ada, "Bill")) == ["Let in"]
    assert (await message_flags(ada, "Let in"), await queued_envelopes(environment)) == (
        [["\\Flagged"]],
        [],
    )


async def test_released_message_is_stored_if_script_discards_or_rejects(ada: GraphQLClient) -> None:
    cases: list[str] = [
        "discard;",
        'require "reject"; reject "No.";',
        'require "fileinto"; fileinto "Nowhere";',
    ]
    for number, case in enumerate(each_case(cases)):
        with case as script:
            await put_sieve_script(ada, script)
            item_id = await quarantine_message(ada, f"Bill {number}")
            assert await release_and_get_mailboxes(ada, item_id) == ["INBOX"]


async def test_released_message_is_stored_if_filters_delete_or_junk_it(ada: GraphQLClient) -> None:
    await add_filter(ada, {"subject": "one"}, {"delete": True})
    await add_filter(ada, {"subject": "two"}, {"spam": True})
    item_ids = [await quarantine_message(ada, "One"), await quarantine_message(ada, "Two")]
    set_options(ada.environment, spam_quarantine_score=1)  # nor is it quarantined again
    assert await release_and_get_mailboxes(ada, *item_ids) == ["INBOX", "INBOX"]
    assert await load_quarantine_rows(ada.environment) == []


async def test_released_message_is_stored_if_script_fails(
    ada: GraphQLClient, environment: Environment
) -> None:
    await put_sieve_script(ada, 'require "include"; include "missing"; discard;')
    assert await release_and_get_mailboxes(ada, await quarantine_message(ada, "Bill")) == ["INBOX"]
    assert "missing" in await active_script_error(environment)


async def test_redirect_of_released_message_is_in_the_same_transaction(
    ada: GraphQLClient, environment: Environment
) -> None:
    await put_sieve_script(ada, f'redirect "{DAVE}";')
    first_id = await quarantine_message(ada, "Bill")
    second_id = await quarantine_message(ada, "Other")
    _, errors = await run_mutation(
        ada,
        QUARANTINE_RELEASE_ERRORS,
        quarantineItems=[{"id": first_id}],
        options={"validateOnly": True},
    )
    assert (errors, await queued_envelopes(environment)) == ([], [])
    assert await release_and_get_mailboxes(ada, first_id) == []
    assert (
        [recipient for _, recipient in await queued_envelopes(environment)],
        await subjects_by_mailbox(environment, ada),
    ) == ([DAVE], {})
    assert len(await load_quarantine_rows(environment)) == 1
    async with environment.write_session() as session:
        user_update = update(User).where(col(User.id) == ada.user.id)
        await session.exec(user_update.values(forwards_per_day=1))
    _, errors = await run_mutation(ada, QUARANTINE_RELEASE, quarantineItems=[{"id": second_id}])
    assert (errors[0]["code"], field_path(errors[0]), item_index(errors[0])) == (
        "RATE_LIMITED", ["quarantineItems"], 0,
    )  # fmt: skip
    assert (
        len(await load_quarantine_rows(environment)),
        len(await queued_envelopes(environment)),
    ) == (1, 1)


async def test_released_message_is_forwarded_unless_it_has_a_virus(
    ada: GraphQLClient, admin_client: GraphQLClient, environment: Environment
) -> None:
    assert (await try_update_users(ada, forwardTo=[DAVE]))[1] == []
    clean_id = await quarantine_message(ada, "Bill")
    virus_id = await quarantine_message(ada, "Ill", QuarantineReason(0.0, (), "Eicar"))
    assert await release_and_get_mailboxes(ada, clean_id) == ["INBOX"]
    assert [recipient for _, recipient in await queued_envelopes(environment)] == [DAVE]
    await put_sieve_script(ada, 'redirect "eve@far.example";')
    _, errors = await run_mutation(
        admin_client, QUARANTINE_RELEASE_ERRORS, quarantineItems=[{"id": virus_id}]
    )
    assert errors == []
    assert [recipient for _, recipient in await queued_envelopes(environment)] == [DAVE]
    assert await subjects_by_mailbox(environment, ada) == {"INBOX": ["Bill", "Ill"]}


async def test_released_message_in_a_mail_loop_is_not_forwarded(
    ada: GraphQLClient, environment: Environment
) -> None:
    assert (await try_update_users(ada, forwardTo=[DAVE]))[1] == []
    await put_sieve_script(ada, f'redirect "{DAVE}";')
    item_id = await quarantine_message(ada, raw_message("Round", **{"Delivered-To": ada.address}))
    assert (await release_and_get_mailboxes(ada, item_id), await queued_envelopes(environment)) == (
        ["INBOX"],
        [],
    )


async def test_delivery_trace_continues_after_release(
    ada: GraphQLClient, root: GraphQLClient, environment: Environment
) -> None:
    set_options(environment, spam_quarantine_score=50)
    raw = raw_message("Offer", **SPAM_HEADERS)
    await deliver_message_to(environment, ada, raw=raw)
    (item,) = await load_quarantine_rows(environment)
    assert await trace_events(root, queueId=item.queue_id) == [
        "ACCEPTED",
        "CLASSIFIED",
        "QUARANTINED",
    ]
    item_id = global_ids.encode("QuarantineItem", item.id)
    _, errors = await run_mutation(
        ada,
        QUARANTINE_RELEASE_ERRORS,
        quarantineItems=[{"id": item_id}],
        options={"validateOnly": True},
    )
    assert (errors, len(await trace_events(root, queueId=item.queue_id))) == ([], 3)
    await put_sieve_script(ada, f'redirect "{DAVE}"; keep;')
    await release_and_get_mailboxes(ada, item_id)
    for trace_filter in ({"queueId": item.queue_id}, {"messageIdHeader": message_id_header(raw)}):
        steps = [step for step in await trace_steps(root, **trace_filter) if step[2] == ada.address]
        assert [event for _, event, _, _ in steps] == [
            "ACCEPTED", "CLASSIFIED", "QUARANTINED", "RELEASED", "STORED", "FORWARDED",
        ]  # fmt: skip
        assert (steps[3][0], steps[3][3]) == ("SPAM", "by its owner")


@pytest.mark.usefixtures("bob")  # an account of example.org, whose domain the administrator has
async def test_trace_step_of_redirect_is_shown_to_current_domain_of_the_account(
    ada: GraphQLClient, root: GraphQLClient, environment: Environment
) -> None:
    address = {"address": "ada@other.example", "user": {"username": "ada"}, "main": True}
    assert (await MutationCall("addressCreate", address)(root))["errors"] == []
    new_admin = await make_admin_of_domain(root, domain="other.example")
    old_admin = await make_admin_of_domain(root, name="former")
    await put_sieve_script(ada, f'redirect "{DAVE}"; keep;')
    raw = raw_message("Moved")
    item_id = await quarantine_message(ada, raw, address="ada@other.example")
    await release_and_get_mailboxes(ada, item_id)
    redirect_events = {"FORWARDED", "QUEUED", "PENDING"}
    new_admin_events = await trace_events(new_admin, messageIdHeader=message_id_header(raw))
    assert redirect_events <= set(new_admin_events)
    old_admin_events = await trace_events(old_admin, messageIdHeader=message_id_header(raw))
    assert not redirect_events & set(old_admin_events)
    (submission,) = await environment.database.read(
        select(
            col(Submission.tenant_id), col(Submission.domain_id), col(Submission.queue_id)
        ).where(col(Submission.user_id).is_(None))
    )
    assert submission.tenant_id == ada.user.tenant_id != submission.domain_id
    assert await trace_events(new_admin, queueId=submission.queue_id) == ["QUEUED", "PENDING"]
    assert await trace_events(old_admin, queueId=submission.queue_id) == []


async def test_bcc_rule_of_the_domain_applies_to_released_message(
    ada: GraphQLClient, root: GraphQLClient, environment: Environment
) -> None:
    bcc_rule = {"match": ada.address, "bccTo": "copies@else.example", "direction": "RECIPIENT"}
    assert (await MutationCall("bccRuleCreate", bcc_rule)(root))["errors"] == []
    await put_sieve_script(ada, "discard;")
    assert await release_and_get_mailboxes(
        ada, await quarantine_message(ada, "Bill", sender=CAROL_ADDRESS)
    ) == ["INBOX"]
    assert await queued_envelopes(environment) == [(CAROL_ADDRESS, "copies@else.example")]

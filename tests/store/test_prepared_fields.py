"""Documents of mail clients, fields of the user, and SMTP sessions build no SQL statements."""

import pytest
from sqlalchemy import select
from sqlmodel import col

from bench.clients import DOCUMENTS
from bench.load.documents import MESSAGE_QUERY
from graph.types import global_ids
from mail.smtp.submission_backend import SmtpSubmitter
from models.auth.application_passwords import ApplicationPassword
from models.runtime.environment import Environment
from resolvers.submission.smtp_submission import SmtpSubmissionService
from tests.conftest import GraphQLClient, ManualClock, deliver_to
from tests.support.accounts.app_password_operations import create_app_password
from tests.support.accounts.key_value_operations import set_value
from tests.support.case_loop import each_case
from tests.support.lists.list_rows import add_list_rows
from tests.support.operations.autoreply_operations import set_autoreply
from tests.support.operations.push_receivers import create_push_channel
from tests.support.stores.recorded_statements import record_built_selects

LISTS = {  # with a field of their items
    "accessTokens": "current",
    "addresses": "address",
    "appPasswords": "active",
    "deletedMessages": "subject",
    "files": "filename",
    "filters": "name",
}
OBJECTS = {
    "autoreply": "autoreply { text addresses }",
    "keyValue": 'keyValue(key: "color") { value }',
    "pushChannels": "pushChannels { kind }",
}


async def test_fields_of_the_signed_in_user_build_no_statements(
    ada: GraphQLClient, bob: GraphQLClient, clock: ManualClock
) -> None:
    await add_list_rows(ada, bob, clock)
    await set_autoreply(ada, addresses=[ada.address])
    await set_value(ada, "color", "red")
    await create_push_channel(ada, kind="HTTP", endpoint="https://push.example/ada")
    pages = {
        f"{name} {argument}": f"{name}({argument}: 2) {{ edges {{ cursor }} nodes {{ {item} }} }}"
        for name, item in LISTS.items()
        for argument in ("first", "last")
    }
    built = record_built_selects(ada.environment.database)
    for case in each_case({**OBJECTS, **pages}.items()):
        with case as (_, field):
            document = f"{{ viewer {{ user {{ {field} }} }} }}"
            expected = await ada(document)
            assert all(expected["viewer"]["user"].values())
            del built[:]
            assert await ada(document) == expected
            assert built == []
    await ada("{ viewer { user { filters(filter: {active: true}) { nodes { id } } } } }")
    assert built  # a list with a filter is not prepared


async def test_documents_of_mail_clients_build_no_statements(ada: GraphQLClient) -> None:
    await ada('mutation { mailboxCreate(input: {paths: ["Project"]}) { errors { message } } }')
    message = (await deliver_to(ada)).message_id
    nodes = (await ada("{ user { mailboxes { nodes { id path } } } }"))["user"]["mailboxes"][
        "nodes"
    ]
    ids = {node["path"].lower(): node["id"] for node in nodes}
    ids["id"] = global_ids.encode("Message", message)
    built = record_built_selects(ada.environment.database)
    for case in each_case({**DOCUMENTS, "one message in full": MESSAGE_QUERY}.items()):
        with case as (_, document):
            variables = {name: key for name, key in ids.items() if f"${name}:" in document}
            expected = await ada(document, **variables)
            assert all(expected.values())
            del built[:]
            assert await ada(document, **variables) == expected
            assert built == []


@pytest.mark.parametrize("has_app_password", [False, True])
async def test_smtp_session_builds_no_statements(
    ada: GraphQLClient, environment: Environment, has_app_password: bool
) -> None:
    app_password_id = None
    if has_app_password:
        await create_app_password(ada)
        (row,) = await environment.database.read(select(col(ApplicationPassword.id)))
        app_password_id = row.id
    submitter = SmtpSubmitter(
        ada.user.id, "ada", ada.user.auth_version, None, app_password_id=app_password_id
    )
    service = SmtpSubmissionService(environment)
    assert await service.is_still_signed_in(submitter)
    built = record_built_selects(environment.database)
    assert await service.is_still_signed_in(submitter)
    assert built == []

"""The interface MailSummary: one fragment selects messages, deleted messages and held copies."""

from typing import Any

import pytest
from graphql import (
    GraphQLInterfaceType,
    GraphQLObjectType,
    get_named_type,
    is_leaf_type,
    parse,
    validate,
)

from models.runtime.environment import Environment
from models.users.roles import Role, Scope
from tests.conftest import GraphQLClient, deliver_to, make_api_key
from tests.support.operations.bulk_operations import inbox_selection, run_message_mutation
from tests.support.operations.platform.legal_hold_operations import start_legal_hold
from tests.support.schema.printed_schema import SDL

MEMBERS = ("Message", "DeletedMessage", "HeldCopy")
DIFFERENT_FIELDS = {"mailbox", "thread"}  # a Message is never without them
SUMMARY_FIELDS = """id subject preview date receivedAt size hasAttachments attachmentCount
  from { address } to { address } cc { address } bcc { address }"""
FRAGMENT = f"fragment Summary on MailSummary {{ {SUMMARY_FIELDS} }}"
OWN_MAIL = """query {{ viewer {{ user {{
  messages(first: 5) {{ nodes {{ {selection} }} }}
  deletedMessages(first: 5) {{ nodes {{ {selection} }} }} }} }} }} {fragment}"""
COPIES = """query ($id: ID!) {{ legalHold(by: {{id: $id}}) {{
  messages(first: 5) {{ nodes {{ {selection} }} }} }} }} {fragment}"""
NODE = """query ($id: ID!) { node(id: $id) { ... on MailSummary { subject } } }"""


def test_interface_has_every_field_that_all_members_have_with_one_type() -> None:
    interface = SDL.type_map["MailSummary"]
    assert isinstance(interface, GraphQLInterfaceType)
    members = [SDL.type_map[name] for name in MEMBERS]
    types_of_members: list[set[tuple[str, str]]] = []
    for member in members:
        assert isinstance(member, GraphQLObjectType)
        assert interface in member.interfaces
        types_of_members.append(
            {(name, str(field.type)) for name, field in member.fields.items() if not field.args}
        )
    common_fields = set.intersection(*types_of_members)
    assert {(name, str(field.type)) for name, field in interface.fields.items()} == common_fields
    assert len(common_fields) == 12
    assert set(SDL.get_implementations(interface).objects) == set(members)


def all_fields_without_arguments(name: str) -> str:
    """Return a selection of the fields that a member of the interface has."""
    member: Any = SDL.type_map[name]
    return " ".join(
        field_name if is_leaf_type(get_named_type(field.type)) else f"{field_name} {{ __typename }}"
        for field_name, field in member.fields.items()
        if not field.args and field_name not in DIFFERENT_FIELDS
    )


def test_one_document_selects_fields_of_all_members_without_aliases() -> None:
    fragments = " ".join(
        f"... on {name} {{ {all_fields_without_arguments(name)} }}" for name in MEMBERS
    )
    document = 'query {{ node(id: "msg_1") {{ {} }} }}'
    assert validate(SDL, parse(document.format(fragments))) == []
    for name in DIFFERENT_FIELDS:
        different = " ".join(f"... on {kind} {{ {name} {{ id }} }}" for kind in MEMBERS[:2])
        (error,) = validate(SDL, parse(document.format(different)))
        assert f"Fields '{name}' conflict" in error.message


async def load_both_ways(client: GraphQLClient, document: str, **variables: Any) -> Any:
    """Load a document twice with the fragment and twice with its fields, compiled and not."""
    by_fragment = document.format(selection="...Summary", fragment=FRAGMENT)
    by_fields = document.format(selection=SUMMARY_FIELDS, fragment="")
    answers = [
        await client(text, **variables) for text in (by_fragment, by_fragment, by_fields, by_fields)
    ]
    assert all(answer == answers[0] for answer in answers)
    return answers[0]


async def test_one_fragment_selects_messages_deleted_messages_and_copies(
    ada: GraphQLClient, admin_client: GraphQLClient
) -> None:
    for name in ("kept", "deleted"):
        await deliver_to(ada, name)
    await run_message_mutation(ada, "messageDelete", select=inbox_selection("2"))
    own_mail = (await load_both_ways(ada, OWN_MAIL))["viewer"]["user"]
    (message,), (deleted,) = own_mail["messages"]["nodes"], own_mail["deletedMessages"]["nodes"]
    assert (message["subject"], deleted["subject"]) == ("kept", "deleted")
    legal_hold_id = await start_legal_hold(admin_client, ada)
    data = await load_both_ways(admin_client, COPIES, id=legal_hold_id)
    copies = {copy["subject"]: copy for copy in data["legalHold"]["messages"]["nodes"]}
    for own in (message, deleted):
        assert copies[own["subject"]] | {"id": None} == own | {"id": None}
    for item in (message, deleted):
        assert await ada(NODE, id=item["id"]) == {"node": {"subject": item["subject"]}}


@pytest.mark.parametrize(
    ("scope", "code"), [(Scope.SUBMIT, "FORBIDDEN"), (Scope.SETTINGS, "FORBIDDEN")]
)
async def test_interface_needs_the_scope_of_its_members(
    scope: Scope, code: str, ada: GraphQLClient, environment: Environment
) -> None:
    await deliver_to(ada, "kept")
    own_mail = await ada(OWN_MAIL.format(selection="id", fragment=""))
    (message,) = own_mail["viewer"]["user"]["messages"]["nodes"]
    secret = await make_api_key(
        environment, "key", user_id=ada.user.id, role=Role.USER, scopes=[scope]
    )
    limited = GraphQLClient(ada.http, environment, ada.user, secret)
    response = await limited.execute(NODE, id=message["id"])
    assert response["errors"][0]["extensions"]["code"] == code

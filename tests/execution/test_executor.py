"""Plans: what is compiled, when, and what becomes of values that do not fit."""

import logging
from datetime import timedelta
from typing import Any

import pytest
import strawberry
from graphql import GraphQLObjectType, get_named_type, parse
from graphql.execution import Executor
from graphql.pyutils import is_awaitable
from strawberry.types import get_object_definition

from graph.execution import compiled_executor
from graph.execution.compiled_executor import CompiledExecutor, executor_class
from graph.execution.operation_execution import ExecutableSchema, OperationContext
from graph.execution.plain_executor import PlainExecutor
from graph.execution.resolver_plans import (
    FALLBACK_REASONS,
    MAX_CONDITION_OUTCOMES,
    MAX_FALLBACKS,
    PLAN_COUNTERS,
    PlanCounters,
)
from graph.nodes import NODE_TYPES
from graph.schema import schema
from graph.types.row_mapping import NodeView
from mail.limits.sending_rates import FullRateWindow, record_refusal
from mail.search import index_worker
from models.queue.rate_values import RateFrame
from models.runtime.environment import Environment
from models.users.tables import LimitSource
from resolvers.auth import security_log
from resolvers.auth.security_log import NewSecurityEvent
from resolvers.context import Viewer
from tests.conftest import Client, context, receive
from tests.support.accounts import authenticators
from tests.support.sample_mutations import CALLS


@strawberry.interface
class Named:
    name: str


@strawberry.type
class Cat(Named):
    lives: int


@strawberry.type
class Dog(Named):
    good: bool
    friend: Cat | None = None


@strawberry.type
class Deep:
    n: int
    below: list["Deep"]
    one: "Deep | None"


CATS = [Cat(name="Tom", lives=9), Cat(name="Kit", lives=7)]


def chain(depth: int) -> Deep:
    found = Deep(n=0, below=[], one=None)
    for n in range(1, depth):
        found = Deep(n=n, below=[found], one=found)
    return found


@strawberry.type
class Query:
    @strawberry.field
    def cats(self, info: strawberry.Info) -> list[Cat]:
        return info.context.memo_of_test or CATS

    @strawberry.field
    def pets(self) -> list[Named]:
        return [CATS[0], Dog(name="Rex", good=True, friend=CATS[1])]

    @strawberry.field
    def either(self, dog: bool = False) -> Cat | Dog:
        return Dog(name="Rex", good=True) if dog else CATS[0]

    @strawberry.field
    def deep(self) -> Deep:
        return chain(60)


class Told(OperationContext):
    """An operation that hands values to the schema of this test."""

    memo_of_test: Any = None


@pytest.fixture
def small() -> ExecutableSchema:
    return ExecutableSchema(query=Query, types=[Cat, Dog])


@pytest.fixture
def tally() -> PlanCounters:
    for one in PLAN_COUNTERS:
        one.clear()
    return PLAN_COUNTERS


async def ask(
    small: ExecutableSchema, world: Environment, text: str, *, cats: Any = None, **variables: Any
) -> tuple[Any, list[Any]]:
    context = Told(world, Viewer())
    context.memo_of_test = cats
    Told.memo_of_test = cats  # `fresh` copies the fields of the dataclass alone
    found = await small.execute(text, variables, context)
    return found.data, [error.formatted for error in found.errors or []]


async def test_a_document_is_compiled_when_it_is_seen_again(
    small: ExecutableSchema, world: Environment, tally: PlanCounters
) -> None:
    text = "{ cats { name lives } }"
    assert await ask(small, world, text) == (
        {"cats": [{"name": "Tom", "lives": 9}, {"name": "Kit", "lives": 7}]},
        [],
    )
    assert not tally.compiled
    await ask(small, world, text)
    assert tally.compiled == {"cats": 1}
    await ask(small, world, text)
    assert tally.compiled == {"cats": 1}
    assert tally.used == {"cats": 2}
    assert not tally.fell


async def test_interfaces_and_unions_are_compiled(
    small: ExecutableSchema, world: Environment, tally: PlanCounters
) -> None:
    text = """query ($dog: Boolean!) {
      pets { __typename name ... on Dog { good friend { name } } ... on Cat { lives } }
      either(dog: $dog) { ... on Cat { lives } ... on Dog { good name } } }"""
    pets = [
        {"__typename": "Cat", "name": "Tom", "lives": 9},
        {"__typename": "Dog", "name": "Rex", "good": True, "friend": {"name": "Kit"}},
    ]
    for dog in (True, False, True):
        either = {"good": True, "name": "Rex"} if dog else {"lives": 9}
        assert await ask(small, world, text, dog=dog) == ({"pets": pets, "either": either}, [])
    assert tally.compiled == {"pets": 1, "either": 1}
    assert not tally.fell
    assert not tally.refused


async def test_directives_have_a_plan_for_each_outcome(
    small: ExecutableSchema, world: Environment, tally: PlanCounters
) -> None:
    names = "abcd"
    fields = " ".join(f"{name}: name @include(if: ${name})" for name in names)
    head = ", ".join(f"${name}: Boolean!" for name in names)
    text = f"query ({head}) {{ cats {{ lives {fields} }} }}"
    for _ in range(2):
        for number in range(2 ** len(names)):
            given = {name: bool(number >> nth & 1) for nth, name in enumerate(names)}
            wanted = {"lives": 9} | {name: "Tom" for name in names if given[name]}
            data, errors = await ask(small, world, text, **given)
            assert (data["cats"][0], list(data["cats"][0]), errors) == (wanted, list(wanted), [])
    assert tally.compiled == {"cats": MAX_CONDITION_OUTCOMES}


@pytest.mark.parametrize("text", [
    "{ deep " + "{ n below " * 40 + "{ n }" + "}" * 40 + " }",
    "{ deep " + "{ n one " * 55 + "{ n }" + "}" * 55 + " }",
    "{ cats { " + " ".join(f"a{n}: name" for n in range(3000)) + " } }",
])  # fmt: skip
async def test_what_python_cannot_nest_is_answered_all_the_same(
    small: ExecutableSchema, world: Environment, text: str
) -> None:
    document, context = parse(text), Told(world, Viewer())
    Told.memo_of_test = None
    types = small.documents.schema  # past the limits, which do not let such documents in
    results = []
    for kind in (CompiledExecutor, PlainExecutor):
        found = kind.build(types, document, context_value=context).execute_operation()
        results.append(await found if is_awaitable(found) else found)
    ours, plain = results
    assert ours == plain
    assert ours.errors is None


async def test_a_value_that_does_not_fit_is_graphql_cores(
    small: ExecutableSchema, world: Environment, tally: PlanCounters
) -> None:
    text = "{ cats { lives name } }"
    wrong: Any = [Cat(name="Tom", lives=2**40)]
    first = await ask(small, world, text, cats=wrong)
    assert first[0] is None
    assert first[1][0]["path"] == ["cats", 0, "lives"]
    for _ in range(2):
        assert await ask(small, world, text, cats=wrong) == first
    assert tally.fell["cats"] > 0
    assert FALLBACK_REASONS["fell", "GraphQLError"] > 0


async def test_a_plan_that_falls_back_too_often_is_given_up(
    small: ExecutableSchema, world: Environment, tally: PlanCounters
) -> None:
    text = "{ cats { name lives } }"
    wrong: Any = [Cat(name="Tom", lives=2**40)]
    for _ in range(MAX_FALLBACKS + 20):
        await ask(small, world, text, cats=wrong)
    tried = tally.compiled["cats"]  # the list, its items, and both where they may be null
    assert tally.fell["cats"] == tried * MAX_FALLBACKS
    assert tally.given_up["cats"] == tried
    assert (await ask(small, world, text))[0]["cats"][0] == {"name": "Tom", "lives": 9}


def test_an_executor_that_is_not_the_known_one_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert executor_class(is_compiled=True) is CompiledExecutor
    assert executor_class(is_compiled=False) is PlainExecutor

    def complete_value(self: Any, something: Any) -> None:
        """A graphql-core to come."""

    monkeypatch.setattr(Executor, "complete_value", complete_value)
    with caplog.at_level(logging.WARNING, compiled_executor.__name__):
        assert executor_class(is_compiled=True) is PlainExecutor
    assert len(caplog.records) == 1


def plain_fields(kind: type[NodeView]) -> str:
    """A selection of all plain fields of a type, and of those below."""
    printed = schema.documents.schema.type_map[get_object_definition(kind, strict=True).name]
    assert isinstance(printed, GraphQLObjectType)
    return _selection(printed, 4)


def _selection(kind: GraphQLObjectType, depth: int) -> str:
    parts = []
    for name, field in kind.fields.items():
        definition = field.extensions["strawberry-definition"]
        below = get_named_type(field.type)
        if not definition.is_basic_field:
            continue
        if not isinstance(below, GraphQLObjectType):
            parts.append(name)
        elif depth:
            parts.append(f"{name} {_selection(below, depth - 1)}")
    return "{ " + " ".join(parts) + " }"


LISTED = {
    "AccountExport": "viewer { user { exports %s } }",
    "Message": "viewer { user { messages { nodes %s } } }",
    "Mailbox": "viewer { user { mailboxes %s } }",
    "Address": "viewer { user { addresses { edges { cursor node %s } pageInfo { endCursor } } } }",
    "AddressRegisterEntry": 'viewer { user { addressRegister(query: "") %s } }',
    "AdminLogEntry": "adminLog { nodes %s }",
    "ApiKey": "apiKeys { nodes %s }",
    "AppPassword": "viewer { user { appPasswords %s } }",
    "ArchivedMessage": "viewer { user { archivedMessages { nodes %s } } }",
    "Audit": "audits { nodes %s }",
    "AuditAccess": "audits { nodes { accessLog { nodes %s } } }",
    "AuditedMessage": "audits { nodes { messages { nodes %s } } }",
    "AuthEvent": "viewer { user { authLog { nodes %s } } }",
    "BccRule": "bccRules { nodes %s }",
    "Certificate": "certificates { nodes %s }",
    "Connector": "connectors { nodes %s }",
    "ConnectorRun": "connectors { nodes { runs { nodes %s } } }",
    "DkimKey": "dkimKeys { nodes %s }",
    "Domain": "domains { nodes %s }",
    "DomainAlias": "domainAliases { nodes %s }",
    "File": "viewer { user { files { nodes %s } } }",
    "FileShare": "viewer { user { files { nodes { shares %s } } } }",
    "Filter": "viewer { user { filters { nodes %s } } }",
    "Identity": "viewer { user { identities { nodes %s } } }",
    "KeyValue": 'keyValues(prefix: "ui/") { nodes %s }',
    "Label": "viewer { user { labels %s } }",
    "PushChannel": "viewer { user { pushChannels %s } }",
    "QuarantineItem": "quarantine { nodes %s }",
    "RateHold": "rateHolds { nodes %s }",
    "RateLimit": "rateLimits { nodes %s }",
    "QueueEntry": "queue { nodes %s }",
    "RecipientRewrite": "recipientRewrites { nodes %s }",
    "ForwardingHost": "forwardingHosts { nodes %s }",
    "RelayHost": "relayHosts { nodes %s }",
    "TlsPolicy": "tlsPolicies { nodes %s }",
    "Transport": "transports { nodes %s }",
    "SavedSearch": "viewer { user { savedSearches %s } }",
    "SenderRule": "senderRules { nodes %s }",
    "SettingChange": 'setting(key: "submission.maxRecipients") { history { nodes %s } }',
    "SieveScript": "viewer { user { sieveScripts { nodes %s } } }",
    "Task": "tasks { nodes %s }",
    "Submission": "viewer { user { submissions { nodes %s } } }",
    "User": "users { nodes %s }",
    "WebauthnKey": "viewer { user { webauthnKeys %s } }",
    "Webhook": "webhooks { nodes %s }",
    "WebhookDelivery": "webhooks { nodes { deliveries { nodes %s } } }",
}
CALLED = {  # where it is not the plural
    "AccountExport": "exports",
    "Address": "addresses", "AddressRegisterEntry": "addressRegister",
    "AdminLogEntry": "adminLog", "AuditAccess": "accessLog",
    "AuditedMessage": "messages", "AuthEvent": "authLog", "ConnectorRun": "runs",
    "DomainAlias": "domainAliases", "FileShare": "shares", "Identity": "identities",
    "QuarantineItem": "quarantine", "QueueEntry": "queue", "TlsPolicy": "tlsPolicies",
    "SavedSearch": "savedSearches", "SettingChange": "history", "WebhookDelivery": "deliveries",
}  # fmt: skip
OF_ADMINS = {
    "AdminLogEntry",
    "Audit",
    "AuditAccess",
    "AuditedMessage",
    "BccRule",
    "DkimKey",
    "Certificate",
    "Domain",
    "DomainAlias",
    "ForwardingHost",
    "RateHold",
    "RateLimit",
    "RecipientRewrite",
    "RelayHost",
    "SettingChange",
    "TlsPolicy",
    "Transport",
    "User",
    "Webhook",
    "WebhookDelivery",
}
BY_ID = {"AccessToken", "Autoreply", "ComposeRequest", "Thread"}  # no list has them


@pytest.mark.parametrize("name", LISTED)
async def test_types_of_lists_are_compiled_wholly(
    name: str, ada: Client, root: Client, tally: PlanCounters
) -> None:
    await receive(ada, "Hello")
    await security_log.log_event_separately(
        context(ada), NewSecurityEvent("totp enable", ada.user.id)
    )
    await (await CALLS["settingSet"](ada, root))(root)
    await (await CALLS["domainAliasCreate"](ada, root))(root)
    await (await CALLS["appPasswordCreate"](ada, root))(ada)
    await (await CALLS["accountExport"](ada, root))(ada)
    await (await CALLS["archiveRestore"](ada, root))(ada)  # of a message that is deleted
    await CALLS["fileShareDelete"](ada, root)  # of a link that stays
    await (await CALLS["auditCreate"](ada, root))(root)
    await receive(ada, "Copied")
    await authenticators.key_on(ada)
    await (await CALLS["keyValueSet"](ada, root))(ada)
    await (await CALLS["labelSet"](ada, root))(ada)
    await (await CALLS["savedSearchSet"](ada, root))(ada)
    await (await CALLS["senderRuleCreate"](ada, root))(ada)
    await (await CALLS["sieveScriptPut"](ada, root))(ada)
    await (await CALLS["webhookTest"](ada, root))(root)
    await (await CALLS["bccRuleCreate"](ada, root))(root)
    await (await CALLS["dkimKeySet"](ada, root))(root)
    await (await CALLS["recipientRewriteCreate"](ada, root))(root)
    for way in ("relayHost", "transport", "tlsPolicy", "forwardingHost"):
        await (await CALLS[f"{way}Create"](ada, root))(root)
    await (await CALLS["rateLimitSet"](ada, root))(root)
    end = ada.world.now() + timedelta(days=1)
    full = FullRateWindow(ada.user.id, LimitSource.USER, 1, RateFrame.DAY, end)
    await record_refusal(ada.world, ada.user.id, full)
    await (await CALLS["certificateSet"](ada, root))(root)
    await (await CALLS["pushChannelSet"](ada, root))(ada)
    await CALLS["quarantineRelease"](ada, root)  # of what stays
    await CALLS["queueHold"](ada, root)
    await (await CALLS["connectorRun"](ada, root))(ada)
    while await index_worker.index_next_batch(ada.world):
        pass
    for one in tally:  # what was done so far is none of lists
        one.clear()
    client = root if name in OF_ADMINS else ada
    text = (
        "{ " + LISTED[name] % plain_fields(NODE_TYPES[name]) + f" }} # {ada.world.database.dialect}"
    )
    first, *answers = [await client(text) for _ in range(3)]
    if name == "ApiKey":  # its own use is noted when it has been used
        for each in (first, *answers):
            for use in ("lastUsedAt", "lastUsedIp"):
                del each["apiKeys"]["nodes"][0][use]
    assert answers == [first] * 2
    listed = "mailboxes" if name == "Mailbox" else f"{name[0].lower()}{name[1:]}s"
    wanted = CALLED.get(name, listed)
    assert tally.compiled[wanted] + tally.compiled["nodes"] >= 1
    assert not tally.fell
    assert not tally.refused[wanted]


def test_every_type_with_rows_is_in_a_list_or_known_not_to_be() -> None:
    assert {*LISTED, *BY_ID} == set(NODE_TYPES)

"""Compiled resolver plans: when they are made, and the fallback for values that do not fit."""

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
from graph.execution.compiled_executor import CompiledExecutor, supported_executor_class
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
from mail.limits.sending_rates import FullRateWindow, record_and_report_refusal_once
from mail.search import index_worker
from models.auth.credentials import Throttle
from models.auth.security_log import SecurityEventAction
from models.queue.rate_values import RatePeriod
from models.runtime.environment import Environment
from models.users.tables import LimitSource
from resolvers.auth import security_log
from resolvers.auth.security_event_rows import NewSecurityEvent
from resolvers.viewer import Viewer
from tests.conftest import GraphQLClient, client_context, deliver_to
from tests.support.accounts import authenticators
from tests.support.lists.list_rows import add_rows
from tests.support.sample_mutations import SAMPLE_CALLS


@strawberry.interface
class NamedAnimal:
    name: str


@strawberry.type
class Cat(NamedAnimal):
    lives: int


@strawberry.type
class Dog(NamedAnimal):
    good: bool
    friend: Cat | None = None


@strawberry.type
class DeepNode:
    n: int
    below: list["DeepNode"]
    one: "DeepNode | None"


CATS = [Cat(name="Tom", lives=9), Cat(name="Kit", lives=7)]


def nested_chain(depth: int) -> DeepNode:
    node = DeepNode(n=0, below=[], one=None)
    for n in range(1, depth):
        node = DeepNode(n=n, below=[node], one=node)
    return node


@strawberry.type
class Query:
    @strawberry.field
    def cats(self, info: strawberry.Info) -> list[Cat]:
        return info.context.memo_of_test or CATS

    @strawberry.field
    def pets(self) -> list[NamedAnimal]:
        return [CATS[0], Dog(name="Rex", good=True, friend=CATS[1])]

    @strawberry.field
    def either(self, dog: bool = False) -> Cat | Dog:
        return Dog(name="Rex", good=True) if dog else CATS[0]

    @strawberry.field
    def deep(self) -> DeepNode:
        return nested_chain(60)


class ContextWithCats(OperationContext):
    """An operation context that passes values to the schema of this test."""

    memo_of_test: Any = None


@pytest.fixture
def small_schema() -> ExecutableSchema:
    return ExecutableSchema(query=Query, types=[Cat, Dog])


@pytest.fixture
def plan_counters() -> PlanCounters:
    for counter in PLAN_COUNTERS:
        counter.clear()
    return PLAN_COUNTERS


async def execute(
    small_schema: ExecutableSchema,
    environment: Environment,
    text: str,
    *,
    cats: Any = None,
    **variables: Any,
) -> tuple[Any, list[Any]]:
    client_context = ContextWithCats(environment, Viewer())
    client_context.memo_of_test = cats
    ContextWithCats.memo_of_test = cats  # a new context copies only the fields of the dataclass
    result = await small_schema.execute(text, variables, client_context)
    return result.data, [error.formatted for error in result.errors or []]


async def test_document_is_compiled_on_second_use(
    small_schema: ExecutableSchema, environment: Environment, plan_counters: PlanCounters
) -> None:
    text = "{ cats { name lives } }"
    assert await execute(small_schema, environment, text) == (
        {"cats": [{"name": "Tom", "lives": 9}, {"name": "Kit", "lives": 7}]},
        [],
    )
    assert not plan_counters.compiled
    await execute(small_schema, environment, text)
    assert plan_counters.compiled == {"cats": 1}
    await execute(small_schema, environment, text)
    assert plan_counters.compiled == {"cats": 1}
    assert plan_counters.used == {"cats": 2}
    assert not plan_counters.fallback


async def test_interfaces_and_unions_are_compiled(
    small_schema: ExecutableSchema, environment: Environment, plan_counters: PlanCounters
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
        assert await execute(small_schema, environment, text, dog=dog) == (
            {"pets": pets, "either": either},
            [],
        )
    assert plan_counters.compiled == {"pets": 1, "either": 1}
    assert not plan_counters.fallback
    assert not plan_counters.refused


async def test_directives_have_a_plan_for_each_outcome(
    small_schema: ExecutableSchema, environment: Environment, plan_counters: PlanCounters
) -> None:
    names = "abcd"
    fields = " ".join(f"{name}: name @include(if: ${name})" for name in names)
    head = ", ".join(f"${name}: Boolean!" for name in names)
    text = f"query ({head}) {{ cats {{ lives {fields} }} }}"
    for _ in range(2):
        for number in range(2 ** len(names)):
            conditions = {name: bool(number >> index & 1) for index, name in enumerate(names)}
            expected = {"lives": 9} | {name: "Tom" for name in names if conditions[name]}
            data, errors = await execute(small_schema, environment, text, **conditions)
            assert (data["cats"][0], list(data["cats"][0]), errors) == (
                expected,
                list(expected),
                [],
            )
    assert plan_counters.compiled == {"cats": MAX_CONDITION_OUTCOMES}


@pytest.mark.parametrize("text", [
    "{ deep " + "{ n below " * 40 + "{ n }" + "}" * 40 + " }",
    "{ deep " + "{ n one " * 55 + "{ n }" + "}" * 55 + " }",
    "{ cats { " + " ".join(f"a{n}: name" for n in range(3000)) + " } }",
])  # fmt: skip
async def test_too_deep_or_wide_document_is_executed_without_a_plan(
    small_schema: ExecutableSchema, environment: Environment, text: str
) -> None:
    document, client_context = parse(text), ContextWithCats(environment, Viewer())
    ContextWithCats.memo_of_test = None
    # without the limits, which refuse such documents
    graphql_schema = small_schema.documents.schema
    results = []
    for executor in (CompiledExecutor, PlainExecutor):
        result = executor.build(
            graphql_schema, document, context_value=client_context
        ).execute_operation()
        results.append(await result if is_awaitable(result) else result)
    compiled, plain = results
    assert compiled == plain
    assert compiled.errors is None


async def test_value_that_does_not_fit_falls_back_to_graphql_core(
    small_schema: ExecutableSchema, environment: Environment, plan_counters: PlanCounters
) -> None:
    text = "{ cats { lives name } }"
    wrong_cats: Any = [Cat(name="Tom", lives=2**40)]
    first = await execute(small_schema, environment, text, cats=wrong_cats)
    assert first[0] is None
    assert first[1][0]["path"] == ["cats", 0, "lives"]
    for _ in range(2):
        assert await execute(small_schema, environment, text, cats=wrong_cats) == first
    assert plan_counters.fallback["cats"] > 0
    assert FALLBACK_REASONS["fallback", "GraphQLError"] > 0


async def test_plan_is_dropped_after_too_many_fallbacks(
    small_schema: ExecutableSchema, environment: Environment, plan_counters: PlanCounters
) -> None:
    text = "{ cats { name lives } }"
    wrong_cats: Any = [Cat(name="Tom", lives=2**40)]
    for _ in range(MAX_FALLBACKS + 20):
        await execute(small_schema, environment, text, cats=wrong_cats)
    plan_count = plan_counters.compiled["cats"]  # the list, its items, and both as nullable types
    assert plan_counters.fallback["cats"] == plan_count * MAX_FALLBACKS
    assert plan_counters.given_up["cats"] == plan_count
    assert (await execute(small_schema, environment, text))[0]["cats"][0] == {
        "name": "Tom",
        "lives": 9,
    }


def test_unknown_graphql_core_executor_disables_compilation(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert supported_executor_class(is_compiled=True) is CompiledExecutor
    assert supported_executor_class(is_compiled=False) is PlainExecutor

    def complete_value(self: Any, something: Any) -> None:
        """Differs from the known method of graphql-core."""

    monkeypatch.setattr(Executor, "complete_value", complete_value)
    with caplog.at_level(logging.WARNING, compiled_executor.__name__):
        assert supported_executor_class(is_compiled=True) is PlainExecutor
    assert len(caplog.records) == 1


def plain_field_selection(view_type: type[NodeView]) -> str:
    """Return a selection of all plain fields of a type and of the types below it."""
    graphql_type = schema.documents.schema.type_map[
        get_object_definition(view_type, strict=True).name
    ]
    assert isinstance(graphql_type, GraphQLObjectType)
    return _plain_selection(graphql_type, 4)


def _plain_selection(kind: GraphQLObjectType, depth: int) -> str:
    parts = []
    for name, field in kind.fields.items():
        definition = field.extensions["strawberry-definition"]
        field_type = get_named_type(field.type)
        if not definition.is_basic_field:
            continue
        if not isinstance(field_type, GraphQLObjectType):
            parts.append(name)
        elif depth:
            parts.append(f"{name} {_plain_selection(field_type, depth - 1)}")
    return "{ " + " ".join(parts) + " }"


LIST_BY_TYPE = {
    "UserExport": "viewer { user { exports { nodes %s } } }",
    "Message": "viewer { user { messages { nodes %s } } }",
    "Mailbox": "viewer { user { mailboxes { nodes %s } } }",
    "Address": "viewer { user { addresses { edges { cursor node %s } pageInfo { endCursor } } } }",
    "ContactSuggestion": 'viewer { user { contactSuggestions(query: "") %s } }',
    "AuditLogEntry": "auditLog { nodes %s }",
    "ApiKey": "apiKeys { nodes %s }",
    "AppPassword": "viewer { user { appPasswords { nodes %s } } }",
    "DeletedMessage": "viewer { user { deletedMessages { nodes %s } } }",
    "LegalHold": "legalHolds { nodes %s }",
    "LegalHoldAccess": "legalHolds { nodes { accessLog { nodes %s } } }",
    "HeldCopy": "legalHolds { nodes { messages { nodes %s } } }",
    "SecurityEvent": "viewer { user { securityLog { nodes %s } } }",
    "BccRule": "bccRules { nodes %s }",
    "Certificate": "certificates { nodes %s }",
    "ClusterNode": "clusterNodes { nodes %s }",
    "Connector": "connectors { nodes %s }",
    "ConnectorRun": "connectors { nodes { runs { nodes %s } } }",
    "DeletedUser": "deletedUsers { nodes %s }",
    "DkimKey": "dkimKeys { nodes %s }",
    "Domain": "domains { nodes %s }",
    "AliasDomain": "aliasDomains { nodes %s }",
    "File": "viewer { user { files { nodes %s } } }",
    "FileShare": "viewer { user { files { nodes { shares %s } } } }",
    "Filter": "viewer { user { filters { nodes %s } } }",
    "Identity": "viewer { user { identities { nodes %s } } }",
    "KeyValueEntry": 'keyValues(filter: {prefix: "ui/"}) { nodes %s }',
    "Label": "viewer { user { labels %s } }",
    "OauthClient": "oauthClients { nodes %s }",
    "OauthGrant": "viewer { user { oauthGrants { nodes %s } } }",
    "PushChannel": "viewer { user { pushChannels %s } }",
    "QuarantineItem": "quarantine { nodes %s }",
    "RateLimitHold": "rateLimitHolds { nodes %s }",
    "RateLimit": "rateLimits { nodes %s }",
    "QueueEntry": "queue { nodes %s }",
    "RecipientRewrite": "recipientRewrites { nodes %s }",
    "ForwardingHost": "forwardingHosts { nodes %s }",
    "RelayHost": "relayHosts { nodes %s }",
    "TlsPolicy": "tlsPolicies { nodes %s }",
    "Transport": "transports { nodes %s }",
    "NetworkBan": "banPolicy { activeBans { nodes %s } }",
    "LoginPenalty": "loginPenalties { nodes %s }",
    "Resource": "resources { nodes %s }",
    "SavedSearch": "viewer { user { savedSearches %s } }",
    "SenderRule": "senderRules { nodes %s }",
    "SettingHistoryEntry": 'setting(by: {key: "undo.window"}) { history { nodes %s } }',
    "SieveScript": "viewer { user { sieveScripts { nodes %s } } }",
    "Task": "tasks { nodes %s }",
    "Submission": "viewer { user { submissions { nodes %s } } }",
    "User": "users { nodes %s }",
    "WebauthnKey": "viewer { user { webauthnKeys %s } }",
    "Webhook": "webhooks { nodes %s }",
    "WebhookDelivery": "webhooks { nodes { deliveries { nodes %s } } }",
}
LIST_FIELD_NAMES = {  # where the name is not the plural
    "KeyValueEntry": "keyValues", "NetworkBan": "activeBans", "LoginPenalty": "loginPenalties",
    "UserExport": "exports",
    "Address": "addresses", "ContactSuggestion": "contactSuggestions",
    "AuditLogEntry": "auditLog", "LegalHoldAccess": "accessLog",
    "HeldCopy": "messages", "SecurityEvent": "securityLog", "ConnectorRun": "runs",
    "AliasDomain": "aliasDomains", "FileShare": "shares", "Identity": "identities",
    "QuarantineItem": "quarantine", "QueueEntry": "queue", "TlsPolicy": "tlsPolicies",
    "SavedSearch": "savedSearches", "SettingHistoryEntry": "history",
    "WebhookDelivery": "deliveries",
}  # fmt: skip
TYPES_OF_ADMINS = {
    "AuditLogEntry",
    "ClusterNode",
    "LegalHold",
    "LegalHoldAccess",
    "HeldCopy",
    "OauthClient",
    "BccRule",
    "DkimKey",
    "Certificate",
    "DeletedUser",
    "Domain",
    "AliasDomain",
    "ForwardingHost",
    "LoginPenalty",
    "NetworkBan",
    "RateLimitHold",
    "RateLimit",
    "RecipientRewrite",
    "RelayHost",
    "Resource",
    "SettingHistoryEntry",
    "TlsPolicy",
    "Transport",
    "User",
    "Webhook",
    "WebhookDelivery",
}
TYPES_WITHOUT_LIST = {
    "AccessToken",
    "Attachment",
    "Autoreply",
    "BanPolicy",
    "ComposeRequest",
    "Session",
    "Thread",
}  # no list of pages contains them


async def test_types_in_lists_are_compiled_completely(
    ada: GraphQLClient, root: GraphQLClient, plan_counters: PlanCounters
) -> None:
    await create_object_of_every_type(ada, root)
    for name in LIST_BY_TYPE:
        await assert_list_is_compiled(name, root if name in TYPES_OF_ADMINS else ada, plan_counters)


async def create_object_of_every_type(ada: GraphQLClient, root: GraphQLClient) -> None:
    await deliver_to(ada, "Hello")
    await security_log.log_event_separately(
        client_context(ada), NewSecurityEvent(SecurityEventAction.TOTP_ENABLED, ada.user.id)
    )
    await (await SAMPLE_CALLS["settingSet"](ada, root))(root)
    await (await SAMPLE_CALLS["aliasDomainCreate"](ada, root))(root)
    await (await SAMPLE_CALLS["appPasswordCreate"](ada, root))(ada)
    await (await SAMPLE_CALLS["userExport"](ada, root))(ada)
    await (await SAMPLE_CALLS["deletedMessageRestore"](ada, root))(ada)
    await SAMPLE_CALLS["fileShareDelete"](ada, root)  # of a link that is not deleted
    await (await SAMPLE_CALLS["legalHoldCreate"](ada, root))(root)
    await deliver_to(ada, "Copied")
    await authenticators.register_security_key(ada)
    await (await SAMPLE_CALLS["keyValueSet"](ada, root))(ada)
    await (await SAMPLE_CALLS["labelCreate"](ada, root))(ada)
    await (await SAMPLE_CALLS["savedSearchCreate"](ada, root))(ada)
    await (await SAMPLE_CALLS["senderRuleCreate"](ada, root))(ada)
    await (await SAMPLE_CALLS["sieveScriptSet"](ada, root))(ada)
    await (await SAMPLE_CALLS["webhookTest"](ada, root))(root)
    await (await SAMPLE_CALLS["bccRuleCreate"](ada, root))(root)
    await (await SAMPLE_CALLS["dkimKeySet"](ada, root))(root)
    await (await SAMPLE_CALLS["recipientRewriteCreate"](ada, root))(root)
    for object_name in ("relayHost", "transport", "tlsPolicy", "forwardingHost"):
        await (await SAMPLE_CALLS[f"{object_name}Create"](ada, root))(root)
    await (await SAMPLE_CALLS["resourceCreate"](ada, root))(root)
    await (await SAMPLE_CALLS["clusterNodeAdd"](ada, root))(root)
    await SAMPLE_CALLS["oauthGrantRevoke"](ada, root)  # of a grant that is not revoked
    await (await SAMPLE_CALLS["banAdd"](ada, root))(root)
    await add_rows(ada.environment, Throttle, 1, until=ada.environment.now() + timedelta(days=1))
    await (await SAMPLE_CALLS["rateLimitSet"](ada, root))(root)
    end = ada.environment.now() + timedelta(days=1)
    full_window = FullRateWindow(ada.user.id, LimitSource.USER, 1, RatePeriod.DAY, end)
    await record_and_report_refusal_once(ada.environment, ada.user.id, full_window)
    await (await SAMPLE_CALLS["certificateSet"](ada, root))(root)
    await (await SAMPLE_CALLS["pushChannelSet"](ada, root))(ada)
    await SAMPLE_CALLS["quarantineRelease"](ada, root)  # only prepares the item
    await SAMPLE_CALLS["queueHold"](ada, root)
    await (await SAMPLE_CALLS["connectorStart"](ada, root))(ada)
    while await index_worker.index_next_batch_and_record_contacts(ada.environment):
        pass


async def assert_list_is_compiled(
    name: str, client: GraphQLClient, plan_counters: PlanCounters
) -> None:
    """Assert that a list of this type is compiled, and that its results stay the same."""
    for counter in plan_counters:  # ignores the plans that were compiled so far
        counter.clear()
    selection = LIST_BY_TYPE[name] % plain_field_selection(NODE_TYPES[name])
    text = f"{{ {selection} }} # {client.environment.database.dialect}"
    first, *answers = [await client(text) for _ in range(3)]
    if name == "ApiKey":  # its own use is stored after the request
        for answer in (first, *answers):
            for field in ("lastUsedAt", "lastUsedIp"):
                del answer["apiKeys"]["nodes"][0][field]
    assert answers == [first] * 2, name
    plural = "mailboxes" if name == "Mailbox" else f"{name[0].lower()}{name[1:]}s"
    list_field = LIST_FIELD_NAMES.get(name, plural)
    assert plan_counters.compiled[list_field] + plan_counters.compiled["nodes"] >= 1, name
    assert not plan_counters.fallback, name
    assert not plan_counters.refused[list_field], name


def test_every_node_type_is_tested_or_has_no_list() -> None:
    assert {*LIST_BY_TYPE, *TYPES_WITHOUT_LIST} == set(NODE_TYPES)

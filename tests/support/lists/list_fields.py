"""The list fields of the schema, and selections of them with random arguments."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from graphql import (
    GraphQLField,
    GraphQLSchema,
    get_named_type,
    is_leaf_type,
    is_required_argument,
)

from tests.support.differential.random_documents import DocumentGenerator, graphql_literal
from tests.support.lists.list_rows import SETTINGS

PAGE_ARGUMENTS = ("first", "after", "last", "before")
USER_SELECTIONS = [f'user(by: {{username: "{name}"}}) {{ %s }}' for name in ("ada", "bob")]
VIEWER_SELECTION = "viewer { user { %s } }"
# Lists that are not only read from tables of the database. The tests of their areas compare their
# orders and pages: tests/blobs, tests/cache, tests/cluster, tests/health, tests/logs, tests/metrics
# and tests/sessions.
LISTS_OUTSIDE_THE_DATABASE = {
    "Query.blobPrefixes",
    "Query.blobs",
    "Query.components",
    "Query.cacheEntries",
    "Query.logs",
    "Query.metrics",
    "Query.sessionSummaries",
    "Query.sessions",
    "Query.userAffinities",
}
# By type: the selections that contain a list of the type, with %s for the list.
PARENT_SELECTIONS = {
    "Query": ["%s"],
    "SearchDiagnostics": ["searchDiagnostics { %s }"],
    "User": [*USER_SELECTIONS, VIEWER_SELECTION],
    "Domain": [
        f'domain(by: {{name: "{name}"}}) {{ %s }}' for name in ("example.org", "d0.example")
    ],
    "Mailbox": [
        *(
            f'mailbox(by: {{path: "{path}"}}, user: {{username: "{user}"}}) {{ %s }}'
            for user in ("ada", "bob")
            for path in ("INBOX", "Keep")
        ),
        VIEWER_SELECTION % "mailboxes { nodes { %s } }",
    ],
    "Thread": [
        user % "messages(first: 2) { nodes { thread { %s } } }"
        for user in (*USER_SELECTIONS, VIEWER_SELECTION)
    ],
    "SavedSearch": [user % "savedSearches { %s }" for user in (*USER_SELECTIONS, VIEWER_SELECTION)],
    "Connector": [
        user % "connectors(first: 2) { nodes { %s } }"
        for user in (*USER_SELECTIONS, VIEWER_SELECTION)
    ],
    "Viewer": ["viewer { %s }"],
    "BanPolicy": ["banPolicy { %s }"],
    "RelayHost": ["relayHosts(first: 2) { nodes { %s } }"],
    "Resource": ["resources(first: 2) { nodes { %s } }"],
    "LegalHold": ["legalHolds(first: 12) { nodes { %s } }"],
    "Webhook": [
        f'webhooks(first: 2, filter: {{user: {{username: "{u}"}}}}) {{ nodes {{ %s }} }}'
        for u in ("ada", "bob")
    ],
    "Setting": [f'setting(by: {{key: "{key}"}}) {{ %s }}' for key in SETTINGS],
}
# Values of arguments that match some of the rows, but not all.
MESSAGE_FILTERS = (
    "{seen: true}",
    "{seen: false, flagged: false}",
    '{query: "word1"}',
    '{query: "word2"}',
    '{subject: "letter 3"}',
    '{from: "carol"}',
    '{or: [{subject: "2"}, {query: "word0"}]}',
    '{not: {query: "word1"}}',
    '{and: [{query: "answer"}, {seen: false}]}',
    '{mailbox: {path: "Keep"}}',
    '{text: "answer 1"}',
)
ARGUMENT_VALUES = {
    "MessageFilter": MESSAGE_FILTERS,
    "UserSelection": ('{usernames: ["ada"]}', '{usernames: ["bob", "ada"]}'),
    "WebhookFilter": (
        "{type: MESSAGE_ADDED}",
        '{user: {username: "ada"}}',
        '{type: MESSAGE_ADDED, user: {username: "bob"}}',
    ),
    "Query.keyValues.filter": (
        '{store: "default"}',
        '{store: "default", recursive: true, user: {username: "ada"}}',
    ),
    "User.contactSuggestions.query": ('"a"', '"address1"'),
    "Query.deliveryTrace.filter": (
        '{queueId: "queue1"}',
        '{sender: "carol@example.com"}',
        '{recipient: "example.org", since: "2029-01-01T00:00:00Z"}',
    ),
    "SearchDiagnostics.hits.filter": ('{query: "word1"}', '{query: "answer"}'),
    "NetworkBanFilter": ('{networks: ["203.0.113.2", "203.0.113.4/31"]}',),
    "LoginPenaltyFilter": ('{networks: ["203.0.113.0/30"]}',),
    "String": ('"a"', '"1"', '"user"', '"letter"', '"t1"', '"example"', '"store"'),
    "UserRef": ('{username: "ada"}', '{username: "bob"}'),
}


@dataclass(frozen=True)
class ListField:
    """A field that returns a page; it has the argument `first`."""

    parent: str
    name: str
    field: GraphQLField

    @property
    def key(self) -> str:
        return f"{self.parent}.{self.name}"

    @property
    def is_connection(self) -> bool:
        """True if the field returns a connection, not a plain list."""
        return "edges" in self.fields

    @property
    def fields(self) -> dict[str, GraphQLField]:
        named_type: Any = get_named_type(self.field.type)
        return dict(named_type.fields)

    @property
    def node_type(self) -> Any:
        named_type: Any = get_named_type(self.field.type)
        return get_named_type(named_type.fields["nodes"].type) if self.is_connection else named_type


def list_fields(schema: GraphQLSchema) -> Iterator[ListField]:
    """Yield every field of the schema that returns a page."""
    for parent_type in schema.type_map.values():
        for name, field in getattr(parent_type, "fields", {}).items():
            if "first" in getattr(field, "args", {}) and parent_type is not schema.mutation_type:
                yield ListField(parent_type.name, name, field)


def page_selection(list_field: ListField, random: Random) -> str:
    """A random selection of a page: leaf fields of its nodes, cursors, and sometimes the count."""
    leaves = [
        name
        for name, field in list_field.node_type.fields.items()
        if is_leaf_type(get_named_type(field.type))
        and not any(map(is_required_argument, field.args.values()))
    ]
    names = " ".join(
        {*(["id"] if "id" in leaves else []), *random.sample(leaves, min(3, len(leaves)))}
    )
    if not list_field.is_connection:
        return f"{{ {names} }}"
    count = "totalCount" if random.random() < 0.4 and "totalCount" in list_field.fields else ""
    page_info = "pageInfo { hasNextPage hasPreviousPage startCursor endCursor }"
    return f"{{ nodes {{ {names} }} edges {{ cursor }} {page_info} {count} }}"


def required_arguments(
    schema: GraphQLSchema, list_field: ListField, random: Random
) -> dict[str, str]:
    """Random literals for the required arguments."""
    names = [n for n, a in list_field.field.args.items() if is_required_argument(a)]
    return {name: _literal(schema, list_field, name, random) for name in names}


def filter_arguments(
    schema: GraphQLSchema, list_field: ListField, random: Random
) -> dict[str, str]:
    """Random literals for the required arguments and for some others that don't select the page."""
    names = [
        name
        for name in list_field.field.args
        if name not in PAGE_ARGUMENTS and random.random() < 0.5
    ]
    chosen = {name: _literal(schema, list_field, name, random) for name in names}
    return required_arguments(schema, list_field, random) | chosen


def _literal(schema: GraphQLSchema, list_field: ListField, name: str, random: Random) -> str:
    argument_type = list_field.field.args[name].type
    for key in (f"{list_field.key}.{name}", get_named_type(argument_type).name):
        if key in ARGUMENT_VALUES:
            return random.choice(ARGUMENT_VALUES[key])
    return graphql_literal(
        DocumentGenerator(schema, random.randrange(1 << 30)).input_value(argument_type, 2),
        argument_type,
    )


def page_arguments(list_field: ListField, cursors: list[str], random: Random) -> dict[str, str]:
    """Random paging arguments for a list with these cursors."""
    is_backward = "last" in list_field.field.args and random.random() < 0.4
    arguments = {"last" if is_backward else "first": str(random.choice([0, 1, 2, 3, 5, 50]))}
    if cursors:
        arguments["before" if is_backward else "after"] = f'"{random.choice(cursors)}"'
    return arguments


def aliased_field(
    list_field: ListField, alias: str, literals: dict[str, str], selected: str
) -> str:
    """The field with an alias and arguments."""
    arguments = ", ".join(f"{name}: {value}" for name, value in literals.items())
    return f"{alias}: {list_field.name}({arguments}) {selected}"

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

from tests.support.differential.random_documents import Author, written
from tests.support.lists.list_rows import SETTINGS

PAGE = ("first", "after", "last", "before")
USERS = [f'user(by: {{username: "{name}"}}) {{ %s }}' for name in ("ada", "bob")]
VIEWER = "viewer { user { %s } }"
# The selections around the lists of each type, with %s for the list.
PARENTS = {
    "Query": ["%s"],
    "User": [*USERS, VIEWER],
    "Domain": [
        f'domain(by: {{name: "{name}"}}) {{ %s }}' for name in ("example.org", "d0.example")
    ],
    "Mailbox": [
        *(
            f'mailbox(by: {{path: "{path}"}}, user: {{username: "{user}"}}) {{ %s }}'
            for user in ("ada", "bob")
            for path in ("INBOX", "Keep")
        ),
        VIEWER % "mailboxes { %s }",
    ],
    "Thread": [
        user % "messages(first: 2) { nodes { thread { %s } } }" for user in (*USERS, VIEWER)
    ],
    "SavedSearch": [user % "savedSearches { %s }" for user in (*USERS, VIEWER)],
    "Connector": [user % "connectors(first: 2) { nodes { %s } }" for user in (*USERS, VIEWER)],
    "Audit": ["audits(first: 12) { nodes { %s } }"],
    "Webhook": [
        f'webhooks(first: 2, user: {{username: "{u}"}}) {{ nodes {{ %s }} }}'
        for u in ("ada", "bob")
    ],
    "Setting": [f'setting(key: "{key}") {{ %s }}' for key in SETTINGS],
}
# Values of arguments that find some of the rows, and not all.
FILTERS = (
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
ARGUMENTS = {
    "MessageFilter": FILTERS,
    "UserSelection": ('{usernames: ["ada"]}', '{usernames: ["bob", "ada"]}'),
    "Query.webhooks.type": ('"*"', '"messageAdded"', '"message*"'),
    "Query.keyValues.store": ('"default"',),
    "User.addressRegister.query": ('"a"', '"address1"'),
    "Query.messageTraceEvents.filter": (
        '{sender: "carol@example.com"}',
        '{recipient: "example.org", since: "2029-01-01T00:00:00Z"}',
    ),
    "Query.searchLookup.filter": ('{query: "word1"}', '{query: "answer"}'),
    "String": ('"a"', '"1"', '"user"', '"letter"', '"t1"', '"example"', '"store"'),
    "UserRef": ('{username: "ada"}', '{username: "bob"}'),
}


@dataclass(frozen=True)
class ListField:
    """A field that answers pages: `first` is one of its arguments."""

    parent: str
    name: str
    field: GraphQLField

    @property
    def key(self) -> str:
        return f"{self.parent}.{self.name}"

    @property
    def connected(self) -> bool:
        """True if the field answers a connection, not a plain list."""
        return "edges" in self.fields

    @property
    def fields(self) -> dict[str, GraphQLField]:
        kind: Any = get_named_type(self.field.type)
        return dict(kind.fields)

    @property
    def node(self) -> Any:
        kind: Any = get_named_type(self.field.type)
        return get_named_type(kind.fields["nodes"].type) if self.connected else kind


def list_fields(schema: GraphQLSchema) -> Iterator[ListField]:
    """Yield every field of the schema that answers pages."""
    for kind in schema.type_map.values():
        for name, field in getattr(kind, "fields", {}).items():
            if "first" in getattr(field, "args", {}) and kind is not schema.mutation_type:
                yield ListField(kind.name, name, field)


def selection(of: ListField, dice: Random) -> str:
    """Return a selection of a page: plain fields of its nodes, cursors, and maybe the count."""
    leaves = [
        name
        for name, field in of.node.fields.items()
        if is_leaf_type(get_named_type(field.type))
        and not any(map(is_required_argument, field.args.values()))
    ]
    names = " ".join(
        {*(["id"] if "id" in leaves else []), *dice.sample(leaves, min(3, len(leaves)))}
    )
    if not of.connected:
        return f"{{ {names} }}"
    total = "totalCount" if dice.random() < 0.4 and "totalCount" in of.fields else ""
    page = "pageInfo { hasNextPage hasPreviousPage startCursor endCursor }"
    return f"{{ nodes {{ {names} }} edges {{ cursor }} {page} {total} }}"


def required(schema: GraphQLSchema, of: ListField, dice: Random) -> dict[str, str]:
    """Return random values, as literals, of the arguments that must be given."""
    needed = [n for n, a in of.field.args.items() if is_required_argument(a)]
    needed += ["users"] if of.name == "searchLookup" else []  # an administrator has no mail
    return {name: _literal(schema, of, name, dice) for name in needed}


def narrowing(schema: GraphQLSchema, of: ListField, dice: Random) -> dict[str, str]:
    """Return random values, as literals, of the arguments that are not about the page."""
    names = [name for name in of.field.args if name not in PAGE and dice.random() < 0.5]
    chosen = {name: _literal(schema, of, name, dice) for name in names}
    return required(schema, of, dice) | chosen


def _literal(schema: GraphQLSchema, of: ListField, name: str, dice: Random) -> str:
    kind = of.field.args[name].type
    for key in (f"{of.key}.{name}", get_named_type(kind).name):
        if key in ARGUMENTS:
            return dice.choice(ARGUMENTS[key])
    return written(Author(schema, dice.randrange(1 << 30)).input(kind, 2), kind)


def paging(of: ListField, cursors: list[str], dice: Random) -> dict[str, str]:
    """Return random arguments of a page of a list that has these cursors."""
    back = "last" in of.field.args and dice.random() < 0.4
    given = {"last" if back else "first": str(dice.choice([0, 1, 2, 3, 5, 50]))}
    if cursors and dice.random() < 0.6:
        given["before" if back else "after"] = f'"{dice.choice(cursors)}"'
    return given


def call(of: ListField, alias: str, given: dict[str, str], selected: str) -> str:
    """Return the field with an alias and arguments."""
    arguments = ", ".join(f"{name}: {value}" for name, value in given.items())
    return f"{alias}: {of.name}({arguments}) {selected}"

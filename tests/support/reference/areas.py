"""Areas of the schema: the package in which a root field or a type is defined."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from inspect import unwrap
from typing import Any

from graphql import (
    GraphQLEnumType,
    GraphQLField,
    GraphQLInputObjectType,
    GraphQLInterfaceType,
    GraphQLNamedType,
    GraphQLObjectType,
    GraphQLScalarType,
    GraphQLSchema,
    GraphQLUnionType,
    get_named_type,
)

from graph.execution.strawberry_definitions import strawberry_definition
from graph.schema import schema as strawberry_schema

# Types with Strawberry's definitions, which the printed schema doesn't have.
_DEFINED_TYPES = strawberry_schema._schema.type_map  # noqa: SLF001
OPERATIONS = {"Query": "query", "Mutation": "mutation", "Subscription": "subscription"}
SHARED_AREA = "shared"
BUILT_IN_SCALARS = ("ID", "Int", "Float", "String", "Boolean")
# Titles and introductions, in the order of the table of contents.
AREAS = {
    "messages": ("Messages", "Read, change, move and delete messages, threads and labels."),
    "mailboxes": ("Mailboxes", "Create, rename, share and empty mailboxes."),
    "search": ("Search", "Search messages, save searches, and suggest contacts."),
    "submission": ("Drafts and sending", "Write drafts, send, schedule, cancel and redirect."),
    "changes": ("Changes", "Follow changes of an account, a mailbox, users or domains."),
    "filters": ("Filters and Sieve", "Sort incoming mail by filters or Sieve scripts."),
    "autoreply": ("Automatic replies", "Answer incoming messages while a user is away."),
    "spam": ("Spam and quarantine", "Sender rules, spam policies and quarantined messages."),
    "files": ("Files", "Store files, share them by link, and attach them to messages."),
    "transfer": ("Import and export", "Bring mail in, and take an account along."),
    "connectors": ("Connectors", "Fetch mail from IMAP and POP3 accounts on other servers."),
    "notifications": ("Webhooks and push", "Send events to web servers and devices."),
    "auth": ("Sign-in and credentials", "Tokens, keys, passwords, second factors, security log."),
    "oauth": ("OAuth clients", "Programs that sign users in, and the access that users give them."),
    "identity_providers": ("Identity providers", "Sign-in at the provider of an organization."),
    "sessions": ("Sessions", "List open connections, end them, and wait for their end."),
    "users": ("Users", "Create, change, suspend, delete and restore users."),
    "domains": ("Domains and DKIM", "Mail domains, their aliases, limits, DNS and DKIM keys."),
    "addresses": ("Addresses", "Addresses, temporary addresses, forwards and rewrites."),
    "resources": ("Resources", "Rooms, things and groups that are booked by invitations."),
    "queue": ("Queue and rate limits", "Outbound queue, message trace and sending limits."),
    "cluster": ("Nodes", "Nodes of the platform, their states, and the users that they serve."),
    "throttling": ("Bans", "Refuse the networks of clients that fail too often."),
    "routing": ("Routing", "Relay hosts, transports, TLS policies and forwarding hosts."),
    "certificates": ("Certificates", "TLS certificates, own or from an ACME server."),
    "blobs": ("Blobs", "List, download, store and delete objects of the object stores."),
    "cache": ("Caches", "List, flush and remove cached values and pending writes."),
    "admin": ("Administration", "Settings, audit log, legal holds, tasks and key-value entries."),
    "health": ("Health and control", "Components, storage, stop and reload of servers."),
    "logs": ("Log", "Read and follow the log of all processes."),
    "metrics": ("Usage and statistics", "Usage counters, and values over time for charts."),
    SHARED_AREA: ("Shared types", "Types of several areas: errors, pages, references, scalars."),
}


@dataclass(frozen=True, slots=True)
class RootField:
    """A query, mutation or subscription."""

    operation: str  # "query", "mutation" or "subscription"
    name: str
    field: GraphQLField

    @property
    def area(self) -> str:
        """The area of the module that defines the field."""
        return _area_of_module(self._resolver.__module__)

    @property
    def page_name(self) -> str:
        """The name of the page, without the suffix. A query and a subscription can share a name."""
        queries: Any = _DEFINED_TYPES["Query"]
        is_second = self.operation == "subscription" and self.name in queries.fields
        return f"{self.name}-subscription" if is_second else self.name

    @property
    def resolver_name(self) -> str:
        """The function that resolves the field, with its module and class."""
        return f"{self._resolver.__module__}.{self._resolver.__qualname__}"

    @property
    def _resolver(self) -> Any:
        root: Any = _DEFINED_TYPES[self.operation.capitalize()]
        definition = strawberry_definition(root.fields[self.name])
        return unwrap(definition.base_resolver.wrapped_func)


@dataclass(slots=True)
class AreaContents:
    """The root fields and types of an area, sorted by name."""

    root_fields: list[RootField] = field(default_factory=list)
    types: list[GraphQLNamedType] = field(default_factory=list)


@cache
def area_of_type(type_: GraphQLNamedType) -> str:
    """The area of the module that defines the class of a type."""
    definition: Any = strawberry_definition(_DEFINED_TYPES[type_.name])
    cls = getattr(definition, "origin", None) or getattr(definition, "wrapped_cls", None)
    return _area_of_module(getattr(cls, "__module__", ""))


def _area_of_module(module: str) -> str:
    packages = module.split(".")
    return packages[1] if len(packages) > 1 and packages[1] in AREAS else SHARED_AREA


def iter_root_fields(schema: GraphQLSchema) -> Iterator[RootField]:
    """Yield all queries, mutations and subscriptions, sorted by name within each operation."""
    for type_name, operation in OPERATIONS.items():
        root = schema.type_map[type_name]
        assert isinstance(root, GraphQLObjectType)
        for name, definition in sorted(root.fields.items()):
            yield RootField(operation, name, definition)


def is_connection_part(type_: GraphQLNamedType) -> bool:
    """True for the Connection and Edge types of lists, which all have the same fields."""
    return isinstance(type_, GraphQLObjectType) and type_.name.endswith(("Connection", "Edge"))


def contents_by_area(schema: GraphQLSchema) -> dict[str, AreaContents]:
    """Sort root fields and types into areas.

    Without introspection types, root types, connections, and the input and payload types of a
    single mutation, which the page of the mutation describes.
    """
    areas = {name: AreaContents() for name in AREAS}
    described_with_mutation = set()
    for root_field in iter_root_fields(schema):
        areas[root_field.area].root_fields.append(root_field)
        if root_field.operation == "mutation":
            described_with_mutation |= {own_type.name for own_type in own_types(root_field, schema)}
    for type_ in sorted(schema.type_map.values(), key=lambda one: one.name.lower()):
        is_hidden = type_.name.startswith("__") or type_.name in (*OPERATIONS, *BUILT_IN_SCALARS)
        if not (is_hidden or is_connection_part(type_) or type_.name in described_with_mutation):
            areas[area_of_type(type_)].types.append(type_)
    return areas


def own_types(root_field: RootField, schema: GraphQLSchema) -> list[GraphQLNamedType]:
    """The input and payload types that only this mutation uses."""
    return [
        type_
        for type_ in (*_argument_types(root_field.field), get_named_type(root_field.field.type))
        if isinstance(type_, GraphQLInputObjectType | GraphQLObjectType)
        and len(_uses(schema)[type_.name]) == 1
    ]


def _argument_types(definition: GraphQLField) -> Iterator[GraphQLNamedType]:
    for argument in definition.args.values():
        yield get_named_type(argument.type)


@cache
def _uses(schema: GraphQLSchema) -> dict[str, set[str]]:
    """The coordinates of fields and arguments that use a type, by its name."""
    uses = defaultdict[str, set[str]](set)
    for type_ in schema.type_map.values():
        if not isinstance(type_, GraphQLObjectType | GraphQLInterfaceType | GraphQLInputObjectType):
            continue
        for name, definition in type_.fields.items():
            coordinate = f"{type_.name}.{name}"
            uses[get_named_type(definition.type).name].add(coordinate)
            if isinstance(definition, GraphQLField):
                for argument_type in _argument_types(definition):
                    uses[argument_type.name].add(coordinate)
    return uses


def kind_of_type(type_: GraphQLNamedType) -> str:
    """The word for the kind of a type, such as "Input"."""
    kinds = {
        GraphQLObjectType: "Object",
        GraphQLInterfaceType: "Interface",
        GraphQLUnionType: "Union",
        GraphQLInputObjectType: "Input",
        GraphQLEnumType: "Enum",
        GraphQLScalarType: "Scalar",
    }
    return next(word for kind, word in kinds.items() if isinstance(type_, kind))

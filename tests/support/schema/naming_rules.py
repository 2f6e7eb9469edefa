"""Rules for names and shapes of a schema. Each yields the coordinates of what breaks it."""

import re
from collections.abc import Callable, Iterator
from typing import Any

from graphql import (
    GraphQLEnumType,
    GraphQLInputObjectType,
    GraphQLNamedType,
    GraphQLNonNull,
    GraphQLObjectType,
    GraphQLSchema,
    NullValueNode,
    get_named_type,
    is_specified_directive,
    is_specified_scalar_type,
)

Rule = Callable[[GraphQLSchema], Iterator[str]]

PASCAL = re.compile(r"([A-Z][a-z0-9]*)+", re.ASCII)
CAMEL = re.compile(r"[a-z][a-z0-9]*([A-Z][a-z0-9]*)*", re.ASCII)
UPPER = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*", re.ASCII)
WORD = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])")

FETCHING = {"all", "fetch", "find", "get", "list", "load", "query", "read", "search", "show"}
VERBS = set(
    """
    activate add apply build cancel check clean collect copy create deactivate deduplicate delete
    disable drain enable export flush forward hold import increment kick lift move optimize purge
    put rebuild recalculate register release reload remove rename repair replay request rescan
    reschedule reset restore revoke rotate run send set start stop submit subscribe test unpack
    unset unsubscribe update upload
    """.split()  # noqa: SIM905 - a list of lines would be a page long
)
ADJECTIVES = set(
    """
    activated active all answered certified compressed current custom default deleted dirty
    disabled draft empty enabled encrypted exact exhausted failing fixed flagged folded forwarded
    global hidden internal main marked muted notified only permanent pinned previous proven
    proxied recent
    recursive refused related replayed
    required running searchable seen shared snoozed spam subscribed suspended temporary
    unseen valid
    """.split()  # noqa: SIM905 - a list of lines would be a page long
)
REQUESTS = set(  # of inputs and arguments: what is to be done along the way
    """
    allow apply async check create delete disable2fa encrypt force hold include learn mark pin
    replace request require reverse sanitize show skip subscribe unsubscribe validate
    """.split()  # noqa: SIM905 - a list of lines would be a page long
)
SUFFIXES = ("Enum", "Interface", "Object", "Type", "Union")
INPUTS = ("Filter", "Input", "Match", "Patch", "Ref", "Selection")  # what inputs are called
BOUNDS = ("After", "At", "Before", "Since", "Until")  # what times are called
PAGING = {"after": "String", "before": "String", "first": "Int", "last": "Int"}


def words(name: str) -> list[str]:
    return [word.lower() for word in WORD.findall(name)]


def own(schema: GraphQLSchema) -> Iterator[GraphQLNamedType]:
    return (kind for kind in schema.type_map.values() if not kind.name.startswith("__"))


def members(schema: GraphQLSchema) -> Iterator[tuple[str, str, Any, GraphQLNamedType]]:
    """Fields, arguments and members of inputs: coordinate, name, definition, whose they are.

    What a type has from an interface is the interface's alone.
    """
    for kind in own(schema):
        inherited = {name for face in getattr(kind, "interfaces", ()) for name in face.fields}
        fields = {} if isinstance(kind, GraphQLEnumType) else getattr(kind, "fields", {})
        for name, field in fields.items():
            if name in inherited:
                continue
            yield f"{kind.name}.{name}", name, field, kind
            for argument, value in getattr(field, "args", {}).items():
                yield f"{kind.name}.{name}({argument}:)", argument, value, kind


def directive_arguments(schema: GraphQLSchema) -> Iterator[tuple[str, Any]]:
    for directive in schema.directives:
        if not is_specified_directive(directive):
            for name, argument in directive.args.items():
                yield f"@{directive.name}({name}:)", argument


def roots(schema: GraphQLSchema) -> Iterator[tuple[str, str, Any]]:
    for kind in (schema.query_type, schema.mutation_type, schema.subscription_type):
        for name, field in (kind.fields if kind else {}).items():
            yield f"{kind.name if kind else ''}.{name}", name, field


def undescribed(schema: GraphQLSchema) -> Iterator[str]:
    """Everything has a description."""
    for where, value in everything(schema):
        if not value.description:
            yield where


def everything(schema: GraphQLSchema) -> Iterator[tuple[str, Any]]:
    """All that can have a description, by its coordinate."""
    for kind in own(schema):
        if not is_specified_scalar_type(kind):
            yield kind.name, kind
        parts = kind.values if isinstance(kind, GraphQLEnumType) else getattr(kind, "fields", {})
        for name, part in parts.items():
            yield f"{kind.name}.{name}", part
            for argument, value in getattr(part, "args", {}).items():
                yield f"{kind.name}.{name}({argument}:)", value
    for directive in schema.directives:
        if not is_specified_directive(directive):
            yield f"@{directive.name}", directive
    yield from directive_arguments(schema)


def misspelt(schema: GraphQLSchema) -> Iterator[str]:
    """Types are PascalCase, fields and arguments camelCase, values of enums UPPER_CASE."""
    for kind in own(schema):
        if not PASCAL.fullmatch(kind.name):
            yield kind.name
        if isinstance(kind, GraphQLEnumType):
            yield from (f"{kind.name}.{n}" for n in kind.values if not UPPER.fullmatch(n))
    yield from (where for where, name, _, _ in members(schema) if not CAMEL.fullmatch(name))


def suffixed(schema: GraphQLSchema) -> Iterator[str]:
    """No type says what kind of type it is, but for inputs, which do."""
    for kind in own(schema):
        if kind.name.endswith(SUFFIXES):
            yield kind.name
        if isinstance(kind, GraphQLInputObjectType) is not kind.name.endswith(INPUTS):
            yield kind.name


def prefixed(schema: GraphQLSchema) -> Iterator[str]:
    """Inside a type nothing repeats its name: `User.name`, not `User.userName`."""
    for where, name, _, kind in members(schema):
        theirs = words(kind.name)
        if not where.endswith(")") and words(name)[: len(theirs)] == theirs:
            yield where


OF_SEARCH = {
    "searchExpand",
    "searchIndexStatus",
    "searchLookup",
    "searchParse",
    "searchTokenize",
}  # where search is the noun


def fetching(schema: GraphQLSchema) -> Iterator[str]:
    """What is read or followed is called by its noun: `messages`, not `getMessages`."""
    mutations = schema.mutation_type.fields if schema.mutation_type else {}
    for where, name, _ in roots(schema):
        if name not in mutations and name not in OF_SEARCH and words(name)[0] in FETCHING:
            yield where


def unordered(schema: GraphQLSchema) -> Iterator[str]:
    """A mutation is called by the type it acts on, then the verb: `messageUpdate`."""
    kinds = {tuple(words(k.name)) for k in own(schema) if isinstance(k, GraphQLObjectType)}
    objects = {kind[start:] for kind in kinds for start in range(len(kind))}
    for name in schema.mutation_type.fields if schema.mutation_type else ():
        *what, verb = words(name)
        if verb not in VERBS or tuple(what) not in objects:
            yield f"Mutation.{name}"


def misshapen(schema: GraphQLSchema) -> Iterator[str]:
    """A mutation takes `input: XInput!`, and returns a nullable `XPayload` of the common kind."""
    for name, field in (schema.mutation_type.fields if schema.mutation_type else {}).items():
        given, payload = field.args.get("input"), get_named_type(field.type)
        expected = f"{name[0].upper()}{name[1:]}Input!"
        if given is None or len(field.args) > 1 or str(given.type) != expected:
            yield f"Mutation.{name}(input:)"
        faces = [face.name for face in getattr(payload, "interfaces", ())]
        nullable = not isinstance(field.type, GraphQLNonNull)
        has_payload = payload.name.endswith("Payload") and "MutationPayload" in faces
        if not nullable or not has_payload:
            yield f"Mutation.{name}"
    for kind in own(schema):
        if isinstance(kind, GraphQLObjectType) and kind.name.endswith("Payload"):
            faces = [face.name for face in kind.interfaces]
            yield from [] if "MutationPayload" in faces else [kind.name]


def unclear(schema: GraphQLSchema) -> Iterator[str]:
    """A Boolean is an adjective, says what it `has` or `uses`, or in an input what to do."""
    for where, name, value, kind in members(schema):
        if get_named_type(value.type).name != "Boolean":
            continue
        asked = isinstance(kind, GraphQLInputObjectType) or where.endswith(")")
        first, *_, last = [*words(name), words(name)[-1]]
        stated = {first, last} & ADJECTIVES or (first in ("has", "uses") and last != first)
        if first == "is" or not (stated or (asked and first in REQUESTS)):
            yield where


def untimely(schema: GraphQLSchema) -> Iterator[str]:
    """A time is called `…At`, or as a bound `…Until` and the like; nothing else ends in `At`."""
    for where, name, value, _ in members(schema):
        timed = get_named_type(value.type).name == "DateTime"
        called = name == "at" or name.endswith(BOUNDS)
        if timed is not called and (timed or name.endswith("At")):
            yield where


def unconnected(schema: GraphQLSchema) -> Iterator[str]:
    """A connection of X has edges and nodes of X, and every field that leads there can page."""
    for kind in own(schema):
        if isinstance(kind, GraphQLObjectType) and kind.name.endswith("Connection"):
            of = kind.name.removesuffix("Connection")
            shape = {name: str(field.type) for name, field in kind.fields.items()}
            edge: Any = schema.type_map.get(f"{of}Edge")
            pointing = {name: str(field.type) for name, field in edge.fields.items()} if edge else 0
            total = shape.pop("totalCount", "").removesuffix("!")
            rest = {"edges": f"[{of}Edge!]!", "nodes": f"[{of}!]!", "pageInfo": "PageInfo!"}
            rest |= {"queryProblems": "[QueryProblem!]!"} if of == "Message" else {}
            if (shape, total) != (rest, "Int"):
                yield kind.name
            if pointing != {"cursor": "String!", "node": f"{of}!"}:
                yield f"{of}Edge"
    for where, _, field, _ in members(schema):
        if not where.endswith(")") and get_named_type(field.type).name.endswith("Connection"):
            args = {name: str(value.type) for name, value in field.args.items()}
            if {name: args.get(name) for name in PAGING} != PAGING:
                yield where


def null_by_default(schema: GraphQLSchema) -> Iterator[str]:
    """What can be left out has no default that says so."""
    given = [(where, value) for where, _, value, _ in members(schema)]
    for where, value in [*given, *directive_arguments(schema)]:
        if isinstance(getattr(value.ast_node, "default_value", None), NullValueNode):
            yield where


def abandoned(schema: GraphQLSchema) -> Iterator[str]:
    """What is deprecated names something that is there in its stead, and can be left out."""
    there = {name for _, name, value, _ in members(schema) if value.deprecation_reason is None}
    there |= {where for where, _, value, _ in members(schema) if value.deprecation_reason is None}
    found = [(where, value) for where, _, value, _ in members(schema)]
    for kind in own(schema):
        if isinstance(kind, GraphQLEnumType):
            values = kind.values.items()
            there |= {name for name, value in values if value.deprecation_reason is None}
            found += [(f"{kind.name}.{name}", value) for name, value in values]
    for where, value in found:
        reason = value.deprecation_reason
        if reason is not None and not there.intersection(re.findall(r"`([\w.]+)`", reason)):
            yield where


def unguarded(schema: GraphQLSchema) -> Iterator[str]:
    """Every root field says by `@auth` what it asks of the caller."""
    return (where for where, _, field in roots(schema) if "role" not in auth(field))


def public(schema: GraphQLSchema) -> Iterator[str]:
    """Nothing is open to those who have not signed in."""
    return (where for where, _, field in roots(schema) if auth(field).get("role") == "PUBLIC")


def auth(field: Any) -> dict[str, str]:
    """The arguments of a field's `@auth`, as they are printed."""
    return {
        argument.name.value: argument.value.value
        for directive in field.ast_node.directives or ()
        if directive.name.value == "auth"
        for argument in directive.arguments or ()
    }


RULES: tuple[Rule, ...] = (
    undescribed,
    misspelt,
    suffixed,
    prefixed,
    fetching,
    unordered,
    misshapen,
    unclear,
    untimely,
    unconnected,
    null_by_default,
    abandoned,
    unguarded,
    public,
)

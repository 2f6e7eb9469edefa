"""Rules for names and shapes of a schema. Each yields the coordinates that break it."""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from graphql import (
    GraphQLEnumType,
    GraphQLField,
    GraphQLInputObjectType,
    GraphQLInterfaceType,
    GraphQLList,
    GraphQLNamedType,
    GraphQLNonNull,
    GraphQLObjectType,
    GraphQLSchema,
    NullValueNode,
    get_named_type,
    is_abstract_type,
    is_leaf_type,
    is_specified_directive,
    is_specified_scalar_type,
    is_wrapping_type,
)

NamingRule = Callable[[GraphQLSchema], Iterator[str]]
Member = tuple[GraphQLObjectType, str, GraphQLField]

ANY_ENUM = GraphQLEnumType("AnyEnum", {"ANY": 0})
PASCAL = re.compile(r"([A-Z][a-z0-9]*)+", re.ASCII)
CAMEL = re.compile(r"[a-z][a-z0-9]*([A-Z][a-z0-9]*)*", re.ASCII)
UPPER = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*", re.ASCII)
WORD = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])")

READING_VERBS = {"all", "fetch", "find", "get", "list", "load", "query", "read", "search", "show"}
VERBS = set(
    """
    activate add apply build cancel check clean collect copy create deactivate deduplicate
    delete disable drain enable end export flush hold impersonate import increment lift move
    optimize purge put rebuild recalculate redirect register release reload remove rename repair
    replay request rescan reschedule reset restore revoke rotate run send set start stop
    subscribe terminate test unpack unsubscribe update upload verify
    """.split()  # noqa: SIM905 - a list of lines would be a page long
)
ADJECTIVES = set(
    """
    activated active all allowed answered certified compressed current custom default deleted dirty
    disabled draft empty enabled encrypted exact exhausted failing fixed flagged folded
    forwarded global hidden inherited inline internal
    local main marked muted notified only permanent pinned
    previous proxied reached recent recursive refused related relayed replaced replayed required
    running searchable seen shared snoozed spam subscribed succeeded
    suspended temporary unseen valid verified
    """.split()  # noqa: SIM905 - a list of lines would be a page long
)
REQUEST_VERBS = set(  # verbs that Boolean inputs and arguments begin with
    """
    allow apply async check coalesce create delete encrypt force hold include inherit
    learn mark
    pin replace request require reverse sanitize show skip subscribe unsubscribe validate
    """.split()  # noqa: SIM905 - a list of lines would be a page long
)
FORBIDDEN_SUFFIXES = ("Enum", "Interface", "Object", "Type", "Union")
ID_SUFFIXES = ("Ref", "Selection")  # of input types that have IDs
INPUT_SUFFIXES = ("Filter", "Input", "Match", "Patch", "Ref", "Selection")  # of input types
TIME_SUFFIXES = ("After", "At", "Before", "Since", "Until")  # of fields with a time
PAYLOAD_INTERFACE_FIELDS = {"errors", "undo", "warnings"}  # the same in each payload
PAGING_ARGUMENTS = {"after": "String", "before": "String", "first": "Int", "last": "Int"}


def words(name: str) -> list[str]:
    """The words of a name in lower case."""
    return [word.lower() for word in WORD.findall(name)]


def own_types(schema: GraphQLSchema) -> Iterator[GraphQLNamedType]:
    """The types of the schema, without those of introspection."""
    return (type_ for type_ in schema.type_map.values() if not type_.name.startswith("__"))


def iter_members(schema: GraphQLSchema) -> Iterator[tuple[str, str, Any, GraphQLNamedType]]:
    """Fields, arguments and input fields: coordinate, name, definition and type.

    Fields that a type has from an interface belong to the interface only.
    """
    for type_ in own_types(schema):
        inherited = {
            name for interface in getattr(type_, "interfaces", ()) for name in interface.fields
        }
        fields = {} if isinstance(type_, GraphQLEnumType) else getattr(type_, "fields", {})
        for name, field in fields.items():
            if name in inherited:
                continue
            yield f"{type_.name}.{name}", name, field, type_
            for argument, value in getattr(field, "args", {}).items():
                yield f"{type_.name}.{name}({argument}:)", argument, value, type_


def directive_arguments(schema: GraphQLSchema) -> Iterator[tuple[str, Any]]:
    """The arguments of the directives, by coordinate."""
    for directive in schema.directives:
        if not is_specified_directive(directive):
            for name, argument in directive.args.items():
                yield f"@{directive.name}({name}:)", argument


def root_fields(schema: GraphQLSchema) -> Iterator[tuple[str, str, Any]]:
    """The root fields: coordinate, name and definition."""
    for type_ in (schema.query_type, schema.mutation_type, schema.subscription_type):
        for name, field in (type_.fields if type_ else {}).items():
            yield f"{type_.name if type_ else ''}.{name}", name, field


def find_wrong_descriptions(schema: GraphQLSchema) -> Iterator[str]:
    """Every definition must have a description, but not the argument `input` of a mutation.

    The description of the mutation says what the input is for.
    """
    for coordinate, value in iter_describable(schema):
        is_input = coordinate.startswith("Mutation.") and coordinate.endswith("(input:)")
        if bool(value.description) is is_input:
            yield coordinate


def iter_describable(schema: GraphQLSchema) -> Iterator[tuple[str, Any]]:
    """All definitions that can have a description, by coordinate."""
    for type_ in own_types(schema):
        if not is_specified_scalar_type(type_):
            yield type_.name, type_
        parts = type_.values if isinstance(type_, GraphQLEnumType) else getattr(type_, "fields", {})
        for name, part in parts.items():
            yield f"{type_.name}.{name}", part
            for argument, value in getattr(part, "args", {}).items():
                yield f"{type_.name}.{name}({argument}:)", value
    for directive in schema.directives:
        if not is_specified_directive(directive):
            yield f"@{directive.name}", directive
    yield from directive_arguments(schema)


def find_wrong_case(schema: GraphQLSchema) -> Iterator[str]:
    """Types must be PascalCase, fields and arguments camelCase, enum values UPPER_CASE."""
    for type_ in own_types(schema):
        if not PASCAL.fullmatch(type_.name):
            yield type_.name
        if isinstance(type_, GraphQLEnumType):
            yield from (f"{type_.name}.{n}" for n in type_.values if not UPPER.fullmatch(n))
    yield from (
        coordinate for coordinate, name, _, _ in iter_members(schema) if not CAMEL.fullmatch(name)
    )


def find_wrong_suffix(schema: GraphQLSchema) -> Iterator[str]:
    """The name of a type must not end in its kind; only input types have a suffix."""
    for type_ in own_types(schema):
        if type_.name.endswith(FORBIDDEN_SUFFIXES):
            yield type_.name
        if isinstance(type_, GraphQLInputObjectType) is not type_.name.endswith(INPUT_SUFFIXES):
            yield type_.name


def find_repeated_type_name(schema: GraphQLSchema) -> Iterator[str]:
    """A field must not repeat the name of its type: `User.name`, not `User.userName`."""
    for coordinate, name, _, type_ in iter_members(schema):
        type_words = words(type_.name)
        if not coordinate.endswith(")") and words(name)[: len(type_words)] == type_words:
            yield coordinate


SEARCH_FIELDS = {
    "searchDiagnostics",
    "searchIndexStatus",
    "searchParse",
}  # "search" is a noun in these


def find_verbs_of_reading(schema: GraphQLSchema) -> Iterator[str]:
    """A query or subscription must have a noun as its name: `messages`, not `getMessages`."""
    mutations = schema.mutation_type.fields if schema.mutation_type else {}
    for coordinate, name, _ in root_fields(schema):
        if name not in mutations and name not in SEARCH_FIELDS and words(name)[0] in READING_VERBS:
            yield coordinate


def find_wrong_mutation_order(schema: GraphQLSchema) -> Iterator[str]:
    """The name of a mutation must be its type, then the verb: `messageUpdate`."""
    type_words = {
        tuple(words(type_.name))
        for type_ in own_types(schema)
        if isinstance(type_, GraphQLObjectType)
    }
    objects = {type_name[start:] for type_name in type_words for start in range(len(type_name))}
    for name in schema.mutation_type.fields if schema.mutation_type else ():
        *object_words, verb = words(name)
        if verb not in VERBS or tuple(object_words) not in objects:
            yield f"Mutation.{name}"


def find_wrong_mutation_shape(schema: GraphQLSchema) -> Iterator[str]:
    """A mutation must take `input: XInput!` and return a nullable `XPayload`."""
    for name, field in (schema.mutation_type.fields if schema.mutation_type else {}).items():
        input_argument, payload = field.args.get("input"), get_named_type(field.type)
        expected = f"{name[0].upper()}{name[1:]}Input!"
        if input_argument is None or len(field.args) > 1 or str(input_argument.type) != expected:
            yield f"Mutation.{name}(input:)"
        interfaces = [interface.name for interface in getattr(payload, "interfaces", ())]
        nullable = not isinstance(field.type, GraphQLNonNull)
        has_payload = payload.name.endswith("Payload") and "MutationPayload" in interfaces
        if not nullable or not has_payload:
            yield f"Mutation.{name}"
    for type_ in own_types(schema):
        if isinstance(type_, GraphQLObjectType) and type_.name.endswith("Payload"):
            interfaces = [interface.name for interface in type_.interfaces]
            yield from [] if "MutationPayload" in interfaces else [type_.name]


def find_wrong_payload_fields(schema: GraphQLSchema) -> Iterator[str]:
    """An object field of a payload must be named after its type, a list field by the plural.

    A payload must not have a field of a type beside a field with a list of that type.
    """
    for type_ in own_types(schema):
        if not isinstance(type_, GraphQLObjectType) or not type_.name.endswith("Payload"):
            continue
        types_seen = set()
        for name, field in type_.fields.items():
            field_type = get_named_type(field.type)
            if name in PAYLOAD_INTERFACE_FIELDS or is_leaf_type(field_type):
                continue
            noun = field_type.name[0].lower() + field_type.name[1:]
            plurals = {f"{noun}s", f"{noun}es", f"{noun.removesuffix('y')}ies"}
            is_list = "[" in str(field.type)
            if name not in (plurals if is_list else {noun}) or field_type.name in types_seen:
                yield f"{type_.name}.{name}"
            types_seen.add(field_type.name)


def find_unclear_booleans(schema: GraphQLSchema) -> Iterator[str]:
    """A Boolean must be an adjective, begin with `has` or `uses`, or in an input with a verb."""
    for coordinate, name, value, type_ in iter_members(schema):
        if get_named_type(value.type).name != "Boolean":
            continue
        is_input = isinstance(type_, GraphQLInputObjectType) or coordinate.endswith(")")
        first, *_, last = [*words(name), words(name)[-1]]
        is_adjective = {first, last} & ADJECTIVES or (first in ("has", "uses") and last != first)
        if first == "is" or not (is_adjective or (is_input and first in REQUEST_VERBS)):
            yield coordinate


def find_wrong_time_names(schema: GraphQLSchema) -> Iterator[str]:
    """A time must be named `…At`, or `…Until` if it is a bound; no other field ends in `At`."""
    for coordinate, name, value, _ in iter_members(schema):
        is_time = get_named_type(value.type).name == "DateTime"
        has_time_name = name == "at" or name.endswith(TIME_SUFFIXES)
        if is_time is not has_time_name and (is_time or name.endswith("At")):
            yield coordinate


def find_wrong_connections(schema: GraphQLSchema) -> Iterator[str]:
    """A connection of X must have edges and nodes of X, and paging arguments."""
    for type_ in own_types(schema):
        if isinstance(type_, GraphQLObjectType) and type_.name.endswith("Connection"):
            node_name = type_.name.removesuffix("Connection")
            connection_fields = {name: str(field.type) for name, field in type_.fields.items()}
            edge: Any = schema.type_map.get(f"{node_name}Edge")
            edge_fields = (
                {name: str(field.type) for name, field in edge.fields.items()} if edge else 0
            )
            total_type = connection_fields.pop("totalCount", "").removesuffix("!")
            expected_fields = {
                "edges": f"[{node_name}Edge!]!",
                "nodes": f"[{node_name}!]!",
                "pageInfo": "PageInfo!",
            }
            expected_fields |= (
                {"queryProblems": "[QueryProblem!]!"} if node_name == "Message" else {}
            )
            if "unresponsiveNodes" in connection_fields:  # of a list that all processes answer
                expected_fields["unresponsiveNodes"] = "[String!]!"
            if (connection_fields, total_type) != (expected_fields, "Int"):
                yield type_.name
            if edge_fields != {"cursor": "String!", "node": f"{node_name}!"}:
                yield f"{node_name}Edge"
    for coordinate, _, field, _ in iter_members(schema):
        if not coordinate.endswith(")") and get_named_type(field.type).name.endswith("Connection"):
            argument_types = {name: str(value.type) for name, value in field.args.items()}
            if {name: argument_types.get(name) for name in PAGING_ARGUMENTS} != PAGING_ARGUMENTS:
                yield coordinate


def find_unmergeable_fields(schema: GraphQLSchema) -> Iterator[str]:
    """A field name must have types that can be merged in all members of a union or an interface.

    Else a document can't select it in two of them without an alias (specification of GraphQL,
    section 5.3.2). Node has a rule of its own, find_different_node_fields. Left out is also
    an interface that no field can return: a document can't select two of its types at once.
    """
    for members in _related_types(schema):
        for (type_, name, field), (other, _, other_field) in _pairs_of_equal_name(members):
            if _conflict(field.type, other_field.type):
                yield f"{type_.name}.{name}"
                yield f"{other.name}.{name}"


def find_different_node_fields(schema: GraphQLSchema) -> Iterator[str]:
    """A field name must have types that differ in nullability only, in all Node types.

    Scalars are the same, or both are objects or enums, at the same depth of lists. Nullability
    can differ: it says what each type guarantees. So can enums: each type has its own states.
    """
    node: Any = schema.type_map["Node"]
    members = schema.get_possible_types(node)
    for (type_, name, field), (other, _, other_field) in _pairs_of_equal_name(members):
        shape, other_shape = _node_field_shape(field.type), _node_field_shape(other_field.type)
        if _conflict(shape, other_shape):
            yield f"{type_.name}.{name}"
            yield f"{other.name}.{name}"


def find_mixed_counts(schema: GraphQLSchema) -> Iterator[str]:
    """A count must have the same scalar in all types but connections that have such a count."""
    objects = [
        type_
        for type_ in own_types(schema)
        if isinstance(type_, GraphQLObjectType) and not type_.name.endswith("Connection")
    ]
    for (type_, name, field), (other, _, other_field) in _pairs_of_equal_name(objects):
        scalars = get_named_type(field.type), get_named_type(other_field.type)
        if name.endswith("Count") and scalars[0] != scalars[1]:
            yield f"{type_.name}.{name}"
            yield f"{other.name}.{name}"


def _related_types(schema: GraphQLSchema) -> Iterator[Sequence[GraphQLObjectType]]:
    """Yield the members of each union and interface whose fields a document can select together.

    A field that returns Node can return the types of each interface that implements Node.
    """
    returned_types = {
        get_named_type(field.type)
        for type_ in own_types(schema)
        if isinstance(type_, GraphQLObjectType | GraphQLInterfaceType)
        for field in type_.fields.values()
    }
    for type_ in own_types(schema):
        parents = getattr(type_, "interfaces", ())
        is_returned = bool(returned_types.intersection((type_, *parents)))
        if is_abstract_type(type_) and type_.name != "Node" and is_returned:
            yield schema.get_possible_types(type_)


def _pairs_of_equal_name(
    types: Iterable[GraphQLObjectType],
) -> Iterator[tuple[Member, Member]]:
    """Yield each pair of fields that have the same name in two of the types."""
    fields_by_name: dict[str, list[Member]] = {}
    for type_ in types:
        for name, field in type_.fields.items():
            fields_by_name.setdefault(name, []).append((type_, name, field))
    for fields in fields_by_name.values():
        yield from itertools.combinations(fields, 2)


def _conflict(type_: Any, other: Any) -> bool:
    """Return whether values of the two types have different shapes."""
    if is_wrapping_type(type_) or is_wrapping_type(other):
        return type(type_) is not type(other) or _conflict(type_.of_type, other.of_type)
    return (is_leaf_type(type_) or is_leaf_type(other)) and type_ != other


def _node_field_shape(type_: Any) -> Any:
    """Return a type with nullable values at each level of its lists, and one enum for all."""
    if isinstance(type_, GraphQLNonNull):
        return _node_field_shape(type_.of_type)
    if isinstance(type_, GraphQLList):
        return GraphQLList(_node_field_shape(type_.of_type))
    return ANY_ENUM if isinstance(type_, GraphQLEnumType) else type_


def find_bare_ids(schema: GraphQLSchema) -> Iterator[str]:
    """Inputs name objects by a reference or a selection, not by an ID.

    So a reference can use a natural key, and the result of an earlier mutation in `@atomic`.
    """
    for type_ in own_types(schema):
        if isinstance(type_, GraphQLInputObjectType) and type_.name.endswith(ID_SUFFIXES):
            continue
        for name, field in getattr(type_, "fields", {}).items():
            if isinstance(type_, GraphQLInputObjectType) and _is_id(field.type):
                yield f"{type_.name}.{name}"
            for argument_name, argument in getattr(field, "args", {}).items():
                if _is_id(argument.type):
                    yield f"{type_.name}.{name}({argument_name}:)"


def _is_id(type_: Any) -> bool:
    return bool(get_named_type(type_).name == "ID")


def find_null_defaults(schema: GraphQLSchema) -> Iterator[str]:
    """An optional argument must not have the default null."""
    inputs = [(coordinate, value) for coordinate, _, value, _ in iter_members(schema)]
    for coordinate, value in [*inputs, *directive_arguments(schema)]:
        if isinstance(getattr(value.ast_node, "default_value", None), NullValueNode):
            yield coordinate


def find_unreplaced_deprecations(schema: GraphQLSchema) -> Iterator[str]:
    """A deprecation must name a replacement that exists and is not deprecated."""
    current_names = {
        name for _, name, value, _ in iter_members(schema) if value.deprecation_reason is None
    }
    current_names |= {
        coordinate
        for coordinate, _, value, _ in iter_members(schema)
        if value.deprecation_reason is None
    }
    definitions = [(coordinate, value) for coordinate, _, value, _ in iter_members(schema)]
    for type_ in own_types(schema):
        if isinstance(type_, GraphQLEnumType):
            values = type_.values.items()
            current_names |= {name for name, value in values if value.deprecation_reason is None}
            definitions += [(f"{type_.name}.{name}", value) for name, value in values]
    for coordinate, value in definitions:
        reason = value.deprecation_reason
        if reason is not None and not current_names.intersection(re.findall(r"`([\w.]+)`", reason)):
            yield coordinate


def find_unguarded_root_fields(schema: GraphQLSchema) -> Iterator[str]:
    """Every root field must have an `@auth` directive with a role."""
    return (
        coordinate
        for coordinate, _, field in root_fields(schema)
        if "role" not in auth_arguments(field)
    )


def find_public_root_fields(schema: GraphQLSchema) -> Iterator[str]:
    """No root field may be public."""
    return (
        coordinate
        for coordinate, _, field in root_fields(schema)
        if auth_arguments(field).get("role") == "PUBLIC"
    )


def auth_arguments(field: Any) -> dict[str, str]:
    """The arguments of a field's `@auth`, as printed."""
    return {
        argument.name.value: argument.value.value
        for directive in field.ast_node.directives or ()
        if directive.name.value == "auth"
        for argument in directive.arguments or ()
    }


RULES: tuple[NamingRule, ...] = (
    find_wrong_descriptions,
    find_wrong_case,
    find_wrong_suffix,
    find_repeated_type_name,
    find_verbs_of_reading,
    find_wrong_mutation_order,
    find_wrong_mutation_shape,
    find_wrong_payload_fields,
    find_unclear_booleans,
    find_wrong_time_names,
    find_wrong_connections,
    find_unmergeable_fields,
    find_different_node_fields,
    find_mixed_counts,
    find_bare_ids,
    find_null_defaults,
    find_unreplaced_deprecations,
    find_unguarded_root_fields,
    find_public_root_fields,
)

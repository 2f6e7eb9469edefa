"""What an operation keeps from one run to the next: its fields, grouped, and its functions."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from graphql import (
    DirectiveNode,
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    GraphQLError,
    GraphQLField,
    GraphQLObjectType,
    GraphQLOutputType,
    GraphQLSchema,
    Node,
    OperationDefinitionNode,
    VariableNode,
    Visitor,
    default_field_resolver,
    visit,
)
from graphql.execution.collect_fields import (
    CollectedFields,
    FieldDetailsList,
    FragmentDetails,
    GroupedFieldSet,
    collect_fields,
    collect_subfields,
)
from graphql.execution.values import VariableValues, get_argument_values, get_variable_values

from graph.execution.code_generator import Complete, Writer
from graph.execution.generated_code import Bail, LargeValue
from graph.execution.variables import Signatures, coerced, signatures

log = logging.getLogger(__name__)

ERRORS_MAX = 10  # of variables: each is looked for, and sent
OUTCOMES = 8  # of the variables that decide @skip and @include, for which plans are kept
USES, FALLS = 1_000, 100  # a plan that falls back so often, in so many uses, is given up


class Tally(NamedTuple):
    """By the names of fields and types: how often a function was made, used, or fell back."""

    used: Counter[str]
    compiled: Counter[str]
    refused: Counter[str]  # something below has a resolver of its own
    fell: Counter[str]
    given_up: Counter[str]


TALLY = Tally(Counter(), Counter(), Counter(), Counter(), Counter())
REASONS: Counter[tuple[str, str]] = Counter()  # why something fell, or was refused


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, Bail) else type(error).__name__


class Plan:
    """A function, and how well it does.

    `rest` are the fields it leaves to graphql-core.
    """

    __slots__ = ("complete", "falls", "off", "rest", "uses", "where")

    def __init__(self, where: str, complete: Complete, rest: GroupedFieldSet | None = None) -> None:
        TALLY.compiled[where] += 1
        self.where = where
        self.complete = complete
        self.rest = rest
        self.uses = self.falls = 0
        self.off = False

    def use(self) -> None:
        """Count a value that is to be completed."""
        self.uses += 1
        TALLY.used[self.where] += 1

    def fell(self, error: Exception) -> None:
        """Count a value that graphql-core had to complete; give up where there are many.

        A large value says nothing against the function: others are smaller.
        """
        if isinstance(error, LargeValue):
            return
        self.falls += 1
        TALLY.fell[self.where] += 1
        REASONS["fell", _reason(error)] += 1
        if self.falls >= FALLS:
            self.off = self.falls * USES >= self.uses * FALLS
            self.uses = self.falls = 0
            TALLY.given_up[self.where] += self.off


class Call(NamedTuple):
    """How a field is resolved, and with what; without `given` its arguments are of variables."""

    details: FieldDetailsList
    field: GraphQLField
    nodes: list[FieldNode]
    resolve: Callable[..., Any]
    given: dict[str, Any] | None


class Plans:
    """The plans of one operation, for one outcome of its @skip and @include.

    Field lists are told apart by identity: each is kept as long as what is known of it.
    """

    def __init__(
        self,
        schema: GraphQLSchema,
        fragments: dict[str, FragmentDetails],
        operation: OperationDefinitionNode,
        deciding: VariableValues,
    ) -> None:
        self.schema = schema
        self.fragments = fragments
        self.operation = operation
        self.deciding = deciding
        self.collected: dict[
            tuple[GraphQLObjectType, int], tuple[FieldDetailsList, CollectedFields]
        ] = {}
        self._root: CollectedFields | None = None
        self._values: dict[tuple[int, int], tuple[FieldDetailsList, Plan | None]] = {}
        self._objects: dict[int, tuple[GroupedFieldSet, Plan | None]] = {}
        self._calls: dict[int, Call] = {}
        self.memo: dict[Any, Any] = {}

    @property
    def root(self) -> CollectedFields:
        """The fields of the operation itself."""
        if self._root is None:
            kind = self.schema.get_root_type(self.operation.operation)
            assert kind is not None  # noqa: S101 - validation has seen to it
            self._root = collect_fields(
                self.schema,
                self.fragments,
                self.deciding,
                kind,
                self.operation,
                hide_suggestions=True,
            )
        return self._root

    def fields(self, kind: GraphQLObjectType, details: FieldDetailsList) -> GroupedFieldSet:
        """The fields below these. Raises Bail for @defer, and for arguments of fragments."""
        key = kind, id(details)
        if key not in self.collected:
            found = collect_subfields(
                self.schema,
                self.fragments,
                self.deciding,
                self.operation,
                kind,
                details,
                hide_suggestions=True,
            )
            self.collected[key] = details, found
        grouped, deferred, _ = self.collected[key][1]
        if deferred or any(one.fragment_variable_values for one in details):
            raise Bail("deferred")
        return grouped

    def value(self, kind: GraphQLOutputType, details: FieldDetailsList) -> Plan | None:
        """How a value of this type is completed in one go; None where it cannot be."""
        key = id(kind), id(details)
        known = self._values.get(key)
        if known is None:
            known = self._values[key] = details, self._value(kind, details)
        return known[1]

    def _value(self, kind: GraphQLOutputType, details: FieldDetailsList) -> Plan | None:
        where = details[0].node.name.value
        try:
            return Plan(where, Writer(self).value(kind, details))
        except Exception as error:  # noqa: BLE001 - what cannot be compiled is graphql-core's
            TALLY.refused[where] += 1
            REASONS["refused", _reason(error)] += 1
            return None

    def call(self, kind: GraphQLObjectType, details: FieldDetailsList) -> Call | None:
        """How a field is called; None where graphql-core must see to it itself."""
        known = self._calls.get(id(details))
        if known is None:
            node, given = details[0].node, None
            field = self.schema.get_field(kind, node.name.value)
            if field is None or details[0].fragment_variable_values:
                return None
            if not any(_holds_variable(argument) for argument in node.arguments or ()):
                try:
                    given = get_argument_values(field, node, hide_suggestions=True)
                except GraphQLError:
                    return None  # said anew with the place where it is
                if any(isinstance(value, dict | list) for value in given.values()):
                    given = None  # a resolver may keep it, or change it
            nodes = [one.node for one in details]
            resolve = field.resolve or default_field_resolver
            known = self._calls[id(details)] = Call(details, field, nodes, resolve, given)
        return known

    def object(self, kind: GraphQLObjectType, grouped: GroupedFieldSet) -> Plan | None:
        """How the plain fields of an object are read; None where there is none."""
        known = self._objects.get(id(grouped))
        if known is None:
            known = self._objects[id(grouped)] = grouped, self._object(kind, grouped)
        return known[1]

    def _object(self, kind: GraphQLObjectType, grouped: GroupedFieldSet) -> Plan | None:
        try:
            return Plan(kind.name, *Writer(self).fields(kind, grouped))
        except Exception:  # noqa: BLE001 - what cannot be compiled is graphql-core's
            return None


@dataclass
class Book:
    """All plans of an operation of a document, from its second run on."""

    schema: GraphQLSchema
    operation: OperationDefinitionNode
    definitions: dict[str, FragmentDefinitionNode]
    fragments: dict[str, FragmentDetails]
    deciding: tuple[str, ...]  # variables of @skip and @include
    compiles: bool = True
    declared: Signatures | None = None  # its variables
    _runs: int = 0
    _plans: dict[tuple[Any, ...], Plans] = field(default_factory=dict)

    @property
    def outcomes(self) -> int:
        """How many plans there may be at most."""
        return min(1 << len(self.deciding), OUTCOMES) if self.compiles else 0

    @classmethod
    def of(
        cls,
        schema: GraphQLSchema,
        document: DocumentNode,
        operation: OperationDefinitionNode,
        *,
        compiles: bool,
    ) -> "Book":
        """An empty one."""
        definitions = {
            node.name.value: node
            for node in document.definitions
            if isinstance(node, FragmentDefinitionNode)
        }
        fragments = {name: FragmentDetails(node) for name, node in definitions.items()}
        found = _Deciding()
        visit(document, found)
        names = tuple(sorted(found.names))
        declared = signatures(schema, operation.variable_definitions or ())
        return cls(schema, operation, definitions, fragments, names, compiles, declared)

    def values(self, given: Mapping[str, Any]) -> VariableValues | list[GraphQLError]:
        """The variables as the operation understands them, or what is wrong with the first few."""
        if self.declared is not None and (found := coerced(self.declared, given)) is not None:
            return found
        definitions = self.operation.variable_definitions or ()
        return get_variable_values(
            self.schema, definitions, dict(given), max_errors=ERRORS_MAX, hide_suggestions=True
        )

    def plans(self, values: VariableValues) -> Plans | None:
        """The plans for these variables; None where none are kept, or not yet.

        Compiling costs more than a run: a document that is seen but once is not compiled.
        """
        self._runs += 1
        if not self.compiles or self._runs == 1:
            return None
        outcome = tuple(values.coerced.get(name) for name in self.deciding)
        if not all(isinstance(value, bool) for value in outcome):
            return None  # graphql-core says what is wrong with it
        plans = self._plans.get(outcome)
        if plans is None and len(self._plans) < OUTCOMES:
            deciding = VariableValues({}, dict(zip(self.deciding, outcome, strict=True)))
            plans = Plans(self.schema, self.fragments, self.operation, deciding)
            self._plans[outcome] = plans
        return plans


def _holds_variable(node: Node) -> bool:
    found = _Deciding()
    visit(node, found)
    return found.holds


class _Deciding(Visitor):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.holds = False

    def enter_variable(self, *_: Any) -> Any:
        self.holds = True

    def enter_directive(self, node: DirectiveNode, *_: Any) -> None:
        for argument in node.arguments or ():
            if isinstance(argument.value, VariableNode):
                self.names.add(argument.value.name.value)

"""Plans that an operation keeps between its runs: collected fields and compiled functions."""

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

ERRORS_MAX = 10
OUTCOMES = 8  # combinations of the variables of @skip and @include with plans
USES, FALLS = 1_000, 100  # a plan with more fallbacks per uses is given up


class Tally(NamedTuple):
    """Counts of compiled, used and refused functions, by the name of their field or type."""

    used: Counter[str]
    compiled: Counter[str]
    refused: Counter[str]  # could not be compiled
    fell: Counter[str]
    given_up: Counter[str]


TALLY = Tally(Counter(), Counter(), Counter(), Counter(), Counter())
REASONS: Counter[tuple[str, str]] = Counter()  # by outcome and reason


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, Bail) else type(error).__name__


class Plan:
    """A compiled function with the counts of its uses and fallbacks.

    `remaining_fields` are the fields that graphql-core must execute.
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
        """Count a use of the function."""
        self.uses += 1
        TALLY.used[self.where] += 1

    def fell(self, error: Exception) -> None:
        """Count a value that graphql-core must complete; give the plan up after too many.

        LargeValue doesn't count, since other values are smaller.
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
    """The resolver of a field with its arguments.

    `arguments` is None if they must be computed at each call.
    """

    details: FieldDetailsList
    field: GraphQLField
    nodes: list[FieldNode]
    resolve: Callable[..., Any]
    given: dict[str, Any] | None


class Plans:
    """The plans of one operation for one outcome of its @skip and @include.

    Field lists are compared by identity, so each cache entry also keeps its list alive.
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
        """The root fields of the operation."""
        if self._root is None:
            kind = self.schema.get_root_type(self.operation.operation)
            assert kind is not None  # noqa: S101 - the document is valid
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
        """Return the subfields of a field, grouped by response name.

        Raises FallbackNeeded for @defer and for arguments of fragments.
        """
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
        """Return the plan that completes a value of this type; None if it can't be compiled."""
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
        """Return the prepared call of a field; None if graphql-core must resolve it."""
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
                    return None  # graphql-core raises it again with the location
                if any(isinstance(value, dict | list) for value in given.values()):
                    given = None  # a resolver may keep or change the value
            nodes = [one.node for one in details]
            resolve = field.resolve or default_field_resolver
            known = self._calls[id(details)] = Call(details, field, nodes, resolve, given)
        return known

    def object(self, kind: GraphQLObjectType, grouped: GroupedFieldSet) -> Plan | None:
        """Return the plan that reads the attribute fields of an object; None without any."""
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
    """The plans of a document's operation, which are compiled from its second run on."""

    schema: GraphQLSchema
    operation: OperationDefinitionNode
    definitions: dict[str, FragmentDefinitionNode]
    fragments: dict[str, FragmentDetails]
    deciding: tuple[str, ...]  # variables of @skip and @include
    compiles: bool = True
    declared: Signatures | None = None  # None if a declaration is invalid
    _runs: int = 0
    _plans: dict[tuple[Any, ...], Plans] = field(default_factory=dict)

    @property
    def outcomes(self) -> int:
        """The highest number of plans."""
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
        """Create the empty plan cache of an operation."""
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
        """Coerce the variables of a request; return at most 10 errors if some are invalid."""
        if self.declared is not None and (found := coerced(self.declared, given)) is not None:
            return found
        definitions = self.operation.variable_definitions or ()
        return get_variable_values(
            self.schema, definitions, dict(given), max_errors=ERRORS_MAX, hide_suggestions=True
        )

    def plans(self, values: VariableValues) -> Plans | None:
        """Return the plans for these variables; None at the first run or above the limit.

        Compilation takes longer than a run, so a document that comes once is not compiled.
        """
        self._runs += 1
        if not self.compiles or self._runs == 1:
            return None
        outcome = tuple(values.coerced.get(name) for name in self.deciding)
        if not all(isinstance(value, bool) for value in outcome):
            return None  # graphql-core reports the error
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

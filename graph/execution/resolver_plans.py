"""Plans that an operation keeps between its runs: collected fields and compiled functions."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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
from graphql.execution.get_variable_signature import GraphQLVariableSignature
from graphql.execution.values import VariableValues, get_variable_values

from graph.execution.code_generator import FunctionWriter
from graph.execution.field_arguments import FieldArguments, prepare_field_arguments
from graph.execution.function_source import CompleteFunction
from graph.execution.generated_code import FallbackNeeded, LargeValue
from graph.execution.variables import try_to_coerce_variables, variable_signatures_or_none

log = logging.getLogger(__name__)

MAX_VARIABLE_ERRORS = 10
MAX_CONDITION_OUTCOMES = 8  # combinations of the variables of @skip and @include with plans
# a plan with more fallbacks per uses is given up
MIN_USES_PER_FALLBACK_LIMIT = 1_000
MAX_FALLBACKS = 100


class PlanCounters(NamedTuple):
    """Counts of compiled, used and refused functions, by the name of their field or type."""

    used: Counter[str]
    compiled: Counter[str]
    refused: Counter[str]  # could not be compiled
    fallback: Counter[str]
    given_up: Counter[str]


PLAN_COUNTERS = PlanCounters(Counter(), Counter(), Counter(), Counter(), Counter())
FALLBACK_REASONS: Counter[tuple[str, str]] = Counter()  # by outcome and reason


def _reason_of_error(error: Exception) -> str:
    return str(error) if isinstance(error, FallbackNeeded) else type(error).__name__


class CompiledPlan:
    """A compiled function with the counts of its uses and fallbacks.

    `remaining_fields` are the fields that graphql-core must execute.
    """

    __slots__ = (
        "complete",
        "fallback_count",
        "is_given_up",
        "name",
        "remaining_fields",
        "use_count",
    )

    def __init__(
        self, name: str, complete: CompleteFunction, remaining_fields: GroupedFieldSet | None = None
    ) -> None:
        PLAN_COUNTERS.compiled[name] += 1
        self.name = name
        self.complete = complete
        self.remaining_fields = remaining_fields
        self.use_count = self.fallback_count = 0
        self.is_given_up = False

    def count_use(self) -> None:
        """Count a use of the function."""
        self.use_count += 1
        PLAN_COUNTERS.used[self.name] += 1

    def count_fallback_or_give_up(self, error: Exception) -> None:
        """Count a value that graphql-core must complete; give the plan up after too many.

        LargeValue doesn't count, since other values are smaller.
        """
        if isinstance(error, LargeValue):
            return
        self.fallback_count += 1
        PLAN_COUNTERS.fallback[self.name] += 1
        FALLBACK_REASONS["fallback", _reason_of_error(error)] += 1
        if self.fallback_count >= MAX_FALLBACKS:
            self.is_given_up = (
                self.fallback_count * MIN_USES_PER_FALLBACK_LIMIT >= self.use_count * MAX_FALLBACKS
            )
            self.use_count = self.fallback_count = 0
            PLAN_COUNTERS.given_up[self.name] += self.is_given_up


class FieldCall(NamedTuple):
    """The resolver of a field with its arguments."""

    details: FieldDetailsList
    field: GraphQLField
    nodes: list[FieldNode]
    resolve: Callable[..., Any]
    field_arguments: FieldArguments

    def arguments(self, variable_values: VariableValues) -> dict[str, Any]:
        """Return the arguments. Raises GraphQLError if one is not valid."""
        return self.field_arguments.coerce(self.nodes[0], variable_values)


class OperationPlans:
    """The plans of one operation for one outcome of its @skip and @include.

    Field lists are compared by identity, so each cache entry also keeps its list alive.
    """

    def __init__(
        self,
        schema: GraphQLSchema,
        fragments: dict[str, FragmentDetails],
        operation: OperationDefinitionNode,
        condition_values: VariableValues,
    ) -> None:
        self.schema = schema
        self.fragments = fragments
        self.operation = operation
        self.condition_values = condition_values
        self.collected_subfields: dict[
            tuple[GraphQLObjectType, int], tuple[FieldDetailsList, CollectedFields]
        ] = {}
        self._root_fields: CollectedFields | None = None
        self._value_plans: dict[tuple[int, int], tuple[FieldDetailsList, CompiledPlan | None]] = {}
        self._object_plans: dict[int, tuple[GroupedFieldSet, CompiledPlan | None]] = {}
        self._field_calls: dict[int, FieldCall] = {}
        self.selection_cache: dict[Any, Any] = {}

    @property
    def root_fields(self) -> CollectedFields:
        """The root fields of the operation."""
        if self._root_fields is None:
            kind = self.schema.get_root_type(self.operation.operation)
            assert kind is not None  # noqa: S101 - the document is valid
            self._root_fields = collect_fields(
                self.schema,
                self.fragments,
                self.condition_values,
                kind,
                self.operation,
                hide_suggestions=True,
            )
        return self._root_fields

    def subfields(
        self, object_type: GraphQLObjectType, details: FieldDetailsList
    ) -> GroupedFieldSet:
        """Return the subfields of a field, grouped by response name.

        Raises FallbackNeeded for @defer and for arguments of fragments.
        """
        key = object_type, id(details)
        if key not in self.collected_subfields:
            subfields = collect_subfields(
                self.schema,
                self.fragments,
                self.condition_values,
                self.operation,
                object_type,
                details,
                hide_suggestions=True,
            )
            self.collected_subfields[key] = details, subfields
        grouped, deferred, _ = self.collected_subfields[key][1]
        if deferred or any(detail.fragment_variable_values for detail in details):
            raise FallbackNeeded("deferred")
        return grouped

    def value_plan_or_none(
        self, output_type: GraphQLOutputType, details: FieldDetailsList
    ) -> CompiledPlan | None:
        """Return the plan that completes a value of this type; None if it can't be compiled."""
        key = id(output_type), id(details)
        plan = self._value_plans.get(key)
        if plan is None:
            plan = self._value_plans[key] = details, self._compile_value_plan(output_type, details)
        return plan[1]

    def _compile_value_plan(
        self, output_type: GraphQLOutputType, details: FieldDetailsList
    ) -> CompiledPlan | None:
        field_name = details[0].node.name.value
        try:
            return CompiledPlan(
                field_name, FunctionWriter(self).compile_value_function(output_type, details)
            )
        except Exception as error:  # noqa: BLE001 - what cannot be compiled is graphql-core's
            PLAN_COUNTERS.refused[field_name] += 1
            FALLBACK_REASONS["refused", _reason_of_error(error)] += 1
            return None

    def field_call_or_none(
        self, object_type: GraphQLObjectType, details: FieldDetailsList
    ) -> FieldCall | None:
        """Return the prepared call of a field; None if graphql-core must resolve it."""
        call = self._field_calls.get(id(details))
        if call is None:
            node = details[0].node
            field = self.schema.get_field(object_type, node.name.value)
            if field is None or details[0].fragment_variable_values:
                return None
            try:
                field_arguments = prepare_field_arguments(field, node)
            except GraphQLError:
                return None  # graphql-core raises it again with the location
            nodes = [detail.node for detail in details]
            resolve = field.resolve or default_field_resolver
            call = self._field_calls[id(details)] = FieldCall(
                details, field, nodes, resolve, field_arguments
            )
        return call

    def object_plan_or_none(
        self, object_type: GraphQLObjectType, grouped_fields: GroupedFieldSet
    ) -> CompiledPlan | None:
        """Return the plan that reads the attribute fields of an object; None without any."""
        plan = self._object_plans.get(id(grouped_fields))
        if plan is None:
            plan = self._object_plans[id(grouped_fields)] = (
                grouped_fields,
                self._compile_object_plan(object_type, grouped_fields),
            )
        return plan[1]

    def _compile_object_plan(
        self, object_type: GraphQLObjectType, grouped_fields: GroupedFieldSet
    ) -> CompiledPlan | None:
        try:
            return CompiledPlan(
                object_type.name,
                *FunctionWriter(self).compile_attribute_fields_function(
                    object_type, grouped_fields
                ),
            )
        except Exception:  # noqa: BLE001 - what cannot be compiled is graphql-core's
            return None


@dataclass
class PlanCache:
    """The plans of a document's operation, which are compiled from its second run on."""

    schema: GraphQLSchema
    operation: OperationDefinitionNode
    definitions: dict[str, FragmentDefinitionNode]
    fragments: dict[str, FragmentDetails]
    condition_variables: tuple[str, ...]  # variables of @skip and @include
    can_compile: bool = True
    variable_signatures: Sequence[GraphQLVariableSignature] | None = None  # None if one is invalid
    _run_count: int = 0
    _plans_by_outcome: dict[tuple[Any, ...], OperationPlans] = field(default_factory=dict)

    @property
    def max_plan_count(self) -> int:
        """The highest number of plans."""
        return (
            min(1 << len(self.condition_variables), MAX_CONDITION_OUTCOMES)
            if self.can_compile
            else 0
        )

    @classmethod
    def from_document(
        cls,
        schema: GraphQLSchema,
        document: DocumentNode,
        operation: OperationDefinitionNode,
        *,
        can_compile: bool,
    ) -> "PlanCache":
        """Create the empty plan cache of an operation."""
        definitions = {
            node.name.value: node
            for node in document.definitions
            if isinstance(node, FragmentDefinitionNode)
        }
        fragments = {name: FragmentDetails(node) for name, node in definitions.items()}
        finder = _ConditionVariableFinder()
        visit(document, finder)
        names = tuple(sorted(finder.condition_variables))
        declared = variable_signatures_or_none(schema, operation.variable_definitions or ())
        return cls(schema, operation, definitions, fragments, names, can_compile, declared)

    def coerce_variables(
        self, raw_values: Mapping[str, Any]
    ) -> VariableValues | list[GraphQLError]:
        """Coerce the variables of a request; return at most 10 errors if some are invalid."""
        if (
            self.variable_signatures is not None
            and (coerced := try_to_coerce_variables(self.variable_signatures, raw_values))
            is not None
        ):
            return coerced
        definitions = self.operation.variable_definitions or ()
        return get_variable_values(
            self.schema,
            definitions,
            dict(raw_values),
            max_errors=MAX_VARIABLE_ERRORS,
            hide_suggestions=True,
        )

    def count_run_or_create_plans(self, variable_values: VariableValues) -> OperationPlans | None:
        """Return the plans for these variables; None at the first run or above the limit.

        Compilation takes longer than a run, so a document that comes once is not compiled.
        """
        self._run_count += 1
        if not self.can_compile or self._run_count == 1:
            return None
        outcome = tuple(variable_values.coerced.get(name) for name in self.condition_variables)
        if not all(isinstance(value, bool) for value in outcome):
            return None  # graphql-core reports the error
        plans = self._plans_by_outcome.get(outcome)
        if plans is None and len(self._plans_by_outcome) < MAX_CONDITION_OUTCOMES:
            deciding = VariableValues({}, dict(zip(self.condition_variables, outcome, strict=True)))
            plans = OperationPlans(self.schema, self.fragments, self.operation, deciding)
            self._plans_by_outcome[outcome] = plans
        return plans


class _ConditionVariableFinder(Visitor):
    def __init__(self) -> None:
        super().__init__()
        self.condition_variables: set[str] = set()

    def enter_directive(self, node: DirectiveNode, *_: Any) -> None:
        for argument in node.arguments or ():
            if isinstance(argument.value, VariableNode):
                self.condition_variables.add(argument.value.name.value)

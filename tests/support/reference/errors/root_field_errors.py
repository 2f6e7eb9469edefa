"""The errors of each root field, and those that every mutation can have."""

from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any

from graphql import GraphQLInputObjectType, get_named_type

from graph.types.error_references import IDS_PART, PARENT_FIELDS
from tests.support.reference.areas import RootField, iter_root_fields
from tests.support.reference.errors.error_sites import ErrorSite, error_sites, reach_of
from tests.support.schema.error_paths import is_path_in_input
from tests.support.schema.printed_schema import SDL

# Functions that run for every mutation, around its resolver.
MUTATION_FUNCTIONS = (
    "graph.types.mutations.MutationExecution.require_guard_or_return_refusal",
    "graph.types.mutations.MutationExecution.resolve_async",
    "graph.types.mutations.execute_atomically",
)
GUARD_FUNCTION = "resolvers.viewer.Viewer.require"  # it runs for every field with a guard


@cache
def common_mutation_errors() -> tuple[ErrorSite, ...]:
    """The errors that every mutation can have."""
    return tuple(sorted(error_sites(reach_of(*MUTATION_FUNCTIONS))))


@cache
def common_query_errors() -> tuple[ErrorSite, ...]:
    """The errors that every query and subscription with a guard can have."""
    return tuple(sorted(error_sites(reach_of(GUARD_FUNCTION))))


@cache
def errors_by_root_field() -> dict[str, tuple[ErrorSite, ...]]:
    """The errors of each root field, by its name, without the common ones."""
    return {field.name: tuple(sorted(_own_errors(field))) for field in iter_root_fields(SDL)}


def _own_errors(root_field: RootField) -> set[ErrorSite]:
    is_mutation = root_field.operation == "mutation"
    common = set(common_mutation_errors() if is_mutation else common_query_errors())
    arguments = root_field.field.args
    inputs: dict[str, Any] = {name: argument.type for name, argument in arguments.items()}
    if is_mutation:
        named = get_named_type(inputs["input"])
        assert isinstance(named, GraphQLInputObjectType)
        inputs = {name: field.type for name, field in named.fields.items()}
    names = _field_names(inputs)
    errors = set()
    for site in error_sites(reach_of(root_field.resolver_name)):
        parts = site.path.split(".")
        if site not in common and (not site.path or {parts[0], parts[-1], IDS_PART} & names):
            errors.add(replace(site, path=_complete_path(site.path, inputs)))
    return _without_repetitions(errors)


def _without_repetitions(errors: set[ErrorSite]) -> set[ErrorSite]:
    """Leave out errors without a path or condition that another error has with it."""
    count = Counter((error.code, error.constraint, error.condition) for error in errors)
    with_text = {
        (error.code, error.constraint) for error in errors if error.condition or error.path
    }
    return {
        error
        for error in errors
        if error.path
        or (error.condition and count[error.code, error.constraint, error.condition] == 1)
        or (not error.condition and (error.code, error.constraint) not in with_text)
    }


def _field_names(inputs: dict[str, Any]) -> set[str]:
    """The names of all fields in the inputs and in the input types they refer to."""
    names, seen, todo = set[str](), set[str](), [inputs]
    while todo:
        for name, type_ in todo.pop().items():
            names.add(name)
            named = get_named_type(type_)
            if name.endswith("s") and named.name.endswith("Ref"):
                names.add(IDS_PART)
            if isinstance(named, GraphQLInputObjectType) and named.name not in seen:
                seen.add(named.name)
                todo.append({one: field.type for one, field in named.fields.items()})
    return names


def _complete_path(path: str, inputs: dict[str, Any]) -> str:
    """The path from the input, as clients get it, or an empty text if it is none."""
    first, _, rest = path.partition(".")
    candidates = [path]
    if first == IDS_PART:
        lists = [
            name for name, input_ in inputs.items() if get_named_type(input_).name.endswith("Ref")
        ]
        candidates += [f"{name}.{rest}".rstrip(".") for name in lists if name.endswith("s")]
    candidates += [f"{parent}.{path}" for parent in PARENT_FIELDS]
    for candidate in candidates if path else ():
        first, *parts = candidate.split(".")
        if first in inputs and is_path_in_input(inputs[first], parts):
            return candidate
    return ""

"""Description of `replayed` in payloads of mutations that accept, or refuse, idempotency keys."""

from collections import defaultdict

from graphql import GraphQLField, GraphQLObjectType, GraphQLSchema, get_named_type

from graph.execution.strawberry_definitions import strawberry_definition
from graph.types.mutations import MutationExecution

NEVER_REPLAYED = (
    "Always false, because the mutation refuses an idempotency key. True would mean that the "
    "payload is that of an earlier request."
)
REFUSAL_SENTENCE = " Always false if the mutation refuses idempotency keys."


def set_replay_descriptions(schema: GraphQLSchema) -> None:
    """Say in each payload whether its mutations accept an idempotency key."""
    if schema.mutation_type is None:
        return
    refuses_by_payload = defaultdict[str, set[bool]](set)
    for field in schema.mutation_type.fields.values():
        refuses_by_payload[get_named_type(field.type).name].add(_refuses_every_key(field))
    for name, refuses in refuses_by_payload.items():
        payload = schema.type_map[name]
        if not isinstance(payload, GraphQLObjectType) or len(refuses) > 1:
            continue
        replayed = payload.fields["replayed"]
        if True in refuses:
            replayed.description = NEVER_REPLAYED
        else:
            replayed.description = (replayed.description or "").replace(REFUSAL_SENTENCE, "")


def _refuses_every_key(field: GraphQLField) -> bool:
    """True if a mutation accepts no idempotency key, whatever its input is."""
    (execution,) = (
        extension
        for extension in strawberry_definition(field).extensions
        if isinstance(extension, MutationExecution)
    )
    exclusion = execution.atomic_exclusion
    return bool(exclusion and exclusion.forbids_idempotency_key and not exclusion.condition)

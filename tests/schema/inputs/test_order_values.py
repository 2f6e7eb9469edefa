"""The values of an order are named after the fields that they sort."""

from collections.abc import Iterator

from graphql import GraphQLEnumType, get_named_type

from resolvers.metrics.set_orders import MetricSetOrder
from tests.support.lists.list_fields import ListField, list_fields
from tests.support.lists.sort_fields import is_sortable, sort_field_name, sort_key
from tests.support.schema.printed_schema import SDL

# Keys of orders that sort by no field of the items, with the reason.
KEYS_WITHOUT_A_FIELD = {
    "ConnectorRunOrder.CREATED": "A run that waits has no time: `startedAt` is null until it runs.",
    "MessageOrder.RELEVANCE": "The rank of a match is no field.",
    "MessageOrder.SEEN": "`seen` is true or false: its two lists by arrival follow each other.",
    "RateLimitOrder.CREATED": "The user or domain was created, not its limit.",
    "UserAffinityOrder.USERNAME": "It is a field of `user`.",
    "UserOrder.STORAGE_USED": "It is `limits.quota.used`.",
    "WebhookDeliveryOrder.CREATED": "`at` is the time of the event, which a replay delivers later.",
} | {
    f"MetricSetOrder.{order.counter_name}": "It is the value of a counter in `counters`."
    for order in MetricSetOrder
    if order.counter_name is not None
}


def ordered_lists() -> Iterator[tuple[ListField, GraphQLEnumType]]:
    """Yield each list that has orders, with the enum of its orders."""
    for list_field in list_fields(SDL):
        if "orderBy" in list_field.field.args:
            enum = get_named_type(list_field.field.args["orderBy"].type)
            assert isinstance(enum, GraphQLEnumType)
            yield list_field, enum


def keys_without_a_field(list_field: ListField, enum: GraphQLEnumType) -> Iterator[str]:
    """Yield the keys of orders that no field of the items has the name of."""
    fields = list_field.node_type.fields
    for order_name in enum.values:
        field = fields.get(sort_field_name(order_name))
        if field is None or not is_sortable(field):
            yield f"{enum.name}.{sort_key(order_name)}"


def test_values_of_orders_are_named_after_fields() -> None:
    lists = list(ordered_lists())
    without_field = {key for names in lists for key in keys_without_a_field(*names)}
    assert without_field - set(KEYS_WITHOUT_A_FIELD) == set()
    assert set(KEYS_WITHOUT_A_FIELD) - without_field == set(), "these keys have fields: remove them"
    assert len(lists) >= 75
    assert len({enum.name for _, enum in lists}) >= 55


def test_every_enum_of_orders_is_that_of_a_list() -> None:
    order_names = {name for name in SDL.type_map if name.endswith("Order")}
    assert order_names == {enum.name for _, enum in ordered_lists()}

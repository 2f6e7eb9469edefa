"""The lists with orders: how each is read, and the index of each order."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from resolvers.addresses import bcc_rules, recipient_rewrites
from resolvers.addresses import loaders as address_loaders
from resolvers.addresses.bcc_rules import BccRuleConditions
from resolvers.addresses.loaders import AddressConditions
from resolvers.admin import audit_log
from resolvers.admin.audit_log import AuditLogConditions
from resolvers.cluster import loaders as cluster_loaders
from resolvers.cluster.loaders import NodeConditions
from resolvers.domains import aliases
from resolvers.domains import loaders as domain_loaders
from resolvers.domains.loaders import DomainConditions
from resolvers.filters import loaders as filter_loaders
from resolvers.filters.loaders import FilterListConditions
from resolvers.list_orders import ListOrder
from resolvers.queue import loaders as queue_loaders
from resolvers.queue.loaders import QueueEntryConditions
from resolvers.resources import loaders as resource_loaders
from resolvers.resources.loaders import ResourceConditions
from resolvers.routing import loaders as routing_loaders
from resolvers.routing.loaders import FORWARDERS, POLICIES, TRANSPORTS, RoutingListing, RoutingTable
from resolvers.spam import quarantine, sender_rules
from resolvers.spam.quarantine import QuarantineConditions
from resolvers.spam.sender_rules import SenderRuleConditions
from resolvers.throttling import loaders as throttling_loaders
from resolvers.throttling.loaders import NetworkConditions
from resolvers.users.selection import UserSelector

LoadPage = Callable[..., Awaitable[Any]]


@dataclass(frozen=True)
class OrderedList:
    """A list with orders: how it is read, and the index of each order."""

    load_page: LoadPage
    conditions: Any
    table: str
    orders: dict[Any, ListOrder]
    indexes: dict[str, str]  # by the key of the order
    is_large: bool = True  # false: a list of few rows, or one with its own test of a large table

    def index_of(self, order: StrEnum) -> str:
        return self.indexes[order.rpartition("_")[0]]


def _routing_list(routing_table: RoutingTable, table: str, key: str) -> OrderedList:
    """Return a list of routing records with the orders by this key, which has an index."""
    orders = {o: order for o, order in routing_table.orders.items() if o.startswith(key)}
    return OrderedList(
        routing_loaders.read_visible_routing_page,
        RoutingListing(routing_table),
        table,
        orders,
        {key: f"sqlite_autoindex_{table}"},
        is_large=False,
    )


ORDERED_LISTS = {
    "domains": OrderedList(
        domain_loaders.read_domain_page,
        DomainConditions(),
        "domains",
        domain_loaders.LIST_ORDERS,
        {
            "NAME": "sqlite_autoindex_domains",
            "CREATED_AT": "domains_by_age",
            "USER_COUNT": "domains_by_user_count",
        },
    ),
    "addresses": OrderedList(
        address_loaders.read_visible_address_page,
        AddressConditions(),
        "addresses",
        address_loaders.LIST_ORDERS,
        {"LOCAL_PART": "addresses_by_local", "CREATED_AT": "addresses_by_age"},
    ),
    "bccRules": OrderedList(
        bcc_rules.read_visible_bcc_rule_page,
        BccRuleConditions(),
        "bcc_rules",
        bcc_rules.LIST_ORDERS,
        {"CREATED_AT": "bcc_rules_oldest"},
    ),
    "recipientRewrites": OrderedList(
        recipient_rewrites.read_visible_rewrite_page,
        None,
        "recipient_rewrites",
        recipient_rewrites.LIST_ORDERS,
        {"CREATED_AT": "recipient_rewrites_oldest"},
    ),
    "aliasDomains": OrderedList(
        aliases.read_alias_page,
        None,
        "domain_aliases",
        aliases.LIST_ORDERS,
        {"ALIAS": "sqlite_autoindex_domain_aliases"},
    ),
    "auditLog": OrderedList(
        audit_log.read_visible_audit_log_page,
        AuditLogConditions(),
        "audit_log",
        audit_log.LIST_ORDERS,
        {"AT": "ix_audit_log_at"},
    ),
    "banPolicy.activeBans": OrderedList(
        throttling_loaders.read_ban_page,
        NetworkConditions(),
        "network_bans",
        throttling_loaders.BAN_ORDERS,
        {"STARTED_AT": "network_bans_by_start", "ENDS_AT": "network_bans_by_end"},
    ),
    "clusterNodes": OrderedList(
        cluster_loaders.read_node_page,
        NodeConditions(),
        "cluster_nodes",
        cluster_loaders.NODE_ORDERS,
        {
            "CREATED_AT": "cluster_nodes_by_creation",
            "HOST": "cluster_nodes_by_host",
            "STATE_CHANGED_AT": "cluster_nodes_by_state_change",
        },
        is_large=False,
    ),
    "loginPenalties": OrderedList(
        throttling_loaders.read_penalty_page,
        NetworkConditions(),
        "throttles",
        throttling_loaders.PENALTY_ORDERS,
        {"LAST_PENALTY_AT": "throttles_by_wait"},
    ),
    "filters": OrderedList(
        filter_loaders.load_visible_filter_page,
        FilterListConditions(user_id=7),
        "filters",
        filter_loaders.LIST_ORDERS,
        {"POSITION": "ix_filters_position", "CREATED_AT": "ix_filters"},
    ),
    "queue": OrderedList(
        queue_loaders.read_visible_waiting_entry_page,
        QueueEntryConditions(user_selection=UserSelector()),
        "submissions",
        queue_loaders.LIST_ORDERS,
        {"ARRIVED_AT": "submissions_waiting", "SIZE": "submissions_waiting_by_size"},
    ),
    "quarantine": OrderedList(
        quarantine.read_item_page,
        QuarantineConditions(user_selector=UserSelector()),
        "quarantine_items",
        quarantine.LIST_ORDERS,
        {
            "CREATED_AT": "quarantine_by_age",
            "SCORE": "quarantine_by_score",
            "SIZE": "quarantine_by_size",
        },
    ),
    "senderRules": OrderedList(
        sender_rules.read_rule_page,
        SenderRuleConditions(),
        "sender_rules",
        sender_rules.LIST_ORDERS,
        {"PATTERN": "ix_sender_rules_pattern"},
        is_large=False,
    ),
    "transports": _routing_list(TRANSPORTS, "transports", "DESTINATION"),
    "tlsPolicies": _routing_list(POLICIES, "tls_policies", "DESTINATION"),
    "forwardingHosts": _routing_list(FORWARDERS, "forwarding_hosts", "HOST"),
    "resources": OrderedList(
        resource_loaders.read_visible_resource_page,
        ResourceConditions(),
        "resources",
        resource_loaders.LIST_ORDERS,
        {"NAME": "resources_by_name", "CREATED_AT": "resources_by_age"},
    ),
}

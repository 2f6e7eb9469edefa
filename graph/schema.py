"""The schema of all areas, which is printed to `schema.graphql`."""

from graphql import GraphQLEnumType
from strawberry.schema.config import StrawberryConfig
from strawberry.tools import merge_types
from strawberry.types.enum import StrawberryEnumDefinition

from graph import nodes
from graph.addresses import bcc_rules, recipient_rewrites, trace
from graph.addresses import mutations as address_mutations
from graph.addresses import types as address_types
from graph.admin import audit_log, key_values, legal_holds, tasks
from graph.admin import settings as admin_settings
from graph.auth import (
    app_passwords,
    second_factor_mutations,
    security_log,
)
from graph.auth import mutations as auth_mutations
from graph.auth import queries as auth_queries
from graph.autoreply import mutations as autoreply_mutations
from graph.blobs import mutations as blob_mutations
from graph.blobs import types as blob_types
from graph.cache import mutations as cache_mutations
from graph.cache import types as cache_types
from graph.certificates import types as certificate_types
from graph.changes import queries as change_queries
from graph.changes import types as change_types
from graph.cluster import mutations as cluster_mutations
from graph.cluster import queries as cluster_queries
from graph.connectors import mail_import_mutations
from graph.connectors import mutations as connector_mutations
from graph.connectors import run_mutations as connector_run_mutations
from graph.connectors import types as connector_types
from graph.domains import dkim_keys
from graph.domains import mutations as domain_mutations
from graph.domains import queries as domain_queries
from graph.execution.operation_execution import ExecutableSchema
from graph.execution.strawberry_definitions import strawberry_definition
from graph.files import types as file_types
from graph.filters import (
    bulk_mutations,
    sieve_import_mutations,
    sieve_script_mutations,
    sieve_scripts,
)
from graph.filters import operations as filter_operations
from graph.health import mutations as health_mutations
from graph.health import queries as health_queries
from graph.identity_providers import mutations as identity_provider_mutations
from graph.logs import queries as log_queries
from graph.logs import types as log_types
from graph.mailboxes import (
    annotation_mutations,
    counters,
    repair_mutations,
    share_mutations,
    uid_state_mutations,
    update_mutations,
)
from graph.mailboxes import queries as mailbox_queries
from graph.mailboxes import types as mailbox_types
from graph.messages import (
    deleted_messages,
    import_mutations,
    labels,
    threads,
)
from graph.messages import mutations as message_mutations
from graph.messages import trace as delivery_trace
from graph.messages import types as message_types
from graph.metrics import mutations as metric_mutations
from graph.metrics import queries as metric_queries
from graph.notifications import live_notifications, push_channels, webhook_mutations, webhooks
from graph.oauth import mutations as oauth_mutations
from graph.oauth import types as oauth_types
from graph.queue import rate_limits
from graph.queue import types as queue_types
from graph.resources import mutations as resource_mutations
from graph.resources import queries as resource_queries
from graph.routing import mutations as routing_mutations
from graph.routing import route_test_mutations
from graph.routing import types as routing_types
from graph.search import index, saved_searches
from graph.search import queries as search_queries
from graph.sessions import mutations as session_mutations
from graph.sessions import types as session_types
from graph.spam import quarantine, quarantine_mutations, sender_rules
from graph.submission import compose_requests, draft_mutations, forward_mutations, identities
from graph.submission import mutations as submission_mutations
from graph.submission import types as submission_types
from graph.throttling import mutations as throttling_mutations
from graph.throttling import types as throttling_types
from graph.transfer import types as transfer_types
from graph.types import errors as types_errors
from graph.types.descriptions.argument_descriptions import (
    set_directive_argument_descriptions,
    set_missing_descriptions,
)
from graph.types.descriptions.condition_descriptions import append_condition_rules
from graph.types.descriptions.input_defaults import append_input_defaults
from graph.types.descriptions.input_examples import append_examples
from graph.types.descriptions.reference_descriptions import name_objects_of_references
from graph.types.descriptions.replay_descriptions import set_replay_descriptions
from graph.types.descriptions.warning_descriptions import set_warning_descriptions
from graph.types.mutations import atomic
from graph.types.requirement_texts import append_requirement_texts
from graph.types.scalars import SCALARS
from graph.users import (
    client_reset_mutations,
    create_mutations,
    deleted_users,
    quota_mutations,
    user_preferences_reset_mutations,
    user_usage_reset_mutations,
)
from graph.users import queries as user_queries
from graph.users import update_mutations as user_update_mutations

Query = merge_types(
    "Query",
    (
        nodes.NodeQuery,
        auth_queries.AuthQuery,
        security_log.SecurityLogQuery,
        session_types.SessionQuery,
        cache_types.CacheQuery,
        audit_log.AuditLogQuery,
        log_queries.LogQuery,
        legal_holds.LegalHoldQuery,
        user_queries.UserQuery,
        deleted_users.UserDeleteQuery,
        domain_queries.DomainQuery,
        address_types.AddressQuery,
        trace.AddressTraceQuery,
        delivery_trace.DeliveryTraceQuery,
        mailbox_types.MailboxQuery,
        mailbox_queries.MailboxListQuery,
        message_types.MessageQuery,
        search_queries.SearchQuery,
        index.SearchIndexQuery,
        threads.ThreadQuery,
        submission_types.SubmissionQuery,
        tasks.TaskQuery,
        change_queries.ChangeQuery,
        admin_settings.SettingQuery,
        key_values.KeyValueQuery,
        filter_operations.FilterRootQuery,
        sender_rules.SenderRuleQuery,
        webhooks.WebhookQuery,
        bcc_rules.BccRuleQuery,
        recipient_rewrites.RecipientRewriteQuery,
        rate_limits.RateLimitQuery,
        push_channels.PushQuery,
        sieve_scripts.SieveQuery,
        quarantine.QuarantineQuery,
        queue_types.QueueQuery,
        connector_types.ConnectorQuery,
        dkim_keys.DkimQuery,
        resource_queries.ResourceQuery,
        oauth_types.OauthQuery,
        routing_types.RoutingQuery,
        certificate_types.CertificateQuery,
        blob_types.BlobQuery,
        throttling_types.ThrottlingQuery,
        metric_queries.MetricQuery,
        health_queries.HealthQuery,
        cluster_queries.ClusterQuery,
    ),
)
Mutation = merge_types(
    "Mutation",
    (
        auth_mutations.AuthMutation,
        second_factor_mutations.TwoFactorMutation,
        app_passwords.AppPasswordMutation,
        deleted_users.UserDeleteMutation,
        quota_mutations.UserQuotaMutation,
        client_reset_mutations.ClientResetMutation,
        user_preferences_reset_mutations.UserPreferencesResetMutation,
        user_usage_reset_mutations.UserUsageResetMutation,
        rate_limits.RateLimitMutation,
        throttling_mutations.ThrottlingMutation,
        cluster_mutations.ClusterMutation,
        create_mutations.UserCreateMutation,
        user_update_mutations.UserUpdateMutation,
        domain_mutations.DomainMutation,
        address_mutations.AddressMutation,
        mailbox_types.MailboxMutation,
        update_mutations.MailboxUpdateMutation,
        annotation_mutations.MailboxAnnotationsMutation,
        share_mutations.SharingMutation,
        uid_state_mutations.MailboxStateMutation,
        repair_mutations.MailboxRepairMutation,
        message_mutations.MessageBulkMutation,
        labels.LabelMutation,
        autoreply_mutations.AutoreplyMutation,
        identities.IdentityMutation,
        saved_searches.SavedSearchMutation,
        threads.ThreadMutation,
        forward_mutations.MessageRedirectMutation,
        import_mutations.MessageImportMutation,
        draft_mutations.DraftMutation,
        deleted_messages.ArchiveMutation,
        index.SearchIndexMutation,
        legal_holds.LegalHoldMutation,
        transfer_types.ExportMutation,
        file_types.FileMutation,
        session_mutations.SessionMutation,
        health_mutations.HealthMutation,
        cache_mutations.CacheMutation,
        submission_mutations.SubmissionMutation,
        compose_requests.ComposeMutation,
        tasks.TaskMutation,
        admin_settings.SettingMutation,
        key_values.KeyValueMutation,
        filter_operations.FilterMutation,
        bulk_mutations.FiltersCreateMutation,
        sieve_import_mutations.FilterImportMutation,
        sender_rules.SenderRuleMutation,
        webhook_mutations.WebhookMutation,
        bcc_rules.BccRuleMutation,
        recipient_rewrites.RecipientRewriteMutation,
        push_channels.PushMutation,
        sieve_script_mutations.SieveMutation,
        quarantine_mutations.QuarantineMutation,
        queue_types.QueueMutation,
        connector_mutations.ConnectorEditMutation,
        connector_run_mutations.ConnectorRunMutation,
        certificate_types.CertificateMutation,
        blob_mutations.BlobMutation,
        mail_import_mutations.MailImportMutation,
        dkim_keys.DkimMutation,
        resource_mutations.ResourceMutation,
        oauth_mutations.OauthMutation,
        identity_provider_mutations.IdentityProviderMutation,
        routing_mutations.RoutingMutation,
        metric_mutations.MetricMutation,
        route_test_mutations.RouteTestMutation,
    ),
)
Subscription = merge_types(
    "Subscription",
    (
        change_queries.ChangeSubscription,
        log_queries.LogSubscription,
        metric_queries.MetricSubscription,
        health_queries.HealthSubscription,
        counters.CounterSubscription,
        submission_types.SubmissionSubscription,
        compose_requests.ComposeSubscription,
        queue_types.QueueSubscription,
        tasks.TaskSubscription,
        saved_searches.SavedSearchSubscription,
        live_notifications.NotificationSubscription,
        connector_run_mutations.ConnectorSubscription,
    ),
)
ADDITIONAL_TYPES = [  # types that are only reached through interfaces
    *types_errors.MutationError.types_by_error.values(),
    *nodes.NODE_TYPES.values(),
    *log_types.LOG_ENTRY_TYPES,
    change_types.UserChange,
    change_types.LimitChange,
    change_types.MailboxChange,
    change_types.MessageChange,
    change_types.ResyncChange,
    change_types.SubmissionChange,
]


def _set_descriptions_and_restore_enums(schema: ExecutableSchema) -> ExecutableSchema:
    """Set missing descriptions and restore enum members as enum values.

    Sorting a schema replaces the members by text.
    """
    set_missing_descriptions(schema._schema)  # noqa: SLF001 - strawberry has no other way in
    name_objects_of_references(schema._schema)  # noqa: SLF001
    append_input_defaults(schema._schema)  # noqa: SLF001
    append_examples(schema._schema)  # noqa: SLF001
    append_condition_rules(schema._schema)  # noqa: SLF001
    append_requirement_texts(schema._schema)  # noqa: SLF001
    set_replay_descriptions(schema._schema)  # noqa: SLF001
    set_warning_descriptions(schema._schema)  # noqa: SLF001
    # printed with the fields: a text that differs from the sorted schema would appear twice
    set_directive_argument_descriptions(schema._schema_graphql_directives.values())  # noqa: SLF001
    for kind in schema._schema.type_map.values():  # noqa: SLF001 - strawberry has no other way in
        definition = strawberry_definition(kind)
        if isinstance(kind, GraphQLEnumType) and isinstance(definition, StrawberryEnumDefinition):
            for value in kind.values.values():
                value.value = definition.wrapped_cls(value.value)
    return schema


schema = _set_descriptions_and_restore_enums(
    ExecutableSchema(
        query=Query,
        mutation=Mutation,
        subscription=Subscription,
        types=ADDITIONAL_TYPES,
        directives=[atomic],
        config=StrawberryConfig(scalar_map=SCALARS, sort_schema=True),
    )
)

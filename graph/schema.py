"""All areas put together. `schema.graphql` is this, printed."""

from graphql import GraphQLEnumType
from strawberry.schema.config import StrawberryConfig
from strawberry.tools import merge_types
from strawberry.types.enum import StrawberryEnumDefinition

from graph import (
    addresschange,
    addresses,
    addresstrace,
    adminlog,
    apppasswords,
    archive,
    audit,
    auth,
    authlog,
    autoreplyset,
    bccrules,
    bulk,
    certificates,
    changes,
    clientreset,
    composerequests,
    connectorforms,
    connectors,
    counters,
    dkim,
    domainchange,
    domains,
    errors,
    exports,
    files,
    filterimport,
    filters,
    following,
    forwarding,
    identities,
    keyvalue,
    labels,
    mailboxes,
    mailboxlists,
    mailboxmetadata,
    mailboxrepair,
    mailboxstate,
    mailboxupdate,
    mailimport,
    messages,
    messagetrace,
    nodes,
    noticing,
    notifications,
    profilereset,
    quarantine,
    quarantining,
    queue,
    ratelimits,
    recipientrewrites,
    routetest,
    routing,
    routingchange,
    savedsearches,
    searchindex,
    searchtext,
    senderrules,
    sessions,
    settings,
    sharing,
    sieve,
    sieveput,
    submission,
    tasks,
    threads,
    twofactor,
    uploading,
    usagereset,
    usercreate,
    userdelete,
    userlist,
    userquota,
    userupdate,
    webhooks,
)
from graph.mutations import atomic
from graph.origins import origin
from graph.policy import Schema
from graph.scalars import SCALARS
from graph.words import describe, describe_directives

Query = merge_types(
    "Query",
    (
        nodes.NodeQuery,
        auth.AuthQuery,
        authlog.AuthLogQuery,
        adminlog.AdminLogQuery,
        audit.AuditQuery,
        userlist.UserQuery,
        userdelete.UserDeleteQuery,
        domains.DomainQuery,
        addresses.AddressQuery,
        addresstrace.AddressTraceQuery,
        messagetrace.MessageTraceQuery,
        mailboxes.MailboxQuery,
        mailboxlists.MailboxListQuery,
        messages.MessageQuery,
        searchtext.SearchQuery,
        searchindex.SearchIndexQuery,
        threads.ThreadQuery,
        submission.SubmissionQuery,
        tasks.TaskQuery,
        following.ChangeQuery,
        settings.SettingQuery,
        keyvalue.KeyValueQuery,
        filters.FilterQueries,
        senderrules.SenderRuleQuery,
        webhooks.WebhookQuery,
        bccrules.BccRuleQuery,
        recipientrewrites.RecipientRewriteQuery,
        ratelimits.RateLimitQuery,
        notifications.PushQuery,
        sieve.SieveQuery,
        quarantine.QuarantineQuery,
        queue.QueueQuery,
        connectors.ConnectorQuery,
        dkim.DkimQuery,
        routing.RoutingQuery,
        certificates.CertificateQuery,
    ),
)
Mutation = merge_types(
    "Mutation",
    (
        auth.AuthMutation,
        twofactor.TwoFactorMutation,
        apppasswords.AppPasswordMutation,
        userdelete.UserDeleteMutation,
        userquota.UserQuotaMutation,
        clientreset.ClientResetMutation,
        profilereset.ProfileResetMutation,
        usagereset.UsageResetMutation,
        ratelimits.RateLimitMutation,
        usercreate.UserCreateMutation,
        userupdate.UserUpdateMutation,
        domainchange.DomainMutation,
        addresschange.AddressMutation,
        mailboxes.MailboxMutation,
        mailboxupdate.MailboxUpdateMutation,
        mailboxmetadata.MailboxMetadataMutation,
        sharing.SharingMutation,
        mailboxstate.MailboxStateMutation,
        mailboxrepair.MailboxRepairMutation,
        bulk.BulkMutation,
        labels.LabelMutation,
        autoreplyset.AutoreplyMutation,
        identities.IdentityMutation,
        savedsearches.SavedSearchMutation,
        threads.ThreadMutation,
        forwarding.ForwardingMutation,
        uploading.UploadingMutation,
        archive.ArchiveMutation,
        searchindex.SearchIndexMutation,
        audit.AuditMutation,
        exports.ExportMutation,
        files.FileMutation,
        sessions.SessionMutation,
        submission.SubmissionMutation,
        composerequests.ComposeMutation,
        tasks.TaskMutation,
        settings.SettingMutation,
        keyvalue.KeyValueMutation,
        filters.FilterMutation,
        filterimport.FilterImportMutation,
        senderrules.SenderRuleMutation,
        webhooks.WebhookMutation,
        bccrules.BccRuleMutation,
        recipientrewrites.RecipientRewriteMutation,
        notifications.PushMutation,
        sieveput.SieveMutation,
        quarantining.QuarantineMutation,
        queue.QueueMutation,
        connectorforms.ConnectorFormMutation,
        connectors.ConnectorMutation,
        certificates.CertificateMutation,
        mailimport.MailImportMutation,
        dkim.DkimMutation,
        routingchange.RoutingMutation,
        routetest.RouteTestMutation,
    ),
)
Subscription = merge_types(
    "Subscription",
    (
        following.ChangeSubscription,
        counters.CounterSubscription,
        submission.SubmissionSubscription,
        composerequests.ComposeSubscription,
        queue.QueueSubscription,
        tasks.TaskSubscription,
        savedsearches.SavedSearchSubscription,
        noticing.NotificationSubscription,
        connectors.ConnectorSubscription,
    ),
)
TYPES = [  # that no field names, and interfaces lead to
    *errors.MutationError.types.values(),
    *nodes.KINDS.values(),
    changes.AccountChange,
    changes.LimitChange,
    changes.MailboxChange,
    changes.MessageChange,
    changes.ResyncChange,
    changes.SubmissionChange,
]


def _finished(schema: Schema) -> Schema:
    """Describe what has no words yet, and let enums arrive as members.

    Sorting a schema makes plain text of them.
    """
    describe(schema._schema)  # noqa: SLF001 - strawberry has no other way in
    # what is printed with fields: in other words than the sorted schema's it stood there twice
    describe_directives(schema._schema_graphql_directives.values())  # noqa: SLF001
    for kind in schema._schema.type_map.values():  # noqa: SLF001 - strawberry has no other way in
        definition = origin(kind)
        if isinstance(kind, GraphQLEnumType) and isinstance(definition, StrawberryEnumDefinition):
            for value in kind.values.values():
                value.value = definition.wrapped_cls(value.value)
    return schema


schema = _finished(
    Schema(
        query=Query,
        mutation=Mutation,
        subscription=Subscription,
        types=TYPES,
        directives=[atomic],
        config=StrawberryConfig(scalar_map=SCALARS, sort_schema=True),
    )
)

"""All areas put together. `schema.graphql` is this, printed."""

from strawberry.schema.config import StrawberryConfig
from strawberry.tools import merge_types

from graph import (
    auth,
    bulk,
    changes,
    errors,
    mailboxes,
    messages,
    nodes,
    submission,
    tasks,
    threads,
    users,
)
from graph.policy import EXTENSIONS, Schema
from graph.scalars import SCALARS

Query = merge_types(
    "Query",
    (
        nodes.NodeQuery,
        auth.AuthQuery,
        users.UserQuery,
        mailboxes.MailboxQuery,
        messages.MessageQuery,
        threads.ThreadQuery,
        submission.SubmissionQuery,
        tasks.TaskQuery,
    ),
)
Mutation = merge_types(
    "Mutation",
    (
        auth.AuthMutation,
        users.UserMutation,
        mailboxes.MailboxMutation,
        bulk.BulkMutation,
        submission.SubmissionMutation,
        tasks.TaskMutation,
    ),
)
Subscription = merge_types("Subscription", (changes.ChangeSubscription,))

schema = Schema(
    query=Query,
    mutation=Mutation,
    subscription=Subscription,
    types=[
        *errors.MutationError.types.values(),
        *nodes.KINDS.values(),
        changes.AccountChange,
        changes.MailboxChange,
        changes.MessageChange,
        changes.ResyncChange,
        changes.SubmissionChange,
    ],
    config=StrawberryConfig(scalar_map=SCALARS, sort_schema=True),
    extensions=EXTENSIONS,
)

"""Descriptions of enum values of nodes, components, caches, sessions, bans and blobs."""

OPERATION_VALUE_DESCRIPTIONS = {
    "CacheKind": {
        "BLOB": "Object of a remote object store, in the blob cache of a node.",
        "CREDENTIAL": "Access token or API key that was valid a moment ago.",
        "DNS_ANSWER": "Answer of a name server, also about policies: SPF, DKIM, DMARC, TLSA.",
        "LIST_ROW": "Rows of lists, as JSON: one entry for all rows of a process, of all users.",
        "LOG_ENTRY": "Pending entries of the log store.",
        "MESSAGE_STEP": "Pending steps of the delivery trace.",
        "PARSED_MESSAGE": "Structure, texts and header fields of a message, in memory.",
        "PASSWORD_CHECK": "Result of the check of a password that a user has signed in with.",
        "SECURITY_EVENT": "Pending events of the security log.",
        "TOKEN_USE": "Pending times of the last use of access tokens and API keys.",
    },
    "AdministrativeNodeState": {
        "UP": "The node serves users.",
        "DRAINING": "The node accepts no new sessions, and ends the open ones over the drain time.",
        "DOWN": "The node accepts no new sessions, and ends the open ones at once.",
    },
    "ClusterNodeState": {
        "UP": "The node serves users.",
        "DRAINING": "The node accepts no new sessions, and ends the open ones over the drain time.",
        "DOWN": "The node accepts no new sessions, and ends the open ones at once.",
        "UNREACHABLE": (
            "The server has written no heartbeat for 5 seconds, has stopped, or has not yet "
            "registered for a node that was added. For a load balancer: its last probe failed, or "
            "it was not probed yet."
        ),
    },
    "ClusterNodeKind": {
        "BACKEND": "A server of the platform.",
        "FRONT": "A load balancer in front of the servers. It is probed every 5 seconds.",
    },
    "ClusterNodeSyncState": {
        "SYNCED": "The server has applied the last change.",
        "CATCHING_UP": "The server has not yet applied the last change, or is unreachable.",
    },
    "ComponentKind": {
        "DEPENDENCY": "Service that the process depends on, such as the database or Rspamd.",
        "LISTENER": "Listener that accepts connections of clients.",
        "WORKER": "Background worker.",
    },
    "ComponentState": {
        "DISABLED": "The component is not configured, or another process probes it "
        "(`acmeDirectory`).",
        "FAILED": "The component does not work. `detail` has the reason.",
        "RUNNING": "The component works.",
        "STARTING": "The component is starting, or a dependency has not answered the present probe "
        "yet.",
        "STOPPED": (
            "`componentStop` or the state of the node has stopped the component, or its process "
            "has ended. `detail` has the reason."
        ),
        "STOPPING": "The component finishes its current work and then stops.",
    },
    "SessionService": {
        "EVENT_STREAM": "Subscription by server-sent events.",
        "LMTP": "Delivery by LMTP (RFC 2033).",
        "SMTP": "Mail from other servers by SMTP (RFC 5321).",
        "SUBMISSION": "Message submission by SMTP (RFC 6409).",
        "WEBSOCKET": "WebSocket with the protocol graphql-transport-ws.",
    },
    "BanCause": {
        "SIGN_IN": (
            "Wrong passwords: HTTP, the API, message submission, or the old password of a password "
            "change. Also wrong OAuth tokens in message submission, and wrong credentials of OAuth "
            "clients."
        ),
        "SECOND_FACTOR": "Wrong second factors.",
        "LINK_PASSWORD": "Wrong passwords of share links.",
        "FORGED_LINK": "Links that this platform has not signed.",
        "SMTP_ABUSE": "SMTP sessions that reached the limit of mistakes or unknown recipients.",
        "MANUAL": "An administrator banned the network.",
    },
    "BlobCompression": {
        "NONE": "The content is stored unchanged.",
        "ZSTD": "The content is compressed by Zstandard (RFC 8878).",
    },
    "StorageTier": {
        "HOT": "The body is in the database or in the first object store: fast storage.",
        "COLD": "The body is in the second object store: cheap storage for messages that are "
        "seldom read.",
    },
}

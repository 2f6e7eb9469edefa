"""The values of the settings as a process uses them."""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from pydantic import SecretStr

MIB = 1 << 20
NO_NAME_SERVER = "none"  # value of `dns_resolver`: no DNS query is sent
DEFAULT_RETRY_DELAYS = tuple(timedelta(minutes=seconds) for seconds in (1, 5, 15, 30, 60, 120, 240))


@dataclass(frozen=True, slots=True)
class Options:
    """The values of the settings. `merganser/settings/settings.py` describes and reads them."""

    hostname: str = "localhost"
    authserv_ids: tuple[str, ...] = ()  # authserv-ids whose Authentication-Results are trusted
    # such a field is trusted above this number of Received fields, from the top
    authserv_hops: int = 1
    authentication_check: str = "smtp"  # what this server verifies: off, smtp, all
    dmarc_on_failure: str = "junk"  # for mail that fails DMARC: ignore, junk, reject
    arc_trusted_domains: tuple[str, ...] = ()  # domains whose ARC seals overrule DMARC
    arc_keys_folder: Path | None = None  # folder of the keys that seal forwarded mail
    dkim_sign_host_domain: bool = False  # outgoing mail is also signed for the domain of `hostname`
    mta_sts_mode: str = "off"  # off, testing or enforce: the policy of the domains here
    dkim_retired_key_retention: timedelta = timedelta(days=14)  # time that retired keys are kept
    # header fields of spam filters that are trusted
    spam_headers: tuple[str, ...] = (
        "X-Rspamd-Action",
        "X-Spam",
        "X-Spam-Flag",
        "X-Spam-Level",
        "X-Spam-Score",
        "X-Spam-Status",
        "X-Spamd-Result",
    )
    rspamd_url: str = ""  # address of Rspamd; "": not used
    rspamd_password: SecretStr | None = None
    rspamd_timeout: timedelta = timedelta(seconds=20)
    rspamd_max_size: int = 20 * MIB  # bytes of a message that is scanned
    rspamd_on_failure: str = "accept"  # what happens to mail during an outage: "accept" or "defer"
    rspamd_learn_url: str = ""  # address for training; "": none
    clamd_address: str = ""
    clamd_timeout: timedelta = timedelta(seconds=60)
    clamd_max_size: int = 64 * MIB
    clamd_on_failure: str = "accept"
    outbound_scan: str = "off"  # scan of submitted mail: "off", "viruses" or "spam" (both)
    virus_action: str = (
        "reject"  # what happens to mail with a virus: "reject", "tag" or "quarantine"
    )
    spam_quarantine_score: int = (
        0  # score from which spam goes to the quarantine, not to Junk; 0: none
    )
    quarantine_retention: timedelta = timedelta(days=30)  # retention of the quarantine
    quarantine_max_message_size: int = 10 * MIB  # bytes of a message in the quarantine
    quarantine_max_messages_per_user: int = (
        500  # messages of a user in the quarantine; the oldest are deleted
    )
    # bytes of a user in the quarantine; the oldest are deleted
    quarantine_max_bytes_per_user: int = 256 * MIB
    quarantine_url: str = ""  # page that quarantine notices link to
    public_url: str = ""  # prefix of the links that are sent to clients
    users_default_domain: str | None = None
    auto_create_domains: bool = False  # with the first address that an ADMIN creates in a domain
    new_domain_max_users: int = 0  # of a domain that is created without limits; 0: unlimited
    new_domain_max_addresses: int = 0
    new_domain_default_user_quota: int | None = None  # bytes; None: `users_default_quota`
    new_domain_max_user_quota: int = 0
    new_domain_quota: int = 0
    addresses_subaddress_delimiters: str = (
        "+"  # each begins a label of an address, which is ignored for delivery
    )
    tls_cert: Path | None = None  # of SMTP, for names without a stored certificate
    acme_directory: str = "https://acme-v02.api.letsencrypt.org/directory"
    # CA of that server's certificate; None: those that the system trusts
    acme_ca: Path | None = None
    acme_terms_agreed: bool = False  # if false, no certificate is requested
    acme_contact: str = ""  # mail address for the authority
    acme_eab_key_id: str = ""  # external account binding (RFC 8555, section 7.3.4)
    acme_eab_hmac: SecretStr | None = None
    dns_resolver: str | None = None  # address:port; None: the system's; or NO_NAME_SERVER
    dnssec_trusted: bool = False  # the resolver's DNSSEC result is trusted, which DANE needs
    next_hop: SecretStr | None = None  # server that receives all outgoing mail
    # folder that receives all outgoing mail, instead of any server
    offline_sink: Path | None = None
    mx_allow_private_networks: bool = False  # MX hosts can be in private networks
    outbound_connections_per_domain: int = 2  # connections at once; not for a configured next hop
    outbound_messages_per_minute_per_domain: int = (
        0  # messages to one domain or next hop; 0: unlimited
    )
    outbound_messages_per_connection: int = 100  # messages over one connection
    outbound_idle_connections: int = 2  # idle connections to one server
    outbound_idle_timeout: timedelta = timedelta(seconds=5)  # time that an idle connection is kept
    users_default_quota: int = 1 << 30  # bytes, if neither user nor domain has a quota
    message_max_size: int = 64 * MIB  # bytes
    upload_max_size: int = 50 * MIB  # bytes
    disk_reserve: int = 64 * MIB  # bytes that stay free on the disk of the spool files
    search_max_characters: int = 256 * 1024  # characters of a message in the text index
    files_quota: int = 1 << 30  # bytes of the files of a user; 0: unlimited
    # an unused file is deleted after this time; 0: never
    files_retention: timedelta = timedelta(days=365)
    exports_retention: timedelta = timedelta(days=3)  # retention of exports
    import_folder: Path | None = None  # folder with files that ROOT can import
    mailboxes_max_per_user: int = 1500  # per user
    share_across_domains: bool = False  # if false, mailboxes are shared within a domain only
    submission_max_recipients: int = 400  # per message
    app_passwords_max_per_user: int = 50  # per user
    key_value_stores: tuple[str, ...] = ("default",)
    key_value_max_key_size: int = 512  # bytes of a key
    key_value_max_key_levels: int = 16  # of a key
    key_value_max_value_size: int = 64 << 10  # bytes of a value
    # bytes of a metadata object as JSON, and of the value of a mailbox annotation
    metadata_max_size: int = 64 << 10
    key_value_max_entries: int = 1000  # of a user, and of all shared ones
    key_value_max_total_size: int = MIB  # keys and values of a user, and of all shared ones
    webauthn_rp_id: str = ""  # relying party ID; "": the host of `public_url`
    webauthn_origins: tuple[str, ...] = ()  # allowed origins; empty: that of `public_url`
    profile_imap_server: str = ""  # host:port of the IMAP server that profiles name; "": none
    profile_pop3_server: str = ""
    profile_smtp_server: str = ""  # host:port that profiles name; "": `hostname` and 465
    submission_listen: str | None = None  # host:port of submission with STARTTLS; None: off
    submission_tls_listen: str | None = None  # the same with implicit TLS
    profile_cert: Path | None = None  # signs profiles for Apple devices
    profile_key: Path | None = None  # None: in the same file
    limits_recipients_per_day: int = 2000  # of a user without a limit; 0: unlimited
    limits_received_per_hour: int = 3600  # messages of a user without a limit; 0: unlimited
    limits_send_rate_per_user: str = (
        ""  # messages that a user may send, such as 100/HOUR; "": unlimited
    )
    limits_send_rate_per_domain: str = ""  # messages of a domain without a rate limit
    limits_send_rate_platform: str = ""  # messages of the platform
    limits_forwards_per_day: int = 2000  # of a user or address without a limit; 0: unlimited
    # spam score, 0 to 100, from which mail is not forwarded; 101: all is
    spam_no_forward_score: int = 50
    forwards_allow_private_networks: bool = False  # forward targets can be in private networks
    addresses_max_temporary_per_user: int = 100  # of a user
    filters_max_per_user: int = 400  # of a user
    limits_warning_percent: int = 80  # percent of a limit from which its level is WARNING; 0: never
    limits_critical_percent: int = 95  # percent of a limit from which its level is CRITICAL
    autoreply_interval: timedelta = timedelta(days=1)  # between two replies to a sender
    quota_warning_emails: bool = (
        True  # users get a message if their storage reaches one of these levels
    )
    argon2_memory_cost: int = 65536  # KiB for one password hash
    argon2_time_cost: int = 3  # passes
    passwords_min_length: int = 8  # characters of a new password
    passwords_min_character_classes: int = (
        1  # of lower case, upper case, digits and others; domains can differ
    )
    totp_drift_steps: int = 1  # of 30 seconds that the clock of an authenticator can differ
    breached_passwords_file: Path | None = (
        None  # sorted file of breached passwords, or of their SHA-1
    )
    # URL that returns breached passwords by a prefix of their SHA-1
    breached_passwords_url: str | None = None
    welcome_folder: Path | None = None  # folder of messages that new users get
    # bytes for all password hashes that are computed at once
    password_hashing_memory: int = 256 * MIB
    sign_in_max_failures: int = 12  # of one account or name, in `sign_in_failure_window`
    sign_in_failure_window: timedelta = timedelta(minutes=2)
    sign_in_max_failures_per_account: int = 100  # of one account, from all networks together
    sign_in_max_failures_per_network: int = (
        100  # of one network, in `sign_in_network_failure_window`
    )
    sign_in_network_failure_window: timedelta = timedelta(minutes=5)
    sign_in_max_lockout: timedelta = timedelta(hours=1)  # the longest wait after failures
    sign_in_exempt_networks: tuple[str, ...] = ()  # networks whose failures do not count for them
    # an access token expires if it is unused for this time
    tokens_idle_timeout: timedelta = timedelta(days=14)
    tokens_max_age: timedelta = timedelta(days=180)
    oauth_access_token_ttl: timedelta = timedelta(hours=1)
    # a refresh token expires if it is unused for this time
    oauth_refresh_token_ttl: timedelta = timedelta(days=30)
    oauth_registration: bool = False  # public clients can register themselves (RFC 7591)
    undo_window: timedelta = timedelta(minutes=10)
    deleted_messages_retention: timedelta = timedelta(days=25)
    # how long an account that SCIM deleted can be restored
    scim_deletion_grace_period: timedelta = timedelta(days=30)
    # objects are kept for a restore; 0: not kept
    backup_restore_window: timedelta = timedelta(days=7)
    duplicate_delivery_retention: timedelta = timedelta(days=1)
    idempotency_retention: timedelta = timedelta(hours=24)
    journal_retention: timedelta = timedelta(days=30)
    journal_max_events: int = 100_000  # per stream
    subscriptions_max_lag_events: int = (
        10_000  # events; a follower that is further behind must resync
    )
    # retention of the security log; 0: nothing is written
    security_log_retention: timedelta = timedelta(days=30)
    # time after which the sender gets a delay notice; 0: never
    queue_delay_notice_after: timedelta = timedelta(hours=4)
    # retention of the delivery trace; 0: nothing is written
    message_trace_retention: timedelta = timedelta(days=7)
    audit_log_retention: timedelta = timedelta(days=365)
    cluster_node_retention: timedelta = timedelta(days=7)  # of the node of a stopped server
    # duration from which a query or mutation is logged as slow; 0: never
    log_slow_operation_threshold: timedelta = timedelta(seconds=2)
    # lowest level of stored log entries, then exceptions: models/logs/levels.py
    logs_levels: str = "INFO"
    logs_retention: timedelta = timedelta(days=14)
    logs_max_size: int = 1024 * MIB  # bytes of the log store
    webhooks_allow_private_networks: bool = False  # webhooks can be in private networks
    push_allow_private_networks: bool = False  # push targets can be in private networks
    identity_providers_allow_private_networks: bool = False  # also without TLS
    identity_providers_check_interval: timedelta = timedelta(hours=1)  # of accounts that signed in
    # connectors can use private networks, and unencrypted connections
    connectors_allow_private_networks: bool = False
    connectors_max_runs: int = 8  # runs; those that only wait for events (IMAP IDLE) don't count
    connectors_max_runs_per_host: int = 2  # runs with one remote host
    push_contact: str = ""  # mailto: or https: for push services; "": postmaster@`hostname`
    pushover_url: str = "https://api.pushover.net/1/messages.json"
    queue_retry_delays: tuple[timedelta, ...] = (
        DEFAULT_RETRY_DELAYS  # retry delays; the last one repeats
    )
    queue_lifetime: timedelta = timedelta(days=5)  # a queue entry expires after this time
    bulk_max_items: int = 1000  # messages that a request changes; larger changes are tasks

"""What an operator has set, as far as the floors below the front door need it."""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from pydantic import SecretStr

MIB = 1 << 20
BACKOFF = tuple(timedelta(minutes=each) for each in (1, 5, 15, 30, 60, 120, 240))


@dataclass(frozen=True, slots=True)
class Options:
    """Limits and times. `merganser/settings/settings.py` says what each is for, and reads them."""

    hostname: str = "localhost"
    authserv_ids: tuple[str, ...] = ()  # whose Authentication-Results are believed, where
    authserv_hops: int = 1  # they stand above so many Received fields, counted from the top
    authentication_check: str = "smtp"  # what we check ourselves: off, smtp, all
    dmarc_policy: str = "junk"  # what comes of mail that DMARC fails: ignore, junk, reject
    arc_trusted: tuple[str, ...] = ()  # whose seals overrule DMARC
    arc_keys: Path | None = None  # folder of the keys that seal what is sent on
    dkim_host: bool = False  # also keys of the domain of `hostname` sign what leaves
    mta_sts: str = "off"  # or testing, enforce: the policy that domains here have
    dkim_overlap: timedelta = timedelta(days=14)  # keys that sign no more are kept so long
    spam_headers: tuple[str, ...] = (  # fields of spam filters that are believed
        "X-Rspamd-Action",
        "X-Spam",
        "X-Spam-Flag",
        "X-Spam-Level",
        "X-Spam-Score",
        "X-Spam-Status",
        "X-Spamd-Result",
    )
    rspamd: str = ""  # where scanners are; "": nowhere
    rspamd_password: SecretStr | None = None
    rspamd_timeout: timedelta = timedelta(seconds=20)
    rspamd_max: int = 20 * MIB  # bytes of a message that it is asked about
    rspamd_down: str = "accept"  # what becomes of mail then; or "defer"
    rspamd_learn: str = ""  # where it learns; "": it does not
    clamd: str = ""
    clamd_timeout: timedelta = timedelta(seconds=60)
    clamd_max: int = 64 * MIB
    clamd_down: str = "accept"
    sent_scan: str = "off"  # what is looked for in what users send; or "viruses", "spam" as well
    virus: str = "reject"  # what becomes of mail with one; or "tag", "quarantine"
    spam_quarantine: int = 0  # score from which spam is held, and does not go to Junk; 0: none is
    quarantine_for: timedelta = timedelta(days=30)  # what is held is kept so long
    quarantine_max: int = 10 * MIB  # bytes of a message that is held
    quarantine_items: int = 500  # messages that are held for a user: the oldest go
    quarantine_bytes: int = 256 * MIB  # bytes of those, likewise
    quarantine_url: str = ""  # page where users see what is held, which letters lead to
    public_url: str = ""  # before the paths of addresses we hand out
    default_domain: str | None = None
    auto_create_domains: bool = False  # by the first address that an ADMIN makes there
    domain_max_users: int = 0  # of a domain that is created without limits; 0: any number
    domain_max_addresses: int = 0
    domain_default_user_quota: int | None = None  # bytes; None: `default_quota`
    domain_max_user_quota: int = 0
    domain_quota: int = 0
    delimiters: str = "+"  # each begins a label of an address: what is right of it is cut off
    tls_cert: Path | None = None  # of SMTP, where none is stored for a name
    acme_directory: str = "https://acme-v02.api.letsencrypt.org/directory"
    acme_ca: Path | None = None  # who signs that server's certificate; None: whom the system trusts
    acme_terms_agreed: bool = False  # without it no certificate is asked for
    acme_contact: str = ""  # address for the authority
    acme_eab_key_id: str = ""  # our account outside of ACME, where it asks for one
    acme_eab_hmac: SecretStr | None = None
    dns_resolver: str | None = None  # address:port; None: the system's
    dns_validates: bool = False  # what it says of signatures is believed: for DANE
    next_hop: SecretStr | None = None  # server that takes all that leaves
    mx_private: bool = False  # servers that only DNS names may be in our own networks
    send_per_domain: int = 2  # connections at once; does not hold for a next hop
    send_per_minute: int = 0  # messages to one domain or next hop; 0: any number
    send_connection_messages: int = 100  # over one connection
    send_connections_kept: int = 2  # to one server, that wait for more
    send_connection_idle: timedelta = timedelta(seconds=5)  # for so long
    default_quota: int = 1 << 30  # bytes, where neither user nor domain has one
    message_max: int = 64 * MIB  # bytes
    upload_max: int = 50 * MIB  # bytes
    disk_reserve: int = 64 * MIB  # bytes that stay free on the disk of the spool
    search_text: int = 256 * 1024  # characters of a message that are in the text index
    files_quota: int = 1 << 30  # bytes of the files of a user; 0: any number
    files_for: timedelta = timedelta(days=365)  # unused that long, a file ends; 0: never
    exports_for: timedelta = timedelta(days=3)  # accounts as files; then they are removed
    import_folder: Path | None = None  # whose files ROOT may have brought in
    max_mailboxes: int = 1500  # per user
    share_across_domains: bool = False  # else folders are shared within a domain
    max_recipients: int = 400  # per message
    max_app_passwords: int = 50  # per user
    key_value_stores: tuple[str, ...] = ("default",)
    key_value_key: int = 512  # bytes of a key, in
    key_value_levels: int = 16
    key_value_max: int = 64 << 10  # bytes of a value
    key_value_entries: int = 1000  # of a user, and of all that are shared
    key_value_bytes: int = MIB  # keys and values of those
    webauthn_id: str = ""  # for whom security keys are made; else the host of `public_url`
    webauthn_origins: tuple[str, ...] = ()  # pages they work on; else that of `public_url`
    imap_server: str = ""  # host:port of an IMAP server beside this one, for profiles; "": none
    pop3_server: str = ""
    smtp_server: str = ""  # host:port as profiles say; "": `hostname` and 465
    profile_cert: Path | None = None  # signs profiles for Apple's devices
    profile_key: Path | None = None  # else in the same file
    recipients_daily: int = 2000  # of a user who has no limit of the own; 0: any number
    received_hourly: int = 3600  # messages, likewise
    rate_user: str = ""  # messages that an account may send, such as 100/HOUR; "": any number
    rate_domain: str = ""  # all of a domain together, where neither has a rate of its own
    rate_platform: str = ""  # all together
    forwards_daily: int = 2000  # of an account or address without a limit of the own, likewise
    spam_forward_max: int = 50  # spam score, 0 to 100, from which mail is not sent on; 101: all is
    forwards_private: bool = False  # they may forward to relays and pages in our own networks
    temporary_addresses: int = 100  # of a user
    filters_max: int = 400  # likewise
    limit_warning: int = 80  # percent of a limit, from where it is WARNING; 0: never
    limit_critical: int = 95  # and CRITICAL
    autoreply_interval: timedelta = timedelta(days=1)  # between two answers to a sender
    limit_letters: bool = True  # an account hears of it where storage passes one of these
    argon2_memory: int = 65536  # KiB; with `argon2_time` what a password costs to check
    argon2_time: int = 3  # passes
    password_min: int = 8  # characters of a password that is set, and how many of lower case,
    password_classes: int = 1  # upper case, digits and others; domains may say otherwise
    totp_steps: int = 1  # of 30 seconds, that the clock of an authenticator may be wrong
    breached_list: Path | None = None  # sorted file of passwords that are known, or their SHA-1
    breached_range: str | None = None  # where to ask for them by the beginning of their SHA-1
    welcome: Path | None = None  # folder of messages that new accounts begin with
    login_memory: int = 256 * MIB  # bytes that all hashing of passwords takes at once
    login_failures: int = 12  # of one account or name, in
    login_window: timedelta = timedelta(minutes=2)
    account_failures: int = 100  # of one account, from all networks together
    network_failures: int = 100  # of one network, in
    network_window: timedelta = timedelta(minutes=5)
    login_wait: timedelta = timedelta(hours=1)  # the longest that anybody is made to wait
    login_allow: tuple[str, ...] = ()  # networks whose failures do not count against them
    token_idle: timedelta = timedelta(days=14)  # unused that long, a token ends
    token_life: timedelta = timedelta(days=180)
    undo_window: timedelta = timedelta(minutes=10)
    archive_for: timedelta = timedelta(days=25)
    restore_window: timedelta = timedelta(days=7)  # objects are kept for a restore; 0: not
    receipts_for: timedelta = timedelta(days=1)
    replays_for: timedelta = timedelta(hours=24)
    journal_days: int = 30
    journal_events: int = 100_000  # per stream
    changes_overflow: int = 10_000  # events behind: who follows and is further reads afresh
    authlog_for: timedelta = timedelta(days=30)  # 0: nothing is written
    queue_delay_notice: timedelta = timedelta(hours=4)  # then a sender is told; 0: never
    trace_for: timedelta = timedelta(days=7)  # 0: nothing is written of the ways of messages
    adminlog_for: timedelta = timedelta(days=365)
    webhooks_private: bool = False  # they may be posted to our own networks
    push_private: bool = False  # so may pushes
    connectors_private: bool = False  # mail may be fetched from our own networks, and in the clear
    connectors_at_once: int = 8  # runs; those that only listen are not counted
    connectors_per_host: int = 2  # of these, with one host elsewhere
    push_contact: str = ""  # mailto: or https:, for push services; else postmaster@`hostname`
    pushover_url: str = "https://api.pushover.net/1/messages.json"
    queue_backoff: tuple[timedelta, ...] = BACKOFF  # after each attempt, then always the last
    queue_expires: timedelta = timedelta(days=5)  # what nobody took by then goes back
    bulk: int = 1000  # messages a request changes; more are a task's work

CREATE TABLE acme_accounts (
    id INTEGER NOT NULL,
    directory VARCHAR NOT NULL,
    url VARCHAR,
    private_key VARCHAR NOT NULL,
    created_at DATETIME NOT NULL,
    CONSTRAINT pk_acme_accounts PRIMARY KEY (id),
    CONSTRAINT uq_acme_accounts_directory UNIQUE (directory)
);

CREATE TABLE ban_change_counters (
    id INTEGER NOT NULL,
    last_change INTEGER NOT NULL,
    CONSTRAINT pk_ban_change_counters PRIMARY KEY (id)
);

CREATE TABLE ban_list_hosts (
    name VARCHAR NOT NULL,
    addresses JSON NOT NULL,
    resolved_at DATETIME,
    checked_at DATETIME NOT NULL,
    problem VARCHAR,
    CONSTRAINT pk_ban_list_hosts PRIMARY KEY (name)
);

CREATE TABLE ban_policies (
    id INTEGER NOT NULL,
    ban_seconds INTEGER NOT NULL,
    ban_time_increment BOOLEAN NOT NULL,
    max_attempts INTEGER NOT NULL,
    retry_window_seconds INTEGER NOT NULL,
    netmask_ipv4 INTEGER NOT NULL,
    netmask_ipv6 INTEGER NOT NULL,
    allowlist JSON NOT NULL,
    denylist JSON NOT NULL,
    updated_at DATETIME NOT NULL,
    CONSTRAINT pk_ban_policies PRIMARY KEY (id)
);

CREATE TABLE blobs (
    id INTEGER NOT NULL,
    tenant_id INTEGER NOT NULL,
    digest VARCHAR NOT NULL,
    size INTEGER NOT NULL,
    stored_size INTEGER NOT NULL,
    codec VARCHAR NOT NULL,
    name VARCHAR,
    data BLOB,
    created_at DATETIME NOT NULL,
    damaged_at DATETIME,
    CONSTRAINT pk_blobs PRIMARY KEY (id),
    CONSTRAINT uq_blobs_tenant_id_digest UNIQUE (tenant_id, digest),
    CONSTRAINT uq_blobs_name UNIQUE (name)
);

CREATE TABLE certificates (
    id INTEGER NOT NULL,
    server_name VARCHAR NOT NULL,
    alt_names JSON NOT NULL,
    description VARCHAR,
    chain VARCHAR,
    private_key VARCHAR,
    version INTEGER NOT NULL,
    sha1 VARCHAR,
    sha256 VARCHAR,
    spki VARCHAR,
    issuer VARCHAR,
    not_before DATETIME,
    not_after DATETIME,
    acme BOOLEAN NOT NULL,
    acme_names JSON NOT NULL,
    acme_directory VARCHAR,
    acme_renew_at DATETIME,
    acme_state VARCHAR(32),
    acme_error VARCHAR,
    acme_next_at DATETIME,
    acme_failures INTEGER NOT NULL,
    lease INTEGER,
    holder INTEGER,
    created_at DATETIME NOT NULL,
    updated_at DATETIME NOT NULL,
    CONSTRAINT pk_certificates PRIMARY KEY (id),
    CONSTRAINT uq_certificates_server_name UNIQUE (server_name)
);
CREATE INDEX certificates_leased ON certificates (holder) WHERE holder IS NOT NULL;
CREATE INDEX ix_certificates_acme_next_at ON certificates (acme_next_at);
CREATE INDEX ix_certificates_not_after ON certificates (not_after);

CREATE TABLE cluster_nodes (
    id INTEGER NOT NULL,
    host VARCHAR NOT NULL,
    port INTEGER NOT NULL,
    kind VARCHAR(32) NOT NULL,
    tag VARCHAR,
    weight INTEGER NOT NULL,
    state VARCHAR(32) NOT NULL,
    state_changed_at DATETIME NOT NULL,
    drain_seconds INTEGER NOT NULL,
    drain_ends_at DATETIME,
    is_added BOOLEAN NOT NULL,
    server VARCHAR,
    version VARCHAR,
    process_count INTEGER NOT NULL,
    smtp_port INTEGER,
    submission_port INTEGER,
    ip_addresses JSON NOT NULL,
    change_number INTEGER NOT NULL,
    applied_change_number INTEGER NOT NULL,
    heartbeat_count INTEGER NOT NULL,
    last_heartbeat_at DATETIME,
    unreachable_at DATETIME,
    last_failure_at DATETIME,
    last_failure VARCHAR,
    created_at DATETIME NOT NULL,
    CONSTRAINT pk_cluster_nodes PRIMARY KEY (id),
    CONSTRAINT uq_cluster_nodes_address UNIQUE (host, port)
);
CREATE INDEX cluster_nodes_by_creation ON cluster_nodes (created_at, id);
CREATE INDEX cluster_nodes_by_host ON cluster_nodes (host, id);
CREATE INDEX cluster_nodes_by_state_change ON cluster_nodes (state_changed_at, id);
CREATE INDEX ix_cluster_nodes_server ON cluster_nodes (server);

CREATE TABLE component_holds (
    component VARCHAR NOT NULL,
    node VARCHAR NOT NULL,
    is_stopped BOOLEAN NOT NULL,
    changed_at DATETIME NOT NULL,
    CONSTRAINT pk_component_holds PRIMARY KEY (component, node)
);

CREATE TABLE credential_changes (
    id INTEGER NOT NULL,
    user_id INTEGER NOT NULL,
    position INTEGER NOT NULL,
    at DATETIME NOT NULL,
    CONSTRAINT pk_credential_changes PRIMARY KEY (id)
);
CREATE INDEX ix_credential_changes_at ON credential_changes (at);
CREATE INDEX ix_credential_changes_position ON credential_changes (position);

CREATE TABLE delivery_receipts (
    digest VARCHAR NOT NULL,
    message_id INTEGER NOT NULL,
    at DATETIME NOT NULL,
    CONSTRAINT pk_delivery_receipts PRIMARY KEY (digest)
);
CREATE INDEX ix_delivery_receipts_at ON delivery_receipts (at);

CREATE TABLE delivery_trace_steps (
    id INTEGER NOT NULL,
    at DATETIME NOT NULL,
    queue_id VARCHAR NOT NULL,
    message_id VARCHAR,
    component VARCHAR(32) NOT NULL,
    event VARCHAR(32) NOT NULL,
    detail VARCHAR,
    address VARCHAR,
    normalized_address VARCHAR,
    recipient_domain VARCHAR,
    sender VARCHAR,
    normalized_sender_address VARCHAR,
    sender_domain VARCHAR,
    stored_message_id INTEGER,
    domain_id INTEGER,
    submission_id INTEGER,
    CONSTRAINT pk_delivery_trace_steps PRIMARY KEY (id)
);
CREATE INDEX delivery_trace_steps_of_message_id ON delivery_trace_steps (message_id, at, id) WHERE message_id IS NOT NULL;
CREATE INDEX delivery_trace_steps_of_queue_id ON delivery_trace_steps (queue_id, at, id);
CREATE INDEX delivery_trace_steps_of_recipient ON delivery_trace_steps (normalized_address, at, id) WHERE normalized_address IS NOT NULL;
CREATE INDEX delivery_trace_steps_of_recipient_domain ON delivery_trace_steps (recipient_domain, at, id) WHERE recipient_domain IS NOT NULL;
CREATE INDEX delivery_trace_steps_of_sender ON delivery_trace_steps (normalized_sender_address, at, id) WHERE normalized_sender_address IS NOT NULL;
CREATE INDEX delivery_trace_steps_of_sender_domain ON delivery_trace_steps (sender_domain, at, id) WHERE sender_domain IS NOT NULL;
CREATE INDEX ix_delivery_trace_steps_at ON delivery_trace_steps (at);

CREATE TABLE destination_slots (
    destination VARCHAR NOT NULL,
    free_at DATETIME NOT NULL,
    until DATETIME NOT NULL,
    CONSTRAINT pk_destination_slots PRIMARY KEY (destination)
);
CREATE INDEX ix_destination_slots_until ON destination_slots (until);

CREATE TABLE domains (
    id INTEGER NOT NULL,
    name VARCHAR NOT NULL,
    description VARCHAR,
    active BOOLEAN NOT NULL,
    tags JSON NOT NULL,
    max_addresses INTEGER NOT NULL,
    max_users INTEGER NOT NULL,
    default_user_quota INTEGER,
    max_user_quota INTEGER NOT NULL,
    quota INTEGER NOT NULL,
    user_count INTEGER NOT NULL,
    address_count INTEGER NOT NULL,
    quota_allocated INTEGER NOT NULL,
    backup_mx BOOLEAN NOT NULL,
    relay_all_recipients BOOLEAN NOT NULL,
    relay_unknown_only BOOLEAN NOT NULL,
    relay_host_id INTEGER,
    password_min INTEGER,
    password_classes INTEGER,
    global_address_list BOOLEAN NOT NULL,
    created_at DATETIME NOT NULL,
    updated_at DATETIME NOT NULL,
    CONSTRAINT pk_domains PRIMARY KEY (id),
    CONSTRAINT uq_domains_name UNIQUE (name)
);
CREATE INDEX domains_by_age ON domains (created_at, id);
CREATE INDEX domains_by_relay_host ON domains (relay_host_id, name, id) WHERE relay_host_id IS NOT NULL;
CREATE INDEX domains_by_user_count ON domains (user_count, id);

CREATE TABLE dropped_objects (
    name VARCHAR NOT NULL,
    at DATETIME NOT NULL,
    CONSTRAINT pk_dropped_objects PRIMARY KEY (name)
);
CREATE INDEX ix_dropped_objects_at ON dropped_objects (at);

CREATE TABLE forwarding_hosts (
    id INTEGER NOT NULL,
    host VARCHAR NOT NULL,
    source VARCHAR NOT NULL,
    filter_spam BOOLEAN NOT NULL,
    created_at DATETIME NOT NULL,
    CONSTRAINT pk_forwarding_hosts PRIMARY KEY (id),
    CONSTRAINT uq_forwarding_hosts_host UNIQUE (host)
);

CREATE TABLE greylist_entries (
    "key" VARCHAR NOT NULL,
    since DATETIME NOT NULL,
    until DATETIME NOT NULL,
    CONSTRAINT pk_greylist_entries PRIMARY KEY ("key")
);
CREATE INDEX ix_greylist_entries_until ON greylist_entries (until);

CREATE TABLE idempotent_payloads (
    principal VARCHAR NOT NULL,
    "key" VARCHAR NOT NULL,
    request_digest VARCHAR NOT NULL,
    answer JSON NOT NULL,
    at DATETIME NOT NULL,
    CONSTRAINT pk_idempotent_payloads PRIMARY KEY (principal, "key")
);
CREATE INDEX ix_idempotent_payloads_at ON idempotent_payloads (at);

CREATE TABLE legal_holds (
    id INTEGER NOT NULL,
    user_id INTEGER NOT NULL,
    username VARCHAR NOT NULL,
    starts_at DATETIME,
    ends_at DATETIME,
    expires_at DATETIME NOT NULL,
    reason VARCHAR,
    created_at DATETIME NOT NULL,
    created_by VARCHAR NOT NULL,
    task_id INTEGER NOT NULL,
    copied BOOLEAN NOT NULL,
    copies INTEGER NOT NULL,
    size INTEGER NOT NULL,
    head VARCHAR NOT NULL,
    ended_at DATETIME,
    removed BOOLEAN NOT NULL,
    CONSTRAINT pk_legal_holds PRIMARY KEY (id)
);
CREATE INDEX ix_legal_holds_expires_at ON legal_holds (expires_at);
CREATE INDEX ix_legal_holds_user_id ON legal_holds (user_id);

CREATE TABLE metric_resets (
    name VARCHAR NOT NULL,
    reset_at DATETIME NOT NULL,
    CONSTRAINT pk_metric_resets PRIMARY KEY (name)
);

CREATE TABLE mta_sts_policies (
    id INTEGER NOT NULL,
    domain VARCHAR NOT NULL,
    policy_id VARCHAR NOT NULL,
    mode VARCHAR(32) NOT NULL,
    mx JSON NOT NULL,
    max_age INTEGER NOT NULL,
    fetched_at DATETIME NOT NULL,
    expires_at DATETIME NOT NULL,
    retry_at DATETIME,
    CONSTRAINT pk_mta_sts_policies PRIMARY KEY (id),
    CONSTRAINT uq_mta_sts_policies_domain UNIQUE (domain)
);
CREATE INDEX ix_mta_sts_policies_expires_at ON mta_sts_policies (expires_at);

CREATE TABLE network_bans (
    id INTEGER NOT NULL,
    network VARCHAR NOT NULL,
    first_ip VARCHAR NOT NULL,
    last_ip VARCHAR NOT NULL,
    cause VARCHAR(32) NOT NULL,
    reason VARCHAR,
    failure_count INTEGER NOT NULL,
    ban_count INTEGER NOT NULL,
    started_at DATETIME NOT NULL,
    ends_at DATETIME NOT NULL,
    change_number INTEGER NOT NULL,
    CONSTRAINT pk_network_bans PRIMARY KEY (id),
    CONSTRAINT uq_network_bans_network UNIQUE (network)
);
CREATE INDEX ix_network_bans_change_number ON network_bans (change_number);
CREATE INDEX network_bans_by_end ON network_bans (ends_at, id);
CREATE INDEX network_bans_by_ip ON network_bans (first_ip, last_ip);
CREATE INDEX network_bans_by_start ON network_bans (started_at, id);

CREATE TABLE network_failures (
    network VARCHAR NOT NULL,
    first_ip VARCHAR NOT NULL,
    last_ip VARCHAR NOT NULL,
    failure_count INTEGER NOT NULL,
    window_ends_at DATETIME NOT NULL,
    CONSTRAINT pk_network_failures PRIMARY KEY (network)
);
CREATE INDEX ix_network_failures_window_ends_at ON network_failures (window_ends_at);
CREATE INDEX network_failures_by_ip ON network_failures (first_ip, last_ip);

CREATE TABLE oauth_clients (
    id INTEGER NOT NULL,
    client_id VARCHAR NOT NULL,
    name VARCHAR NOT NULL,
    secret_digest VARCHAR,
    redirect_uris JSON NOT NULL,
    grant_types JSON NOT NULL,
    scopes JSON NOT NULL,
    created_by VARCHAR,
    created_at DATETIME NOT NULL,
    updated_at DATETIME,
    secret_rotated_at DATETIME,
    last_used_at DATETIME,
    CONSTRAINT pk_oauth_clients PRIMARY KEY (id),
    CONSTRAINT uq_oauth_clients_client_id UNIQUE (client_id)
);
CREATE INDEX ix_oauth_clients_created_at ON oauth_clients (created_at, id);
CREATE INDEX ix_oauth_clients_name ON oauth_clients (name, id);

CREATE TABLE oauth_signing_keys (
    id INTEGER NOT NULL,
    kid VARCHAR NOT NULL,
    public_key JSON NOT NULL,
    private_key VARCHAR NOT NULL,
    created_at DATETIME NOT NULL,
    activates_at DATETIME NOT NULL,
    retires_at DATETIME,
    CONSTRAINT pk_oauth_signing_keys PRIMARY KEY (id),
    CONSTRAINT uq_oauth_signing_keys_kid UNIQUE (kid)
);

CREATE TABLE process_answers (
    id INTEGER NOT NULL,
    request_id INTEGER NOT NULL,
    process_id INTEGER NOT NULL,
    answer JSON NOT NULL,
    created_at DATETIME NOT NULL,
    CONSTRAINT pk_process_answers PRIMARY KEY (id)
);
CREATE INDEX ix_process_answers_created_at ON process_answers (created_at);
CREATE INDEX ix_process_answers_request_id ON process_answers (request_id);

CREATE TABLE process_requests (
    id INTEGER NOT NULL,
    kind VARCHAR NOT NULL,
    arguments JSON NOT NULL,
    created_at DATETIME NOT NULL,
    reply_by DATETIME NOT NULL,
    CONSTRAINT pk_process_requests PRIMARY KEY (id)
);
CREATE INDEX ix_process_requests_created_at ON process_requests (created_at);

CREATE TABLE rate_windows (
    id INTEGER NOT NULL,
    per VARCHAR(32) NOT NULL,
    allowed INTEGER NOT NULL,
    used INTEGER NOT NULL,
    until DATETIME NOT NULL,
    CONSTRAINT pk_rate_windows PRIMARY KEY (id)
);
CREATE INDEX ix_rate_windows_until ON rate_windows (until);

CREATE TABLE recipient_rewrites (
    made_by INTEGER,
    made_as VARCHAR(32) NOT NULL,
    id INTEGER NOT NULL,
    local VARCHAR NOT NULL,
    domain VARCHAR NOT NULL,
    target VARCHAR NOT NULL,
    outside BOOLEAN NOT NULL,
    active BOOLEAN NOT NULL,
    created_at DATETIME NOT NULL,
    updated_at DATETIME NOT NULL,
    CONSTRAINT pk_recipient_rewrites PRIMARY KEY (id)
);
CREATE INDEX recipient_rewrites_oldest ON recipient_rewrites (created_at, id);
CREATE UNIQUE INDEX uq_recipient_rewrites_from ON recipient_rewrites (domain, local);

CREATE TABLE relay_hosts (
    id INTEGER NOT NULL,
    host VARCHAR NOT NULL,
    port INTEGER NOT NULL,
    username VARCHAR,
    secret VARCHAR,
    tls BOOLEAN NOT NULL,
    active BOOLEAN NOT NULL,
    created_at DATETIME NOT NULL,
    CONSTRAINT pk_relay_hosts PRIMARY KEY (id)
);

CREATE TABLE secret_box_keys (
    name VARCHAR NOT NULL,
    proof VARCHAR NOT NULL,
    created_at DATETIME NOT NULL,
    CONSTRAINT pk_secret_box_keys PRIMARY KEY (name)
);

CREATE TABLE server_clocks (
    server VARCHAR NOT NULL,
    boot VARCHAR NOT NULL,
    ahead INTEGER NOT NULL,
    seen_at DATETIME NOT NULL,
    CONSTRAINT pk_server_clocks PRIMARY KEY (server)
);

CREATE TABLE server_processes (
    id INTEGER NOT NULL,
    server VARCHAR NOT NULL,
    name VARCHAR NOT NULL,
    "exclusive" VARCHAR,
    host VARCHAR NOT NULL,
    ip_addresses JSON NOT NULL,
    pid INTEGER NOT NULL,
    version VARCHAR NOT NULL,
    answers_requests BOOLEAN NOT NULL,
    boot VARCHAR NOT NULL,
    heartbeat_count INTEGER NOT NULL,
    heartbeat_at INTEGER NOT NULL,
    secret_box_keys JSON NOT NULL,
    started_at DATETIME NOT NULL,
    seen_at DATETIME NOT NULL,
    CONSTRAINT pk_server_processes PRIMARY KEY (id)
);
CREATE INDEX ix_server_processes_server ON server_processes (server);

CREATE TABLE setting_history (
    id INTEGER NOT NULL,
    "key" VARCHAR NOT NULL,
    "before" JSON,
    "after" JSON,
    at DATETIME NOT NULL,
    actor VARCHAR NOT NULL,
    actor_id INTEGER,
    reason VARCHAR,
    CONSTRAINT pk_setting_history PRIMARY KEY (id)
);
CREATE INDEX ix_setting_history_key ON setting_history ("key", at, id);

CREATE TABLE setting_values (
    "key" VARCHAR NOT NULL,
    value JSON,
    updated_at DATETIME NOT NULL,
    CONSTRAINT pk_setting_values PRIMARY KEY ("key")
);

CREATE TABLE statistic_steps (
    domain_id INTEGER NOT NULL,
    step_seconds INTEGER NOT NULL,
    started_at INTEGER NOT NULL,
    sign_ins INTEGER NOT NULL,
    sign_in_failures INTEGER NOT NULL,
    messages_in INTEGER NOT NULL,
    bytes_in INTEGER NOT NULL,
    messages_junk INTEGER NOT NULL,
    viruses INTEGER NOT NULL,
    messages_out INTEGER NOT NULL,
    bytes_out INTEGER NOT NULL,
    messages_bounced INTEGER NOT NULL,
    api_operations INTEGER NOT NULL,
    latency_0 INTEGER NOT NULL,
    latency_1 INTEGER NOT NULL,
    latency_2 INTEGER NOT NULL,
    latency_3 INTEGER NOT NULL,
    latency_4 INTEGER NOT NULL,
    latency_5 INTEGER NOT NULL,
    latency_6 INTEGER NOT NULL,
    latency_7 INTEGER NOT NULL,
    latency_8 INTEGER NOT NULL,
    latency_9 INTEGER NOT NULL,
    latency_10 INTEGER NOT NULL,
    latency_11 INTEGER NOT NULL,
    latency_12 INTEGER NOT NULL,
    latency_13 INTEGER NOT NULL,
    storage INTEGER,
    active_users INTEGER,
    queue_length INTEGER,
    CONSTRAINT pk_statistic_steps PRIMARY KEY (domain_id, step_seconds, started_at)
);

CREATE TABLE store_facts (
    name VARCHAR NOT NULL,
    digest VARCHAR NOT NULL,
    host VARCHAR NOT NULL,
    location VARCHAR NOT NULL,
    at DATETIME NOT NULL,
    CONSTRAINT pk_store_facts PRIMARY KEY (name)
);

CREATE TABLE store_incarnation (
    id INTEGER NOT NULL,
    store VARCHAR NOT NULL,
    number INTEGER NOT NULL,
    base INTEGER NOT NULL,
    beat INTEGER NOT NULL,
    began_at DATETIME,
    reason VARCHAR,
    CONSTRAINT pk_store_incarnation PRIMARY KEY (id)
);

CREATE TABLE streams (
    id INTEGER NOT NULL,
    last INTEGER NOT NULL,
    pruned_position INTEGER NOT NULL,
    pruned_at DATETIME,
    CONSTRAINT pk_streams PRIMARY KEY (id)
);

CREATE TABLE throttles (
    id INTEGER NOT NULL,
    "key" VARCHAR NOT NULL,
    failures INTEGER NOT NULL,
    times INTEGER NOT NULL,
    until DATETIME NOT NULL,
    wait_since DATETIME,
    network VARCHAR,
    first_ip VARCHAR,
    last_ip VARCHAR,
    CONSTRAINT pk_throttles PRIMARY KEY (id),
    CONSTRAINT uq_throttles_key UNIQUE ("key")
);
CREATE INDEX ix_throttles_until ON throttles (until);
CREATE INDEX throttles_by_ip ON throttles (first_ip, last_ip) WHERE first_ip IS NOT NULL;
CREATE INDEX throttles_by_wait ON throttles (wait_since, id) WHERE wait_since IS NOT NULL;

CREATE TABLE tls_policies (
    id INTEGER NOT NULL,
    destination VARCHAR NOT NULL,
    level VARCHAR(32) NOT NULL,
    parameters VARCHAR,
    active BOOLEAN NOT NULL,
    created_at DATETIME NOT NULL,
    updated_at DATETIME,
    CONSTRAINT pk_tls_policies PRIMARY KEY (id),
    CONSTRAINT uq_tls_policies_destination UNIQUE (destination)
);

CREATE TABLE transports (
    id INTEGER NOT NULL,
    destination VARCHAR NOT NULL,
    next_hop VARCHAR NOT NULL,
    lookup_mx BOOLEAN NOT NULL,
    username VARCHAR,
    secret VARCHAR,
    active BOOLEAN NOT NULL,
    created_at DATETIME NOT NULL,
    CONSTRAINT pk_transports PRIMARY KEY (id),
    CONSTRAINT uq_transports_destination UNIQUE (destination)
);

CREATE TABLE trusted_documents (
    hash BLOB NOT NULL,
    text VARCHAR NOT NULL,
    operations JSON NOT NULL,
    added_at DATETIME NOT NULL,
    CONSTRAINT pk_trusted_documents PRIMARY KEY (hash)
);

CREATE TABLE used_identity_tokens (
    id INTEGER NOT NULL,
    digest VARCHAR NOT NULL,
    expires_at DATETIME NOT NULL,
    CONSTRAINT pk_used_identity_tokens PRIMARY KEY (id),
    CONSTRAINT uq_used_identity_tokens_digest UNIQUE (digest)
);
CREATE INDEX ix_used_identity_tokens_expires_at ON used_identity_tokens (expires_at);

CREATE TABLE vapid_key_pairs (
    id INTEGER NOT NULL,
    public VARCHAR NOT NULL,
    private VARCHAR NOT NULL,
    created_at DATETIME NOT NULL,
    CONSTRAINT pk_vapid_key_pairs PRIMARY KEY (id)
);

CREATE TABLE write_probes (
    id INTEGER NOT NULL,
    at DATETIME NOT NULL,
    CONSTRAINT pk_write_probes PRIMARY KEY (id)
);

CREATE TABLE acme_challenges (
    token VARCHAR NOT NULL,
    certificate_id INTEGER NOT NULL,
    answer VARCHAR NOT NULL,
    expires_at DATETIME NOT NULL,
    CONSTRAINT pk_acme_challenges PRIMARY KEY (token),
    CONSTRAINT fk_acme_challenges_certificate_id FOREIGN KEY(certificate_id) REFERENCES certificates (id) ON DELETE CASCADE
);
CREATE INDEX ix_acme_challenges_certificate_id ON acme_challenges (certificate_id);
CREATE INDEX ix_acme_challenges_expires_at ON acme_challenges (expires_at);

CREATE TABLE audit_log (
    id INTEGER NOT NULL,
    at DATETIME NOT NULL,
    actor VARCHAR NOT NULL,
    actor_id INTEGER,
    role VARCHAR(32) NOT NULL,
    ip VARCHAR,
    mutation VARCHAR NOT NULL,
    target_kind VARCHAR,
    target_id INTEGER,
    domain_id INTEGER,
    "before" JSON,
    "after" JSON,
    reason VARCHAR,
    CONSTRAINT pk_audit_log PRIMARY KEY (id),
    CONSTRAINT fk_audit_log_domain_id FOREIGN KEY(domain_id) REFERENCES domains (id) ON DELETE SET NULL
);
CREATE INDEX ix_audit_log_actor_id ON audit_log (actor_id, at, id);
CREATE INDEX ix_audit_log_at ON audit_log (at, id);
CREATE INDEX ix_audit_log_domain_id ON audit_log (domain_id, at, id);
CREATE INDEX ix_audit_log_target_id ON audit_log (target_id, at, id);

CREATE TABLE bcc_rules (
    made_by INTEGER,
    made_as VARCHAR(32) NOT NULL,
    id INTEGER NOT NULL,
    direction VARCHAR(32) NOT NULL,
    local VARCHAR NOT NULL,
    domain_id INTEGER NOT NULL,
    bcc_to VARCHAR NOT NULL,
    active BOOLEAN NOT NULL,
    created_at DATETIME NOT NULL,
    updated_at DATETIME NOT NULL,
    CONSTRAINT pk_bcc_rules PRIMARY KEY (id),
    CONSTRAINT fk_bcc_rules_domain_id FOREIGN KEY(domain_id) REFERENCES domains (id) ON DELETE CASCADE
);
CREATE INDEX bcc_rules_oldest ON bcc_rules (created_at, id);
CREATE INDEX ix_bcc_rules_domain_id ON bcc_rules (domain_id);
CREATE UNIQUE INDEX uq_bcc_rules_match ON bcc_rules (direction, domain_id, local);

CREATE TABLE certificate_names (
    certificate_id INTEGER NOT NULL,
    name VARCHAR NOT NULL,
    CONSTRAINT pk_certificate_names PRIMARY KEY (certificate_id, name),
    CONSTRAINT fk_certificate_names_certificate_id FOREIGN KEY(certificate_id) REFERENCES certificates (id) ON DELETE CASCADE
);
CREATE INDEX ix_certificate_names_name ON certificate_names (name);

CREATE TABLE changes (
    stream_id INTEGER NOT NULL,
    last INTEGER NOT NULL,
    at DATETIME NOT NULL,
    type VARCHAR(32) NOT NULL,
    ids JSON NOT NULL,
    facts JSON NOT NULL,
    origin VARCHAR,
    CONSTRAINT pk_changes PRIMARY KEY (stream_id, last),
    CONSTRAINT fk_changes_stream_id FOREIGN KEY(stream_id) REFERENCES streams (id) ON DELETE CASCADE
);

CREATE TABLE dkim_keys (
    id INTEGER NOT NULL,
    domain_id INTEGER,
    domain VARCHAR NOT NULL,
    selector VARCHAR NOT NULL,
    algorithm VARCHAR(32) NOT NULL,
    key_size INTEGER,
    private VARCHAR NOT NULL,
    public VARCHAR NOT NULL,
    state VARCHAR(32) NOT NULL,
    description VARCHAR,
    dns_check_count INTEGER NOT NULL,
    due_at DATETIME,
    created_at DATETIME NOT NULL,
    activated_at DATETIME,
    retired_at DATETIME,
    CONSTRAINT pk_dkim_keys PRIMARY KEY (id),
    CONSTRAINT fk_dkim_keys_domain_id FOREIGN KEY(domain_id) REFERENCES domains (id) ON DELETE CASCADE
);
CREATE INDEX dkim_keys_due ON dkim_keys (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX ix_dkim_keys_domain_id ON dkim_keys (domain_id);
CREATE UNIQUE INDEX uq_dkim_keys_selector ON dkim_keys (domain, selector);

CREATE TABLE domain_aliases (
    id INTEGER NOT NULL,
    alias VARCHAR NOT NULL,
    domain_id INTEGER NOT NULL,
    active BOOLEAN NOT NULL,
    created_at DATETIME NOT NULL,
    CONSTRAINT pk_domain_aliases PRIMARY KEY (id),
    CONSTRAINT uq_domain_aliases_alias UNIQUE (alias),
    CONSTRAINT fk_domain_aliases_domain_id FOREIGN KEY(domain_id) REFERENCES domains (id) ON DELETE CASCADE
);
CREATE INDEX ix_domain_aliases_domain_id ON domain_aliases (domain_id);

CREATE TABLE domain_totals (
    domain_id INTEGER NOT NULL,
    part INTEGER NOT NULL,
    used INTEGER NOT NULL,
    messages INTEGER NOT NULL,
    CONSTRAINT pk_domain_totals PRIMARY KEY (domain_id, part),
    CONSTRAINT fk_domain_totals_domain_id FOREIGN KEY(domain_id) REFERENCES domains (id) ON DELETE CASCADE
);

CREATE TABLE held_copies (
    id INTEGER NOT NULL,
    legal_hold_id INTEGER NOT NULL,
    position INTEGER NOT NULL,
    origin_id INTEGER NOT NULL,
    origin VARCHAR(32) NOT NULL,
    mailbox_path VARCHAR,
    sha256 VARCHAR NOT NULL,
    size INTEGER NOT NULL,
    blob_id INTEGER NOT NULL,
    received_at DATETIME NOT NULL,
    date DATETIME,
    subject VARCHAR NOT NULL,
    from_name VARCHAR,
    from_address VARCHAR,
    "to" JSON NOT NULL,
    cc JSON NOT NULL,
    bcc JSON NOT NULL,
    message_id VARCHAR,
    preview VARCHAR NOT NULL,
    attachment_count INTEGER NOT NULL,
    envelope_from VARCHAR,
    envelope_to JSON NOT NULL,
    copied_at DATETIME NOT NULL,
    chain_hash VARCHAR NOT NULL,
    CONSTRAINT pk_held_copies PRIMARY KEY (id),
    CONSTRAINT uq_held_copies_legal_hold_id_position UNIQUE (legal_hold_id, position),
    CONSTRAINT fk_held_copies_legal_hold_id FOREIGN KEY(legal_hold_id) REFERENCES legal_holds (id) ON DELETE CASCADE
);
CREATE UNIQUE INDEX held_copies_of_origin ON held_copies (legal_hold_id, origin_id, sha256);

CREATE TABLE identity_providers (
    id INTEGER NOT NULL,
    domain_id INTEGER NOT NULL,
    issuer VARCHAR NOT NULL,
    client_id VARCHAR NOT NULL,
    client_secret VARCHAR,
    scopes JSON NOT NULL,
    username_claim VARCHAR NOT NULL,
    groups_claim VARCHAR NOT NULL,
    admin_groups JSON NOT NULL,
    active_claim VARCHAR,
    user_creation_allowed BOOLEAN NOT NULL,
    password_sign_in_allowed BOOLEAN NOT NULL,
    created_at DATETIME NOT NULL,
    updated_at DATETIME,
    CONSTRAINT pk_identity_providers PRIMARY KEY (id),
    CONSTRAINT uq_identity_providers_domain_id UNIQUE (domain_id),
    CONSTRAINT fk_identity_providers_domain_id FOREIGN KEY(domain_id) REFERENCES domains (id) ON DELETE CASCADE
);

CREATE TABLE key_value_entries (
    id INTEGER NOT NULL,
    stream_id INTEGER NOT NULL,
    store VARCHAR NOT NULL,
    "key" VARCHAR NOT NULL,
    level VARCHAR NOT NULL,
    version INTEGER NOT NULL,
    size INTEGER NOT NULL,
    expires_at DATETIME,
    value VARCHAR NOT NULL,
    CONSTRAINT pk_key_value_entries PRIMARY KEY (id),
    CONSTRAINT fk_key_value_entries_stream_id FOREIGN KEY(stream_id) REFERENCES streams (id) ON DELETE CASCADE
);
CREATE INDEX ix_key_value_entries_expires_at ON key_value_entries (expires_at);
CREATE INDEX ix_key_value_entries_level ON key_value_entries (stream_id, store, level, "key");
CREATE INDEX ix_key_value_entries_size ON key_value_entries (stream_id, expires_at, size);
CREATE UNIQUE INDEX uq_key_value_entries_key ON key_value_entries (stream_id, store, "key");

CREATE TABLE legal_hold_accesses (
    id INTEGER NOT NULL,
    legal_hold_id INTEGER NOT NULL,
    at DATETIME NOT NULL,
    actor VARCHAR NOT NULL,
    actor_id INTEGER,
    role VARCHAR(32) NOT NULL,
    ip VARCHAR,
    action VARCHAR(32) NOT NULL,
    CONSTRAINT pk_legal_hold_accesses PRIMARY KEY (id),
    CONSTRAINT fk_legal_hold_accesses_legal_hold_id FOREIGN KEY(legal_hold_id) REFERENCES legal_holds (id) ON DELETE CASCADE
);
CREATE INDEX legal_hold_accesses_of_legal_hold ON legal_hold_accesses (legal_hold_id, at, id);

CREATE TABLE scim_groups (
    id INTEGER NOT NULL,
    domain_id INTEGER NOT NULL,
    display_name VARCHAR NOT NULL,
    name_key VARCHAR NOT NULL,
    external_id VARCHAR,
    version INTEGER NOT NULL,
    created_at DATETIME NOT NULL,
    updated_at DATETIME NOT NULL,
    CONSTRAINT pk_scim_groups PRIMARY KEY (id),
    CONSTRAINT fk_scim_groups_domain_id FOREIGN KEY(domain_id) REFERENCES domains (id) ON DELETE CASCADE
);
CREATE INDEX scim_groups_by_external_id ON scim_groups (external_id, id);
CREATE INDEX scim_groups_by_name ON scim_groups (domain_id, name_key, id);
CREATE INDEX scim_groups_of_domain ON scim_groups (domain_id, id);

CREATE TABLE users (
    id INTEGER NOT NULL,
    username VARCHAR NOT NULL,
    username_key VARCHAR NOT NULL,
    name VARCHAR,
    words VARCHAR NOT NULL,
    role VARCHAR(32) NOT NULL,
    domain_id INTEGER,
    tenant_id INTEGER NOT NULL,
    password VARCHAR,
    temporary_password VARCHAR,
    temporary_from DATETIME,
    temporary_until DATETIME,
    password_changed_at DATETIME,
    password_change_required BOOLEAN NOT NULL,
    auth_version INTEGER NOT NULL,
    active BOOLEAN NOT NULL,
    suspended BOOLEAN NOT NULL,
    deleted_at DATETIME,
    sessions_ended_at DATETIME,
    smtp_allowed_networks JSON NOT NULL,
    require_inbound_tls BOOLEAN NOT NULL,
    require_outbound_tls BOOLEAN NOT NULL,
    upload_sent_messages BOOLEAN NOT NULL,
    second_factors JSON NOT NULL,
    disabled_scopes JSON NOT NULL,
    webmail_access BOOLEAN NOT NULL,
    allow_local BOOLEAN NOT NULL,
    permissions JSON NOT NULL,
    admin_permissions JSON NOT NULL,
    allowed_senders JSON NOT NULL,
    openpgp_public_key VARCHAR,
    openpgp_key JSON,
    encrypt_messages BOOLEAN NOT NULL,
    forward_to JSON NOT NULL,
    relays VARCHAR,
    encrypt_forwarded BOOLEAN NOT NULL,
    subaddress_action VARCHAR(32) NOT NULL,
    retention INTEGER,
    spam_level INTEGER NOT NULL,
    junk_score FLOAT,
    reject_score FLOAT,
    quarantine_notification VARCHAR(32) NOT NULL,
    recipients_per_day INTEGER,
    forwards_per_day INTEGER,
    received_per_hour INTEGER,
    received INTEGER NOT NULL,
    received_until DATETIME,
    received_notified_until DATETIME,
    quota INTEGER,
    used INTEGER NOT NULL,
    storage_notified_until DATETIME,
    message_count INTEGER NOT NULL,
    uid_validity INTEGER NOT NULL,
    language VARCHAR,
    tags JSON NOT NULL,
    public_metadata JSON,
    private_metadata JSON,
    created_at DATETIME NOT NULL,
    updated_at DATETIME NOT NULL,
    last_login_at DATETIME,
    CONSTRAINT pk_users PRIMARY KEY (id),
    CONSTRAINT uq_users_username_key UNIQUE (username_key),
    CONSTRAINT fk_users_domain_id FOREIGN KEY(domain_id) REFERENCES domains (id) ON DELETE RESTRICT
);
CREATE INDEX ix_users_created_at ON users (created_at, id);
CREATE INDEX ix_users_domain_id ON users (domain_id);
CREATE INDEX ix_users_forwards ON users (id) WHERE forward_to <> '[]';
CREATE INDEX ix_users_inactive ON users (username_key, id) WHERE NOT active;
CREATE INDEX ix_users_of_domain ON users (domain_id, username_key, id, active, suspended);
CREATE INDEX ix_users_of_domain_by_update ON users (domain_id, updated_at, username_key, id);
CREATE INDEX ix_users_staff ON users (role, id) WHERE role <> 'USER';
CREATE INDEX ix_users_suspended ON users (username_key, id) WHERE suspended;
CREATE INDEX ix_users_used ON users (used, id);

CREATE TABLE webhook_read_positions (
    stream_id INTEGER NOT NULL,
    number INTEGER NOT NULL,
    CONSTRAINT pk_webhook_read_positions PRIMARY KEY (stream_id),
    CONSTRAINT fk_webhook_read_positions_stream_id FOREIGN KEY(stream_id) REFERENCES streams (id) ON DELETE CASCADE
);

CREATE TABLE addresses (
    id INTEGER NOT NULL,
    local VARCHAR NOT NULL,
    domain_id INTEGER,
    display_address VARCHAR NOT NULL,
    kind VARCHAR(32) NOT NULL,
    user_id INTEGER,
    forward_to JSON NOT NULL,
    relays VARCHAR,
    forwards_per_day INTEGER,
    forwarded INTEGER NOT NULL,
    forwarded_until DATETIME,
    answers BOOLEAN NOT NULL,
    replied INTEGER NOT NULL,
    replied_until DATETIME,
    name VARCHAR,
    main BOOLEAN NOT NULL,
    active BOOLEAN NOT NULL,
    send_as BOOLEAN NOT NULL,
    expires_at DATETIME,
    masked BOOLEAN NOT NULL,
    for_site VARCHAR,
    last_received_at DATETIME,
    tags JSON NOT NULL,
    public_comment VARCHAR,
    private_comment VARCHAR,
    public_metadata JSON,
    private_metadata JSON,
    created_at DATETIME NOT NULL,
    updated_at DATETIME NOT NULL,
    CONSTRAINT pk_addresses PRIMARY KEY (id),
    CONSTRAINT fk_addresses_domain_id FOREIGN KEY(domain_id) REFERENCES domains (id) ON DELETE CASCADE,
    CONSTRAINT fk_addresses_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX addresses_by_age ON addresses (created_at, id);
CREATE INDEX addresses_by_local ON addresses (local, id);
CREATE INDEX ix_addresses_domain_id ON addresses (domain_id);
CREATE INDEX ix_addresses_domain_id_local ON addresses (domain_id, local, id);
CREATE INDEX ix_addresses_ending ON addresses (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX ix_addresses_forwards ON addresses (id) WHERE kind = 'FORWARD';
CREATE INDEX ix_addresses_user_id ON addresses (user_id);
CREATE UNIQUE INDEX uq_addresses_everywhere ON addresses (local) WHERE domain_id IS NULL;
CREATE UNIQUE INDEX uq_addresses_local_domain_id ON addresses (local, domain_id);
CREATE UNIQUE INDEX uq_addresses_main ON addresses (user_id) WHERE main;

CREATE TABLE api_keys (
    id INTEGER NOT NULL,
    name VARCHAR NOT NULL,
    digest VARCHAR NOT NULL,
    role VARCHAR(32) NOT NULL,
    scopes JSON NOT NULL,
    read_only BOOLEAN NOT NULL,
    active BOOLEAN NOT NULL,
    user_id INTEGER,
    domains JSON NOT NULL,
    operations JSON NOT NULL,
    allowed_ips JSON NOT NULL,
    made_by INTEGER,
    made_by_key INTEGER,
    maker VARCHAR,
    creator_id INTEGER,
    created_at DATETIME NOT NULL,
    expires_at DATETIME,
    last_used_at DATETIME,
    last_used_ip VARCHAR,
    CONSTRAINT pk_api_keys PRIMARY KEY (id),
    CONSTRAINT uq_api_keys_digest UNIQUE (digest),
    CONSTRAINT fk_api_keys_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX ix_api_keys_user_id ON api_keys (user_id);

CREATE TABLE application_passwords (
    id INTEGER NOT NULL,
    user_id INTEGER NOT NULL,
    description VARCHAR NOT NULL,
    selector VARCHAR NOT NULL,
    password VARCHAR NOT NULL,
    scopes JSON NOT NULL,
    active BOOLEAN NOT NULL,
    ttl INTEGER,
    expires_at DATETIME,
    last_used_at DATETIME,
    last_used_ip VARCHAR,
    last_event_id INTEGER,
    made_by INTEGER,
    made_by_key INTEGER,
    maker VARCHAR,
    created_at DATETIME NOT NULL,
    updated_at DATETIME,
    CONSTRAINT pk_application_passwords PRIMARY KEY (id),
    CONSTRAINT fk_application_passwords_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX ix_application_passwords_expires_at ON application_passwords (expires_at);
CREATE INDEX ix_application_passwords_user_id ON application_passwords (user_id);
CREATE UNIQUE INDEX uq_application_passwords_selector ON application_passwords (user_id, selector);

CREATE TABLE compose_listeners (
    id INTEGER NOT NULL,
    user_id INTEGER NOT NULL,
    holder INTEGER NOT NULL,
    CONSTRAINT pk_compose_listeners PRIMARY KEY (id),
    CONSTRAINT fk_compose_listeners_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX ix_compose_listeners_user_id ON compose_listeners (user_id);

CREATE TABLE compose_requests (
    id INTEGER NOT NULL,
    user_id INTEGER NOT NULL,
    identity_id INTEGER,
    mailbox_id INTEGER,
    content JSON NOT NULL,
    requested_by VARCHAR,
    created_at DATETIME NOT NULL,
    expires_at DATETIME NOT NULL,
    CONSTRAINT pk_compose_requests PRIMARY KEY (id),
    CONSTRAINT fk_compose_requests_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX ix_compose_requests_expires_at ON compose_requests (expires_at);
CREATE INDEX ix_compose_requests_user_id ON compose_requests (user_id);

CREATE TABLE connectors (
    id INTEGER NOT NULL,
    user_id INTEGER NOT NULL,
    name VARCHAR NOT NULL,
    protocol VARCHAR(32) NOT NULL,
    host VARCHAR NOT NULL,
    port INTEGER NOT NULL,
    security VARCHAR(32) NOT NULL,
    auth_mechanism VARCHAR(32) NOT NULL,
    username VARCHAR NOT NULL,
    secret VARCHAR NOT NULL,
    oauth JSON,
    target_domain VARCHAR,
    target_folder VARCHAR,
    interval INTEGER,
    max_age INTEGER,
    max_bytes_per_second INTEGER,
    exclude VARCHAR,
    folder_rewrites JSON NOT NULL,
    auto_map_folders BOOLEAN NOT NULL,
    subscribe_all BOOLEAN NOT NULL,
    skip_cross_duplicates BOOLEAN NOT NULL,
    remove_duplicates BOOLEAN NOT NULL,
    source_retention INTEGER,
    mirror_deletes BOOLEAN NOT NULL,
    remote_timeout INTEGER NOT NULL,
    local_timeout INTEGER NOT NULL,
    custom_options JSON NOT NULL,
    import_options JSON,
    spam_check BOOLEAN NOT NULL,
    virus_check BOOLEAN NOT NULL,
    apply_filters BOOLEAN NOT NULL,
    active BOOLEAN NOT NULL,
    last_run_at DATETIME,
    last_success_at DATETIME,
    last_error VARCHAR,
    failures INTEGER NOT NULL,
    next_run_at DATETIME,
    run_id INTEGER,
    lease INTEGER,
    holder INTEGER,
    created_at DATETIME NOT NULL,
    updated_at DATETIME,
    is_one_time BOOLEAN NOT NULL,
    CONSTRAINT pk_connectors PRIMARY KEY (id),
    CONSTRAINT fk_connectors_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX connectors_due ON connectors (next_run_at) WHERE next_run_at IS NOT NULL;
CREATE INDEX connectors_leased ON connectors (holder) WHERE holder IS NOT NULL;
CREATE INDEX ix_connectors_user_id ON connectors (user_id);

CREATE TABLE contacts (
    id INTEGER NOT NULL,
    user_id INTEGER NOT NULL,
    "key" VARCHAR NOT NULL,
    folded_name VARCHAR,
    address VARCHAR NOT NULL,
    name VARCHAR,
    last_used_at DATETIME NOT NULL,
    CONSTRAINT pk_contacts PRIMARY KEY (id),
    CONSTRAINT fk_contacts_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX ix_contacts_folded_name ON contacts (user_id, folded_name);
CREATE INDEX ix_contacts_used ON contacts (user_id, last_used_at, id);
CREATE UNIQUE INDEX uq_contacts_user_id_key ON contacts (user_id, "key");

CREATE TABLE deleted_users (
    id INTEGER NOT NULL,
    username_key VARCHAR NOT NULL,
    active BOOLEAN NOT NULL,
    domain_id INTEGER,
    addresses JSON NOT NULL,
    deleted_at DATETIME NOT NULL,
    purge_at DATETIME,
    task_id INTEGER,
    CONSTRAINT pk_deleted_users PRIMARY KEY (id),
    CONSTRAINT fk_deleted_users_id FOREIGN KEY(id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT fk_deleted_users_domain_id FOREIGN KEY(domain_id) REFERENCES domains (id) ON DELETE SET NULL
);
CREATE INDEX deleted_users_by_age ON deleted_users (deleted_at, id);
CREATE INDEX ix_deleted_users_domain_id ON deleted_users (domain_id);
CREATE INDEX ix_deleted_users_username_key ON deleted_users (username_key);

CREATE TABLE domain_admins (
    user_id INTEGER NOT NULL,
    domain_id INTEGER NOT NULL,
    CONSTRAINT pk_domain_admins PRIMARY KEY (user_id, domain_id),
    CONSTRAINT fk_domain_admins_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT fk_domain_admins_domain_id FOREIGN KEY(domain_id) REFERENCES domains (id) ON DELETE CASCADE
);
CREATE INDEX ix_domain_admins_domain_id ON domain_admins (domain_id);

CREATE TABLE exports (
    id INTEGER NOT NULL,
    user_id INTEGER NOT NULL,
    task_id INTEGER NOT NULL,
    format VARCHAR NOT NULL,
    filename VARCHAR NOT NULL,
    settings BOOLEAN NOT NULL,
    size INTEGER,
    created_at DATETIME NOT NULL,
    finished_at DATETIME,
    expires_at DATETIME NOT NULL,
    CONSTRAINT pk_exports PRIMARY KEY (id),
    CONSTRAINT fk_exports_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX exports_of_user ON exports (user_id, created_at, id);
CREATE INDEX ix_exports_expires_at ON exports (expires_at);
CREATE INDEX ix_exports_user_id ON exports (user_id);

CREATE TABLE files (
    id INTEGER NOT NULL,
    user_id INTEGER NOT NULL,
    filename VARCHAR NOT NULL,
    content_type VARCHAR NOT NULL,
    size INTEGER NOT NULL,
    digest VARCHAR NOT NULL,
    blob_id INTEGER NOT NULL,
    created_at DATETIME NOT NULL,
    updated_at DATETIME NOT NULL,
    used_at DATETIME NOT NULL,
    CONSTRAINT pk_files PRIMARY KEY (id),
    CONSTRAINT fk_files_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT fk_files_blob_id FOREIGN KEY(blob_id) REFERENCES blobs (id) ON DELETE RESTRICT
);
CREATE INDEX files_of_user ON files (user_id, created_at, id);
CREATE INDEX ix_files_blob_id ON files (blob_id);
CREATE INDEX ix_files_used_at ON files (used_at);
CREATE INDEX ix_files_user_id ON files (user_id);

CREATE TABLE filters (
    id INTEGER NOT NULL,
    user_id INTEGER NOT NULL,
    name VARCHAR NOT NULL,
    position INTEGER NOT NULL,
    "query" JSON NOT NULL,
    action JSON NOT NULL,
    forward_to JSON NOT NULL,
    relays VARCHAR,
    active BOOLEAN NOT NULL,
    public_metadata JSON,
    match_count INTEGER NOT NULL,
    created_at DATETIME NOT NULL,
    CONSTRAINT pk_filters PRIMARY KEY (id),
    CONSTRAINT fk_filters_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX ix_filters_made ON filters (created_at, id);
CREATE INDEX ix_filters_position ON filters (user_id, position, id);
CREATE INDEX ix_filters_user_id ON filters (user_id);

CREATE TABLE identities (
    id INTEGER NOT NULL,
    user_id INTEGER NOT NULL,
    local VARCHAR NOT NULL,
    domain VARCHAR NOT NULL,
    display_address VARCHAR NOT NULL,
    name VARCHAR,
    preferred BOOLEAN NOT NULL,
    reply_to VARCHAR,
    bcc JSON NOT NULL,
    signature_text VARCHAR,
    signature_html VARCHAR,
    mailbox_id INTEGER,
    created_at DATETIME NOT NULL,
    updated_at DATETIME NOT NULL,
    CONSTRAINT pk_identities PRIMARY KEY (id),
    CONSTRAINT fk_identities_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX ix_identities_user_id ON identities (user_id);
CREATE UNIQUE INDEX uq_identities_preferred ON identities (user_id) WHERE preferred;

CREATE TABLE identity_links (
    id INTEGER NOT NULL,
    user_id INTEGER NOT NULL,
    provider_id INTEGER NOT NULL,
    issuer VARCHAR NOT NULL,
    client_id VARCHAR NOT NULL,
    subject VARCHAR NOT NULL,
    is_admin_by_group BOOLEAN NOT NULL,
    refresh_token VARCHAR,
    check_due_at DATETIME,
    is_checking BOOLEAN NOT NULL,
    access_ended_at DATETIME,
    created_at DATETIME NOT NULL,
    last_sign_in_at DATETIME NOT NULL,
    CONSTRAINT pk_identity_links PRIMARY KEY (id),
    CONSTRAINT uq_identity_links_user_id UNIQUE (user_id),
    CONSTRAINT fk_identity_links_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT fk_identity_links_provider_id FOREIGN KEY(provider_id) REFERENCES identity_providers (id) ON DELETE CASCADE
);
CREATE INDEX identity_links_due ON identity_links (check_due_at) WHERE check_due_at IS NOT NULL;
CREATE UNIQUE INDEX uq_identity_links_subject ON identity_links (provider_id, issuer, client_id, subject);

CREATE TABLE import_archives (
    id INTEGER NOT NULL,
    user_id INTEGER NOT NULL,
    task_id INTEGER NOT NULL,
    filename VARCHAR NOT NULL,
    size INTEGER NOT NULL,
    blob_id INTEGER NOT NULL,
    created_at DATETIME NOT NULL,
    CONSTRAINT pk_import_archives PRIMARY KEY (id),
    CONSTRAINT fk_import_archives_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT fk_import_archives_blob_id FOREIGN KEY(blob_id) REFERENCES blobs (id) ON DELETE RESTRICT
);
CREATE INDEX ix_import_archives_blob_id ON import_archives (blob_id);
CREATE INDEX ix_import_archives_task_id ON import_archives (task_id);
CREATE INDEX ix_import_archives_user_id ON import_archives (user_id);

CREATE TABLE labels (
    id INTEGER NOT NULL,
    user_id INTEGER NOT NULL,
    keyword VARCHAR NOT NULL,
    folded VARCHAR NOT NULL,
    name VARCHAR NOT NULL,
    color VARCHAR,
    created_at DATETIME NOT NULL,
    CONSTRAINT pk_labels PRIMARY KEY (id),
    CONSTRAINT uq_labels_user_id_folded UNIQUE (user_id, folded),
    CONSTRAINT fk_labels_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX ix_labels_user_id ON labels (user_id);

CREATE TABLE legal_hold_blobs (
    copy_id INTEGER NOT NULL,
    blob_id INTEGER NOT NULL,
    CONSTRAINT pk_legal_hold_blobs PRIMARY KEY (copy_id, blob_id),
    CONSTRAINT fk_legal_hold_blobs_copy_id FOREIGN KEY(copy_id) REFERENCES held_copies (id) ON DELETE CASCADE,
    CONSTRAINT fk_legal_hold_blobs_blob_id FOREIGN KEY(blob_id) REFERENCES blobs (id) ON DELETE RESTRICT
);
CREATE INDEX ix_legal_hold_blobs_blob_id ON legal_hold_blobs (blob_id);

CREATE TABLE mailbox_subscriptions (
    user_id INTEGER NOT NULL,
    digest VARCHAR NOT NULL,
    path VARCHAR NOT NULL,
    CONSTRAINT pk_mailbox_subscriptions PRIMARY KEY (user_id, digest),
    CONSTRAINT fk_mailbox_subscriptions_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);

CREATE TABLE mailboxes (
    id INTEGER NOT NULL,
    user_id INTEGER NOT NULL,
    path VARCHAR NOT NULL,
    object_id VARCHAR NOT NULL,
    special_use VARCHAR(32),
    uid_validity INTEGER NOT NULL,
    uid_next INTEGER NOT NULL,
    modseq INTEGER NOT NULL,
    message_count INTEGER NOT NULL,
    unseen_count INTEGER NOT NULL,
    size INTEGER NOT NULL,
    subscribed BOOLEAN NOT NULL,
    hidden BOOLEAN NOT NULL,
    encrypt_messages BOOLEAN NOT NULL,
    retention INTEGER,
    retention_inherited BOOLEAN NOT NULL,
    created_at DATETIME NOT NULL,
    CONSTRAINT pk_mailboxes PRIMARY KEY (id),
    CONSTRAINT uq_mailboxes_user_id_path UNIQUE (user_id, path),
    CONSTRAINT fk_mailboxes_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX ix_mailboxes_user_id ON mailboxes (user_id);
CREATE UNIQUE INDEX uq_mailboxes_special_use ON mailboxes (user_id, special_use) WHERE special_use IS NOT NULL;

CREATE TABLE oauth_grants (
    id INTEGER NOT NULL,
    user_id INTEGER NOT NULL,
    client_id INTEGER NOT NULL,
    scopes JSON NOT NULL,
    created_at DATETIME NOT NULL,
    last_used_at DATETIME,
    CONSTRAINT pk_oauth_grants PRIMARY KEY (id),
    CONSTRAINT fk_oauth_grants_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT fk_oauth_grants_client_id FOREIGN KEY(client_id) REFERENCES oauth_clients (id) ON DELETE CASCADE
);
CREATE INDEX ix_oauth_grants_client_id ON oauth_grants (client_id);
CREATE INDEX oauth_grants_of_user ON oauth_grants (user_id, created_at, id);
CREATE UNIQUE INDEX uq_oauth_grants_user_id_client_id ON oauth_grants (user_id, client_id);

CREATE TABLE push_channels (
    id INTEGER NOT NULL,
    user_id INTEGER NOT NULL,
    kind VARCHAR(32) NOT NULL,
    active BOOLEAN NOT NULL,
    target VARCHAR NOT NULL,
    title VARCHAR,
    text VARCHAR,
    senders JSON NOT NULL,
    senders_regex VARCHAR,
    high_priority_only BOOLEAN NOT NULL,
    pass_priority BOOLEAN NOT NULL,
    mailboxes JSON NOT NULL,
    number INTEGER NOT NULL,
    test_at DATETIME,
    failures INTEGER NOT NULL,
    retry_at DATETIME,
    last_error VARCHAR,
    last_push_at DATETIME,
    window_at DATETIME,
    pushed INTEGER NOT NULL,
    lease INTEGER,
    holder INTEGER,
    created_at DATETIME NOT NULL,
    updated_at DATETIME NOT NULL,
    CONSTRAINT pk_push_channels PRIMARY KEY (id),
    CONSTRAINT fk_push_channels_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE UNIQUE INDEX push_channels_kind ON push_channels (user_id, kind);
CREATE INDEX push_channels_leased ON push_channels (holder) WHERE holder IS NOT NULL;
CREATE INDEX push_channels_retry ON push_channels (retry_at) WHERE retry_at IS NOT NULL;
CREATE INDEX push_channels_test ON push_channels (test_at) WHERE test_at IS NOT NULL;

CREATE TABLE quarantine_items (
    id INTEGER NOT NULL,
    user_id INTEGER NOT NULL,
    domain_id INTEGER,
    queue_id VARCHAR NOT NULL,
    receipt VARCHAR NOT NULL,
    sender VARCHAR NOT NULL,
    recipient VARCHAR NOT NULL,
    from_name VARCHAR,
    from_address VARCHAR,
    subject VARCHAR NOT NULL,
    score FLOAT NOT NULL,
    symbols JSON NOT NULL,
    tests VARCHAR NOT NULL,
    virus VARCHAR,
    size INTEGER NOT NULL,
    sha256 VARCHAR NOT NULL,
    blob_id INTEGER NOT NULL,
    mime_structure BLOB NOT NULL,
    attachments JSON NOT NULL,
    authentication JSON,
    dsn_request JSON,
    notified BOOLEAN NOT NULL,
    created_at DATETIME NOT NULL,
    expires_at DATETIME NOT NULL,
    CONSTRAINT pk_quarantine_items PRIMARY KEY (id),
    CONSTRAINT fk_quarantine_items_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT fk_quarantine_items_domain_id FOREIGN KEY(domain_id) REFERENCES domains (id) ON DELETE SET NULL
);
CREATE INDEX ix_quarantine_items_domain_id ON quarantine_items (domain_id);
CREATE INDEX ix_quarantine_items_expires_at ON quarantine_items (expires_at);
CREATE INDEX ix_quarantine_items_user_id ON quarantine_items (user_id);
CREATE INDEX quarantine_by_age ON quarantine_items (created_at, id);
CREATE INDEX quarantine_by_score ON quarantine_items (score, id);
CREATE INDEX quarantine_by_size ON quarantine_items (size, id);
CREATE INDEX quarantine_of_user ON quarantine_items (user_id, created_at, id);
CREATE INDEX quarantine_unnotified ON quarantine_items (created_at) WHERE NOT notified;

CREATE TABLE rate_limit_holds (
    id INTEGER NOT NULL,
    window_id INTEGER NOT NULL,
    source VARCHAR(32) NOT NULL,
    messages INTEGER NOT NULL,
    per VARCHAR(32) NOT NULL,
    since DATETIME NOT NULL,
    until DATETIME NOT NULL,
    notified_until DATETIME NOT NULL,
    CONSTRAINT pk_rate_limit_holds PRIMARY KEY (id),
    CONSTRAINT fk_rate_limit_holds_id FOREIGN KEY(id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX ix_rate_limit_holds_notified_until ON rate_limit_holds (notified_until);
CREATE INDEX rate_limit_holds_by_age ON rate_limit_holds (since, id);

CREATE TABLE rate_limits (
    id INTEGER NOT NULL,
    user_id INTEGER,
    domain_id INTEGER,
    messages INTEGER NOT NULL,
    per VARCHAR(32) NOT NULL,
    created_at DATETIME NOT NULL,
    updated_at DATETIME NOT NULL,
    CONSTRAINT pk_rate_limits PRIMARY KEY (id),
    CONSTRAINT fk_rate_limits_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT fk_rate_limits_domain_id FOREIGN KEY(domain_id) REFERENCES domains (id) ON DELETE CASCADE
);
CREATE INDEX ix_rate_limits_domain_id ON rate_limits (domain_id);
CREATE INDEX ix_rate_limits_user_id ON rate_limits (user_id);
CREATE INDEX rate_limits_by_age ON rate_limits (created_at, id);

CREATE TABLE recovery_codes (
    id INTEGER NOT NULL,
    user_id INTEGER NOT NULL,
    digest VARCHAR NOT NULL,
    used_at DATETIME,
    created_at DATETIME NOT NULL,
    CONSTRAINT pk_recovery_codes PRIMARY KEY (id),
    CONSTRAINT fk_recovery_codes_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX ix_recovery_codes_user_id ON recovery_codes (user_id);

CREATE TABLE saved_searches (
    id INTEGER NOT NULL,
    user_id INTEGER NOT NULL,
    name VARCHAR NOT NULL,
    folded VARCHAR NOT NULL,
    filter JSON NOT NULL,
    created_at DATETIME NOT NULL,
    CONSTRAINT pk_saved_searches PRIMARY KEY (id),
    CONSTRAINT uq_saved_searches_user_id_folded UNIQUE (user_id, folded),
    CONSTRAINT fk_saved_searches_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX ix_saved_searches_user_id ON saved_searches (user_id);

CREATE TABLE scim_group_members (
    group_id INTEGER NOT NULL,
    user_id INTEGER NOT NULL,
    CONSTRAINT pk_scim_group_members PRIMARY KEY (group_id, user_id),
    CONSTRAINT fk_scim_group_members_group_id FOREIGN KEY(group_id) REFERENCES scim_groups (id) ON DELETE CASCADE,
    CONSTRAINT fk_scim_group_members_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX ix_scim_group_members_user_id ON scim_group_members (user_id);

CREATE TABLE scim_users (
    user_id INTEGER NOT NULL,
    external_id VARCHAR,
    formatted_name VARCHAR,
    family_name VARCHAR,
    given_name VARCHAR,
    middle_name VARCHAR,
    honorific_prefix VARCHAR,
    honorific_suffix VARCHAR,
    suspended_by_scim BOOLEAN NOT NULL,
    CONSTRAINT pk_scim_users PRIMARY KEY (user_id),
    CONSTRAINT fk_scim_users_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX scim_users_by_external_id ON scim_users (external_id, user_id);

CREATE TABLE security_events (
    id INTEGER NOT NULL,
    user_id INTEGER,
    fold VARCHAR NOT NULL,
    action VARCHAR(32) NOT NULL,
    result VARCHAR(32) NOT NULL,
    protocol VARCHAR(32),
    ip VARCHAR,
    ip_key VARCHAR,
    session_id VARCHAR,
    "by" VARCHAR,
    by_id INTEGER,
    detail JSON,
    count INTEGER NOT NULL,
    created_at DATETIME NOT NULL,
    last_at DATETIME NOT NULL,
    journaled_at DATETIME,
    CONSTRAINT pk_security_events PRIMARY KEY (id),
    CONSTRAINT fk_security_events_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT uq_security_events_fold UNIQUE (fold)
);
CREATE INDEX ix_security_events_action ON security_events (action, created_at, id);
CREATE INDEX ix_security_events_created_at ON security_events (created_at, id);
CREATE INDEX ix_security_events_ip_key ON security_events (ip_key, created_at, id);
CREATE INDEX ix_security_events_user_id ON security_events (user_id, created_at, id);

CREATE TABLE sender_rules (
    made_by INTEGER,
    made_as VARCHAR(32) NOT NULL,
    id INTEGER NOT NULL,
    scope VARCHAR NOT NULL,
    pattern VARCHAR NOT NULL,
    action VARCHAR(32) NOT NULL,
    user_id INTEGER,
    domain_id INTEGER,
    tag VARCHAR,
    comment VARCHAR,
    created_at DATETIME NOT NULL,
    CONSTRAINT pk_sender_rules PRIMARY KEY (id),
    CONSTRAINT fk_sender_rules_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT fk_sender_rules_domain_id FOREIGN KEY(domain_id) REFERENCES domains (id) ON DELETE CASCADE
);
CREATE INDEX ix_sender_rules_domain_id ON sender_rules (domain_id);
CREATE INDEX ix_sender_rules_pattern ON sender_rules (pattern, id);
CREATE INDEX ix_sender_rules_user_id ON sender_rules (user_id);
CREATE UNIQUE INDEX uq_sender_rules_scope ON sender_rules (scope, pattern);

CREATE TABLE sieve_memories (
    user_id INTEGER NOT NULL,
    kind VARCHAR(32) NOT NULL,
    "key" VARCHAR NOT NULL,
    receipt VARCHAR NOT NULL,
    until DATETIME NOT NULL,
    CONSTRAINT pk_sieve_memories PRIMARY KEY (user_id, kind, "key"),
    CONSTRAINT fk_sieve_memories_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX ix_sieve_memories_until ON sieve_memories (until);

CREATE TABLE sieve_scripts (
    id INTEGER NOT NULL,
    user_id INTEGER NOT NULL,
    name VARCHAR NOT NULL,
    content VARCHAR NOT NULL,
    size INTEGER NOT NULL,
    active BOOLEAN NOT NULL,
    requires JSON NOT NULL,
    last_error VARCHAR,
    last_error_at DATETIME,
    created_at DATETIME NOT NULL,
    updated_at DATETIME NOT NULL,
    CONSTRAINT pk_sieve_scripts PRIMARY KEY (id),
    CONSTRAINT uq_sieve_scripts_user_id_name UNIQUE (user_id, name),
    CONSTRAINT fk_sieve_scripts_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX ix_sieve_scripts_user_id ON sieve_scripts (user_id);
CREATE UNIQUE INDEX uq_sieve_scripts_active ON sieve_scripts (user_id) WHERE active;

CREATE TABLE tasks (
    id INTEGER NOT NULL,
    kind VARCHAR(32) NOT NULL,
    state VARCHAR(32) NOT NULL,
    user_id INTEGER,
    actor_id INTEGER,
    not_before DATETIME,
    done_count INTEGER NOT NULL,
    total_count INTEGER,
    "order" JSON NOT NULL,
    checkpoint JSON,
    result JSON,
    error VARCHAR,
    cancelled BOOLEAN NOT NULL,
    lease INTEGER,
    holder INTEGER,
    attempts INTEGER NOT NULL,
    created_at DATETIME NOT NULL,
    started_at DATETIME,
    finished_at DATETIME,
    CONSTRAINT pk_tasks PRIMARY KEY (id),
    CONSTRAINT fk_tasks_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX ix_tasks_actor_id ON tasks (actor_id);
CREATE INDEX ix_tasks_user_id ON tasks (user_id);
CREATE INDEX tasks_due ON tasks (created_at, id) WHERE finished_at IS NULL;
CREATE INDEX tasks_leased ON tasks (holder) WHERE holder IS NOT NULL;

CREATE TABLE threads (
    id INTEGER NOT NULL,
    user_id INTEGER NOT NULL,
    subject VARCHAR NOT NULL,
    created_at DATETIME NOT NULL,
    muted BOOLEAN NOT NULL,
    CONSTRAINT pk_threads PRIMARY KEY (id),
    CONSTRAINT fk_threads_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX ix_threads_user_id ON threads (user_id);

CREATE TABLE totp_secrets (
    user_id INTEGER NOT NULL,
    seed VARCHAR,
    pending VARCHAR,
    pending_at DATETIME,
    last_step INTEGER,
    enabled_at DATETIME,
    CONSTRAINT pk_totp_secrets PRIMARY KEY (user_id),
    CONSTRAINT fk_totp_secrets_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);

CREATE TABLE undo_records (
    id INTEGER NOT NULL,
    user_id INTEGER NOT NULL,
    digest VARCHAR NOT NULL,
    "before" JSON NOT NULL,
    expires_at DATETIME NOT NULL,
    CONSTRAINT pk_undo_records PRIMARY KEY (id),
    CONSTRAINT fk_undo_records_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT uq_undo_records_digest UNIQUE (digest)
);
CREATE INDEX ix_undo_records_expires_at ON undo_records (expires_at);
CREATE INDEX ix_undo_records_user_id ON undo_records (user_id);

CREATE TABLE uploads (
    id INTEGER NOT NULL,
    user_id INTEGER NOT NULL,
    size INTEGER NOT NULL,
    received INTEGER NOT NULL,
    digest VARCHAR,
    content_type VARCHAR NOT NULL,
    filename VARCHAR,
    client_metadata VARCHAR,
    blob_name VARCHAR,
    created_at DATETIME NOT NULL,
    expires_at DATETIME NOT NULL,
    CONSTRAINT pk_uploads PRIMARY KEY (id),
    CONSTRAINT fk_uploads_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT uq_uploads_blob_name UNIQUE (blob_name)
);
CREATE INDEX ix_uploads_expires_at ON uploads (expires_at);
CREATE INDEX ix_uploads_user_id ON uploads (user_id);

CREATE TABLE usages (
    user_id INTEGER NOT NULL,
    kind VARCHAR(32) NOT NULL,
    used INTEGER NOT NULL,
    until DATETIME NOT NULL,
    notified_until DATETIME,
    CONSTRAINT pk_usages PRIMARY KEY (user_id, kind),
    CONSTRAINT fk_usages_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX ix_usages_until ON usages (until);

CREATE TABLE user_affinities (
    user_id INTEGER NOT NULL,
    node_id INTEGER NOT NULL,
    created_at DATETIME NOT NULL,
    expires_at DATETIME,
    CONSTRAINT pk_user_affinities PRIMARY KEY (user_id),
    CONSTRAINT fk_user_affinities_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT fk_user_affinities_node_id FOREIGN KEY(node_id) REFERENCES cluster_nodes (id) ON DELETE CASCADE
);
CREATE INDEX ix_user_affinities_expires_at ON user_affinities (expires_at);
CREATE INDEX ix_user_affinities_node_id ON user_affinities (node_id);

CREATE TABLE user_tags (
    tag VARCHAR NOT NULL,
    user_id INTEGER NOT NULL,
    CONSTRAINT pk_user_tags PRIMARY KEY (tag, user_id),
    CONSTRAINT fk_user_tags_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX ix_user_tags_user_id ON user_tags (user_id);

CREATE TABLE webauthn_challenges (
    id INTEGER NOT NULL,
    user_id INTEGER NOT NULL,
    challenge VARCHAR NOT NULL,
    registers BOOLEAN NOT NULL,
    created_at DATETIME NOT NULL,
    CONSTRAINT pk_webauthn_challenges PRIMARY KEY (id),
    CONSTRAINT fk_webauthn_challenges_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT uq_webauthn_challenges_challenge UNIQUE (challenge)
);
CREATE INDEX ix_webauthn_challenges_user_id ON webauthn_challenges (user_id);

CREATE TABLE webauthn_keys (
    id INTEGER NOT NULL,
    user_id INTEGER NOT NULL,
    name VARCHAR NOT NULL,
    credential_id VARCHAR NOT NULL,
    public_key VARCHAR NOT NULL,
    sign_count INTEGER NOT NULL,
    transports JSON NOT NULL,
    created_at DATETIME NOT NULL,
    last_used_at DATETIME,
    CONSTRAINT pk_webauthn_keys PRIMARY KEY (id),
    CONSTRAINT fk_webauthn_keys_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT uq_webauthn_keys_credential_id UNIQUE (credential_id)
);
CREATE INDEX ix_webauthn_keys_user_id ON webauthn_keys (user_id);

CREATE TABLE webhooks (
    id INTEGER NOT NULL,
    user_id INTEGER,
    domain_id INTEGER,
    types JSON,
    url VARCHAR NOT NULL,
    active BOOLEAN NOT NULL,
    secret VARCHAR NOT NULL,
    old_secret VARCHAR,
    old_until DATETIME,
    since DATETIME NOT NULL,
    failures INTEGER NOT NULL,
    retry_at DATETIME,
    last_delivery_at DATETIME,
    created_at DATETIME NOT NULL,
    CONSTRAINT pk_webhooks PRIMARY KEY (id),
    CONSTRAINT fk_webhooks_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT fk_webhooks_domain_id FOREIGN KEY(domain_id) REFERENCES domains (id) ON DELETE CASCADE
);
CREATE INDEX ix_webhooks_domain_id ON webhooks (domain_id);
CREATE INDEX ix_webhooks_user_id ON webhooks (user_id);

CREATE TABLE access_tokens (
    id INTEGER NOT NULL,
    user_id INTEGER NOT NULL,
    digest VARCHAR NOT NULL,
    auth_version INTEGER NOT NULL,
    scope VARCHAR(32) NOT NULL,
    protocol VARCHAR(32) NOT NULL,
    ip VARCHAR,
    pending BOOLEAN NOT NULL,
    "temporary" BOOLEAN NOT NULL,
    actor_id INTEGER,
    actor_key_id INTEGER,
    oauth_grant_id INTEGER,
    oauth_family_id INTEGER,
    oauth_scopes JSON,
    created_at DATETIME NOT NULL,
    last_used_at DATETIME NOT NULL,
    expires_at DATETIME NOT NULL,
    CONSTRAINT pk_access_tokens PRIMARY KEY (id),
    CONSTRAINT fk_access_tokens_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT uq_access_tokens_digest UNIQUE (digest),
    CONSTRAINT fk_access_tokens_oauth_grant_id FOREIGN KEY(oauth_grant_id) REFERENCES oauth_grants (id) ON DELETE CASCADE
);
CREATE INDEX access_tokens_of_grant ON access_tokens (oauth_grant_id, oauth_family_id) WHERE oauth_grant_id IS NOT NULL;
CREATE INDEX access_tokens_of_user ON access_tokens (user_id, created_at, id);
CREATE INDEX ix_access_tokens_expires_at ON access_tokens (expires_at);

CREATE TABLE autoreplies (
    id INTEGER NOT NULL,
    user_id INTEGER,
    address_id INTEGER,
    enabled BOOLEAN NOT NULL,
    name VARCHAR,
    subject VARCHAR NOT NULL,
    text VARCHAR NOT NULL,
    html VARCHAR NOT NULL,
    internal_subject VARCHAR,
    internal_text VARCHAR,
    internal_html VARCHAR,
    starts_at DATETIME,
    ends_at DATETIME,
    interval INTEGER,
    addresses JSON NOT NULL,
    created_at DATETIME NOT NULL,
    updated_at DATETIME NOT NULL,
    CONSTRAINT pk_autoreplies PRIMARY KEY (id),
    CONSTRAINT ck_autoreplies_one_owner CHECK ((user_id IS NULL) <> (address_id IS NULL)),
    CONSTRAINT fk_autoreplies_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT fk_autoreplies_address_id FOREIGN KEY(address_id) REFERENCES addresses (id) ON DELETE CASCADE
);
CREATE INDEX ix_autoreplies_address_id ON autoreplies (address_id);
CREATE INDEX ix_autoreplies_user_id ON autoreplies (user_id);

CREATE TABLE connector_runs (
    id INTEGER NOT NULL,
    user_id INTEGER NOT NULL,
    connector_id INTEGER NOT NULL,
    state VARCHAR(32) NOT NULL,
    dry_run BOOLEAN NOT NULL,
    cancelled BOOLEAN NOT NULL,
    created_at DATETIME NOT NULL,
    started_at DATETIME,
    finished_at DATETIME,
    stage VARCHAR,
    folder VARCHAR,
    seen_count INTEGER NOT NULL,
    imported_count INTEGER NOT NULL,
    skipped_count INTEGER NOT NULL,
    deleted_remote_count INTEGER NOT NULL,
    size INTEGER NOT NULL,
    error VARCHAR,
    log JSON NOT NULL,
    checkpoint JSON,
    CONSTRAINT pk_connector_runs PRIMARY KEY (id),
    CONSTRAINT fk_connector_runs_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT fk_connector_runs_connector_id FOREIGN KEY(connector_id) REFERENCES connectors (id) ON DELETE CASCADE
);
CREATE INDEX connector_runs_of_connector ON connector_runs (connector_id, id);
CREATE INDEX ix_connector_runs_user_id ON connector_runs (user_id);

CREATE TABLE export_parts (
    id INTEGER NOT NULL,
    export_id INTEGER NOT NULL,
    part INTEGER NOT NULL,
    position INTEGER NOT NULL,
    size INTEGER NOT NULL,
    blob_id INTEGER NOT NULL,
    CONSTRAINT pk_export_parts PRIMARY KEY (id),
    CONSTRAINT fk_export_parts_export_id FOREIGN KEY(export_id) REFERENCES exports (id) ON DELETE CASCADE,
    CONSTRAINT fk_export_parts_blob_id FOREIGN KEY(blob_id) REFERENCES blobs (id) ON DELETE RESTRICT
);
CREATE UNIQUE INDEX export_pieces_in_order ON export_parts (export_id, part, position);
CREATE INDEX ix_export_parts_blob_id ON export_parts (blob_id);

CREATE TABLE file_shares (
    id INTEGER NOT NULL,
    user_id INTEGER NOT NULL,
    file_id INTEGER NOT NULL,
    mode VARCHAR(32) NOT NULL,
    blob_id INTEGER,
    size INTEGER,
    digest VARCHAR,
    password VARCHAR,
    expires_at DATETIME,
    idle BOOLEAN NOT NULL,
    access_count INTEGER NOT NULL,
    last_access_at DATETIME,
    created_at DATETIME NOT NULL,
    CONSTRAINT pk_file_shares PRIMARY KEY (id),
    CONSTRAINT fk_file_shares_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT fk_file_shares_file_id FOREIGN KEY(file_id) REFERENCES files (id) ON DELETE CASCADE,
    CONSTRAINT fk_file_shares_blob_id FOREIGN KEY(blob_id) REFERENCES blobs (id) ON DELETE RESTRICT
);
CREATE INDEX ix_file_shares_blob_id ON file_shares (blob_id);
CREATE INDEX ix_file_shares_expires_at ON file_shares (expires_at);
CREATE INDEX ix_file_shares_file_id ON file_shares (file_id);
CREATE INDEX ix_file_shares_user_id ON file_shares (user_id);

CREATE TABLE identity_sessions (
    id INTEGER NOT NULL,
    link_id INTEGER NOT NULL,
    session_digest VARCHAR NOT NULL,
    family_id INTEGER NOT NULL,
    created_at DATETIME NOT NULL,
    CONSTRAINT pk_identity_sessions PRIMARY KEY (id),
    CONSTRAINT fk_identity_sessions_link_id FOREIGN KEY(link_id) REFERENCES identity_links (id) ON DELETE CASCADE
);
CREATE INDEX identity_sessions_of_digest ON identity_sessions (session_digest, link_id);
CREATE INDEX ix_identity_sessions_family_id ON identity_sessions (family_id);
CREATE INDEX ix_identity_sessions_link_id ON identity_sessions (link_id);

CREATE TABLE mailbox_annotations (
    mailbox_id INTEGER NOT NULL,
    "key" VARCHAR NOT NULL,
    value VARCHAR NOT NULL,
    CONSTRAINT pk_mailbox_annotations PRIMARY KEY (mailbox_id, "key"),
    CONSTRAINT fk_mailbox_annotations_mailbox_id FOREIGN KEY(mailbox_id) REFERENCES mailboxes (id) ON DELETE CASCADE
);

CREATE TABLE mailbox_shares (
    mailbox_id INTEGER NOT NULL,
    user_id INTEGER NOT NULL,
    owner_id INTEGER NOT NULL,
    rights INTEGER NOT NULL,
    since INTEGER NOT NULL,
    CONSTRAINT pk_mailbox_shares PRIMARY KEY (mailbox_id, user_id),
    CONSTRAINT fk_mailbox_shares_mailbox_id FOREIGN KEY(mailbox_id) REFERENCES mailboxes (id) ON DELETE CASCADE,
    CONSTRAINT fk_mailbox_shares_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX mailbox_shares_of_user ON mailbox_shares (user_id, owner_id, mailbox_id);

CREATE TABLE messages (
    id INTEGER NOT NULL,
    user_id INTEGER NOT NULL,
    mailbox_id INTEGER,
    uid INTEGER NOT NULL,
    modseq INTEGER NOT NULL,
    thread_id INTEGER NOT NULL,
    blob_id INTEGER NOT NULL,
    sha256 VARCHAR NOT NULL,
    received_at DATETIME NOT NULL,
    listed_at DATETIME NOT NULL,
    saved_at DATETIME NOT NULL,
    date DATETIME,
    expires_at DATETIME,
    snoozed_until DATETIME,
    snoozed_from INTEGER,
    size INTEGER NOT NULL,
    seen BOOLEAN NOT NULL,
    flagged BOOLEAN NOT NULL,
    answered BOOLEAN NOT NULL,
    draft BOOLEAN NOT NULL,
    deleted BOOLEAN NOT NULL,
    keywords JSON NOT NULL,
    subject VARCHAR NOT NULL,
    from_name VARCHAR,
    from_address VARCHAR,
    sender JSON,
    reply_to JSON NOT NULL,
    "to" JSON NOT NULL,
    cc JSON NOT NULL,
    bcc JSON NOT NULL,
    message_id VARCHAR,
    in_reply_to VARCHAR,
    "references" JSON NOT NULL,
    mailing_list JSON,
    preview VARCHAR NOT NULL,
    content_type VARCHAR NOT NULL,
    content_params JSON NOT NULL,
    encrypted BOOLEAN NOT NULL,
    attachment_count INTEGER NOT NULL,
    attachments JSON NOT NULL,
    mime_structure BLOB NOT NULL,
    envelope_from VARCHAR,
    envelope_to JSON NOT NULL,
    public_metadata JSON,
    authentication JSON,
    spam_report JSON,
    filters JSON,
    forwarded_to JSON,
    source_id INTEGER,
    source_relation VARCHAR,
    deleted_at DATETIME,
    deleted_from VARCHAR,
    deleted_mailbox_id INTEGER,
    purge_at DATETIME,
    "indexed" BOOLEAN NOT NULL,
    CONSTRAINT pk_messages PRIMARY KEY (id),
    CONSTRAINT fk_messages_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT fk_messages_mailbox_id FOREIGN KEY(mailbox_id) REFERENCES mailboxes (id) ON DELETE RESTRICT,
    CONSTRAINT fk_messages_thread_id FOREIGN KEY(thread_id) REFERENCES threads (id) ON DELETE RESTRICT
);
CREATE INDEX ix_messages_thread_id ON messages (thread_id);
CREATE INDEX ix_messages_user_id ON messages (user_id);
CREATE INDEX messages_by_age ON messages (mailbox_id, listed_at, id);
CREATE UNIQUE INDEX messages_by_uid ON messages (mailbox_id, uid);
CREATE INDEX messages_deleted ON messages (user_id, deleted_at, id) WHERE deleted_at IS NOT NULL;
CREATE INDEX messages_of_user ON messages (user_id, listed_at, id) WHERE deleted_at IS NULL;
CREATE INDEX messages_snoozed ON messages (user_id, deleted_at, listed_at, id) WHERE snoozed_until IS NOT NULL;
CREATE INDEX messages_to_expire ON messages (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX messages_to_index ON messages (id) WHERE NOT indexed;
CREATE INDEX messages_to_purge ON messages (purge_at) WHERE purge_at IS NOT NULL;
CREATE INDEX messages_to_wake ON messages (snoozed_until) WHERE snoozed_until IS NOT NULL;
CREATE INDEX messages_unseen ON messages (mailbox_id, listed_at, id) WHERE NOT seen;
CREATE INDEX messages_waiting ON messages (user_id, "indexed", id) WHERE NOT indexed;
CREATE INDEX messages_with_keywords ON messages (user_id, deleted_at) WHERE keywords <> '[]';

CREATE TABLE oauth_authorization_codes (
    id INTEGER NOT NULL,
    digest VARCHAR NOT NULL,
    page_digest VARCHAR NOT NULL,
    grant_id INTEGER NOT NULL,
    scopes JSON NOT NULL,
    redirect_uri VARCHAR NOT NULL,
    code_challenge VARCHAR NOT NULL,
    nonce VARCHAR,
    auth_version INTEGER NOT NULL,
    signed_in_at DATETIME NOT NULL,
    created_at DATETIME NOT NULL,
    expires_at DATETIME NOT NULL,
    used_at DATETIME,
    CONSTRAINT pk_oauth_authorization_codes PRIMARY KEY (id),
    CONSTRAINT uq_oauth_authorization_codes_digest UNIQUE (digest),
    CONSTRAINT uq_oauth_authorization_codes_page_digest UNIQUE (page_digest),
    CONSTRAINT fk_oauth_authorization_codes_grant_id FOREIGN KEY(grant_id) REFERENCES oauth_grants (id) ON DELETE CASCADE
);
CREATE INDEX ix_oauth_authorization_codes_expires_at ON oauth_authorization_codes (expires_at);
CREATE INDEX ix_oauth_authorization_codes_grant_id ON oauth_authorization_codes (grant_id);

CREATE TABLE oauth_refresh_tokens (
    id INTEGER NOT NULL,
    digest VARCHAR NOT NULL,
    grant_id INTEGER NOT NULL,
    family_id INTEGER NOT NULL,
    scopes JSON NOT NULL,
    auth_version INTEGER NOT NULL,
    created_at DATETIME NOT NULL,
    expires_at DATETIME NOT NULL,
    replaced_at DATETIME,
    CONSTRAINT pk_oauth_refresh_tokens PRIMARY KEY (id),
    CONSTRAINT uq_oauth_refresh_tokens_digest UNIQUE (digest),
    CONSTRAINT fk_oauth_refresh_tokens_grant_id FOREIGN KEY(grant_id) REFERENCES oauth_grants (id) ON DELETE CASCADE
);
CREATE INDEX ix_oauth_refresh_tokens_expires_at ON oauth_refresh_tokens (expires_at);
CREATE INDEX oauth_refresh_tokens_of_family ON oauth_refresh_tokens (grant_id, family_id);

CREATE TABLE quarantine_blobs (
    item_id INTEGER NOT NULL,
    blob_id INTEGER NOT NULL,
    CONSTRAINT pk_quarantine_blobs PRIMARY KEY (item_id, blob_id),
    CONSTRAINT fk_quarantine_blobs_item_id FOREIGN KEY(item_id) REFERENCES quarantine_items (id) ON DELETE CASCADE,
    CONSTRAINT fk_quarantine_blobs_blob_id FOREIGN KEY(blob_id) REFERENCES blobs (id) ON DELETE RESTRICT
);
CREATE INDEX ix_quarantine_blobs_blob_id ON quarantine_blobs (blob_id);

CREATE TABLE remote_mailboxes (
    id INTEGER NOT NULL,
    connector_id INTEGER NOT NULL,
    name VARCHAR NOT NULL,
    validity INTEGER NOT NULL,
    modseq INTEGER NOT NULL,
    CONSTRAINT pk_remote_mailboxes PRIMARY KEY (id),
    CONSTRAINT fk_remote_mailboxes_connector_id FOREIGN KEY(connector_id) REFERENCES connectors (id) ON DELETE CASCADE
);
CREATE UNIQUE INDEX connector_folders_by_name ON remote_mailboxes (connector_id, name);

CREATE TABLE resources (
    id INTEGER NOT NULL,
    domain_id INTEGER NOT NULL,
    address_id INTEGER NOT NULL,
    local VARCHAR NOT NULL,
    name VARCHAR NOT NULL,
    folded_name VARCHAR NOT NULL,
    kind VARCHAR(32) NOT NULL,
    booking_policy VARCHAR(32) NOT NULL,
    booking_limit INTEGER,
    active BOOLEAN NOT NULL,
    created_at DATETIME NOT NULL,
    updated_at DATETIME NOT NULL,
    CONSTRAINT pk_resources PRIMARY KEY (id),
    CONSTRAINT fk_resources_domain_id FOREIGN KEY(domain_id) REFERENCES domains (id) ON DELETE CASCADE,
    CONSTRAINT uq_resources_address_id UNIQUE (address_id),
    CONSTRAINT fk_resources_address_id FOREIGN KEY(address_id) REFERENCES addresses (id) ON DELETE CASCADE
);
CREATE INDEX resources_by_age ON resources (created_at, id);
CREATE INDEX resources_by_name ON resources (folded_name, id);
CREATE INDEX resources_of_domain_by_age ON resources (domain_id, created_at, id);
CREATE INDEX resources_of_domain_by_name ON resources (domain_id, folded_name, id);

CREATE TABLE scim_addresses (
    address_id INTEGER NOT NULL,
    user_id INTEGER NOT NULL,
    type VARCHAR,
    is_primary BOOLEAN,
    created_by_scim BOOLEAN NOT NULL,
    CONSTRAINT pk_scim_addresses PRIMARY KEY (address_id),
    CONSTRAINT fk_scim_addresses_address_id FOREIGN KEY(address_id) REFERENCES addresses (id) ON DELETE CASCADE,
    CONSTRAINT fk_scim_addresses_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX ix_scim_addresses_user_id ON scim_addresses (user_id);

CREATE TABLE thread_keys (
    user_id INTEGER NOT NULL,
    "key" VARCHAR NOT NULL,
    thread_id INTEGER NOT NULL,
    CONSTRAINT pk_thread_keys PRIMARY KEY (user_id, "key"),
    CONSTRAINT fk_thread_keys_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT fk_thread_keys_thread_id FOREIGN KEY(thread_id) REFERENCES threads (id) ON DELETE CASCADE
);
CREATE INDEX ix_thread_keys_thread_id ON thread_keys (thread_id);

CREATE TABLE upload_parts (
    id INTEGER NOT NULL,
    upload_id INTEGER NOT NULL,
    start INTEGER NOT NULL,
    size INTEGER NOT NULL,
    digest VARCHAR NOT NULL,
    name VARCHAR NOT NULL,
    CONSTRAINT pk_upload_parts PRIMARY KEY (id),
    CONSTRAINT uq_upload_parts_upload_id_start UNIQUE (upload_id, start),
    CONSTRAINT fk_upload_parts_upload_id FOREIGN KEY(upload_id) REFERENCES uploads (id) ON DELETE CASCADE,
    CONSTRAINT uq_upload_parts_name UNIQUE (name)
);

CREATE TABLE webhook_deliveries (
    id INTEGER NOT NULL,
    webhook_id INTEGER NOT NULL,
    stream_id INTEGER NOT NULL,
    number INTEGER NOT NULL,
    event VARCHAR NOT NULL,
    type VARCHAR(32) NOT NULL,
    at DATETIME NOT NULL,
    body JSON NOT NULL,
    state VARCHAR(32) NOT NULL,
    attempt INTEGER NOT NULL,
    status INTEGER,
    error VARCHAR,
    duration INTEGER,
    expires_at DATETIME NOT NULL,
    next_attempt_at DATETIME,
    CONSTRAINT pk_webhook_deliveries PRIMARY KEY (id),
    CONSTRAINT fk_webhook_deliveries_webhook_id FOREIGN KEY(webhook_id) REFERENCES webhooks (id) ON DELETE CASCADE
);
CREATE INDEX webhook_deliveries_ended ON webhook_deliveries (webhook_id, state, id);
CREATE INDEX webhook_deliveries_log ON webhook_deliveries (webhook_id, id);
CREATE INDEX webhook_deliveries_waiting ON webhook_deliveries (webhook_id, stream_id, number, id) WHERE state = 'PENDING';

CREATE TABLE webhook_lanes (
    webhook_id INTEGER NOT NULL,
    stream_id INTEGER NOT NULL,
    due_at DATETIME NOT NULL,
    lease INTEGER,
    holder INTEGER,
    CONSTRAINT pk_webhook_lanes PRIMARY KEY (webhook_id, stream_id),
    CONSTRAINT fk_webhook_lanes_webhook_id FOREIGN KEY(webhook_id) REFERENCES webhooks (id) ON DELETE CASCADE
);
CREATE INDEX webhook_lanes_due ON webhook_lanes (webhook_id, due_at);
CREATE INDEX webhook_lanes_leased ON webhook_lanes (holder) WHERE holder IS NOT NULL;

CREATE TABLE autoreply_senders (
    autoreply_id INTEGER NOT NULL,
    sender VARCHAR NOT NULL,
    until DATETIME NOT NULL,
    CONSTRAINT pk_autoreply_senders PRIMARY KEY (autoreply_id, sender),
    CONSTRAINT fk_autoreply_senders_autoreply_id FOREIGN KEY(autoreply_id) REFERENCES autoreplies (id) ON DELETE CASCADE
);
CREATE INDEX ix_autoreply_senders_until ON autoreply_senders (until);

CREATE TABLE bookings (
    id INTEGER NOT NULL,
    resource_id INTEGER NOT NULL,
    series_key VARCHAR NOT NULL,
    uid VARCHAR NOT NULL,
    occurrence_at DATETIME,
    sequence INTEGER NOT NULL,
    stamped_at DATETIME NOT NULL,
    state VARCHAR(32) NOT NULL,
    starts_at DATETIME NOT NULL,
    ends_at DATETIME NOT NULL,
    organizer VARCHAR NOT NULL,
    organizer_name VARCHAR,
    organizer_user_id INTEGER,
    summary VARCHAR,
    created_at DATETIME NOT NULL,
    CONSTRAINT pk_bookings PRIMARY KEY (id),
    CONSTRAINT fk_bookings_resource_id FOREIGN KEY(resource_id) REFERENCES resources (id) ON DELETE CASCADE
);
CREATE INDEX bookings_by_age ON bookings (ends_at);
CREATE INDEX bookings_by_end ON bookings (resource_id, ends_at, id);
CREATE INDEX bookings_by_start ON bookings (resource_id, starts_at, id) WHERE state = 'BOOKED';
CREATE INDEX bookings_of_series ON bookings (resource_id, series_key, occurrence_at);
CREATE INDEX bookings_released ON bookings (resource_id, organizer, id) WHERE state = 'RELEASED';

CREATE TABLE draft_files (
    message_id INTEGER NOT NULL,
    file_id INTEGER NOT NULL,
    nth INTEGER NOT NULL,
    CONSTRAINT pk_draft_files PRIMARY KEY (message_id, file_id),
    CONSTRAINT fk_draft_files_message_id FOREIGN KEY(message_id) REFERENCES messages (id) ON DELETE CASCADE,
    CONSTRAINT fk_draft_files_file_id FOREIGN KEY(file_id) REFERENCES files (id) ON DELETE CASCADE
);
CREATE INDEX ix_draft_files_file_id ON draft_files (file_id);

CREATE TABLE fetched_messages (
    folder_id INTEGER NOT NULL,
    remote_id VARCHAR NOT NULL,
    digest VARCHAR NOT NULL,
    message_id INTEGER,
    flags VARCHAR NOT NULL,
    fetched_at DATETIME NOT NULL,
    removed BOOLEAN NOT NULL,
    may_delete_source BOOLEAN NOT NULL,
    CONSTRAINT pk_fetched_messages PRIMARY KEY (folder_id, remote_id),
    CONSTRAINT fk_fetched_messages_folder_id FOREIGN KEY(folder_id) REFERENCES remote_mailboxes (id) ON DELETE CASCADE
);
CREATE INDEX connector_messages_by_digest ON fetched_messages (folder_id, digest);
CREATE INDEX connector_messages_of_message ON fetched_messages (message_id);

CREATE TABLE message_blobs (
    message_id INTEGER NOT NULL,
    blob_id INTEGER NOT NULL,
    CONSTRAINT pk_message_blobs PRIMARY KEY (message_id, blob_id),
    CONSTRAINT fk_message_blobs_message_id FOREIGN KEY(message_id) REFERENCES messages (id) ON DELETE CASCADE,
    CONSTRAINT fk_message_blobs_blob_id FOREIGN KEY(blob_id) REFERENCES blobs (id) ON DELETE RESTRICT
);
CREATE INDEX ix_message_blobs_blob_id ON message_blobs (blob_id);

CREATE TABLE submissions (
    id INTEGER NOT NULL,
    user_id INTEGER,
    tenant_id INTEGER NOT NULL,
    queue_id VARCHAR NOT NULL,
    state VARCHAR(32) NOT NULL,
    message_id INTEGER,
    blob_id INTEGER NOT NULL,
    size INTEGER NOT NULL,
    envelope_from VARCHAR NOT NULL,
    send_at DATETIME,
    undoable_until DATETIME,
    copy_of INTEGER,
    envid VARCHAR,
    header_id VARCHAR,
    ret VARCHAR,
    originates_here BOOLEAN NOT NULL,
    release_at DATETIME,
    sent_mailbox_id INTEGER,
    created_at DATETIME NOT NULL,
    CONSTRAINT pk_submissions PRIMARY KEY (id),
    CONSTRAINT fk_submissions_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT uq_submissions_queue_id UNIQUE (queue_id),
    CONSTRAINT fk_submissions_message_id FOREIGN KEY(message_id) REFERENCES messages (id) ON DELETE SET NULL
);
CREATE INDEX ix_submissions_message_id ON submissions (message_id);
CREATE INDEX ix_submissions_user_id ON submissions (user_id);
CREATE INDEX submissions_copies ON submissions (copy_of) WHERE copy_of IS NOT NULL;
CREATE INDEX submissions_envid ON submissions (user_id, envid) WHERE envid IS NOT NULL;
CREATE INDEX submissions_header ON submissions (user_id, header_id) WHERE header_id IS NOT NULL;
CREATE INDEX submissions_held ON submissions (release_at, id) WHERE release_at IS NOT NULL;
CREATE INDEX submissions_of_user ON submissions (user_id, created_at, id);
CREATE INDEX submissions_waiting ON submissions (created_at, id) WHERE state IN ('SCHEDULED', 'UNDOABLE', 'QUEUED', 'SENDING');
CREATE INDEX submissions_waiting_by_size ON submissions (size, id) WHERE state IN ('SCHEDULED', 'UNDOABLE', 'QUEUED', 'SENDING');
CREATE INDEX submissions_waiting_of_user ON submissions (user_id, created_at, id) WHERE state IN ('SCHEDULED', 'UNDOABLE', 'QUEUED', 'SENDING');

CREATE TABLE training_messages (
    message_id INTEGER NOT NULL,
    spam BOOLEAN NOT NULL,
    revision INTEGER NOT NULL,
    due_at DATETIME NOT NULL,
    holder INTEGER,
    attempts INTEGER NOT NULL,
    CONSTRAINT pk_training_messages PRIMARY KEY (message_id),
    CONSTRAINT fk_training_messages_message_id FOREIGN KEY(message_id) REFERENCES messages (id) ON DELETE CASCADE
);
CREATE INDEX ix_training_messages_due_at ON training_messages (due_at);
CREATE INDEX training_messages_leased ON training_messages (holder) WHERE holder IS NOT NULL;

CREATE TABLE queue_entries (
    id INTEGER NOT NULL,
    user_id INTEGER,
    submission_id INTEGER NOT NULL,
    recipient VARCHAR NOT NULL,
    domain VARCHAR NOT NULL,
    via VARCHAR,
    secret VARCHAR,
    state VARCHAR(32) NOT NULL,
    attempts INTEGER NOT NULL,
    next_at DATETIME,
    ready_at DATETIME,
    rank INTEGER NOT NULL,
    held_at DATETIME,
    flushed_at DATETIME,
    holder INTEGER,
    lease INTEGER,
    final_dot_at DATETIME,
    last_code INTEGER,
    last_response VARCHAR,
    mx VARCHAR,
    tls VARCHAR,
    delivered_at DATETIME,
    notify VARCHAR,
    orcpt VARCHAR,
    delay_reported_at DATETIME,
    pending_dsn_action VARCHAR,
    reported_at DATETIME,
    dsn_reporter VARCHAR,
    dsn_verified BOOLEAN,
    created_at DATETIME NOT NULL,
    expires_at DATETIME NOT NULL,
    CONSTRAINT pk_queue_entries PRIMARY KEY (id),
    CONSTRAINT fk_queue_entries_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT fk_queue_entries_submission_id FOREIGN KEY(submission_id) REFERENCES submissions (id) ON DELETE CASCADE
);
CREATE INDEX ix_queue_entries_submission_id ON queue_entries (submission_id);
CREATE INDEX ix_queue_entries_user_id ON queue_entries (user_id);
CREATE INDEX queue_entries_deferred ON queue_entries (submission_id) WHERE state = 'DEFERRED';
CREATE INDEX queue_entries_due ON queue_entries (next_at, id) WHERE next_at IS NOT NULL AND ready_at IS NULL AND held_at IS NULL AND lease IS NULL;
CREATE INDEX queue_entries_held ON queue_entries (submission_id) WHERE held_at IS NOT NULL;
CREATE INDEX queue_entries_leased ON queue_entries (lease, submission_id) WHERE lease IS NOT NULL;
CREATE INDEX queue_entries_open ON queue_entries (submission_id) WHERE state IN ('PENDING', 'DEFERRED');
CREATE INDEX queue_entries_pending_dsn ON queue_entries (submission_id, id) WHERE pending_dsn_action IS NOT NULL;
CREATE INDEX queue_entries_ready ON queue_entries (rank, domain, ready_at, id) WHERE ready_at IS NOT NULL;

CREATE TABLE submission_blobs (
    submission_id INTEGER NOT NULL,
    blob_id INTEGER NOT NULL,
    CONSTRAINT pk_submission_blobs PRIMARY KEY (submission_id, blob_id),
    CONSTRAINT fk_submission_blobs_submission_id FOREIGN KEY(submission_id) REFERENCES submissions (id) ON DELETE CASCADE,
    CONSTRAINT fk_submission_blobs_blob_id FOREIGN KEY(blob_id) REFERENCES blobs (id) ON DELETE RESTRICT
);
CREATE INDEX ix_submission_blobs_blob_id ON submission_blobs (blob_id);

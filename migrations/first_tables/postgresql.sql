CREATE TABLE acme_accounts (
    id BIGINT NOT NULL,
    directory VARCHAR NOT NULL,
    url VARCHAR,
    private_key VARCHAR NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_acme_accounts PRIMARY KEY (id),
    CONSTRAINT uq_acme_accounts_directory UNIQUE (directory)
);

CREATE TABLE ban_change_counters (
    id BIGINT NOT NULL,
    last_change BIGINT NOT NULL,
    CONSTRAINT pk_ban_change_counters PRIMARY KEY (id)
);

CREATE TABLE ban_list_hosts (
    name VARCHAR NOT NULL,
    addresses JSONB NOT NULL,
    resolved_at TIMESTAMP WITH TIME ZONE,
    checked_at TIMESTAMP WITH TIME ZONE NOT NULL,
    problem VARCHAR,
    CONSTRAINT pk_ban_list_hosts PRIMARY KEY (name)
);

CREATE TABLE ban_policies (
    id BIGINT NOT NULL,
    ban_seconds BIGINT NOT NULL,
    ban_time_increment BOOLEAN NOT NULL,
    max_attempts BIGINT NOT NULL,
    retry_window_seconds BIGINT NOT NULL,
    netmask_ipv4 BIGINT NOT NULL,
    netmask_ipv6 BIGINT NOT NULL,
    allowlist JSONB NOT NULL,
    denylist JSONB NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_ban_policies PRIMARY KEY (id)
);

CREATE TABLE blobs (
    id BIGINT NOT NULL,
    tenant_id BIGINT NOT NULL,
    digest VARCHAR NOT NULL,
    size BIGINT NOT NULL,
    stored_size BIGINT NOT NULL,
    codec VARCHAR NOT NULL,
    name VARCHAR,
    data BYTEA,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    damaged_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_blobs PRIMARY KEY (id),
    CONSTRAINT uq_blobs_tenant_id_digest UNIQUE (tenant_id, digest),
    CONSTRAINT uq_blobs_name UNIQUE (name)
);

CREATE TABLE certificates (
    id BIGINT NOT NULL,
    server_name VARCHAR NOT NULL,
    alt_names JSONB NOT NULL,
    description VARCHAR,
    chain VARCHAR,
    private_key VARCHAR,
    version BIGINT NOT NULL,
    sha1 VARCHAR,
    sha256 VARCHAR,
    spki VARCHAR,
    issuer VARCHAR,
    not_before TIMESTAMP WITH TIME ZONE,
    not_after TIMESTAMP WITH TIME ZONE,
    acme BOOLEAN NOT NULL,
    acme_names JSONB NOT NULL,
    acme_directory VARCHAR,
    acme_renew_at TIMESTAMP WITH TIME ZONE,
    acme_state VARCHAR(32),
    acme_error VARCHAR,
    acme_next_at TIMESTAMP WITH TIME ZONE,
    acme_failures BIGINT NOT NULL,
    lease BIGINT,
    holder BIGINT,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_certificates PRIMARY KEY (id),
    CONSTRAINT uq_certificates_server_name UNIQUE (server_name)
);
CREATE INDEX certificates_leased ON certificates (holder) WHERE holder IS NOT NULL;
CREATE INDEX ix_certificates_acme_next_at ON certificates (acme_next_at);
CREATE INDEX ix_certificates_not_after ON certificates (not_after);

CREATE TABLE cluster_nodes (
    id BIGINT NOT NULL,
    host VARCHAR NOT NULL,
    port BIGINT NOT NULL,
    kind VARCHAR(32) NOT NULL,
    tag VARCHAR,
    weight BIGINT NOT NULL,
    state VARCHAR(32) NOT NULL,
    state_changed_at TIMESTAMP WITH TIME ZONE NOT NULL,
    drain_seconds BIGINT NOT NULL,
    drain_ends_at TIMESTAMP WITH TIME ZONE,
    is_added BOOLEAN NOT NULL,
    server VARCHAR,
    version VARCHAR,
    process_count BIGINT NOT NULL,
    smtp_port BIGINT,
    submission_port BIGINT,
    ip_addresses JSONB NOT NULL,
    change_number BIGINT NOT NULL,
    applied_change_number BIGINT NOT NULL,
    heartbeat_count BIGINT NOT NULL,
    last_heartbeat_at TIMESTAMP WITH TIME ZONE,
    unreachable_at TIMESTAMP WITH TIME ZONE,
    last_failure_at TIMESTAMP WITH TIME ZONE,
    last_failure VARCHAR,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
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
    changed_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_component_holds PRIMARY KEY (component, node)
);

CREATE TABLE credential_changes (
    id BIGSERIAL NOT NULL,
    user_id BIGINT NOT NULL,
    position BIGINT NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_credential_changes PRIMARY KEY (id)
);
CREATE INDEX ix_credential_changes_at ON credential_changes (at);
CREATE INDEX ix_credential_changes_position ON credential_changes (position);

CREATE TABLE delivery_receipts (
    digest VARCHAR NOT NULL,
    message_id BIGINT NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_delivery_receipts PRIMARY KEY (digest)
);
CREATE INDEX ix_delivery_receipts_at ON delivery_receipts (at);

CREATE TABLE delivery_trace_steps (
    id BIGINT NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
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
    stored_message_id BIGINT,
    domain_id BIGINT,
    submission_id BIGINT,
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
    free_at TIMESTAMP WITH TIME ZONE NOT NULL,
    until TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_destination_slots PRIMARY KEY (destination)
);
CREATE INDEX ix_destination_slots_until ON destination_slots (until);

CREATE TABLE domains (
    id BIGINT NOT NULL,
    name VARCHAR NOT NULL,
    description VARCHAR,
    active BOOLEAN NOT NULL,
    tags JSONB NOT NULL,
    max_addresses BIGINT NOT NULL,
    max_users BIGINT NOT NULL,
    default_user_quota BIGINT,
    max_user_quota BIGINT NOT NULL,
    quota BIGINT NOT NULL,
    user_count BIGINT NOT NULL,
    address_count BIGINT NOT NULL,
    quota_allocated BIGINT NOT NULL,
    backup_mx BOOLEAN NOT NULL,
    relay_all_recipients BOOLEAN NOT NULL,
    relay_unknown_only BOOLEAN NOT NULL,
    relay_host_id BIGINT,
    password_min BIGINT,
    password_classes BIGINT,
    global_address_list BOOLEAN NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_domains PRIMARY KEY (id),
    CONSTRAINT uq_domains_name UNIQUE (name)
);
CREATE INDEX domains_by_age ON domains (created_at, id);
CREATE INDEX domains_by_relay_host ON domains (relay_host_id, name, id) WHERE relay_host_id IS NOT NULL;
CREATE INDEX domains_by_user_count ON domains (user_count, id);

CREATE TABLE dropped_objects (
    name VARCHAR NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_dropped_objects PRIMARY KEY (name)
);
CREATE INDEX ix_dropped_objects_at ON dropped_objects (at);

CREATE TABLE forwarding_hosts (
    id BIGINT NOT NULL,
    host VARCHAR NOT NULL,
    source VARCHAR NOT NULL,
    filter_spam BOOLEAN NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_forwarding_hosts PRIMARY KEY (id),
    CONSTRAINT uq_forwarding_hosts_host UNIQUE (host)
);

CREATE TABLE greylist_entries (
    key VARCHAR NOT NULL,
    since TIMESTAMP WITH TIME ZONE NOT NULL,
    until TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_greylist_entries PRIMARY KEY (key)
);
CREATE INDEX ix_greylist_entries_until ON greylist_entries (until);

CREATE TABLE idempotent_payloads (
    principal VARCHAR NOT NULL,
    key VARCHAR NOT NULL,
    request_digest VARCHAR NOT NULL,
    answer JSONB NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_idempotent_payloads PRIMARY KEY (principal, key)
);
CREATE INDEX ix_idempotent_payloads_at ON idempotent_payloads (at);

CREATE TABLE legal_holds (
    id BIGINT NOT NULL,
    user_id BIGINT NOT NULL,
    username VARCHAR NOT NULL,
    starts_at TIMESTAMP WITH TIME ZONE,
    ends_at TIMESTAMP WITH TIME ZONE,
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
    reason VARCHAR,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    created_by VARCHAR NOT NULL,
    task_id BIGINT NOT NULL,
    copied BOOLEAN NOT NULL,
    copies BIGINT NOT NULL,
    size BIGINT NOT NULL,
    head VARCHAR NOT NULL,
    ended_at TIMESTAMP WITH TIME ZONE,
    removed BOOLEAN NOT NULL,
    CONSTRAINT pk_legal_holds PRIMARY KEY (id)
);
CREATE INDEX ix_legal_holds_expires_at ON legal_holds (expires_at);
CREATE INDEX ix_legal_holds_user_id ON legal_holds (user_id);

CREATE TABLE metric_resets (
    name VARCHAR NOT NULL,
    reset_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_metric_resets PRIMARY KEY (name)
);

CREATE TABLE mta_sts_policies (
    id BIGINT NOT NULL,
    domain VARCHAR NOT NULL,
    policy_id VARCHAR NOT NULL,
    mode VARCHAR(32) NOT NULL,
    mx JSONB NOT NULL,
    max_age BIGINT NOT NULL,
    fetched_at TIMESTAMP WITH TIME ZONE NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
    retry_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_mta_sts_policies PRIMARY KEY (id),
    CONSTRAINT uq_mta_sts_policies_domain UNIQUE (domain)
);
CREATE INDEX ix_mta_sts_policies_expires_at ON mta_sts_policies (expires_at);

CREATE TABLE network_bans (
    id BIGINT NOT NULL,
    network VARCHAR NOT NULL,
    first_ip VARCHAR NOT NULL,
    last_ip VARCHAR NOT NULL,
    cause VARCHAR(32) NOT NULL,
    reason VARCHAR,
    failure_count BIGINT NOT NULL,
    ban_count BIGINT NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE NOT NULL,
    ends_at TIMESTAMP WITH TIME ZONE NOT NULL,
    change_number BIGINT NOT NULL,
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
    failure_count BIGINT NOT NULL,
    window_ends_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_network_failures PRIMARY KEY (network)
);
CREATE INDEX ix_network_failures_window_ends_at ON network_failures (window_ends_at);
CREATE INDEX network_failures_by_ip ON network_failures (first_ip, last_ip);

CREATE TABLE oauth_clients (
    id BIGINT NOT NULL,
    client_id VARCHAR NOT NULL,
    name VARCHAR NOT NULL,
    secret_digest VARCHAR,
    redirect_uris JSONB NOT NULL,
    grant_types JSONB NOT NULL,
    scopes JSONB NOT NULL,
    created_by VARCHAR,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE,
    secret_rotated_at TIMESTAMP WITH TIME ZONE,
    last_used_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_oauth_clients PRIMARY KEY (id),
    CONSTRAINT uq_oauth_clients_client_id UNIQUE (client_id)
);
CREATE INDEX ix_oauth_clients_created_at ON oauth_clients (created_at, id);
CREATE INDEX ix_oauth_clients_name ON oauth_clients (name, id);

CREATE TABLE oauth_signing_keys (
    id BIGINT NOT NULL,
    kid VARCHAR NOT NULL,
    public_key JSONB NOT NULL,
    private_key VARCHAR NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    activates_at TIMESTAMP WITH TIME ZONE NOT NULL,
    retires_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_oauth_signing_keys PRIMARY KEY (id),
    CONSTRAINT uq_oauth_signing_keys_kid UNIQUE (kid)
);

CREATE TABLE process_answers (
    id BIGINT NOT NULL,
    request_id BIGINT NOT NULL,
    process_id BIGINT NOT NULL,
    answer JSONB NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_process_answers PRIMARY KEY (id)
);
CREATE INDEX ix_process_answers_created_at ON process_answers (created_at);
CREATE INDEX ix_process_answers_request_id ON process_answers (request_id);

CREATE TABLE process_requests (
    id BIGINT NOT NULL,
    kind VARCHAR NOT NULL,
    arguments JSONB NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    reply_by TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_process_requests PRIMARY KEY (id)
);
CREATE INDEX ix_process_requests_created_at ON process_requests (created_at);

CREATE TABLE rate_windows (
    id BIGINT NOT NULL,
    per VARCHAR(32) NOT NULL,
    allowed BIGINT NOT NULL,
    used BIGINT NOT NULL,
    until TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_rate_windows PRIMARY KEY (id)
);
CREATE INDEX ix_rate_windows_until ON rate_windows (until);

CREATE TABLE recipient_rewrites (
    made_by BIGINT,
    made_as VARCHAR(32) NOT NULL,
    id BIGINT NOT NULL,
    local VARCHAR NOT NULL,
    domain VARCHAR NOT NULL,
    target VARCHAR NOT NULL,
    outside BOOLEAN NOT NULL,
    active BOOLEAN NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_recipient_rewrites PRIMARY KEY (id)
);
CREATE INDEX recipient_rewrites_oldest ON recipient_rewrites (created_at, id);
CREATE UNIQUE INDEX uq_recipient_rewrites_from ON recipient_rewrites (domain, local);

CREATE TABLE relay_hosts (
    id BIGINT NOT NULL,
    host VARCHAR NOT NULL,
    port BIGINT NOT NULL,
    username VARCHAR,
    secret VARCHAR,
    tls BOOLEAN NOT NULL,
    active BOOLEAN NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_relay_hosts PRIMARY KEY (id)
);

CREATE TABLE secret_box_keys (
    name VARCHAR NOT NULL,
    proof VARCHAR NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_secret_box_keys PRIMARY KEY (name)
);

CREATE TABLE server_clocks (
    server VARCHAR NOT NULL,
    boot VARCHAR NOT NULL,
    ahead BIGINT NOT NULL,
    seen_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_server_clocks PRIMARY KEY (server)
);

CREATE TABLE server_processes (
    id BIGINT NOT NULL,
    server VARCHAR NOT NULL,
    name VARCHAR NOT NULL,
    exclusive VARCHAR,
    host VARCHAR NOT NULL,
    ip_addresses JSONB NOT NULL,
    pid BIGINT NOT NULL,
    version VARCHAR NOT NULL,
    answers_requests BOOLEAN NOT NULL,
    boot VARCHAR NOT NULL,
    heartbeat_count BIGINT NOT NULL,
    heartbeat_at BIGINT NOT NULL,
    secret_box_keys JSONB NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE NOT NULL,
    seen_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_server_processes PRIMARY KEY (id)
);
CREATE INDEX ix_server_processes_server ON server_processes (server);

CREATE TABLE setting_history (
    id BIGINT NOT NULL,
    key VARCHAR NOT NULL,
    before JSONB,
    after JSONB,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    actor VARCHAR NOT NULL,
    actor_id BIGINT,
    reason VARCHAR,
    CONSTRAINT pk_setting_history PRIMARY KEY (id)
);
CREATE INDEX ix_setting_history_key ON setting_history (key, at, id);

CREATE TABLE setting_values (
    key VARCHAR NOT NULL,
    value JSONB,
    updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_setting_values PRIMARY KEY (key)
);

CREATE TABLE statistic_steps (
    domain_id BIGINT NOT NULL,
    step_seconds BIGINT NOT NULL,
    started_at BIGINT NOT NULL,
    sign_ins BIGINT NOT NULL,
    sign_in_failures BIGINT NOT NULL,
    messages_in BIGINT NOT NULL,
    bytes_in BIGINT NOT NULL,
    messages_junk BIGINT NOT NULL,
    viruses BIGINT NOT NULL,
    messages_out BIGINT NOT NULL,
    bytes_out BIGINT NOT NULL,
    messages_bounced BIGINT NOT NULL,
    api_operations BIGINT NOT NULL,
    latency_0 BIGINT NOT NULL,
    latency_1 BIGINT NOT NULL,
    latency_2 BIGINT NOT NULL,
    latency_3 BIGINT NOT NULL,
    latency_4 BIGINT NOT NULL,
    latency_5 BIGINT NOT NULL,
    latency_6 BIGINT NOT NULL,
    latency_7 BIGINT NOT NULL,
    latency_8 BIGINT NOT NULL,
    latency_9 BIGINT NOT NULL,
    latency_10 BIGINT NOT NULL,
    latency_11 BIGINT NOT NULL,
    latency_12 BIGINT NOT NULL,
    latency_13 BIGINT NOT NULL,
    storage BIGINT,
    active_users BIGINT,
    queue_length BIGINT,
    CONSTRAINT pk_statistic_steps PRIMARY KEY (domain_id, step_seconds, started_at)
);

CREATE TABLE store_facts (
    name VARCHAR NOT NULL,
    digest VARCHAR NOT NULL,
    host VARCHAR NOT NULL,
    location VARCHAR NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_store_facts PRIMARY KEY (name)
);

CREATE TABLE store_incarnation (
    id BIGINT NOT NULL,
    store VARCHAR NOT NULL,
    number BIGINT NOT NULL,
    base BIGINT NOT NULL,
    beat BIGINT NOT NULL,
    began_at TIMESTAMP WITH TIME ZONE,
    reason VARCHAR,
    CONSTRAINT pk_store_incarnation PRIMARY KEY (id)
);

CREATE TABLE streams (
    id BIGINT NOT NULL,
    last BIGINT NOT NULL,
    pruned_position BIGINT NOT NULL,
    pruned_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_streams PRIMARY KEY (id)
);

CREATE TABLE throttles (
    id BIGINT NOT NULL,
    key VARCHAR NOT NULL,
    failures BIGINT NOT NULL,
    times BIGINT NOT NULL,
    until TIMESTAMP WITH TIME ZONE NOT NULL,
    wait_since TIMESTAMP WITH TIME ZONE,
    network VARCHAR,
    first_ip VARCHAR,
    last_ip VARCHAR,
    CONSTRAINT pk_throttles PRIMARY KEY (id),
    CONSTRAINT uq_throttles_key UNIQUE (key)
);
CREATE INDEX ix_throttles_until ON throttles (until);
CREATE INDEX throttles_by_ip ON throttles (first_ip, last_ip) WHERE first_ip IS NOT NULL;
CREATE INDEX throttles_by_wait ON throttles (wait_since, id) WHERE wait_since IS NOT NULL;

CREATE TABLE tls_policies (
    id BIGINT NOT NULL,
    destination VARCHAR NOT NULL,
    level VARCHAR(32) NOT NULL,
    parameters VARCHAR,
    active BOOLEAN NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_tls_policies PRIMARY KEY (id),
    CONSTRAINT uq_tls_policies_destination UNIQUE (destination)
);

CREATE TABLE transports (
    id BIGINT NOT NULL,
    destination VARCHAR NOT NULL,
    next_hop VARCHAR NOT NULL,
    lookup_mx BOOLEAN NOT NULL,
    username VARCHAR,
    secret VARCHAR,
    active BOOLEAN NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_transports PRIMARY KEY (id),
    CONSTRAINT uq_transports_destination UNIQUE (destination)
);

CREATE TABLE trusted_documents (
    hash BYTEA NOT NULL,
    text VARCHAR NOT NULL,
    operations JSONB NOT NULL,
    added_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_trusted_documents PRIMARY KEY (hash)
);

CREATE TABLE used_identity_tokens (
    id BIGINT NOT NULL,
    digest VARCHAR NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_used_identity_tokens PRIMARY KEY (id),
    CONSTRAINT uq_used_identity_tokens_digest UNIQUE (digest)
);
CREATE INDEX ix_used_identity_tokens_expires_at ON used_identity_tokens (expires_at);

CREATE TABLE vapid_key_pairs (
    id BIGINT NOT NULL,
    public VARCHAR NOT NULL,
    private VARCHAR NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_vapid_key_pairs PRIMARY KEY (id)
);

CREATE TABLE write_probes (
    id BIGINT NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_write_probes PRIMARY KEY (id)
);

CREATE TABLE acme_challenges (
    token VARCHAR NOT NULL,
    certificate_id BIGINT NOT NULL,
    answer VARCHAR NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_acme_challenges PRIMARY KEY (token),
    CONSTRAINT fk_acme_challenges_certificate_id FOREIGN KEY(certificate_id) REFERENCES certificates (id) ON DELETE CASCADE
);
CREATE INDEX ix_acme_challenges_certificate_id ON acme_challenges (certificate_id);
CREATE INDEX ix_acme_challenges_expires_at ON acme_challenges (expires_at);

CREATE TABLE audit_log (
    id BIGINT NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    actor VARCHAR NOT NULL,
    actor_id BIGINT,
    role VARCHAR(32) NOT NULL,
    ip VARCHAR,
    mutation VARCHAR NOT NULL,
    target_kind VARCHAR,
    target_id BIGINT,
    domain_id BIGINT,
    before JSONB,
    after JSONB,
    reason VARCHAR,
    CONSTRAINT pk_audit_log PRIMARY KEY (id),
    CONSTRAINT fk_audit_log_domain_id FOREIGN KEY(domain_id) REFERENCES domains (id) ON DELETE SET NULL
);
CREATE INDEX ix_audit_log_actor_id ON audit_log (actor_id, at, id);
CREATE INDEX ix_audit_log_at ON audit_log (at, id);
CREATE INDEX ix_audit_log_domain_id ON audit_log (domain_id, at, id);
CREATE INDEX ix_audit_log_target_id ON audit_log (target_id, at, id);

CREATE TABLE bcc_rules (
    made_by BIGINT,
    made_as VARCHAR(32) NOT NULL,
    id BIGINT NOT NULL,
    direction VARCHAR(32) NOT NULL,
    local VARCHAR NOT NULL,
    domain_id BIGINT NOT NULL,
    bcc_to VARCHAR NOT NULL,
    active BOOLEAN NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_bcc_rules PRIMARY KEY (id),
    CONSTRAINT fk_bcc_rules_domain_id FOREIGN KEY(domain_id) REFERENCES domains (id) ON DELETE CASCADE
);
CREATE INDEX bcc_rules_oldest ON bcc_rules (created_at, id);
CREATE INDEX ix_bcc_rules_domain_id ON bcc_rules (domain_id);
CREATE UNIQUE INDEX uq_bcc_rules_match ON bcc_rules (direction, domain_id, local);

CREATE TABLE certificate_names (
    certificate_id BIGINT NOT NULL,
    name VARCHAR NOT NULL,
    CONSTRAINT pk_certificate_names PRIMARY KEY (certificate_id, name),
    CONSTRAINT fk_certificate_names_certificate_id FOREIGN KEY(certificate_id) REFERENCES certificates (id) ON DELETE CASCADE
);
CREATE INDEX ix_certificate_names_name ON certificate_names (name);

CREATE TABLE changes (
    stream_id BIGINT NOT NULL,
    last BIGINT NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    type VARCHAR(32) NOT NULL,
    ids JSONB NOT NULL,
    facts JSONB NOT NULL,
    origin VARCHAR,
    CONSTRAINT pk_changes PRIMARY KEY (stream_id, last),
    CONSTRAINT fk_changes_stream_id FOREIGN KEY(stream_id) REFERENCES streams (id) ON DELETE CASCADE
);

CREATE TABLE dkim_keys (
    id BIGINT NOT NULL,
    domain_id BIGINT,
    domain VARCHAR NOT NULL,
    selector VARCHAR NOT NULL,
    algorithm VARCHAR(32) NOT NULL,
    key_size BIGINT,
    private VARCHAR NOT NULL,
    public VARCHAR NOT NULL,
    state VARCHAR(32) NOT NULL,
    description VARCHAR,
    dns_check_count BIGINT NOT NULL,
    due_at TIMESTAMP WITH TIME ZONE,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    activated_at TIMESTAMP WITH TIME ZONE,
    retired_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_dkim_keys PRIMARY KEY (id),
    CONSTRAINT fk_dkim_keys_domain_id FOREIGN KEY(domain_id) REFERENCES domains (id) ON DELETE CASCADE
);
CREATE INDEX dkim_keys_due ON dkim_keys (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX ix_dkim_keys_domain_id ON dkim_keys (domain_id);
CREATE UNIQUE INDEX uq_dkim_keys_selector ON dkim_keys (domain, selector);

CREATE TABLE domain_aliases (
    id BIGINT NOT NULL,
    alias VARCHAR NOT NULL,
    domain_id BIGINT NOT NULL,
    active BOOLEAN NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_domain_aliases PRIMARY KEY (id),
    CONSTRAINT uq_domain_aliases_alias UNIQUE (alias),
    CONSTRAINT fk_domain_aliases_domain_id FOREIGN KEY(domain_id) REFERENCES domains (id) ON DELETE CASCADE
);
CREATE INDEX ix_domain_aliases_domain_id ON domain_aliases (domain_id);

CREATE TABLE domain_totals (
    domain_id BIGINT NOT NULL,
    part BIGINT NOT NULL,
    used BIGINT NOT NULL,
    messages BIGINT NOT NULL,
    CONSTRAINT pk_domain_totals PRIMARY KEY (domain_id, part),
    CONSTRAINT fk_domain_totals_domain_id FOREIGN KEY(domain_id) REFERENCES domains (id) ON DELETE CASCADE
);

CREATE TABLE held_copies (
    id BIGINT NOT NULL,
    legal_hold_id BIGINT NOT NULL,
    position BIGINT NOT NULL,
    origin_id BIGINT NOT NULL,
    origin VARCHAR(32) NOT NULL,
    mailbox_path VARCHAR,
    sha256 VARCHAR NOT NULL,
    size BIGINT NOT NULL,
    blob_id BIGINT NOT NULL,
    received_at TIMESTAMP WITH TIME ZONE NOT NULL,
    date TIMESTAMP WITH TIME ZONE,
    subject VARCHAR NOT NULL,
    from_name VARCHAR,
    from_address VARCHAR,
    "to" JSONB NOT NULL,
    cc JSONB NOT NULL,
    bcc JSONB NOT NULL,
    message_id VARCHAR,
    preview VARCHAR NOT NULL,
    attachment_count BIGINT NOT NULL,
    envelope_from VARCHAR,
    envelope_to JSONB NOT NULL,
    copied_at TIMESTAMP WITH TIME ZONE NOT NULL,
    chain_hash VARCHAR NOT NULL,
    CONSTRAINT pk_held_copies PRIMARY KEY (id),
    CONSTRAINT uq_held_copies_legal_hold_id_position UNIQUE (legal_hold_id, position),
    CONSTRAINT fk_held_copies_legal_hold_id FOREIGN KEY(legal_hold_id) REFERENCES legal_holds (id) ON DELETE CASCADE
);
CREATE UNIQUE INDEX held_copies_of_origin ON held_copies (legal_hold_id, origin_id, sha256);

CREATE TABLE identity_providers (
    id BIGINT NOT NULL,
    domain_id BIGINT NOT NULL,
    issuer VARCHAR NOT NULL,
    client_id VARCHAR NOT NULL,
    client_secret VARCHAR,
    scopes JSONB NOT NULL,
    username_claim VARCHAR NOT NULL,
    groups_claim VARCHAR NOT NULL,
    admin_groups JSONB NOT NULL,
    active_claim VARCHAR,
    user_creation_allowed BOOLEAN NOT NULL,
    password_sign_in_allowed BOOLEAN NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_identity_providers PRIMARY KEY (id),
    CONSTRAINT uq_identity_providers_domain_id UNIQUE (domain_id),
    CONSTRAINT fk_identity_providers_domain_id FOREIGN KEY(domain_id) REFERENCES domains (id) ON DELETE CASCADE
);

CREATE TABLE key_value_entries (
    id BIGINT NOT NULL,
    stream_id BIGINT NOT NULL,
    store VARCHAR NOT NULL,
    key VARCHAR COLLATE "C" NOT NULL,
    level VARCHAR COLLATE "C" NOT NULL,
    version BIGINT NOT NULL,
    size BIGINT NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE,
    value VARCHAR NOT NULL,
    CONSTRAINT pk_key_value_entries PRIMARY KEY (id),
    CONSTRAINT fk_key_value_entries_stream_id FOREIGN KEY(stream_id) REFERENCES streams (id) ON DELETE CASCADE
);
CREATE INDEX ix_key_value_entries_expires_at ON key_value_entries (expires_at);
CREATE INDEX ix_key_value_entries_level ON key_value_entries (stream_id, store, level, key);
CREATE INDEX ix_key_value_entries_size ON key_value_entries (stream_id, expires_at, size);
CREATE UNIQUE INDEX uq_key_value_entries_key ON key_value_entries (stream_id, store, key);

CREATE TABLE legal_hold_accesses (
    id BIGINT NOT NULL,
    legal_hold_id BIGINT NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    actor VARCHAR NOT NULL,
    actor_id BIGINT,
    role VARCHAR(32) NOT NULL,
    ip VARCHAR,
    action VARCHAR(32) NOT NULL,
    CONSTRAINT pk_legal_hold_accesses PRIMARY KEY (id),
    CONSTRAINT fk_legal_hold_accesses_legal_hold_id FOREIGN KEY(legal_hold_id) REFERENCES legal_holds (id) ON DELETE CASCADE
);
CREATE INDEX legal_hold_accesses_of_legal_hold ON legal_hold_accesses (legal_hold_id, at, id);

CREATE TABLE scim_groups (
    id BIGINT NOT NULL,
    domain_id BIGINT NOT NULL,
    display_name VARCHAR NOT NULL,
    name_key VARCHAR NOT NULL,
    external_id VARCHAR,
    version BIGINT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_scim_groups PRIMARY KEY (id),
    CONSTRAINT fk_scim_groups_domain_id FOREIGN KEY(domain_id) REFERENCES domains (id) ON DELETE CASCADE
);
CREATE INDEX scim_groups_by_external_id ON scim_groups (external_id, id);
CREATE INDEX scim_groups_by_name ON scim_groups (domain_id, name_key, id);
CREATE INDEX scim_groups_of_domain ON scim_groups (domain_id, id);

CREATE TABLE users (
    id BIGINT NOT NULL,
    username VARCHAR NOT NULL,
    username_key VARCHAR NOT NULL,
    name VARCHAR,
    words VARCHAR NOT NULL,
    role VARCHAR(32) NOT NULL,
    domain_id BIGINT,
    tenant_id BIGINT NOT NULL,
    password VARCHAR,
    temporary_password VARCHAR,
    temporary_from TIMESTAMP WITH TIME ZONE,
    temporary_until TIMESTAMP WITH TIME ZONE,
    password_changed_at TIMESTAMP WITH TIME ZONE,
    password_change_required BOOLEAN NOT NULL,
    auth_version BIGINT NOT NULL,
    active BOOLEAN NOT NULL,
    suspended BOOLEAN NOT NULL,
    deleted_at TIMESTAMP WITH TIME ZONE,
    sessions_ended_at TIMESTAMP WITH TIME ZONE,
    smtp_allowed_networks JSONB NOT NULL,
    require_inbound_tls BOOLEAN NOT NULL,
    require_outbound_tls BOOLEAN NOT NULL,
    upload_sent_messages BOOLEAN NOT NULL,
    second_factors JSONB NOT NULL,
    disabled_scopes JSONB NOT NULL,
    webmail_access BOOLEAN NOT NULL,
    allow_local BOOLEAN NOT NULL,
    permissions JSONB NOT NULL,
    admin_permissions JSONB NOT NULL,
    allowed_senders JSONB NOT NULL,
    openpgp_public_key VARCHAR,
    openpgp_key JSONB,
    encrypt_messages BOOLEAN NOT NULL,
    forward_to JSONB NOT NULL,
    relays VARCHAR,
    encrypt_forwarded BOOLEAN NOT NULL,
    subaddress_action VARCHAR(32) NOT NULL,
    retention BIGINT,
    spam_level BIGINT NOT NULL,
    junk_score FLOAT,
    reject_score FLOAT,
    quarantine_notification VARCHAR(32) NOT NULL,
    recipients_per_day BIGINT,
    forwards_per_day BIGINT,
    received_per_hour BIGINT,
    received BIGINT NOT NULL,
    received_until TIMESTAMP WITH TIME ZONE,
    received_notified_until TIMESTAMP WITH TIME ZONE,
    quota BIGINT,
    used BIGINT NOT NULL,
    storage_notified_until TIMESTAMP WITH TIME ZONE,
    message_count BIGINT NOT NULL,
    uid_validity BIGINT NOT NULL,
    language VARCHAR,
    tags JSONB NOT NULL,
    public_metadata JSONB,
    private_metadata JSONB,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
    last_login_at TIMESTAMP WITH TIME ZONE,
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
    stream_id BIGINT NOT NULL,
    number BIGINT NOT NULL,
    CONSTRAINT pk_webhook_read_positions PRIMARY KEY (stream_id),
    CONSTRAINT fk_webhook_read_positions_stream_id FOREIGN KEY(stream_id) REFERENCES streams (id) ON DELETE CASCADE
);

CREATE TABLE addresses (
    id BIGINT NOT NULL,
    local VARCHAR NOT NULL,
    domain_id BIGINT,
    display_address VARCHAR NOT NULL,
    kind VARCHAR(32) NOT NULL,
    user_id BIGINT,
    forward_to JSONB NOT NULL,
    relays VARCHAR,
    forwards_per_day BIGINT,
    forwarded BIGINT NOT NULL,
    forwarded_until TIMESTAMP WITH TIME ZONE,
    answers BOOLEAN NOT NULL,
    replied BIGINT NOT NULL,
    replied_until TIMESTAMP WITH TIME ZONE,
    name VARCHAR,
    main BOOLEAN NOT NULL,
    active BOOLEAN NOT NULL,
    send_as BOOLEAN NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE,
    masked BOOLEAN NOT NULL,
    for_site VARCHAR,
    last_received_at TIMESTAMP WITH TIME ZONE,
    tags JSONB NOT NULL,
    public_comment VARCHAR,
    private_comment VARCHAR,
    public_metadata JSONB,
    private_metadata JSONB,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
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
    id BIGINT NOT NULL,
    name VARCHAR NOT NULL,
    digest VARCHAR NOT NULL,
    role VARCHAR(32) NOT NULL,
    scopes JSONB NOT NULL,
    read_only BOOLEAN NOT NULL,
    active BOOLEAN NOT NULL,
    user_id BIGINT,
    domains JSONB NOT NULL,
    operations JSONB NOT NULL,
    allowed_ips JSONB NOT NULL,
    made_by BIGINT,
    made_by_key BIGINT,
    maker VARCHAR,
    creator_id BIGINT,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE,
    last_used_at TIMESTAMP WITH TIME ZONE,
    last_used_ip VARCHAR,
    CONSTRAINT pk_api_keys PRIMARY KEY (id),
    CONSTRAINT uq_api_keys_digest UNIQUE (digest),
    CONSTRAINT fk_api_keys_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX ix_api_keys_user_id ON api_keys (user_id);

CREATE TABLE application_passwords (
    id BIGINT NOT NULL,
    user_id BIGINT NOT NULL,
    description VARCHAR NOT NULL,
    selector VARCHAR NOT NULL,
    password VARCHAR NOT NULL,
    scopes JSONB NOT NULL,
    active BOOLEAN NOT NULL,
    ttl BIGINT,
    expires_at TIMESTAMP WITH TIME ZONE,
    last_used_at TIMESTAMP WITH TIME ZONE,
    last_used_ip VARCHAR,
    last_event_id BIGINT,
    made_by BIGINT,
    made_by_key BIGINT,
    maker VARCHAR,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_application_passwords PRIMARY KEY (id),
    CONSTRAINT fk_application_passwords_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX ix_application_passwords_expires_at ON application_passwords (expires_at);
CREATE INDEX ix_application_passwords_user_id ON application_passwords (user_id);
CREATE UNIQUE INDEX uq_application_passwords_selector ON application_passwords (user_id, selector);

CREATE TABLE compose_listeners (
    id BIGINT NOT NULL,
    user_id BIGINT NOT NULL,
    holder BIGINT NOT NULL,
    CONSTRAINT pk_compose_listeners PRIMARY KEY (id),
    CONSTRAINT fk_compose_listeners_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX ix_compose_listeners_user_id ON compose_listeners (user_id);

CREATE TABLE compose_requests (
    id BIGINT NOT NULL,
    user_id BIGINT NOT NULL,
    identity_id BIGINT,
    mailbox_id BIGINT,
    content JSONB NOT NULL,
    requested_by VARCHAR,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_compose_requests PRIMARY KEY (id),
    CONSTRAINT fk_compose_requests_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX ix_compose_requests_expires_at ON compose_requests (expires_at);
CREATE INDEX ix_compose_requests_user_id ON compose_requests (user_id);

CREATE TABLE connectors (
    id BIGINT NOT NULL,
    user_id BIGINT NOT NULL,
    name VARCHAR NOT NULL,
    protocol VARCHAR(32) NOT NULL,
    host VARCHAR NOT NULL,
    port BIGINT NOT NULL,
    security VARCHAR(32) NOT NULL,
    auth_mechanism VARCHAR(32) NOT NULL,
    username VARCHAR NOT NULL,
    secret VARCHAR NOT NULL,
    oauth JSONB,
    target_domain VARCHAR,
    target_folder VARCHAR,
    interval BIGINT,
    max_age BIGINT,
    max_bytes_per_second BIGINT,
    exclude VARCHAR,
    folder_rewrites JSONB NOT NULL,
    auto_map_folders BOOLEAN NOT NULL,
    subscribe_all BOOLEAN NOT NULL,
    skip_cross_duplicates BOOLEAN NOT NULL,
    remove_duplicates BOOLEAN NOT NULL,
    source_retention BIGINT,
    mirror_deletes BOOLEAN NOT NULL,
    remote_timeout BIGINT NOT NULL,
    local_timeout BIGINT NOT NULL,
    custom_options JSONB NOT NULL,
    import_options JSONB,
    spam_check BOOLEAN NOT NULL,
    virus_check BOOLEAN NOT NULL,
    apply_filters BOOLEAN NOT NULL,
    active BOOLEAN NOT NULL,
    last_run_at TIMESTAMP WITH TIME ZONE,
    last_success_at TIMESTAMP WITH TIME ZONE,
    last_error VARCHAR,
    failures BIGINT NOT NULL,
    next_run_at TIMESTAMP WITH TIME ZONE,
    run_id BIGINT,
    lease BIGINT,
    holder BIGINT,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE,
    is_one_time BOOLEAN NOT NULL,
    CONSTRAINT pk_connectors PRIMARY KEY (id),
    CONSTRAINT fk_connectors_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX connectors_due ON connectors (next_run_at) WHERE next_run_at IS NOT NULL;
CREATE INDEX connectors_leased ON connectors (holder) WHERE holder IS NOT NULL;
CREATE INDEX ix_connectors_user_id ON connectors (user_id);

CREATE TABLE contacts (
    id BIGINT NOT NULL,
    user_id BIGINT NOT NULL,
    key VARCHAR COLLATE "C" NOT NULL,
    folded_name VARCHAR COLLATE "C",
    address VARCHAR NOT NULL,
    name VARCHAR,
    last_used_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_contacts PRIMARY KEY (id),
    CONSTRAINT fk_contacts_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX ix_contacts_folded_name ON contacts (user_id, folded_name);
CREATE INDEX ix_contacts_used ON contacts (user_id, last_used_at, id);
CREATE UNIQUE INDEX uq_contacts_user_id_key ON contacts (user_id, key);

CREATE TABLE deleted_users (
    id BIGINT NOT NULL,
    username_key VARCHAR NOT NULL,
    active BOOLEAN NOT NULL,
    domain_id BIGINT,
    addresses JSONB NOT NULL,
    deleted_at TIMESTAMP WITH TIME ZONE NOT NULL,
    purge_at TIMESTAMP WITH TIME ZONE,
    task_id BIGINT,
    CONSTRAINT pk_deleted_users PRIMARY KEY (id),
    CONSTRAINT fk_deleted_users_id FOREIGN KEY(id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT fk_deleted_users_domain_id FOREIGN KEY(domain_id) REFERENCES domains (id) ON DELETE SET NULL
);
CREATE INDEX deleted_users_by_age ON deleted_users (deleted_at, id);
CREATE INDEX ix_deleted_users_domain_id ON deleted_users (domain_id);
CREATE INDEX ix_deleted_users_username_key ON deleted_users (username_key);

CREATE TABLE domain_admins (
    user_id BIGINT NOT NULL,
    domain_id BIGINT NOT NULL,
    CONSTRAINT pk_domain_admins PRIMARY KEY (user_id, domain_id),
    CONSTRAINT fk_domain_admins_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT fk_domain_admins_domain_id FOREIGN KEY(domain_id) REFERENCES domains (id) ON DELETE CASCADE
);
CREATE INDEX ix_domain_admins_domain_id ON domain_admins (domain_id);

CREATE TABLE exports (
    id BIGINT NOT NULL,
    user_id BIGINT NOT NULL,
    task_id BIGINT NOT NULL,
    format VARCHAR NOT NULL,
    filename VARCHAR NOT NULL,
    settings BOOLEAN NOT NULL,
    size BIGINT,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    finished_at TIMESTAMP WITH TIME ZONE,
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_exports PRIMARY KEY (id),
    CONSTRAINT fk_exports_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX exports_of_user ON exports (user_id, created_at, id);
CREATE INDEX ix_exports_expires_at ON exports (expires_at);
CREATE INDEX ix_exports_user_id ON exports (user_id);

CREATE TABLE files (
    id BIGINT NOT NULL,
    user_id BIGINT NOT NULL,
    filename VARCHAR NOT NULL,
    content_type VARCHAR NOT NULL,
    size BIGINT NOT NULL,
    digest VARCHAR NOT NULL,
    blob_id BIGINT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
    used_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_files PRIMARY KEY (id),
    CONSTRAINT fk_files_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT fk_files_blob_id FOREIGN KEY(blob_id) REFERENCES blobs (id) ON DELETE RESTRICT
);
CREATE INDEX files_of_user ON files (user_id, created_at, id);
CREATE INDEX ix_files_blob_id ON files (blob_id);
CREATE INDEX ix_files_used_at ON files (used_at);
CREATE INDEX ix_files_user_id ON files (user_id);

CREATE TABLE filters (
    id BIGINT NOT NULL,
    user_id BIGINT NOT NULL,
    name VARCHAR NOT NULL,
    position BIGINT NOT NULL,
    query JSONB NOT NULL,
    action JSONB NOT NULL,
    forward_to JSONB NOT NULL,
    relays VARCHAR,
    active BOOLEAN NOT NULL,
    public_metadata JSONB,
    match_count BIGINT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_filters PRIMARY KEY (id),
    CONSTRAINT fk_filters_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX ix_filters_made ON filters (created_at, id);
CREATE INDEX ix_filters_position ON filters (user_id, position, id);
CREATE INDEX ix_filters_user_id ON filters (user_id);

CREATE TABLE identities (
    id BIGINT NOT NULL,
    user_id BIGINT NOT NULL,
    local VARCHAR NOT NULL,
    domain VARCHAR NOT NULL,
    display_address VARCHAR NOT NULL,
    name VARCHAR,
    preferred BOOLEAN NOT NULL,
    reply_to VARCHAR,
    bcc JSONB NOT NULL,
    signature_text VARCHAR,
    signature_html VARCHAR,
    mailbox_id BIGINT,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_identities PRIMARY KEY (id),
    CONSTRAINT fk_identities_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX ix_identities_user_id ON identities (user_id);
CREATE UNIQUE INDEX uq_identities_preferred ON identities (user_id) WHERE preferred;

CREATE TABLE identity_links (
    id BIGINT NOT NULL,
    user_id BIGINT NOT NULL,
    provider_id BIGINT NOT NULL,
    issuer VARCHAR NOT NULL,
    client_id VARCHAR NOT NULL,
    subject VARCHAR NOT NULL,
    is_admin_by_group BOOLEAN NOT NULL,
    refresh_token VARCHAR,
    check_due_at TIMESTAMP WITH TIME ZONE,
    is_checking BOOLEAN NOT NULL,
    access_ended_at TIMESTAMP WITH TIME ZONE,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    last_sign_in_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_identity_links PRIMARY KEY (id),
    CONSTRAINT uq_identity_links_user_id UNIQUE (user_id),
    CONSTRAINT fk_identity_links_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT fk_identity_links_provider_id FOREIGN KEY(provider_id) REFERENCES identity_providers (id) ON DELETE CASCADE
);
CREATE INDEX identity_links_due ON identity_links (check_due_at) WHERE check_due_at IS NOT NULL;
CREATE UNIQUE INDEX uq_identity_links_subject ON identity_links (provider_id, issuer, client_id, subject);

CREATE TABLE import_archives (
    id BIGINT NOT NULL,
    user_id BIGINT NOT NULL,
    task_id BIGINT NOT NULL,
    filename VARCHAR NOT NULL,
    size BIGINT NOT NULL,
    blob_id BIGINT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_import_archives PRIMARY KEY (id),
    CONSTRAINT fk_import_archives_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT fk_import_archives_blob_id FOREIGN KEY(blob_id) REFERENCES blobs (id) ON DELETE RESTRICT
);
CREATE INDEX ix_import_archives_blob_id ON import_archives (blob_id);
CREATE INDEX ix_import_archives_task_id ON import_archives (task_id);
CREATE INDEX ix_import_archives_user_id ON import_archives (user_id);

CREATE TABLE labels (
    id BIGINT NOT NULL,
    user_id BIGINT NOT NULL,
    keyword VARCHAR NOT NULL,
    folded VARCHAR NOT NULL,
    name VARCHAR NOT NULL,
    color VARCHAR,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_labels PRIMARY KEY (id),
    CONSTRAINT uq_labels_user_id_folded UNIQUE (user_id, folded),
    CONSTRAINT fk_labels_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX ix_labels_user_id ON labels (user_id);

CREATE TABLE legal_hold_blobs (
    copy_id BIGINT NOT NULL,
    blob_id BIGINT NOT NULL,
    CONSTRAINT pk_legal_hold_blobs PRIMARY KEY (copy_id, blob_id),
    CONSTRAINT fk_legal_hold_blobs_copy_id FOREIGN KEY(copy_id) REFERENCES held_copies (id) ON DELETE CASCADE,
    CONSTRAINT fk_legal_hold_blobs_blob_id FOREIGN KEY(blob_id) REFERENCES blobs (id) ON DELETE RESTRICT
);
CREATE INDEX ix_legal_hold_blobs_blob_id ON legal_hold_blobs (blob_id);

CREATE TABLE mailbox_subscriptions (
    user_id BIGINT NOT NULL,
    digest VARCHAR NOT NULL,
    path VARCHAR NOT NULL,
    CONSTRAINT pk_mailbox_subscriptions PRIMARY KEY (user_id, digest),
    CONSTRAINT fk_mailbox_subscriptions_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);

CREATE TABLE mailboxes (
    id BIGINT NOT NULL,
    user_id BIGINT NOT NULL,
    path VARCHAR NOT NULL,
    object_id VARCHAR NOT NULL,
    special_use VARCHAR(32),
    uid_validity BIGINT NOT NULL,
    uid_next BIGINT NOT NULL,
    modseq BIGINT NOT NULL,
    message_count BIGINT NOT NULL,
    unseen_count BIGINT NOT NULL,
    size BIGINT NOT NULL,
    subscribed BOOLEAN NOT NULL,
    hidden BOOLEAN NOT NULL,
    encrypt_messages BOOLEAN NOT NULL,
    retention BIGINT,
    retention_inherited BOOLEAN NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_mailboxes PRIMARY KEY (id),
    CONSTRAINT uq_mailboxes_user_id_path UNIQUE (user_id, path),
    CONSTRAINT fk_mailboxes_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX ix_mailboxes_user_id ON mailboxes (user_id);
CREATE UNIQUE INDEX uq_mailboxes_path ON mailboxes (user_id, md5(path));
CREATE UNIQUE INDEX uq_mailboxes_special_use ON mailboxes (user_id, special_use) WHERE special_use IS NOT NULL;

CREATE TABLE oauth_grants (
    id BIGINT NOT NULL,
    user_id BIGINT NOT NULL,
    client_id BIGINT NOT NULL,
    scopes JSONB NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    last_used_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_oauth_grants PRIMARY KEY (id),
    CONSTRAINT fk_oauth_grants_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT fk_oauth_grants_client_id FOREIGN KEY(client_id) REFERENCES oauth_clients (id) ON DELETE CASCADE
);
CREATE INDEX ix_oauth_grants_client_id ON oauth_grants (client_id);
CREATE INDEX oauth_grants_of_user ON oauth_grants (user_id, created_at, id);
CREATE UNIQUE INDEX uq_oauth_grants_user_id_client_id ON oauth_grants (user_id, client_id);

CREATE TABLE push_channels (
    id BIGINT NOT NULL,
    user_id BIGINT NOT NULL,
    kind VARCHAR(32) NOT NULL,
    active BOOLEAN NOT NULL,
    target VARCHAR NOT NULL,
    title VARCHAR,
    text VARCHAR,
    senders JSONB NOT NULL,
    senders_regex VARCHAR,
    high_priority_only BOOLEAN NOT NULL,
    pass_priority BOOLEAN NOT NULL,
    mailboxes JSONB NOT NULL,
    number BIGINT NOT NULL,
    test_at TIMESTAMP WITH TIME ZONE,
    failures BIGINT NOT NULL,
    retry_at TIMESTAMP WITH TIME ZONE,
    last_error VARCHAR,
    last_push_at TIMESTAMP WITH TIME ZONE,
    window_at TIMESTAMP WITH TIME ZONE,
    pushed BIGINT NOT NULL,
    lease BIGINT,
    holder BIGINT,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_push_channels PRIMARY KEY (id),
    CONSTRAINT fk_push_channels_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE UNIQUE INDEX push_channels_kind ON push_channels (user_id, kind);
CREATE INDEX push_channels_leased ON push_channels (holder) WHERE holder IS NOT NULL;
CREATE INDEX push_channels_retry ON push_channels (retry_at) WHERE retry_at IS NOT NULL;
CREATE INDEX push_channels_test ON push_channels (test_at) WHERE test_at IS NOT NULL;

CREATE TABLE quarantine_items (
    id BIGINT NOT NULL,
    user_id BIGINT NOT NULL,
    domain_id BIGINT,
    queue_id VARCHAR NOT NULL,
    receipt VARCHAR NOT NULL,
    sender VARCHAR NOT NULL,
    recipient VARCHAR NOT NULL,
    from_name VARCHAR,
    from_address VARCHAR,
    subject VARCHAR NOT NULL,
    score FLOAT NOT NULL,
    symbols JSONB NOT NULL,
    tests VARCHAR NOT NULL,
    virus VARCHAR,
    size BIGINT NOT NULL,
    sha256 VARCHAR NOT NULL,
    blob_id BIGINT NOT NULL,
    mime_structure BYTEA NOT NULL,
    attachments JSONB NOT NULL,
    authentication JSONB,
    dsn_request JSONB,
    notified BOOLEAN NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
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
    id BIGINT NOT NULL,
    window_id BIGINT NOT NULL,
    source VARCHAR(32) NOT NULL,
    messages BIGINT NOT NULL,
    per VARCHAR(32) NOT NULL,
    since TIMESTAMP WITH TIME ZONE NOT NULL,
    until TIMESTAMP WITH TIME ZONE NOT NULL,
    notified_until TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_rate_limit_holds PRIMARY KEY (id),
    CONSTRAINT fk_rate_limit_holds_id FOREIGN KEY(id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX ix_rate_limit_holds_notified_until ON rate_limit_holds (notified_until);
CREATE INDEX rate_limit_holds_by_age ON rate_limit_holds (since, id);

CREATE TABLE rate_limits (
    id BIGINT NOT NULL,
    user_id BIGINT,
    domain_id BIGINT,
    messages BIGINT NOT NULL,
    per VARCHAR(32) NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_rate_limits PRIMARY KEY (id),
    CONSTRAINT fk_rate_limits_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT fk_rate_limits_domain_id FOREIGN KEY(domain_id) REFERENCES domains (id) ON DELETE CASCADE
);
CREATE INDEX ix_rate_limits_domain_id ON rate_limits (domain_id);
CREATE INDEX ix_rate_limits_user_id ON rate_limits (user_id);
CREATE INDEX rate_limits_by_age ON rate_limits (created_at, id);

CREATE TABLE recovery_codes (
    id BIGINT NOT NULL,
    user_id BIGINT NOT NULL,
    digest VARCHAR NOT NULL,
    used_at TIMESTAMP WITH TIME ZONE,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_recovery_codes PRIMARY KEY (id),
    CONSTRAINT fk_recovery_codes_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX ix_recovery_codes_user_id ON recovery_codes (user_id);

CREATE TABLE saved_searches (
    id BIGINT NOT NULL,
    user_id BIGINT NOT NULL,
    name VARCHAR NOT NULL,
    folded VARCHAR NOT NULL,
    filter JSONB NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_saved_searches PRIMARY KEY (id),
    CONSTRAINT uq_saved_searches_user_id_folded UNIQUE (user_id, folded),
    CONSTRAINT fk_saved_searches_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX ix_saved_searches_user_id ON saved_searches (user_id);

CREATE TABLE scim_group_members (
    group_id BIGINT NOT NULL,
    user_id BIGINT NOT NULL,
    CONSTRAINT pk_scim_group_members PRIMARY KEY (group_id, user_id),
    CONSTRAINT fk_scim_group_members_group_id FOREIGN KEY(group_id) REFERENCES scim_groups (id) ON DELETE CASCADE,
    CONSTRAINT fk_scim_group_members_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX ix_scim_group_members_user_id ON scim_group_members (user_id);

CREATE TABLE scim_users (
    user_id BIGINT NOT NULL,
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
    id BIGINT NOT NULL,
    user_id BIGINT,
    fold VARCHAR NOT NULL,
    action VARCHAR(32) NOT NULL,
    result VARCHAR(32) NOT NULL,
    protocol VARCHAR(32),
    ip VARCHAR,
    ip_key VARCHAR,
    session_id VARCHAR,
    by VARCHAR,
    by_id BIGINT,
    detail JSONB,
    count BIGINT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    last_at TIMESTAMP WITH TIME ZONE NOT NULL,
    journaled_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_security_events PRIMARY KEY (id),
    CONSTRAINT fk_security_events_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT uq_security_events_fold UNIQUE (fold)
);
CREATE INDEX ix_security_events_action ON security_events (action, created_at, id);
CREATE INDEX ix_security_events_created_at ON security_events (created_at, id);
CREATE INDEX ix_security_events_ip_key ON security_events (ip_key, created_at, id);
CREATE INDEX ix_security_events_user_id ON security_events (user_id, created_at, id);

CREATE TABLE sender_rules (
    made_by BIGINT,
    made_as VARCHAR(32) NOT NULL,
    id BIGINT NOT NULL,
    scope VARCHAR COLLATE "C" NOT NULL,
    pattern VARCHAR COLLATE "C" NOT NULL,
    action VARCHAR(32) NOT NULL,
    user_id BIGINT,
    domain_id BIGINT,
    tag VARCHAR,
    comment VARCHAR,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_sender_rules PRIMARY KEY (id),
    CONSTRAINT fk_sender_rules_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT fk_sender_rules_domain_id FOREIGN KEY(domain_id) REFERENCES domains (id) ON DELETE CASCADE
);
CREATE INDEX ix_sender_rules_domain_id ON sender_rules (domain_id);
CREATE INDEX ix_sender_rules_pattern ON sender_rules (pattern, id);
CREATE INDEX ix_sender_rules_user_id ON sender_rules (user_id);
CREATE UNIQUE INDEX uq_sender_rules_scope ON sender_rules (scope, pattern);

CREATE TABLE sieve_memories (
    user_id BIGINT NOT NULL,
    kind VARCHAR(32) NOT NULL,
    key VARCHAR NOT NULL,
    receipt VARCHAR NOT NULL,
    until TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_sieve_memories PRIMARY KEY (user_id, kind, key),
    CONSTRAINT fk_sieve_memories_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX ix_sieve_memories_until ON sieve_memories (until);

CREATE TABLE sieve_scripts (
    id BIGINT NOT NULL,
    user_id BIGINT NOT NULL,
    name VARCHAR COLLATE "C" NOT NULL,
    content VARCHAR NOT NULL,
    size BIGINT NOT NULL,
    active BOOLEAN NOT NULL,
    requires JSONB NOT NULL,
    last_error VARCHAR,
    last_error_at TIMESTAMP WITH TIME ZONE,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_sieve_scripts PRIMARY KEY (id),
    CONSTRAINT uq_sieve_scripts_user_id_name UNIQUE (user_id, name),
    CONSTRAINT fk_sieve_scripts_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX ix_sieve_scripts_user_id ON sieve_scripts (user_id);
CREATE UNIQUE INDEX uq_sieve_scripts_active ON sieve_scripts (user_id) WHERE active;

CREATE TABLE tasks (
    id BIGINT NOT NULL,
    kind VARCHAR(32) NOT NULL,
    state VARCHAR(32) NOT NULL,
    user_id BIGINT,
    actor_id BIGINT,
    not_before TIMESTAMP WITH TIME ZONE,
    done_count BIGINT NOT NULL,
    total_count BIGINT,
    "order" JSONB NOT NULL,
    checkpoint JSONB,
    result JSONB,
    error VARCHAR,
    cancelled BOOLEAN NOT NULL,
    lease BIGINT,
    holder BIGINT,
    attempts BIGINT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE,
    finished_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_tasks PRIMARY KEY (id),
    CONSTRAINT fk_tasks_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX ix_tasks_actor_id ON tasks (actor_id);
CREATE INDEX ix_tasks_user_id ON tasks (user_id);
CREATE INDEX tasks_due ON tasks (created_at, id) WHERE finished_at IS NULL;
CREATE INDEX tasks_leased ON tasks (holder) WHERE holder IS NOT NULL;

CREATE TABLE threads (
    id BIGINT NOT NULL,
    user_id BIGINT NOT NULL,
    subject VARCHAR NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    muted BOOLEAN NOT NULL,
    CONSTRAINT pk_threads PRIMARY KEY (id),
    CONSTRAINT fk_threads_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX ix_threads_user_id ON threads (user_id);

CREATE TABLE totp_secrets (
    user_id BIGINT NOT NULL,
    seed VARCHAR,
    pending VARCHAR,
    pending_at TIMESTAMP WITH TIME ZONE,
    last_step BIGINT,
    enabled_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_totp_secrets PRIMARY KEY (user_id),
    CONSTRAINT fk_totp_secrets_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);

CREATE TABLE undo_records (
    id BIGINT NOT NULL,
    user_id BIGINT NOT NULL,
    digest VARCHAR NOT NULL,
    before JSONB NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_undo_records PRIMARY KEY (id),
    CONSTRAINT fk_undo_records_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT uq_undo_records_digest UNIQUE (digest)
);
CREATE INDEX ix_undo_records_expires_at ON undo_records (expires_at);
CREATE INDEX ix_undo_records_user_id ON undo_records (user_id);

CREATE TABLE uploads (
    id BIGINT NOT NULL,
    user_id BIGINT NOT NULL,
    size BIGINT NOT NULL,
    received BIGINT NOT NULL,
    digest VARCHAR,
    content_type VARCHAR NOT NULL,
    filename VARCHAR,
    client_metadata VARCHAR,
    blob_name VARCHAR,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_uploads PRIMARY KEY (id),
    CONSTRAINT fk_uploads_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT uq_uploads_blob_name UNIQUE (blob_name)
);
CREATE INDEX ix_uploads_expires_at ON uploads (expires_at);
CREATE INDEX ix_uploads_user_id ON uploads (user_id);

CREATE TABLE usages (
    user_id BIGINT NOT NULL,
    kind VARCHAR(32) NOT NULL,
    used BIGINT NOT NULL,
    until TIMESTAMP WITH TIME ZONE NOT NULL,
    notified_until TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_usages PRIMARY KEY (user_id, kind),
    CONSTRAINT fk_usages_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX ix_usages_until ON usages (until);

CREATE TABLE user_affinities (
    user_id BIGINT NOT NULL,
    node_id BIGINT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_user_affinities PRIMARY KEY (user_id),
    CONSTRAINT fk_user_affinities_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT fk_user_affinities_node_id FOREIGN KEY(node_id) REFERENCES cluster_nodes (id) ON DELETE CASCADE
);
CREATE INDEX ix_user_affinities_expires_at ON user_affinities (expires_at);
CREATE INDEX ix_user_affinities_node_id ON user_affinities (node_id);

CREATE TABLE user_tags (
    tag VARCHAR NOT NULL,
    user_id BIGINT NOT NULL,
    CONSTRAINT pk_user_tags PRIMARY KEY (tag, user_id),
    CONSTRAINT fk_user_tags_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX ix_user_tags_user_id ON user_tags (user_id);

CREATE TABLE webauthn_challenges (
    id BIGINT NOT NULL,
    user_id BIGINT NOT NULL,
    challenge VARCHAR NOT NULL,
    registers BOOLEAN NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_webauthn_challenges PRIMARY KEY (id),
    CONSTRAINT fk_webauthn_challenges_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT uq_webauthn_challenges_challenge UNIQUE (challenge)
);
CREATE INDEX ix_webauthn_challenges_user_id ON webauthn_challenges (user_id);

CREATE TABLE webauthn_keys (
    id BIGINT NOT NULL,
    user_id BIGINT NOT NULL,
    name VARCHAR NOT NULL,
    credential_id VARCHAR NOT NULL,
    public_key VARCHAR NOT NULL,
    sign_count BIGINT NOT NULL,
    transports JSONB NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    last_used_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_webauthn_keys PRIMARY KEY (id),
    CONSTRAINT fk_webauthn_keys_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT uq_webauthn_keys_credential_id UNIQUE (credential_id)
);
CREATE INDEX ix_webauthn_keys_user_id ON webauthn_keys (user_id);

CREATE TABLE webhooks (
    id BIGINT NOT NULL,
    user_id BIGINT,
    domain_id BIGINT,
    types JSONB,
    url VARCHAR NOT NULL,
    active BOOLEAN NOT NULL,
    secret VARCHAR NOT NULL,
    old_secret VARCHAR,
    old_until TIMESTAMP WITH TIME ZONE,
    since TIMESTAMP WITH TIME ZONE NOT NULL,
    failures BIGINT NOT NULL,
    retry_at TIMESTAMP WITH TIME ZONE,
    last_delivery_at TIMESTAMP WITH TIME ZONE,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_webhooks PRIMARY KEY (id),
    CONSTRAINT fk_webhooks_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT fk_webhooks_domain_id FOREIGN KEY(domain_id) REFERENCES domains (id) ON DELETE CASCADE
);
CREATE INDEX ix_webhooks_domain_id ON webhooks (domain_id);
CREATE INDEX ix_webhooks_user_id ON webhooks (user_id);

CREATE TABLE access_tokens (
    id BIGINT NOT NULL,
    user_id BIGINT NOT NULL,
    digest VARCHAR NOT NULL,
    auth_version BIGINT NOT NULL,
    scope VARCHAR(32) NOT NULL,
    protocol VARCHAR(32) NOT NULL,
    ip VARCHAR,
    pending BOOLEAN NOT NULL,
    temporary BOOLEAN NOT NULL,
    actor_id BIGINT,
    actor_key_id BIGINT,
    oauth_grant_id BIGINT,
    oauth_family_id BIGINT,
    oauth_scopes JSONB,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    last_used_at TIMESTAMP WITH TIME ZONE NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_access_tokens PRIMARY KEY (id),
    CONSTRAINT fk_access_tokens_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT uq_access_tokens_digest UNIQUE (digest),
    CONSTRAINT fk_access_tokens_oauth_grant_id FOREIGN KEY(oauth_grant_id) REFERENCES oauth_grants (id) ON DELETE CASCADE
);
CREATE INDEX access_tokens_of_grant ON access_tokens (oauth_grant_id, oauth_family_id) WHERE oauth_grant_id IS NOT NULL;
CREATE INDEX access_tokens_of_user ON access_tokens (user_id, created_at, id);
CREATE INDEX ix_access_tokens_expires_at ON access_tokens (expires_at);

CREATE TABLE autoreplies (
    id BIGINT NOT NULL,
    user_id BIGINT,
    address_id BIGINT,
    enabled BOOLEAN NOT NULL,
    name VARCHAR,
    subject VARCHAR NOT NULL,
    text VARCHAR NOT NULL,
    html VARCHAR NOT NULL,
    internal_subject VARCHAR,
    internal_text VARCHAR,
    internal_html VARCHAR,
    starts_at TIMESTAMP WITH TIME ZONE,
    ends_at TIMESTAMP WITH TIME ZONE,
    interval BIGINT,
    addresses JSONB NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_autoreplies PRIMARY KEY (id),
    CONSTRAINT ck_autoreplies_one_owner CHECK ((user_id IS NULL) <> (address_id IS NULL)),
    CONSTRAINT fk_autoreplies_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT fk_autoreplies_address_id FOREIGN KEY(address_id) REFERENCES addresses (id) ON DELETE CASCADE
);
CREATE INDEX ix_autoreplies_address_id ON autoreplies (address_id);
CREATE INDEX ix_autoreplies_user_id ON autoreplies (user_id);

CREATE TABLE connector_runs (
    id BIGINT NOT NULL,
    user_id BIGINT NOT NULL,
    connector_id BIGINT NOT NULL,
    state VARCHAR(32) NOT NULL,
    dry_run BOOLEAN NOT NULL,
    cancelled BOOLEAN NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE,
    finished_at TIMESTAMP WITH TIME ZONE,
    stage VARCHAR,
    folder VARCHAR,
    seen_count BIGINT NOT NULL,
    imported_count BIGINT NOT NULL,
    skipped_count BIGINT NOT NULL,
    deleted_remote_count BIGINT NOT NULL,
    size BIGINT NOT NULL,
    error VARCHAR,
    log JSONB NOT NULL,
    checkpoint JSONB,
    CONSTRAINT pk_connector_runs PRIMARY KEY (id),
    CONSTRAINT fk_connector_runs_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT fk_connector_runs_connector_id FOREIGN KEY(connector_id) REFERENCES connectors (id) ON DELETE CASCADE
);
CREATE INDEX connector_runs_of_connector ON connector_runs (connector_id, id);
CREATE INDEX ix_connector_runs_user_id ON connector_runs (user_id);

CREATE TABLE export_parts (
    id BIGINT NOT NULL,
    export_id BIGINT NOT NULL,
    part BIGINT NOT NULL,
    position BIGINT NOT NULL,
    size BIGINT NOT NULL,
    blob_id BIGINT NOT NULL,
    CONSTRAINT pk_export_parts PRIMARY KEY (id),
    CONSTRAINT fk_export_parts_export_id FOREIGN KEY(export_id) REFERENCES exports (id) ON DELETE CASCADE,
    CONSTRAINT fk_export_parts_blob_id FOREIGN KEY(blob_id) REFERENCES blobs (id) ON DELETE RESTRICT
);
CREATE UNIQUE INDEX export_pieces_in_order ON export_parts (export_id, part, position);
CREATE INDEX ix_export_parts_blob_id ON export_parts (blob_id);

CREATE TABLE file_shares (
    id BIGINT NOT NULL,
    user_id BIGINT NOT NULL,
    file_id BIGINT NOT NULL,
    mode VARCHAR(32) NOT NULL,
    blob_id BIGINT,
    size BIGINT,
    digest VARCHAR,
    password VARCHAR,
    expires_at TIMESTAMP WITH TIME ZONE,
    idle BOOLEAN NOT NULL,
    access_count BIGINT NOT NULL,
    last_access_at TIMESTAMP WITH TIME ZONE,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
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
    id BIGINT NOT NULL,
    link_id BIGINT NOT NULL,
    session_digest VARCHAR NOT NULL,
    family_id BIGINT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_identity_sessions PRIMARY KEY (id),
    CONSTRAINT fk_identity_sessions_link_id FOREIGN KEY(link_id) REFERENCES identity_links (id) ON DELETE CASCADE
);
CREATE INDEX identity_sessions_of_digest ON identity_sessions (session_digest, link_id);
CREATE INDEX ix_identity_sessions_family_id ON identity_sessions (family_id);
CREATE INDEX ix_identity_sessions_link_id ON identity_sessions (link_id);

CREATE TABLE mailbox_annotations (
    mailbox_id BIGINT NOT NULL,
    key VARCHAR NOT NULL,
    value VARCHAR NOT NULL,
    CONSTRAINT pk_mailbox_annotations PRIMARY KEY (mailbox_id, key),
    CONSTRAINT fk_mailbox_annotations_mailbox_id FOREIGN KEY(mailbox_id) REFERENCES mailboxes (id) ON DELETE CASCADE
);

CREATE TABLE mailbox_shares (
    mailbox_id BIGINT NOT NULL,
    user_id BIGINT NOT NULL,
    owner_id BIGINT NOT NULL,
    rights BIGINT NOT NULL,
    since BIGINT NOT NULL,
    CONSTRAINT pk_mailbox_shares PRIMARY KEY (mailbox_id, user_id),
    CONSTRAINT fk_mailbox_shares_mailbox_id FOREIGN KEY(mailbox_id) REFERENCES mailboxes (id) ON DELETE CASCADE,
    CONSTRAINT fk_mailbox_shares_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX mailbox_shares_of_user ON mailbox_shares (user_id, owner_id, mailbox_id);

CREATE TABLE messages (
    id BIGINT NOT NULL,
    user_id BIGINT NOT NULL,
    mailbox_id BIGINT,
    uid BIGINT NOT NULL,
    modseq BIGINT NOT NULL,
    thread_id BIGINT NOT NULL,
    blob_id BIGINT NOT NULL,
    sha256 VARCHAR NOT NULL,
    received_at TIMESTAMP WITH TIME ZONE NOT NULL,
    listed_at TIMESTAMP WITH TIME ZONE NOT NULL,
    saved_at TIMESTAMP WITH TIME ZONE NOT NULL,
    date TIMESTAMP WITH TIME ZONE,
    expires_at TIMESTAMP WITH TIME ZONE,
    snoozed_until TIMESTAMP WITH TIME ZONE,
    snoozed_from BIGINT,
    size BIGINT NOT NULL,
    seen BOOLEAN NOT NULL,
    flagged BOOLEAN NOT NULL,
    answered BOOLEAN NOT NULL,
    draft BOOLEAN NOT NULL,
    deleted BOOLEAN NOT NULL,
    keywords JSONB NOT NULL,
    subject VARCHAR NOT NULL,
    from_name VARCHAR,
    from_address VARCHAR,
    sender JSONB,
    reply_to JSONB NOT NULL,
    "to" JSONB NOT NULL,
    cc JSONB NOT NULL,
    bcc JSONB NOT NULL,
    message_id VARCHAR,
    in_reply_to VARCHAR,
    "references" JSONB NOT NULL,
    mailing_list JSONB,
    preview VARCHAR NOT NULL,
    content_type VARCHAR NOT NULL,
    content_params JSONB NOT NULL,
    encrypted BOOLEAN NOT NULL,
    attachment_count BIGINT NOT NULL,
    attachments JSONB NOT NULL,
    mime_structure BYTEA NOT NULL,
    envelope_from VARCHAR,
    envelope_to JSONB NOT NULL,
    public_metadata JSONB,
    authentication JSONB,
    spam_report JSONB,
    filters JSONB,
    forwarded_to JSONB,
    source_id BIGINT,
    source_relation VARCHAR,
    deleted_at TIMESTAMP WITH TIME ZONE,
    deleted_from VARCHAR,
    deleted_mailbox_id BIGINT,
    purge_at TIMESTAMP WITH TIME ZONE,
    indexed BOOLEAN NOT NULL,
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
CREATE INDEX messages_waiting ON messages (user_id, indexed, id) WHERE NOT indexed;
CREATE INDEX messages_with_keywords ON messages (user_id, deleted_at) WHERE keywords <> '[]';

CREATE TABLE oauth_authorization_codes (
    id BIGINT NOT NULL,
    digest VARCHAR NOT NULL,
    page_digest VARCHAR NOT NULL,
    grant_id BIGINT NOT NULL,
    scopes JSONB NOT NULL,
    redirect_uri VARCHAR NOT NULL,
    code_challenge VARCHAR NOT NULL,
    nonce VARCHAR,
    auth_version BIGINT NOT NULL,
    signed_in_at TIMESTAMP WITH TIME ZONE NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
    used_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_oauth_authorization_codes PRIMARY KEY (id),
    CONSTRAINT uq_oauth_authorization_codes_digest UNIQUE (digest),
    CONSTRAINT uq_oauth_authorization_codes_page_digest UNIQUE (page_digest),
    CONSTRAINT fk_oauth_authorization_codes_grant_id FOREIGN KEY(grant_id) REFERENCES oauth_grants (id) ON DELETE CASCADE
);
CREATE INDEX ix_oauth_authorization_codes_expires_at ON oauth_authorization_codes (expires_at);
CREATE INDEX ix_oauth_authorization_codes_grant_id ON oauth_authorization_codes (grant_id);

CREATE TABLE oauth_refresh_tokens (
    id BIGINT NOT NULL,
    digest VARCHAR NOT NULL,
    grant_id BIGINT NOT NULL,
    family_id BIGINT NOT NULL,
    scopes JSONB NOT NULL,
    auth_version BIGINT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
    replaced_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_oauth_refresh_tokens PRIMARY KEY (id),
    CONSTRAINT uq_oauth_refresh_tokens_digest UNIQUE (digest),
    CONSTRAINT fk_oauth_refresh_tokens_grant_id FOREIGN KEY(grant_id) REFERENCES oauth_grants (id) ON DELETE CASCADE
);
CREATE INDEX ix_oauth_refresh_tokens_expires_at ON oauth_refresh_tokens (expires_at);
CREATE INDEX oauth_refresh_tokens_of_family ON oauth_refresh_tokens (grant_id, family_id);

CREATE TABLE quarantine_blobs (
    item_id BIGINT NOT NULL,
    blob_id BIGINT NOT NULL,
    CONSTRAINT pk_quarantine_blobs PRIMARY KEY (item_id, blob_id),
    CONSTRAINT fk_quarantine_blobs_item_id FOREIGN KEY(item_id) REFERENCES quarantine_items (id) ON DELETE CASCADE,
    CONSTRAINT fk_quarantine_blobs_blob_id FOREIGN KEY(blob_id) REFERENCES blobs (id) ON DELETE RESTRICT
);
CREATE INDEX ix_quarantine_blobs_blob_id ON quarantine_blobs (blob_id);

CREATE TABLE remote_mailboxes (
    id BIGINT NOT NULL,
    connector_id BIGINT NOT NULL,
    name VARCHAR COLLATE "C" NOT NULL,
    validity BIGINT NOT NULL,
    modseq BIGINT NOT NULL,
    CONSTRAINT pk_remote_mailboxes PRIMARY KEY (id),
    CONSTRAINT fk_remote_mailboxes_connector_id FOREIGN KEY(connector_id) REFERENCES connectors (id) ON DELETE CASCADE
);
CREATE UNIQUE INDEX connector_folders_by_name ON remote_mailboxes (connector_id, name);

CREATE TABLE resources (
    id BIGINT NOT NULL,
    domain_id BIGINT NOT NULL,
    address_id BIGINT NOT NULL,
    local VARCHAR NOT NULL,
    name VARCHAR NOT NULL,
    folded_name VARCHAR COLLATE "C" NOT NULL,
    kind VARCHAR(32) NOT NULL,
    booking_policy VARCHAR(32) NOT NULL,
    booking_limit BIGINT,
    active BOOLEAN NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
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
    address_id BIGINT NOT NULL,
    user_id BIGINT NOT NULL,
    type VARCHAR,
    is_primary BOOLEAN,
    created_by_scim BOOLEAN NOT NULL,
    CONSTRAINT pk_scim_addresses PRIMARY KEY (address_id),
    CONSTRAINT fk_scim_addresses_address_id FOREIGN KEY(address_id) REFERENCES addresses (id) ON DELETE CASCADE,
    CONSTRAINT fk_scim_addresses_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX ix_scim_addresses_user_id ON scim_addresses (user_id);

CREATE TABLE thread_keys (
    user_id BIGINT NOT NULL,
    key VARCHAR NOT NULL,
    thread_id BIGINT NOT NULL,
    CONSTRAINT pk_thread_keys PRIMARY KEY (user_id, key),
    CONSTRAINT fk_thread_keys_user_id FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT fk_thread_keys_thread_id FOREIGN KEY(thread_id) REFERENCES threads (id) ON DELETE CASCADE
);
CREATE INDEX ix_thread_keys_thread_id ON thread_keys (thread_id);

CREATE TABLE upload_parts (
    id BIGINT NOT NULL,
    upload_id BIGINT NOT NULL,
    start BIGINT NOT NULL,
    size BIGINT NOT NULL,
    digest VARCHAR NOT NULL,
    name VARCHAR NOT NULL,
    CONSTRAINT pk_upload_parts PRIMARY KEY (id),
    CONSTRAINT uq_upload_parts_upload_id_start UNIQUE (upload_id, start),
    CONSTRAINT fk_upload_parts_upload_id FOREIGN KEY(upload_id) REFERENCES uploads (id) ON DELETE CASCADE,
    CONSTRAINT uq_upload_parts_name UNIQUE (name)
);

CREATE TABLE webhook_deliveries (
    id BIGINT NOT NULL,
    webhook_id BIGINT NOT NULL,
    stream_id BIGINT NOT NULL,
    number BIGINT NOT NULL,
    event VARCHAR NOT NULL,
    type VARCHAR(32) NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    body JSONB NOT NULL,
    state VARCHAR(32) NOT NULL,
    attempt BIGINT NOT NULL,
    status BIGINT,
    error VARCHAR,
    duration BIGINT,
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
    next_attempt_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_webhook_deliveries PRIMARY KEY (id),
    CONSTRAINT fk_webhook_deliveries_webhook_id FOREIGN KEY(webhook_id) REFERENCES webhooks (id) ON DELETE CASCADE
);
CREATE INDEX webhook_deliveries_ended ON webhook_deliveries (webhook_id, state, id);
CREATE INDEX webhook_deliveries_log ON webhook_deliveries (webhook_id, id);
CREATE INDEX webhook_deliveries_waiting ON webhook_deliveries (webhook_id, stream_id, number, id) WHERE state = 'PENDING';

CREATE TABLE webhook_lanes (
    webhook_id BIGINT NOT NULL,
    stream_id BIGINT NOT NULL,
    due_at TIMESTAMP WITH TIME ZONE NOT NULL,
    lease BIGINT,
    holder BIGINT,
    CONSTRAINT pk_webhook_lanes PRIMARY KEY (webhook_id, stream_id),
    CONSTRAINT fk_webhook_lanes_webhook_id FOREIGN KEY(webhook_id) REFERENCES webhooks (id) ON DELETE CASCADE
);
CREATE INDEX webhook_lanes_due ON webhook_lanes (webhook_id, due_at);
CREATE INDEX webhook_lanes_leased ON webhook_lanes (holder) WHERE holder IS NOT NULL;

CREATE TABLE autoreply_senders (
    autoreply_id BIGINT NOT NULL,
    sender VARCHAR NOT NULL,
    until TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_autoreply_senders PRIMARY KEY (autoreply_id, sender),
    CONSTRAINT fk_autoreply_senders_autoreply_id FOREIGN KEY(autoreply_id) REFERENCES autoreplies (id) ON DELETE CASCADE
);
CREATE INDEX ix_autoreply_senders_until ON autoreply_senders (until);

CREATE TABLE bookings (
    id BIGINT NOT NULL,
    resource_id BIGINT NOT NULL,
    series_key VARCHAR NOT NULL,
    uid VARCHAR NOT NULL,
    occurrence_at TIMESTAMP WITH TIME ZONE,
    sequence BIGINT NOT NULL,
    stamped_at TIMESTAMP WITH TIME ZONE NOT NULL,
    state VARCHAR(32) NOT NULL,
    starts_at TIMESTAMP WITH TIME ZONE NOT NULL,
    ends_at TIMESTAMP WITH TIME ZONE NOT NULL,
    organizer VARCHAR NOT NULL,
    organizer_name VARCHAR,
    organizer_user_id BIGINT,
    summary VARCHAR,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_bookings PRIMARY KEY (id),
    CONSTRAINT fk_bookings_resource_id FOREIGN KEY(resource_id) REFERENCES resources (id) ON DELETE CASCADE
);
CREATE INDEX bookings_by_age ON bookings (ends_at);
CREATE INDEX bookings_by_end ON bookings (resource_id, ends_at, id);
CREATE INDEX bookings_by_start ON bookings (resource_id, starts_at, id) WHERE state = 'BOOKED';
CREATE INDEX bookings_of_series ON bookings (resource_id, series_key, occurrence_at);
CREATE INDEX bookings_released ON bookings (resource_id, organizer, id) WHERE state = 'RELEASED';

CREATE TABLE draft_files (
    message_id BIGINT NOT NULL,
    file_id BIGINT NOT NULL,
    nth BIGINT NOT NULL,
    CONSTRAINT pk_draft_files PRIMARY KEY (message_id, file_id),
    CONSTRAINT fk_draft_files_message_id FOREIGN KEY(message_id) REFERENCES messages (id) ON DELETE CASCADE,
    CONSTRAINT fk_draft_files_file_id FOREIGN KEY(file_id) REFERENCES files (id) ON DELETE CASCADE
);
CREATE INDEX ix_draft_files_file_id ON draft_files (file_id);

CREATE TABLE fetched_messages (
    folder_id BIGINT NOT NULL,
    remote_id VARCHAR COLLATE "C" NOT NULL,
    digest VARCHAR NOT NULL,
    message_id BIGINT,
    flags VARCHAR NOT NULL,
    fetched_at TIMESTAMP WITH TIME ZONE NOT NULL,
    removed BOOLEAN NOT NULL,
    may_delete_source BOOLEAN NOT NULL,
    CONSTRAINT pk_fetched_messages PRIMARY KEY (folder_id, remote_id),
    CONSTRAINT fk_fetched_messages_folder_id FOREIGN KEY(folder_id) REFERENCES remote_mailboxes (id) ON DELETE CASCADE
);
CREATE INDEX connector_messages_by_digest ON fetched_messages (folder_id, digest);
CREATE INDEX connector_messages_of_message ON fetched_messages (message_id);

CREATE TABLE message_blobs (
    message_id BIGINT NOT NULL,
    blob_id BIGINT NOT NULL,
    CONSTRAINT pk_message_blobs PRIMARY KEY (message_id, blob_id),
    CONSTRAINT fk_message_blobs_message_id FOREIGN KEY(message_id) REFERENCES messages (id) ON DELETE CASCADE,
    CONSTRAINT fk_message_blobs_blob_id FOREIGN KEY(blob_id) REFERENCES blobs (id) ON DELETE RESTRICT
);
CREATE INDEX ix_message_blobs_blob_id ON message_blobs (blob_id);

CREATE TABLE submissions (
    id BIGINT NOT NULL,
    user_id BIGINT,
    tenant_id BIGINT NOT NULL,
    queue_id VARCHAR NOT NULL,
    state VARCHAR(32) NOT NULL,
    message_id BIGINT,
    blob_id BIGINT NOT NULL,
    size BIGINT NOT NULL,
    envelope_from VARCHAR NOT NULL,
    send_at TIMESTAMP WITH TIME ZONE,
    undoable_until TIMESTAMP WITH TIME ZONE,
    copy_of BIGINT,
    envid VARCHAR,
    header_id VARCHAR,
    ret VARCHAR,
    originates_here BOOLEAN NOT NULL,
    release_at TIMESTAMP WITH TIME ZONE,
    sent_mailbox_id BIGINT,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
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
    message_id BIGINT NOT NULL,
    spam BOOLEAN NOT NULL,
    revision BIGINT NOT NULL,
    due_at TIMESTAMP WITH TIME ZONE NOT NULL,
    holder BIGINT,
    attempts BIGINT NOT NULL,
    CONSTRAINT pk_training_messages PRIMARY KEY (message_id),
    CONSTRAINT fk_training_messages_message_id FOREIGN KEY(message_id) REFERENCES messages (id) ON DELETE CASCADE
);
CREATE INDEX ix_training_messages_due_at ON training_messages (due_at);
CREATE INDEX training_messages_leased ON training_messages (holder) WHERE holder IS NOT NULL;

CREATE TABLE queue_entries (
    id BIGINT NOT NULL,
    user_id BIGINT,
    submission_id BIGINT NOT NULL,
    recipient VARCHAR NOT NULL,
    domain VARCHAR NOT NULL,
    via VARCHAR,
    secret VARCHAR,
    state VARCHAR(32) NOT NULL,
    attempts BIGINT NOT NULL,
    next_at TIMESTAMP WITH TIME ZONE,
    ready_at TIMESTAMP WITH TIME ZONE,
    rank BIGINT NOT NULL,
    held_at TIMESTAMP WITH TIME ZONE,
    flushed_at TIMESTAMP WITH TIME ZONE,
    holder BIGINT,
    lease BIGINT,
    final_dot_at TIMESTAMP WITH TIME ZONE,
    last_code BIGINT,
    last_response VARCHAR,
    mx VARCHAR,
    tls VARCHAR,
    delivered_at TIMESTAMP WITH TIME ZONE,
    notify VARCHAR,
    orcpt VARCHAR,
    delay_reported_at TIMESTAMP WITH TIME ZONE,
    pending_dsn_action VARCHAR,
    reported_at TIMESTAMP WITH TIME ZONE,
    dsn_reporter VARCHAR,
    dsn_verified BOOLEAN,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
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
    submission_id BIGINT NOT NULL,
    blob_id BIGINT NOT NULL,
    CONSTRAINT pk_submission_blobs PRIMARY KEY (submission_id, blob_id),
    CONSTRAINT fk_submission_blobs_submission_id FOREIGN KEY(submission_id) REFERENCES submissions (id) ON DELETE CASCADE,
    CONSTRAINT fk_submission_blobs_blob_id FOREIGN KEY(blob_id) REFERENCES blobs (id) ON DELETE RESTRICT
);
CREATE INDEX ix_submission_blobs_blob_id ON submission_blobs (blob_id);

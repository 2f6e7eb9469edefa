"""Deliveries, uploads and sent messages as ways of writing to the database."""

from sqlmodel import col

from mail.smtp import lmtp
from models.mailboxes.tables import Mailbox
from tests.conftest import GraphQLClient, raw_message
from tests.support.accounts.quota_accounts import receive_messages_of_sizes, set_user_limits
from tests.support.mail_servers.lmtp_client import connect_lmtp
from tests.support.mail_servers.queue_worker import (
    queue_message,
    relay_settings,
    run_queue_worker,
    wait_until_tried,
)
from tests.support.mail_servers.smtp_and_dns_servers import (
    FakeSmtpServer,
    run_smtp_server,
)
from tests.support.operations.quarantine_operations import (
    SPAM_HEADERS,
    quarantine_message,
    set_options,
)
from tests.support.operations.rewrite_and_bcc_operations import create_bcc_rule
from tests.support.operations.sieve_operations import put_sieve_script
from tests.support.sample_mutations import SAMPLE_CALLS
from tests.support.write_paths.write_path import (
    WriteAction,
    WritePathContext,
    register_write_path,
    update_rows,
)


async def _deliver_by_lmtp(stage: WritePathContext, raw: bytes, *to: str) -> WriteAction:
    listener = await lmtp.start_lmtp_listener(
        stage.environment, "127.0.0.1", 0, spool_folder=stage.folder / "lmtp"
    )
    stage.stack.push_async_callback(listener.close, 1)
    client = await connect_lmtp(listener.port)
    stage.stack.push_async_callback(client.close)

    async def action() -> None:
        await client.start_data(*to)
        client.send_bytes(raw + b".\r\n")
        assert [(await client.read_reply())[:3] for _ in to] == ["250"] * len(to)

    return action


@register_write_path("LMTP")
async def deliver_message(stage: WritePathContext) -> WriteAction:
    return await _deliver_by_lmtp(stage, raw_message("Hello there"), stage.ada.address)


@register_write_path("LMTP")
async def deliver_message_to_two_accounts(stage: WritePathContext) -> WriteAction:
    return await _deliver_by_lmtp(
        stage, raw_message("To both"), stage.ada.address, stage.bob.address
    )


@register_write_path("LMTP")
async def deliver_to_mailbox_with_retention(stage: WritePathContext) -> WriteAction:
    await update_rows(stage, Mailbox, {"retention": 60}, col(Mailbox.path) == "INBOX")
    return await _deliver_by_lmtp(stage, raw_message("Brief"), stage.ada.address)


@register_write_path("LMTP")
async def deliver_large_message_of_muted_thread(stage: WritePathContext) -> WriteAction:
    mute = await SAMPLE_CALLS["threadUpdate"](stage.ada, stage.root)
    assert (await mute(stage.ada))["errors"] == []
    raw = raw_message("Re: Letter 0", body="x" * 200_000, References="<nobody@example.com>")
    return await _deliver_by_lmtp(stage, raw, stage.ada.address)


@register_write_path("LMTP", is_journaled=False, changes_rows=False)
async def deliver_message_twice(stage: WritePathContext) -> WriteAction:
    action = await _deliver_by_lmtp(stage, raw_message("Once"), stage.ada.address)
    await action()
    return action


@register_write_path("LMTP")
async def deliver_message_near_quota(stage: WritePathContext) -> WriteAction:
    await set_user_limits(stage.ada, quota=10_000)
    await receive_messages_of_sizes(stage.ada, 6_000)
    return await _deliver_by_lmtp(stage, raw_message("Full", body="x" * 2_000), stage.ada.address)


async def _run_without_errors(client: GraphQLClient, document: str) -> None:
    (payload,) = (await client(document)).values()
    assert payload["errors"] == []


@register_write_path("LMTP")
async def forward_message(stage: WritePathContext) -> WriteAction:
    await _run_without_errors(stage.root, """mutation { addressCreate(input: {
      address: "list@example.org", forwardTo: ["ada@example.org", "dave@far.example"]})
      { errors { message } } }""")  # fmt: skip
    return await _deliver_by_lmtp(stage, raw_message("To the list"), "list@example.org")


@register_write_path("LMTP")
async def copy_message_by_bcc_rule(stage: WritePathContext) -> WriteAction:
    await create_bcc_rule(stage.root, stage.ada.address, "archive@far.example")
    return await _deliver_by_lmtp(stage, raw_message("Keep this"), stage.ada.address)


@register_write_path("LMTP")
async def send_autoreply(stage: WritePathContext) -> WriteAction:
    await _run_without_errors(stage.ada, """mutation { autoreplySet(input: {set: {
      enabled: true, text: "Away."}}) { errors { message } } }""")  # fmt: skip
    return await _deliver_by_lmtp(stage, raw_message("Are you there?"), stage.ada.address)


@register_write_path("LMTP")
async def deliver_spam_to_junk(stage: WritePathContext) -> WriteAction:
    return await _deliver_by_lmtp(stage, raw_message("Offer", X_Spam_Flag="YES"), stage.ada.address)


@register_write_path("LMTP")
async def run_sieve_script(stage: WritePathContext) -> WriteAction:
    await put_sieve_script(
        stage.ada,
        'require ["fileinto", "mailbox", "copy", "duplicate", "vacation", "imap4flags"];\n'
        "if duplicate { discard; }\n"
        'fileinto :create :flags "\\\\Seen" "Lists/New"; fileinto :copy "Nowhere";\n'
        'redirect :copy "dave@example.net"; vacation "I am away.";',
    )
    return await _deliver_by_lmtp(stage, raw_message("Hello there"), stage.ada.address)


@register_write_path("LMTP")
async def run_filter(stage: WritePathContext) -> WriteAction:
    await _run_without_errors(stage.ada, """mutation { filterCreate(input: {
      query: {subject: "list"}, action: {
        keywords: ["x"], copyTo: [{specialUse: SENT}], forwardTo: ["eve@example.net"]}})
      { errors { message } } }""")  # fmt: skip
    return await _deliver_by_lmtp(stage, raw_message("For the list"), stage.ada.address)


@register_write_path("LMTP")
async def quarantine_spam(stage: WritePathContext) -> WriteAction:
    set_options(stage.environment, spam_quarantine_score=75, quarantine_max_messages_per_user=1)
    await quarantine_message(stage.ada, "Earlier")  # it is deleted, since only one is kept
    return await _deliver_by_lmtp(stage, raw_message("Offer", **SPAM_HEADERS), stage.ada.address)


@register_write_path("HTTP", is_journaled=False)
async def upload_file(stage: WritePathContext) -> WriteAction:
    async def action() -> None:
        response = await stage.ada.http.post(
            "/rest/uploads", content=b"x" * 5_000, headers=stage.ada.headers
        )
        assert response.status_code == 201, response.text

    return action


@register_write_path("HTTP", is_journaled=False)
async def upload_file_in_parts(stage: WritePathContext) -> WriteAction:
    async def action() -> None:
        http, tus = stage.ada.http, {**stage.ada.headers, "Tus-Resumable": "1.0.0"}
        created = await http.post("/rest/uploads", headers={**tus, "Upload-Length": "10"})
        for offset in (0, 5):
            headers = {
                "Upload-Offset": str(offset),
                "Content-Type": "application/offset+octet-stream",
            }
            response = await http.patch(
                created.headers["location"], content=b"12345", headers={**tus, **headers}
            )
            assert response.status_code == 204, response.text

    return action


async def _deliver_queue(stage: WritePathContext, replies: dict[str, str]) -> WriteAction:
    server = await stage.stack.enter_async_context(run_smtp_server(FakeSmtpServer(replies)))
    submission_id = await queue_message(stage.ada)

    async def action() -> None:
        async with run_queue_worker(stage.environment, relay_settings(server)):
            await wait_until_tried(stage.environment, submission_id)

    return action


@register_write_path("mail.outbound.worker.run_until_stopped")
async def send_message(stage: WritePathContext) -> WriteAction:
    return await _deliver_queue(stage, {})


@register_write_path("mail.outbound.worker.run_until_stopped")
async def copy_sent_message_by_bcc_rule(stage: WritePathContext) -> WriteAction:
    await create_bcc_rule(stage.root, stage.ada.address, "archive@far.example", "SENDER")
    return await _deliver_queue(stage, {})


@register_write_path("mail.outbound.worker.run_until_stopped")
async def defer_message(stage: WritePathContext) -> WriteAction:
    return await _deliver_queue(stage, {"carol": "450 4.2.1 Later", "dave": "450 4.2.1 Later"})


@register_write_path("mail.outbound.worker.run_until_stopped")
async def bounce_message(stage: WritePathContext) -> WriteAction:
    return await _deliver_queue(stage, {"carol": "550 5.1.1 No such user"})

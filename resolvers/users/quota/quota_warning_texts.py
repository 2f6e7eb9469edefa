"""Texts of storage warnings to users, by language."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class QuotaWarningTexts:
    """Texts of one language. {percent}, {address}, {used} and {allowed} are replaced."""

    nearly_full_subject: str  # subject while it is not full
    full_subject: str  # subject when it is full
    usage_text: str
    nearly_full_text: str  # the consequence, while it is not full
    full_text: str  # the consequence, when it is full
    message_refused_text: str
    advice: str
    decimal_separator: str = ","  # decimal separator


ENGLISH_TEXTS = QuotaWarningTexts(
    nearly_full_subject="Your mailbox is {percent} % full",
    full_subject="Your mailbox is full",
    usage_text="{used} of {allowed} in your mailbox {address} are in use.",
    nearly_full_text="Once it is full, new messages are refused, and their senders are notified.",
    full_text="Messages that do not fit are refused, and their senders are notified.",
    message_refused_text="A message was refused because the account has no space for it.",
    advice="Delete messages that you no longer need, or ask your administrator for more storage.",
    decimal_separator=".",
)
TEXTS_BY_LANGUAGE = {
    "de": QuotaWarningTexts(
        nearly_full_subject="Ihr Postfach ist zu {percent} % voll",
        full_subject="Ihr Postfach ist voll",
        usage_text="In Ihrem Postfach {address} sind {used} von {allowed} belegt.",
        nearly_full_text="Sobald es voll ist, werden neue Nachrichten abgewiesen; wer sie "
        "schickt, erfährt es.",
        full_text="Was nicht mehr hineinpasst, wird abgewiesen; wer es schickt, erfährt es.",
        message_refused_text="Eine Nachricht wurde abgewiesen, weil kein Platz für sie ist.",
        advice="Löschen Sie, was Sie nicht mehr brauchen, oder bitten Sie um mehr Speicherplatz.",
    ),
    "en": ENGLISH_TEXTS,
    "es": QuotaWarningTexts(
        nearly_full_subject="Su buzón está al {percent} %",
        full_subject="Su buzón está lleno",
        usage_text="En su buzón {address} están ocupados {used} de {allowed}.",
        nearly_full_text="Cuando esté lleno, se rechazarán los mensajes nuevos y se avisará a "
        "sus remitentes.",
        full_text="Los mensajes que ya no caben se rechazan y se avisa a sus remitentes.",
        message_refused_text="Se ha rechazado un mensaje porque no hay espacio para él.",
        advice="Borre lo que ya no necesite o pida más espacio.",
    ),
    "fr": QuotaWarningTexts(
        nearly_full_subject="Votre boîte aux lettres est pleine à {percent} %",
        full_subject="Votre boîte aux lettres est pleine",
        usage_text="Votre boîte aux lettres {address} occupe {used} sur {allowed}.",
        nearly_full_text="Une fois pleine, elle refusera les nouveaux messages ; "
        "leurs expéditeurs en seront avertis.",
        full_text="Les messages qui n'y tiennent plus sont refusés ; leurs expéditeurs en sont "
        "avertis.",
        message_refused_text="Un message a été refusé faute de place.",
        advice="Supprimez ce dont vous n'avez plus besoin, ou demandez plus d'espace.",
    ),
    "it": QuotaWarningTexts(
        nearly_full_subject="La sua casella è piena al {percent} %",
        full_subject="La sua casella è piena",
        usage_text="Nella sua casella {address} sono occupati {used} su {allowed}.",
        nearly_full_text="Quando sarà piena, i nuovi messaggi saranno rifiutati e i mittenti "
        "avvisati.",
        full_text="I messaggi che non ci stanno più vengono rifiutati e i mittenti avvisati.",
        message_refused_text="Un messaggio è stato rifiutato per mancanza di spazio.",
        advice="Elimini ciò che non serve più, o chieda più spazio.",
    ),
    "nl": QuotaWarningTexts(
        nearly_full_subject="Uw mailbox is voor {percent} % vol",
        full_subject="Uw mailbox is vol",
        usage_text="In uw mailbox {address} is {used} van {allowed} in gebruik.",
        nearly_full_text="Zodra hij vol is, worden nieuwe berichten geweigerd; de afzenders "
        "horen daarvan.",
        full_text="Berichten die er niet meer in passen worden geweigerd; de afzenders horen "
        "daarvan.",
        message_refused_text="Een bericht is geweigerd, omdat er geen plaats voor is.",
        advice="Verwijder wat u niet meer nodig hebt, of vraag om meer ruimte.",
    ),
    "pt": QuotaWarningTexts(
        nearly_full_subject="A sua caixa de correio está {percent} % cheia",
        full_subject="A sua caixa de correio está cheia",
        usage_text="Na sua caixa de correio {address} estão ocupados {used} de {allowed}.",
        nearly_full_text="Quando estiver cheia, as novas mensagens serão recusadas e os "
        "remetentes avisados.",
        full_text="As mensagens que já não cabem são recusadas e os remetentes avisados.",
        message_refused_text="Uma mensagem foi recusada por falta de espaço.",
        advice="Apague o que já não é necessário, ou peça mais espaço.",
    ),
}

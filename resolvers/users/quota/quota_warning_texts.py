"""Texts of storage warnings to users, by language."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Words:
    """Texts of one language. {percent}, {address}, {used} and {allowed} are replaced."""

    nearly: str  # subject while it is not full
    full: str  # subject when it is full
    use: str
    soon: str  # the consequence, while it is not full
    now: str  # the consequence, when it is full
    refused: str
    advice: str
    point: str = ","  # decimal separator


ENGLISH = Words(
    nearly="Your mailbox is {percent} % full",
    full="Your mailbox is full",
    use="{used} of {allowed} in your mailbox {address} are in use.",
    soon="Once it is full, new messages are turned away, and their senders hear of it.",
    now="Messages that do not fit are turned away, and their senders hear of it.",
    refused="A message was turned away, because there is no room for it.",
    advice="Delete what you no longer need, or ask for more room.",
    point=".",
)
WORDS = {
    "de": Words(
        nearly="Ihr Postfach ist zu {percent} % voll",
        full="Ihr Postfach ist voll",
        use="In Ihrem Postfach {address} sind {used} von {allowed} belegt.",
        soon="Sobald es voll ist, werden neue Nachrichten abgewiesen; wer sie schickt, erfährt es.",
        now="Was nicht mehr hineinpasst, wird abgewiesen; wer es schickt, erfährt es.",
        refused="Eine Nachricht wurde abgewiesen, weil kein Platz für sie ist.",
        advice="Löschen Sie, was Sie nicht mehr brauchen, oder bitten Sie um mehr Speicherplatz.",
    ),
    "en": ENGLISH,
    "es": Words(
        nearly="Su buzón está al {percent} %",
        full="Su buzón está lleno",
        use="En su buzón {address} están ocupados {used} de {allowed}.",
        soon="Cuando esté lleno, se rechazarán los mensajes nuevos y se avisará a sus remitentes.",
        now="Los mensajes que ya no caben se rechazan y se avisa a sus remitentes.",
        refused="Se ha rechazado un mensaje porque no hay espacio para él.",
        advice="Borre lo que ya no necesite o pida más espacio.",
    ),
    "fr": Words(
        nearly="Votre boîte aux lettres est pleine à {percent} %",
        full="Votre boîte aux lettres est pleine",
        use="Votre boîte aux lettres {address} occupe {used} sur {allowed}.",
        soon="Une fois pleine, elle refusera les nouveaux messages ; "
        "leurs expéditeurs en seront avertis.",
        now="Les messages qui n'y tiennent plus sont refusés ; leurs expéditeurs en sont avertis.",
        refused="Un message a été refusé faute de place.",
        advice="Supprimez ce dont vous n'avez plus besoin, ou demandez plus d'espace.",
    ),
    "it": Words(
        nearly="La sua casella è piena al {percent} %",
        full="La sua casella è piena",
        use="Nella sua casella {address} sono occupati {used} su {allowed}.",
        soon="Quando sarà piena, i nuovi messaggi saranno rifiutati e i mittenti avvisati.",
        now="I messaggi che non ci stanno più vengono rifiutati e i mittenti avvisati.",
        refused="Un messaggio è stato rifiutato per mancanza di spazio.",
        advice="Elimini ciò che non serve più, o chieda più spazio.",
    ),
    "nl": Words(
        nearly="Uw mailbox is voor {percent} % vol",
        full="Uw mailbox is vol",
        use="In uw mailbox {address} is {used} van {allowed} in gebruik.",
        soon="Zodra hij vol is, worden nieuwe berichten geweigerd; de afzenders horen daarvan.",
        now="Berichten die er niet meer in passen worden geweigerd; de afzenders horen daarvan.",
        refused="Een bericht is geweigerd, omdat er geen plaats voor is.",
        advice="Verwijder wat u niet meer nodig hebt, of vraag om meer ruimte.",
    ),
    "pt": Words(
        nearly="A sua caixa de correio está {percent} % cheia",
        full="A sua caixa de correio está cheia",
        use="Na sua caixa de correio {address} estão ocupados {used} de {allowed}.",
        soon="Quando estiver cheia, as novas mensagens serão recusadas e os remetentes avisados.",
        now="As mensagens que já não cabem são recusadas e os remetentes avisados.",
        refused="Uma mensagem foi recusada por falta de espaço.",
        advice="Apague o que já não é necessário, ou peça mais espaço.",
    ),
}

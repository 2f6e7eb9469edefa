"""Texts of the quarantine digest by language."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DigestTexts:
    """Sentences with the placeholders {many}, {address}, {date}, {rest} and {page}."""

    subject: str
    intro: str
    virus: str  # note after an infected message
    until: str
    more: str  # after the last listed message
    page: str
    advice: str


ENGLISH_TEXTS = DigestTexts(
    subject="Messages held for you: {many}",
    intro="These messages for {address} look unwanted or dangerous and were not delivered.",
    virus="contains a virus",
    until="held until {date}",
    more="{rest} more are not shown here.",
    page="See all of them: {page}",
    advice="Release the messages that you want. All others are deleted on the date shown.",
)
TEXTS_BY_LANGUAGE = {
    "de": DigestTexts(
        subject="Für Sie zurückgehaltene Nachrichten: {many}",
        intro="Diese Nachrichten an {address} sehen unerwünscht oder gefährlich aus und wurden "
        "nicht zugestellt.",
        virus="enthält einen Virus",
        until="zurückgehalten bis {date}",
        more="Hier nicht gezeigt: {rest} weitere.",
        page="Alle ansehen: {page}",
        advice="Geben Sie frei, was Sie haben wollen. Alles andere wird an seinem Tag gelöscht.",
    ),
    "en": ENGLISH_TEXTS,
    "es": DigestTexts(
        subject="Mensajes retenidos para usted: {many}",
        intro="Estos mensajes para {address} parecen no deseados o peligrosos y no se entregaron.",
        virus="contiene un virus",
        until="retenido hasta {date}",
        more="No se muestran aquí: {rest} más.",
        page="Verlos todos: {page}",
        advice="Libere lo que quiera recibir. Todo lo demás se borra en su día.",
    ),
    "fr": DigestTexts(
        subject="Messages retenus pour vous : {many}",
        intro="Ces messages pour {address} semblent indésirables ou dangereux et n'ont pas été "
        "remis.",
        virus="contient un virus",
        until="retenu jusqu'au {date}",
        more="Non affichés ici : {rest} de plus.",
        page="Les voir tous : {page}",
        advice="Libérez ce que vous voulez recevoir. Tout le reste est supprimé le jour dit.",
    ),
    "it": DigestTexts(
        subject="Messaggi trattenuti per lei: {many}",
        intro="Questi messaggi per {address} sembrano indesiderati o pericolosi e non sono stati "
        "consegnati.",
        virus="contiene un virus",
        until="trattenuto fino al {date}",
        more="Non mostrati qui: altri {rest}.",
        page="Vederli tutti: {page}",
        advice="Liberi ciò che vuole ricevere. Tutto il resto viene eliminato nel giorno indicato.",
    ),
    "nl": DigestTexts(
        subject="Voor u tegengehouden berichten: {many}",
        intro="Deze berichten voor {address} lijken ongewenst of gevaarlijk en zijn niet bezorgd.",
        virus="bevat een virus",
        until="tegengehouden tot {date}",
        more="Hier niet getoond: nog {rest}.",
        page="Alles bekijken: {page}",
        advice="Geef vrij wat u wilt hebben. Al het andere wordt op zijn dag verwijderd.",
    ),
    "pt": DigestTexts(
        subject="Mensagens retidas para si: {many}",
        intro="Estas mensagens para {address} parecem indesejadas ou perigosas e não foram "
        "entregues.",
        virus="contém um vírus",
        until="retida até {date}",
        more="Não mostradas aqui: mais {rest}.",
        page="Ver todas: {page}",
        advice="Liberte o que quiser receber. Tudo o resto é apagado no seu dia.",
    ),
}

"""Texts of security messages to users, by language."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SecurityMessageTexts:
    """Texts of one language. `{address}` is replaced by the user's address."""

    subject: str
    intro: str  # an administrator changed something
    guessing_subject: str
    guessing_intro: str  # too many wrong passwords
    advice: str
    event_label: str = "Event"
    by_label: str = "By"
    time_label: str = "Time"
    ip_label: str = "IP address"


ENGLISH_TEXTS = SecurityMessageTexts(
    subject="Your account was changed by an administrator",
    intro="An administrator changed the security settings of your account {address}.",
    guessing_subject="Someone is trying to guess your password",
    guessing_intro=(
        "There were many wrong passwords for your account {address}. Sign-ins from the network of "
        "these attempts are refused for a while. You can still sign in from your usual networks."
    ),
    advice="If you did not expect this, ask your administrator. The security log of your account "
    "lists all such events.",
)
TEXTS_BY_LANGUAGE = {
    "de": SecurityMessageTexts(
        subject="Ein Administrator hat Ihr Konto geändert",
        intro="Ein Administrator hat Sicherheitseinstellungen Ihres Kontos {address} geändert.",
        guessing_subject="Jemand versucht, Ihr Passwort zu erraten",
        guessing_intro=(
            "Für Ihr Konto {address} wurden viele falsche Passwörter eingegeben. Anmeldungen aus "
            "dem Netz dieser Versuche werden eine Zeit lang abgelehnt. Aus Ihren üblichen Netzen "
            "können Sie sich weiter anmelden."
        ),
        advice="Wenn Sie das nicht erwartet haben, fragen Sie Ihren Administrator. Das "
        "Sicherheitsprotokoll Ihres Kontos zeigt alle solchen Ereignisse.",
        event_label="Ereignis",
        by_label="Durch",
        time_label="Zeit",
        ip_label="IP-Adresse",
    ),
    "en": ENGLISH_TEXTS,
    "es": SecurityMessageTexts(
        subject="Un administrador ha modificado su cuenta",
        intro="Un administrador ha modificado la configuración de seguridad de su cuenta "
        "{address}.",
        guessing_subject="Alguien intenta adivinar su contraseña",
        guessing_intro=(
            "Se han introducido muchas contraseñas incorrectas para su cuenta {address}. Los "
            "inicios de sesión desde la red de estos intentos se rechazan durante un tiempo. "
            "Desde sus redes habituales puede seguir iniciando sesión."
        ),
        advice="Si no lo esperaba, pregunte a su administrador. El registro de seguridad de su "
        "cuenta muestra todos estos eventos.",
        event_label="Evento",
        by_label="Por",
        time_label="Hora",
        ip_label="Dirección IP",
    ),
    "fr": SecurityMessageTexts(
        subject="Un administrateur a modifié votre compte",
        intro="Un administrateur a modifié les paramètres de sécurité de votre compte {address}.",
        guessing_subject="Quelqu'un essaie de deviner votre mot de passe",
        guessing_intro=(
            "De nombreux mots de passe erronés ont été saisis pour votre compte {address}. Les "
            "connexions depuis le réseau de ces tentatives sont refusées pendant un certain "
            "temps. Vous pouvez toujours vous connecter depuis vos réseaux habituels."
        ),
        advice="Si vous ne vous y attendiez pas, demandez à votre administrateur. Le journal de "
        "sécurité de votre compte montre tous ces événements.",
        event_label="Événement",
        by_label="Par",
        time_label="Heure",
        ip_label="Adresse IP",
    ),
    "it": SecurityMessageTexts(
        subject="Un amministratore ha modificato il suo account",
        intro="Un amministratore ha modificato le impostazioni di sicurezza del suo account "
        "{address}.",
        guessing_subject="Qualcuno cerca di indovinare la sua password",
        guessing_intro=(
            "Per il suo account {address} sono state inserite molte password errate. Gli accessi "
            "dalla rete di questi tentativi sono rifiutati per un certo tempo. Dalle sue reti "
            "abituali può continuare ad accedere."
        ),
        advice="Se non se lo aspettava, chieda al suo amministratore. Il registro di sicurezza del "
        "suo account mostra tutti questi eventi.",
        event_label="Evento",
        by_label="Da",
        time_label="Ora",
        ip_label="Indirizzo IP",
    ),
    "nl": SecurityMessageTexts(
        subject="Een beheerder heeft uw account gewijzigd",
        intro="Een beheerder heeft de beveiligingsinstellingen van uw account {address} gewijzigd.",
        guessing_subject="Iemand probeert uw wachtwoord te raden",
        guessing_intro=(
            "Voor uw account {address} zijn veel verkeerde wachtwoorden ingevoerd. Aanmeldingen "
            "vanuit het netwerk van deze pogingen worden een tijdlang geweigerd. Vanuit uw "
            "gebruikelijke netwerken kunt u zich blijven aanmelden."
        ),
        advice="Als u dit niet had verwacht, vraag het dan aan uw beheerder. Het "
        "beveiligingslogboek van uw account toont al zulke gebeurtenissen.",
        event_label="Gebeurtenis",
        by_label="Door",
        time_label="Tijd",
        ip_label="IP-adres",
    ),
    "pt": SecurityMessageTexts(
        subject="Um administrador alterou a sua conta",
        intro="Um administrador alterou as definições de segurança da sua conta {address}.",
        guessing_subject="Alguém está a tentar adivinhar a sua palavra-passe",
        guessing_intro=(
            "Foram introduzidas muitas palavras-passe erradas para a sua conta {address}. Os "
            "inícios de sessão a partir da rede destas tentativas são recusados durante algum "
            "tempo. A partir das suas redes habituais pode continuar a iniciar sessão."
        ),
        advice="Se não esperava isto, pergunte ao seu administrador. O registo de segurança da sua "
        "conta mostra todos estes eventos.",
        event_label="Evento",
        by_label="Por",
        time_label="Hora",
        ip_label="Endereço IP",
    ),
}

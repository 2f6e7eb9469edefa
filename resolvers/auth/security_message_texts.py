"""Texts of security messages to users, by language."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SecurityWords:
    """Texts of one language. `{address}` is replaced by the user's address."""

    subject: str
    intro: str  # an administrator changed something
    guessed_subject: str
    guessed: str  # too many wrong passwords
    advice: str
    event: str = "Event"
    by: str = "By"
    at: str = "Time"
    ip: str = "IP address"


ENGLISH = SecurityWords(
    subject="Your account was changed by an administrator",
    intro="An administrator changed the security settings of your account {address}.",
    guessed_subject="Somebody tries to guess your password",
    guessed="There were many wrong passwords for your account {address}. Sign-ins from that "
    "network are refused for a while. You can still sign in from your usual networks.",
    advice="If you did not expect this, ask your administrator. The security log of your account "
    "lists all such events.",
)
WORDS = {
    "de": SecurityWords(
        subject="Ein Administrator hat Ihr Konto geändert",
        intro="Ein Administrator hat Sicherheitseinstellungen Ihres Kontos {address} geändert.",
        guessed_subject="Jemand versucht, Ihr Passwort zu erraten",
        guessed="Für Ihr Konto {address} wurden viele falsche Passwörter eingegeben. Anmeldungen "
        "aus diesem Netz werden eine Zeit lang abgelehnt. Aus Ihren üblichen Netzen können Sie "
        "sich weiter anmelden.",
        advice="Wenn Sie das nicht erwartet haben, fragen Sie Ihren Administrator. Das "
        "Sicherheitsprotokoll Ihres Kontos zeigt alle solchen Ereignisse.",
        event="Ereignis",
        by="Durch",
        at="Zeit",
        ip="IP-Adresse",
    ),
    "en": ENGLISH,
    "es": SecurityWords(
        subject="Un administrador ha modificado su cuenta",
        intro="Un administrador ha modificado la configuración de seguridad de su cuenta "
        "{address}.",
        guessed_subject="Alguien intenta adivinar su contraseña",
        guessed="Se han introducido muchas contraseñas incorrectas para su cuenta {address}. Los "
        "inicios de sesión desde esa red se rechazan durante un tiempo. Desde sus redes habituales "
        "puede seguir iniciando sesión.",
        advice="Si no lo esperaba, pregunte a su administrador. El registro de seguridad de su "
        "cuenta muestra todos estos eventos.",
        event="Evento",
        by="Por",
        at="Hora",
        ip="Dirección IP",
    ),
    "fr": SecurityWords(
        subject="Un administrateur a modifié votre compte",
        intro="Un administrateur a modifié les paramètres de sécurité de votre compte {address}.",
        guessed_subject="Quelqu'un essaie de deviner votre mot de passe",
        guessed="De nombreux mots de passe erronés ont été saisis pour votre compte {address}. Les "
        "connexions depuis ce réseau sont refusées pendant un certain temps. Vous pouvez toujours "
        "vous connecter depuis vos réseaux habituels.",
        advice="Si vous ne vous y attendiez pas, demandez à votre administrateur. Le journal de "
        "sécurité de votre compte montre tous ces événements.",
        event="Événement",
        by="Par",
        at="Heure",
        ip="Adresse IP",
    ),
    "it": SecurityWords(
        subject="Un amministratore ha modificato il suo account",
        intro="Un amministratore ha modificato le impostazioni di sicurezza del suo account "
        "{address}.",
        guessed_subject="Qualcuno cerca di indovinare la sua password",
        guessed="Per il suo account {address} sono state inserite molte password errate. Gli "
        "accessi da quella rete sono rifiutati per un certo tempo. Dalle sue reti abituali può "
        "continuare ad accedere.",
        advice="Se non se lo aspettava, chieda al suo amministratore. Il registro di sicurezza del "
        "suo account mostra tutti questi eventi.",
        event="Evento",
        by="Da",
        at="Ora",
        ip="Indirizzo IP",
    ),
    "nl": SecurityWords(
        subject="Een beheerder heeft uw account gewijzigd",
        intro="Een beheerder heeft de beveiligingsinstellingen van uw account {address} gewijzigd.",
        guessed_subject="Iemand probeert uw wachtwoord te raden",
        guessed="Voor uw account {address} zijn veel verkeerde wachtwoorden ingevoerd. "
        "Aanmeldingen vanuit dat netwerk worden een tijdlang geweigerd. Vanuit uw gebruikelijke "
        "netwerken kunt u zich blijven aanmelden.",
        advice="Als u dit niet had verwacht, vraag het dan aan uw beheerder. Het "
        "beveiligingslogboek van uw account toont al zulke gebeurtenissen.",
        event="Gebeurtenis",
        by="Door",
        at="Tijd",
        ip="IP-adres",
    ),
    "pt": SecurityWords(
        subject="Um administrador alterou a sua conta",
        intro="Um administrador alterou as definições de segurança da sua conta {address}.",
        guessed_subject="Alguém está a tentar adivinhar a sua palavra-passe",
        guessed="Foram introduzidas muitas palavras-passe erradas para a sua conta {address}. Os "
        "inícios de sessão a partir dessa rede são recusados durante algum tempo. A partir das "
        "suas redes habituais pode continuar a iniciar sessão.",
        advice="Se não esperava isto, pergunte ao seu administrador. O registo de segurança da sua "
        "conta mostra todos estes eventos.",
        event="Evento",
        by="Por",
        at="Hora",
        ip="Endereço IP",
    ),
}

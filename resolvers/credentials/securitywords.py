"""What is written to accounts about their security, by language."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SecurityWords:
    """Sentences; {address} is filled in."""

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
}

"""Texts of the OAuth pages in German, Spanish and French."""

from graph.oauth.texts.page_texts import OauthPageTexts
from models.oauth.tables import OauthScope

GERMAN = OauthPageTexts(
    language="de",
    sign_in_title="Anmelden",
    sign_in_for="Melden Sie sich an, um zu {client} zu gelangen.",
    username="Benutzername oder E-Mail-Adresse",
    password="Passwort",  # noqa: S106 - a label
    sign_in="Anmelden",
    wrong_password="Benutzername oder Passwort ist falsch.",  # noqa: S106 - a message
    too_many_attempts="Es gab zu viele Versuche. Versuchen Sie es in {minutes} Minuten erneut.",
    second_factor_title="Zweiter Faktor",
    code="Code",
    code_hint="Geben Sie den Code Ihrer Authenticator-App oder einen Wiederherstellungscode ein.",
    use_security_key="Sicherheitsschlüssel verwenden",
    no_script_for_key="Ein Sicherheitsschlüssel benötigt JavaScript. Geben Sie sonst einen "
    "Wiederherstellungscode ein.",
    verify="Weiter",
    wrong_code="Der Code ist falsch.",
    consent_title="Zugriff erlauben?",
    consent_intro="{client} möchte Zugriff auf Ihr Konto:",
    signed_in_as="Sie sind als {user} angemeldet.",
    redirect_hint="Danach gelangen Sie zu {host}.",
    allow="Erlauben",
    deny="Ablehnen",
    other_account="Anderes Konto verwenden",
    error_title="Das funktioniert nicht",
    unknown_client="Die Anwendung ist hier nicht bekannt oder verwendet eine falsche Adresse. "
    "Fragen Sie ihren Entwickler.",
    page_expired="Diese Seite wurde bereits verwendet oder ist abgelaufen. Gehen Sie zurück zur "
    "Anwendung und beginnen Sie von vorn.",
    no_cookie="Ihr Browser hat kein Cookie gesendet. Erlauben Sie Cookies für diese Website, gehen "
    "Sie zurück zur Anwendung und beginnen Sie von vorn.",
    foreign_origin="Das Formular wurde von einer anderen Website gesendet. Gehen Sie zurück zur "
    "Anwendung und beginnen Sie von vorn.",
    password_change_required="Sie müssen zuerst ein neues Passwort festlegen. Beginnen "  # noqa: S106
    "Sie danach in der Anwendung von vorn.",
    access_not_allowed="Ihr Konto kann mit dieser Anwendung nicht verwendet werden. Fragen Sie "
    "Ihren Administrator.",
    too_many_grants="Ihr Konto gibt zu vielen Anwendungen Zugriff. Widerrufen Sie einen Zugriff "
    "und beginnen Sie von vorn.",
    too_large="Die Anfrage ist zu groß.",
    sign_in_at_organization="Mit Ihrer Organisation anmelden",
    enter_address="Geben Sie Ihre vollständige E-Mail-Adresse ein, um sich mit Ihrer "
    "Organisation anzumelden.",
    no_organization="Die Domain dieser Adresse hat keine Anmeldung einer Organisation.",
    organization_title="Ihre Organisation",
    organization_hint="Sie melden sich bei {host} an und kommen dann zurück.",
    organization_failed="Die Anmeldung bei Ihrer Organisation ist fehlgeschlagen: {reason} "
    "Fragen Sie Ihren Administrator.",
    organization_denied="Die Anmeldung bei Ihrer Organisation wurde abgelehnt.",
    no_account="Hier gibt es kein Konto für Sie. Fragen Sie Ihren Administrator.",
    account_ended="Ihr Konto wurde beendet oder gesperrt. Fragen Sie Ihren Administrator.",
    internal_error="Ein Fehler ist aufgetreten. Versuchen Sie es später erneut. Die Kennung der "
    "Anfrage ist {id}.",
    scopes={
        OauthScope.OPENID: "Wissen, wer Sie sind",
        OauthScope.PROFILE: "Ihren Namen und Benutzernamen sehen",
        OauthScope.EMAIL: "Ihre E-Mail-Adresse sehen",
        OauthScope.READ: "Ihre E-Mails und Einstellungen lesen",
        OauthScope.MAIL_READ: "Ihre E-Mails lesen",
        OauthScope.MAIL: "Ihre E-Mails lesen, ändern und löschen",
        OauthScope.SUBMIT: "E-Mails in Ihrem Namen senden",
        OauthScope.SETTINGS: "Ihre Einstellungen ändern, etwa Filter und Weiterleitungen",
        OauthScope.IMAP: "Ihre E-Mails über IMAP lesen, ändern und löschen",
        OauthScope.POP3: "Ihre E-Mails über POP3 lesen und löschen",
        OauthScope.SMTP: "E-Mails in Ihrem Namen über SMTP senden",
        OauthScope.SIEVE: "Ihre Sieve-Skripte ändern",
        OauthScope.DOMAIN_ADMIN: "Ihre Domains und Ihr Konto mit allen Ihren Rechten verwalten",
    },
)
SPANISH = OauthPageTexts(
    language="es",
    sign_in_title="Iniciar sesión",
    sign_in_for="Inicie sesión para continuar a {client}.",
    username="Nombre de usuario o dirección de correo",
    password="Contraseña",  # noqa: S106 - a label
    sign_in="Iniciar sesión",
    wrong_password="El nombre de usuario o la contraseña no es correcto.",  # noqa: S106
    too_many_attempts="Ha habido demasiados intentos. Inténtelo de nuevo en {minutes} minutos.",
    second_factor_title="Segundo factor",
    code="Código",
    code_hint="Escriba el código de su aplicación de autenticación o un código de recuperación.",
    use_security_key="Usar una llave de seguridad",
    no_script_for_key="Una llave de seguridad requiere JavaScript. Si no lo tiene, escriba un "
    "código de recuperación.",
    verify="Continuar",
    wrong_code="El código no es correcto.",
    consent_title="¿Permitir el acceso?",
    consent_intro="{client} solicita acceso a su cuenta:",
    signed_in_as="Ha iniciado sesión como {user}.",
    redirect_hint="Después irá a {host}.",
    allow="Permitir",
    deny="Denegar",
    other_account="Usar otra cuenta",
    error_title="Esto no funciona",
    unknown_client="La aplicación no se conoce aquí o usa una dirección incorrecta. Pregunte a su "
    "desarrollador.",
    page_expired="Esta página ya se ha usado o ha caducado. Vuelva a la aplicación y empiece de "
    "nuevo.",
    no_cookie="Su navegador no ha enviado ninguna cookie. Permita las cookies de este sitio, "
    "vuelva a la aplicación y empiece de nuevo.",
    foreign_origin="Otro sitio ha enviado el formulario. Vuelva a la aplicación y empiece de "
    "nuevo.",
    password_change_required="Primero debe establecer una contraseña nueva. Después "  # noqa: S106
    "empiece de nuevo en la aplicación.",
    access_not_allowed="Su cuenta no se puede usar con esta aplicación. Pregunte a su "
    "administrador.",
    too_many_grants="Su cuenta da acceso a demasiadas aplicaciones. Revoque un acceso y empiece "
    "de nuevo.",
    too_large="La solicitud es demasiado grande.",
    sign_in_at_organization="Iniciar sesión con su organización",
    enter_address="Escriba su dirección de correo completa para iniciar sesión con su "
    "organización.",
    no_organization="El dominio de esta dirección no tiene inicio de sesión de una organización.",
    organization_title="Su organización",
    organization_hint="Inicia sesión en {host} y después vuelve aquí.",
    organization_failed="El inicio de sesión en su organización ha fallado: {reason} Pregunte a "
    "su administrador.",
    organization_denied="El inicio de sesión en su organización fue denegado.",
    no_account="Aquí no hay ninguna cuenta para usted. Pregunte a su administrador.",
    account_ended="Su cuenta ha terminado o está suspendida. Pregunte a su administrador.",
    internal_error="Se ha producido un error. Inténtelo más tarde. El identificador de la "
    "solicitud es {id}.",
    scopes={
        OauthScope.OPENID: "Saber quién es usted",
        OauthScope.PROFILE: "Ver su nombre y su nombre de usuario",
        OauthScope.EMAIL: "Ver su dirección de correo",
        OauthScope.READ: "Leer su correo y su configuración",
        OauthScope.MAIL_READ: "Leer su correo",
        OauthScope.MAIL: "Leer, modificar y eliminar su correo",
        OauthScope.SUBMIT: "Enviar correo en su nombre",
        OauthScope.SETTINGS: "Modificar su configuración, como filtros y reenvíos",
        OauthScope.IMAP: "Leer, modificar y eliminar su correo por IMAP",
        OauthScope.POP3: "Leer y eliminar su correo por POP3",
        OauthScope.SMTP: "Enviar correo en su nombre por SMTP",
        OauthScope.SIEVE: "Modificar sus scripts de Sieve",
        OauthScope.DOMAIN_ADMIN: "Administrar sus dominios y su cuenta con todos sus derechos",
    },
)
FRENCH = OauthPageTexts(
    language="fr",
    sign_in_title="Connexion",
    sign_in_for="Connectez-vous pour continuer vers {client}.",
    username="Nom d'utilisateur ou adresse électronique",
    password="Mot de passe",  # noqa: S106 - a label
    sign_in="Se connecter",
    wrong_password="Le nom d'utilisateur ou le mot de passe est erroné.",  # noqa: S106
    too_many_attempts="Il y a eu trop de tentatives. Réessayez dans {minutes} minutes.",
    second_factor_title="Second facteur",
    code="Code",
    code_hint="Saisissez le code de votre application d'authentification ou un code de secours.",
    use_security_key="Utiliser une clé de sécurité",
    no_script_for_key="Une clé de sécurité nécessite JavaScript. Sinon, saisissez un code de "
    "secours.",
    verify="Continuer",
    wrong_code="Le code est erroné.",
    consent_title="Autoriser l'accès ?",
    consent_intro="{client} demande l'accès à votre compte :",
    signed_in_as="Vous êtes connecté en tant que {user}.",
    redirect_hint="Vous serez ensuite dirigé vers {host}.",
    allow="Autoriser",
    deny="Refuser",
    other_account="Utiliser un autre compte",
    error_title="Cela ne fonctionne pas",
    unknown_client="L'application n'est pas connue ici ou utilise une mauvaise adresse. Demandez "
    "à son développeur.",
    page_expired="Cette page a déjà été utilisée ou a expiré. Retournez à l'application et "
    "recommencez.",
    no_cookie="Votre navigateur n'a envoyé aucun cookie. Autorisez les cookies pour ce site, "
    "retournez à l'application et recommencez.",
    foreign_origin="Le formulaire a été envoyé par un autre site. Retournez à l'application et "
    "recommencez.",
    password_change_required="Vous devez d'abord définir un nouveau mot de passe. "  # noqa: S106
    "Recommencez ensuite dans l'application.",
    access_not_allowed="Votre compte ne peut pas être utilisé avec cette application. Demandez à "
    "votre administrateur.",
    too_many_grants="Votre compte donne accès à trop d'applications. Révoquez un accès et "
    "recommencez.",
    too_large="La requête est trop grande.",
    sign_in_at_organization="Se connecter avec votre organisation",
    enter_address="Saisissez votre adresse électronique complète pour vous connecter avec votre "
    "organisation.",
    no_organization="Le domaine de cette adresse n'a pas de connexion d'organisation.",
    organization_title="Votre organisation",
    organization_hint="Vous vous connectez sur {host}, puis vous revenez ici.",
    organization_failed="La connexion à votre organisation a échoué : {reason} Contactez votre "
    "administrateur.",
    organization_denied="La connexion à votre organisation a été refusée.",
    no_account="Il n'y a pas de compte pour vous ici. Contactez votre administrateur.",
    account_ended="Votre compte a pris fin ou est suspendu. Contactez votre administrateur.",
    internal_error="Une erreur s'est produite. Réessayez plus tard. L'identifiant de la requête "
    "est {id}.",
    scopes={
        OauthScope.OPENID: "Savoir qui vous êtes",
        OauthScope.PROFILE: "Voir votre nom et votre nom d'utilisateur",
        OauthScope.EMAIL: "Voir votre adresse électronique",
        OauthScope.READ: "Lire vos messages et vos paramètres",
        OauthScope.MAIL_READ: "Lire vos messages",
        OauthScope.MAIL: "Lire, modifier et supprimer vos messages",
        OauthScope.SUBMIT: "Envoyer des messages en votre nom",
        OauthScope.SETTINGS: "Modifier vos paramètres, par exemple filtres et transferts",
        OauthScope.IMAP: "Lire, modifier et supprimer vos messages par IMAP",
        OauthScope.POP3: "Lire et supprimer vos messages par POP3",
        OauthScope.SMTP: "Envoyer des messages en votre nom par SMTP",
        OauthScope.SIEVE: "Modifier vos scripts Sieve",
        OauthScope.DOMAIN_ADMIN: "Administrer vos domaines et votre compte avec tous vos droits",
    },
)

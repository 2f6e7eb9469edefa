"""Texts of the OAuth pages in Italian, Dutch and Portuguese."""

from graph.oauth.texts.page_texts import OauthPageTexts
from models.oauth.tables import OauthScope

ITALIAN = OauthPageTexts(
    language="it",
    sign_in_title="Accesso",
    sign_in_for="Acceda per continuare su {client}.",
    username="Nome utente o indirizzo e-mail",
    password="Password",  # noqa: S106 - a label
    sign_in="Accedi",
    wrong_password="Il nome utente o la password non è corretta.",  # noqa: S106 - a message
    too_many_attempts="Ci sono stati troppi tentativi. Riprovi tra {minutes} minuti.",
    second_factor_title="Secondo fattore",
    code="Codice",
    code_hint="Inserisca il codice della sua app di autenticazione o un codice di recupero.",
    use_security_key="Usa una chiave di sicurezza",
    no_script_for_key="Una chiave di sicurezza richiede JavaScript. In alternativa inserisca un "
    "codice di recupero.",
    verify="Continua",
    wrong_code="Il codice non è corretto.",
    consent_title="Consentire l'accesso?",
    consent_intro="{client} chiede l'accesso al suo account:",
    signed_in_as="Ha effettuato l'accesso come {user}.",
    redirect_hint="Dopo passerà a {host}.",
    allow="Consenti",
    deny="Rifiuta",
    other_account="Usa un altro account",
    error_title="Non funziona",
    unknown_client="L'applicazione non è conosciuta qui o usa un indirizzo errato. Chieda al suo "
    "sviluppatore.",
    page_expired="Questa pagina è già stata usata o è scaduta. Torni all'applicazione e ricominci.",
    no_cookie="Il suo browser non ha inviato alcun cookie. Consenta i cookie per questo sito, "
    "torni all'applicazione e ricominci.",
    foreign_origin="Il modulo è stato inviato da un altro sito. Torni all'applicazione e "
    "ricominci.",
    password_change_required="Prima deve impostare una nuova password. Poi ricominci "  # noqa: S106
    "nell'applicazione.",
    access_not_allowed="Il suo account non può essere usato con questa applicazione. Chieda al suo "
    "amministratore.",
    too_many_grants="Il suo account dà accesso a troppe applicazioni. Revochi un accesso e "
    "ricominci.",
    too_large="La richiesta è troppo grande.",
    sign_in_at_organization="Accedi con la tua organizzazione",
    enter_address="Inserisci il tuo indirizzo e-mail completo per accedere con la tua "
    "organizzazione.",
    no_organization="Il dominio di questo indirizzo non ha l'accesso di un'organizzazione.",
    organization_title="La tua organizzazione",
    organization_hint="Accedi su {host} e poi torni qui.",
    organization_failed="L'accesso alla tua organizzazione non è riuscito: {reason} Chiedi al "
    "tuo amministratore.",
    organization_denied="L'accesso alla tua organizzazione è stato negato.",
    no_account="Qui non c'è un account per te. Chiedi al tuo amministratore.",
    account_ended="Il tuo account è terminato o sospeso. Chiedi al tuo amministratore.",
    internal_error="Si è verificato un errore. Riprovi più tardi. L'identificativo della richiesta "
    "è {id}.",
    scopes={
        OauthScope.OPENID: "Sapere chi è lei",
        OauthScope.PROFILE: "Vedere il suo nome e nome utente",
        OauthScope.EMAIL: "Vedere il suo indirizzo e-mail",
        OauthScope.READ: "Leggere la sua posta e le sue impostazioni",
        OauthScope.MAIL_READ: "Leggere la sua posta",
        OauthScope.MAIL: "Leggere, modificare ed eliminare la sua posta",
        OauthScope.SUBMIT: "Inviare posta a suo nome",
        OauthScope.SETTINGS: "Modificare le sue impostazioni, come filtri e inoltri",
        OauthScope.IMAP: "Leggere, modificare ed eliminare la sua posta tramite IMAP",
        OauthScope.POP3: "Leggere ed eliminare la sua posta tramite POP3",
        OauthScope.SMTP: "Inviare posta a suo nome tramite SMTP",
        OauthScope.SIEVE: "Modificare i suoi script Sieve",
        OauthScope.DOMAIN_ADMIN: "Amministrare i suoi domini e il suo account con tutti i diritti",
    },
)
DUTCH = OauthPageTexts(
    language="nl",
    sign_in_title="Aanmelden",
    sign_in_for="Meld u aan om verder te gaan naar {client}.",
    username="Gebruikersnaam of e-mailadres",
    password="Wachtwoord",  # noqa: S106 - a label
    sign_in="Aanmelden",
    wrong_password="De gebruikersnaam of het wachtwoord is onjuist.",  # noqa: S106 - a message
    too_many_attempts="Er waren te veel pogingen. Probeer het over {minutes} minuten opnieuw.",
    second_factor_title="Tweede factor",
    code="Code",
    code_hint="Voer de code van uw authenticator-app of een herstelcode in.",
    use_security_key="Een beveiligingssleutel gebruiken",
    no_script_for_key="Een beveiligingssleutel vereist JavaScript. Voer anders een herstelcode in.",
    verify="Doorgaan",
    wrong_code="De code is onjuist.",
    consent_title="Toegang toestaan?",
    consent_intro="{client} vraagt toegang tot uw account:",
    signed_in_as="U bent aangemeld als {user}.",
    redirect_hint="Daarna gaat u naar {host}.",
    allow="Toestaan",
    deny="Weigeren",
    other_account="Een ander account gebruiken",
    error_title="Dit werkt niet",
    unknown_client="De toepassing is hier niet bekend of gebruikt een verkeerd adres. Vraag het "
    "aan de ontwikkelaar.",
    page_expired="Deze pagina is al gebruikt of verlopen. Ga terug naar de toepassing en begin "
    "opnieuw.",
    no_cookie="Uw browser heeft geen cookie gestuurd. Sta cookies toe voor deze site, ga terug "
    "naar de toepassing en begin opnieuw.",
    foreign_origin="Het formulier is door een andere site verstuurd. Ga terug naar de toepassing "
    "en begin opnieuw.",
    password_change_required="U moet eerst een nieuw wachtwoord instellen. Begin daarna "  # noqa: S106
    "opnieuw in de toepassing.",
    access_not_allowed="Uw account kan niet met deze toepassing worden gebruikt. Vraag het aan uw "
    "beheerder.",
    too_many_grants="Uw account geeft te veel toepassingen toegang. Trek een toegang in en begin "
    "opnieuw.",
    too_large="De aanvraag is te groot.",
    sign_in_at_organization="Aanmelden met uw organisatie",
    enter_address="Voer uw volledige e-mailadres in om u met uw organisatie aan te melden.",
    no_organization="Het domein van dit adres heeft geen aanmelding van een organisatie.",
    organization_title="Uw organisatie",
    organization_hint="U meldt zich aan bij {host} en komt daarna terug.",
    organization_failed="Het aanmelden bij uw organisatie is mislukt: {reason} Vraag het uw "
    "beheerder.",
    organization_denied="Het aanmelden bij uw organisatie is geweigerd.",
    no_account="Er is hier geen account voor u. Vraag het uw beheerder.",
    account_ended="Uw account is beëindigd of geblokkeerd. Vraag het uw beheerder.",
    internal_error="Er is een fout opgetreden. Probeer het later opnieuw. Het kenmerk van de "
    "aanvraag is {id}.",
    scopes={
        OauthScope.OPENID: "Weten wie u bent",
        OauthScope.PROFILE: "Uw naam en gebruikersnaam zien",
        OauthScope.EMAIL: "Uw e-mailadres zien",
        OauthScope.READ: "Uw e-mail en instellingen lezen",
        OauthScope.MAIL_READ: "Uw e-mail lezen",
        OauthScope.MAIL: "Uw e-mail lezen, wijzigen en verwijderen",
        OauthScope.SUBMIT: "E-mail namens u verzenden",
        OauthScope.SETTINGS: "Uw instellingen wijzigen, zoals filters en doorsturen",
        OauthScope.IMAP: "Uw e-mail via IMAP lezen, wijzigen en verwijderen",
        OauthScope.POP3: "Uw e-mail via POP3 lezen en verwijderen",
        OauthScope.SMTP: "E-mail namens u via SMTP verzenden",
        OauthScope.SIEVE: "Uw Sieve-scripts wijzigen",
        OauthScope.DOMAIN_ADMIN: "Uw domeinen en uw account beheren met al uw rechten",
    },
)
PORTUGUESE = OauthPageTexts(
    language="pt",
    sign_in_title="Iniciar sessão",
    sign_in_for="Inicie sessão para continuar para {client}.",
    username="Nome de utilizador ou endereço de e-mail",
    password="Palavra-passe",  # noqa: S106 - a label
    sign_in="Iniciar sessão",
    wrong_password="O nome de utilizador ou a palavra-passe está errado.",  # noqa: S106
    too_many_attempts="Houve demasiadas tentativas. Tente novamente dentro de {minutes} minutos.",
    second_factor_title="Segundo fator",
    code="Código",
    code_hint="Introduza o código da sua aplicação de autenticação ou um código de recuperação.",
    use_security_key="Usar uma chave de segurança",
    no_script_for_key="Uma chave de segurança requer JavaScript. Sem ele, introduza um código de "
    "recuperação.",
    verify="Continuar",
    wrong_code="O código está errado.",
    consent_title="Permitir o acesso?",
    consent_intro="{client} pede acesso à sua conta:",
    signed_in_as="Tem sessão iniciada como {user}.",
    redirect_hint="Depois será encaminhado para {host}.",
    allow="Permitir",
    deny="Recusar",
    other_account="Usar outra conta",
    error_title="Isto não funciona",
    unknown_client="A aplicação não é conhecida aqui ou usa um endereço errado. Pergunte ao seu "
    "programador.",
    page_expired="Esta página já foi usada ou expirou. Volte à aplicação e comece de novo.",
    no_cookie="O seu navegador não enviou nenhum cookie. Permita cookies para este site, volte à "
    "aplicação e comece de novo.",
    foreign_origin="O formulário foi enviado por outro site. Volte à aplicação e comece de novo.",
    password_change_required="Primeiro tem de definir uma nova palavra-passe. Depois "  # noqa: S106
    "comece de novo na aplicação.",
    access_not_allowed="A sua conta não pode ser usada com esta aplicação. Pergunte ao seu "
    "administrador.",
    too_many_grants="A sua conta dá acesso a demasiadas aplicações. Revogue um acesso e comece de "
    "novo.",
    too_large="O pedido é demasiado grande.",
    sign_in_at_organization="Entrar com a sua organização",
    enter_address="Introduza o seu endereço de email completo para entrar com a sua organização.",
    no_organization="O domínio deste endereço não tem início de sessão de uma organização.",
    organization_title="A sua organização",
    organization_hint="Inicia sessão em {host} e depois volta aqui.",
    organization_failed="O início de sessão na sua organização falhou: {reason} Contacte o seu "
    "administrador.",
    organization_denied="O início de sessão na sua organização foi recusado.",
    no_account="Não existe aqui uma conta para si. Contacte o seu administrador.",
    account_ended="A sua conta terminou ou está suspensa. Contacte o seu administrador.",
    internal_error="Ocorreu um erro. Tente mais tarde. O identificador do pedido é {id}.",
    scopes={
        OauthScope.OPENID: "Saber quem é",
        OauthScope.PROFILE: "Ver o seu nome e nome de utilizador",
        OauthScope.EMAIL: "Ver o seu endereço de e-mail",
        OauthScope.READ: "Ler o seu correio e as suas definições",
        OauthScope.MAIL_READ: "Ler o seu correio",
        OauthScope.MAIL: "Ler, alterar e eliminar o seu correio",
        OauthScope.SUBMIT: "Enviar correio em seu nome",
        OauthScope.SETTINGS: "Alterar as suas definições, como filtros e reencaminhamentos",
        OauthScope.IMAP: "Ler, alterar e eliminar o seu correio por IMAP",
        OauthScope.POP3: "Ler e eliminar o seu correio por POP3",
        OauthScope.SMTP: "Enviar correio em seu nome por SMTP",
        OauthScope.SIEVE: "Alterar os seus scripts Sieve",
        OauthScope.DOMAIN_ADMIN: "Administrar os seus domínios e a sua conta com todos os direitos",
    },
)

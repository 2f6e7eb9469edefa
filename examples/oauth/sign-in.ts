// openid-client: signs a user in from the command line. Without CLIENT_ID the program registers
// itself, which the server must allow. Prints one line of JSON for each step.

import { createServer } from 'node:http';
import * as oidc from 'openid-client';

const issuer = new URL(process.env.ISSUER ?? 'http://127.0.0.1:8000');
const { CLIENT_ID, CLIENT_SECRET } = process.env;
const scope = process.env.SCOPE ?? 'openid profile email mail_read';
const { PROMPT, MAX_AGE } = process.env; // such as "login", and seconds since the last sign-in
const isLoopback = issuer.protocol === 'http:'; // a test server on this machine
const options: oidc.DiscoveryRequestOptions = {
  execute: [oidc.enableNonRepudiationChecks, ...(isLoopback ? [oidc.allowInsecureRequests] : [])],
};

function show(step: string, values: object): void {
  console.log(JSON.stringify({ step, ...values }));
}

// The address that the browser comes back to. Any port of a registered loopback URI is allowed.
const { promise: callback, resolve: receive } = Promise.withResolvers<URL>();
const listener = createServer((request, response) => {
  response.end('Signed in. You can close this page.');
  receive(new URL(request.url ?? '/', redirectUri));
});
await new Promise<void>((done) => listener.listen(0, '127.0.0.1', done));
const address = listener.address();
const port = typeof address === 'object' ? address?.port : undefined;
const redirectUri = `http://127.0.0.1:${port}/callback`;

const metadata = {
  client_name: 'Command line',
  redirect_uris: ['http://127.0.0.1/callback'],
  grant_types: ['authorization_code', 'refresh_token'],
  token_endpoint_auth_method: 'none',
  scope,
};
const config = CLIENT_ID
  ? await oidc.discovery(
      issuer,
      CLIENT_ID,
      CLIENT_SECRET,
      CLIENT_SECRET ? oidc.ClientSecretBasic(CLIENT_SECRET) : oidc.None(),
      options,
    )
  : await oidc.dynamicClientRegistration(issuer, metadata, oidc.None(), options);

const verifier = oidc.randomPKCECodeVerifier();
const state = oidc.randomState();
const nonce = oidc.randomNonce();
const url = oidc.buildAuthorizationUrl(config, {
  redirect_uri: redirectUri,
  scope,
  code_challenge: await oidc.calculatePKCECodeChallenge(verifier),
  code_challenge_method: 'S256',
  state,
  nonce,
  ...(PROMPT ? { prompt: PROMPT } : {}),
  ...(MAX_AGE ? { max_age: MAX_AGE } : {}),
});
show('open', { url });

const checks = {
  pkceCodeVerifier: verifier,
  expectedState: state,
  expectedNonce: nonce,
  ...(MAX_AGE ? { maxAge: Number(MAX_AGE) } : {}), // requires the claim auth_time
};
const tokens = await oidc.authorizationCodeGrant(config, await callback, checks);
listener.close();
const claims = tokens.claims();
show('signed in', { claims, scope: tokens.scope });
show('userinfo', await oidc.fetchUserInfo(config, tokens.access_token, claims?.sub ?? ''));

const refreshed = await oidc.refreshTokenGrant(config, tokens.refresh_token ?? '');
show('refreshed', { isNew: refreshed.refresh_token !== tokens.refresh_token });

if (CLIENT_SECRET) {
  // Only a client with a secret can introspect its tokens.
  show('introspection', await oidc.tokenIntrospection(config, refreshed.access_token));
}
await oidc.tokenRevocation(config, refreshed.refresh_token ?? '');
const problem = await oidc
  .refreshTokenGrant(config, refreshed.refresh_token ?? '')
  .catch((cause: unknown) => cause);
show('revoked', { error: problem instanceof oidc.ResponseBodyError ? problem.error : null });

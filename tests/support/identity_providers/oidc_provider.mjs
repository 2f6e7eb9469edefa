// An OpenID provider made with the npm package oidc-provider, on a free port of loopback.
// `node oidc_provider.mjs CONFIG` prints the issuer and runs until its standard input is closed.
// CONFIG is JSON: {client, accounts, alwaysIssuesRefreshTokens}. `client` is the metadata of the
// one client, and `accounts` has the claims of each account by its `sub`. `POST /control/NAME` with JSON runs a command of `commands`.

import { generateKeyPairSync, randomUUID } from 'node:crypto';
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { json } from 'node:stream/consumers';
import { pathToFileURL } from 'node:url';

const examples = createRequire(new URL('../../../examples/package.json', import.meta.url));
const load = (name) => import(pathToFileURL(examples.resolve(name)));
const { Provider } = await load('oidc-provider');
const { default: MemoryAdapter } = await load('oidc-provider/lib/adapters/memory_adapter.js');

const LOGOUT_TIMEOUT = 30_000; // ms; the default of 2.5 s is too short on a busy machine
const SCOPE_CLAIMS = {
  email: ['email', 'email_verified'],
  profile: ['name', 'given_name', 'family_name', 'preferred_username', 'locale', 'groups'],
  groups: ['groups'],
};

const config = JSON.parse(process.argv[2]);
const accounts = new Map(Object.entries(config.accounts));
let keys = [newKey()];
let provider;
let handleRequest;
const logoutDeliveries = [];

function newKey() {
  const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
  return { ...privateKey.export({ format: 'jwk' }), use: 'sig', alg: 'RS256', kid: randomUUID() };
}

// The claims that the scope `openid` contains: those of the accounts that no other scope contains.
function unscopedClaims() {
  const scoped = new Set(Object.values(SCOPE_CLAIMS).flat());
  const names = [...accounts.values()].flatMap((claims) => Object.keys(claims));
  return ['sub', ...new Set(names.filter((name) => !scoped.has(name)))];
}

function findAccount(_context, id) {
  if (!accounts.has(id)) return undefined;
  return { accountId: id, claims: () => ({ sub: id, ...accounts.get(id) }) };
}

// Sends a logout token without the package's block of loopback addresses, and records it.
async function postLogoutToken(url, { body, headers, method, redirect }) {
  const delivery = { token: body.get('logout_token'), status: null };
  logoutDeliveries.push(delivery);
  const signal = AbortSignal.timeout(LOGOUT_TIMEOUT);
  const response = await fetch(url, { body, headers, method, redirect, signal });
  delivery.status = response.status;
  return response;
}

// The keys of a provider can't change, so this is also called after each change of the keys.
function startProvider() {
  provider = new Provider(issuer, {
    adapter: (model) => new MemoryAdapter(model), // all providers use the same storage
    claims: { openid: unscopedClaims(), ...SCOPE_CLAIMS },
    clients: [config.client],
    conformIdTokenClaims: false,
    cookies: { keys: ['test'] },
    features: { backchannelLogout: { enabled: true } },
    fetch: postLogoutToken,
    findAccount,
    issueRefreshToken: (_context, _client, code) =>
      config.alwaysIssuesRefreshTokens || code.scopes.has('offline_access'),
    jwks: { keys },
    pkce: { required: () => true },
    rotateRefreshToken: true,
  });
  handleRequest = provider.callback();
}

const commands = {
  'set-claims': ({ account, claims }) => accounts.set(account, claims),
  'delete-account': ({ account }) => accounts.delete(account),
  'rotate-keys': ({ publishOld }) => {
    keys = [newKey(), ...(publishOld ? keys : [])];
    startProvider();
  },
  'set-sid-in-logout-tokens': async ({ enabled }) => {
    const client = await provider.Client.find(config.client.client_id);
    client.backchannelLogoutSessionRequired = enabled;
  },
  'take-logout-deliveries': () => logoutDeliveries.splice(0),
};

async function runCommand(request, response) {
  const command = commands[request.url.slice('/control/'.length)];
  const result = await command(await json(request));
  response.setHeader('content-type', 'application/json');
  response.end(JSON.stringify(Array.isArray(result) ? result : null));
}

const server = createServer((request, response) =>
  (request.url.startsWith('/control/') ? runCommand : handleRequest)(request, response));
await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
const issuer = `http://127.0.0.1:${server.address().port}`;
startProvider();
console.log(issuer);
process.stdin.resume().on('end', () => process.exit());

// The token, where it is kept, and what the page itself asks the server.

import { page } from '../graph/static/examples.json';

const TOKEN = 'merganser:token';
const SIGNED_IN = 'merganser:signed-in'; // The token was made by this page, so signing out revokes it.

export const endpoint = new URL(document.getElementById('root').dataset.endpoint, location.href);

export function token() {
  return sessionStorage.getItem(TOKEN);
}

export function keep(value) {
  sessionStorage.setItem(TOKEN, value);
  sessionStorage.removeItem(SIGNED_IN);
}

export function forget() {
  sessionStorage.removeItem(TOKEN);
  sessionStorage.removeItem(SIGNED_IN);
}

// Takes the token out of `#token=…` and the fragment out of the address bar.
export function takeFromAddress() {
  const fragment = location.hash.slice(1);
  if (!fragment.startsWith('token=')) return false;
  history.replaceState(null, '', location.pathname + location.search);
  keep(decodeURIComponent(fragment.slice('token='.length)));
  return true;
}

export function bearer(value = token()) {
  return value ? { Authorization: `Bearer ${value}` } : {};
}

async function ask(query, variables, credential) {
  const response = await fetch(endpoint, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json', Accept: 'application/json', ...bearer(credential) },
    body: JSON.stringify({ query, variables }),
  });
  const { data, errors } = await response.json();
  const refused = response.status === 401 || errors?.[0].extensions?.code === 'UNAUTHENTICATED';
  if (errors) throw Object.assign(new Error(errors[0].message), { refused });
  return data;
}

// The user name, or the role where a key belongs to nobody. Forgets a token that is refused.
export async function whoAmI() {
  try {
    const { viewer } = await ask(page.whoAmI);
    if (viewer.role !== 'PUBLIC') return viewer.user?.username ?? viewer.role.toLowerCase();
  } catch (error) {
    if (!error.refused) throw error;
    forget();
    throw Object.assign(new Error("The server doesn't know this token."), { refused: true });
  }
  forget();
  throw Object.assign(new Error('The sign-in of this token lacks its second factor.'), {
    refused: true,
  });
}

function keepOwn(value) {
  keep(value);
  sessionStorage.setItem(SIGNED_IN, 'yes');
}

// Null, or the second factor that is missing: its methods, and the token that only proves it.
export async function signIn(u, p) {
  forget();
  const { authenticate } = await ask(page.signIn, { u, p });
  const { token: created, requiredTwoFactorMethods: methods, errors } = authenticate;
  if (!created) throw new Error(errors[0]?.message ?? 'Signing in did not give a token.');
  if (methods.length) return { methods, token: created };
  keepOwn(created);
  return null;
}

async function prove(factor, query, variables) {
  const [{ valid, errors }] = Object.values(await ask(query, variables, factor.token));
  if (!valid) throw new Error(errors[0]?.message ?? 'The second factor is wrong.');
  keepOwn(factor.token);
}

export async function proveByCode(factor, code) {
  await prove(factor, page.verifyCode, { code });
}

export async function proveByKey(factor) {
  const { webauthnChallenge } = await ask(page.keyChallenge, {}, factor.token);
  const { challenge, errors } = webauthnChallenge;
  if (!challenge) throw new Error(errors[0]?.message ?? 'The server gave no challenge.');
  const publicKey = PublicKeyCredential.parseRequestOptionsFromJSON(challenge);
  const credential = await navigator.credentials.get({ publicKey });
  await prove(factor, page.verifyKey, { response: credential.toJSON() });
}

// The sign-in is given up: its token must not wait for a second factor.
export function cancelSignIn(factor) {
  ask(page.signOut, {}, factor.token).catch(() => {}); // it ends after ten minutes anyway
}

export async function signOut() {
  const mine = sessionStorage.getItem(SIGNED_IN);
  try {
    if (mine) await ask(page.signOut);
  } finally {
    forget();
  }
}

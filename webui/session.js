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

export function bearer() {
  return token() ? { Authorization: `Bearer ${token()}` } : {};
}

async function ask(query, variables) {
  const response = await fetch(endpoint, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json', Accept: 'application/json', ...bearer() },
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
    return viewer.user?.username ?? viewer.role.toLowerCase();
  } catch (error) {
    if (!error.refused) throw error;
    forget();
    throw Object.assign(new Error('This token is not known here.'), { refused: true });
  }
}

export async function signIn(u, p) {
  forget();
  const { authenticate } = await ask(page.signIn, { u, p });
  if (authenticate.token) {
    keep(authenticate.token);
    sessionStorage.setItem(SIGNED_IN, 'yes');
    return;
  }
  throw new Error(authenticate.errors[0]?.message ?? 'Signing in did not give a token.');
}

export async function signOut() {
  const mine = sessionStorage.getItem(SIGNED_IN);
  try {
    if (mine) await ask(page.signOut);
  } finally {
    forget();
  }
}

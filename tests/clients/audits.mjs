// The audits of graphql-http, and a look at every answer that they get but do not look into.

import { createRequire } from 'node:module';

const examples = createRequire(new URL('../../examples/package.json', import.meta.url));
const { serverAudits } = examples('graphql-http');

const MEDIA = /^application\/(graphql-response\+)?json; charset=utf-8$/;

// What is wrong with an answer, in words.
function faults(answer, body) {
  const found = [];
  const has = (name) => answer.headers.has(name) || found.push(`${name} is missing`);
  has('x-request-id');
  if (answer.headers.get('x-content-type-options') !== 'nosniff') found.push('it may be sniffed');
  if (answer.headers.get('cache-control') !== 'no-store') found.push('it may be kept');
  if (!MEDIA.test(answer.headers.get('content-type') ?? '')) found.push('it is not typed as JSON');
  if (answer.status === 405) has('allow');
  let content;
  try {
    content = JSON.parse(body);
  } catch {
    return [...found, 'it is not JSON'];
  }
  const { errors = [], data } = content;
  if (answer.status >= 400 && !errors.length) found.push('it says no error');
  if (answer.status >= 400 && data !== undefined) found.push('it has data beside its status');
  for (const { message, extensions } of errors) {
    if (!message || !/^[A-Z_]+$/.test(extensions?.code)) found.push(`without a code: ${message}`);
  }
  return found;
}

// Runs all audits with these headers beside their own.
export async function audit(endpoint, headers) {
  const strange = [];
  let answers = 0;
  async function fetchFn(url, init = {}) {
    const answer = await fetch(url, { ...init, headers: { ...init.headers, ...headers } });
    const body = await answer.clone().text();
    answers += 1;
    const wrong = faults(answer, body);
    if (wrong.length) strange.push({ wrong, status: answer.status, body: body.slice(0, 300) });
    return answer;
  }
  const results = await Promise.all(serverAudits({ url: endpoint, fetchFn }).map(({ fn }) => fn()));
  const found = results.map(({ id, name, status, reason }) => ({ id, name, status, reason }));
  return { audits: found, answers, strange };
}

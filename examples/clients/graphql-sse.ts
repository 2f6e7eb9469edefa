// graphql-sse: a request for each operation ("distinct connections mode"), for networks that let
// no WebSocket pass.

import { createClient, type Client as Streams } from 'graphql-sse';
import { over } from './streaming.ts';
import { type Client, type Place, showIfMain } from './tour.ts';

export function streams({ endpoint, key, fetch }: Place): Streams {
  return createClient({
    url: endpoint,
    headers: { Authorization: `Bearer ${key}` },
    ...(fetch ? { fetchFn: fetch } : {}),
  });
}

export const make = (place: Place): Client => over(streams(place));

await showIfMain(import.meta.filename, make);

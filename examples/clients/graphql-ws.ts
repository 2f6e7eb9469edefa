// graphql-ws: everything over one WebSocket.

import { createClient, type Client as Socket } from 'graphql-ws';
import { over } from './streaming.ts';
import { type Client, type Place, showIfMain } from './tour.ts';

const FORBIDDEN = 4403; // the credential was refused, or has ended: to try it again is no use

// Opens with the first operation, and again when the line was cut.
export function socket({ endpoint, key }: Place): Socket {
  return createClient({
    url: endpoint.replace(/^http/, 'ws'),
    connectionParams: { Authorization: `Bearer ${key}` },
    shouldRetry: (cause) => (cause as CloseEvent).code !== FORBIDDEN,
  });
}

export const make = (place: Place): Client => over(socket(place));

await showIfMain(import.meta.filename, make);

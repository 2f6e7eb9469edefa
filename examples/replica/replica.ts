// Keeps a replica in step with its account: reads the state, follows what happens, and goes on
// from its cursor after every break.

import { setTimeout as sleep } from 'node:timers/promises';
import {
  type ChangeType,
  ReplicaCatchUpDocument,
  ReplicaFollowDocument,
  type ReplicaBatchFragment as Batch,
  ReplicaFoldersDocument,
  type ReplicaFolderFragment as Folder,
  ReplicaMessagesDocument,
  type ResyncReason,
} from '../generated/graphql/graphql.ts';
import type { File } from './file.ts';
import { crowded, finalReason, type Line, said } from './line.ts';

type Event = Batch['events'][number];

// One line of what is told: the cursor, what happened, and to what.
export type Tell = (cursor: string, kind: string, ...about: (string | number | null)[]) => void;

const TYPES: readonly ChangeType[] = [
  'MAILBOX_CREATED',
  'MAILBOX_UPDATED',
  'MAILBOX_RENAMED',
  'MAILBOX_DELETED',
  'MESSAGE_ADDED',
  'MESSAGE_RECEIVED',
  'MESSAGE_UPDATED',
  'MESSAGE_MOVED',
  'MESSAGE_PURGED',
  'MESSAGE_DELETED',
  'MESSAGE_RESTORED',
];
const LONGEST = 60; // times the shortest wait

// The replica can never go on: it is of another account, or the credential is no good.
export class Hopeless extends Error {}

// The stream does not go on from our cursor.
class Resync extends Error {
  readonly reason: ResyncReason;

  constructor(reason: ResyncReason) {
    super(reason);
    this.reason = reason;
  }
}

export class Replica {
  readonly #file: File;
  readonly #line: Line;
  readonly #tell: Tell;
  readonly #stop: AbortSignal;

  constructor(file: File, line: Line, tell: Tell, stop: AbortSignal) {
    this.#file = file;
    this.#line = line;
    this.#tell = tell;
    this.#stop = stop;
  }

  // Until `stop`. The first wait after a failure is about `least` ms; each one more doubles it.
  async run(least: number, note: (text: string) => void): Promise<void> {
    const { cursor } = this.#file;
    if (cursor !== null) this.#tellCounts(cursor, 'RESUMED');
    let due: ResyncReason | 'NEW' | null = cursor === null ? 'NEW' : null;
    let failures = 0;
    while (!this.#stop.aborted) {
      const began = performance.now();
      try {
        // Too far behind for a subscription is not too far for the query.
        if (due === 'OVERFLOW') await this.#catchUp();
        else if (due) await this.#load(due);
        due = null;
        await this.#follow();
        throw new Error('the stream has ended');
      } catch (cause) {
        if (this.#stop.aborted) return;
        if (cause instanceof Hopeless) throw cause;
        if (cause instanceof Resync) {
          due = cause.reason;
          continue;
        }
        const hopeless = finalReason(cause);
        if (hopeless) throw new Hopeless(hopeless, { cause });
        const longest = LONGEST * least;
        if (performance.now() - began > longest) failures = 0; // it went well for a while
        const most = crowded(cause) ? longest : Math.min(longest, least * 2 ** failures);
        // By chance, so that not all clients of a server come back in the same moment.
        const wait = most / 2 + (Math.random() * most) / 2;
        failures += 1;
        note(`${said(cause)}: again in ${Math.round(wait)} ms`);
        await sleep(wait, undefined, { signal: this.#stop }).catch(() => {});
      }
    }
  }

  // Reads the whole state. It takes the place of what was there at once, when all of it is read.
  async #load(why: string): Promise<void> {
    let begun = '';
    await this.#file.whole(async () => {
      this.#file.clear();
      const folders: Folder[] = [];
      let after: string | null | undefined;
      do {
        const { viewer } = await this.#line.ask(ReplicaFoldersDocument, { after }, this.#stop);
        if (!viewer.user) throw new Hopeless('the credential belongs to no account');
        const { cursor, mailboxes, sharedMailboxes } = viewer.user;
        if (!mailboxes || !sharedMailboxes) throw new Hopeless('the credential may not read mail');
        if (!begun) folders.push(...mailboxes.nodes);
        begun ||= cursor; // the first: what happens while we read is heard again
        folders.push(...sharedMailboxes.nodes);
        const { hasNextPage, endCursor } = sharedMailboxes.pageInfo;
        after = hasNextPage ? endCursor : null;
      } while (after);
      for (const folder of folders) await this.#putFolder(folder);
      this.#file.cursor = begun;
    });
    this.#tellCounts(begun, 'STATE', why);
  }

  #tellCounts(cursor: string, kind: string, ...about: string[]): void {
    const { folders, messages } = this.#file.counts;
    this.#tell(cursor, kind, ...about, `${folders} folders`, `${messages} messages`);
  }

  async #catchUp(): Promise<void> {
    for (let more = true; more; ) {
      const variables = { after: this.#cursor(), types: TYPES };
      const { changes } = await this.#line.ask(ReplicaCatchUpDocument, variables, this.#stop);
      if (!changes) throw new Hopeless('the credential may not read changes');
      await this.#take(changes);
      more = changes.hasMore;
    }
  }

  async #follow(): Promise<void> {
    const variables = { after: this.#cursor(), types: TYPES };
    await this.#line.each(ReplicaFollowDocument, variables, ({ changes }) => this.#take(changes));
  }

  #cursor(): string {
    const { cursor } = this.#file;
    if (cursor === null) throw new Error('there is no state to go on from');
    return cursor;
  }

  // All events of a batch and its cursor, or none of them: then it comes again.
  async #take(batch: Batch): Promise<void> {
    const resync = batch.events.find((event) => event.__typename === 'ResyncChange');
    if (resync) throw new Resync(resync.reason);
    const told: Parameters<Tell>[] = [];
    await this.#file.whole(async () => {
      for (const event of batch.events) told.push([event.cursor, event.type, ...(await this.#apply(event))]);
      this.#file.cursor = batch.cursor;
    });
    // Also where it has moved on and there is nothing to tell.
    if (told.at(-1)?.[0] !== batch.cursor) told.push([batch.cursor, '-']);
    for (const line of told) this.#tell(...line);
  }

  // An event says what to look at, and comes with what that is by now. So it makes no difference
  // how often an event comes, and how many changes have become one.
  async #apply(event: Event): Promise<(string | number | null)[]> {
    if (event.__typename === 'MailboxChange') {
      const before = this.#file.pathOf(event.mailboxId);
      if (event.mailbox) await this.#putFolder(event.mailbox);
      else this.#file.dropFolder(event.mailboxId);
      return [this.#file.pathOf(event.mailboxId) ?? before];
    }
    if (event.__typename === 'MessageChange') {
      const before = this.#file.whereOf(event.messageId);
      if (event.message) this.#file.putMessage(event.message);
      else this.#file.dropMessage(event.messageId);
      const where = this.#file.whereOf(event.messageId) ?? before;
      return where ? [where.path, where.uid, where.subject] : [];
    }
    return [];
  }

  // Of a folder that is new to us there may be messages of which no event will tell: those of
  // one that others have just shared.
  async #putFolder(folder: Folder): Promise<void> {
    if (!folder.myRights.includes('READ')) return this.#file.dropFolder(folder.id);
    const known = this.#file.pathOf(folder.id) !== null;
    this.#file.putFolder(folder);
    if (known || !folder.messageCount) return;
    let after: string | null | undefined;
    do {
      const variables = { mailbox: folder.id, after };
      const { mailbox } = await this.#line.ask(ReplicaMessagesDocument, variables, this.#stop);
      if (!mailbox?.messages) return; // gone meanwhile: the event is on its way
      mailbox.messages.nodes.forEach((message) => this.#file.putMessage(message));
      const { hasNextPage, endCursor } = mailbox.messages.pageInfo;
      after = hasNextPage ? endCursor : null;
    } while (after);
  }
}

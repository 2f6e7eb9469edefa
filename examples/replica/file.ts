// The replica on disk: one SQLite file, in which the cursor is always that of the state beside it.

import { DatabaseSync } from 'node:sqlite';
import type {
  ReplicaFolderFragment as Folder,
  ReplicaMessageFragment as Message,
} from '../generated/graphql/graphql.ts';

const FORMAT = 1;

// Counters are counted, not kept: so they agree with the messages at every cursor. Paths are not
// unique: two folders that change names have the same one between two events.
const TABLES = `
  CREATE TABLE place (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    cursor TEXT NOT NULL
  ) STRICT;
  CREATE TABLE folders (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    path TEXT NOT NULL,
    special_use TEXT,
    uid_validity INTEGER NOT NULL
  ) STRICT;
  CREATE TABLE messages (
    id TEXT PRIMARY KEY,
    folder_id TEXT NOT NULL,
    uid INTEGER NOT NULL,
    subject TEXT NOT NULL,
    flags TEXT NOT NULL, -- a list, as JSON
    seen INTEGER NOT NULL
  ) STRICT;
  CREATE INDEX messages_of_folders ON messages (folder_id, uid, seen);
  CREATE VIEW counters AS
    SELECT folders.id, count(messages.id) AS total, count(messages.id) FILTER (WHERE NOT seen) AS unseen
    FROM folders LEFT JOIN messages ON folder_id = folders.id GROUP BY folders.id;
  PRAGMA user_version = ${FORMAT};
`;

// Where a message lies, to show it.
export interface Where {
  readonly path: string | null; // null: its folder is not told of yet
  readonly uid: number;
  readonly subject: string;
}

export class File {
  readonly #db: DatabaseSync;

  constructor(path: string) {
    this.#db = new DatabaseSync(path);
    // Others may read while we write; what is committed outlives a power cut.
    this.#db.exec('PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL');
    const { user_version: format } = this.#one('PRAGMA user_version') ?? {};
    if (format === 0) this.#db.exec(`BEGIN; ${TABLES} COMMIT`);
    else if (format !== FORMAT) throw new Error(`${path} has another format: remove it`);
  }

  // All that `work` writes, or nothing of it, also where the program is killed in between.
  async whole(work: () => Promise<void>): Promise<void> {
    this.#db.exec('BEGIN IMMEDIATE');
    try {
      await work();
      this.#db.exec('COMMIT');
    } catch (cause) {
      if (this.#db.isTransaction) this.#db.exec('ROLLBACK'); // SQLite may have done so by itself
      throw cause;
    }
  }

  get cursor(): string | null {
    return (this.#one('SELECT cursor FROM place')?.cursor as string | undefined) ?? null;
  }

  set cursor(cursor: string) {
    this.#run('INSERT OR REPLACE INTO place VALUES (1, ?)', cursor);
  }

  get counts(): { folders: number; messages: number } {
    const counted = 'SELECT (SELECT count(*) FROM folders) AS folders, count(*) AS messages FROM messages';
    return this.#one(counted) as { folders: number; messages: number };
  }

  clear(): void {
    this.#db.exec('DELETE FROM place; DELETE FROM folders; DELETE FROM messages');
  }

  pathOf(folderId: string): string | null {
    const found = this.#one('SELECT path FROM folders WHERE id = ?', folderId);
    return (found?.path as string | undefined) ?? null;
  }

  whereOf(messageId: string): Where | null {
    const asked = `SELECT path, uid, subject FROM messages
      LEFT JOIN folders ON folders.id = folder_id WHERE messages.id = ?`;
    return (this.#one(asked, messageId) as Where | undefined) ?? null;
  }

  putFolder({ id, owner, path, specialUse, uidValidity }: Folder): void {
    this.#run(
      'INSERT OR REPLACE INTO folders VALUES (?, ?, ?, ?, ?)',
      id,
      owner.username,
      path,
      specialUse ?? null,
      uidValidity,
    );
  }

  dropFolder(id: string): void {
    this.#run('DELETE FROM messages WHERE folder_id = ?', id);
    this.#run('DELETE FROM folders WHERE id = ?', id);
  }

  putMessage({ id, imap: { uid, flags }, subject, mailbox }: Message): void {
    this.#run(
      'INSERT OR REPLACE INTO messages VALUES (?, ?, ?, ?, ?, ?)',
      id,
      mailbox.id,
      uid,
      subject ?? '', // null: only administrators of other people's mail get no subject
      JSON.stringify(flags),
      Number(flags.includes('\\Seen')),
    );
  }

  dropMessage(id: string): void {
    this.#run('DELETE FROM messages WHERE id = ?', id);
  }

  close(): void {
    this.#db.close();
  }

  #one(sql: string, ...values: (string | number | null)[]) {
    return this.#db.prepare(sql).get(...values);
  }

  #run(sql: string, ...values: (string | number | null)[]): void {
    this.#db.prepare(sql).run(...values);
  }
}

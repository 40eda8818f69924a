/** Stand-ins for a server, without sockets: streams that give what a test wants and break where it wants. */
import { mkdtempSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { entryOf, modelDigest } from '../src/model.js';
import { Store } from '../src/store.js';

export const PATIENCE = { firstSeconds: 0.001, longestSeconds: 0.002, giveUpAfterSeconds: null };
export const quiet = () => {};

/** A store in a folder of its own, which goes when the test is over. @param {import('node:test').TestContext} t */
export async function openStore(t, folder = mkdtempSync(path.join(os.tmpdir(), 'fedstream-'))) {
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  const store = new Store(folder);
  await store.open();
  return Object.assign(store, { folder });
}

/** A model of three tensors, one of them empty. */
export function makeModel(fill = 1) {
  const specs = [['a', [2, 2]], ['none', [0]], ['b', [3]]].map(([name, shape]) => ({ name, dtype: 'F32', shape }));
  const values = [Buffer.alloc(16, fill), Buffer.alloc(0), Buffer.alloc(12, fill + 1)];
  const entries = specs.map((spec, at) => entryOf(spec, values[at]));
  return { specs, values, entries, digest: modelDigest(entries).sha256 };
}

/** A stream of these messages; an Error among them is thrown when its turn comes. */
export function streamOf(messages) {
  const left = [...messages];
  return {
    async read() {
      const message = left.shift() ?? null;
      if (message instanceof Error) throw message;
      return message;
    },
    cancel() {},
  };
}

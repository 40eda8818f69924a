/** What is kept on disk: updates count once their record is there and every byte is right, and go in the end. */
import assert from 'node:assert/strict';
import { readdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import test from 'node:test';
import { whenTheDiskCan } from '../src/durable.js';
import { makeModel, openStore } from './fakes.js';

const model = makeModel();
const BASE = 'b'.repeat(64);

async function keep(store, offerId, { entries, values } = model) {
  for (const [at, entry] of entries.entries()) await store.put(entry, values[at]);
  await store.record({ offerId, baseHex: BASE, entries, epochs: 3 });
}

test('update that was recorded is found by the next process, for its offer and base alone', async (t) => {
  const store = await openStore(t);
  await keep(store, 'offer/../1');
  const next = await openStore(t, store.folder);
  const found = await next.loadUpdate('offer/../1', BASE);
  assert.deepEqual([found.entries, found.epochs], [model.entries, 3]);
  assert.equal(await next.loadUpdate('offer/../1', 'c'.repeat(64)), null);
  assert.equal(await next.loadUpdate('offer 2', BASE), null);
});

test('update of which a tensor is damaged does not count', async (t) => {
  const store = await openStore(t);
  await keep(store, 'o');
  writeFileSync(path.join(store.folder, 'tensors', model.entries[0].sha256.toString('hex')), 'rot');
  assert.equal(await (await openStore(t, store.folder)).loadUpdate('o', BASE), null);
});

test('record that is cut short does not count', async (t) => {
  const store = await openStore(t);
  await keep(store, 'o');
  const [name] = readdirSync(path.join(store.folder, 'updates'));
  writeFileSync(path.join(store.folder, 'updates', name), '{"offerId": "o", "entr');
  assert.equal(await store.loadUpdate('o', BASE), null);
});

test('what no offer needs any more goes', async (t) => {
  const store = await openStore(t);
  const [older, base] = [makeModel(7), makeModel(20)];
  await keep(store, 'older', older);
  await keep(store, 'now');
  for (const [at, entry] of base.entries.entries()) await store.put(entry, base.values[at]);
  await store.keepOnly('now', base.entries);
  const kept = [...model.entries, ...base.entries].map((entry) => entry.sha256.toString('hex'));
  assert.deepEqual(readdirSync(path.join(store.folder, 'tensors')).sort(), [...new Set(kept)].sort());
  assert.equal(await store.loadUpdate('older', BASE), null);
  assert.ok(await store.loadUpdate('now', BASE));
});

test('update is asked for until it is known that the server has it', async (t) => {
  const store = await openStore(t);
  const leftOut = [{ name: 'a', sha256: model.entries[0].sha256, size: model.entries[0].size }];
  await store.record({ offerId: '1', uploadId: 'u1', entries: [], packed: { entries: [], leftOut } });
  await store.record({ offerId: '2', uploadId: 'u2', entries: [], packed: { entries: [], leftOut: [] } });
  await store.record({ offerId: '3', uploadId: 'u3', entries: [] });
  const next = await openStore(t, store.folder);
  assert.deepEqual((await next.unsettled()).map(({ uploadId }) => uploadId), ['u1']);
  await next.keepLeftOut('f', 'u1', leftOut);
  assert.deepEqual(await next.unsettled(), []);
});

test('part of a tensor is read as it stands in the whole', async (t) => {
  const store = await openStore(t);
  await keep(store, 'o');
  assert.deepEqual(await store.read(model.entries[2], 3, 4), model.values[2].subarray(3, 7));
  assert.deepEqual(await store.read(model.entries[2], 10, 100), model.values[2].subarray(10));
});

test('what is written waits for a full disk, and for nothing else', async () => {
  const refuse = (code) => { throw Object.assign(new Error(code), { code }); };
  const options = { waiting: 'waiting', log: () => {} };
  let tries = 0;
  const write = async () => {
    tries += 1;
    if (tries < 2) refuse('ENOSPC');
    return 'written';
  };
  assert.equal(await whenTheDiskCan(write, options), 'written');
  await assert.rejects(whenTheDiskCan(async () => refuse('EACCES'), options), { code: 'EACCES' });
  await assert.rejects(whenTheDiskCan(async () => refuse('ENOSPC'), { ...options, signal: AbortSignal.abort() }));
});

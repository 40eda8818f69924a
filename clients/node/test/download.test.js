/** Downloads: resumed at every offset, nothing asked for twice, nothing wrong kept. */
import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import path from 'node:path';
import test from 'node:test';
import { ChunkSize } from '../src/chunk_size.js';
import { fetchModel } from '../src/download.js';
import { Breach, Refusal, Trouble } from '../src/errors.js';
import { writeChunk, writeEntry } from '../src/wire.js';
import { makeModel, openStore, PATIENCE, quiet, streamOf } from './fakes.js';

const model = makeModel();

/** A server that gives chunks of `chunkBytes`, and in its first stream `limit` bytes only. */
function serverOf({ limit = Infinity, chunkBytes = 5, spoil = false } = {}) {
  const asked = [];
  return {
    asked,
    getManifest: () => streamOf([{ part: { entries: model.entries.map(writeEntry) } }]),
    readChunks({ tensors, read_offset: from }) {
      const body = Buffer.concat(tensors.map((index) => model.values[index]));
      const isFirst = asked.push({ tensors, from: Number(from) }) === 1;
      const end = isFirst ? Math.min(body.length, Number(from) + limit) : body.length;
      const messages = [];
      for (let at = Number(from); at < end; at += chunkBytes) {
        const data = Buffer.from(body.subarray(at, Math.min(at + chunkBytes, end)));
        if (spoil && isFirst) data[0] ^= 1;
        messages.push({ chunk: writeChunk(at, data) });
      }
      if (end < body.length) messages.push(new Trouble('cut'));
      return streamOf(messages);
    },
  };
}

async function fetchInto(store, connection) {
  const site = { connection, store, schema: model.specs, chunkSize: new ChunkSize(), patience: PATIENCE, log: quiet };
  const entries = await fetchModel(site, model.digest, 1 << 20);
  return Promise.all(entries.map((entry) => store.read(entry)));
}

for (let limit = 0; limit <= 28; limit += 1) {
  test(`download cut after ${limit} bytes goes on there`, async (t) => {
    const connection = serverOf({ limit });
    assert.deepEqual(await fetchInto(await openStore(t), connection), model.values);
    const sizeOf = (tensors) => tensors.reduce((sum, at) => sum + model.values[at].length, 0);
    const sent = connection.asked.reduce((sum, { tensors, from }) => sum + sizeOf(tensors) - from, 0);
    assert.equal(sent, limit < 28 ? 28 + (28 - limit) : 28); // the second stream begins where the first was cut
  });
}

test('bytes that a killed process left are not asked for again', async (t) => {
  const store = await openStore(t);
  await store.append(model.entries[0], model.values[0].subarray(0, 7));
  const connection = serverOf();
  assert.deepEqual(await fetchInto(store, connection), model.values);
  assert.deepEqual(connection.asked, [{ tensors: [0, 1, 2], from: 7 }]);
});

test('model that is here is not downloaded', async (t) => {
  const store = await openStore(t);
  await fetchInto(store, serverOf());
  const again = serverOf();
  assert.deepEqual(await fetchInto(await openStore(t, store.folder), again), model.values);
  assert.deepEqual(again.asked, []);
});

test('tensor that was damaged on disk is downloaded again, and no other', async (t) => {
  const store = await openStore(t);
  await fetchInto(store, serverOf());
  writeFileSync(path.join(store.folder, 'tensors', model.entries[2].sha256.toString('hex')), 'rot');
  const again = serverOf();
  assert.deepEqual(await fetchInto(await openStore(t, store.folder), again), model.values);
  assert.deepEqual(again.asked, [{ tensors: [2], from: 0 }]);
});

test('what does not match its digest is thrown away and asked for again', async (t) => {
  assert.deepEqual(await fetchInto(await openStore(t), serverOf({ spoil: true })), model.values);
});

test('longer rubbish than the tensor is thrown away', async (t) => {
  const store = await openStore(t);
  await store.append(model.entries[0], Buffer.alloc(40));
  assert.deepEqual(await fetchInto(store, serverOf()), model.values);
});

test('manifest that is not sound is asked for again, a few times', async (t) => {
  const unsound = { ...writeEntry(model.entries[0]), spec: { ...writeEntry(model.entries[0]).spec, dtype: 99 } };
  let asked = 0;
  const manifest = (entries) => streamOf([{ num_tensors: 3, part: { entries } }]);
  const lying = { getManifest: () => { asked += 1; return manifest([unsound]); } };
  await assert.rejects(fetchInto(await openStore(t), lying), Breach);
  assert.equal(asked, 4);
  const right = serverOf();
  const answers = [[unsound], model.entries.slice(1).map(writeEntry), model.entries.map(writeEntry)];
  const better = { ...right, getManifest: () => manifest(answers.shift()) };
  assert.deepEqual(await fetchInto(await openStore(t), better), model.values);
});

test('chunks that overlap are taken once, and one that reaches too far is an error of the network', async (t) => {
  const body = Buffer.concat([...model.values, Buffer.alloc(1)]);
  const [right, asked] = [serverOf(), []];
  const odd = { ...right, readChunks: (request) => {
    if (asked.push(request) > 1) return right.readChunks(request);
    const ranges = [[0, 10], [10, 10], [4, 20], [2, 6], [20, 29]];
    return streamOf(ranges.map(([from, to]) => ({ chunk: writeChunk(from, body.subarray(from, to)) })));
  } };
  assert.deepEqual(await fetchInto(await openStore(t), odd), model.values);
  assert.deepEqual(asked.map(({ read_offset }) => read_offset), ['0', '4']); // of the tensor that was not whole yet
});

test('model that the server does not publish is an error at once', async (t) => {
  const gone = { getManifest: () => streamOf([new Refusal('UNKNOWN_MODEL', 'no such model')]) };
  await assert.rejects(fetchInto(await openStore(t), gone), { reason: 'UNKNOWN_MODEL' });
});

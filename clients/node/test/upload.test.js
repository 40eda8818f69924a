/** Uploads: the window, resuming at `committed_size`, finishing, and giving up where the contract says so. */
import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import path from 'node:path';
import test from 'node:test';
import { ChunkSize } from '../src/chunk_size.js';
import { Breach, Refusal, Trouble } from '../src/errors.js';
import { Damaged, Unwanted, Upload } from '../src/upload.js';
import { readChunk } from '../src/wire.js';
import { makeModel, openStore, PATIENCE, quiet } from './fakes.js';

const model = makeModel();
const BODY = Buffer.concat(model.values);
const WINDOW = 6;
const TERMS = { maxChunkBytes: 4, windowBytes: WINDOW };

/** A server that commits what it gets; the stream breaks once after `cutAfter` bytes. */
class Server {
  body = Buffer.alloc(0);
  calls = [];
  mostInFlight = 0;
  longest = 0;
  state = 'UPLOAD_STATE_OPEN';

  constructor({ cutAfter = Infinity, refuse = {}, maxChunkBytes = Infinity, windowBytes = 0 } = {}) {
    this.cutAfter = cutAfter;
    this.windowBytes = windowBytes;
    this.maxChunkBytes = maxChunkBytes;
    this.refuse = refuse; // by call, the refusals to give, one after another
  }

  #call(name) {
    this.calls.push(name);
    const refusal = this.refuse[name]?.shift();
    if (refusal) throw refusal;
  }

  async putManifest([{ header }, ...parts]) {
    this.#call('manifest');
    assert.equal(header.num_tensors, parts.flatMap(({ part }) => part.entries).length);
    const [body_size_bytes, committed_size] = [BODY.length, this.body.length].map(String);
    return { missing_tensors: [0, 2], body_size_bytes, committed_size, window_bytes: this.windowBytes };
  }

  async uploadStatus() {
    this.#call('status');
    const [body_size_bytes, committed_size] = [BODY.length, this.body.length].map(String);
    return { state: this.state, body_size_bytes, committed_size, window_bytes: this.windowBytes };
  }

  async finishUpload() {
    this.#call('finish');
    assert.deepEqual(this.body, BODY);
    return { state: 'UPLOAD_STATE_ADMITTED', reason: '' };
  }

  writeChunks() {
    this.calls.push('write');
    let [pending, ended] = [Buffer.alloc(0), false];
    const server = this;
    return {
      async write({ chunk }) {
        if (chunk.data.length > server.maxChunkBytes) {
          const facts = server.maxChunkBytes > 1 ? { max_chunk_bytes: String(server.maxChunkBytes) } : {};
          throw new Refusal('CHUNK_TOO_LARGE', 'smaller, please', facts);
        }
        const data = readChunk(chunk, server.body.length + pending.length, BODY.length);
        server.longest = Math.max(server.longest, data.length);
        pending = Buffer.concat([pending, data]);
        server.mostInFlight = Math.max(server.mostInFlight, pending.length);
      },
      *arrived() {},
      end() { ended = true; },
      cancel() {},
      async read() {
        if (pending.length === 0) {
          assert.ok(ended);
          return null;
        }
        const taken = pending.subarray(0, 3);
        pending = pending.subarray(3);
        server.body = Buffer.concat([server.body, taken]);
        if (server.body.length >= server.cutAfter) {
          server.cutAfter = Infinity;
          throw new Trouble('cut');
        }
        return { committed_size: String(server.body.length) };
      },
    };
  }
}

async function send(t, server, { isBegun = false, terms = TERMS, spoil = () => {} } = {}) {
  const store = await openStore(t);
  for (const [at, entry] of model.entries.entries()) await store.put(entry, model.values[at]);
  const facts = { numExamples: 5, metrics: { loss: 1, none: null }, epochs: 1, trainingSeconds: 1 };
  const update = { entries: model.entries, ...facts };
  const site = { connection: server, store, chunkSize: new ChunkSize(), patience: PATIENCE, log: quiet };
  spoil(store);
  return new Upload(site, { upload_id: 'u' }, update, () => terms, { isBegun }).run(new AbortController().signal);
}

test('upload sends the missing tensors within the window and finishes', async (t) => {
  const server = new Server();
  assert.equal(await send(t, server), '');
  assert.deepEqual(server.calls, ['manifest', 'write', 'finish']);
  assert.ok(server.mostInFlight <= WINDOW);
  assert.equal(server.longest, WINDOW / 2); // longer ones could leave both ends waiting
});

test('upload keeps the window that the server says of it, also after a cut', async (t) => {
  const server = new Server({ cutAfter: 6, windowBytes: 4 });
  assert.equal(await send(t, server), '');
  assert.deepEqual(server.calls, ['manifest', 'write', 'status', 'write', 'finish']);
  assert.equal(server.mostInFlight, 4);
  assert.equal(server.longest, 2);
});

for (let cutAfter = 3; cutAfter <= 27; cutAfter += 3) {
  test(`upload cut after ${cutAfter} bytes asks for the status and goes on there`, async (t) => {
    const server = new Server({ cutAfter });
    assert.equal(await send(t, server), '');
    assert.deepEqual(server.calls, ['manifest', 'write', 'status', 'write', 'finish']);
  });
}

test('finish that was not heard is called again', async (t) => {
  const server = new Server({ refuse: { finish: [new Trouble('cut')] } });
  assert.equal(await send(t, server), '');
  assert.deepEqual(server.calls, ['manifest', 'write', 'finish', 'status', 'finish']);
});

test('server that lost the manifest is given it again', async (t) => {
  const server = new Server({ refuse: { finish: [new Refusal('MANIFEST_REQUIRED', 'which?')] } });
  assert.equal(await send(t, server), '');
  assert.deepEqual(server.calls, ['manifest', 'write', 'finish', 'manifest', 'finish']);
});

test('bound of the server is waited for', async (t) => {
  const server = new Server({ refuse: { manifest: [new Refusal('LIMIT_EXCEEDED', 'later', {}, 0.001)] } });
  assert.equal(await send(t, server), '');
});

test('update of a closed round is dropped', async (t) => {
  const server = new Server({ refuse: { finish: [new Refusal('ROUND_CLOSED', 'round 3 is closed')] } });
  await assert.rejects(send(t, server), Unwanted);
});

test('refusal for a defect is not tried again', async (t) => {
  const server = new Server({ refuse: { manifest: [new Refusal('SCHEMA_MISMATCH', 'no such tensor')] } });
  await assert.rejects(send(t, server), { reason: 'SCHEMA_MISMATCH' });
  assert.deepEqual(server.calls, ['manifest']);
});

test('window of one byte is used', async (t) => {
  const server = new Server();
  assert.equal(await send(t, server, { terms: { maxChunkBytes: 512, windowBytes: 1 } }), '');
  assert.deepEqual([server.longest, server.mostInFlight], [1, 1]);
});

for (const maxChunkBytes of [1, 2]) {
  test(`chunks are made smaller for a server that takes ${maxChunkBytes} bytes`, async (t) => {
    const server = new Server({ maxChunkBytes });
    assert.equal(await send(t, server), '');
    assert.deepEqual(server.calls, ['manifest', 'write', 'status', 'write', 'finish']);
  });
}

test('calls without chunks are not tried again for chunks that are too large', async (t) => {
  for (const call of ['manifest', 'status', 'finish']) {
    const refusals = Array.from({ length: 9 }, () => new Refusal('CHUNK_TOO_LARGE', 'no'));
    const server = new Server({ refuse: { [call]: refusals } });
    await assert.rejects(send(t, server, { isBegun: call === 'status' }), { reason: 'CHUNK_TOO_LARGE' });
    assert.equal(server.calls.filter((name) => name === call).length, 1);
  }
});

for (const reason of ['WRONG_OFFSET', 'CHECKSUM_MISMATCH', 'BODY_INCOMPLETE', 'SUPERSEDED']) {
  test(`after ${reason} the status is asked and the upload goes on`, async (t) => {
    const server = new Server({ refuse: { finish: [new Refusal(reason, 'so')] } });
    assert.equal(await send(t, server), '');
    assert.deepEqual(server.calls, ['manifest', 'write', 'finish', 'status', 'finish']);
  });
}

test('manifest is put again after a wrong digest, three times at most', async (t) => {
  const refuse = (count) => ({ finish: Array.from({ length: count }, () => new Refusal('DIGEST_MISMATCH', 'wrong')) });
  const patient = new Server({ refuse: refuse(3) });
  assert.equal(await send(t, patient), '');
  assert.equal(patient.calls.filter((name) => name === 'manifest').length, 4);
  const hopeless = new Server({ refuse: refuse(9) });
  await assert.rejects(send(t, hopeless), { reason: 'DIGEST_MISMATCH' });
  assert.equal(hopeless.calls.filter((name) => name === 'finish').length, 4);
});

test('wrong digest of bytes that are damaged here is not tried again', async (t) => {
  const server = new Server({ refuse: { finish: [new Refusal('DIGEST_MISMATCH', 'wrong')] } });
  const [name] = [model.entries[2].sha256.toString('hex')];
  server.putManifest = async () => {
    writeFileSync(path.join(server.folder, 'tensors', name), 'rotten bytes');
    return { missing_tensors: [0, 2], body_size_bytes: String(BODY.length), committed_size: String(BODY.length) };
  };
  await assert.rejects(send(t, server, { spoil: (store) => { server.folder = store.folder; } }), Damaged);
});

test('update that was sent before is asked about first', async (t) => {
  const known = new Server();
  known.state = 'UPLOAD_STATE_ADMITTED';
  known.body = BODY;
  assert.equal(await send(t, known, { isBegun: true }), '');
  assert.deepEqual(known.calls, ['status', 'finish']);
  const unknown = new Server();
  unknown.state = 99; // a state of later versions
  assert.equal(await send(t, unknown, { isBegun: true }), '');
  assert.deepEqual(unknown.calls, ['status', 'manifest', 'write', 'finish']);
  const closed = new Server();
  closed.state = 'UPLOAD_STATE_CLOSED';
  await assert.rejects(send(t, closed, { isBegun: true }), Unwanted);
});

test('answer to a manifest that cannot be is no reason to go on', async (t) => {
  const server = new Server();
  server.putManifest = async () => ({ missing_tensors: [2, 0], body_size_bytes: '28', committed_size: '0' });
  await assert.rejects(send(t, server), Breach);
  server.putManifest = async () => ({ missing_tensors: [0, 2], body_size_bytes: '27', committed_size: '0' });
  await assert.rejects(send(t, server), Breach);
});

test('nothing is called once an update is not wanted', async (t) => {
  const server = new Server();
  const store = await openStore(t);
  const site = { connection: server, store, chunkSize: new ChunkSize(), patience: PATIENCE, log: quiet };
  const update = { entries: [], numExamples: 1, metrics: {}, epochs: 1, trainingSeconds: 1 };
  await assert.rejects(new Upload(site, { upload_id: 'u' }, update, () => TERMS).run(AbortSignal.abort()));
  assert.deepEqual(server.calls, []);
});

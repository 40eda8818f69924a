/** Uploads: the window, resuming at `committed_size`, finishing, and giving up where the contract says so. */
import assert from 'node:assert/strict';
import test from 'node:test';
import { Refusal, Trouble } from '../src/errors.js';
import { Unwanted, Upload } from '../src/upload.js';
import { readChunk } from '../src/wire.js';
import { makeModel, openStore, PATIENCE, quiet } from './fakes.js';

const model = makeModel();
const BODY = Buffer.concat(model.values);
const WINDOW = 6;

/** A server that commits what it gets; the stream breaks once after `cutAfter` bytes. */
class Server {
  body = Buffer.alloc(0);
  calls = [];
  mostInFlight = 0;

  constructor({ cutAfter = Infinity, refuse = {} } = {}) {
    this.cutAfter = cutAfter;
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
    return { missing_tensors: [0, 2], body_size_bytes: String(BODY.length), committed_size: String(this.body.length) };
  }

  async uploadStatus() {
    this.#call('status');
    const [body_size_bytes, committed_size] = [BODY.length, this.body.length].map(String);
    return { state: 'UPLOAD_STATE_OPEN', body_size_bytes, committed_size };
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
        const data = readChunk(chunk, server.body.length + pending.length);
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

async function send(t, server) {
  const store = await openStore(t);
  for (const [at, entry] of model.entries.entries()) await store.put(entry, model.values[at]);
  const facts = { numExamples: 5, metrics: { loss: 1, none: null }, epochs: 1, trainingSeconds: 1 };
  const update = { entries: model.entries, ...facts };
  const site = { connection: server, store, patience: PATIENCE, log: quiet };
  const terms = { maxChunkBytes: 4, windowBytes: WINDOW };
  return new Upload(site, { upload_id: 'u' }, update, terms, quiet).run(new AbortController().signal);
}

test('upload sends the missing tensors within the window and finishes', async (t) => {
  const server = new Server();
  assert.equal(await send(t, server), '');
  assert.deepEqual(server.calls, ['manifest', 'write', 'finish']);
  assert.ok(server.mostInFlight <= WINDOW);
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

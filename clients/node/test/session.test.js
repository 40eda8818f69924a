/** Sessions, message by message: what is answered to what, and how each ends. */
import assert from 'node:assert/strict';
import test from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { Bench } from '../src/bench.js';
import { ChunkSize } from '../src/chunk_size.js';
import { EXIT, Refusal, Stop, Trouble } from '../src/errors.js';
import { Session } from '../src/session.js';
import { writeChunk, writeEntry } from '../src/wire.js';
import { makeModel, openStore, PATIENCE, quiet, streamOf } from './fakes.js';

const model = makeModel();
const BASE = { model_digest: { sha256: model.digest } };
const PLAN = { epochs: 2, batch_size: 8, learning_rate: 0.1, early_stopping_patience: 0, seed: '1', settings: {} };
const span = (seconds) => ({ seconds: String(seconds), nanos: 0 });
const offer = (id, more = {}) => ({ kind: 'offer', offer: { offer_id: id, upload_id: `u${id}`, round: 1,
  base_model: BASE, plan: PLAN, time_remaining: span(100), lease: span(60), ...more } });
const confirm = (id, plan = PLAN) => ({ kind: 'confirm', confirm: { offer_id: id, plan, lease: span(60) } });
const TERMS = { protocol: 1, max_chunk_bytes: 4, window_bytes: 8, encodings: [99, 'ENCODING_RAW'] };
const WELCOME = { kind: 'welcome', welcome: TERMS };
const THE_END = { kind: 'federation_outcome', federation_outcome: { reason: 'all rounds done' } };

/** The server's side of one stream. */
class Talk {
  wrote = [];
  closed = false;
  #said = [];
  #wake = () => {};

  say(...messages) {
    this.#said.push(...messages);
    this.#wake();
  }

  /** Wait for a message of the client's that `wanted` is true of. */
  async hear(wanted) {
    for (;;) {
      const found = this.wrote.findIndex(wanted);
      if (found >= 0) return this.wrote.splice(found, 1)[0];
      await sleep(2);
    }
  }

  // The client's side.

  async read() {
    while (this.#said.length === 0) await new Promise((resolve) => { this.#wake = resolve; });
    const message = this.#said.shift();
    if (message instanceof Error) throw message;
    return message;
  }

  async write(message) {
    this.wrote.push(message);
  }

  end() {
    this.closed = true;
  }

  async ended() {}

  cancel() {
    this.say(new Trouble('cancelled'));
  }
}

/** A server's calls beside the stream: it has the model, and takes updates. */
class Calls {
  finished = 0;
  refusal = null;

  getManifest() {
    return streamOf([{ num_tensors: 3, part: { entries: model.entries.map(writeEntry) } }]);
  }

  readChunks({ tensors, read_offset: from }) {
    const body = Buffer.concat(tensors.map((index) => model.values[index])).subarray(Number(from));
    return streamOf([{ chunk: writeChunk(Number(from), body) }]);
  }

  async putManifest() {
    if (this.refusal) throw this.refusal;
    return { missing_tensors: [], body_size_bytes: '0', committed_size: '0' };
  }

  async uploadStatus() {
    return { state: 'UPLOAD_STATE_AWAITING_MANIFEST', body_size_bytes: '0', committed_size: '0' };
  }

  async finishUpload() {
    this.finished += 1;
    return { state: 'UPLOAD_STATE_ADMITTED', reason: '' };
  }
}

/** A client in front of a scripted server. `fineTune` may fail or take its time. */
async function scene(t, { fineTune = async () => tuned(), collect = () => {}, limits = {} } = {}) {
  const [calls, talk] = [new Calls(), new Talk()];
  let trainings = 0;
  const training = { fineTune: (...words) => { trainings += 1; return fineTune(...words); } };
  const experience = { epochSeconds: null, transferSeconds: 0, moreTimeRefused: false, misfits: 0 };
  const site = { connection: calls, store: await openStore(t), schema: model.specs, training, experience,
    chunkSize: new ChunkSize(), patience: PATIENCE, federation: 'f', log: quiet };
  const bench = new Bench(site, { maxEpochs: 0, maxSeconds: null, ...limits });
  let collected = null;
  const begin = (stream) => {
    const session = new Session(stream, site, bench, async (outcome) => { collected = outcome; await collect(); });
    return session.run({ client_name: 'a' }, () => {});
  };
  const run = begin(talk);
  run.catch(() => {}); // how it ends is for those tests that wait for it
  t.after(() => { talk.cancel(); return bench.close(); });
  return { calls, talk, bench, experience, begin, run, store: site.store, get trainings() { return trainings; },
    get collected() { return collected; } };
}

function tuned() {
  const weights = new Map(model.specs.map(({ name }, at) => [name, model.values[at]]));
  return { weights, numExamples: 5, metrics: { loss: 1 }, epochs: 2 };
}

const about = (kind, id) => (message) => message[kind]?.offer_id === id;

test('round goes from hello to the end, and kinds that are not known change nothing', async (t) => {
  const { calls, talk, run } = await scene(t, { fineTune: async () => { await sleep(150); return tuned(); } });
  assert.deepEqual(talk.wrote[0], { hello: { client_name: 'a' } });
  const unknown = { kind: undefined };
  talk.say({ kind: 'waiting', waiting: { reason: 'for 1 more client' } }, unknown, WELCOME, unknown, offer('1'));
  await talk.hear(about('accept', '1'));
  talk.say(confirm('1'));
  await talk.hear(about('progress', '1'));
  while (calls.finished === 0) await sleep(2);
  talk.say({ kind: 'round_outcome', round_outcome: { round: 1, outcome: 99, metrics: [] } }, THE_END);
  assert.equal((await run).reason, 'all rounds done');
  assert.ok(talk.closed);
});

test('schema is sent when it is asked for, and a declined client stops with what differs', async (t) => {
  const { talk, run } = await scene(t);
  talk.say({ kind: 'schema_query', schema_query: {} });
  const { schema_part: part } = await talk.hear((message) => message.schema_part);
  assert.deepEqual([part.tensors.map(({ name }) => name), part.last], [['a', 'none', 'b'], true]);
  const server = { name: 'c', dtype: 99, shape: ['7'], trainable: true };
  talk.say({ kind: 'declined', declined: { reason: 99, message: 'no', differences: [{ server, client: null }],
    more_differences: 2 } });
  const all = /declined this client: no\n.*the federation has c 99 \[7\] trainable, this client nothing\n.*2 more/;
  await assert.rejects(run, (error) => error instanceof Stop && all.test(error.message));
});

for (const protocol of [0, 2]) {
  test(`welcome in version ${protocol} of the protocol, which was not offered, ends the client`, async (t) => {
    const { talk, run } = await scene(t);
    talk.say({ kind: 'welcome', welcome: { ...TERMS, protocol } });
    const message = `the server welcomes this client in version ${protocol} of the protocol, and it speaks 1`;
    await assert.rejects(run, { exitCode: EXIT.DEFECT, message });
  });
}

test('plans that cannot be and offers without a base are declined', async (t) => {
  const { talk } = await scene(t);
  talk.say(WELCOME);
  const settings = Object.fromEntries(Array.from({ length: 65 }, (_, at) => [`${at}`, '']));
  const long = { a: 'b'.repeat(257) };
  const plans = [{ epochs: 0 }, { batch_size: 0 }, { learning_rate: NaN }, { settings }, { settings: long }];
  for (const [at, plan] of plans.entries()) {
    talk.say(offer(`${at}`, { plan: { ...PLAN, ...plan } }));
    assert.match((await talk.hear(about('decline', `${at}`))).decline.reason, /^the plan/);
  }
  talk.say(offer('x', { base_model: null }));
  await talk.hear(about('decline', 'x'));
  talk.say(offer('y'));
  await talk.hear(about('accept', 'y'));
  talk.say(confirm('y', { ...PLAN, batch_size: 0 }));
  assert.match((await talk.hear(about('failure', 'y'))).failure.reason, /batch size/);
});

test('confirmation of more than was agreed is refused', async (t) => {
  const client = await scene(t, { limits: { maxEpochs: 3, maxSeconds: 60 } });
  const { experience, talk } = client;
  const offered = { plan: { ...PLAN, epochs: 10 }, time_remaining: span(10_000) };
  talk.say(WELCOME, offer('1', offered));
  assert.equal((await talk.hear(about('counter_offer', '1'))).counter_offer.epochs, 3);
  talk.say(confirm('1', { ...PLAN, epochs: 4 }));
  assert.match((await talk.hear(about('failure', '1'))).failure.reason, /^4 epochs were confirmed, and 3 agreed on$/);
  talk.say(offer('2'));
  await talk.hear(about('accept', '2'));
  talk.say(confirm('2', { ...PLAN, epochs: 3 }));
  await talk.hear(about('failure', '2'));
  experience.epochSeconds = 100;
  talk.say(offer('3', offered));
  await talk.hear(about('decline', '3'));
  talk.say(offer('3', offered)); // the same again: no further misfit
  await talk.hear(about('decline', '3'));
  talk.say(confirm('3'), offer('4'));
  assert.equal((await talk.hear(about('counter_offer', '4'))).counter_offer.epochs, 1); // a second misfit: it is tried
  assert.equal(client.trainings, 0);
});

test('training ends with the limit on time of the site, and teaches how long an epoch takes', async (t) => {
  const fineTune = async (base, plan, report, signal) => {
    for (let epoch = 1; ; epoch += 1) {
      await sleep(10, undefined, { signal });
      report({ epoch, epochs: plan.epochs, fraction: epoch / plan.epochs, metrics: {} });
    }
  };
  const { experience, talk } = await scene(t, { fineTune, limits: { maxSeconds: 0.2 } });
  const plan = { ...PLAN, epochs: 1_000 };
  talk.say(WELCOME, offer('1', { plan }));
  await talk.hear(about('accept', '1'));
  talk.say(confirm('1', plan));
  assert.match((await talk.hear(about('failure', '1'))).failure.reason, /limit on training time was reached/);
  assert.ok(experience.epochSeconds >= 0.01 && experience.epochSeconds < 0.1, `${experience.epochSeconds} s`);
});

test('sign of life is given in every third of a lease, also before the confirmation', async (t) => {
  const { talk } = await scene(t);
  talk.say(WELCOME, offer('1', { lease: { seconds: '0', nanos: 3e8 } }));
  await talk.hear(about('accept', '1'));
  const began = Date.now();
  for (let count = 0; count < 3; count += 1) await talk.hear(about('progress', '1'));
  assert.ok(Date.now() - began < 900);
  talk.say({ kind: 'lease_renewal', lease_renewal: { offer_id: '1', lease: span(60) } });
  await sleep(20);
  const told = talk.wrote.length;
  await sleep(300);
  assert.ok(talk.wrote.length <= told + 1);
});

test('offer that comes again is accepted while it is worked on, and another one ends it', async (t) => {
  const forever = (base, plan, report, signal) => sleep(60_000, undefined, { signal });
  const client = await scene(t, { fineTune: forever });
  const { talk } = client;
  talk.say(WELCOME, offer('1'));
  await talk.hear(about('accept', '1'));
  talk.say(confirm('1'));
  await talk.hear(({ progress }) => progress?.phase === 'PHASE_TRAINING');
  talk.say(offer('1'), confirm('1'));
  await talk.hear(about('accept', '1'));
  for (const kind of ['cancel', 'withdraw']) talk.say({ kind, [kind]: { offer_id: 'another', reason: '' } });
  await talk.hear(about('progress', '1'));
  assert.deepEqual([client.trainings, client.bench.job.state], [1, 'working']);
  talk.say(offer('2'));
  await talk.hear(about('accept', '2'));
  talk.say({ kind: 'withdraw', withdraw: { offer_id: '2', reason: 'round closed' } });
  while (client.bench.job.state !== 'dropped') await sleep(2);
  assert.equal(client.experience.moreTimeRefused, false); // it had not asked for any
});

for (const [state, counts] of [
  ['UPLOAD_STATE_ADMITTED', 'of it'], ['UPLOAD_STATE_QUARANTINED', 'before it'], [null, 'before it'],
]) {
  test(`update of which nothing was heard again is asked for before the next, and is ${state}`, async (t) => {
    const { calls, talk, store } = await scene(t);
    const leftOut = (name) => [{ ...model.entries[0], name }];
    await store.put(model.entries[0], model.values[0]);
    await store.keepLeftOut('f', 'u0', leftOut('before it'));
    const packed = { entries: [], leftOut: leftOut('of it') };
    await store.record({ offerId: '0', uploadId: 'u1', baseHex: '', entries: [], packed });
    const asked = [];
    calls.uploadStatus = async (id) => {
      asked.push(id);
      if (state === null) throw new Refusal('UNKNOWN_UPLOAD', 'which?');
      return { state };
    };
    talk.say(WELCOME, offer('2'));
    await talk.hear(about('accept', '2'));
    talk.say(confirm('2'));
    while (calls.finished === 0) await sleep(2);
    assert.deepEqual(asked, ['u1']);
    assert.deepEqual((await store.leftOut('f')).map(({ name }) => name), [counts]);
  });
}

test('update that was delivered and lost is sent again, and not trained again', async (t) => {
  const client = await scene(t);
  const { calls, talk } = client;
  client.experience.misfits = 2;
  talk.say(WELCOME);
  for (const count of [1, 2]) {
    talk.say(offer('1'));
    await talk.hear(about('accept', '1'));
    talk.say(confirm('1'));
    while (calls.finished < count) await sleep(2);
    while (client.bench.job.state !== 'delivered') await sleep(2);
  }
  assert.deepEqual([client.trainings, client.experience.misfits], [1, 0]);
});

test('update that is trained is accepted each time, however little time is left', async (t) => {
  const client = await scene(t);
  const { calls, talk } = client;
  talk.say(WELCOME, offer('1'));
  await talk.hear(about('accept', '1'));
  talk.say(confirm('1'));
  while (calls.finished === 0 || client.bench.job.state !== 'delivered') await sleep(2);
  client.experience.epochSeconds = 3600;
  for (let count = 0; count < 2; count += 1) { // the second, since a cut came before the confirmation
    talk.say(offer('1'));
    await talk.hear(about('accept', '1'));
  }
});

test('withdrawal teaches something about time only if the last answer asked for any', async (t) => {
  const { bench, experience, talk } = await scene(t);
  experience.epochSeconds = 60;
  talk.say(WELCOME, offer('1'));
  await talk.hear(about('counter_offer', '1'));
  talk.say(offer('2', { time_remaining: span(1000) }));
  await talk.hear(about('accept', '2'));
  bench.withdraw({ offer_id: '2', reason: 'round closed' });
  assert.equal(experience.moreTimeRefused, false);
  talk.say(offer('3'));
  await talk.hear(about('counter_offer', '3'));
  bench.withdraw({ offer_id: '3', reason: 'no more time' });
  assert.equal(experience.moreTimeRefused, true);
});

test('work that failed is told, and the same offer is declined from then on', async (t) => {
  const { talk } = await scene(t, { fineTune: async () => { throw new Error('scan_17.png: broken'); } });
  talk.say(WELCOME, offer('1'));
  await talk.hear(about('accept', '1'));
  talk.say(confirm('1'));
  assert.equal((await talk.hear(about('failure', '1'))).failure.reason, 'the work failed at the site');
  talk.say(offer('1'));
  await talk.hear(about('decline', '1'));
});

test('training that fails three times in a row ends the client', async (t) => {
  const { talk, run } = await scene(t, { fineTune: async () => { throw new Error('broken'); } });
  talk.say(WELCOME);
  const ended = assert.rejects(run, { exitCode: EXIT.TRAINING_FAILED });
  for (const id of ['1', '2', '3']) {
    talk.say(offer(id));
    await talk.hear(about('accept', id));
    talk.say(confirm(id));
    await talk.hear(about('failure', id));
  }
  await ended;
  assert.match((await talk.hear((message) => message.leave)).leave.reason, /^training failed 3 times/);
});

test('client that is to end lets the server close the stream, and answers nothing more', async (t) => {
  const { calls, talk, run } = await scene(t);
  calls.refusal = new Refusal('PERMISSION_DENIED', 'no');
  const happened = [];
  talk.ended = async () => {
    talk.say(offer('2'));
    await sleep(50);
    happened.push(...talk.wrote.map((message) => Object.keys(message)[0]), 'ended');
  };
  const cut = talk.cancel;
  talk.cancel = () => { happened.push('cut'); cut.call(talk); };
  talk.say(WELCOME, offer('1'));
  await talk.hear(about('accept', '1'));
  talk.say(confirm('1'));
  await assert.rejects(run, { exitCode: EXIT.UNTRUSTED });
  const said = happened.filter((what) => what !== 'progress').slice(0, 5);
  assert.deepEqual(said, ['hello', 'failure', 'leave', 'ended', 'cut']);
});

test('site that is not let in any more ends with it, and any other refusal is a failure of the round', async (t) => {
  const { calls, talk, run } = await scene(t);
  const ended = assert.rejects(run, { exitCode: EXIT.UNTRUSTED });
  talk.say(WELCOME);
  for (const [id, reason] of [['1', 'SCHEMA_MISMATCH'], ['2', 'A_LATER_REASON'], ['3', 'PERMISSION_DENIED']]) {
    calls.refusal = new Refusal(reason, 'no');
    talk.say(offer(id));
    await talk.hear(about('accept', id));
    talk.say(confirm(id));
    await talk.hear(about('failure', id));
  }
  await ended;
});

test('nothing is written after the end, though work is still under way', async (t) => {
  const forever = (base, plan, report, signal) => sleep(60_000, undefined, { signal });
  const { talk, run } = await scene(t, { fineTune: forever });
  talk.ended = () => sleep(300); // a server that takes its time
  talk.say(WELCOME, offer('1', { lease: { seconds: '0', nanos: 1.5e8 } }));
  await talk.hear(about('accept', '1'));
  talk.say({ kind: 'confirm', confirm: { offer_id: '1', plan: PLAN, lease: { seconds: '0', nanos: 1.5e8 } } });
  await talk.hear(({ progress }) => progress?.phase === 'PHASE_TRAINING');
  talk.end = () => { talk.wrote.length = 0; };
  talk.say(THE_END);
  await run;
  assert.deepEqual(talk.wrote, []);
});

test('final model is fetched when nothing uses the store any more', async (t) => {
  const working = [];
  const forever = async (base, plan, report, signal) => {
    working.push('training');
    await new Promise((resolve) => { signal.addEventListener('abort', resolve); });
    await sleep(20);
    working.push('ended');
    signal.throwIfAborted();
  };
  const { talk, run } = await scene(t, { fineTune: forever, collect: () => working.push('fetched') });
  talk.say(WELCOME, offer('1'));
  await talk.hear(about('accept', '1'));
  talk.say(confirm('1'));
  await talk.hear(({ progress }) => progress?.phase === 'PHASE_TRAINING');
  talk.say(THE_END);
  await run;
  assert.deepEqual(working, ['training', 'ended', 'fetched']);
});

test('fetching of the final model is told again and again, and not once it is over', async (t) => {
  t.mock.timers.enable({ apis: ['setInterval'] });
  let fetched;
  const { talk, run } = await scene(t, { collect: () => new Promise((resolve) => { fetched = resolve; }) });
  talk.say(WELCOME, THE_END);
  for (let count = 0; count < 3; count += 1) {
    await talk.hear(({ progress }) => progress?.phase === 'PHASE_DOWNLOADING');
    t.mock.timers.tick(20_000);
  }
  talk.wrote.length = 0;
  fetched();
  await run;
  t.mock.timers.tick(60_000);
  assert.deepEqual(talk.wrote, []);
});

test('work goes on while there is no session, and the next one takes it up', async (t) => {
  let go;
  const goes = new Promise((resolve) => { go = resolve; });
  const client = await scene(t, { fineTune: async () => { await goes; return tuned(); } });
  client.talk.say(WELCOME, offer('1'));
  await client.talk.hear(about('accept', '1'));
  client.talk.say(confirm('1'));
  await client.talk.hear(({ progress }) => progress?.phase === 'PHASE_TRAINING');
  client.talk.say(new Trouble('cut'));
  await assert.rejects(client.run, Trouble);
  go();
  while (client.calls.finished === 0) await sleep(2);
  const next = new Talk();
  const run = client.begin(next);
  next.say(WELCOME, THE_END);
  assert.deepEqual([(await run).reason, client.collected.reason], ['all rounds done', 'all rounds done']);
});

test('stream that ends too early is an error of the network', async (t) => {
  const { talk, run } = await scene(t);
  talk.say(WELCOME, null);
  await assert.rejects(run, Trouble);
});

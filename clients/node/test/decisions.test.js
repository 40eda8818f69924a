/** Pure decisions: answers to offers, waits, options. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import test from 'node:test';
import { untilDone, waitSeconds } from '../src/backoff.js';
import { Refusal, Trouble } from '../src/errors.js';
import { stateHome } from '../src/identity.js';
import { clipReason, isClientName } from '../src/limits.js';
import { readJoin, readRun } from '../src/options.js';
import { reply } from '../src/reply.js';
import { PATIENCE, quiet } from './fakes.js';
import { readVectors } from './vectors.js';

const OFFER = { epochs: 10, timeRemaining: 100 };
const NEW = { epochSeconds: null, transferSeconds: 0, moreTimeRefused: false, misfits: 0 };
const FREE = { maxEpochs: 0, maxSeconds: null };

for (const [what, limits, experience, expected] of [
  ['without limits is accepted', FREE, NEW, { accept: true }],
  ['of more epochs than allowed is countered', { ...FREE, maxEpochs: 3 }, NEW, [3, null]],
  ['that fits the time is accepted', FREE, { ...NEW, epochSeconds: 8 }, { accept: true }],
  ['that takes longer asks for more time', FREE, { ...NEW, epochSeconds: 10, transferSeconds: 5 }, [0, 125]],
  ['is cut to the time after a withdrawal', FREE, { ...NEW, epochSeconds: 10, moreTimeRefused: true }, [8, null]],
  ['is cut to the hours allowed', { ...FREE, maxSeconds: 21 }, { ...NEW, epochSeconds: 5 }, [4, null]],
]) {
  test(`offer ${what}`, () => {
    const answer = reply(OFFER, limits, experience);
    if (Array.isArray(expected)) assert.deepEqual([answer.counter.epochs, answer.counter.seconds], expected);
    else assert.deepEqual(answer, expected);
  });
}

test('offer of which not one epoch fits is declined', () => {
  assert.ok(reply(OFFER, { ...FREE, maxSeconds: 1 }, { ...NEW, epochSeconds: 5 }).decline);
  assert.ok(reply(OFFER, FREE, { ...NEW, epochSeconds: 500, moreTimeRefused: true }).decline);
});

for (const [what, limits, experience] of [
  ['than the site allows', { ...FREE, maxSeconds: 1 }, { ...NEW, epochSeconds: 5 }],
  ['than remains', FREE, { ...NEW, epochSeconds: 500, moreTimeRefused: true }],
]) {
  test(`one epoch is tried from time to time where it once took longer ${what}`, () => {
    const answers = Array.from({ length: 9 }, (_, misfits) => reply(OFFER, limits, { ...experience, misfits }));
    assert.ok(answers.every((answer) => answer.misfit));
    assert.deepEqual(answers.flatMap((answer, misfits) => (answer.counter ? [misfits] : [])), [1, 3, 7]);
    assert.deepEqual([answers[1].counter.epochs, answers[1].counter.seconds], [1, null]);
  });
}

test('waits double up to the longest, with jitter', () => {
  const patience = { firstSeconds: 1, longestSeconds: 5 };
  const waits = [0, 1, 2, 3].map((tries) => waitSeconds(new Trouble(''), tries, patience, () => 0.5));
  assert.deepEqual(waits, [0.875, 1.75, 3.5, 4.375]);
  const putOff = [7, 0.5, 0].map((told) => waitSeconds(new Refusal('LIMIT_EXCEEDED', '', {}, told), 9, patience));
  assert.deepEqual(putOff, [7, 1, 1]);
});

test('trouble is tried again until it is over, and a refusal never', async () => {
  const options = { howFar: () => 0, patience: PATIENCE, doing: 'trying', log: quiet };
  let left = 3;
  const shaky = async () => { if (left-- > 0) throw new Trouble('cut'); return 'done'; };
  assert.equal(await untilDone(shaky, options), 'done');
  let tries = 0;
  const refused = async () => { tries += 1; throw new Refusal('ROUND_CLOSED', 'over'); };
  await assert.rejects(untilDone(refused, options), { reason: 'ROUND_CLOSED' });
  assert.equal(tries, 1);
});

test('without progress it gives up in the time that was set', async () => {
  const patience = { ...PATIENCE, giveUpAfterSeconds: 0.01 };
  const broken = async () => { throw new Trouble('cut'); };
  await assert.rejects(untilDone(broken, { howFar: () => 0, patience, doing: 'trying', log: quiet }), Trouble);
});

test('what would be waited for longer than the patience lasts is given up at once', async () => {
  const patience = { ...PATIENCE, giveUpAfterSeconds: 5 };
  const busy = async () => { throw new Refusal('LIMIT_EXCEEDED', 'later', {}, 60); };
  const began = Date.now();
  const tried = untilDone(busy, { howFar: () => 0, patience, doing: 'trying', log: quiet });
  await assert.rejects(tried, { reason: 'LIMIT_EXCEEDED' });
  assert.ok(Date.now() - began < 2000);
});

const TOKEN = readVectors('tokens.txt')[0].token;
const GOOD = ['--server', 'h:1', '--data', 'd', '--name', 'a', '--fingerprint', `sha256:${'0'.repeat(64)}`];

test('options read as they are meant', () => {
  const words = [...GOOD, '--max-hours', '0.5', '--state-dir', 's'];
  const { maxSeconds, maxEpochs, giveUpAfter, stateDir } = readRun(words);
  assert.deepEqual([maxSeconds, maxEpochs, giveUpAfter, stateDir], [1800, 0, null, 's']);
});

test('default folder for what must survive a restart is of server and site', () => {
  const { stateDir, formerStateDir } = readRun(GOOD);
  const all = path.join(stateHome(), 'fedstream-node');
  assert.deepEqual([stateDir, formerStateDir], [path.join(all, 'h_1', 'a'), path.join(all, 'a')]);
  assert.equal(readRun([...GOOD, '--state-dir', 's']).formerStateDir, null);
});

test('default folder stays when the server is reached by another address', (t) => {
  const identity = mkdtempSync(path.join(os.tmpdir(), 'fedstream-'));
  t.after(() => rmSync(identity, { recursive: true }));
  writeFileSync(path.join(identity, 'identity.json'), '{"server": "far:2", "name": "a"}');
  const { server, stateDir } = readRun(['--server', 'h:1', '--data', 'd', '--identity', identity]);
  assert.deepEqual([server, stateDir], ['h:1', path.join(stateHome(), 'fedstream-node', 'far_2', 'a')]);
});

for (const [what, words] of Object.entries({
  'no server': GOOD.slice(2),
  'no trust': [...GOOD.slice(0, 6), '--identity', 'nowhere'],
  'plaintext far away': [...GOOD.slice(0, 6), '--plaintext'],
  'two kinds of trust': [...GOOD, '--plaintext'],
  'a fingerprint and an identity': [...GOOD, '--identity', 'nowhere'],
  'a certificate without a key': [...GOOD.slice(0, 6), '--certificate', 'f'],
  'two limits on time': [...GOOD, '--max-hours', '1', '--max-seconds', '9'],
  'a name with a slash': [...GOOD, '--name', 'a/b'],
  'a number that is none': [...GOOD, '--max-epochs', 'many'],
  'a part of an epoch': [...GOOD, '--max-epochs', '0.5'],
  'no time at all': [...GOOD, '--max-hours', '0'],
  'an unknown option': [...GOOD, '--speed', '9'],
})) test(`options with ${what} are refused`, () => assert.throws(() => readRun(words), { exitCode: 2 }));

test('join reads where to as the token says, but for what the operator says', () => {
  const read = (...words) => readJoin([...words, '--token', TOKEN]).where;
  assert.deepEqual(read(), { server: 'fl.example.org:8443', enrolment: 'fl.example.org:8444' });
  assert.deepEqual(read('near:1'), { server: 'near:1', enrolment: 'near:8444' });
  assert.deepEqual(read('near:1', '--enrolment', '[::1]:2'), { server: 'near:1', enrolment: '[::1]:2' });
});

for (const [what, words] of Object.entries({
  'no token': [],
  'two tokens': ['--token', TOKEN, '--token-file', 'f'],
  'a file that is not there': ['--token-file', 'nowhere'],
  'a damaged token': ['--token', TOKEN.slice(0, -1)],
  'an address without a port': ['near', '--token', TOKEN],
  'two addresses': ['near:1', 'far:1', '--token', TOKEN],
})) test(`join with ${what} is refused`, () => assert.throws(() => readJoin(words), { exitCode: 2 }));

test('names and reasons keep their bounds', () => {
  assert.deepEqual(['a', '-a', 'a'.repeat(65), 'ä'].map(isClientName), [true, false, false, false]);
  const clipped = clipReason(`a\n${'ä'.repeat(600)}`);
  assert.ok(Buffer.byteLength(clipped) <= 1024 && /^a ä+$/.test(clipped));
});

/** The training: the documented order and batches, the plain form of features, and that it learns, to the same bits. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import test from 'node:test';
import tf from '@tensorflow/tfjs-core';
import { parse } from '../src/features.js';
import { Head } from '../src/head.js';
import { batches, epochOrder, open } from '../src/train_head.js';

const MEANING = 'fedstream meaning v1\nno\tyes\nyes\n2 numbers\n';
const PLAIN = Buffer.concat([
  Buffer.from('FSFEAT01'),
  Buffer.from('01000000010000000200000001000000', 'hex'),
  Buffer.from([MEANING.length, 0, 0, 0]),
  Buffer.from(MEANING), Buffer.from('01000000803f000000c00000003f00000000', 'hex'),
]);
const PLAN = { epochs: 20, batch_size: 8, learning_rate: 0.1, early_stopping_patience: 0, seed: '3' };

test('plain form reads as documented', () => {
  const { train, val, meaning, generated } = parse(PLAIN);
  assert.deepEqual([[...train.x], [...train.y], [...val.x], [...val.y]], [[1, -2], [1], [0.5, 0], [0]]);
  assert.deepEqual(meaning, { classNames: ['no', 'yes'], positiveClass: 'yes', preprocessing: '2 numbers' });
  assert.equal(generated, true);
});

for (const [what, content] of Object.entries({
  'nothing in it': Buffer.alloc(0),
  'a byte missing': PLAIN.subarray(0, -1),
  'a byte more': Buffer.concat([PLAIN, Buffer.alloc(1)]),
  'another beginning': Buffer.concat([Buffer.from('X'), PLAIN.subarray(1)]),
})) test(`features file with ${what} is refused`, () => assert.throws(() => parse(content)));

test('order of an epoch is that of fedtask', () => assert.deepEqual(epochOrder('7', 1, 5), [0, 1, 4, 3, 2]));

test('batches are of nearly equal size, the first longer', () => {
  assert.deepEqual(batches([1, 2, 3, 4, 5, 6, 7], 3), [[1, 2, 3], [4, 5], [6, 7]]);
});

test('fine-tune learns, and repeats to the bit', async (t) => {
  const training = await open({}, features(t, 40));
  const [one, two] = [await tune(training), await tune(training)];
  assert.ok(one.metrics.accuracy > 0.9 && one.metrics.loss < one.metrics.base_loss);
  assert.deepEqual(one, two);
  assert.notDeepEqual((await tune(training, { ...PLAN, seed: '4' })).weights, one.weights);
});

test('fine-tune gives back all memory of TensorFlow.js', async (t) => {
  const training = await open({}, features(t, 40));
  const before = tf.memory().numTensors;
  await tune(training);
  assert.equal(tf.memory().numTensors, before);
});

test('one step is the one of fedtask', () => { // whose numbers these are
  const head = new Head(Float32Array.from([0.5, -0.25, 0.125]), 1e-3);
  const batch = { x: Float32Array.from([1, 2, -1, 0.5]), y: Uint8Array.from([1, 0]), num: 2, width: 2 };
  const { loss, hits } = head.step(batch, [0.5, 2], 0.1);
  assert.deepEqual([loss.toFixed(6), hits], ['1.106676', 2]);
  assert.deepEqual([...head.weights()].map((value) => value.toFixed(5)), ['0.59468', '-0.15343', '0.21721']);
});

test('fine-tune ends early and gives the best epoch', async (t) => {
  const training = await open({}, features(t, 40, 0.1));
  const losses = [];
  const plan = { ...PLAN, epochs: 500, early_stopping_patience: 2 };
  const { metrics, epochs } = await tune(training, plan, (report) => losses.push(report.metrics.val_loss));
  assert.ok(epochs < 500);
  assert.deepEqual([metrics.val_loss, losses.length], [Math.min(...losses), epochs]);
});

test('fine-tune stops when it is told to', async (t) => {
  const training = await open({}, features(t, 40));
  await assert.rejects(training.fineTune(base(), PLAN, () => {}, AbortSignal.abort()), { name: 'AbortError' });
});

function tune(training, plan = PLAN, report = () => {}) {
  return training.fineTune(base(), plan, report, new AbortController().signal);
}

function base() {
  return new Map([['head/kernel', Buffer.alloc(8)], ['head/bias', Buffer.alloc(4)]]);
}

/** A features file of two clouds, `num` examples to train and ten to validate. */
function features(t, num, distance = 1) {
  const folder = mkdtempSync(path.join(os.tmpdir(), 'fedstream-'));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  const header = Buffer.alloc(28);
  header.write('FSFEAT01');
  [num, 10, 2, 1, MEANING.length].forEach((value, at) => header.writeUInt32LE(value, 8 + 4 * at));
  const labels = Buffer.from(Array.from({ length: num + 10 }, (_, at) => at % 2));
  const middle = (at) => (labels[at >> 1] ? distance : -distance);
  const x = Float32Array.from({ length: 2 * (num + 10) }, (_, at) => wobble(at) + middle(at));
  const file = path.join(folder, 'site.features');
  writeFileSync(file, Buffer.concat([header, Buffer.from(MEANING), labels, Buffer.from(x.buffer)]));
  return file;
}

/** A number from -1 to 1 that is the same each time. */
function wobble(at) {
  const value = Math.sin(at * 12.9898) * 43758.5453;
  return 2 * (value - Math.floor(value)) - 1;
}

/**
 * The task `brain_mri_head`: logistic regression with Adam on features, as fedtask/brain_mri_head/training.py has it.
 *
 * A training module exports `taskName` and `open(settings, dataPath)`, which gives the object that `Training`
 * describes; `--task MODULE.js` puts another one in this one's place.
 *
 * @typedef {object} Training
 * @property {import('./model.js').Spec[]} schema
 * @property {import('./model.js').Meaning} meaning
 * @property {number} numExamples
 * @property {boolean} synthetic
 * @property {(base: Map<string, Buffer>, plan: object, report: Function, signal: AbortSignal) => Promise<{weights:
 *   Map<string, Buffer>, numExamples: number, metrics: Record<string, number | null>, epochs: number}>} fineTune
 *   the same base, plan and data give the same bytes
 */
import { createHash } from 'node:crypto';
import { setImmediate as turn } from 'node:timers/promises';
import { EXIT, Stop } from './errors.js';
import { readFeatures, take } from './features.js';
import { Head } from './head.js';

export const taskName = 'brain_mri_head';

const KERNEL = 'head/kernel';
const BIAS = 'head/bias';
const DEFAULT_ADAM_EPSILON = 1e-3;

/**
 * @param {Record<string, string>} settings the task's, from the server
 * @param {string} dataPath a features file in the plain form
 * @returns {Promise<Training>}
 */
export async function open(settings, dataPath) {
  const { train, val, meaning, generated } = await readFeatures(dataPath);
  if (train.num === 0) throw new Stop(EXIT.BAD_DATA, `${dataPath} has no training example`);
  const spec = { dtype: 'F32', trainable: true, role: 'weight' };
  return {
    schema: [{ name: KERNEL, shape: [train.width, 1], ...spec }, { name: BIAS, shape: [1], ...spec }],
    meaning,
    numExamples: train.num,
    synthetic: generated,
    fineTune: (base, plan, report, signal) => fineTune(train, val, settings, { base, plan, report, signal }),
  };
}

async function fineTune(train, val, settings, { base, plan, report, signal }) {
  const start = Float32Array.from([...floats(base.get(KERNEL)), ...floats(base.get(BIAS))]);
  const head = new Head(start, Number(settings.adam_epsilon ?? DEFAULT_ADAM_EPSILON));
  try {
    const labelWeights = settings.class_weights === 'balanced' ? balanced(train.y) : [1, 1];
    const baseScores = scores(head, val, 'base_');
    const runOnce = async (epoch) => {
      const metrics = await runEpoch(head, train, plan, labelWeights, epoch, signal);
      return { ...metrics, ...scores(head, val, 'val_') };
    };
    const patience = val.num > 0 ? plan.early_stopping_patience : 0;
    const { best, epochs } = await runEpochs(head, runOnce, patience, plan, report);
    const metrics = { ...best.metrics, ...baseScores };
    return { weights: toTensors(best.weights), numExamples: train.num, metrics, epochs };
  } finally {
    head.dispose();
  }
}

/** Epoch after epoch; with patience, what counts is the one of the lowest validation loss, else the last. */
async function runEpochs(head, runOnce, patience, plan, report) {
  let best = { loss: Infinity, epoch: 0 };
  let epoch = 0;
  do {
    epoch += 1;
    const metrics = await runOnce(epoch);
    report({ epoch, epochs: plan.epochs, fraction: epoch / plan.epochs, metrics });
    const isBest = patience === 0 || metrics.val_loss < best.loss;
    if (isBest) best = { loss: metrics.val_loss, epoch, metrics, weights: head.weights() };
  } while (epoch < plan.epochs && !(patience > 0 && epoch - best.epoch >= patience));
  return { best, epochs: epoch };
}

async function runEpoch(head, examples, plan, labelWeights, epoch, signal) {
  const sums = { loss: 0, hits: 0 };
  for (const batch of batches(epochOrder(plan.seed, epoch, examples.num), plan.batch_size)) {
    await turn(); // so that the connection lives while training goes on
    signal.throwIfAborted();
    const { loss, hits } = head.step(take(examples, batch), labelWeights, plan.learning_rate);
    sums.loss += loss;
    sums.hits += hits;
  }
  return { loss: sums.loss / examples.num, accuracy: sums.hits / examples.num };
}

/** Mean loss and accuracy; null where there is no example. */
function scores(head, examples, prefix) {
  const { loss, hits } = examples.num ? head.scores(examples) : {};
  const mean = (sum) => (examples.num ? sum / examples.num : null);
  return { [`${prefix}loss`]: mean(loss), [`${prefix}accuracy`]: mean(hits) };
}

/** The order of the examples in an epoch: by the SHA-256 of the text `SEED EPOCH INDEX`. @param {string} seed */
export function epochOrder(seed, epoch, num) {
  const key = (index) => createHash('sha256').update(`${seed} ${epoch} ${index}`).digest();
  const keyed = Array.from({ length: num }, (_, index) => ({ index, key: key(index) }));
  return keyed.sort((a, b) => Buffer.compare(a.key, b.key)).map(({ index }) => index);
}

/** The order cut into parts of nearly equal size, of which the first are longer by one. */
export function batches(order, batchSize) {
  const count = Math.ceil(order.length / batchSize);
  const [size, longer] = [Math.floor(order.length / count), order.length % count];
  const from = (at) => at * size + Math.min(at, longer);
  return Array.from({ length: count }, (_, at) => order.slice(from(at), from(at + 1)));
}

/** Weights by label that give both classes the same total. */
function balanced(y) {
  const ones = y.reduce((sum, label) => sum + label, 0);
  const counts = [y.length - ones, ones];
  const present = counts.filter(Boolean).length;
  return counts.map((count) => (count ? y.length / (present * count) : 0));
}

function floats(buffer) {
  return Array.from({ length: buffer.length / 4 }, (_, at) => buffer.readFloatLE(4 * at));
}

function toTensors(weights) {
  const bytes = Buffer.alloc(4 * weights.length);
  weights.forEach((value, at) => bytes.writeFloatLE(value, 4 * at));
  const bias = bytes.length - 4;
  return new Map([[KERNEL, bytes.subarray(0, bias)], [BIAS, bytes.subarray(bias)]]);
}

/**
 * The task `brain_mri_head`: logistic regression with Adam on features, as fedtask/brain_mri_head/training.py has it.
 *
 * A training module exports `taskName` and `open(settings, dataPath)`, which gives the object that `Training`
 * describes; `--task MODULE.js` puts another one in this one's place. Plain JavaScript is enough here: TensorFlow.js
 * would be twenty times as large as all the other packages together.
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
import { readFeatures } from './features.js';

export const taskName = 'brain_mri_head';

const KERNEL = 'head/kernel';
const BIAS = 'head/bias';
const [BETA_1, BETA_2] = [0.9, 0.999];
const EPSILON = 1e-7;
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
  const head = new Head(base, Number(settings.adam_epsilon ?? DEFAULT_ADAM_EPSILON));
  const labelWeights = settings.class_weights === 'balanced' ? balanced(train.y) : [1, 1];
  const baseScores = head.scores(val, 'base_');
  const patience = val.num > 0 ? plan.early_stopping_patience : 0;
  let best = { loss: Infinity, epoch: 0 };
  let epoch = 0;
  do {
    epoch += 1;
    const scores = await runEpoch(head, train, plan, labelWeights, epoch, signal);
    const metrics = { ...scores, ...head.scores(val, 'val_') };
    report({ epoch, epochs: plan.epochs, fraction: epoch / plan.epochs, metrics });
    const isBest = patience === 0 || metrics.val_loss < best.loss;
    if (isBest) best = { loss: metrics.val_loss, epoch, metrics, weights: head.weights.slice() };
  } while (epoch < plan.epochs && !(patience > 0 && epoch - best.epoch >= patience));
  const metrics = { ...best.metrics, ...baseScores };
  return { weights: toTensors(best.weights), numExamples: train.num, metrics, epochs: epoch };
}

async function runEpoch(head, examples, plan, labelWeights, epoch, signal) {
  const sums = { loss: 0, hits: 0 };
  for (const batch of batches(epochOrder(plan.seed, epoch, examples.num), plan.batch_size)) {
    await turn(); // so that the connection lives while training goes on
    signal.throwIfAborted();
    head.step(examples, batch, labelWeights, plan.learning_rate, sums);
  }
  return { loss: sums.loss / examples.num, accuracy: sums.hits / examples.num };
}

/** Weights as float64, the bias last, with Adam's state beside them. */
class Head {
  #epsilon;
  #m;
  #v;
  #steps = 0;

  constructor(base, epsilon) {
    this.weights = Float64Array.from([...floats(base.get(KERNEL)), ...floats(base.get(BIAS))]);
    this.#epsilon = epsilon;
    this.#m = new Float64Array(this.weights.length);
    this.#v = new Float64Array(this.weights.length);
  }

  /** Probability of label 1 for the example at `index`. */
  probability({ x, width }, index) {
    const { weights } = this;
    let logit = weights[width];
    for (let at = 0, from = index * width; at < width; at += 1) logit += x[from + at] * weights[at];
    return 0.5 * (1 + Math.tanh(0.5 * logit)); // exp would overflow
  }

  /** One step of Adam on the batch; adds its losses and hits to `sums`. */
  step(examples, batch, labelWeights, learningRate, sums) {
    const { x, y, width } = examples;
    const gradient = new Float64Array(width + 1);
    for (const index of batch) {
      const p = this.probability(examples, index);
      const error = ((p - y[index]) * labelWeights[y[index]]) / batch.length;
      for (let at = 0, from = index * width; at < width; at += 1) gradient[at] += error * x[from + at];
      gradient[width] += error;
      judge(p, y[index], sums);
    }
    this.#steps += 1;
    const rate = (learningRate * Math.sqrt(1 - BETA_2 ** this.#steps)) / (1 - BETA_1 ** this.#steps);
    gradient.forEach((value, at) => {
      this.#m[at] += (1 - BETA_1) * (value - this.#m[at]);
      this.#v[at] += (1 - BETA_2) * (value * value - this.#v[at]);
      this.weights[at] -= (rate * this.#m[at]) / (Math.sqrt(this.#v[at]) + this.#epsilon);
    });
  }

  /** Mean loss and accuracy; null where there is no example. */
  scores(examples, prefix) {
    const sums = { loss: 0, hits: 0 };
    for (let index = 0; index < examples.num; index += 1) {
      judge(this.probability(examples, index), examples.y[index], sums);
    }
    const mean = (sum) => (examples.num ? sum / examples.num : null);
    return { [`${prefix}loss`]: mean(sums.loss), [`${prefix}accuracy`]: mean(sums.hits) };
  }
}

function judge(p, label, sums) {
  const clipped = Math.min(Math.max(p, EPSILON), 1 - EPSILON);
  sums.loss -= label === 1 ? Math.log(clipped) : Math.log1p(-clipped);
  sums.hits += Number((p > 0.5) === (label === 1));
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

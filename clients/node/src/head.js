/**
 * The head as TensorFlow.js computes it: its weights, one step of Adam, and its scores.
 *
 * TensorFlow.js has float32 where fedtask has float64, so what is subtracted must not be nearly the same: instead of
 * p - y, which loses its digits where the head is right, this computes the probability of the wrong label by itself.
 * Gradients are written out: the packages for Node do not register those of TensorFlow.js, and these are one product.
 */
import tf from '@tensorflow/tfjs-core';
import '@tensorflow/tfjs-backend-cpu';

tf.enableProdMode(); // or it praises its other packages on standard error

const [BETA_1, BETA_2] = [0.9, 0.999];
/** Probabilities are cut to this in losses. */
const SMALLEST = 1e-7;

/** @typedef {{loss: number, hits: number}} Sums of the losses and hits of examples */

export class Head {
  #weights;
  #m;
  #v;
  #epsilon;
  #steps = 0;

  /** @param {Float32Array} weights the bias last @param {number} epsilon Adam's */
  constructor(weights, epsilon) {
    const shape = [weights.length, 1];
    this.#weights = tf.tensor2d(weights, shape);
    [this.#m, this.#v] = [tf.zeros(shape), tf.zeros(shape)];
    this.#epsilon = epsilon;
  }

  /** A copy of the weights as they are now. @returns {Float32Array} */
  weights() {
    return this.#weights.dataSync().slice();
  }

  /**
   * One step of Adam on a batch.
   * @param {import('./features.js').Examples} batch
   * @param {number[]} labelWeights by label
   * @param {number} learningRate
   * @returns {Sums} before the step
   */
  step(batch, labelWeights, learningRate) {
    this.#steps += 1;
    const rate = (learningRate * Math.sqrt(1 - BETA_2 ** this.#steps)) / (1 - BETA_1 ** this.#steps);
    const [wrong, ...next] = tf.tidy(() => {
      const x = withOnes(batch);
      const missed = this.#probabilityOfWrong(x, batch);
      const share = column(batch, (label) => (sign(label) * labelWeights[label]) / batch.num);
      const gradient = tf.matMul(x, tf.mul(missed, share), true);
      const m = tf.add(this.#m, times(tf.sub(gradient, this.#m), 1 - BETA_1));
      const v = tf.add(this.#v, times(tf.sub(tf.square(gradient), this.#v), 1 - BETA_2));
      const step = tf.div(times(m, rate), tf.add(tf.sqrt(v), tf.fill(v.shape, this.#epsilon)));
      return [missed, tf.sub(this.#weights, step), m, v];
    });
    const sums = judge(wrong.dataSync(), batch.y);
    tf.dispose([wrong, this.#weights, this.#m, this.#v]);
    [this.#weights, this.#m, this.#v] = next;
    return sums;
  }

  /** @param {import('./features.js').Examples} examples one at least @returns {Sums} */
  scores(examples) {
    return judge(tf.tidy(() => this.#probabilityOfWrong(withOnes(examples), examples).dataSync()), examples.y);
  }

  /** Give the memory back, which the collector does not see. */
  dispose() {
    tf.dispose([this.#weights, this.#m, this.#v]);
  }

  #probabilityOfWrong(x, examples) {
    return tf.sigmoid(tf.mul(column(examples, sign), tf.matMul(x, this.#weights)));
  }
}

/** Towards the wrong label, as seen from this one. */
function sign(label) {
  return label === 1 ? -1 : 1;
}

/** The features with a 1 after each row, which the bias is multiplied by. */
function withOnes({ x, num, width }) {
  const rows = new Float32Array(num * (width + 1)).fill(1);
  for (let at = 0; at < num; at += 1) rows.set(x.subarray(at * width, (at + 1) * width), at * (width + 1));
  return tf.tensor2d(rows, [num, width + 1]);
}

function column({ y, num }, ofLabel) {
  return tf.tensor2d(Float32Array.from(y, ofLabel), [num, 1]);
}

/** A product with a number. TensorFlow.js is many times slower where the shapes of two factors differ. */
function times(tensor, factor) {
  return tf.mul(tensor, tf.fill(tensor.shape, factor));
}

function judge(wrong, y) {
  const sums = { loss: 0, hits: 0 };
  wrong.forEach((p, at) => {
    sums.loss -= Math.log1p(-Math.min(Math.max(p, SMALLEST), 1 - SMALLEST));
    sums.hits += Number(y[at] === 1 ? p < 0.5 : p <= 0.5); // one half counts as label 0
  });
  return sums;
}

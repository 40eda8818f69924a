/**
 * The plain form of a features file, as `fedclient features` writes it; numbers are little-endian:
 *
 *     8  `FSFEAT01`          4  training examples    4  validation examples    4  d    4  1 for generated data
 *     4  m                   m  the task's meaning   n  labels, uint8          n * d * 4  features, float32
 */
import { readFile, stat } from 'node:fs/promises';
import path from 'node:path';
import { EXIT, Stop } from './errors.js';
import { parseMeaning } from './model.js';

const MAGIC = 'FSFEAT01';
const HEADER_BYTES = 28;

/**
 * @typedef {{x: Float32Array, y: Uint8Array, num: number, width: number}} Examples x is row after row
 * @typedef {{train: Examples, val: Examples, meaning: import('./model.js').Meaning, generated: boolean}} Features
 */

/**
 * @param {string} file or a folder with `features.features`
 * @returns {Promise<Features>}
 * @throws {Stop} it is not there or not sound
 */
export async function readFeatures(file) {
  try {
    const isFolder = (await stat(file)).isDirectory();
    return withValidation(parse(await readFile(isFolder ? path.join(file, 'features.features') : file)));
  } catch (error) {
    throw new Stop(EXIT.BAD_DATA, `${file} is no features file: ${error.message}; \`fedclient features\` makes one`);
  }
}

/** @param {Buffer} content @returns {Features} */
export function parse(content) {
  const [numTrain, numVal, width, generated, meaningBytes] = [8, 12, 16, 20, 24].map((at) => content.readUInt32LE(at));
  const num = numTrain + numVal;
  const labelsAt = HEADER_BYTES + meaningBytes;
  const featuresAt = labelsAt + num;
  if (content.toString('latin1', 0, 8) !== MAGIC || content.length !== featuresAt + 4 * num * width) {
    throw new Error('its beginning or its length is wrong');
  }
  const y = content.subarray(labelsAt, featuresAt);
  // A copy, since a view of float32 has to begin at a multiple of four.
  const x = new Float32Array(Uint8Array.from(content.subarray(featuresAt)).buffer);
  const isSound = y.every((label) => label <= 1) && x.every(Number.isFinite);
  if (!isSound) throw new Error('a label or a feature is out of bounds');
  const rows = (from, to) => x.subarray(from * width, to * width);
  const part = (from, to) => ({ x: rows(from, to), y: y.subarray(from, to), num: to - from, width });
  const meaning = parseMeaning(content.toString('utf8', HEADER_BYTES, labelsAt));
  return { train: part(0, numTrain), val: part(numTrain, num), meaning, generated: generated === 1 };
}

/** One example in so many validates where a file has none for it and twice as many examples. */
const VAL_EVERY = 7;

/**
 * With validation examples: where the file has none, every seventh, by label and then by place, as fedtask does it.
 * @param {Features} features @returns {Features}
 */
export function withValidation(features) {
  const { train, val } = features;
  if (val.num > 0 || train.num < 2 * VAL_EVERY) return features;
  const indices = Array.from(train.y.keys());
  const byLabel = indices.toSorted((one, other) => train.y[one] - train.y[other] || one - other);
  const inVal = new Set(byLabel.filter((_, at) => at % VAL_EVERY === VAL_EVERY - 1));
  const chosen = (isVal) => take(train, indices.filter((index) => inVal.has(index) === isVal));
  return { ...features, train: chosen(false), val: chosen(true) };
}

/**
 * The examples at these indices, in this order.
 * @param {Examples} examples @param {number[]} indices @returns {Examples}
 */
export function take({ x, y, width }, indices) {
  const rows = new Float32Array(indices.length * width);
  indices.forEach((index, at) => rows.set(x.subarray(index * width, (index + 1) * width), at * width));
  return { x: rows, y: Uint8Array.from(indices, (index) => y[index]), num: indices.length, width };
}

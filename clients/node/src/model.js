/**
 * Schemas, manifests and meanings, their canonical descriptions and digests.
 *
 * @typedef {{name: string, dtype: string, shape: number[], trainable: boolean, role: string}} Spec
 *   dtype by its canonical name such as `F32`; role `weight` or `statistic`
 * @typedef {{name: string, dtype: string, shape: number[], sha256: Buffer, size: number}} Entry
 *   size and sha256 of the tensor's values, raw
 * @typedef {{classNames: string[], positiveClass: string, preprocessing: string}} Meaning
 */
import { createHash } from 'node:crypto';

/** Bytes of one element, by canonical name. */
export const ITEM_BYTES = Object.freeze({
  BOOL: 1, I8: 1, I16: 2, I32: 4, I64: 8, U8: 1, U16: 2, U32: 4, U64: 8, F16: 2, BF16: 2, F32: 4, F64: 8,
});

/** @param {Uint8Array | string} data @returns {Buffer} 32 bytes */
export function sha256(data) {
  return createHash('sha256').update(data).digest();
}

/** Bytes of a tensor's values, raw. @param {{dtype: string, shape: number[]}} tensor */
export function sizeOf({ dtype, shape }) {
  return shape.reduce((product, length) => product * length, ITEM_BYTES[dtype]);
}

/** The entry of a tensor with these values. @param {Spec} spec @param {Buffer} values @returns {Entry} */
export function entryOf({ name, dtype, shape }, values) {
  return { name, dtype, shape, sha256: sha256(values), size: values.length };
}

/**
 * What travels of an entry: its values, or what they were packed into.
 * @param {import('./packing.js').PackedEntry} entry
 */
export function bodyOf(entry) {
  return entry.body ?? entry;
}

/** @param {Entry[]} entries @returns {string} */
export function canonicalModel(entries) {
  const line = ({ name, dtype, shape, sha256: digest }) => [name, dtype, shape.join(','), digest.toString('hex')];
  return lines('fedstream model v1', entries.map(line));
}

/** The digest that names a model. @param {Entry[]} entries @returns {{sha256: Buffer, size: number}} */
export function modelDigest(entries) {
  const text = Buffer.from(canonicalModel(entries));
  return { sha256: sha256(text), size: text.length };
}

/** @param {Spec[]} specs @returns {string} */
export function canonicalSchema(specs) {
  const line = ({ name, dtype, shape, trainable, role }) =>
    [name, dtype, shape.join(','), trainable ? 'trainable' : 'frozen', role];
  return lines('fedstream schema v1', specs.map(line));
}

/** @param {Meaning} meaning @returns {string} */
export function canonicalMeaning({ classNames, positiveClass, preprocessing }) {
  return lines('fedstream meaning v1', [classNames, [positiveClass], [preprocessing]]);
}

/** The meaning of which `text` is the canonical description. @param {string} text @returns {Meaning} */
export function parseMeaning(text) {
  const [head, names, positiveClass, preprocessing, ...rest] = text.split('\n');
  const meaning = { classNames: names ? names.split('\t') : [], positiveClass, preprocessing };
  if (head !== 'fedstream meaning v1' || rest.length !== 1 || canonicalMeaning(meaning) !== text) {
    throw new Error('this is no canonical description of a meaning');
  }
  return meaning;
}

function lines(head, rows) {
  return [[head], ...rows].map((row) => `${row.join('\t')}\n`).join('');
}

/** Between the contract's messages and the client's own shapes; what is read is checked here, before it is used. */
import { crc32c } from './crc32c.js';
import { RAW } from './encodings.js';
import { Breach, Trouble } from './errors.js';
import * as limits from './limits.js';
import { bodyOf, ITEM_BYTES, sizeOf } from './model.js';

const NAMES = {
  BOOL: 'BOOL', I8: 'INT8', I16: 'INT16', I32: 'INT32', I64: 'INT64', U8: 'UINT8', U16: 'UINT16', U32: 'UINT32',
  U64: 'UINT64', F16: 'FLOAT16', BF16: 'BFLOAT16', F32: 'FLOAT32', F64: 'FLOAT64',
};
const TO_WIRE = Object.fromEntries(Object.keys(ITEM_BYTES).map((name) => [name, `DATA_TYPE_${NAMES[name]}`]));
const FROM_WIRE = Object.fromEntries(Object.entries(TO_WIRE).map(([name, wire]) => [wire, name]));

/** @param {import('./model.js').Spec} spec */
export function writeSpec({ name, dtype, shape, trainable = false, role = '' }) {
  const known = { weight: 'TENSOR_ROLE_WEIGHT', statistic: 'TENSOR_ROLE_STATISTIC' };
  return { name, dtype: TO_WIRE[dtype], shape, trainable, role: known[role] ?? 'TENSOR_ROLE_UNSPECIFIED' };
}

/** A schema in the messages that answer a schema query. @param {import('./model.js').Spec[]} schema */
export function schemaParts(schema) {
  const parts = [];
  for (let start = 0; start === 0 || start < schema.length; start += limits.MAX_TENSORS_PER_PART) {
    const end = start + limits.MAX_TENSORS_PER_PART;
    parts.push({ schema_part: { tensors: schema.slice(start, end).map(writeSpec), last: end >= schema.length } });
  }
  return parts;
}

/** @param {{sha256: Buffer, size: number}} digest */
export function writeDigest({ sha256, size }) {
  return { sha256, size_bytes: String(size) };
}

/** @param {import('./model.js').Meaning} meaning */
export function writeMeaning({ classNames, positiveClass, preprocessing }) {
  return { class_names: classNames, positive_class: positiveClass, preprocessing };
}

/** @param {import('./packing.js').PackedEntry} entry */
export function writeEntry(entry) {
  const { encoding = RAW } = entry;
  const encoded = String(bodyOf(entry).size);
  return { spec: writeSpec(entry), digest: writeDigest(entry), encoding, encoded_size_bytes: encoded };
}

/**
 * One entry of a manifest from the network. Models travel raw.
 * @returns {import('./model.js').Entry}
 * @throws {Breach} it breaks a rule
 */
export function readEntry({ spec, digest, encoding, encoded_size_bytes: encoded }) {
  const dtype = FROM_WIRE[spec?.dtype];
  const shape = (spec?.shape ?? []).map(Number);
  const size = Number(digest?.size_bytes);
  // An axis of length 0 does not excuse the others.
  const fits = sizeOf({ dtype, shape: shape.map((length) => length || 1) }) <= limits.MAX_MODEL_BYTES;
  const sound = dtype !== undefined && limits.isTensorName(spec.name) && shape.length <= limits.MAX_AXES && fits
    && digest?.sha256.length === 32 && size === sizeOf({ dtype, shape })
    && encoding === RAW && Number(encoded) === size;
  if (!sound) throw new Breach(`the manifest's tensor ${JSON.stringify(spec?.name?.slice(0, 80))} is not sound`);
  return { name: spec.name, dtype, shape, sha256: Buffer.from(digest.sha256), size };
}

/** A manifest in parts, each within the bounds on tensors and bytes. @param {import('./model.js').Entry[]} entries */
export function manifestParts(entries) {
  const most = Math.min(limits.MAX_TENSORS_PER_PART, Math.floor(limits.MAX_PART_BYTES / MOST_ENTRY_BYTES));
  const parts = [];
  for (let start = 0; start === 0 || start < entries.length; start += most) {
    parts.push({ entries: entries.slice(start, start + most).map(writeEntry) });
  }
  return parts;
}
// Name, 32 axes of 10 bytes, two sizes, the sha256 and the tags of all of them.
const MOST_ENTRY_BYTES = limits.MAX_NAME_BYTES + 32 * 10 + 2 * 10 + 32 + 64;

/** @param {number} offset @param {Buffer} data */
export function writeChunk(offset, data) {
  return { write_offset: String(offset), crc32c: crc32c(data), data };
}

/**
 * What is new in a chunk, if it breaks none of the rules for chunks.
 * @param {{write_offset: string, crc32c: number, data: Buffer} | null} chunk
 * @param {number} have bytes of the body that are here
 * @param {number} size of the body
 * @returns {Buffer} the bytes from `have` on; none for a keep-alive
 * @throws {Trouble}
 */
export function readChunk(chunk, have, size) {
  if (!chunk) throw new Trouble('a message came without a chunk');
  const { data } = chunk;
  const begin = Number(chunk.write_offset);
  if (data.length > limits.MAX_CHUNK_BYTES) throw new Trouble(`a chunk of ${data.length} bytes came`);
  if (crc32c(data) !== chunk.crc32c) throw new Trouble(`the chunk at ${begin} was damaged on its way`);
  if (begin > have) throw new Trouble(`a chunk came for ${begin}, not ${have}`);
  if (begin + data.length > size) throw new Trouble(`a chunk reaches to ${begin + data.length} of ${size} bytes`);
  return data.subarray(have - begin);
}

/** Ascending indexes below `count`. @param {number[]} indexes @param {number} count @throws {Breach} */
export function readIndexes(indexes, count) {
  const sound = indexes.every((index, at) => index < count && (at === 0 || index > indexes[at - 1]));
  if (!sound) throw new Breach('the server asks for tensors that are not in the manifest');
  return indexes;
}

/** @param {Record<string, number | null>} metrics a value that is not finite goes without value */
export function writeMetrics(metrics) {
  return Object.entries(metrics).slice(0, 64).map(([name, value]) =>
    Number.isFinite(value) ? { name, value } : { name, undefined_reason: 'not a finite number' });
}

/** @returns {Record<string, number>} those that have a value */
export function readMetrics(messages) {
  const known = messages.filter(({ value }) => value !== undefined);
  return Object.fromEntries(known.map(({ name, value }) => [name, value]));
}

/** @param {{seconds: string, nanos: number} | null} duration */
export function seconds(duration) {
  return duration ? Number(duration.seconds) + duration.nanos / 1e9 : 0;
}

/** @param {number | null | undefined} value seconds */
export function writeDuration(value) {
  if (value === null || value === undefined) return undefined;
  const span = Math.min(value, limits.MAX_SPAN_SECONDS);
  const whole = Math.floor(span);
  return { seconds: String(whole), nanos: Math.min(Math.round((span - whole) * 1e9), 999_999_999) };
}

/** Between the contract's messages and the client's own shapes; what is read is checked here, before it is used. */
import { crc32c } from './crc32c.js';
import { Trouble } from './errors.js';
import * as limits from './limits.js';
import { ITEM_BYTES, sizeOf } from './model.js';

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

/** An entry whose values travel raw. @param {import('./model.js').Entry} entry */
export function writeEntry(entry) {
  const size = String(entry.size);
  const digest = { sha256: entry.sha256, size_bytes: size };
  return { spec: writeSpec(entry), digest, encoding: 'ENCODING_RAW', encoded_size_bytes: size };
}

/**
 * One entry of a manifest from the network.
 * @returns {import('./model.js').Entry}
 * @throws {Trouble} it breaks a rule
 */
export function readEntry({ spec, digest, encoding, encoded_size_bytes: encoded }) {
  const dtype = FROM_WIRE[spec?.dtype];
  const shape = (spec?.shape ?? []).map(Number);
  const size = Number(digest?.size_bytes);
  // An axis of length 0 does not excuse the others.
  const fits = sizeOf({ dtype, shape: shape.map((length) => length || 1) }) <= limits.MAX_MODEL_BYTES;
  const sound = dtype !== undefined && limits.isTensorName(spec.name) && shape.length <= limits.MAX_AXES && fits
    && digest?.sha256.length === 32 && size === sizeOf({ dtype, shape })
    && encoding === 'ENCODING_RAW' && Number(encoded) === size;
  if (!sound) throw new Trouble(`the manifest's tensor ${JSON.stringify(spec?.name?.slice(0, 80))} is not sound`);
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
 * A chunk's bytes, if it stands where it should and its checksum is right.
 * @param {{write_offset: string, crc32c: number, data: Buffer}} chunk
 * @param {number} offset
 * @returns {Buffer}
 */
export function readChunk(chunk, offset) {
  if (Number(chunk.write_offset) !== offset) throw new Trouble(`a chunk came for ${chunk.write_offset}, not ${offset}`);
  if (crc32c(chunk.data) !== chunk.crc32c) throw new Trouble(`the chunk at ${offset} was damaged on its way`);
  return chunk.data;
}

/** Ascending indexes below `count`. @param {number[]} indexes @param {number} count */
export function readIndexes(indexes, count) {
  const sound = indexes.every((index, at) => index < count && (at === 0 || index > indexes[at - 1]));
  if (!sound) throw new Trouble('the server asks for tensors that are not in the manifest');
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
  const whole = Math.floor(value);
  return { seconds: String(whole), nanos: Math.min(Math.round((value - whole) * 1e9), 999_999_999) };
}

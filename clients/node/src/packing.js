/**
 * An update made ready to travel in the encoding that was agreed on, once, and on disk before its first byte is sent.
 *
 * What a lossy encoding leaves out of an update is added to the next one (error feedback): over the rounds nothing of
 * the training is lost but its timing.
 *
 * @typedef {import('./model.js').Entry & {encoding?: string, body?: {sha256: Buffer, size: number}}} PackedEntry
 *   `body` is what travels, where that is not the values themselves
 * @typedef {{name: string, sha256: Buffer, size: number}} LeftOut a tensor's, float32
 * @typedef {{entries: PackedEntry[], leftOut: LeftOut[]}} Packed
 */
import { decodeMoved, encodeMoved, framed, isLossy, RAW, suits } from './encodings.js';
import { entryOf, sha256 } from './model.js';

/**
 * Pack an update; all bytes are in the store then.
 * @param {import('./store.js').Store} store
 * @param {import('./model.js').Entry[]} base
 * @param {import('./model.js').Entry[]} trained in the same order
 * @param {string} encoding
 * @param {LeftOut[]} leftOut of earlier updates
 * @returns {Promise<Packed>}
 */
export async function pack(store, base, trained, encoding, leftOut) {
  const left = new Map(leftOut.map((one) => [one.name, one]));
  const entries = [];
  for (const [at, entry] of trained.entries()) {
    const isChanged = !entry.sha256.equals(base[at].sha256);
    entries.push(isChanged && suits(encoding, entry) ? await packOne(store, base[at], entry, encoding, left) : entry);
  }
  return { entries, leftOut: isLossy(encoding) ? [...left.values()] : [] };
}

/** Whether all of it may travel as it was packed. @param {Packed} packed @param {string[]} encodings raw among them */
export function isOf({ entries }, encodings) {
  return entries.every(({ encoding = RAW }) => encodings.includes(encoding));
}

async function packOne(store, base, entry, encoding, left) {
  const values = await store.read(entry);
  if (!isLossy(encoding)) return withBody(store, entry, encoding, values);
  const [started, known] = [floats(await store.read(base)), left.get(entry.name)];
  const before = known?.size === entry.size ? floats(await store.read(known)) : null;
  const moved = floats(values).map((value, at) => Math.fround(value - started[at]) + (before?.[at] ?? 0));
  if (!moved.every(Number.isFinite)) return entry; // which is for the server to see as it is
  const data = encodeMoved(encoding, moved);
  const arrived = decodeMoved(encoding, data, started);
  const leftNow = arrived.map((value, at) => moved[at] - Math.fround(value - started[at]));
  left.set(entry.name, await keep(store, entry.name, leftNow));
  return withBody(store, entryOf(entry, bytes(arrived)), encoding, data);
}

async function withBody(store, entry, encoding, data) {
  const { sha256: digest, size } = await keep(store, entry.name, await framed(encoding, data));
  return { ...entry, encoding, body: { sha256: digest, size } };
}

async function keep(store, name, numbers) {
  const data = bytes(numbers);
  const blob = { name, sha256: sha256(data), size: data.length };
  if (!(await store.has(blob))) await store.put(blob, data);
  return blob;
}

function floats(buffer) {
  return new Float32Array(Uint8Array.from(buffer).buffer); // a copy, since a view has to begin at a multiple of four
}

function bytes(numbers) {
  return Buffer.from(numbers.buffer, numbers.byteOffset, numbers.byteLength);
}

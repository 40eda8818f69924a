/**
 * How a tensor of an update may travel: as it is, smaller, or smaller at the price of some precision.
 *
 * What a lossy encoding carries is how far training moved a tensor. All of it is float32 arithmetic: sums, products and
 * quotients of two float32 numbers, made in JavaScript's float64 and rounded once, are those of float32, since 53 bits
 * are more than twice 24 and two.
 */
import { Zstd } from '@hpcc-js/wasm-zstd';

export const RAW = 'ENCODING_RAW';
const [BFLOAT16, INT8] = ['ENCODING_BFLOAT16', 'ENCODING_INT8'];
/** What is in the frame of a compressed encoding. */
const FRAMED = { ENCODING_ZSTD: RAW, ENCODING_BFLOAT16_ZSTD: BFLOAT16, ENCODING_INT8_ZSTD: INT8 };
/** All that are written here, for the hello. */
export const ENCODINGS = Object.freeze([RAW, BFLOAT16, INT8, ...Object.keys(FRAMED)]);

/** The word for whichever the coordinator has chosen. */
export const AUTO = 'auto';

const BLOCK = 256;
const LARGEST_CODE = 127;
/** Elements below which a tensor travels as it is: biases and statistics are few bytes, each of a whole channel. */
const FEWEST_LOSSY = 1_024;
/** The compressor's own default; its window is 2 MiB at most, of 8 that are allowed. */
const ZSTD_LEVEL = 3;

/** What an encoding is called on command lines, such as `int8+zstd`. */
export function wordOf(encoding) {
  return encoding.replace('ENCODING_', '').replace('_', '+').toLowerCase();
}

/**
 * The encodings that a site takes, for the hello.
 * @param {string} word the only one beside raw; `auto` for all
 * @throws {Error} it is none
 */
export function taken(word) {
  if (word === AUTO) return ENCODINGS;
  const found = ENCODINGS.filter((encoding) => encoding === RAW || wordOf(encoding) === word);
  if (found.map(wordOf).includes(word)) return found;
  throw new Error(`--update-encoding is one of ${AUTO}, ${ENCODINGS.map(wordOf).join(', ')}, not ${word}`);
}

/** Those to use of what a server has listed, best first; what this site does not take is left out, and raw remains. */
export function usable(listed, takes = ENCODINGS) {
  const both = listed.filter((encoding) => takes.includes(encoding));
  return both.includes(RAW) ? both : [...both, RAW];
}

export function isLossy(encoding) {
  return innerOf(encoding) !== RAW;
}

/** Whether to use an encoding for a tensor; others travel as they are. @param {import('./model.js').Entry} entry */
export function suits(encoding, { dtype, size }) {
  return isLossy(encoding) ? dtype === 'F32' && size >= 4 * FEWEST_LOSSY : size > 0;
}

/**
 * What a lossy encoding writes, before it is framed.
 * @param {string} encoding
 * @param {Float32Array} moved finite
 * @returns {Buffer}
 */
export function encodeMoved(encoding, moved) {
  return innerOf(encoding) === BFLOAT16 ? asBfloat16(moved) : asInt8(moved);
}

/**
 * The values that the bytes of `encodeMoved` make of a base.
 * @param {string} encoding @param {Buffer} data @param {Float32Array} base @returns {Float32Array}
 */
export function decodeMoved(encoding, data, base) {
  const moved = innerOf(encoding) === BFLOAT16 ? fromBfloat16(data, base.length) : fromInt8(data, base.length);
  return base.map((value, at) => value + moved[at]);
}

/** The bytes as they travel: in a frame of zstd, if the encoding has one. @returns {Promise<Buffer>} */
export async function framed(encoding, data) {
  if (!(encoding in FRAMED)) return data;
  return Buffer.from((await Zstd.load()).compress(data, ZSTD_LEVEL));
}

function innerOf(encoding) {
  return FRAMED[encoding] ?? encoding;
}

function asBfloat16(moved) {
  const bits = new Uint32Array(moved.buffer, moved.byteOffset, moved.length);
  // To the nearest, ties to even. No finite number overflows 32 bits here.
  return bytesOf(Uint16Array.from(bits, (pattern) => (pattern + 0x7fff + ((pattern >>> 16) & 1)) >>> 16));
}

function fromBfloat16(data, count) {
  const codes = new Uint16Array(Uint8Array.from(data).buffer, 0, count);
  return new Float32Array(Uint32Array.from(codes, (code) => code << 16).buffer);
}

function asInt8(moved) {
  const scales = new Float32Array(Math.ceil(moved.length / BLOCK));
  const codes = new Int8Array(moved.length);
  scales.forEach((_, at) => {
    const block = moved.subarray(at * BLOCK, (at + 1) * BLOCK);
    scales[at] = block.reduce((most, value) => Math.max(most, Math.abs(value)), 0) / LARGEST_CODE;
    const scale = scales[at]; // as rounded to float32; 0 also for a block next to 0
    if (scale > 0) codes.set(block.map((value) => toCode(Math.fround(value / scale))), at * BLOCK);
  });
  return Buffer.concat([bytesOf(scales), bytesOf(codes)]);
}

function fromInt8(data, count) {
  const blocks = Math.ceil(count / BLOCK);
  const scales = new Float32Array(Uint8Array.from(data.subarray(0, 4 * blocks)).buffer);
  const codes = new Int8Array(Uint8Array.from(data.subarray(4 * blocks)).buffer, 0, count);
  return Float32Array.from(codes, (code, at) => scales[Math.floor(at / BLOCK)] * code);
}

/** To an integer, ties to even, within the codes. */
function toCode(value) {
  const up = Math.round(value); // of two equally near, the greater
  const nearest = Math.abs(value % 1) === 0.5 && up % 2 !== 0 ? up - 1 : up;
  return Math.min(Math.max(nearest, -LARGEST_CODE), LARGEST_CODE);
}

function bytesOf(numbers) {
  return Buffer.from(numbers.buffer, numbers.byteOffset, numbers.byteLength);
}

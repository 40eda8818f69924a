/** Encodings: the golden vectors both ways, what is sent in which, and that nothing is lost for good. */
import assert from 'node:assert/strict';
import test from 'node:test';
import { Zstd } from '@hpcc-js/wasm-zstd';
import {
  decodeMoved, encodeMoved, ENCODINGS, framed, isLossy, suits, taken, usable, wordOf,
} from '../src/encodings.js';
import { entryOf, sha256 } from '../src/model.js';
import { isOf, pack } from '../src/packing.js';
import { openStore } from './fakes.js';
import { hex, readVectors } from './vectors.js';

const zstd = await Zstd.load();
const floats = (buffer) => new Float32Array(Uint8Array.from(buffer).buffer);
const bytes = (numbers) => Buffer.from(numbers.buffer, numbers.byteOffset, numbers.byteLength);

// Cases that must be refused are for a server, which alone reads encoded bytes.
for (const vector of readVectors('encodings.txt').filter(({ values }) => values !== null)) {
  const { encoding, base, moved, values } = vector;
  const plain = (data) => (encoding.endsWith('ZSTD') ? Buffer.from(zstd.decompress(data)) : data);
  const unframed = () => plain(hex(vector.encoded));
  test(`encoding: ${vector.case}`, async () => {
    assert.ok(ENCODINGS.includes(encoding));
    const decoded = isLossy(encoding) ? bytes(decodeMoved(encoding, unframed(), floats(hex(base)))) : unframed();
    assert.equal(decoded.toString('hex'), values);
    assert.equal(sha256(decoded).toString('hex'), vector.sha256);
    if (isLossy(encoding) && !moved) return;
    const written = isLossy(encoding) ? encodeMoved(encoding, floats(hex(moved))) : hex(values);
    assert.deepEqual(written, unframed());
    const travels = await framed(encoding, written);
    assert.deepEqual(plain(travels), written);
  });
}

test('encodings that are listed and known are used in their order, and raw in any case', () => {
  assert.deepEqual(usable([99, 'ENCODING_INT8', 'ENCODING_RAW']), ['ENCODING_INT8', 'ENCODING_RAW']);
  assert.deepEqual(usable([99]), ['ENCODING_RAW']);
  assert.deepEqual(usable([]), ['ENCODING_RAW']);
  assert.deepEqual(usable(['ENCODING_INT8', 'ENCODING_ZSTD'], taken('zstd')), ['ENCODING_ZSTD', 'ENCODING_RAW']);
});

test('encodings have the words that the server has for them', () => {
  const words = ['raw', 'bfloat16', 'int8', 'zstd', 'bfloat16+zstd', 'int8+zstd'];
  for (const word of words) assert.deepEqual(taken(word).map(wordOf), [...new Set(['raw', word])]);
  assert.deepEqual(taken('auto').map(wordOf), words);
  assert.throws(() => taken('int4'), /int8\+zstd, not int4/);
});

test('lossy encodings are for larger tensors of float32', () => {
  const entry = (dtype, size) => ({ dtype, size });
  const cases = [['ENCODING_INT8', 'F32', 4096], ['ENCODING_INT8', 'F32', 4092], ['ENCODING_INT8', 'F64', 8192],
    ['ENCODING_ZSTD', 'F64', 8], ['ENCODING_ZSTD', 'F64', 0]];
  assert.deepEqual(cases.map(([encoding, ...is]) => suits(encoding, entry(...is))), [true, false, false, true, false]);
});

const SPEC = { name: 'kernel', dtype: 'F32', shape: [2000, 1] };
const SMALL = { name: 'bias', dtype: 'F32', shape: [1] };

/** A base of zeros and a fine-tune that moved everything by `far(at)`. */
async function trained(store, far) {
  const values = [Float32Array.from({ length: 2000 }, (_, at) => far(at)), Float32Array.of(far(0))];
  const keep = async (spec, numbers) => {
    const entry = entryOf(spec, bytes(numbers));
    await store.put(entry, bytes(numbers));
    return entry;
  };
  const both = async (numbers) => [await keep(SPEC, numbers[0]), await keep(SMALL, numbers[1])];
  return { base: await both(values.map((one) => one.map(() => 0))), update: await both(values), values };
}

for (const encoding of ENCODINGS.filter(isLossy)) {
  test(`what ${encoding} leaves out comes with the next updates`, async (t) => {
    const store = await openStore(t);
    const { base, update, values } = await trained(store, (at) => Math.sin(at * 1.7));
    const arrived = new Float64Array(2000);
    let leftOut = [];
    for (let round = 0; round < 8; round += 1) {
      const packed = await pack(store, base, update, encoding, leftOut);
      const [kernel, bias] = packed.entries;
      assert.deepEqual([kernel.encoding, bias.encoding], [encoding, undefined]);
      const data = await store.read(kernel.body);
      const inner = encoding.endsWith('ZSTD') ? Buffer.from(zstd.decompress(data)) : data;
      const decoded = decodeMoved(encoding, inner, new Float32Array(2000));
      assert.deepEqual(sha256(bytes(decoded)), kernel.sha256);
      decoded.forEach((value, at) => { arrived[at] += value; });
      leftOut = packed.leftOut;
    }
    const off = arrived.map((value, at) => Math.abs(value / 8 - values[0][at]));
    assert.ok(Math.max(...off) < 0.0008, `${Math.max(...off)}`); // alone, each would be off by up to 0.004
  });
}

test('tensor that moved without bound travels as it is', async (t) => {
  const store = await openStore(t);
  const { base, update } = await trained(store, (at) => (at === 7 ? Infinity : 1));
  const { entries, leftOut } = await pack(store, base, update, 'ENCODING_INT8', []);
  assert.deepEqual([entries, leftOut], [update, []]);
});

test('tensor that did not change is not packed, and what is packed twice is the same', async (t) => {
  const store = await openStore(t);
  const { base, update } = await trained(store, (at) => at);
  assert.deepEqual((await pack(store, base, base, 'ENCODING_INT8_ZSTD', [])).entries, base);
  const one = await pack(store, base, update, 'ENCODING_ZSTD', []);
  const two = await pack(store, base, update, 'ENCODING_ZSTD', []);
  assert.deepEqual(one, two);
  assert.ok(one.entries[0].body.size < update[0].size);
});

test('what was packed stands while every encoding in it may be used', async (t) => {
  const store = await openStore(t);
  const { base, update } = await trained(store, (at) => at);
  const small = await pack(store, base, update, 'ENCODING_INT8', []);
  const said = [['ENCODING_INT8'], ['ENCODING_BFLOAT16', 'ENCODING_INT8'], ['ENCODING_BFLOAT16']];
  const listed = said.map((encodings) => usable(encodings));
  assert.deepEqual(listed.map((encodings) => isOf(small, encodings)), [true, true, false]);
  const raw = await pack(store, base, update, 'ENCODING_RAW', []);
  assert.ok(listed.every((encodings) => isOf(raw, encodings)));
});

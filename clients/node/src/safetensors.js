/** A model as a `.safetensors` file: eight bytes of header length, a header in JSON, and the tensors' bytes. */

/**
 * @param {import('./model.js').Entry[]} entries
 * @param {Buffer[]} values in the same order
 * @returns {Buffer}
 */
export function asSafetensors(entries, values) {
  let offset = 0;
  const header = {};
  for (const { name, dtype, shape, size } of entries) {
    header[name] = { dtype, shape, data_offsets: [offset, offset + size] };
    offset += size;
  }
  const text = Buffer.from(JSON.stringify(header));
  const padded = Buffer.concat([text, Buffer.alloc((8 - (text.length % 8)) % 8, ' ')]);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(padded.length));
  return Buffer.concat([length, padded, ...values]);
}

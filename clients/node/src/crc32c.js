/** CRC-32C (Castagnoli), which Node's zlib does not have. Table-driven, one byte a step. */
const TABLE = new Uint32Array(256).map((_, index) => {
  let value = index;
  for (let bit = 0; bit < 8; bit += 1) value = value & 1 ? (value >>> 1) ^ 0x82f63b78 : value >>> 1;
  return value;
});

/**
 * @param {Uint8Array} data
 * @returns {number} unsigned, 32 bits
 */
export function crc32c(data) {
  let crc = 0xffffffff;
  for (let index = 0; index < data.length; index += 1) crc = TABLE[(crc ^ data[index]) & 0xff] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

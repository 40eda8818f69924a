/** Bounds on what is taken from the network, as the contract states them. Sizes in bytes. */
export const PROTOCOL = 1;
export const MAX_TENSORS = 65_536;
export const MAX_TENSORS_PER_PART = 1_000;
export const MAX_PART_BYTES = 1 << 20;
export const MAX_AXES = 32;
export const MAX_NAME_BYTES = 256;
export const MAX_MODEL_BYTES = 64 * 2 ** 30;
export const DEFAULT_CHUNK_BYTES = 1 << 20;
export const MAX_CHUNK_BYTES = (4 << 20) - (64 << 10);
export const DEFAULT_WINDOW_BYTES = 4 << 20;
export const MAX_PLAN_SETTINGS = 64;
export const MAX_PLAN_SETTING_BYTES = 256;
/** Of a `google.protobuf.Duration`. */
export const MAX_SPAN_SECONDS = 315_576_000_000;
const MAX_REASON_BYTES = 1_024;

// Control characters, which would break a line of the canonical descriptions.
const CONTROL = /[\u0000-\u001f\u007f-\u009f]/;

/** Whether `name` may name a tensor. */
export function isTensorName(name) {
  return name !== '' && Buffer.byteLength(name) <= MAX_NAME_BYTES && !CONTROL.test(name) && name !== '__metadata__';
}

/** Whether `name` may name a client. */
export function isClientName(name) {
  return /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/.test(name);
}

/** `text` as one line of at most 1,024 bytes, without cutting a character in two. */
export function clipReason(text) {
  const line = Buffer.from(text.replace(new RegExp(CONTROL, 'g'), ' ').trim());
  if (line.length <= MAX_REASON_BYTES) return line.toString();
  let end = MAX_REASON_BYTES;
  while ((line[end] & 0xc0) === 0x80) end -= 1;
  return line.subarray(0, end).toString();
}

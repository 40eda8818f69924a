/** The join token: one line of text that a coordinator gives to one site, with all that the site needs to join. */
import { shownAddress, splitAddress } from './address.js';
import { isClientName } from './limits.js';
import { sha256 } from './model.js';

const PREFIX = 'fsj1_';
const [ID_BYTES, SECRET_BYTES, FINGERPRINT_BYTES, CHECK_BYTES] = [8, 16, 32, 4];
const SECRET_AT = ID_BYTES;
const FINGERPRINT_AT = SECRET_AT + SECRET_BYTES;
const TEXT_AT = FINGERPRINT_AT + FINGERPRINT_BYTES;
const MAX_TEXT_BYTES = 2_048;

/**
 * @typedef {{id: Buffer, secret: Buffer, fingerprint: string, name: string, server: string, enrolment: string}} Token
 */

/**
 * The token that `text` is, or that stands in the whole of what `fedserver invite` printed.
 * @param {string} text
 * @returns {Token}
 * @throws {Error} it is none; the message does not hold any part of it
 */
export function readToken(text) {
  const contents = unpack(tokenIn(text.trim()));
  const fingerprint = `sha256:${contents.subarray(FINGERPRINT_AT, TEXT_AT).toString('hex')}`;
  const [id, secret] = [contents.subarray(0, SECRET_AT), contents.subarray(SECRET_AT, FINGERPRINT_AT)];
  return { id, secret, fingerprint, ...readNames(contents.subarray(TEXT_AT)) };
}

/**
 * Where the server is and where to join: as the token says, but for what the operator says.
 * @param {Token} token @param {string} [server] @param {string} [enrolment]
 */
export function places(token, server, enrolment) {
  if (!server || enrolment) return { server: server ?? token.server, enrolment: enrolment ?? token.enrolment };
  const { host } = splitAddress(server);
  return { server, enrolment: shownAddress(host, splitAddress(token.enrolment).port) };
}

/** A text that begins with a token is nothing else: a mail program may have broken it into several words. */
function tokenIn(text) {
  const found = new Set(text.split(/\s+/).filter((word) => word.startsWith(PREFIX)));
  if (found.size === 0 || text.startsWith(PREFIX)) return text.replace(/\s/g, '');
  if (found.size === 1) return [...found][0];
  throw new Error(`there are ${found.size} join tokens in this text: give the one that is for this site`);
}

function unpack(text) {
  if (!text.startsWith(PREFIX) || text.length > MAX_TEXT_BYTES) {
    throw new Error(`this is no join token: one begins with ${PREFIX}, as \`fedserver invite\` prints it`);
  }
  const packed = text.slice(PREFIX.length);
  const data = Buffer.from(packed, 'base64url');
  const contents = data.subarray(0, -CHECK_BYTES);
  const isWhole = /^[\w-]*$/.test(packed) && contents.length > TEXT_AT
    && sha256(contents).subarray(0, CHECK_BYTES).equals(data.subarray(-CHECK_BYTES));
  if (!isWhole) throw new Error('the join token is damaged: copy it again, whole');
  return contents;
}

function readNames(bytes) {
  const [name, server, enrolment, ...more] = bytes.toString().split('\n');
  if (!isClientName(name)) throw new Error('the token names no site');
  try {
    const { host } = splitAddress(server);
    const whole = enrolment.startsWith(':') ? shownAddress(host, splitAddress(`host${enrolment}`).port) : enrolment;
    splitAddress(whole);
    if (more.length === 0) return { name, server, enrolment: whole };
  } catch {
    // As with one line too many.
  }
  throw new Error('the token names no server');
}

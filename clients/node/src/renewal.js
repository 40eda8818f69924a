/** Renewing the site's certificate before a third of its validity is left, without anybody. */
import { createPrivateKey } from 'node:crypto';
import { checkAnswer, factsOf, isDue, toPem } from './certificates.js';
import { Stop } from './errors.js';

/** A third of 90 days is 30 days, so a look each hour leaves hundreds of tries to a server that is away. */
const LONGEST_LOOK_MS = 3_600_000;
/** Part of a shorter validity between two looks: four fall into its last third. */
const LOOK_SHARE = 1 / 12;
/** A renewal makes the connection anew, which cuts what it carries: not all the time, however short the validity. */
const LEAST_LOOK_MS = 60_000;

/**
 * Get the next certificate if it is time. After a failure the next look tries again.
 * @param {import('./identity.js').IdentityFolder} identity
 * @param {{renewCertificate: () => Promise<{certificate: Buffer}>}} connection
 * @param {Function} log
 * @returns {Promise<boolean>} whether there is another certificate now
 */
export async function renewIfDue(identity, connection, log) {
  const { key, certificate, authority } = identity.credentials();
  const before = factsOf(certificate);
  if (!isDue(before)) return false;
  try {
    const next = toPem((await connection.renewCertificate()).certificate);
    checkAnswer(before.name, createPrivateKey(key), next, authority);
    await identity.keepCertificate(next);
    const after = factsOf(next);
    log('info', 'certificate renewed', { expires: after.expires.toISOString() });
    return after.fingerprint !== before.fingerprint;
  } catch (error) {
    if (error instanceof Stop) throw error;
    const facts = { because: error.message, expires: before.expires.toISOString() };
    log('warning', 'the certificate could not be renewed', facts);
    return false;
  }
}

/**
 * How long to wait before the next look.
 * @param {import('./identity.js').IdentityFolder} identity
 */
export function untilNextLookMs(identity) {
  try {
    return lookMs(factsOf(identity.credentials().certificate));
  } catch {
    return LEAST_LOOK_MS; // the next look says what is wrong
  }
}

/** How long a certificate leaves between two looks. @param {{begins: Date, expires: Date}} facts */
export function lookMs({ begins, expires }) {
  return Math.max(LEAST_LOOK_MS, Math.min(LONGEST_LOOK_MS, (expires - begins) * LOOK_SHARE));
}

/** Renewing the site's certificate before a third of its validity is left, without anybody. */
import { createPrivateKey } from 'node:crypto';
import { checkAnswer, factsOf, isDue, toPem } from './certificates.js';
import { Stop } from './errors.js';

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

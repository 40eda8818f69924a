/** What certificates say, and whether they are what they should be. */
import { X509Certificate } from 'node:crypto';

/**
 * The facts of a certificate, of PEM or DER; of several in a row, the first.
 * @param {Buffer} contents
 * @returns {{name: string, begins: Date, expires: Date, fingerprint: string, certificate: X509Certificate}}
 *   `name` is empty where there is not exactly one
 * @throws {Error} it is none
 */
export function factsOf(contents) {
  const certificate = new X509Certificate(contents);
  const names = certificate.subject.split('\n').filter((line) => line.startsWith('CN='));
  return {
    name: names.length === 1 ? names[0].slice('CN='.length) : '',
    begins: new Date(certificate.validFrom),
    expires: new Date(certificate.validTo),
    fingerprint: `sha256:${certificate.fingerprint256.replaceAll(':', '').toLowerCase()}`,
    certificate,
  };
}

/** Whether less than a third of the validity is left, so that it is time for the next certificate. */
export function isDue({ begins, expires }, now = new Date()) {
  return expires - now < (expires - begins) / 3;
}

/** Whether the authority signed the certificate; both PEM or DER. */
export function isIssuedBy(contents, authority) {
  const [certificate, issuer] = [new X509Certificate(contents), new X509Certificate(authority)];
  return certificate.checkIssued(issuer) && certificate.verify(issuer.publicKey);
}

/**
 * Check that a certificate is the one that was asked for.
 * @param {string} name
 * @param {import('node:crypto').KeyObject} key private
 * @param {Buffer} contents
 * @param {Buffer} authority
 * @throws {Error} it is for another name or key, or of another authority
 */
export function checkAnswer(name, key, contents, authority) {
  const facts = factsOf(contents);
  if (facts.name !== name || !facts.certificate.checkPrivateKey(key) || !isIssuedBy(contents, authority)) {
    throw new Error('the certificate that came is not the one that was asked for');
  }
}

/** A certificate of DER or PEM as PEM. @param {Buffer} contents @throws {Error} it is none */
export function toPem(contents) {
  return new X509Certificate(contents).toString();
}

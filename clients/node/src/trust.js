/**
 * Whom a client trusts and what it shows of itself: nothing on this machine, a fingerprint, or certificates.
 *
 * A fingerprint is the SHA-256 of the certificate's DER form. The certificate is fetched first and compared; then it is
 * the only root that the connection knows, so that nobody else can be on the other end. Where there is an authority, a
 * handshake comes first too: gRPC could only say that it failed, and would try for ever.
 */
import tls from 'node:tls';
import grpc from '@grpc/grpc-js';
import { splitAddress } from './address.js';
import { factsOf, toPem } from './certificates.js';
import { EXIT, Stop, Trouble } from './errors.js';
import { IdentityFolder, readCredentials } from './identity.js';

/** A name that every server certificate carries, whatever address the server is reached by. */
export const SERVER_NAME = 'fedstream-server';
const TIMEOUT_MS = 10_000;
const ANSWER_MS = 2_000;

/**
 * @typedef {object} Trust where a server is and how it is known: one of the four ways
 * @property {string} server
 * @property {boolean} [plaintext]
 * @property {string} [fingerprint]
 * @property {string} [identity] a folder
 * @property {string} [certificate] with `key` and `serverCa`: files, PEM
 * @property {string} [key]
 * @property {string} [serverCa]
 */

/**
 * Credentials for a channel, once the server has shown that it is the right one. Files are read anew each time, since
 * they change when they are renewed.
 * @param {Trust} trust
 * @throws {Trouble} nobody answers @throws {Stop} it is another server, or what this site has cannot be used
 */
export async function credentials(trust) {
  if (trust.plaintext) return grpc.credentials.createInsecure();
  if (trust.fingerprint) return trustJust(await fetchCertificate(trust.server, trust.fingerprint));
  const own = ownCredentials(trust);
  requireValid(own.certificate);
  await checkServer(trust.server, own);
  return grpc.credentials.createSsl(own.authority, own.key, own.certificate);
}

/** What goes with such credentials: the name to look for in the certificate, whatever address is dialled. */
export function channelOptions(trust) {
  return trust.plaintext ? {} : { 'grpc.ssl_target_name_override': SERVER_NAME };
}

/** Trust in one certificate (PEM), whoever signed it. */
function trustJust(certificate) {
  const secure = { ca: certificate, allowPartialTrustChain: true, minVersion: 'TLSv1.2' };
  return grpc.credentials.createFromSecureContext(tls.createSecureContext(secure));
}

function ownCredentials({ identity, key, certificate, serverCa }) {
  return identity ? new IdentityFolder(identity).credentials() : readCredentials(key, certificate, serverCa);
}

function requireValid(certificate) {
  const { expires } = factsOf(certificate);
  if (expires > new Date()) return;
  const words = `this site's certificate has expired on ${expires.toISOString().slice(0, 10)}: ask the coordinator`;
  throw new Stop(EXIT.UNTRUSTED, `${words} for a new invitation, and join again with \`fedstream-client join\``);
}

/** The server's certificate, PEM, if its fingerprint is the one that is expected. */
async function fetchCertificate(server, fingerprint) {
  const { raw, hungUp } = await shakeHands(server, {});
  const actual = factsOf(raw).fingerprint;
  if (actual !== fingerprint.toLowerCase()) {
    throw new Stop(EXIT.UNTRUSTED, `the server at ${server} has the certificate ${actual}, not ${fingerprint}: it is `
      + 'another server, or somebody is in between. Ask the coordinator for the current join command.');
  }
  if (hungUp) { // as one that is just being stopped does too
    throw new Trouble(`${server} hung up after the handshake; if it goes on doing so, it takes only sites with a `
      + 'certificate: ask the coordinator for an invitation, and join with its token');
  }
  return Buffer.from(toPem(raw));
}

async function checkServer(server, { key, certificate, authority }) {
  const { problem, hungUp } = await shakeHands(server, { key, cert: certificate, ca: authority });
  if (problem === 'CERT_NOT_YET_VALID') { // a machine whose clock is wrong after its start may set it soon
    throw new Trouble(`the certificate of the server at ${server} is not valid yet, and this machine's clock says `
      + `${new Date().toISOString()}: set this machine's clock`);
  }
  if (problem) {
    throw new Stop(EXIT.UNTRUSTED, `the server at ${server} has no certificate of this federation's authority `
      + `(${problem}): it is another server, or somebody is in between. Ask the coordinator.`);
  }
  if (hungUp) {
    throw new Trouble(`${server} hung up after the handshake; if it goes on doing so, it does not take this site's `
      + 'certificate: ask the coordinator');
  }
}

/**
 * A handshake whose outcome is judged by whoever asked: nothing is sent over it.
 * @returns {Promise<{raw: Buffer, problem: string | null, hungUp: boolean}>} the certificate, what is wrong with it,
 *   and whether the server ended the connection then, as one does that wants a certificate and was shown none
 */
function shakeHands(server, options) {
  return new Promise((resolve, reject) => {
    const judged = { rejectUnauthorized: false }; // by whoever asked
    const always = { servername: SERVER_NAME, ALPNProtocols: ['h2'], minVersion: 'TLSv1.2' };
    const socket = tls.connect({ ...splitAddress(server), ...always, ...judged, ...options });
    let shown = null;
    const end = (hungUp, words) => {
      socket.destroy();
      if (shown) resolve({ ...shown, hungUp }); else reject(new Trouble(words));
    };
    socket.once('secureConnect', () => {
      const { raw } = socket.getPeerCertificate();
      if (raw) shown = { raw, problem: socket.authorized ? null : String(socket.authorizationError) };
      socket.setTimeout(ANSWER_MS, () => end(false)); // one that says nothing has not hung up either
    });
    socket.once('data', () => end(false)); // HTTP/2 begins
    socket.once('end', () => end(true, 'the server hung up in the handshake'));
    socket.setTimeout(TIMEOUT_MS, () => end(false, 'the server did not answer in time'));
    socket.once('error', (error) => end(true, `the server cannot be reached (${error.code ?? error.message})`));
  });
}

/**
 * Trust in the server: by the fingerprint of its certificate, or by a certificate authority's file.
 *
 * A fingerprint is the SHA-256 of the certificate's DER form. The certificate is fetched first and compared; then it is
 * the only root that the connection knows, so that nobody else can be on the other end.
 */
import { readFileSync } from 'node:fs';
import tls from 'node:tls';
import grpc from '@grpc/grpc-js';
import { EXIT, Stop, Trouble } from './errors.js';
import { sha256 } from './model.js';

/** A name that every server certificate carries, whatever address the server is reached by. */
export const SERVER_NAME = 'fedstream-server';
const TIMEOUT_MS = 10_000;

/**
 * Credentials for a channel; checked anew each time, since gRPC could only say that a handshake failed.
 * @param {{server: string, plaintext?: boolean, fingerprint?: string, serverCa?: string, certificate?: string,
 *   key?: string}} options files are PEM
 */
export async function credentials(options) {
  if (options.plaintext) return grpc.credentials.createInsecure();
  const own = ownIdentity(options);
  const root = options.serverCa ? readPem(options.serverCa) : await fetchCertificate(options, own);
  return grpc.credentials.createSsl(root, own?.key ?? null, own?.cert ?? null);
}

/** Host and port of `HOST:PORT` or `[V6]:PORT`. */
export function splitAddress(address) {
  const [, host, port] = /^\[?(.+?)\]?:(\d{1,5})$/.exec(address) ?? [];
  if (!host || Number(port) > 65_535) throw new Error(`${address} is no address; write HOST:PORT`);
  return { host, port: Number(port) };
}

function ownIdentity({ certificate, key }) {
  return certificate ? { cert: readPem(certificate), key: readPem(key) } : null;
}

function readPem(file) {
  try {
    return readFileSync(file);
  } catch (error) {
    throw new Stop(EXIT.BAD_CONFIGURATION, `cannot read ${file}: ${error.message}`);
  }
}

async function fetchCertificate({ server, fingerprint }, own) {
  const der = await peerCertificate({ ...splitAddress(server), ...own });
  const actual = `sha256:${sha256(der).toString('hex')}`;
  if (actual !== fingerprint.toLowerCase()) {
    throw new Stop(EXIT.UNTRUSTED, `the server at ${server} has the certificate ${actual}, not ${fingerprint}: it is `
      + 'another server, or somebody is in between. Ask the coordinator for the current join command.');
  }
  const lines = der.toString('base64').match(/.{1,64}/g).join('\n');
  return Buffer.from(`-----BEGIN CERTIFICATE-----\n${lines}\n-----END CERTIFICATE-----\n`);
}

function peerCertificate(where) {
  return new Promise((resolve, reject) => {
    // Trust is decided by the fingerprint, so the handshake itself takes any certificate.
    const options = { ...where, servername: SERVER_NAME, rejectUnauthorized: false, ALPNProtocols: ['h2'] };
    const socket = tls.connect(options, () => {
      const { raw } = socket.getPeerCertificate();
      socket.destroy();
      if (raw) resolve(raw); else reject(new Trouble('the server showed no certificate'));
    });
    const fail = (words) => { socket.destroy(); reject(new Trouble(words)); };
    socket.setTimeout(TIMEOUT_MS, () => fail('the server did not answer in time'));
    socket.on('error', (error) => fail(`the server cannot be reached (${error.code ?? error.message})`));
  });
}

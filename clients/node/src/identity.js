/**
 * A site's identity: its private key, its certificate, and whom it trusts, in one folder, the same as `fedclient join`
 * makes.
 *
 *     site.key        the private key, PEM; made here, before anything is sent, and never sent
 *     site.crt        the site's certificate, PEM
 *     authority.crt   the federation's authority, PEM: servers that it signed are trusted, and nobody else
 *     identity.json   who this site is and where the server is; written last, so that without it nothing was joined
 *
 * Every file is readable by its owner only, and replaced whole or not at all.
 */
import { createPrivateKey, generateKeyPairSync } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import process from 'node:process';
import { splitAddress } from './address.js';
import { factsOf, isIssuedBy } from './certificates.js';
import { makeFolder, writeDurably } from './durable.js';
import { EXIT, Stop } from './errors.js';
import { isClientName } from './limits.js';

const [KEY, CERTIFICATE, AUTHORITY, FACTS] = ['site.key', 'site.crt', 'authority.crt', 'identity.json'];

/** Where what must survive a restart lies by default. */
export function stateHome() {
  return process.env.XDG_STATE_HOME || path.join(os.homedir(), '.local', 'state');
}

export function defaultIdentityFolder() {
  return path.join(stateHome(), 'fedstream', 'identity');
}

/** @typedef {{name: string, server: string}} Membership who this site is, and where its server is, HOST:PORT */
/** @typedef {{key: Buffer, certificate: Buffer, authority: Buffer}} Credentials PEM */

export class IdentityFolder {
  /** @param {string} folder made when something is kept */
  constructor(folder) {
    this.folder = folder;
  }

  /** What was joined; null if nothing was. @returns {Membership | null} @throws {Stop} the folder is damaged */
  membership() {
    const file = this.#path(FACTS);
    if (!existsSync(file)) return null;
    try {
      const { name, server } = JSON.parse(readFileSync(file, 'utf8'));
      splitAddress(server);
      if (!isClientName(name)) throw new Error('it names no site');
      return { name, server };
    } catch (error) {
      const words = `${file} cannot be used (${error.message}): join again, or give the right --identity`;
      throw new Stop(EXIT.BAD_CONFIGURATION, words);
    }
  }

  /** The site's private key, PEM: the one there is, or a new one, kept before it is told. @returns {Promise<Buffer>} */
  async key() {
    const file = this.#path(KEY);
    if (existsSync(file)) return readFileSync(file);
    await makeFolder(this.folder);
    const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
    const made = Buffer.from(privateKey.export({ type: 'pkcs8', format: 'pem' }));
    await writeDurably(file, made);
    return made;
  }

  /** Keep what a server has given to this site. @param {Membership} membership */
  async keep({ name, server }, certificate, authority) {
    await this.keepCertificate(certificate);
    await writeDurably(this.#path(AUTHORITY), authority);
    await writeDurably(this.#path(FACTS), JSON.stringify({ name, server }, null, 2));
  }

  /** Put the next certificate, PEM, in the place of the one there is. */
  keepCertificate(certificate) {
    return writeDurably(this.#path(CERTIFICATE), certificate);
  }

  /** Key, certificate and authority as they are now. @returns {Credentials} @throws {Stop} they cannot be used */
  credentials() {
    const found = readCredentials(this.#path(KEY), this.#path(CERTIFICATE), this.#path(AUTHORITY));
    if (!isIssuedBy(found.certificate, found.authority)) { // the server would only hang up
      const words = `${this.#path(CERTIFICATE)} is none of ${this.#path(AUTHORITY)}: one of them is damaged`;
      throw new Stop(EXIT.BAD_CONFIGURATION, `${words}; ask the coordinator for a new invitation`);
    }
    return found;
  }

  #path(name) {
    return path.join(this.folder, name);
  }
}

/**
 * Credentials of three files.
 * @returns {Credentials}
 * @throws {Stop} one cannot be read, or key and certificate do not belong together
 */
export function readCredentials(keyFile, certificateFile, authorityFile) {
  const key = readPem(keyFile, createPrivateKey);
  const certificate = readPem(certificateFile, factsOf);
  const authority = readPem(authorityFile, factsOf);
  if (!factsOf(certificate).certificate.checkPrivateKey(createPrivateKey(key))) {
    throw new Stop(EXIT.BAD_CONFIGURATION, `${certificateFile} is not the certificate of the key ${keyFile}`);
  }
  return { key, certificate, authority };
}

function readPem(file, check) {
  try {
    const contents = readFileSync(file);
    check(contents);
    return contents;
  } catch (error) {
    throw new Stop(EXIT.BAD_CONFIGURATION, `${file} cannot be used: ${error.message}`);
  }
}

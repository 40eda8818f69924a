/**
 * What a site keeps on disk: tensors, each in a file named by the SHA-256 of its bytes, and finished updates.
 *
 * A model or an update is a list of entries; its bytes are in `tensors/`, encoded ones too. So a tensor that did not
 * change is kept once and never downloaded twice, and a download resumes with what lies in `NAME.partial`. A tensor
 * counts only if its bytes have the digest that is its name. An update counts once its record is there, which is
 * written last. `left_out.json` says what encodings left out of the updates that the server has, and which is the last
 * of these.
 */
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { readdir, readFile, rename, rm, stat } from 'node:fs/promises';
import path from 'node:path';
import { makeFolder, TEMPORARY, using, writeDurably } from './durable.js';
import { bodyOf, sha256 } from './model.js';

export class Store {
  #tensors;
  #updates;
  #leftOut;
  #verified = new Set();

  /** @param {string} folder */
  constructor(folder) {
    this.#tensors = path.join(folder, 'tensors');
    this.#updates = path.join(folder, 'updates');
    this.#leftOut = path.join(folder, 'left_out.json');
  }

  async open() {
    await makeFolder(this.#tensors);
    await makeFolder(this.#updates);
  }

  // Tensors.

  /** Whether a tensor is here, rightly; each is hashed once in a process. @param {{sha256: Buffer}} entry */
  async has(entry) {
    const name = entry.sha256.toString('hex');
    if (!this.#verified.has(name)) {
      if (!(await hasDigest(this.#path(entry), entry.sha256))) return false;
      this.#verified.add(name);
    }
    return true;
  }

  /** Whether these are here, rightly, each hashed again. @param {{sha256: Buffer}[]} entries */
  async recheck(entries) {
    entries.forEach((entry) => this.#verified.delete(entry.sha256.toString('hex')));
    return this.#hasAll(entries);
  }

  async #hasAll(entries) {
    for (const entry of entries) if (!(await this.has(entry))) return false; // one by one: a model may have many
    return true;
  }

  /** A tensor's bytes from `offset` on, `length` at most. @returns {Promise<Buffer>} */
  read(entry, offset = 0, length = entry.size) {
    return using(this.#path(entry), 'r', async (file) => {
      const size = Math.max(0, Math.min(length, entry.size - offset));
      const { buffer, bytesRead } = await file.read(Buffer.alloc(size), 0, size, offset);
      if (bytesRead !== size) throw new Error('a tensor on disk is shorter than it was');
      return buffer;
    });
  }

  /** Keep a tensor durably. @param {import('./model.js').Entry} entry @param {Buffer} values */
  async put(entry, values) {
    await writeDurably(this.#path(entry), values);
    this.#verified.add(entry.sha256.toString('hex'));
  }

  /** How many bytes of a tensor have arrived. */
  async partialSize(entry) {
    const found = await stat(this.#path(entry) + TEMPORARY).catch(() => null);
    return found?.size ?? 0;
  }

  /** Add bytes that arrived. They are not synced: what a power cut leaves is hashed before it counts. */
  append(entry, data) {
    return using(this.#path(entry) + TEMPORARY, 'a', (file) => file.appendFile(data), 0o600);
  }

  /** Forget what has arrived of a tensor. */
  dropPartial(entry) {
    return rm(this.#path(entry) + TEMPORARY, { force: true });
  }

  /** Count a tensor that has arrived. @returns {Promise<boolean>} false if its bytes were wrong and are gone */
  async adopt(entry) {
    const temporary = this.#path(entry) + TEMPORARY;
    if (entry.size === 0) await this.append(entry, Buffer.alloc(0)); // of which nothing has arrived
    if (!(await hasDigest(temporary, entry.sha256))) {
      await this.dropPartial(entry);
      return false;
    }
    await rename(temporary, this.#path(entry));
    this.#verified.add(entry.sha256.toString('hex'));
    return true;
  }

  // Updates.

  /** Make an update count, durably; its tensors are here already. @param {object} record see `job.js` */
  record(record) {
    return writeDurably(this.#updatePath(record.offerId), asText(record));
  }

  /** The finished update of that offer and base, if every byte of it is here; as packed only if all of that is, too. */
  async loadUpdate(offerId, baseHex) {
    const record = await read(this.#updatePath(offerId));
    try {
      const isWhole = record?.baseHex === baseHex && await this.#hasAll(record.entries);
      if (!isWhole) return null;
      return { ...record, packed: await this.#isPacked(record) ? record.packed : undefined };
    } catch {
      return null; // damaged: it is trained again
    }
  }

  #isPacked({ packed }) {
    return packed !== undefined && this.#hasAll([...packed.entries.map(bodyOf), ...packed.leftOut]);
  }

  // What encodings left out.

  /** What was left out so far in that federation. @returns {Promise<import('./packing.js').LeftOut[]>} */
  async leftOut(federation) {
    const known = await read(this.#leftOut);
    if (known?.federation !== federation || !(await this.#hasAll(known.tensors))) return [];
    return known.tensors;
  }

  /** The server has an update: what was left out of it is what counts from now on. */
  keepLeftOut(federation, uploadId, tensors) {
    return writeDurably(this.#leftOut, asText({ federation, uploadId, tensors }));
  }

  /** Records of updates of which something was left out, and of which nobody has said yet that the server has them. */
  async unsettled() {
    const settled = (await read(this.#leftOut))?.uploadId;
    const names = await readdir(this.#updates);
    const records = await Promise.all(names.map((name) => read(path.join(this.#updates, name))));
    return records.filter((record) => (
      record?.packed?.leftOut.length > 0 && record.uploadId && record.uploadId !== settled));
  }

  // Forgetting.

  /** Forget all updates but that of `offerId`, and all tensors but its, those of `entries` and what was left out. */
  async keepOnly(offerId, entries) {
    const kept = new Set(entries.map((entry) => entry.sha256.toString('hex')));
    const update = path.basename(this.#updatePath(offerId));
    for (const file of [this.#updatePath(offerId), this.#leftOut]) {
      for (const name of digestsIn(await readFile(file, 'utf8').catch(() => ''))) kept.add(name);
    }
    await removeBut(this.#updates, (name) => name === update);
    await removeBut(this.#tensors, (name) => kept.has(name.replace(TEMPORARY, '')));
    this.#verified = new Set([...this.#verified].filter((name) => kept.has(name)));
  }

  /** Forget everything: the federation is over. */
  async clear() {
    await rm(this.#leftOut, { force: true });
    await removeBut(this.#updates, () => false);
    await removeBut(this.#tensors, () => false);
    this.#verified.clear();
  }

  #path(entry) {
    return path.join(this.#tensors, entry.sha256.toString('hex'));
  }

  #updatePath(offerId) {
    // No path is built from text that the other side chose.
    return path.join(this.#updates, `${sha256(offerId).toString('hex').slice(0, 32)}.json`);
  }
}

/** Whether a store was kept in a folder. @param {string} folder */
export async function isStore(folder) {
  return await stat(path.join(folder, 'updates')).catch(() => null) !== null;
}

async function removeBut(folder, isKept) {
  const names = (await readdir(folder)).filter((name) => !isKept(name));
  await Promise.all(names.map((name) => rm(path.join(folder, name), { force: true })));
}

/** Whether a file is there and has that digest. It may be large, so that it is not read as a whole. */
async function hasDigest(file, digest) {
  const hash = createHash('sha256');
  try {
    for await (const part of createReadStream(file)) hash.update(part);
  } catch (error) {
    if (error.code === 'ENOENT') return false;
    throw error;
  }
  return hash.digest().equals(digest);
}

function asText(record) {
  // A Buffer has turned itself into something longer before this sees it.
  return JSON.stringify(record, (key, value) => (key === 'sha256' ? Buffer.from(value).toString('hex') : value));
}

/** A record, or null if there is none that can be read. */
async function read(file) {
  try {
    const text = await readFile(file, 'utf8');
    return JSON.parse(text, (key, value) => (key === 'sha256' ? Buffer.from(value, 'hex') : value));
  } catch {
    return null;
  }
}

function digestsIn(text) {
  return [...text.matchAll(/"sha256":"([0-9a-f]{64})"/g)].map(([, name]) => name);
}

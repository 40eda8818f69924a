/** The one way in which a file is made durable: temporary file, fsync, rename, fsync of the folder. */
import { mkdir, open, rename } from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

export const TEMPORARY = '.partial';
/** Between two looks whether somebody has made space. */
const RETRY_MS = 2_000;
/** By which it is the disk that refuses, full or for another reason that somebody can mend meanwhile. */
const PASSING = ['ENOSPC', 'EDQUOT', 'EFBIG', 'EROFS', 'EIO'];

/**
 * Make `file` hold `data`, whole or not at all; once this returns, a power cut cannot undo it.
 * @param {string} file
 * @param {Uint8Array | string} data
 */
export async function writeDurably(file, data) {
  const temporary = file + TEMPORARY;
  await using(temporary, 'w', async (handle) => {
    await handle.writeFile(data);
    await handle.sync();
  }, 0o600);
  await rename(temporary, file);
  await using(path.dirname(file), 'r', (folder) => folder.sync());
}

/** Make a folder for its owner alone, and those above it, so that a power cut cannot take it with what is in it. */
export async function makeFolder(folder) {
  const first = await mkdir(folder, { recursive: true, mode: 0o700 });
  if (first === undefined) return; // it was there
  for (let made = path.resolve(folder); ; made = path.dirname(made)) {
    await using(path.dirname(made), 'r', (above) => above.sync());
    if (made === path.resolve(first)) return;
  }
}

/** Open, use, and close in any case. */
export async function using(file, flags, use, mode) {
  const handle = await open(file, flags, mode);
  try {
    return await use(handle);
  } finally {
    await handle.close();
  }
}

/**
 * Do what writes, which may be done again after it has failed; where the disk refuses, say so, and try again.
 * @template T
 * @param {() => Promise<T>} write
 * @param {{waiting: string, log: Function, signal?: AbortSignal}} options `waiting` is the words for it
 * @returns {Promise<T>}
 */
export async function whenTheDiskCan(write, { waiting, log, signal }) {
  for (let told = ''; ;) {
    try {
      return await write();
    } catch (error) {
      if (!PASSING.includes(error.code)) throw error;
      if (error.message !== told) log('warning', waiting, { because: error.message, advice: 'make space there' });
      told = error.message;
    }
    await sleep(RETRY_MS, undefined, { signal });
  }
}

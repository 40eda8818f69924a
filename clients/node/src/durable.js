/** The one way in which a file is made durable: temporary file, fsync, rename, fsync of the folder. */
import { mkdir, open, rename } from 'node:fs/promises';
import path from 'node:path';

export const TEMPORARY = '.partial';

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

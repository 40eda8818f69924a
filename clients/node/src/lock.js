/** A folder for one process at a time. */
import { realpath } from 'node:fs/promises';
import { createServer } from 'node:net';
import process from 'node:process';
import { sha256 } from './model.js';

/**
 * Keep a folder to this process until it closes the lock or ends, however it ends. Node has no locks on files, and a
 * file that says who uses a folder outlives a process that is killed. The name of a socket that is no file does not, but
 * only Linux has these: elsewhere nothing is locked.
 * @param {string} folder
 * @returns {Promise<{close: () => void} | null>} null if another process has it
 */
export async function lockFolder(folder) {
  if (process.platform !== 'linux') return { close() {} };
  const name = `\0fedstream-node ${sha256(await realpath(folder)).toString('hex')}`;
  return new Promise((resolve, reject) => {
    const lock = createServer((caller) => caller.destroy());
    lock.on('error', (error) => (error.code === 'EADDRINUSE' ? resolve(null) : reject(error)));
    lock.listen(name, () => resolve(lock.unref()));
  });
}

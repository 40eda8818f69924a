/** A state folder is one process's, under whatever name it is reached. */
import assert from 'node:assert/strict';
import { symlinkSync } from 'node:fs';
import process from 'node:process';
import test from 'node:test';
import { lockFolder } from '../src/lock.js';
import { openStore } from './fakes.js';

test('folder is locked until the lock is closed', { skip: process.platform !== 'linux' }, async (t) => {
  const { folder } = await openStore(t);
  const { folder: other } = await openStore(t);
  symlinkSync(folder, `${other}/alias`);
  const lock = await lockFolder(folder);
  assert.equal(await lockFolder(`${other}/alias`), null);
  (await lockFolder(other)).close();
  await new Promise((resolve) => { lock.close(resolve); });
  (await lockFolder(folder)).close();
});

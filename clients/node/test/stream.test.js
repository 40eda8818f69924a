/** A stream at the pace of whoever reads it. */
import assert from 'node:assert/strict';
import { EventEmitter } from 'node:events';
import test from 'node:test';

import { Stream } from '../src/stream.js';

/** A call whose buffer for writing is full, and which tells how it ended once it is not paused, as gRPC does. */
class FullCall extends EventEmitter {
  writableNeedDrain = true;
  #isPaused = false;

  write() {
    return false;
  }

  pause() {
    this.#isPaused = true;
  }

  isPaused() {
    return this.#isPaused;
  }

  resume() {
    this.#isPaused = false;
    setImmediate(() => this.emit('error', Object.assign(new Error('cut'), { code: 14, details: 'cut' })));
  }
}

test('a write that waits hears how the call ended, also where many answers wait to be read', async () => {
  const call = new FullCall();
  const stream = new Stream(call);
  for (let number = 0; number < 4; number += 1) call.emit('data', { number });
  assert.ok(call.isPaused());
  const late = setTimeout(() => call.emit('error', new Error('nobody read on')), 2_000);

  await assert.rejects(stream.write({}), /cut/);
  clearTimeout(late);
});

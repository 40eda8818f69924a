/** A client from start to end, against a server on a socket that says what a test has planned. */
import assert from 'node:assert/strict';
import test from 'node:test';
import grpc from '@grpc/grpc-js';
import { Client } from '../src/client.js';
import { NegotiationService } from '../src/contract.js';
import { EXIT } from '../src/errors.js';
import { makeModel, openStore } from './fakes.js';

const TRAINER = { taskName: 'task', open: async () => ({ schema: makeModel().specs, meaning: {}, numExamples: 1 }) };

/** A server that ends each session at once, until it has told of the last of these federations. */
async function serve(t, federations, settings = []) {
  const left = [...federations];
  const server = new grpc.Server();
  server.addService(NegotiationService.service, {
    DescribeTask: (call, done) => (
      done(null, { task_name: 'task', federation_name: left.shift(), task_settings: settings.shift() ?? {} })),
    Negotiate: (stream) => {
      stream.resume();
      if (left.length === 0) stream.write({ declined: { message: 'no' } });
      stream.end();
    },
  });
  t.after(() => server.forceShutdown());
  const credentials = grpc.ServerCredentials.createInsecure();
  return new Promise((resolve, reject) => {
    const told = (error, port) => { if (error) reject(error); else resolve(`127.0.0.1:${port}`); };
    server.bindAsync('127.0.0.1:0', credentials, told);
  });
}

function configOf(server, folder) {
  return { server, plaintext: true, name: 'a', stateDir: folder, out: folder, giveUpAfter: null };
}

test('client works for the federation that the server has now', async (t) => {
  const federations = ['one', 'one', 'another'];
  const { folder: stateDir } = await openStore(t);
  const config = configOf(await serve(t, federations), stateDir);
  const entered = [];
  const log = (level, event, { name } = {}) => { if (event === 'federation') entered.push(name); };
  await assert.rejects(new Client(config, TRAINER, log).run(), { exitCode: EXIT.DECLINED, message: /client: no$/ });
  assert.deepEqual(entered, ['one', 'another']);
});

test('client opens its data anew for other settings of the server', async (t) => {
  const { folder } = await openStore(t);
  const opened = [];
  const open = (settings) => { opened.push(settings); return TRAINER.open(); };
  const server = await serve(t, ['one', 'one', 'one'], [{ a: '1' }, { a: '1' }, { a: '2' }]);
  const run = new Client(configOf(server, folder), { ...TRAINER, open }, () => {}).run();
  await assert.rejects(run, { exitCode: EXIT.DECLINED, message: /client: no$/ });
  assert.deepEqual(opened, [{ a: '1' }, { a: '2' }]);
});

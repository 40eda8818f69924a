/** Joining: tokens as they are specified, and what is kept of an identity. With a server: tests/e2e. */
import assert from 'node:assert/strict';
import { createPrivateKey } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import test from 'node:test';
import { certificateRequest } from '../src/certificate_request.js';
import { isDue } from '../src/certificates.js';
import { IdentityFolder } from '../src/identity.js';
import { lookMs, untilNextLookMs } from '../src/renewal.js';
import { readToken } from '../src/token.js';
import { readVectors } from './vectors.js';

for (const { case: what, malformed, token, ...expected } of readVectors('tokens.txt')) {
  test(`token: ${what}`, () => {
    if (malformed) {
      assert.throws(() => readToken(token), /token/);
      return;
    }
    const { id, secret, ...names } = readToken(` ${token.slice(0, 20)}\n${token.slice(20)}\n`);
    const shown = { token_id: id.toString('hex'), token_secret: secret.toString('hex'), ...names };
    assert.deepEqual(shown, expected);
  });
}

test('token is found in the whole of what was printed, and not among several', () => {
  const [{ token, name }] = readVectors('tokens.txt');
  const printed = `Send this to site-a:\n\n    fedclient join --token ${token}\n\nor its --token ${token} alone.\n`;
  assert.equal(readToken(printed).name, name);
  assert.throws(() => readToken(`one ${token}\ntwo ${token}x`), /2 join tokens/);
});

test('key is made once, for its owner alone, and never changed', async (t) => {
  const identity = identityFolder(t);
  const key = await identity.key();
  assert.equal(createPrivateKey(key).asymmetricKeyDetails.namedCurve, 'prime256v1');
  const file = path.join(identity.folder, 'site.key');
  assert.deepEqual([statSync(file).mode & 0o777, statSync(identity.folder).mode & 0o777], [0o600, 0o700]);
  assert.deepEqual(await identity.key(), key);
  assert.equal(identity.membership(), null);
});

test('membership is read as either program writes it, and damage is said', async (t) => {
  const identity = identityFolder(t);
  await identity.key();
  const member = { name: 'site-a', server: 'fl.example.org:8443' };
  await identity.keep(member, 'certificate', 'authority');
  assert.deepEqual(identity.membership(), member);
  const file = path.join(identity.folder, 'identity.json');
  assert.equal(readFileSync(file, 'utf8'), '{\n  "name": "site-a",\n  "server": "fl.example.org:8443"\n}');
  for (const damage of ['', '{}', '{"name": "/", "server": "a:1"}', '{"name": "a", "server": "a"}']) {
    writeFileSync(file, damage);
    assert.throws(() => identity.membership(), { exitCode: 2 });
  }
});

test('request has one element of the right length, with the name and not the key', async (t) => {
  const key = createPrivateKey(await identityFolder(t).key());
  const request = certificateRequest(key, 'a'.repeat(64));
  assert.deepEqual([...request.subarray(0, 3)], [0x30, 0x82, (request.length - 4) >> 8]);
  assert.ok(request.includes('a'.repeat(64)));
  assert.ok(!request.includes(Buffer.from(key.export({ format: 'jwk' }).d, 'base64url')));
});

test('certificate is due when less than a third of its time is left', () => {
  const day = (number) => new Date(Date.UTC(2026, 0, number));
  const facts = { begins: day(1), expires: day(31) };
  assert.deepEqual([20, 21, 22].map((number) => isDue(facts, day(number))), [false, false, true]);
});

test('looks for the next certificate come as often as this one asks for', (t) => {
  const minutes = (number) => new Date(number * 60_000);
  const looks = [90 * 1440, 360, 5].map((number) => lookMs({ begins: minutes(0), expires: minutes(number) }) / 60_000);
  assert.deepEqual(looks, [60, 30, 1]);
  assert.equal(untilNextLookMs(identityFolder(t)), 60_000); // there is none to be read
});

/** @param {import('node:test').TestContext} t */
function identityFolder(t) {
  const folder = mkdtempSync(path.join(os.tmpdir(), 'fedstream-'));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  return new IdentityFolder(path.join(folder, 'identity'));
}

#!/usr/bin/env node
/** The command: options, signals and exit codes. */
import { realpathSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import process from 'node:process';
import { pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';
import { EXIT, Stop } from './errors.js';
import { isClientName } from './limits.js';
import { makeLog } from './log.js';

const HELP = `Usage: fedstream-client --server HOST:PORT --fingerprint SHA256:HEX --name SITE --data FILE

Take part in a federation that learns brain_mri_head, until it ends. Only weights, counts and metrics are sent. It
reconnects by itself, and never repeats a finished training.

  --server HOST:PORT        address of the server
  --fingerprint SHA256:HEX  the server's fingerprint, from its join command
  --server-ca FILE          certificates (PEM) to trust instead of a fingerprint
  --certificate FILE        this site's certificate (PEM), where the server asks for one
  --key FILE                and its private key
  --plaintext               no TLS; only for a server on this machine
  --name SITE               this site's name, unique in the federation [host name]
  --data FILE               features file, as \`fedclient features\` writes it (FILE.features)
  --max-epochs N            most epochs per round allowed here [no limit]
  --max-hours H             most hours of training per round [no limit]
  --out DIR                 folder for the final model [runs/SITE]
  --state-dir DIR           folder for what must survive a restart [~/.local/state/fedstream-node/SITE]
  --task MODULE.js          another training module [train_head.js]
  --give-up-after SECONDS   end after so long without the server [never]
  --help                    this text

Exit codes: 0 the federation finished; 1 defect; 2 wrong option; 3 unusable data; 4 declined; 5 unreachable;
6 untrusted; 7 training failed; 8 another client of the same name took over; 130 and 143 stopped by a signal.
`;

const TEXT = ['server', 'fingerprint', 'server-ca', 'certificate', 'key', 'name', 'data', 'max-epochs', 'max-hours',
  'out', 'state-dir', 'task', 'give-up-after'];
const SIGNALS = { SIGINT: EXIT.INTERRUPTED, SIGTERM: EXIT.TERMINATED };

/**
 * The settings that the words of a command line give.
 * @param {string[]} words
 * @throws {Stop} with BAD_CONFIGURATION
 */
export function readConfig(words) {
  const types = Object.fromEntries(TEXT.map((name) => [name, { type: 'string' }]));
  const { values } = parse(words, { ...types, plaintext: { type: 'boolean' }, help: { type: 'boolean', short: 'h' } });
  if (values.help) return { help: true };
  const name = values.name ?? os.hostname().replace(/[^A-Za-z0-9._-]/g, '-');
  const config = {
    server: values.server,
    fingerprint: values.fingerprint,
    serverCa: values['server-ca'],
    certificate: values.certificate,
    key: values.key,
    plaintext: values.plaintext ?? false,
    name,
    data: values.data,
    maxEpochs: Math.floor(number(values, 'max-epochs') ?? 0),
    maxSeconds: values['max-hours'] === undefined ? null : number(values, 'max-hours') * 3600,
    out: values.out ?? path.join('runs', name),
    stateDir: values['state-dir'] ?? path.join(os.homedir(), '.local', 'state', 'fedstream-node', name),
    task: values.task,
    giveUpAfter: number(values, 'give-up-after') ?? null,
  };
  check(config);
  return config;
}

function parse(words, options) {
  try {
    return parseArgs({ args: words, options });
  } catch (error) {
    throw new Stop(EXIT.BAD_CONFIGURATION, error.message);
  }
}

function number(values, name) {
  if (values[name] === undefined) return undefined;
  const value = Number(values[name]);
  if (!(value >= 0)) throw new Stop(EXIT.BAD_CONFIGURATION, `--${name} is a number, not ${values[name]}`);
  return value;
}

function check(config) {
  const { server, plaintext, fingerprint, serverCa, name, data, certificate, key } = config;
  const wrong = (message) => { throw new Stop(EXIT.BAD_CONFIGURATION, message); };
  if (!server || !/^\[?.+?\]?:\d{1,5}$/.test(server)) wrong('add --server HOST:PORT, such as fl.example.org:8443');
  if (!data) wrong('add --data FILE: a features file, as `fedclient features` writes it');
  if (!isClientName(name)) wrong('a name has 1 to 64 characters of a-z A-Z 0-9 . _ -, a letter or digit first');
  if ([plaintext, fingerprint, serverCa].filter(Boolean).length !== 1) {
    wrong('give one of --fingerprint, --server-ca and --plaintext; the join command has the fingerprint');
  }
  if (fingerprint && !/^sha256:[0-9a-f]{64}$/i.test(fingerprint)) wrong('a fingerprint is sha256: and 64 digits');
  const isHere = /^(localhost|127\.\d+\.\d+\.\d+|\[::1\]):/.test(server);
  if (plaintext && !isHere) wrong('--plaintext is for a server on this machine only');
  if (Boolean(certificate) !== Boolean(key)) wrong('--certificate and --key come together');
}

async function main(words) {
  const config = readConfig(words);
  if (config.help) {
    process.stdout.write(HELP);
    return;
  }
  const { Client } = await import('./client.js'); // gRPC takes a moment to load, and --help is to be quick
  const trainer = await import(config.task ? pathToFileURL(path.resolve(config.task)) : './train_head.js');
  const client = new Client(config, trainer, makeLog({ client: config.name }));
  Object.entries(SIGNALS).forEach(([signal, code]) => process.once(signal, async () => {
    await client.leave('stopped by its operator');
    process.exit(code);
  }));
  process.stdout.write(`${await client.run()}\n`);
}

// Also by way of the symbolic link that npm makes of a command.
if (process.argv[1] && import.meta.url === pathToFileURL(realpathSync(process.argv[1])).href) {
  try {
    await main(process.argv.slice(2));
  } catch (error) {
    process.stderr.write(`fedstream-client: ${error instanceof Stop ? error.message : error.stack}\n`);
    process.exitCode = error instanceof Stop ? error.exitCode : EXIT.DEFECT;
  }
}

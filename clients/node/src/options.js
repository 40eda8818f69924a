/** The command line: what its words mean, and which of them do not go together. */
import { readFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { isLoopback, splitAddress } from './address.js';
import { factsOf } from './certificates.js';
import { AUTO, taken } from './encodings.js';
import { EXIT, Stop } from './errors.js';
import { defaultIdentityFolder, IdentityFolder, stateHome } from './identity.js';
import { isClientName } from './limits.js';
import { places, readToken } from './token.js';

export const HELP = `Usage: fedstream-client COMMAND [OPTION...]

  join    join a federation, once, with the token that its coordinator has sent
  run     take part in the federation that was joined, until it ends

COMMAND --help lists the options.
`;

export const JOIN_HELP = `Usage: fedstream-client join [HOST:PORT] --token TOKEN

Join a federation, once, with the token that its coordinator has sent. This site's private key is made here and never
leaves this machine. If it breaks off, run it again with the same token. A token on the command line is seen by other
users of this machine: \`--token -\` and \`--token-file\` are not.

  HOST:PORT                 address of the server [as the token says]
  --token TOKEN             the token; \`-\` to read it from standard input
  --token-file FILE         a file with the token, or with all that fedserver invite printed
  --enrolment HOST:PORT     where to join, if that is elsewhere than the token says
  --identity DIR            folder for this site's key [~/.local/state/fedstream/identity]
  --help                    this text

The folder is the one that \`fedclient join\` makes: either program can use what the other has left.
`;

export const RUN_HELP = `Usage: fedstream-client run --data FILE

Take part in the federation that was joined, which learns brain_mri_head, until it ends. Only weights, counts and
metrics are sent. It reconnects by itself, and never repeats a finished training.

  --data FILE               features file, as \`fedclient features\` writes it (FILE.features)
  --identity DIR            what joining made [~/.local/state/fedstream/identity]
  --server HOST:PORT        address of the server [as joined]
  --name SITE               this site's name [as joined, or as its certificate says]
  --certificate FILE        a certificate (PEM) of your own authority, instead of joining
  --key FILE                and its private key
  --server-ca FILE          and the authority that signed the server's certificate
  --fingerprint SHA256:HEX  only for a server with --open-enrolment: its fingerprint
  --plaintext               no TLS; only for a server on this machine
  --max-epochs N            most epochs per round allowed here [no limit]
  --max-hours H             most hours of training per round [no limit]
  --max-seconds S           the same in seconds
  --update-encoding WORD    how updates may travel: auto, as the coordinator has chosen, or raw, zstd, bfloat16[+zstd]
                            or int8[+zstd], with raw where the server does not take it [auto]
  --out DIR                 folder for the final model [runs/SITE]
  --state-dir DIR           folder for what must survive a restart [~/.local/state/fedstream-node/HOST_PORT/SITE]
  --task MODULE.js          another training module [train_head.js]
  --give-up-after SECONDS   end after so long without the server [never]
  --help                    this text

Exit codes: 0 the federation finished; 1 defect; 2 wrong option; 3 unusable data; 4 declined; 5 unreachable;
6 untrusted; 7 training failed several times in a row; 8 another client of the same name took over;
129 stopped by SIGHUP, as when its terminal is closed; 130 by Ctrl-C; 143 by SIGTERM.
`;

const JOIN_OPTIONS = texts('token', 'token-file', 'enrolment', 'identity');
const RUN_OPTIONS = {
  ...texts('server', 'identity', 'certificate', 'key', 'server-ca', 'fingerprint', 'name', 'data', 'max-epochs',
    'max-hours', 'max-seconds', 'update-encoding', 'out', 'state-dir', 'task', 'give-up-after'),
  plaintext: { type: 'boolean' },
};
const STANDARD_INPUT = 0;

/**
 * What to join, and where to keep it.
 * @param {string[]} words
 * @returns {{help: true} | {token: import('./token.js').Token, where: object, identity: string}}
 * @throws {Stop}
 */
export function readJoin(words) {
  const { values, positionals } = parse(words, JOIN_OPTIONS, true);
  if (values.help) return { help: true };
  if (positionals.length > 1) wrong(`one address is enough; ${positionals.slice(1).join(' ')} is too much`);
  const token = orWrong(() => readToken(tokenText(values)));
  const where = orWrong(() => {
    const found = places(token, positionals[0], values.enrolment);
    Object.values(found).forEach(splitAddress);
    return found;
  });
  return { token, where, identity: values.identity ?? defaultIdentityFolder() };
}

function tokenText({ token, 'token-file': file }) {
  if ((token === undefined) === (file === undefined)) wrong('give the token with --token or with --token-file');
  if (token !== undefined && token !== '-') return token;
  try {
    return readFileSync(file ?? STANDARD_INPUT, 'utf8');
  } catch (error) {
    throw new Error(`the token cannot be read: ${error.message}`);
  }
}

/**
 * The settings of a run.
 * @param {string[]} words
 * @throws {Stop}
 */
export function readRun(words) {
  const given = parse(words, RUN_OPTIONS, false).values;
  if (given.help) return { help: true };
  const values = withIdentity(given);
  const name = values.name ?? defaultName();
  const config = {
    server: values.server,
    identity: values.identity,
    fingerprint: values.fingerprint,
    serverCa: values['server-ca'],
    certificate: values.certificate,
    key: values.key,
    plaintext: values.plaintext ?? false,
    name,
    data: values.data,
    maxEpochs: wholeNumber(values, 'max-epochs') ?? 0,
    maxSeconds: maxSeconds(values),
    encodings: orWrong(() => taken(values['update-encoding'] ?? AUTO)),
    out: values.out ?? path.join('runs', name),
    task: values.task,
    giveUpAfter: number(values, 'give-up-after') ?? null,
  };
  check(config);
  return { ...config, ...stateFolders(values.joinedServer ?? config.server, name, values['state-dir']) };
}

/**
 * By the server too, if none is named: federations may know different sites by the same name. It is the server that was
 * joined, whatever address leads to it now.
 */
function stateFolders(server, name, named) {
  if (named !== undefined) return { stateDir: named, formerStateDir: null };
  const all = path.join(stateHome(), 'fedstream-node');
  const stateDir = path.join(all, server.replace(/[^A-Za-z0-9.-]/g, '_'), name);
  // Earlier versions had one for all sites of a name.
  return { stateDir, formerStateDir: path.join(all, name) };
}

/** The host's name, with what may not stand in a client's name replaced. */
function defaultName() {
  const cleaned = os.hostname().replace(/[^A-Za-z0-9._-]/g, '-').replace(/^[._-]+/, '');
  return cleaned.slice(0, 64) || 'client';
}

/** What an identity says of server and name, under what the operator says. */
function withIdentity(given) {
  if (given.plaintext || given.fingerprint) return given;
  if (given.certificate && given.key && given['server-ca']) {
    return { name: orWrong(() => factsOf(readFileSync(given.certificate)).name), ...given };
  }
  const folder = given.identity ?? defaultIdentityFolder();
  const membership = new IdentityFolder(folder).membership();
  if (membership === null) {
    if (given.identity) wrong(`no site has joined with ${folder}: run \`fedstream-client join\` first`);
    return given;
  }
  if (given.name !== undefined && given.name !== membership.name) {
    wrong(`--name: ${folder} is the identity of ${membership.name}; leave the name off, or give another --identity`);
  }
  return { ...membership, ...given, identity: folder, joinedServer: membership.server };
}

function check({ server, identity, plaintext, fingerprint, serverCa, name, data, certificate, key }) {
  const brought = [certificate, key, serverCa].filter(Boolean).length;
  const isOpen = plaintext || Boolean(fingerprint);
  if (brought % 3 !== 0) wrong('--certificate, --key and --server-ca go together: name all three files, or none');
  if (plaintext && fingerprint) wrong('give either a fingerprint or plaintext, not both');
  if (isOpen && (brought || identity)) {
    wrong('a fingerprint or plaintext is for servers that ask for no certificates: leave these off');
  }
  if (identity && brought) wrong('give either an identity folder or files of your own, not both');
  if (!isOpen && !identity && !brought) {
    wrong('this site has not joined: run `fedstream-client join` with the coordinator\'s token first, or give the '
      + '--identity folder that it made');
  }
  if (!server) wrong('add --server HOST:PORT, such as fl.example.org:8443');
  const { host } = orWrong(() => splitAddress(server));
  if (plaintext && !isLoopback(host)) {
    wrong(`--plaintext is for a server on this machine only; join ${host} with a token`);
  }
  if (fingerprint && !/^sha256:[0-9a-f]{64}$/i.test(fingerprint)) wrong('a fingerprint is sha256: and 64 digits');
  if (!data) wrong('add --data FILE: a features file, as `fedclient features` writes it');
  if (!isClientName(name)) wrong('a name has 1 to 64 characters of a-z A-Z 0-9 . _ -, a letter or digit first');
}

function texts(...names) {
  return Object.fromEntries(names.map((name) => [name, { type: 'string' }]));
}

function parse(args, options, allowPositionals) {
  const all = { ...options, help: { type: 'boolean', short: 'h' } };
  return orWrong(() => parseArgs({ args, options: all, allowPositionals }));
}

function number(values, name) {
  if (values[name] === undefined) return undefined;
  const value = Number(values[name]);
  if (!(value >= 0 && value < Infinity)) wrong(`--${name} is a number, not ${values[name]}`);
  return value;
}

function wholeNumber(values, name) {
  const value = number(values, name);
  // Half an epoch would be none, which is no limit.
  if (value !== undefined && !(Number.isInteger(value) && value < 2 ** 32)) {
    wrong(`--${name} is a whole number, not ${values[name]}`);
  }
  return value;
}

function maxSeconds(values) {
  const [hours, seconds] = [number(values, 'max-hours'), number(values, 'max-seconds')];
  if (hours === 0 || seconds === 0) wrong('a limit of time is more than 0; without one, leave it off');
  if (hours !== undefined && seconds !== undefined) wrong('give either --max-hours or --max-seconds, not both');
  return seconds ?? (hours === undefined ? null : hours * 3600);
}

function orWrong(read) {
  try {
    return read();
  } catch (error) {
    return wrong(error.message);
  }
}

function wrong(message) {
  throw new Stop(EXIT.BAD_CONFIGURATION, message);
}

#!/usr/bin/env node
/** The command: which one, signals and exit codes. */
import { closeSync, realpathSync } from 'node:fs';
import path from 'node:path';
import process from 'node:process';
import { pathToFileURL } from 'node:url';
import { EXIT, Stop } from './errors.js';
import { defaultIdentityFolder, IdentityFolder } from './identity.js';
import { makeLog } from './log.js';
import { HELP, JOIN_HELP, readJoin, readRun, RUN_HELP } from './options.js';

const COMMANDS = { join, run };
const SIGNALS = { SIGHUP: EXIT.HUNG_UP, SIGINT: EXIT.INTERRUPTED, SIGTERM: EXIT.TERMINATED };

async function main([command, ...words]) {
  if (['--help', '-h'].includes(command)) return HELP;
  if (!Object.hasOwn(COMMANDS, command ?? '')) {
    throw new Stop(EXIT.BAD_CONFIGURATION, 'begin with join or run; --help says more');
  }
  return COMMANDS[command](words);
}

async function join(words) {
  const { help, token, where, identity } = readJoin(words);
  if (help) return JOIN_HELP;
  const said = await (await import('./join.js')).join(token, where, new IdentityFolder(identity), makeLog({}));
  const option = identity !== defaultIdentityFolder() ? ` --identity ${identity}` : '';
  return `${said}.\nIts key is in ${identity}. Take part with: fedstream-client run${option} --data FILE\n`;
}

async function run(words) {
  const config = readRun(words);
  if (config.help) return RUN_HELP;
  const { Client } = await import('./client.js'); // gRPC takes a moment to load, and --help is to be quick
  const trainer = await import(config.task ? pathToFileURL(path.resolve(config.task)) : './train_head.js');
  // Whose terminal is closed has to say good-bye, and whose output is lost otherwise goes on.
  [process.stdout, process.stderr].forEach((output) => output.on('error', () => {}));
  const client = new Client(config, trainer, makeLog({ client: config.name }));
  heedSignals(client);
  return `${await client.run()}\n`;
}

/** The first says good-bye, and the next is for a person in a hurry: what was finished is on disk already. */
function heedSignals(client) {
  const names = Object.keys(SIGNALS);
  const stop = async (name) => {
    names.forEach((one) => process.removeAllListeners(one));
    process.on('SIGHUP', () => {}); // of a terminal that is closed, both the shell and the system send one
    await client.leave('stopped by its operator');
    if (name === 'SIGHUP') [0, 1, 2].forEach(close); // or Node would abort, since it cannot restore the terminal's mode
    process.exit(SIGNALS[name]);
  };
  names.forEach((one) => process.once(one, stop));
}

function close(descriptor) {
  try {
    closeSync(descriptor);
  } catch {
    // It is closed already.
  }
}

// Also by way of the symbolic link that npm makes of a command.
if (process.argv[1] && import.meta.url === pathToFileURL(realpathSync(process.argv[1])).href) {
  try {
    process.stdout.write(await main(process.argv.slice(2)));
  } catch (error) {
    process.stderr.write(`fedstream-client: ${error instanceof Stop ? error.message : error.stack}\n`);
    process.exitCode = error instanceof Stop ? error.exitCode : EXIT.DEFECT;
  }
}

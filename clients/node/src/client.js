/** A client from start to end: the task described, the data opened, one session after another, the final model kept. */
import { access, constants, mkdir } from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { untilDone } from './backoff.js';
import { Bench } from './bench.js';
import { ChunkSize } from './chunk_size.js';
import { Connection } from './connection.js';
import { fetchModel } from './download.js';
import { writeDurably } from './durable.js';
import { EXIT, isRefusal, notLetIn, Refusal, Stop, Trouble } from './errors.js';
import * as limits from './limits.js';
import { canonicalSchema, sha256 } from './model.js';
import { asSafetensors } from './safetensors.js';
import { IdentityFolder } from './identity.js';
import { lockFolder } from './lock.js';
import { renewIfDue, untilNextLookMs } from './renewal.js';
import { Session } from './session.js';
import { isStore, Store } from './store.js';
import { readMetrics, writeDuration, writeMeaning } from './wire.js';

export const SOFTWARE = 'fedstream-node 0.1.0';
/**
 * How long nothing of the final model may come, after which the server is taken to be gone; most of it may be one chunk.
 */
const FETCH_MS = 180_000;
/** Being superseded twice within this time means that another process uses the name. */
const RIVAL_MS = 300_000;

export class Client {
  #config;
  #log;
  #connection;
  #store;
  #site = null;
  #bench = null;
  #session = null;
  #sessions = 0;
  #supersededAt = -Infinity;
  #saved = null;
  #settings = null;
  #chunkSize = new ChunkSize();
  #identity;

  /**
   * @param {object} config as `main.js` reads it
   * @param {{taskName: string, open: Function}} trainer a training module, see `train_head.js`
   * @param {Function} log
   */
  constructor(config, trainer, log) {
    this.#config = config;
    this.trainer = trainer;
    this.#log = log;
    this.#connection = new Connection(config);
    this.#store = new Store(config.stateDir);
    this.#identity = config.identity ? new IdentityFolder(config.identity) : null;
  }

  /** Take part until the federation ends; returns how it ended, in words for people. */
  async run() {
    const { giveUpAfter, server } = this.#config;
    const patience = { firstSeconds: 0.5, longestSeconds: 30, giveUpAfterSeconds: giveUpAfter };
    const options = { howFar: () => this.#sessions, patience, doing: 'talking to the server', log: this.#log };
    const lock = await this.#openStore();
    try {
      await this.#lookAtFormerStore();
      await this.#requireOut();
      const { reason } = await untilDone(() => this.#oneSession(), options);
      return await this.#finish(`federation finished: ${reason}`);
    } catch (error) {
      if (!(error instanceof Trouble || isRefusal(error, 'LIMIT_EXCEEDED'))) throw error;
      throw new Stop(EXIT.UNREACHABLE, `no contact to ${server} for ${giveUpAfter} s: ${error.message}`);
    } finally {
      await this.#bench?.close();
      this.#connection.close();
      lock.close();
    }
  }

  /** Make what must survive a restart ready, for this process alone; returns its lock. */
  async #openStore() {
    const { stateDir } = this.#config;
    let lock;
    try {
      await this.#store.open();
      lock = await lockFolder(stateDir);
    } catch (error) {
      const words = `the folder for what must survive a restart cannot be used: ${error.message}`;
      throw new Stop(EXIT.BAD_CONFIGURATION, words);
    }
    if (lock) return lock;
    const words = `another client uses ${stateDir}: stop it, or give this one another --name or --state-dir`;
    throw new Stop(EXIT.BAD_CONFIGURATION, words);
  }

  /** Say what to do with what an earlier version has left, which may be of another federation. */
  async #lookAtFormerStore() {
    const folder = this.#config.formerStateDir;
    if (!folder || !(await isStore(folder))) return;
    const because = 'its name does not say of which server it is: to go on with what it keeps, name it with '
      + '--state-dir; else remove it';
    this.#log('warning', 'the state folder of an earlier version is not used', { folder, because });
  }

  /** See that the final model can be written, before rounds of work: that it cannot would be found at the end. */
  async #requireOut() {
    const { out } = this.#config;
    try {
      await mkdir(out, { recursive: true });
      await access(out, constants.W_OK);
    } catch (error) {
      throw new Stop(EXIT.BAD_CONFIGURATION, `--out: models cannot be written to ${out}: ${error.message}`);
    }
  }

  /** Tell the server that this client goes, if there is a session. */
  async leave(reason) {
    await this.#session?.leave(reason);
  }

  async #finish(text) {
    if (this.#saved === null) {
      throw new Stop(EXIT.UNREACHABLE, `${text}\nbut its final model could not be had: ask the coordinator for it`);
    }
    await this.#store.clear();
    return `${text}\nsaved ${this.#saved}`;
  }

  async #oneSession() {
    const renewal = new AbortController();
    try {
      await this.#connection.open();
      await this.#renew();
      await this.#prepare(await this.#connection.describeTask());
      const stream = this.#connection.negotiate();
      this.#session = new Session(stream, this.#site, this.#bench, (outcome) => this.#collect(outcome));
      this.#renewDuring(stream, renewal.signal);
      return await this.#session.run(this.#hello(), () => { this.#sessions += 1; });
    } catch (error) {
      throw this.#judge(error);
    } finally {
      renewal.abort();
      this.#session = null;
    }
  }

  /** See to the site's certificate; whether the connection was made anew with the next one. */
  async #renew() {
    const isNew = this.#identity !== null && await renewIfDue(this.#identity, this.#connection, this.#log);
    if (isNew) await this.#connection.reopen();
    return isNew;
  }

  /** And while a session goes on: it is cut, and comes back on the new connection. */
  async #renewDuring(stream, signal) {
    while (this.#identity !== null) {
      try {
        await sleep(untilNextLookMs(this.#identity), undefined, { signal });
      } catch {
        return; // the session is over
      }
      try {
        if (await this.#renew()) stream.cancel();
      } catch (error) {
        this.#log('warning', 'the certificate could not be renewed', { because: error.message });
      }
    }
  }

  /** Which refusals end a client, and with what. */
  #judge(error) {
    if (!(error instanceof Refusal) || error.reason === 'LIMIT_EXCEEDED') return error;
    if (error.reason === 'SUPERSEDED') return this.#judgeRival();
    if (isRefusal(error, 'UNAUTHENTICATED', 'PERMISSION_DENIED', 'NAME_MISMATCH')) return notLetIn(error);
    return new Stop(EXIT.DEFECT, `the server refused this client's message (${error.reason}): ${error.message}`);
  }

  #judgeRival() {
    const before = this.#supersededAt;
    this.#supersededAt = Date.now();
    if (Date.now() - before >= RIVAL_MS) return new Trouble('a newer session of the same name took over');
    return new Stop(EXIT.REPLACED, `another client called ${this.#config.name} took over: names must be unique`);
  }

  /** Open the data for the server's task, unless that is done; a server never names the code that is run. */
  async #prepare(task) {
    // Sorted, since a map comes in any order.
    const settings = JSON.stringify(Object.entries(task.task_settings).sort());
    if (this.#settings === settings) return this.#enter(task.federation_name);
    await this.#bench?.close();
    if (task.task_name !== this.trainer.taskName) {
      const words = `this federation learns ${task.task_name}, and this client ${this.trainer.taskName}`;
      throw new Stop(EXIT.DECLINED, words);
    }
    const training = await this.trainer.open(task.task_settings, this.#config.data);
    this.#settings = settings;
    this.#site = {
      connection: this.#connection,
      store: this.#store,
      training,
      schema: training.schema,
      chunkSize: this.#chunkSize,
      experience: { epochSeconds: null, transferSeconds: 0, moreTimeRefused: false, misfits: 0 },
      patience: { firstSeconds: 0.5, longestSeconds: 30, giveUpAfterSeconds: null },
      federation: task.federation_name,
      encodings: this.#config.encodings,
      log: this.#log,
    };
    this.#bench = new Bench(this.#site, { maxEpochs: this.#config.maxEpochs, maxSeconds: this.#config.maxSeconds });
    this.#log('info', 'federation', { name: task.federation_name, task: task.task_name });
  }

  /** The server may have another federation of the same task now: what was left out of updates in one is not for it. */
  async #enter(federation) {
    if (this.#site.federation === federation) return;
    await this.#bench.close();
    this.#site.federation = federation;
    this.#log('info', 'federation', { name: federation, task: this.trainer.taskName });
  }

  #hello() {
    const { experience, training, schema } = this.#site;
    const { maxEpochs, maxSeconds, name } = this.#config;
    return {
      protocol: { min: limits.PROTOCOL, max: limits.PROTOCOL },
      client_name: name,
      schema_sha256: sha256(canonicalSchema(schema)),
      meaning: writeMeaning(training.meaning),
      capabilities: { encodings: this.#config.encodings, max_chunk_bytes: limits.DEFAULT_CHUNK_BYTES },
      num_examples: String(training.numExamples),
      epoch_duration: writeDuration(experience.epochSeconds),
      limits: { max_epochs: maxEpochs, max_training_time: writeDuration(maxSeconds) },
      software: SOFTWARE,
      synthetic_data: training.synthetic,
    };
  }

  /** Fetch the best model while the server is still there, and write it for people. */
  async #collect({ best_model: best, last_model: last, metrics }) {
    const model = best ?? last;
    const entries = await this.#fetch(model?.model_digest?.sha256);
    if (entries === null) return;
    const values = await Promise.all(entries.map((entry) => this.#store.read(entry)));
    const file = path.join(this.#config.out, 'GLOBAL_MODEL.safetensors');
    try {
      await mkdir(this.#config.out, { recursive: true });
      await writeDurably(file, asSafetensors(entries, values));
    } catch (error) {
      const words = `the final model cannot be written: ${error.message}; make room, and ask the coordinator for it`;
      throw new Stop(EXIT.BAD_CONFIGURATION, words);
    }
    this.#saved = file;
    this.#log('info', 'federation over', { best_round: model.version, ...readMetrics(metrics) });
  }

  /** The manifest of a final model, or null, since nobody comes back for it once the federation is over. */
  async #fetch(digest) {
    const over = new AbortController();
    const limit = setTimeout(() => over.abort(new Trouble('the server does not answer')), FETCH_MS);
    const hooks = { signal: over.signal, onBytes: () => limit.refresh() };
    try {
      if (!digest) throw new Trouble('the server names none');
      return await fetchModel(this.#site, digest, this.#bench.terms.maxChunkBytes, hooks);
    } catch (error) {
      this.#log('warning', 'the final model could not be had', { because: error.message });
      return null;
    } finally {
      clearTimeout(limit);
    }
  }
}

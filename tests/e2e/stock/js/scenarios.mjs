// What every JavaScript client is asked to do, and how it tells the test what came of it; see ../clients/scenarios.py.
import fs from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';

export const RATE_HZ = 24_000;
export const URL = process.env.STOCK_URL;
export const FULL_URL = process.env.STOCK_FULL_URL;
export const STORY = 'Please tell me a story.';
export const WEATHER = 'How is the weather in Paris?';
const CHUNK_MS = 100;
const LIMIT_MS = 25_000;

/** Chunks of speech and a second of silence, four times as fast as a person. */
export async function* spoken() {
  const pcm = Buffer.concat([fs.readFileSync(process.env.STOCK_SPEECH), Buffer.alloc(2 * RATE_HZ)]);
  const size = (RATE_HZ * CHUNK_MS * 2) / 1000;
  for (let at = 0; at < pcm.length; at += size) {
    yield pcm.subarray(at, at + size);
    await sleep(CHUNK_MS / 4);
  }
}

/** Events as they come, so that a scenario can wait for the next one of a kind. */
export class Inbox {
  #waiting = [];
  all = [];

  put(event) {
    this.all.push(event);
    for (const wake of this.#waiting.splice(0)) wake();
  }

  /** The first event from `from` on for which `wanted` holds, and where it is. */
  async find(wanted, from = 0) {
    for (let at = from; ; at += 1) {
      while (at >= this.all.length) await new Promise((wake) => this.#waiting.push(wake));
      if (wanted(this.all[at])) return [this.all[at], at];
    }
  }
}

export async function play(scenarios) {
  for (const [name, scenario] of Object.entries(scenarios)) {
    const began = performance.now();
    const line = { scenario: name };
    try {
      const late = sleep(LIMIT_MS).then(() => { throw new Error('too late'); });
      line.facts = await Promise.race([scenario(), late]);
    } catch (error) {
      line.failure = String(error?.stack ?? error);
    }
    line.seconds = (performance.now() - began) / 1000;
    fs.writeSync(1, `\n${JSON.stringify(line)}\n`);
  }
  process.exit(0);
}

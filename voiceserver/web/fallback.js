// The loudspeaker where a page has no audio worklet, which is on plain http: one buffer a message, each scheduled after the last.
// It takes the messages of player.worklet.js and reports as that does.

const JITTER_S = 0.1;
const TICK_MS = 100;
const AUDIBLE = 0.005;

export class FallbackPlayer {
  #context;
  #rateHz;
  #output;
  #report;
  #turn = 0;
  #chunks = []; // {source, from, to, audible}
  #waiting = [];
  #nextAt = 0;
  #isEnded = false;
  #timer;
  #underruns = 0;
  #audibleBefore = 0; // of the turns before

  constructor(context, rateHz, output, report) {
    this.#context = context;
    this.#rateHz = rateHz;
    this.#output = output;
    this.#report = report;
  }

  post(message) {
    if (message.type === "stop") {
      if (this.#turn) this.#finish(true);
      return;
    }
    if (this.#turn && message.turn !== this.#turn) {
      this.#waiting.push(message);
      return;
    }
    this.#turn = message.turn;
    this.#timer ??= setInterval(() => this.#tick(), TICK_MS);
    if (message.type === "end") this.#isEnded = true;
    else this.#schedule(new Int16Array(message.pcm));
  }

  #schedule(pcm) {
    if (!pcm.length) return;
    const buffer = this.#context.createBuffer(1, pcm.length, this.#rateHz);
    const samples = buffer.getChannelData(0);
    let audible = 0;
    for (let i = 0; i < pcm.length; i++) {
      samples[i] = pcm[i] / 32768;
      if (Math.abs(samples[i]) > AUDIBLE) audible++;
    }
    const now = this.#context.currentTime;
    if (this.#nextAt <= now) {
      if (this.#chunks.length) this.#underruns++;
      this.#nextAt = now + JITTER_S;
    }
    const source = new AudioBufferSourceNode(this.#context, { buffer });
    source.connect(this.#output);
    source.start(this.#nextAt);
    this.#chunks.push({ source, audible, from: this.#nextAt, to: this.#nextAt + buffer.duration });
    this.#nextAt += buffer.duration;
  }

  #tick() {
    if (this.#isEnded && this.#context.currentTime >= this.#nextAt) this.#finish(false);
    else this.#tell(false, false);
  }

  #finish(isCut) {
    for (const { source } of isCut ? this.#chunks : []) source.stop();
    this.#audibleBefore = this.#tell(true, isCut);
    clearInterval(this.#timer);
    this.#timer = undefined;
    this.#turn = this.#nextAt = 0;
    this.#chunks = [];
    this.#isEnded = false;
    const waiting = isCut ? [] : this.#waiting;
    this.#waiting = [];
    for (const message of waiting) this.post(message);
  }

  #tell(isOver, isCut) {
    const now = this.#context.currentTime;
    let playedMs = 0;
    let queuedMs = 0;
    let audible = this.#audibleBefore;
    for (const chunk of this.#chunks) {
      const heard = Math.min(Math.max((now - chunk.from) / (chunk.to - chunk.from), 0), 1);
      playedMs += heard * (chunk.to - chunk.from) * 1000;
      queuedMs += (1 - heard) * (chunk.to - chunk.from) * 1000;
      audible += Math.round(heard * chunk.audible);
    }
    this.#report({ turn: this.#turn, playedMs, queuedMs, isOver, isCut, underruns: this.#underruns, audible });
    return audible;
  }
}

// The loudspeaker's side of the audio thread: a queue that plays without gaps, and says how much of which turn was heard.
//
// It waits for JITTER_MS of audio before it begins (and again after it ran dry); every start and stop is a short ramp, so nothing clicks.

import { Resampler } from "./resample.js";

const JITTER_MS = 60;
const RAMP_MS = 6;
const REPORT_MS = 200;
const AUDIBLE = 0.005;

class Player extends AudioWorkletProcessor {
  constructor(options) {
    super();
    this.resampler = new Resampler(options.processorOptions.rateHz, sampleRate);
    this.ramp = 1000 / (RAMP_MS * sampleRate);
    this.underruns = 0;
    this.audible = 0;
    this.clear(0);
    this.port.onmessage = ({ data }) => this.receive(data);
  }

  clear(turn) {
    this.turn = turn;
    this.chunks = [];
    this.offset = 0;
    this.queued = 0; // samples
    this.played = 0;
    this.reported = 0;
    this.isEnded = false;
    this.isPlaying = false;
    this.isStopping = false;
    this.gain = 0;
    this.resampler.reset();
  }

  receive(message) {
    if (message.type === "stop") {
      if (this.isPlaying && this.gain > 0) this.isStopping = true;
      else if (this.turn) this.finish(true);
      return;
    }
    if (this.isStopping) {
      // What comes after a stop belongs to what follows it.
      if (message.turn !== this.turn) (this.next ??= []).push(message);
      return;
    }
    if (message.turn !== this.turn) {
      // The reply after this one: heard after it, and counted from its own beginning.
      if (this.turn && this.queued) {
        this.waiting ??= [];
        this.waiting.push(message);
        return;
      }
      this.clear(message.turn);
    }
    if (message.type === "end") {
      this.append(this.resampler.flush());
      this.isEnded = true;
      return;
    }
    const pcm = new Int16Array(message.pcm);
    const samples = new Float32Array(pcm.length);
    for (let i = 0; i < pcm.length; i++) samples[i] = pcm[i] / 32768;
    this.append(this.resampler.process(samples));
  }

  append(samples) {
    if (!samples.length) return;
    this.chunks.push(samples);
    this.queued += samples.length;
  }

  process(_inputs, outputs) {
    const output = outputs[0][0];
    if (!this.isPlaying && this.queued && (this.isEnded || this.queued * 1000 >= JITTER_MS * sampleRate)) {
      this.isPlaying = true;
      this.gain = 0;
    }
    if (this.isPlaying) this.fill(output);
    else if (this.isEnded && !this.queued) this.finish(false);
    for (let channel = 1; channel < outputs[0].length; channel++) outputs[0][channel].set(output);
    if ((this.played - this.reported) * 1000 >= REPORT_MS * sampleRate) this.report(false, false);
    return true;
  }

  fill(output) {
    for (let i = 0; i < output.length; i++) {
      if (!this.queued) {
        this.isPlaying = false;
        if (this.isEnded) this.finish(false);
        else this.underruns++;
        return;
      }
      this.gain = this.isStopping ? this.gain - this.ramp : Math.min(1, this.gain + this.ramp);
      if (this.gain <= 0) {
        this.finish(true);
        return;
      }
      // The end of the queue fades, in case nothing follows.
      const fade = Math.min(1, this.queued * this.ramp);
      const sample = this.chunks[0][this.offset] * this.gain * (this.isEnded ? 1 : fade);
      output[i] = sample;
      if (Math.abs(sample) > AUDIBLE) this.audible++;
      this.played++;
      this.queued--;
      if (++this.offset === this.chunks[0].length) {
        this.chunks.shift();
        this.offset = 0;
      }
    }
  }

  // isCut: stopped by a person, so what waits is thrown away too.
  finish(isCut) {
    this.report(true, isCut);
    this.clear(0);
    const waiting = (isCut ? this.next : this.waiting) ?? [];
    this.waiting = this.next = undefined;
    for (const message of waiting) this.receive(message);
  }

  report(isOver, isCut) {
    this.reported = this.played;
    const toMs = 1000 / sampleRate;
    this.port.postMessage({
      turn: this.turn,
      playedMs: this.played * toMs,
      queuedMs: this.queued * toMs,
      isOver,
      isCut,
      underruns: this.underruns,
      audible: this.audible,
    });
  }
}

registerProcessor("player", Player);

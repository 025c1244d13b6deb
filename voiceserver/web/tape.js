// What was said and heard, for a download: kept in memory, the oldest dropped beyond LIMIT_BYTES.

import { Resampler } from "./resample.js";

const LIMIT_BYTES = 64_000_000; // about a quarter of an hour of both speaking at once
const LONGEST_GAP_MS = 2000; // longer silences are cut to this

export class Tape {
  #rates; // of the caller and of the reply, in Hz
  #pieces = []; // {isReply, turn, fromMs, pcm}
  #bytes = 0;
  #ends = [0, 0]; // ms

  constructor(inputRateHz, outputRateHz) {
    this.#rates = [inputRateHz, outputRateHz];
  }

  get isEmpty() {
    return this.#pieces.length === 0;
  }

  clear() {
    this.#pieces = [];
    this.#bytes = 0;
  }

  // PCM16. turn 0: the caller's own. A reply comes faster than it is heard, so its pieces follow each other.
  add(turn, pcm) {
    const which = turn ? 1 : 0;
    const fromMs = Math.max(performance.now(), this.#ends[which]);
    this.#ends[which] = fromMs + (pcm.byteLength / 2 / this.#rates[which]) * 1000;
    this.#pieces.push({ isReply: which === 1, turn, fromMs, pcm });
    this.#bytes += pcm.byteLength;
    while (this.#bytes > LIMIT_BYTES) this.#bytes -= this.#pieces.shift().pcm.byteLength;
  }

  // Of the reply of ``turn`` only so much was heard.
  cut(turn, playedMs) {
    let leftBytes = Math.round((playedMs / 1000) * this.#rates[1]) * 2;
    this.#pieces = this.#pieces.filter((piece) => {
      if (piece.turn !== turn) return true;
      if (piece.pcm.byteLength > leftBytes) piece.pcm = piece.pcm.slice(0, leftBytes);
      leftBytes -= piece.pcm.byteLength;
      return piece.pcm.byteLength > 0;
    });
    this.#bytes = this.#pieces.reduce((sum, { pcm }) => sum + pcm.byteLength, 0);
    this.#ends[1] = 0;
  }

  // Stereo at the reply's rate: the caller on the left, the reply on the right.
  toWav() {
    const rateHz = this.#rates[1];
    const resampler = new Resampler(this.#rates[0], rateHz);
    const placed = [];
    let endMs = 0; // on the wall
    let cutMs = 0; // silence that was left out so far
    let frames = 0;
    for (const { isReply, fromMs, pcm } of this.#pieces.toSorted((a, b) => a.fromMs - b.fromMs)) {
      if (!placed.length) cutMs = fromMs; // it begins with the first sound
      else cutMs += Math.max(0, fromMs - endMs - LONGEST_GAP_MS);
      const samples = Float32Array.from(new Int16Array(pcm), (value) => value / 32768);
      const at = Math.max(0, Math.round(((fromMs - cutMs) * rateHz) / 1000));
      const piece = isReply ? samples : resampler.process(samples);
      placed.push({ side: isReply ? 1 : 0, at, piece });
      frames = Math.max(frames, at + piece.length);
      endMs = Math.max(endMs, fromMs + (samples.length / this.#rates[isReply ? 1 : 0]) * 1000);
    }
    const stereo = new Int16Array(frames * 2);
    for (const { side, at, piece } of placed) {
      piece.forEach((value, i) => (stereo[(at + i) * 2 + side] = Math.max(-1, Math.min(1, value)) * 32767));
    }
    return new Blob([header(stereo.byteLength, rateHz), stereo], { type: "audio/wav" });
  }
}

function header(dataBytes, rateHz) {
  const view = new DataView(new ArrayBuffer(44));
  const text = (at, letters) => [...letters].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + dataBytes, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true); // PCM
  view.setUint16(22, 2, true);
  view.setUint32(24, rateHz, true);
  view.setUint32(28, rateHz * 4, true);
  view.setUint16(32, 4, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, dataBytes, true);
  return view.buffer;
}

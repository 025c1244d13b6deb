// The microphone's side of the audio thread: any rate in, PCM16 frames of 20 ms at the wire's rate out, each with its loudness.

import { Resampler } from "./resample.js";

const FRAME_MS = 20;

class Capture extends AudioWorkletProcessor {
  constructor(options) {
    super();
    const rateHz = options.processorOptions.rateHz;
    this.resampler = new Resampler(sampleRate, rateHz);
    this.frame = new Int16Array((rateHz * FRAME_MS) / 1000);
    this.filled = 0;
    this.power = 0;
  }

  process(inputs) {
    const channel = inputs[0][0];
    if (!channel) return true;
    for (const sample of this.resampler.process(channel)) {
      const clipped = Math.max(-1, Math.min(1, sample));
      this.frame[this.filled++] = clipped * 32767;
      this.power += clipped * clipped;
      if (this.filled === this.frame.length) this.send();
    }
    return true;
  }

  send() {
    const level = Math.sqrt(this.power / this.filled);
    const pcm = this.frame.buffer;
    this.frame = new Int16Array(this.filled);
    this.filled = this.power = 0;
    this.port.postMessage({ pcm, level }, [pcm]);
  }
}

registerProcessor("capture", Capture);

// Microphone and loudspeaker. One AudioContext at the device's own rate; the worklets resample to and from the wire.
//
// Browsers keep worklets and the microphone from pages on plain http. There answers are heard through ``fallback.js``.

export const INPUT_RATE_HZ = 16000;
export const OUTPUT_RATE_HZ = 24000;

// Why there is no microphone, in words for a person.
export class MicrophoneError extends Error {}

// settings: {microphone, speaker, volume}, the first two ids of devices, empty for the system's own.
export class Sound extends EventTarget {
  #settings;
  #gain;
  #context;
  #making;
  #player; // (message) => nothing
  #early = []; // messages to it while it is made
  #analyser;
  #wave;
  #microphone;
  #capture;

  constructor(settings) {
    super();
    this.#settings = settings;
  }

  // Take up another volume or loudspeaker.
  apply() {
    if (!this.#gain) return;
    this.#gain.gain.value = this.#settings.volume;
    this.#context.setSinkId?.(this.#settings.speaker).catch(() => {}); // one that is gone: it stays with the one it has
  }

  // Must be called from a press or a key: browsers keep audio off until then.
  async start() {
    this.#context ??= new AudioContext({ latencyHint: "interactive" });
    this.#making ??= this.#make();
    await this.#making;
    if (this.#context.state !== "running") await this.#context.resume();
  }

  async #make() {
    this.#analyser = new AnalyserNode(this.#context, { fftSize: 1024 });
    this.#wave = new Float32Array(this.#analyser.fftSize);
    this.#gain = new GainNode(this.#context);
    this.#analyser.connect(this.#gain).connect(this.#context.destination);
    this.apply();
    this.#player = this.#context.audioWorklet ? await this.#makeWorklet() : await this.#makeFallback();
    for (const message of this.#early.splice(0)) this.#player(message);
  }

  async #makeWorklet() {
    const modules = ["capture.worklet.js", "player.worklet.js"];
    await Promise.all(modules.map((name) => this.#context.audioWorklet.addModule(`/web/${name}`)));
    const player = new AudioWorkletNode(this.#context, "player", {
      numberOfInputs: 0,
      outputChannelCount: [2],
      processorOptions: { rateHz: OUTPUT_RATE_HZ },
    });
    player.port.onmessage = ({ data }) => this.#report(data);
    player.connect(this.#analyser);
    return (message) => player.port.postMessage(message, message.pcm ? [message.pcm] : []);
  }

  async #makeFallback() {
    const { FallbackPlayer } = await import("./fallback.js");
    const player = new FallbackPlayer(this.#context, OUTPUT_RATE_HZ, this.#analyser, (progress) => this.#report(progress));
    return (message) => player.post(message);
  }

  #send(message) {
    if (this.#player) this.#player(message);
    else if (this.#making) this.#early.push(message);
  }

  #report(progress) {
    // What has left the worklet is heard a little later.
    const latencyMs = progress.isOver && !progress.isCut ? 0 : (this.#context.outputLatency || 0) * 1000;
    const playedMs = Math.max(0, progress.playedMs - latencyMs);
    this.dispatchEvent(new CustomEvent("progress", { detail: { ...progress, playedMs } }));
  }

  play(turn, pcm) {
    this.#send({ type: "audio", turn, pcm });
  }

  // Nothing follows of this turn.
  end(turn) {
    this.#send({ type: "end", turn });
  }

  stop() {
    this.#send({ type: "stop" });
  }

  // Loudness of what is being played, 0 to 1.
  get replyLevel() {
    if (!this.#analyser) return 0;
    this.#analyser.getFloatTimeDomainData(this.#wave);
    let power = 0;
    for (const sample of this.#wave) power += sample * sample;
    return Math.sqrt(power / this.#wave.length);
  }

  // Why no page on this address gets a microphone: it is neither https nor localhost.
  get isInsecure() {
    return !globalThis.isSecureContext;
  }

  get isMicrophoneOpen() {
    return this.#microphone !== undefined;
  }

  // Frames come as "frame" events: {pcm, level}.
  async openMicrophone() {
    this.closeMicrophone();
    if (!navigator.mediaDevices) {
      throw new MicrophoneError("Browsers give a microphone to pages on https or localhost only.");
    }
    const { microphone } = this.#settings;
    const device = microphone ? { deviceId: microphone } : {};
    const wishes = { ...device, channelCount: 1, echoCancellation: true, noiseSuppression: true, autoGainControl: true };
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio: wishes });
    } catch (error) {
      throw new MicrophoneError(REASONS[error.name] ?? "The microphone could not be opened.");
    }
    await this.start();
    this.#capture = new AudioWorkletNode(this.#context, "capture", {
      numberOfOutputs: 0,
      processorOptions: { rateHz: INPUT_RATE_HZ },
    });
    this.#capture.port.onmessage = ({ data }) => this.dispatchEvent(new CustomEvent("frame", { detail: data }));
    this.#microphone = new MediaStreamAudioSourceNode(this.#context, { mediaStream: stream });
    this.#microphone.connect(this.#capture);
    stream.getAudioTracks()[0].addEventListener("ended", () => this.dispatchEvent(new Event("unplugged")));
  }

  closeMicrophone() {
    if (!this.#microphone) return;
    this.#microphone.disconnect();
    this.#capture.port.onmessage = null;
    for (const track of this.#microphone.mediaStream.getTracks()) track.stop();
    this.#microphone = this.#capture = undefined;
  }
}

const REASONS = {
  NotAllowedError: "The browser was told not to give this page the microphone. Allow it in the address bar, then try again.",
  NotFoundError: "No microphone was found.",
  NotReadableError: "Another program is using the microphone.",
};

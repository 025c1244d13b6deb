// The native wire from a browser: connects, honours credit, and comes back by itself, to the same session if it can.
//
//   state:  idle -> connecting -> open -> (lost) -> waiting to retry -> connecting ...
//
// Events: "state" {state, retryAtMs, reason}, "event" (a server event), "sent" (one of ours), "audio" (an ArrayBuffer of the reply).

const FIRST_RETRY_MS = 500;
const LONGEST_RETRY_MS = 15000;
const HELD_LIMIT_MS = 15000; // audio that waits here for credit
const KEPT_MS = 10000; // audio that was sent and may be sent again to a resumed session
const KEPT_EVENTS = 200; // and so many text messages
const NORMAL = 1000;
const BROKEN = new Set([1001, 1005, 1006]); // no word of the server's: the session may still be there

export class Wire extends EventTarget {
  #rateHz;
  #replyRateHz;
  #key = "";
  #socket;
  #timer;
  #attempts = 0;
  #told; // the retry time that a refusal named
  #resumeToken = "";
  #received = 0; // messages of this session, but for session.ready
  #held = [];
  #kept = [];
  #sentMs = 0;
  #keptTexts = [];
  #sentTexts = 0; // text messages of this session
  #creditMs = Infinity;
  #droppedMs = 0; // audio that found no room here while the server was busy

  state = "idle";

  constructor(rateHz, replyRateHz) {
    super();
    this.#rateHz = rateHz;
    this.#replyRateHz = replyRateHz;
  }

  get heldMs() {
    return this.#held.reduce((sum, pcm) => sum + this.#durationMs(pcm), 0);
  }

  // What was dropped here since the last call.
  takeDroppedMs() {
    const droppedMs = this.#droppedMs;
    this.#droppedMs = 0;
    return droppedMs;
  }

  get hasSession() {
    return this.state === "open" || this.#resumeToken !== "";
  }

  get key() {
    return this.#key;
  }

  set key(value) {
    this.#key = value;
  }

  // Connect unless that is so already. Idempotent; also "try now" while a retry is pending.
  open() {
    if (this.state === "open" || this.state === "connecting") return;
    clearTimeout(this.#timer);
    this.#told = undefined;
    this.#to("connecting");
    const query = new URLSearchParams({ rate: this.#rateHz, reply_rate: this.#replyRateHz });
    if (this.#resumeToken) {
      query.set("resume", this.#resumeToken);
      query.set("after", this.#received);
    }
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const url = `${scheme}://${location.host}/v1/stream?${query}`;
    const socket = new WebSocket(url, this.#key ? ["voiceserver", `voiceserver-key.${this.#key}`] : []);
    socket.binaryType = "arraybuffer";
    // A socket that was given up has nothing more to say.
    socket.onmessage = ({ data }) => socket === this.#socket && this.#receive(data);
    socket.onclose = ({ code }) => socket === this.#socket && this.#lose(code);
    this.#socket = socket;
  }

  // Hang up: the session ends, and nobody reconnects until ``open``.
  close() {
    clearTimeout(this.#timer);
    this.send({ type: "session.close" });
    this.#forget();
    this.#socket?.close(NORMAL);
    this.#socket = undefined;
    this.#to("idle", { code: NORMAL });
  }

  // Do not try again by itself; the session is kept for the next ``open``.
  pause() {
    clearTimeout(this.#timer);
    if (this.state === "retrying") this.#to("idle");
  }

  send(event) {
    if (!this.#isOpen) return false;
    const text = JSON.stringify(event);
    this.#socket.send(text);
    this.#sentTexts++;
    this.dispatchEvent(new CustomEvent("sent", { detail: event }));
    if (this.#resumeToken) this.#keptTexts.push(text);
    if (this.#keptTexts.length > KEPT_EVENTS) this.#keptTexts.shift();
    return true;
  }

  // PCM16. Waits here while the server gives no credit, and while there is no connection.
  sendAudio(pcm) {
    if (this.state === "retrying" && !this.#resumeToken) return; // a new session should not begin with old words
    this.#held.push(pcm);
    while (this.heldMs > HELD_LIMIT_MS) this.#droppedMs += this.#durationMs(this.#held.shift());
    this.#flush();
  }

  get #isOpen() {
    return this.state === "open" && this.#socket.readyState === WebSocket.OPEN;
  }

  #flush() {
    while (this.#isOpen && this.#held.length) {
      const durationMs = this.#durationMs(this.#held[0]);
      if (durationMs > this.#creditMs) return;
      const pcm = this.#held.shift();
      this.#socket.send(pcm);
      this.#creditMs -= durationMs;
      this.#sentMs += durationMs;
      if (this.#resumeToken) this.#keep(pcm, durationMs);
    }
  }

  #keep(pcm, durationMs) {
    this.#kept.push({ pcm, fromMs: this.#sentMs - durationMs });
    while (this.#sentMs - this.#kept[0].fromMs > KEPT_MS) this.#kept.shift();
  }

  #durationMs(pcm) {
    return (pcm.byteLength / 2 / this.#rateHz) * 1000;
  }

  #receive(data) {
    this.#received++;
    if (data instanceof ArrayBuffer) {
      this.dispatchEvent(new CustomEvent("audio", { detail: data }));
      return;
    }
    const event = JSON.parse(data);
    if (event.type === "session.ready") this.#begin(event);
    if (event.type === "server.busy") this.#creditMs = event.credit_ms;
    if (event.type === "server.ready") this.#creditMs = Infinity;
    if (event.type === "error" && this.state === "connecting") this.#told = refusalOf(event);
    this.dispatchEvent(new CustomEvent("event", { detail: event }));
    this.#flush();
  }

  #begin(ready) {
    this.#attempts = 0;
    this.#creditMs = Infinity;
    this.#received = ready.is_resumed ? this.#received - 1 : 0;
    this.#sentMs = 0;
    if (ready.is_resumed) {
      const receivedMs = ready.received_ms ?? 0;
      const again = this.#kept.filter(({ fromMs }) => fromMs > receivedMs - 1);
      this.#held.unshift(...again.map(({ pcm }) => pcm));
      this.#sentMs = receivedMs;
      const lost = this.#sentTexts - (ready.received_events ?? this.#sentTexts);
      if (lost > 0) for (const text of this.#keptTexts.slice(-lost)) this.#socket.send(text);
    } else {
      this.#sentTexts = 0;
      this.#keptTexts = [];
    }
    this.#kept = [];
    this.#resumeToken = ready.resume_token ?? "";
    this.#to("open", { isResumed: ready.is_resumed ?? false });
  }

  // The session is not kept any more: the next connection begins a new one.
  giveUpSession() {
    this.#resumeToken = "";
    this.#held = [];
    this.#kept = [];
    this.#keptTexts = [];
  }

  #lose(code) {
    if (code === NORMAL) {
      this.#forget();
      this.#to("idle", { code });
      return;
    }
    const wasOpen = this.state === "open";
    if (!BROKEN.has(code)) this.giveUpSession(); // the server has ended it
    if (!this.#resumeToken) this.#held = [];
    const backoffMs = Math.min(FIRST_RETRY_MS * 2 ** this.#attempts, LONGEST_RETRY_MS);
    this.#attempts++;
    // Spread out, so that callers who were sent away together do not come back together.
    const waitMs = Math.max(this.#told?.retryMs ?? 0, backoffMs) * (1 + Math.random() * 0.3);
    const reason = this.#told?.reason ?? (code === 1012 ? "draining" : code === 1013 ? "at_capacity" : "lost");
    this.#timer = setTimeout(() => this.open(), waitMs);
    this.#to("retrying", { reason, code, wasOpen, attempts: this.#attempts, waitMs });
  }

  #forget() {
    this.giveUpSession();
    this.#attempts = 0;
  }

  #to(state, detail = {}) {
    this.state = state;
    this.dispatchEvent(new CustomEvent("state", { detail: { state, ...detail } }));
  }
}

// A browser cannot see a 503: it is let in for a second, told, and sent away.
function refusalOf(event) {
  const named = /about (\d+(?:\.\d+)?) s\b/.exec(event.message ?? "");
  const retryMs = event.retry_after_ms ?? (named ? Number(named[1]) * 1000 : 0);
  return { reason: event.code, retryMs };
}

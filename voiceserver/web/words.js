// What the server's signals mean, in words for a person. Pure: a signal in, what the banner shows out.

const STAGES = {
  vad: "listening",
  stt: "speech recognition",
  reply: "the answer",
  tts: "the voice",
  admission: "the door",
};

const seconds = (ms) => `${(ms / 1000).toFixed(ms < 9950 ? 1 : 0)} s`;

// {kind, title, detail, figures: [[name, value]], waitMs}
export function busyBanner(event, heldMs = 0, droppedHereMs = 0) {
  if (event.step === "waiting") {
    return {
      kind: "waiting",
      title: event.position === 1 ? "You are next" : `You are number ${event.position} in line`,
      detail: "All lines are taken. Keep this page open; you can talk as soon as it is your turn.",
      figures: [["position", String(event.position)]],
      waitMs: event.retry_after_ms,
    };
  }
  const stage = STAGES[event.stage] ?? event.stage;
  const figures = [["behind", seconds(event.lag_ms)], ["may send", seconds(event.credit_ms)]];
  if (heldMs > 0) figures.push(["held here", seconds(heldMs)]);
  const droppedMs = event.dropped_ms + droppedHereMs;
  if (droppedMs > 0) figures.push(["dropped", seconds(droppedMs)]);
  const title = event.reason === "lighter_engine" ? "Busy: a lighter engine is at work" : TITLES[event.step] ?? "Busy";
  return { kind: "busy", title, detail: busyDetail(event, stage), figures, waitMs: event.retry_after_ms };
}

const TITLES = {
  slow: "Busy: running behind",
  lost: "A worker was lost and is being replaced",
  degraded: "Busy: live captions are paused",
  shed: "Too far behind: some audio was dropped",
};

function busyDetail(event, stage) {
  if (event.step === "shed") return `The oldest ${seconds(event.dropped_ms)} had to go, because ${stage} could not keep up. Please repeat it.`;
  if (event.step === "lost") return `It was working on ${stage}. What you said is kept and goes to another one.`;
  if (event.reason === "lighter_engine") return `For this turn ${stage} makes do with a lighter engine. Nothing is lost.`;
  if (event.step === "degraded") return "Nothing is lost; the words will come all at once.";
  return `For the moment ${stage} is slower than you speak. It catches up; nothing is lost.`;
}

export function retryBanner({ reason, waitMs, wasOpen }) {
  const kind = reason === "lost" ? "lost" : "refused";
  const words = {
    draining: ["The server is shutting down", "Another one may answer in a moment."],
    at_capacity: ["All lines are taken", "The server turned this call away rather than serve it badly."],
    lost: wasOpen ? ["The connection was lost", "Trying to pick up where you were."] : ["No answer from the server", "It may be starting, or out of reach."],
  };
  const [title, detail] = words[reason] ?? ["The server refused this call", reason];
  return { kind, title, detail, waitMs };
}

export function drainingBanner(event) {
  return {
    kind: "draining",
    title: "The server is about to shut down",
    detail: "This turn will be finished first.",
    waitMs: event.deadline_ms,
  };
}

export const problemBanner = (title, detail) => ({ kind: "problem", title, detail });

// Why the server does not let this page in. ``error``: of its answer.
export function keyBanner({ code, message = "It did not say why." }) {
  const titles = {
    missing_key: "This server wants a key",
    invalid_key: "The key is wrong",
    invalid_token: "The key is wrong, or it has ended",
    origin_not_allowed: "This page may not connect",
    key_talk_exhausted: "This key has talked enough for today",
    key_sessions_exhausted: "This key is in use elsewhere",
  };
  return { kind: "problem", title: titles[code] ?? "The server refused this page", detail: message };
}

// Nobody has said or done anything for a while.
export const idleBanner = (waitMs) => ({
  kind: "idle",
  title: "Are you still there?",
  detail: "You are muted, and hold a place that others could have. Without a sign of you the call ends.",
  waitMs,
});

// The page was loaded over plain http from another machine. ``place``: its address, as ``location`` has it.
export function insecureBanner({ hostname, port }) {
  const number = port || "80";
  return {
    kind: "insecure",
    title: "No microphone on this address",
    detail: "Browsers give it to https and localhost only. You can type, and hear the answers. To talk, do one of these:",
    lines: [
      ["Have the server make a certificate, and open the https address that it prints:", "voiceserver serve --tls self-signed --host 0.0.0.0"],
      [`Or lead a port of your machine to it, and open localhost:${number} there:`, `ssh -L ${number}:localhost:${number} ${hostname}`],
      ["Or put it behind a proxy that speaks https."],
    ],
  };
}

// The parts of a turn in the order they happen: [{name, label, ms}], and what a caller felt in all.
export function splitOf(timings) {
  const parts = [
    { name: "endpointing", label: "end of turn", ms: timings.endpointing_ms },
    { name: "stt", label: "transcript", ms: timings.stt_ms },
    { name: "reply", label: "answer", ms: timings.reply_ms },
    { name: "tts", label: "voice", ms: timings.tts_ms },
  ].filter(({ ms }) => ms != null && ms >= 0);
  const known = parts.filter(({ name }) => name !== "endpointing").reduce((sum, { ms }) => sum + ms, 0);
  const rest = (timings.first_audio_ms ?? known) - known;
  if (rest >= 1) parts.push({ name: "rest", label: "in between", ms: rest });
  return { parts, totalMs: parts.reduce((sum, { ms }) => sum + ms, 0) };
}

export const inMs = (ms) => (ms < 10 ? `${ms.toFixed(1)} ms` : ms < 999.5 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(2)} s`);

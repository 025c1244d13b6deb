// What the server's codes mean, in words for whoever runs it. Pure.

const of = (table) => (code) => table[code] ?? String(code).replaceAll("_", " ");

export const stageWords = of({ vad: "voice activity", stt: "speech recognition", reply: "answer", tts: "voice", admission: "at the door" });

export const refusalWords = of({
  at_capacity: "all places taken",
  draining: "the server is shutting down",
  process_busy: "the process that keeps the call was busy",
  waited_too_long: "waited too long for a place",
});

export const busyWords = of({
  slow: "running behind",
  shed: "too far behind, audio dropped",
  no_partials: "captions paused",
  lighter_engine: "a lighter engine at work",
  no_worker: "no worker is ready",
  worker_lost: "a worker died",
  worker_hung: "a worker hung",
  worker_memory: "a worker ran out of memory",
  quarantined: "input that kills workers was set aside",
  full: "all places of the stage taken",
  at_capacity: "all places taken",
});

const CLOSES = {
  1000: "hung up",
  1001: "page left",
  1002: "broke the protocol",
  1003: "sent what this wire does not take",
  1005: "closed without a reason",
  1006: "connection lost",
  1007: "sent text that is none",
  1008: "not allowed",
  1009: "message too long",
  1011: "fault of the server",
  1012: "server shut down",
  1013: "no place",
  private: "closed with a code of its own",
};
export const closeWords = (code) => (code in CLOSES ? `${CLOSES[code]} (${code})` : `closed with ${code}`);

const PROBLEMS = {
  worker_lost: "A worker died",
  worker_hung: "A worker hung and was ended",
  worker_memory: "A worker ran out of memory",
  bad_engine: "The engine cannot be made",
  no_memory: "There is no room for a worker",
  forkserver_lost: "The process that starts workers was lost",
  endpoint_down: "The endpoint does not answer",
  reply_failed: "An answer failed",
  ring_corrupt: "The memory shared with a worker was damaged",
  quarantined: "Input that kills workers was set aside",
};

// {kind, reason, url, count} of /v1/stats.
export function problemWords({ kind, reason, url, count }) {
  const words = PROBLEMS[kind] ?? kind.replaceAll("_", " ");
  const times = count > 1 ? ` (${count} times)` : "";
  return `${words}${url ? ` at ${url}` : ""}${reason ? `: ${reason}` : ""}${times}`;
}

// Why the limit of places moved: {cause, stage, value} of /v1/stats.
export function moveWords({ cause, stage, value }) {
  const talkers = `${Math.round(value)} talker${Math.round(value) === 1 ? "" : "s"}`;
  const name = stage === "processor" ? "the processor" : stageWords(stage);
  return {
    places: "as many as the stages have places for",
    calibrated: "what the engines need was measured at the start",
    delay: `work waited ${Math.round(value)} ms`,
    time: `${name} has time for ${talkers}`,
    stage_full: `${name} has places for ${talkers}`,
    demand: stage ? `callers waited, and ${name} has time for ${talkers}` : "callers waited, and there was room",
  }[cause] ?? cause;
}

export function ageWords(ms) {
  const seconds = Math.round(ms / 1000);
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  const hours = Math.floor(seconds / 3600);
  return hours < 48 ? `${hours} h ${Math.floor((seconds % 3600) / 60)} min` : `${Math.floor(hours / 24)} days`;
}

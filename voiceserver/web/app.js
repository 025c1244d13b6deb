// The page: what a person does becomes events of the native wire, and what the server says becomes words, sound and numbers.

import { Banner } from "./banner.js";
import { INPUT_RATE_HZ, MicrophoneError, OUTPUT_RATE_HZ, Sound } from "./sound.js";
import { Strip } from "./strip.js";
import { Thread } from "./thread.js";
import { Wire } from "./wire.js";
import { busyBanner, drainingBanner, problemBanner, retryBanner } from "./words.js";

const HOLD_MS = 350; // a press that lasts longer is push-to-talk
const TAIL_MS = 150; // what was said while letting go still counts

const $ = (id) => document.getElementById(id);
const sound = new Sound();
const wire = new Wire(INPUT_RATE_HZ, OUTPUT_RATE_HZ);
const thread = new Thread($("thread"), $("announce"));
const banner = new Banner($("banner"), () => wire.open());
wire.key = sessionStorage.getItem("voiceserver-key") ?? "";

const talk = {
  mode: "off", // off, open (until pressed again), held (until let go)
  level: 0,
  isHeard: false, // somebody speaks, says the server
  isThinking: false,
  isPlaying: false,
  isWaiting: false, // in the waiting room: what is said there should not be answered later
  replyTurn: 0, // whose audio comes now
  commits: new Set(), // event ids of our own commits; one that finds nothing said is no news
};
// What a test may look at; nothing reads it here.
const seen = (globalThis.__voiceserver = { events: [], audioBytes: 0, progress: null, sound, wire, talk });

new Strip($("strip"), () => [talk.mode === "off" ? 0 : talk.level, sound.replyLevel]);

// ------------------------------------------------------------------------------------------------------- talking

async function begin(mode) {
  talk.mode = mode;
  show();
  wire.open();
  try {
    await sound.start();
    if (!sound.isMicrophoneOpen) await sound.openMicrophone();
    banner.hide("problem");
  } catch (error) {
    if (!(error instanceof MicrophoneError)) throw error;
    talk.mode = "off";
    banner.show(problemBanner("No microphone", `${error.message} You can type instead.`));
  }
  if (talk.mode === "off") sound.closeMicrophone();
  show();
}

function finish() {
  const wasHeld = talk.mode === "held";
  if (talk.mode === "off") return;
  talk.mode = "ending";
  show();
  setTimeout(() => {
    if (talk.mode !== "ending") return;
    talk.mode = "off";
    talk.level = 0;
    sound.closeMicrophone();
    if (wasHeld || talk.isHeard) commit();
    show();
  }, TAIL_MS);
}

function commit() {
  const id = `commit-${talk.commits.size + 1}`;
  talk.commits.add(id);
  wire.send({ type: "input.commit", event_id: id });
}

async function sayText(text) {
  wire.open();
  thread.addTyped(text);
  $("welcome").hidden = true;
  sound.stop();
  await sound.start();
  await isOpen();
  wire.send({ type: "item.append", item: { role: "user", text } });
  wire.send({ type: "reply.create" });
}

function isOpen() {
  return new Promise((resolve) => {
    if (wire.state === "open") resolve();
    else wire.addEventListener("state", ({ detail }) => detail.state === "open" && resolve());
  });
}

sound.addEventListener("frame", ({ detail: { pcm, level } }) => {
  talk.level = Math.max(level, talk.level * 0.7);
  if (talk.mode !== "off" && !talk.isWaiting) wire.sendAudio(pcm);
});
sound.addEventListener("unplugged", () => {
  finish();
  banner.show(problemBanner("The microphone is gone", "Plug it in again, or type instead."));
});

// ------------------------------------------------------------------------------------------------------- hearing

wire.addEventListener("audio", ({ detail }) => {
  seen.audioBytes += detail.byteLength;
  if (talk.replyTurn) sound.play(talk.replyTurn, detail);
});

sound.addEventListener("progress", ({ detail: { turn, playedMs, isOver, isCut, ...rest } }) => {
  seen.progress = { turn, playedMs, isOver, isCut, ...rest };
  if (isCut) seen.cut = seen.progress;
  talk.isPlaying = !isOver;
  if (turn && playedMs > 0) {
    wire.send({ type: "reply.played", turn, played_ms: Math.round(playedMs), is_final: isCut });
  }
  show();
});

function stopPlaying(turn) {
  if (turn === talk.replyTurn) talk.replyTurn = 0;
  sound.stop();
}

const ON_EVENT = {
  "session.ready": (event) => {
    if (event.is_resumed) return;
    thread.forgetNumbers();
    talk.isHeard = talk.isThinking = talk.isWaiting = false;
    talk.replyTurn = 0;
    sound.stop();
  },
  "speech.started": (event) => {
    talk.isHeard = true;
    talk.isThinking = false;
    if (event.interrupted_turn) stopPlaying(event.interrupted_turn);
  },
  "speech.stopped": () => {
    talk.isHeard = false;
    talk.isThinking = true;
  },
  "transcript.final": (event) => {
    if (!event.text) talk.isThinking = false;
  },
  "transcript.failed": () => (talk.isThinking = false),
  "reply.started": (event) => {
    talk.isThinking = true;
    talk.replyTurn = event.turn;
  },
  "reply.done": (event) => {
    talk.isThinking = false;
    if (event.reason === "interrupted" || event.reason === "cancelled") stopPlaying(event.turn);
    else sound.end(event.turn);
  },
  "playback.stop": (event) => stopPlaying(event.turn),
  "server.busy": (event) => {
    talk.isWaiting = event.step === "waiting";
    banner.show(busyBanner(event, wire.heldMs, wire.takeDroppedMs()));
  },
  "server.ready": () => {
    if (talk.isWaiting) $("announce").textContent = "It is your turn.";
    talk.isWaiting = false;
    banner.hide("busy", "waiting");
  },
  "server.draining": (event) => banner.show(drainingBanner(event)),
  error: (event) => {
    if (talk.commits.has(event.event_id) || wire.state !== "open") return;
    banner.show(problemBanner("Something went wrong", event.message));
  },
};

wire.addEventListener("event", ({ detail: event }) => {
  seen.events.push(event);
  if (seen.events.length > 500) seen.events.shift();
  ON_EVENT[event.type]?.(event);
  thread.receive(event);
  if (!thread.isEmpty) $("welcome").hidden = true;
  show();
});

wire.addEventListener("state", ({ detail }) => {
  if (detail.state === "open") banner.hide();
  if (detail.state === "retrying") {
    talk.isHeard = talk.isThinking = talk.isWaiting = false;
    if (!wire.hasSession) thread.forgetTyped();
    banner.show(retryBanner(detail));
    if (detail.code === 1006 && !detail.wasOpen) askWhy();
  }
  show();
});

// A handshake that is refused looks like no server at all to a page. If the figures can be had, there is a server: then the
// session is not kept any more; if they cannot, a key may be missing.
async function askWhy() {
  const headers = wire.key ? { Authorization: `Bearer ${wire.key}` } : {};
  const answer = await fetch("/v1/stats", { headers }).catch(() => undefined);
  if (answer === undefined) return;
  if (wire.hasSession && wire.state === "retrying") {
    wire.giveUpSession();
    thread.forgetTyped();
    wire.open();
  } else if (answer.status === 401 && !$("key-dialog").open) $("key-dialog").showModal();
}

$("key-dialog").addEventListener("close", () => {
  if ($("key-dialog").returnValue !== "ok") return;
  wire.key = $("key").value.trim();
  sessionStorage.setItem("voiceserver-key", wire.key);
  wire.open();
});

// ------------------------------------------------------------------------------------------------------ controls

let pressedAt = 0;
let wasOpen = false;

function press({ timeStamp }) {
  wasOpen = talk.mode === "open";
  pressedAt = timeStamp;
  if (!wasOpen) begin("open");
}

function letGo({ timeStamp }) {
  if (!pressedAt) return;
  const isHold = timeStamp - pressedAt >= HOLD_MS;
  pressedAt = 0;
  if (wasOpen) finish();
  else if (isHold && talk.mode === "open") {
    talk.mode = "held";
    finish();
  }
}

$("talk").addEventListener("pointerdown", (event) => {
  if (event.button !== 0) return;
  event.currentTarget.setPointerCapture(event.pointerId);
  press(event);
});
$("talk").addEventListener("pointerup", letGo);
$("talk").addEventListener("pointercancel", letGo);
$("talk").addEventListener("contextmenu", (event) => event.preventDefault());
// From a keyboard or a screen reader: no pointer, so no hold.
$("talk").addEventListener("click", (event) => {
  if (event.detail !== 0) return;
  press(event);
  letGo(event);
});

const isTyping = (target) => target instanceof Element && target.closest("input, a, dialog, button:not(#talk)");

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stopAnswer();
  if (event.code !== "Space" || isTyping(event.target)) return;
  event.preventDefault();
  if (!event.repeat) press(event);
});
document.addEventListener("keyup", (event) => {
  if (event.code !== "Space" || isTyping(event.target)) return;
  event.preventDefault();
  letGo(event);
});

function stopAnswer() {
  sound.stop();
  if (talk.isThinking || talk.replyTurn) wire.send({ type: "reply.cancel", event_id: "stop" });
  talk.commits.add("stop");
  talk.replyTurn = 0;
}
$("stop").addEventListener("click", stopAnswer);

$("say").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  $("text").value = "";
  if (text) sayText(text);
});
for (const chip of document.querySelectorAll(".chips button")) {
  chip.addEventListener("click", () => sayText(chip.textContent));
}

// ------------------------------------------------------------------------------------------------------- showing

const STATES = {
  idle: "Not connected",
  connecting: "Connecting",
  open: "Connected",
  retrying: "Reconnecting",
  closing: "Closing",
};

function mood() {
  if (talk.isHeard) return "Listening to you";
  if (talk.isPlaying) return "Answering";
  if (talk.isThinking) return "Thinking";
  if (talk.mode === "off") return "Press to talk";
  if (talk.isWaiting) return "In line";
  return wire.state === "open" ? "Go ahead" : "One moment";
}

function show() {
  const isOn = talk.mode === "open" || talk.mode === "held";
  const state = banner.kind === "busy" || banner.kind === "waiting" ? "busy" : wire.state;
  $("status").dataset.state = state;
  $("status").lastElementChild.textContent = state === "busy" ? (banner.kind === "busy" ? "Busy" : "In line") : STATES[wire.state];
  $("talk").setAttribute("aria-pressed", String(isOn));
  $("talk-label").textContent = isOn ? "Mute" : "Talk";
  const words = mood();
  if ($("mood").textContent !== words) $("mood").textContent = words;
  document.body.dataset.mood = talk.isHeard ? "hearing" : talk.isPlaying ? "speaking" : talk.isThinking ? "thinking" : isOn ? "open" : "off";
  $("stop").hidden = !talk.isPlaying;
}

setInterval(() => $("meter").setAttribute("aria-valuenow", String(Math.round(Math.min(1, talk.level * 4) * 100))), 500);
show();

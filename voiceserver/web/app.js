// The page: what a person does becomes events of the native wire, and what the server says becomes words, sound and numbers.

import { Banner } from "./banner.js";
import { LEAVE_MS, Patience } from "./patience.js";
import { listenForPresses } from "./press.js";
import { sessionUpdate, settings } from "./settings.js";
import { INPUT_RATE_HZ, MicrophoneError, OUTPUT_RATE_HZ, Sound } from "./sound.js";
import { Strip } from "./strip.js";
import { Tape } from "./tape.js";
import { Thread } from "./thread.js";
import { Wire } from "./wire.js";
import { busyBanner, drainingBanner, idleBanner, insecureBanner, keyBanner, problemBanner, retryBanner } from "./words.js";

const TAIL_MS = 150; // what was said while letting go still counts
const MOST_EVENTS = 1000; // of the log
const STOP = "stop"; // the event id of our own cancels: one that finds nothing to cancel is no news

const $ = (id) => document.getElementById(id);
const sound = new Sound(settings);
const tape = new Tape(INPUT_RATE_HZ, OUTPUT_RATE_HZ);
const log = []; // {atMs, isOut, event}
const wire = new Wire(INPUT_RATE_HZ, OUTPUT_RATE_HZ);
const thread = new Thread($("thread"), $("announce"), retry);
const banner = new Banner($("banner"));
wire.key = sessionStorage.getItem("voiceserver-key") ?? "";

const talk = {
  mode: "off", // off, open (until pressed again), held (until let go)
  level: 0,
  isHeard: false, // somebody speaks, says the server
  isThinking: false,
  isPlaying: false,
  isWaiting: false, // in the waiting room: what is said there should not be answered later
  replyTurn: 0, // whose audio comes now
  session: "",
  unsent: new Set(), // questions typed while there was no connection
  commits: new Set([STOP]), // event ids of our own commits; one that finds nothing said is no news
  why: "", // the conversation ends because of this, in words
};
// What a test may look at; nothing reads it here.
const seen = (globalThis.__voiceserver = { events: [], audioBytes: 0, progress: null, sound, wire, talk, banner, tape });

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
    if (wasHeld || talk.isHeard || settings.turns === "hand") commit();
    show();
  }, TAIL_MS);
}

function commit() {
  const id = `commit-${talk.commits.size + 1}`;
  talk.commits.add(id);
  wire.send({ type: "input.commit", event_id: id });
}

async function sayText(text) {
  talk.unsent.add(thread.addTyped(text));
  $("welcome").hidden = true;
  stopAnswer();
  talk.isThinking = true;
  wire.open();
  show();
  sendUnsent();
  await sound.start();
}

// Ask for the answers that nobody has asked for yet: of several questions, the last one's answers them all.
function sendUnsent() {
  if (wire.state !== "open") return;
  const turns = [...talk.unsent];
  talk.unsent.clear();
  for (const turn of turns) {
    turn.session = talk.session;
    wire.send({ type: "item.append", item: { role: "user", text: turn.you.textContent } });
  }
  if (turns.length) createReply(turns.at(-1));
}

function createReply(turn) {
  const key = thread.expect(turn);
  wire.send({ type: "reply.create", key, event_id: key });
}

// A failed answer once more. The session that failed to give it still knows the question; another one does not.
function retry(turn) {
  if (wire.state !== "open" || turn.session !== talk.session) {
    talk.unsent.add(turn);
    wire.open();
    sendUnsent();
    return;
  }
  stopAnswer();
  createReply(turn);
}

// The session is gone: what it did not answer is asked again.
function askAgain() {
  const lost = thread.openTurns.filter((turn) => !talk.unsent.has(turn));
  const [known, unknown] = [true, false].map((is) => lost.filter(({ you }) => (you.dataset.state === "final") === is));
  for (const turn of unknown) thread.giveUp(turn, "This was lost with the connection. Please say it again.");
  talk.unsent = new Set([...known, ...talk.unsent]);
  sendUnsent();
  for (const turn of known) thread.remark(turn, "Asked again.");
}

sound.addEventListener("frame", ({ detail: { pcm, level } }) => {
  talk.level = Math.max(level, talk.level * 0.7);
  if (talk.mode === "off" || talk.isWaiting) return;
  if (wire.state === "open") tape.add(0, pcm);
  wire.sendAudio(pcm);
});
sound.addEventListener("unplugged", () => {
  finish();
  banner.show(problemBanner("The microphone is gone", "Plug it in again, or type instead."));
});

// ------------------------------------------------------------------------------------------------------- hearing

wire.addEventListener("audio", ({ detail }) => {
  seen.audioBytes += detail.byteLength;
  if (!talk.replyTurn) return;
  tape.add(talk.replyTurn, detail.slice(0)); // the loudspeaker takes the buffer away
  sound.play(talk.replyTurn, detail);
});

sound.addEventListener("progress", ({ detail: { turn, playedMs, isOver, isCut, ...rest } }) => {
  seen.progress = { turn, playedMs, isOver, isCut, ...rest };
  if (isCut) {
    seen.cut = seen.progress;
    tape.cut(turn, playedMs);
  }
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
    if (event.is_resumed) sendUnsent();
    else beginSession(event);
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
    talk.isThinking = thread.isExpecting;
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
    if (event.code === "reply_active" && thread.isAsked(event.event_id)) {
      wire.send({ type: "reply.cancel", event_id: STOP });
      wire.send({ type: "reply.create", key: event.event_id, event_id: event.event_id });
      return;
    }
    if (thread.fail(event.event_id, event.message)) {
      talk.isThinking = false;
      return;
    }
    const title = event.event_id === "settings" ? "A setting was not taken" : "Something went wrong";
    banner.show(problemBanner(title, event.message));
  },
};

function beginSession(event) {
  const isFirst = !talk.session;
  talk.session = event.session_id;
  talk.isHeard = talk.isThinking = talk.isWaiting = false;
  talk.replyTurn = 0;
  sound.stop();
  const why = talk.why || "The server no longer has this call.";
  thread.begin(event.session_id, isFirst ? "" : `${why} The conversation starts anew here: what was said above is not known any more.`);
  talk.why = "";
  const update = sessionUpdate();
  if (update) wire.send(update);
  askAgain();
  talk.isThinking = thread.isExpecting;
}

function note(isOut, event) {
  log.push({ atMs: Date.now(), isOut, event });
  if (log.length > MOST_EVENTS) log.shift();
}
wire.addEventListener("sent", ({ detail }) => note(true, detail));

wire.addEventListener("event", ({ detail: event }) => {
  note(false, event);
  seen.events.push(event);
  if (seen.events.length > 500) seen.events.shift();
  thread.receive(event);
  ON_EVENT[event.type]?.(event);
  if (!thread.isEmpty) $("welcome").hidden = true;
  show();
});

wire.addEventListener("state", ({ detail }) => {
  if (detail.state === "open") banner.hide();
  if (detail.state === "retrying") {
    talk.isHeard = talk.isThinking = talk.isWaiting = false;
    if (detail.reason === "draining") talk.why = "The server was shut down.";
    banner.show({ ...retryBanner(detail), action: ["Try now", () => wire.open()] });
    if (detail.code === 1006 && !detail.wasOpen) askWhy();
  }
  show();
});

// A handshake that is refused looks like no server at all to a page. This path refuses as a handshake does, and can be read.
const headers = () => (wire.key ? { Authorization: `Bearer ${wire.key}` } : {});

async function askWhy() {
  const answer = await fetch(`/v1/session?origin=${encodeURIComponent(location.origin)}`, { headers: headers() }).catch(() => undefined);
  if (answer === undefined || wire.state !== "retrying") return;
  if (answer.ok) {
    if (!wire.hasSession) return;
    talk.why = "The server was restarted, or waited too long for this page.";
    wire.giveUpSession();
    wire.open();
    return;
  }
  const { error } = await answer.json().catch(() => ({}));
  if (wire.state !== "retrying" || answer.status >= 500) return;
  wire.pause();
  const action = answer.status === 401 ? ["Enter a key", askForKey] : ["Try now", () => wire.open()];
  banner.show({ ...keyBanner(error ?? {}), action });
  if (answer.status === 401) askForKey();
}

function askForKey() {
  $("key-problem").hidden = !wire.key;
  if (!$("key-dialog").open) $("key-dialog").showModal();
}

$("key-dialog").addEventListener("close", () => {
  if ($("key-dialog").returnValue !== "ok") return;
  wire.key = $("key").value.trim();
  sessionStorage.setItem("voiceserver-key", wire.key);
  wire.open();
});

// ------------------------------------------------------------------------------------------------------ controls

listenForPresses($("talk"), {
  isOpen: () => talk.mode === "open",
  begin: () => begin("open"),
  end: finish,
  release: () => {
    if (talk.mode !== "open") return;
    talk.mode = "held";
    finish();
  },
});
document.addEventListener("keydown", (event) => event.key === "Escape" && !document.querySelector("dialog[open]") && stopAnswer());

function stopAnswer() {
  sound.stop();
  if (talk.isThinking || talk.replyTurn) wire.send({ type: "reply.cancel", event_id: STOP });
  talk.replyTurn = 0;
}
$("stop").addEventListener("click", stopAnswer);

// End the call and free its place; the next word or question begins a new one.
function hangUp(why = "You hung up.") {
  if (talk.mode !== "off") {
    talk.mode = "off";
    talk.level = 0;
    sound.closeMicrophone();
  }
  stopAnswer();
  for (const turn of thread.openTurns) thread.giveUp(turn);
  talk.unsent.clear();
  talk.isHeard = talk.isThinking = talk.isPlaying = talk.isWaiting = false;
  talk.why = why;
  wire.close();
  banner.hide();
  show();
}
$("hang-up").addEventListener("click", () => hangUp());
function beginAnew() {
  hangUp();
  thread.clear();
  tape.clear();
  talk.session = talk.why = "";
  $("welcome").hidden = false;
  $("announce").textContent = "A new conversation.";
  show();
}
$("anew").addEventListener("click", beginAnew);

const patience = new Patience({
  isIdle: () => wire.state === "open" && talk.mode === "off" && !talk.isPlaying && !talk.isThinking && !talk.isHeard && !talk.isWaiting && !$("text").value,
  ask: () => banner.show({ ...idleBanner(LEAVE_MS), action: ["I am here", () => patience.move()] }),
  stay: () => banner.hide("idle"),
  release: () => hangUp("You were away, so the place was given to others."),
});

let panel;
$("menu").addEventListener("click", async () => {
  const { makePanel } = await import("./panel.js");
  panel ??= makePanel({
    log,
    anew: beginAnew,
    toText: () => thread.toText(),
    toWav: () => tape.toWav(),
    session: async () => (await fetch("/v1/session", { headers: headers() }).catch(() => undefined))?.json(),
    update: applySetting,
  });
  panel.open();
});

// A setting was changed in the drawer.
function applySetting(name) {
  if (name === "volume" || name === "speaker") sound.apply();
  else if (name === "microphone") {
    if (sound.isMicrophoneOpen) sound.openMicrophone().catch((error) => banner.show(problemBanner("No microphone", error.message)));
  } else {
    const update = sessionUpdate();
    if (update) wire.send(update);
  }
}

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
};

function mood() {
  if (talk.isWaiting) return "In line";
  if (talk.isHeard) return "Listening to you";
  if (talk.isPlaying) return "Answering";
  if (talk.isThinking) return "Thinking";
  if (talk.mode === "off") return sound.isInsecure ? "Type to ask" : "Press to talk";
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
  $("hang-up").hidden = wire.state === "idle";
  $("anew").hidden = thread.isEmpty;
}

if (sound.isInsecure) {
  $("talk").disabled = true;
  $("hint").textContent = "The microphone needs https or localhost. Typed questions are answered aloud.";
  $("welcome").querySelector("h1").textContent = "Type something.";
  $("welcome").querySelector("p").textContent = "This address gives the page no microphone. Type, and you hear the answer and see where every millisecond went.";
  banner.showAlways(insecureBanner(location));
}
setInterval(() => $("meter").setAttribute("aria-valuenow", String(Math.round(Math.min(1, talk.level * 4) * 100))), 500);
show();

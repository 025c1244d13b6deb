// The dashboard: asks for the figures once a second and draws them. It computes differences, and knows nothing that /metrics does not.

import { Chart, drawSpark } from "./charts.js";
import { ageWords, busyWords, closeWords, moveWords, problemWords, refusalWords, stageWords } from "./codes.js";
import { Figures } from "./figures.js";

const POLL_MS = 1000;
const STAGES = ["vad", "stt", "reply", "tts"];
const PARTS = { endpointing: "end of turn", stt: "transcript", reply: "answer", tts: "voice", first_audio: "in all, after end of turn" };

const $ = (id) => document.getElementById(id);
const figures = new Figures();
const count = (value) => (value == null ? "–" : Math.round(value).toLocaleString("en"));
const ms = (value) => (value == null ? "–" : value < 10 ? `${value.toFixed(1)} ms` : value < 999.5 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(2)} s`);
const many = (value, noun) => `${count(value)} ${noun}${value === 1 ? "" : "s"}`;
const bareMs = (value) => (value == null ? "–" : value < 9.95 ? value.toFixed(1) : count(value));
const toMs = (value) => (value == null ? null : value * 1000);
globalThis.__dashboard = { figures };

// --------------------------------------------------------------------------------------------------------- tiles

const LEVELS = ["Normal", "Reduced", "Minimal", "Light"];
const LEVEL_WORDS = ["", "no live captions; ", "no captions, larger batches; ", "lighter engines; "];

function placesOf(snapshot) {
  const limit = figures.value("voiceserver_talkers_limit", {}, snapshot);
  return limit ? `of ${many(limit, "place")}` : "no limit";
}
const TILES = [
  { title: "Sessions", value: (s) => figures.value("voiceserver_sessions", {}, s), show: count, beside: (s) => `${count(s.capacity.free)} free` },
  { title: "Talkers", value: (s) => figures.value("voiceserver_talkers", {}, s), show: count, beside: placesOf },
  { title: "In line", value: (s) => figures.value("voiceserver_waiting", {}, s), show: count, beside: () => "waiting room" },
  {
    title: "Service",
    value: (s) => figures.value("voiceserver_degrade_level", {}, s),
    show: (level) => LEVELS[level] ?? String(level),
    beside: (s) => `${LEVEL_WORDS[figures.value("voiceserver_degrade_level", {}, s)] ?? ""}busiest stage ${Math.round(100 * figures.value("voiceserver_busiest_stage_ratio", {}, s))}%`,
  },
  { title: "Refused", value: (_, i) => figures.perMinute("voiceserver_refused_total", {}, i), show: count, beside: () => "in the last minute" },
  { title: "Busy signals", value: (_, i) => figures.perMinute("voiceserver_busy_signals_total", {}, i), show: count, beside: () => "in the last minute" },
  {
    title: "First sound",
    value: (_, i) => toMs(figures.percentile("voiceserver_turn_seconds", 0.5, { part: "first_audio" }, 60000, i)),
    show: ms,
    beside: () => `p95 ${ms(toMs(figures.percentile("voiceserver_turn_seconds", 0.95, { part: "first_audio" }, 60000)))}`,
  },
  {
    title: "Loop lag p99",
    value: (_, i) => toMs(figures.percentile("voiceserver_loop_lag_seconds", 0.99, {}, 10000, i)),
    show: ms,
    beside: (s) => `now ${ms(s.capacity.loop_lag_ms)}`,
  },
];

function makeTile({ title }) {
  const tile = $("tile").content.firstElementChild.cloneNode(true);
  tile.querySelector("h3").textContent = title;
  $("tiles").append(tile);
  return tile;
}
const tiles = TILES.map(makeTile);

function drawTiles() {
  TILES.forEach((spec, index) => {
    const tile = tiles[index];
    const last = figures.all.length - 1;
    const now = spec.value(figures.last, last);
    tile.hidden = now === undefined;
    tile.querySelector("b").textContent = spec.show(now);
    tile.querySelector("span").textContent = spec.beside(figures.last);
    drawSpark(tile.querySelector("svg"), figures.series(spec.value), figures.spanMs);
  });
}

// ------------------------------------------------------------------------------------------------------- latency

const chart = new Chart($("latency-chart"), ["b", "a"], ms, "No turns yet");
const shares = [0.95, 0.5].map((share) => (_, i) => toMs(figures.percentile("voiceserver_turn_seconds", share, { part: "first_audio" }, 30000, i)));

function drawLatency() {
  chart.draw(shares.map((share) => figures.series(share)), figures.spanMs);
  const rows = Object.entries(PARTS).map(([part, label]) => {
    const at = (share) => toMs(figures.percentile("voiceserver_turn_seconds", share, { part }));
    return { part, label, values: [at(0.5), at(0.95), at(0.99)] };
  });
  const longest = Math.max(...rows.map(({ values }) => values[0] ?? 0), 1);
  $("parts").tBodies[0].replaceChildren(...rows.map(({ part, label, values }) => {
    const bar = element("i", "", { part });
    bar.hidden = values[0] == null;
    bar.style.width = `${((values[0] ?? 0) / longest) * 100}%`;
    return row([element("th", label, {}, { scope: "row" }), cell(bar, "bar"), ...values.map((value) => cell(ms(value)))]);
  }));
}

// -------------------------------------------------------------------------------------------------------- stages

const cards = new Map();

function cardOf(stage) {
  if (!cards.has(stage)) {
    const card = $("stage").content.firstElementChild.cloneNode(true);
    card.querySelector("h2").textContent = stage;
    card.querySelector("h2").title = stageWords(stage);
    card.lagMs = (snapshot) => toMs(figures.value("voiceserver_stage_lag_seconds", { stage }, snapshot));
    $("stages").append(card);
    cards.set(stage, card);
  }
  return cards.get(stage);
}

function drawStage(stage, about) {
  const known = figures.last.capacity.stages[stage];
  if (!known) return;
  const card = cardOf(stage);
  card.querySelector("header p").textContent = [stageWords(stage), known.engine, about?.endpoint].filter(Boolean).join(" · ");
  card.querySelector(".figure b").textContent = ms(card.lagMs(figures.last));
  drawSpark(card.querySelector("svg"), figures.series(card.lagMs), figures.spanMs);
  drawParams(card.querySelector(".params"), about);
  const streams = figures.value("voiceserver_stage_streams", { stage });
  const free = figures.value("voiceserver_stage_free", { stage });
  const places = known.free == null ? many(streams, "stream") : `${count(streams)} of ${count(streams + free)} places taken`;
  const restarts = figures.value("voiceserver_worker_restarts_total", { stage });
  card.querySelector(".places").textContent = restarts ? `${places}, ${many(restarts, "restart")}` : places;
  const workers = figures.samples("voiceserver_worker_state", { stage }).map(([labels]) => drawWorker(stage, labels));
  card.querySelector("tbody").replaceChildren(...workers);
}

function drawParams(details, about) {
  const params = Object.entries(about?.params ?? {});
  if (about?.lighter) params.push(["lighter engine", about.lighter]);
  details.hidden = !params.length;
  const list = details.querySelector("dl");
  const text = JSON.stringify(params);
  if (list.dataset.shown === text) return;
  list.dataset.shown = text;
  drawRows(list, params);
}

// Where several processes share the port, each has workers of its own.
function drawWorker(stage, { state, ...labels }) {
  const worker = labels.process === undefined ? labels.worker : `${labels.process}/${labels.worker}`;
  const at = (name) => figures.value(`voiceserver_worker_${name}`, labels);
  const name = element("th", state === "ready" ? worker : `${worker} ${state}`, { state }, { scope: "row", title: `worker ${worker}: ${state}` });
  const cells = [count(at("streams")), count(at("queued")), bareMs(toMs(at("queue_age_seconds"))), batchOf(labels), bareMs(toMs(at("step_seconds")))];
  return row([name, ...cells.map((text) => cell(text))]);
}

// Items per step in the last ten seconds; over its life when it idles.
function batchOf(labels) {
  const gained = (name) => {
    const now = figures.value(`voiceserver_worker_${name}_total`, labels) ?? 0;
    return [now - (figures.value(`voiceserver_worker_${name}_total`, labels, figures.before(10000)) ?? 0), now];
  };
  const [steps, allSteps] = gained("steps");
  const [items, allItems] = gained("items");
  if (steps > 0) return (items / steps).toFixed(1);
  return allSteps > 0 ? (allItems / allSteps).toFixed(1) : "–";
}

// --------------------------------------------------------------------------------------------------------- rows

function drawRows(list, rows) {
  list.replaceChildren(...rows.flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
}

function drawDoor() {
  const refused = figures.samples("voiceserver_refused_total").map(([{ reason }, value]) => [`refused: ${refusalWords(reason)}`, count(value)]);
  const closed = figures.samples("voiceserver_sessions_closed_total").map(([{ wire, code }, value]) => [`${closeWords(code)}, ${wire}`, count(value)]);
  const opened = figures.samples("voiceserver_sessions_opened_total").map(([{ wire }, value]) => [`admitted, ${wire}`, count(value)]);
  drawRows($("door"), [...opened, ...refused, ...closed].concat(opened.length + refused.length ? [] : [["nobody yet", ""]]));
  const busy = figures.samples("voiceserver_busy_signals_total").toSorted(([, one], [, two]) => two - one);
  drawRows($("busy"), busy.length ? busy.slice(0, 8).map(([{ stage, reason }, value]) => [`${stageWords(stage)}: ${busyWords(reason)}`, count(value)]) : [["none", "0"]]);
}

// Open sessions and closed ones together: what is not consumed yet is buffered, and at the end it was discarded.
function drawAudio() {
  const seconds = (fate) =>
    ["live_audio_seconds", "audio_seconds_total"].reduce((sum, name) => sum + (figures.value(`voiceserver_${name}`, { fate }) ?? 0), 0);
  const fates = ["consumed", "buffered", "dropped", "discarded"].map((fate) => [fate, seconds(fate)]);
  $("fates").replaceChildren(...fates.map(([fate, value]) => {
    const piece = element("i", "", { fate });
    piece.style.flexGrow = String(value);
    return piece;
  }));
  drawRows($("audio"), [["received", seconds("received")], ...fates].map(([fate, value]) => [fate, `${value.toFixed(1)} s`]));
}

// ---------------------------------------------------------------------------------------------------- the server

const OLD_PROBLEM_MS = 600000;

function drawProblems({ stages }, known) {
  const lines = Object.entries(known).flatMap(([stage, { ready }]) => {
    const { problem, engine, endpoint } = stages[stage] ?? {};
    const name = `${stage} (${engine})`;
    if (problem && (!ready || problem.age_ms < OLD_PROBLEM_MS)) {
      const where = problem.url || endpoint;
      return [[!ready, `${name}: ${problemWords({ ...problem, url: where })}, ${ageWords(problem.age_ms)} ago.`]];
    }
    return ready ? [] : [[true, `${name}: ${endpoint ? `${endpoint} was not reached yet` : "no worker is ready yet"}.`]];
  });
  $("problems").hidden = !lines.length;
  const text = JSON.stringify(lines.map(([, line]) => line.replace(/, [^,]* ago/, "")));
  if ($("problems").dataset.shown === text) return;
  $("problems").dataset.shown = text;
  $("problems").querySelector("ul").replaceChildren(...lines.map(([isBad, line]) => element("li", line, { bad: isBad })));
}

function drawAbout(about) {
  drawRows($("about"), [
    ["version", about.version],
    ["up for", ageWords(about.uptime_ms)],
    ["machine", about.host],
    ["process", about.processes > 1 ? `${about.pid}, one of ${about.processes}` : String(about.pid)],
    ["Python", about.python],
  ]);
  const moves = about.limit_moves.toReversed().slice(0, 6);
  const rows = moves.map((move) => [`${ageWords(move.age_ms)} ago: ${moveWords(move)}`, `${move.before || "none"} → ${move.after}`]);
  drawRows($("moves"), rows.length ? rows : [["It has not moved.", ""]]);
}

$("span").addEventListener("change", () => (figures.shownMs = Number($("span").value)));

function row(cells) {
  const made = document.createElement("tr");
  made.append(...cells);
  return made;
}

function cell(content, className = "") {
  const made = document.createElement("td");
  made.append(content);
  made.className = className;
  return made;
}

function element(name, text, data = {}, attributes = {}) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  Object.assign(made.dataset, data);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// ------------------------------------------------------------------------------------------------------- asking

let isDraining = false;

// A link with the admin token (voiceserver dashboard): it goes into this tab, and out of the address.
const linked = new URLSearchParams(location.hash.slice(1)).get("key");
if (linked) {
  sessionStorage.setItem("voiceserver-key", linked);
  history.replaceState(null, "", location.pathname + location.search);
}
const headers = () => {
  const key = sessionStorage.getItem("voiceserver-key");
  return key ? { Authorization: `Bearer ${key}` } : {};
};

// What the server knows of the last hour, then the figures once a second.
async function begin() {
  const answer = await fetch("/v1/history", { headers: headers(), signal: AbortSignal.timeout(5000) }).catch(() => undefined);
  if (answer?.ok) figures.addPast(performance.now(), await answer.json());
  poll();
}

async function poll() {
  try {
    const answer = await fetch("/v1/stats", { headers: headers(), signal: AbortSignal.timeout(5000) });
    if (answer.status === 401 || answer.status === 403) return askForKey();
    if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
    draw(await answer.json());
  } catch {
    setStatus("lost", isDraining ? "The server has stopped" : "No answer");
  }
  setTimeout(poll, document.hidden ? 5 * POLL_MS : POLL_MS);
}

function draw(stats) {
  figures.add(performance.now(), stats);
  isDraining = stats.capacity.is_draining;
  drawTiles();
  drawLatency();
  STAGES.forEach((stage) => drawStage(stage, stats.about.stages[stage]));
  drawProblems(stats.about, stats.capacity.stages);
  drawAbout(stats.about);
  drawDoor();
  drawAudio();
  const stages = Object.values(stats.capacity.stages);
  const isReady = stages.every(({ ready }) => ready > 0);
  if (isDraining) setStatus("busy", "Draining");
  else setStatus(isReady ? "open" : "busy", isReady ? "Live" : "Not every stage is ready");
  $("drain").disabled = isDraining;
}

function setStatus(state, words) {
  $("status").dataset.state = state;
  const span = $("status").lastElementChild;
  if (span.textContent !== words) span.textContent = words;
}

function askForKey() {
  setStatus("lost", "A key is needed");
  $("key-dialog").showModal();
}

$("key-dialog").addEventListener("close", () => {
  if ($("key-dialog").returnValue !== "ok") return;
  sessionStorage.setItem("voiceserver-key", $("key").value.trim());
  begin();
});

$("drain").addEventListener("click", () => {
  const open = figures.last ? figures.value("voiceserver_sessions") : 0;
  $("drain-words").textContent = `New callers will be refused from now on. ${open === 1 ? "The one open session" : `The ${count(open)} open sessions`} may finish the turn in progress; then the server stops, and somebody has to start it again.`;
  $("drain-error").hidden = true;
  $("drain-dialog").showModal();
});

$("drain-confirm").addEventListener("click", async () => {
  const asked = { method: "POST", headers: { ...headers(), "X-Voiceserver-Action": "drain" } };
  const answer = await fetch("/v1/drain", asked).catch(() => undefined);
  if (answer?.ok) {
    isDraining = true;
    $("drain-dialog").close();
    return;
  }
  const body = await answer?.json().catch(() => undefined);
  $("drain-error").textContent = body?.error?.message ?? "The server did not answer.";
  $("drain-error").hidden = false;
});

begin();

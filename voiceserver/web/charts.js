// Lines in SVG: a bare one for a tile, one with a scale for a panel. Points are [time in ms, value or null].

const NS = "http://www.w3.org/2000/svg";

// null leaves a gap.
function path(points, fromMs, toMs, top, width, height) {
  let isDown = false;
  let d = "";
  for (const [atMs, value] of points) {
    if (value == null || !Number.isFinite(value)) {
      isDown = false;
      continue;
    }
    const x = ((atMs - fromMs) / (toMs - fromMs)) * width;
    const y = height - Math.min(value / top, 1) * height;
    d += `${isDown ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
    isDown = true;
  }
  return d;
}

// A round number at or above: 1, 2 or 5 times a power of ten.
export function roundUp(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value * 0.999);
}

export function drawSpark(svg, points, spanMs) {
  const toMs = points.at(-1)?.[0] ?? 0;
  const top = Math.max(...points.map(([, value]) => value ?? 0), 1e-9) * 1.15;
  svg.setAttribute("viewBox", "0 0 200 40");
  if (!svg.firstChild) svg.append(document.createElementNS(NS, "path"), document.createElementNS(NS, "path"));
  const [area, line] = svg.children;
  const d = path(points, toMs - spanMs, toMs, top, 200, 38);
  const first = /^M([\d.-]+)/.exec(d)?.[1];
  area.setAttribute("class", "area");
  area.setAttribute("d", d && !d.slice(1).includes("M") ? `${d}L200 40L${first} 40Z` : "");
  line.setAttribute("d", d);
}

export class Chart {
  #svg = document.createElementNS(NS, "svg");
  #scale = document.createElement("div");
  #lines = [];

  constructor(root, names, format, emptyWords) {
    this.root = root;
    this.format = format;
    this.emptyWords = emptyWords;
    this.#svg.setAttribute("viewBox", "0 0 600 200");
    this.#svg.setAttribute("preserveAspectRatio", "none");
    this.#svg.setAttribute("aria-hidden", "true");
    for (const y of [0, 100, 200]) {
      const rule = this.#svg.appendChild(document.createElementNS(NS, "path"));
      rule.setAttribute("class", "rule");
      rule.setAttribute("d", `M0 ${y}H600`);
    }
    for (const name of names) {
      const line = this.#svg.appendChild(document.createElementNS(NS, "path"));
      line.dataset.series = name;
      this.#lines.push(line);
    }
    this.#scale.className = "scale";
    this.#scale.setAttribute("aria-hidden", "true");
    this.#scale.append(...["", "", "", "", "now"].map((text) => Object.assign(document.createElement("span"), { textContent: text })));
    root.append(this.#svg, this.#scale);
  }

  draw(all, spanMs) {
    const toMs = all[0].at(-1)?.[0] ?? 0;
    const top = roundUp(Math.max(0, ...all.flatMap((points) => points.map(([, value]) => value ?? 0))));
    all.forEach((points, index) => this.#lines[index].setAttribute("d", path(points, toMs - spanMs, toMs, top, 600, 200)));
    const isEmpty = all.every((points) => points.every(([, value]) => value == null));
    if (isEmpty) this.root.dataset.empty = this.emptyWords;
    else delete this.root.dataset.empty;
    const labels = this.#scale.children;
    labels[0].textContent = this.format(top);
    labels[1].textContent = this.format(top / 2);
    labels[2].textContent = "0";
    labels[3].textContent = spanMs < 90000 ? `${Math.round(spanMs / 1000)} s ago` : `${Math.round(spanMs / 60000)} min ago`;
  }
}

// SPDX-License-Identifier: GPL-2.0-or-later
// Draws the time lines of report.html, and moves them by mouse and keyboard. Times are ns since a picture's first.
"use strict";

const RULER = 26;
const TALL = 1500; // px, up to which a picture does not scroll by itself
const PRINTED = 8000;
const FONT = "11px system-ui, 'Segoe UI', Roboto, Cantarell, sans-serif";
const BOLD = "600 11.5px system-ui, 'Segoe UI', Roboto, Cantarell, sans-serif";
const HEIGHTS = { states: 20, saves: 13, loads: 15, queue: 34, threads: 12, frames: 17, marks: 18, parts: 15 };
const GAP = 3; // between lanes
const HEAD = 24; // of a group
const GROUPS = { migration: "Migration", downtime: "Downtime", source: "Source", wire: "Wire", target: "Target" };
const STATES = {
  RUNNING: "none", RUNNING_P2P: "rising", STOP: "empty", STOP_COPY: "dense", RESUMING: "falling",
  PRE_COPY: "dots", PRE_COPY_P2P: "cross", ERROR: "bars",
};
const PATTERNS = ["none", "rising", "dots", "falling", "bars", "cross", "dense", "level"]; // of devices, in turn

// --- words and numbers -----------------------------------------------------------------------------

function time(ns, digits = 3) {
  const [unit, name] = Math.abs(ns) >= 1e9 ? [1e9, "s"] : Math.abs(ns) >= 1e6 ? [1e6, "ms"] : [1e3, "µs"];
  return `${(ns / unit).toLocaleString("en", { maximumFractionDigits: digits })} ${name}`;
}

function bytes(size) {
  for (const [unit, name] of [[2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]]) {
    if (size >= unit) return `${(size / unit).toLocaleString("en", { maximumFractionDigits: 1 })} ${name}`;
  }
  return `${size} bytes`;
}

function many(count, what) {
  return `${count.toLocaleString("en")} ${what}${count === 1 ? "" : "s"}`;
}

// A value of a queue's curve.
function waiting(row, value) {
  return row.unit === "bytes" ? bytes(value) : many(value, row.unit.slice(0, -1));
}

// --- data as it came -------------------------------------------------------------------------------

function summed(steps) {
  const out = new Float64Array(steps.length);
  let at = 0;
  steps.forEach((step, i) => { at += step; out[i] = at; });
  return out;
}

function column(values, length) {
  return typeof values === "number" ? new Float64Array(length).fill(values) : Float64Array.from(values);
}

function decode(row) {
  row.start = summed(row.start);
  const n = (row.n = row.start.length);
  if (row.type === "bars") {
    for (const name of ["took", "size", "word", "index", "count"]) row[name] = column(row[name], n);
    if (typeof row.offset === "number") {
      row.offset = null;
    } else {
      let at = 0;
      row.offset = Float64Array.from(row.offset, (gap, i) => {
        const offset = at + gap;
        at = offset + row.size[i];
        return offset;
      });
    }
    row.longest = row.took.reduce((most, took) => Math.max(most, took), 0);
  } else if (row.type === "curve") {
    row.top = column(row.top, n);
    row.last = column(row.last, n);
    row.highest = row.top.reduce((most, top) => Math.max(most, top), 0);
  }
  return row;
}

// The number of the first item that starts at `at` or later.
function from(row, at) {
  let low = 0, high = row.n;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (row.start[middle] < at) low = middle + 1; else high = middle;
  }
  return low;
}

// --- colours and patterns --------------------------------------------------------------------------

const paint = {};

function readColours() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["paper", "raised", "ink", "dim", "line", "accent", "bad", "ram", "control", "grid", "band"]) {
    paint[name] = style.getPropertyValue(`--${name}`).trim();
  }
  paint.devices = Array.from({ length: 8 }, (_, i) => style.getPropertyValue(`--d${i}`).trim());
  paint.patterns = new Map();
}

function deviceColour(device) {
  return device < 0 ? paint.control : paint.devices[device % 8];
}

// A fill that can be told without colour: lines of `colour` upon what is there already.
function pattern(context, kind, colour) {
  const key = `${kind} ${colour}`;
  if (!paint.patterns.has(key)) {
    const size = kind === "dense" ? 4 : 8, tile = document.createElement("canvas");
    tile.width = tile.height = size;
    const pen = tile.getContext("2d");
    pen.strokeStyle = pen.fillStyle = colour;
    pen.lineWidth = 1;
    pen.beginPath();
    if (kind === "rising" || kind === "cross" || kind === "dense") {
      for (const x of [-size, 0, size]) { pen.moveTo(x, size); pen.lineTo(x + size, 0); }
    }
    if (kind === "falling" || kind === "cross") {
      for (const x of [-size, 0, size]) { pen.moveTo(x, 0); pen.lineTo(x + size, size); }
    }
    if (kind === "bars") { pen.moveTo(0.5, 0); pen.lineTo(0.5, size); }
    if (kind === "level") { pen.moveTo(0, 0.5); pen.lineTo(size, 0.5); }
    pen.stroke();
    if (kind === "dots") pen.fillRect(2, 2, 2, 2);
    paint.patterns.set(key, context.createPattern(tile, "repeat"));
  }
  return paint.patterns.get(key);
}

function stateBox(context, word, x, y, width, height) {
  const kind = STATES[word] ?? "level";
  context.fillStyle = kind === "empty" ? paint.paper : paint.band;
  context.fillRect(x, y, width, height);
  if (kind !== "none" && kind !== "empty") {
    context.globalAlpha = 0.35;
    context.fillStyle = pattern(context, kind, word === "ERROR" ? paint.bad : paint.dim);
    context.fillRect(x, y, width, height);
    context.globalAlpha = 1;
  }
  context.strokeStyle = paint.dim;
  context.lineWidth = 1;
  context.strokeRect(x + 0.5, y + 0.5, Math.max(0, width - 1), height - 1);
}

// One bar; what it is shows in its shape as well as in its colour.
function bar(context, style, device, x, y, width, height) {
  if (style === "bad") {
    context.fillStyle = paint.bad;
    context.fillRect(x, y - 1, Math.max(2, width), height + 2);
  } else if (style === "sync") {
    context.fillStyle = paint.control;
    context.fillRect(x, y, 1, height);
    context.fillRect(x - 1, y, 3, 2);
  } else if (style === "thread") {
    context.fillStyle = paint.line;
    context.fillRect(x, y + 2, Math.max(1, width), height - 4);
  } else if (style === "control") {
    context.fillStyle = paint.control;
    context.fillRect(x, y + height * 0.55, Math.max(1, width), height * 0.45);
  } else if (style === "ram") {
    context.fillStyle = paint.ram;
    context.fillRect(x, y + height * 0.3, Math.max(1, width), height * 0.7);
  } else if (style === "config") {
    const colour = deviceColour(device);
    context.fillStyle = paint.paper;
    context.fillRect(x, y, Math.max(3, width), height);
    context.strokeStyle = colour;
    context.lineWidth = 1.5;
    context.strokeRect(x + 0.75, y + 0.75, Math.max(1.5, width - 1.5), height - 1.5);
  } else {
    context.fillStyle = deviceColour(device);
    context.fillRect(x, y, Math.max(1, width), height);
    const kind = PATTERNS[(device + PATTERNS.length) % PATTERNS.length];
    if (width > 6 && kind !== "none") {
      context.globalAlpha = 0.55;
      context.fillStyle = pattern(context, kind, paint.paper);
      context.fillRect(x, y, width, height);
      context.globalAlpha = 1;
    }
  }
}

function witnessFlag(context, x, y, number, height, chosen) {
  context.fillStyle = paint.bad;
  context.strokeStyle = paint.bad;
  context.lineWidth = chosen ? 2 : 1;
  context.setLineDash([4, 3]);
  context.beginPath();
  context.moveTo(x, RULER);
  context.lineTo(x, height);
  context.stroke();
  context.setLineDash([]);
  context.beginPath();
  context.moveTo(x, y + 5);
  context.lineTo(x - 6, y - 6);
  context.lineTo(x + 6, y - 6);
  context.closePath();
  context.fill();
  context.strokeStyle = paint.paper;
  context.lineWidth = 1;
  context.stroke();
}

// --- one picture -----------------------------------------------------------------------------------

class Picture {
  constructor(figure, data) {
    this.data = data;
    this.figure = figure;
    this.box = figure.querySelector(".view");
    this.canvas = this.box.querySelector("canvas");
    this.spacer = this.box.querySelector(".height");
    this.readout = figure.querySelector(".readout");
    this.context = this.canvas.getContext("2d");
    this.rows = this.lanes(data);
    this.lane = -1;
    this.item = -1;
    this.witness = -1;
    this.wanted = false;
    this.show(...data.focus);
    this.listen();
    this.legend();
    this.say("Point at something, or give the picture the focus and use the keys below.");
  }

  // Rows of the data with their places; those of the downtime's parts come in behind the migration's.
  lanes(data) {
    const rows = data.rows.map((row, number) => ({ ...decode(row), number }));
    const last = data.parts.map((part) => ({
      group: "downtime", name: part[0], what: "parts", about: part[3], device: -1, type: "part", n: 1,
      start: Float64Array.of(part[1] ?? 0), took: Float64Array.of(part[2] - part[1]), number: -1, unknown: part[1] === null,
    }));
    const own = rows.filter((row) => row.group === "migration");
    const all = [...own, ...last, ...rows.filter((row) => row.group !== "migration")];
    let y = RULER, group = "", name = "";
    for (const row of all) {
      if (row.group !== group) { row.head = y; y += HEAD; name = ""; }
      row.first = row.name !== name;
      if (row.first && row.type === "bands" && row.head === undefined) y += 4;
      group = row.group;
      name = row.name;
      row.y = y;
      row.height = HEIGHTS[row.what] ?? 16;
      y += row.height + GAP;
    }
    this.full = y + 6;
    return all;
  }

  // --- the view ---

  show(start, end) {
    const span = this.data.span;
    const width = Math.min(Math.max(end - start, 100), span * 1.04 + 1000);
    const low = Math.min(Math.max(start + (end - start - width) / 2, -span * 0.02), span * 1.02 - width);
    this.from = width > span ? (span - width) / 2 : low;
    this.to = this.from + width;
    this.redraw();
  }

  zoom(factor, at = (this.from + this.to) / 2) {
    this.show(at - (at - this.from) * factor, at + (this.to - at) * factor);
  }

  pan(share) {
    const step = (this.to - this.from) * share;
    this.show(this.from + step, this.to + step);
  }

  // Bring a time into view without changing the scale.
  reveal(at) {
    if (at >= this.from && at <= this.to) return;
    const half = (this.to - this.from) / 2;
    this.show(at - half, at + half);
  }

  x(ns) {
    return this.left + ((ns - this.from) / (this.to - this.from)) * (this.width - this.left);
  }

  ns(x) {
    return this.from + ((x - this.left) / (this.width - this.left)) * (this.to - this.from);
  }

  redraw() {
    if (this.wanted) return;
    this.wanted = true;
    requestAnimationFrame(() => { this.wanted = false; this.draw(); });
  }

  // --- drawing ---

  draw(whole = false) {
    const ratio = window.devicePixelRatio || 1, context = this.context;
    this.width = this.box.clientWidth;
    this.left = Math.min(190, Math.max(120, this.width * 0.2));
    // A picture of usual size stands on the page as it is; in a larger one, what is in sight is drawn.
    const limit = this.full <= TALL ? this.full : Math.floor(window.innerHeight * 0.86);
    this.height = whole ? Math.min(this.full, PRINTED) : limit;
    this.box.style.maxHeight = `${this.height + 2}px`;
    this.canvas.style.height = `${this.height}px`;
    this.spacer.style.height = `${whole ? 0 : this.full - this.height}px`;
    const wide = Math.round(this.width * ratio), high = Math.round(this.height * ratio);
    if (this.canvas.width !== wide || this.canvas.height !== high) {
      this.canvas.width = wide;
      this.canvas.height = high;
    }
    this.top = whole ? 0 : this.box.scrollTop;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.fillStyle = paint.paper;
    context.fillRect(0, 0, this.width, this.height);
    context.font = FONT;
    context.textBaseline = "middle";
    this.drawGrid();
    for (const row of this.rows) this.drawRow(row);
    this.drawRuler();
    this.drawWitnesses();
    this.figure.dataset.from = Math.round(this.from);
    this.figure.dataset.to = Math.round(this.to);
    this.figure.dataset.lane = this.lane;
    this.figure.dataset.item = this.item;
    this.figure.dataset.drawn = "yes";
  }

  ticks() {
    const about = (this.to - this.from) / Math.max(3, (this.width - this.left) / 110);
    const power = 10 ** Math.floor(Math.log10(about));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= about);
    const out = [];
    for (let at = Math.ceil(this.from / step) * step; at <= this.to; at += step) out.push(at);
    return [step, out];
  }

  drawGrid() {
    const context = this.context;
    context.strokeStyle = paint.grid;
    context.lineWidth = 1;
    context.beginPath();
    for (const at of this.ticks()[1]) {
      const x = Math.round(this.x(at)) + 0.5;
      context.moveTo(x, RULER);
      context.lineTo(x, this.height);
    }
    context.stroke();
  }

  drawRuler() {
    const context = this.context;
    context.fillStyle = paint.paper;
    context.fillRect(0, 0, this.width, RULER);
    context.fillStyle = paint.dim;
    context.textAlign = "center";
    const [step, ticks] = this.ticks();
    const [unit, name] = step >= 1e9 ? [1e9, "s"] : step >= 1e6 ? [1e6, "ms"] : step >= 1e3 ? [1e3, "µs"] : [1, "ns"];
    for (const at of ticks) {
      const x = this.x(at);
      const words = `${((Math.round(at / step) || 0) * step / unit).toLocaleString("en")} ${name}`;
      const half = context.measureText(words).width / 2;
      if (x - half > this.left && x + half < this.width) context.fillText(words, x, 11);
    }
    // Where in the whole the view is.
    const span = this.data.span, room = this.width - this.left;
    const low = Math.max(0, this.from / span), high = Math.min(1, this.to / span);
    context.fillStyle = paint.line;
    context.fillRect(this.left, RULER - 4, room, 2);
    context.fillStyle = paint.accent;
    context.fillRect(this.left + low * room, RULER - 5, Math.max(3, (high - low) * room), 4);
  }

  drawRow(row) {
    const context = this.context, y = row.y - this.top;
    if (row.head !== undefined) {
      const head = row.head - this.top;
      context.fillStyle = paint.ink;
      context.font = BOLD;
      context.textAlign = "left";
      if (head > RULER - HEAD && head < this.height) {
        context.fillText(GROUPS[row.group], 8, head + HEAD / 2 + 2);
        context.fillStyle = paint.line;
        context.fillRect(0, head, this.width, 1);
      }
      context.font = FONT;
    }
    if (y + row.height < RULER || y > this.height) return;
    if (this.rows[this.lane] === row) {
      context.fillStyle = paint.raised;
      context.fillRect(0, y - 1, this.width, row.height + 2);
      context.fillStyle = paint.accent;
      context.fillRect(0, y - 1, 3, row.height + 2);
    }
    context.save();
    context.beginPath();
    context.rect(this.left, y - 3, this.width - this.left, row.height + 6);
    context.clip();
    if (row.type === "bars") this.drawBars(row, y);
    else if (row.type === "bands") this.drawBands(row, y);
    else if (row.type === "curve") this.drawCurve(row, y);
    else if (row.type === "part") this.drawPart(row, y);
    else this.drawMarks(row, y);
    context.restore();
    this.drawLabel(row, y);
  }

  drawLabel(row, y) {
    const context = this.context, middle = y + row.height / 2;
    const single = row.group === "wire" || row.group === "downtime" || row.group === "migration" || row.what === "threads";
    const what = single ? "" : row.what;
    const room = this.left - 18 - (what ? context.measureText(what).width + 8 : 0);
    if (single || row.first) {
      context.textAlign = "left";
      context.fillStyle = paint.ink;
      context.fillText(this.fitted(row.name, room, true), 10, row.type === "curve" ? y + 9 : middle);
    }
    context.textAlign = "right";
    context.fillStyle = paint.dim;
    context.fillText(what, this.left - 8, row.type === "curve" ? y + 9 : middle);
    if (row.type === "curve") {
      const most = `most ${waiting(row, row.highest)}${row.cap === null ? "" : ` of ${waiting(row, row.cap)}`}`;
      context.fillText(this.fitted(most, this.left - 12), this.left - 8, y + 24);
    }
  }

  // Text that fits into `room`; what is cut off is its start, for names differ at their end.
  fitted(text, room, fromStart = false) {
    const context = this.context;
    if (context.measureText(text).width <= room) return text;
    let length = text.length;
    while (length > 1 && context.measureText(`${text.slice(0, length)}…`).width > room) length -= 1;
    return fromStart ? `…${text.slice(text.length - length)}` : `${text.slice(0, length)}…`;
  }

  drawBars(row, y) {
    const context = this.context, words = this.data.words;
    let drawn = -Infinity, style = "";
    for (let i = from(row, this.from - row.longest); i < row.n && row.start[i] <= this.to; i += 1) {
      const x = this.x(row.start[i]), end = this.x(row.start[i] + row.took[i]);
      if (end < this.left) continue;
      const word = words[row.word[i]];
      // What would lie in the same pixel is drawn once.
      if (end - x < 1 && Math.floor(x) <= drawn && word[0] === style) continue;
      const left = Math.max(x, this.left - 4), right = Math.min(end, this.width + 4);
      const width = right - left - (end - x > 4 ? 1 : 0);
      bar(context, word[0], word[2], left, y, width, row.height);
      drawn = Math.floor(end);
      style = word[0];
      if (row.index[i] >= 0 && row.count[i] === 1 && (style === "buffer" || style === "config")) {
        this.inside(`#${row.index[i]}`, left, y, width, row.height);
      }
    }
    if (this.rows[this.lane] === row && this.item >= 0) this.ring(row, y);
  }

  // A label within a bar that has room for it, on a ground of its own so that it can be read upon any pattern.
  inside(words, x, y, width, height) {
    if (width < 30) return;
    const context = this.context, wide = context.measureText(words).width;
    if (width < wide + 14) return;
    const at = Math.min(Math.max(x, this.left) + 5, x + width - wide - 5);
    context.fillStyle = paint.paper;
    context.fillRect(at - 2, y + 2, wide + 4, height - 4);
    context.fillStyle = paint.ink;
    context.textAlign = "left";
    context.fillText(words, at, y + height / 2 + 0.5);
  }

  ring(row, y) {
    const context = this.context, i = this.item;
    const x = this.x(row.start[i]), width = row.took ? this.x(row.start[i] + row.took[i]) - x : 0;
    context.strokeStyle = paint.accent;
    context.lineWidth = 2;
    context.strokeRect(x - 3, y - 1, Math.max(2, width) + 6, row.height + 2);
  }

  drawPart(row, y) {
    const context = this.context;
    if (row.unknown) {
      context.fillStyle = paint.dim;
      context.textAlign = "left";
      context.fillText(this.fitted(`unknown: ${row.about}`, this.width - this.left - 16), this.left + 8, y + row.height / 2);
      return;
    }
    const x = Math.max(this.x(row.start[0]), this.left - 4);
    const end = Math.min(this.x(row.start[0] + row.took[0]), this.width + 4);
    if (end < this.left || x > this.width) return;
    const whole = row.name === "downtime";
    context.fillStyle = whole ? paint.ink : paint.dim;
    context.fillRect(x, y + 2, Math.max(2, end - x), row.height - 4);
    const words = time(row.took[0], 1), wide = context.measureText(words).width;
    if (end - x > wide + 10) {
      context.fillStyle = paint.paper;
      context.textAlign = "center";
      context.fillText(words, (Math.max(x, this.left) + Math.min(end, this.width)) / 2, y + row.height / 2 + 0.5);
    } else {
      const right = end + wide + 8 < this.width;
      context.fillStyle = paint.ink;
      context.textAlign = right ? "left" : "right";
      context.fillText(words, right ? end + 5 : x - 5, y + row.height / 2 + 0.5);
    }
  }

  drawBands(row, y) {
    const context = this.context;
    for (let i = Math.max(0, from(row, this.from) - 1); i < row.n && row.start[i] <= this.to; i += 1) {
      const x = Math.max(this.x(row.start[i]), this.left - 4);
      const end = Math.min(this.x(i + 1 < row.n ? row.start[i + 1] : this.data.span), this.width + 4);
      if (end <= this.left) continue;
      stateBox(context, row.words[i], x, y, Math.max(1, end - x), row.height);
      const room = Math.min(end, this.width) - Math.max(x, this.left);
      if (room > 30) {
        const text = context.measureText(row.words[i]).width + 12 < room ? row.words[i] : this.fitted(row.words[i], room - 12);
        const wide = context.measureText(text).width, at = Math.max(x, this.left) + 6;
        context.fillStyle = STATES[row.words[i]] === "empty" ? paint.paper : paint.band;
        context.fillRect(at - 3, y + 2, wide + 6, row.height - 4);
        context.fillStyle = paint.ink;
        context.textAlign = "left";
        context.fillText(text, at, y + row.height / 2 + 0.5);
      }
    }
    if (this.rows[this.lane] === row && this.item >= 0) this.ring(row, y);
  }

  drawCurve(row, y) {
    const context = this.context, height = row.height - 2;
    const highest = Math.max(row.highest, row.cap ?? 0, 1);
    const level = (value) => y + row.height - 1 - (value / highest) * (height - 3);
    const path = new Path2D(), first = Math.max(0, from(row, this.from) - 1);
    const start = Math.max(this.x(row.start[first]), this.left - 4);
    let before = first > 0 ? row.last[first - 1] : 0;
    path.moveTo(start, level(before));
    let column = -Infinity, low = 0, high = 0;
    const flush = () => { if (column > -Infinity) { path.lineTo(column, level(high)); path.lineTo(column, level(low)); } };
    for (let i = first; i < row.n && row.start[i] <= this.to; i += 1) {
      const x = Math.max(Math.floor(this.x(row.start[i])) + 0.5, this.left - 4);
      if (x !== column) {
        flush();
        if (column > -Infinity) path.lineTo(column, level(before));
        path.lineTo(x, level(before));
        column = x;
        low = high = before;
      }
      low = Math.min(low, row.last[i], before);
      high = Math.max(high, row.top[i]);
      before = row.last[i];
    }
    flush();
    const end = Math.min(this.x(this.data.span), this.width + 4);
    path.lineTo(Math.max(column, this.left - 4), level(before));
    path.lineTo(end, level(before));
    const area = new Path2D(path);
    area.lineTo(end, level(0));
    area.lineTo(start, level(0));
    const colour = deviceColour(row.device);
    context.globalAlpha = 0.22;
    context.fillStyle = colour;
    context.fill(area);
    context.globalAlpha = 1;
    context.strokeStyle = colour;
    context.lineWidth = 1.25;
    context.stroke(path);
    if (row.cap !== null) {
      const at = level(row.cap);
      context.strokeStyle = paint.bad;
      context.setLineDash([6, 3]);
      context.beginPath();
      context.moveTo(this.left, at);
      context.lineTo(this.width, at);
      context.stroke();
      context.setLineDash([]);
    }
    if (this.rows[this.lane] === row && this.item >= 0) this.ring(row, y);
  }

  drawMarks(row, y) {
    const context = this.context;
    let free = -Infinity;
    context.textAlign = "left";
    for (let i = from(row, this.from); i < row.n && row.start[i] <= this.to; i += 1) {
      const x = this.x(row.start[i]), next = i + 1 < row.n ? this.x(row.start[i + 1]) : Infinity;
      context.fillStyle = paint.ink;
      context.fillRect(Math.round(x), y, 1, row.height);
      context.beginPath();
      context.arc(x + 0.5, y + row.height / 2, 2.5, 0, 7);
      context.fill();
      const wide = context.measureText(row.words[i]).width;
      const room = Math.min(next, this.width) - x - 10;
      if (x > free && room > 24) {
        const text = wide <= room ? row.words[i] : this.fitted(row.words[i], room);
        context.fillText(text, x + 6, y + row.height / 2 + 0.5);
        free = x + 6 + Math.min(wide, room);
      }
    }
    if (this.rows[this.lane] === row && this.item >= 0) this.ring(row, y);
  }

  drawWitnesses() {
    const context = this.context;
    let free = -Infinity;
    this.data.witnesses.forEach(([number, lane, at], i) => {
      const row = this.rows.find((one) => one.number === lane);
      const x = this.x(at), chosen = i === this.witness;
      if (!row || x < this.left || x > this.width) return;
      witnessFlag(context, x, row.y - this.top + 2, number, this.height, chosen);
      // Numbers stand along the top, as far as there is room; the chosen one always.
      const wide = context.measureText(number).width + 8;
      const left = Math.min(x - wide / 2, this.width - wide - 1);
      if (left > free || chosen) {
        context.fillStyle = paint.bad;
        context.fillRect(left, RULER - 1, wide, 15);
        context.fillStyle = paint.paper;
        context.textAlign = "center";
        context.fillText(number, left + wide / 2, RULER + 7);
        free = left + wide;
      }
    });
  }

  // --- words ---

  say(words) {
    this.readout.textContent = words;
  }

  about(row, i) {
    const at = `at ${time(row.start[i])}`;
    const lane = row.what === "frames" ? row.name : `${row.group} ${row.name}, ${row.what}`;
    if (row.type === "marks") return `${row.name} ${at}: ${row.words[i]}`;
    if (row.unknown) return `${row.name}: unknown: ${row.about}`;
    if (row.type === "part") return `${row.name}: ${time(row.took[0])}, from ${time(row.start[0])}: ${row.about}`;
    if (row.type === "bands") {
      const end = i + 1 < row.n ? row.start[i + 1] : this.data.span;
      return `${lane}: ${row.words[i]} ${at}, for ${time(end - row.start[i])}`;
    }
    if (row.type === "curve") {
      const cap = row.cap === null ? "" : `, ${waiting(row, row.cap)} allowed`;
      return `${lane}: ${waiting(row, row.last[i])} ${at}${cap}`;
    }
    const [, word, device] = this.data.words[row.word[i]];
    const what = row.count[i] > 1 ? `${row.count[i].toLocaleString("en")} items, the largest: ${word}` : word;
    return [
      `${lane}: ${what}`,
      device >= 0 && this.data.devices[device] !== row.name ? `of ${this.data.devices[device]}` : "",
      row.index[i] >= 0 && row.count[i] === 1 ? `#${row.index[i]}` : "",
      row.size[i] ? bytes(row.size[i]) : "",
      at,
      row.took[i] ? `for ${time(row.took[i])}` : "",
      row.offset ? `byte ${row.offset[i].toLocaleString("en")} of its flow` : "",
    ].filter(Boolean).join(", ").replace(", of ", " of ").replace(", #", " #");
  }

  sayLane() {
    const row = this.rows[this.lane];
    if (!row) return;
    const lane = row.what === "frames" || row.type === "part" ? row.name : `${row.group} ${row.name}, ${row.what}`;
    const size = row.type === "bars" ? row.size.reduce((sum, one) => sum + one, 0) : 0;
    const count = row.type === "bars" ? row.count.reduce((sum, one) => sum + one, 0) : row.n;
    this.say(`Lane ${lane}: ${row.about}. ${many(count, "item")}${size ? `, ${bytes(size)}` : ""}.`);
  }

  // --- moving ---

  chooseLane(number) {
    this.lane = Math.min(Math.max(number, 0), this.rows.length - 1);
    this.item = -1;
    const row = this.rows[this.lane];
    if (row.y - this.box.scrollTop < RULER + HEAD) this.box.scrollTop = row.y - RULER - HEAD;
    const below = row.y + row.height + 8 - this.box.scrollTop - this.height;
    if (below > 0) this.box.scrollTop += below;
    this.sayLane();
    this.redraw();
  }

  chooseItem(step) {
    if (this.lane < 0) this.chooseLane(0);
    const row = this.rows[this.lane];
    if (this.item < 0) {
      const here = from(row, this.from);
      this.item = step > 0 ? Math.min(here, row.n - 1) : Math.max(here - 1, 0);
    } else {
      this.item = Math.min(Math.max(this.item + step, 0), row.n - 1);
    }
    this.reveal(row.start[this.item]);
    this.say(this.about(row, this.item));
    this.redraw();
  }

  chooseWitness(number) {
    const all = this.data.witnesses;
    if (!all.length) { this.say("There are no witnesses: nothing was found violated."); return; }
    this.witness = (number + all.length) % all.length;
    const [name, lane, at, words] = all[this.witness];
    this.chooseLane(this.rows.findIndex((row) => row.number === lane));
    this.reveal(at);
    this.say(`Witness ${name} at ${time(at)}, on ${this.rows[this.lane].name}: ${words}`);
    this.redraw();
  }

  do(what) {
    const data = this.data, margin = (edges) => (edges[1] - edges[0]) * 0.03;
    const actions = {
      in: () => this.zoom(0.6),
      out: () => this.zoom(1 / 0.6),
      migration: () => this.show(...data.focus),
      all: () => this.show(-data.span * 0.02, data.span * 1.02),
      downtime: () => {
        if (!data.downtime) { this.say("The downtime is unknown."); return; }
        this.show(data.downtime[0] - margin(data.downtime), data.downtime[1] + margin(data.downtime));
      },
      previous: () => this.chooseWitness(this.witness < 0 ? -1 : this.witness - 1),
      next: () => this.chooseWitness(this.witness + 1),
    };
    actions[what]();
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const actions = {
      ArrowLeft: () => this.pan(event.shiftKey ? -0.5 : -0.1),
      ArrowRight: () => this.pan(event.shiftKey ? 0.5 : 0.1),
      ArrowUp: () => this.chooseLane(this.lane - 1),
      ArrowDown: () => this.chooseLane(this.lane + 1),
      Home: () => this.show(0, this.to - this.from),
      End: () => this.show(this.data.span - this.to + this.from, this.data.span),
      "+": () => this.do("in"), "=": () => this.do("in"),
      "-": () => this.do("out"), "−": () => this.do("out"),
      0: () => this.do("all"), m: () => this.do("migration"), d: () => this.do("downtime"),
      n: () => this.do("next"), p: () => this.do("previous"),
      ",": () => this.chooseItem(-1), ".": () => this.chooseItem(1),
    };
    const action = actions[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }

  // The lane and item under a point, the nearest within a few pixels.
  at(x, y) {
    const lane = this.rows.findIndex((row) => y + this.top >= row.y - 1 && y + this.top <= row.y + row.height + 1);
    if (lane < 0 || x < this.left) return [lane, -1];
    const row = this.rows[lane], here = this.ns(x), near = (this.to - this.from) / (this.width - this.left) * 4;
    let best = -1, distance = Infinity;
    const steps = row.type === "bands" || row.type === "curve";
    if (steps) return [lane, from(row, here + 1) - 1];
    for (let i = Math.max(0, from(row, here - (row.longest ?? row.took?.[0] ?? 0) - near)); i < row.n && row.start[i] <= here + near; i += 1) {
      const end = row.start[i] + (row.took?.[i] ?? 0);
      const away = here < row.start[i] ? row.start[i] - here : here > end ? here - end : 0;
      if (away <= Math.min(near, distance)) { best = i; distance = away; }
    }
    return [lane, best];
  }

  listen() {
    const box = this.box;
    let held = null;
    box.addEventListener("keydown", (event) => this.key(event));
    box.addEventListener("scroll", () => this.redraw());
    box.addEventListener("wheel", (event) => {
      if (event.ctrlKey || event.metaKey) {
        event.preventDefault();
        this.zoom(Math.exp(event.deltaY * 0.004), this.ns(event.clientX - box.getBoundingClientRect().left));
      } else if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
        event.preventDefault();
        this.pan((event.deltaX || event.deltaY) / (this.width - this.left));
      }
    }, { passive: false });
    box.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      held = { x: event.clientX, from: this.from, to: this.to, moved: false };
      box.setPointerCapture(event.pointerId);
    });
    box.addEventListener("pointermove", (event) => {
      const rectangle = box.getBoundingClientRect();
      if (held) {
        const moved = event.clientX - held.x;
        held.moved ||= Math.abs(moved) > 3;
        const step = (moved / (this.width - this.left)) * (held.to - held.from);
        box.classList.toggle("dragged", held.moved);
        if (held.moved) this.show(held.from - step, held.to - step);
        return;
      }
      const [lane, item] = this.at(event.clientX - rectangle.left, event.clientY - rectangle.top);
      if (lane >= 0 && item >= 0) this.say(this.about(this.rows[lane], item));
    });
    box.addEventListener("pointerup", (event) => {
      const rectangle = box.getBoundingClientRect(), moved = held?.moved;
      held = null;
      box.classList.remove("dragged");
      if (moved) return;
      const [lane, item] = this.at(event.clientX - rectangle.left, event.clientY - rectangle.top);
      if (lane < 0) return;
      this.chooseLane(lane);
      if (item >= 0) { this.item = item; this.say(this.about(this.rows[lane], item)); }
    });
    box.addEventListener("dblclick", (event) => {
      this.zoom(0.4, this.ns(event.clientX - box.getBoundingClientRect().left));
    });
    for (const button of this.figure.querySelectorAll("button[data-do]")) {
      button.addEventListener("click", () => this.do(button.dataset.do));
    }
    new ResizeObserver(() => this.redraw()).observe(box);
  }

  // --- what the shapes mean ---

  legend() {
    const place = this.figure.querySelector(".legend"), data = this.data, ratio = window.devicePixelRatio || 1;
    place.replaceChildren();
    const entry = (words, draw) => {
      const span = document.createElement("span"), canvas = document.createElement("canvas");
      canvas.width = 26 * ratio;
      canvas.height = 12 * ratio;
      const context = canvas.getContext("2d");
      context.scale(ratio, ratio);
      draw(context);
      span.append(canvas, words);
      place.append(span);
    };
    const styles = new Set(data.words.map((word) => word[0]));
    data.devices.slice(0, 12).forEach((device, i) => {
      entry(device, (context) => bar(context, "buffer", i, 0, 0, 26, 12));
    });
    if (data.devices.length > 12) entry(`and ${data.devices.length - 12} more devices`, () => {});
    const shapes = { config: "config state", ram: "RAM", sync: "SYNC", control: "control", thread: "a thread's life", bad: "missing or broken" };
    for (const [style, words] of Object.entries(shapes)) {
      if (styles.has(style)) entry(words, (context) => bar(context, style, -1, 4, 0, style === "sync" ? 1 : 18, 12));
    }
    const states = new Set(this.rows.filter((row) => row.type === "bands").flatMap((row) => row.words));
    for (const state of Object.keys(STATES)) {
      if (states.has(state)) entry(state, (context) => stateBox(context, state, 0, 0, 26, 12));
    }
    if (this.rows.some((row) => row.type === "curve" && row.cap !== null)) {
      entry("the most that may wait", (context) => {
        context.strokeStyle = paint.bad;
        context.setLineDash([6, 3]);
        context.beginPath();
        context.moveTo(0, 6);
        context.lineTo(26, 6);
        context.stroke();
      });
    }
    if (data.witnesses.length) {
      entry("witness of a violation", (context) => {
        context.fillStyle = paint.bad;
        context.beginPath();
        context.moveTo(13, 11);
        context.lineTo(7, 1);
        context.lineTo(19, 1);
        context.fill();
      });
    }
  }
}

// --- the page --------------------------------------------------------------------------------------

readColours();
const pictures = JSON.parse(document.getElementById("data").textContent).map((data, place) =>
  new Picture(document.querySelector(`[data-picture="${place}"]`), data));

function repaint() {
  readColours();
  for (const picture of pictures) { picture.redraw(); picture.legend(); }
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
addEventListener("beforeprint", () => {
  readColours();
  for (const picture of pictures) { picture.draw(true); picture.legend(); }
});
addEventListener("afterprint", repaint);

for (const button of document.querySelectorAll("button[data-witness]")) {
  button.addEventListener("click", () => {
    for (const picture of pictures) {
      const number = picture.data.witnesses.findIndex((witness) => witness[0] === button.dataset.witness);
      if (number < 0) continue;
      picture.box.focus({ preventScroll: true });
      picture.figure.scrollIntoView({ block: "start" });
      picture.chooseWitness(number);
    }
  });
}

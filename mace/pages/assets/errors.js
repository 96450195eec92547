// Predictions against labels: exact errors of any part of the data, points and histograms that follow the choosers.
const { html, svg, number, ticks, color, unpack, Tip, onRedraw, dataOf, chooser, heads, isChosenHead } = window.mace;
const ROLES = { train: "training", valid: "validation", test: "test" };
const WORDS = { head: "head", set: "set", type: "config_type", element: "element" };
const LEFT = 58, RIGHT = 12, TOP = 10, BOTTOM = 34, PARITY = 300, BARS = 190;

const data = dataOf("errors-data"), place = document.getElementById("errors");
const choice = { stage: 0, set: "all", type: "all", element: "all" };

function chosenSet(number_) {
  const stage = data.stages[choice.stage], role = stage.sets[number_][1];
  return isChosenHead(stage.heads[number_]) && (choice.set === "all" || choice.set === role || choice.set === `set ${number_}`);
}
function chosenPart(property, part) {
  return choice.element === "all" || property.parts[part] === "" || property.parts[part].split(" ").includes(choice.element);
}
function chosen(property, set, type, part) {
  return chosenSet(set) && (choice.type === "all" || Number(choice.type) === type) && chosenPart(property, part);
}
function sums(cells, bins) {
  const total = { count: 0, absolute: 0, squared: 0, largest: 0, bins: new Float64Array(bins) };
  for (const cell of cells) {
    total.count += cell.count; total.absolute += cell.absolute; total.squared += cell.squared;
    total.largest = Math.max(total.largest, cell.largest);
    for (let k = 0; k < cell.bins.length; k += 2) total.bins[cell.bins[k]] += cell.bins[k + 1];
  }
  return total;
}
const rmse = (s) => Math.sqrt(s.squared / s.count), mae = (s) => s.absolute / s.count;

class PropertyPanel {
  constructor(property) {
    this.property = property;
    this.canvas = html("canvas", { role: "img", tabindex: "0" });
    this.area = html("div", { class: "plot" }, this.canvas);
    this.bars = html("div", { class: "plot" });
    this.said = html("p", { class: "soft", "data-errors": property.name });
    this.tip = new Tip(this.area);
    this.barTip = new Tip(this.bars);
    this.figure = html("figure", {}, html("figcaption", { text: property.title }), this.said, this.area, this.bars);
    const points = property.points;
    this.points = {
      reference: unpack(points.reference, Float32Array), error: unpack(points.error, Float32Array), set: unpack(points.set, Uint16Array),
      type: unpack(points.type, Uint8Array), part: unpack(points.part, Uint8Array), file: unpack(points.file, Uint16Array), index: unpack(points.index, Uint32Array),
    };
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerdown", (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", () => this.leave());
    this.canvas.addEventListener("blur", () => this.leave());
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    onRedraw(this.area, () => this.draw());
  }
  select() {
    const p = this.points, shown = [];
    for (let k = 0; k < p.error.length; k++) if (chosen(this.property, p.set[k], p.type[k], p.part[k])) shown.push(k);
    this.shown = shown;
    this.byError = [...shown].sort((a, b) => Math.abs(p.error[b]) - Math.abs(p.error[a]));
    this.rank = -1;
    this.total = sums(this.property.cells.filter((c) => chosen(this.property, c.set, c.type, c.part)), data.bins);
    this.figure.hidden = this.total.count === 0;
    if (!this.total.count) return;
    const unit = this.property.errorUnit, drawn = shown.length < this.total.count ? `; ${shown.length.toLocaleString("en")} drawn, the worst among them` : "";
    this.said.textContent = `RMSE ${number(1000 * rmse(this.total))}, MAE ${number(1000 * mae(this.total))}, largest ${number(1000 * this.total.largest)} ${unit}; ${this.total.count.toLocaleString("en")} values${drawn}`;
    this.draw();
  }
  draw() {
    const width = this.area.clientWidth;
    if (!width || !this.shown || this.figure.hidden) return;
    this.drawPoints(width);
    this.drawBars(width);
  }
  drawPoints(width) {
    const p = this.points, ratio = window.devicePixelRatio || 1, canvas = this.canvas, context = canvas.getContext("2d");
    canvas.width = width * ratio; canvas.height = PARITY * ratio;
    canvas.style.width = `${width}px`; canvas.style.height = `${PARITY}px`;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    let low = Infinity, high = -Infinity;
    for (const k of this.shown) {
      low = Math.min(low, p.reference[k], p.reference[k] + p.error[k]); high = Math.max(high, p.reference[k], p.reference[k] + p.error[k]);
    }
    const grow = (high - low) * 0.04 || 0.5;
    low -= grow; high += grow;
    this.across = (v) => LEFT + ((v - low) / (high - low)) * (width - LEFT - RIGHT);
    this.up = (v) => PARITY - BOTTOM - ((v - low) / (high - low)) * (PARITY - TOP - BOTTOM);
    const ink = color("soft"), line = color("line");
    context.font = "11px system-ui, sans-serif"; context.fillStyle = ink; context.lineWidth = 1;
    for (const v of ticks(low, high, 5)) {
      context.strokeStyle = line;
      context.beginPath(); context.moveTo(LEFT, this.up(v)); context.lineTo(width - RIGHT, this.up(v));
      context.moveTo(this.across(v), TOP); context.lineTo(this.across(v), PARITY - BOTTOM); context.stroke();
      context.textAlign = "right"; context.fillText(number(v), LEFT - 6, this.up(v) + 4);
      context.textAlign = "center"; context.fillText(number(v), this.across(v), PARITY - BOTTOM + 15);
    }
    context.fillText(`label (${this.property.unit})`, (LEFT + width - RIGHT) / 2, PARITY - 4);
    context.save(); context.translate(11, (TOP + PARITY - BOTTOM) / 2); context.rotate(-Math.PI / 2);
    context.fillText(`prediction (${this.property.unit})`, 0, 0); context.restore();
    context.strokeStyle = ink; context.beginPath(); context.moveTo(this.across(low), this.up(low)); context.lineTo(this.across(high), this.up(high)); context.stroke();
    const sets = data.stages[choice.stage].sets, size = Math.max(1.1, Math.min(2.6, 90 / Math.sqrt(this.shown.length)));
    context.globalAlpha = this.shown.length > 3000 ? 0.45 : 0.7;
    for (const role of ["train", "valid", "test"]) {
      context.fillStyle = color(role);
      for (const k of this.shown) {
        if (sets[p.set[k]][1] !== role) continue;
        context.beginPath(); context.arc(this.across(p.reference[k]), this.up(p.reference[k] + p.error[k]), size, 0, 7); context.fill();
      }
    }
    context.globalAlpha = 1;
    canvas.setAttribute("aria-label", `${this.property.title}: predictions against labels. ${this.said.textContent}. Arrow keys go through the values by error.`);
  }
  drawBars(width) {
    const bins = this.total.bins, n = bins.length, limit = this.property.limit, most = Math.max(...bins);
    const across = (v) => LEFT + ((v / limit + 1) / 2) * (width - LEFT - RIGHT), up = (c) => BARS - BOTTOM - (c / most) * (BARS - TOP - BOTTOM);
    const root = svg("svg", { viewBox: `0 0 ${width} ${BARS}`, height: BARS, role: "img",
      "aria-label": `Histogram of the errors of ${this.property.title}; ${this.said.textContent}` });
    for (const c of ticks(0, most, 3)) {
      root.append(svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: up(c), y2: up(c) }), svg("text", { x: LEFT - 6, y: up(c) + 4, "text-anchor": "end", text: number(c) }));
    }
    for (let k = 0; k < n; k++) {
      if (!bins[k]) continue;
      const from = -limit + (2 * limit * k) / n, to = -limit + (2 * limit * (k + 1)) / n, x = across(from);
      const range = k === 0 ? `below ${number(1000 * to)}` : k === n - 1 ? `above ${number(1000 * from)}` : `${number(1000 * from)} to ${number(1000 * to)}`;
      const bar = svg("rect", { class: "bar", x, y: up(bins[k]), width: Math.max(across(to) - x - 0.7, 0.7), height: Math.max(BARS - BOTTOM - up(bins[k]), 0.8) });
      bar.addEventListener("pointerenter", () => this.barTip.show(x, 20, `${range} ${this.property.errorUnit}: ${bins[k].toLocaleString("en")}`));
      bar.addEventListener("pointerleave", () => this.barTip.hide());
      root.append(bar);
    }
    for (const v of ticks(-1000 * limit, 1000 * limit, 5)) root.append(svg("text", { x: across(v / 1000), y: BARS - BOTTOM + 15, "text-anchor": "middle", text: number(v) }));
    root.append(svg("line", { class: "axis", x1: LEFT, x2: width - RIGHT, y1: BARS - BOTTOM, y2: BARS - BOTTOM }));
    root.append(svg("text", { x: (LEFT + width - RIGHT) / 2, y: BARS - 4, "text-anchor": "middle", text: `${width > 420 ? "prediction minus label" : "error"} (${this.property.errorUnit}); ${width > 420 ? "what is beyond is in the outermost bars" : "outermost: all beyond"}` }));
    this.bars.querySelector("svg")?.remove();
    this.bars.prepend(root);
  }
  point(event) {
    const box = this.canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top, p = this.points;
    let best = -1, nearest = 144;
    for (const k of this.shown || []) {
      const away = (this.across(p.reference[k]) - x) ** 2 + (this.up(p.reference[k] + p.error[k]) - y) ** 2;
      if (away < nearest) { nearest = away; best = k; }
    }
    if (best < 0) this.leave(); else this.show(best);
  }
  key(event) {
    const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    if (!step || !this.byError.length) return;
    event.preventDefault();
    this.rank = Math.max(0, Math.min(this.byError.length - 1, this.rank + step));
    this.show(this.byError[this.rank]);
  }
  show(k) {
    const p = this.points, stage = data.stages[choice.stage], unit = this.property.unit;
    const part = this.property.parts[p.part[k]];
    this.tip.show(this.across(p.reference[k]), this.up(p.reference[k] + p.error[k]),
      `error ${number(1000 * p.error[k])} ${this.property.errorUnit}\nlabel ${number(p.reference[k])}, prediction ${number(p.reference[k] + p.error[k])} ${unit}\n` +
      `${stage.files[p.file[k]]}: structure ${p.index[k]}\n${stage.sets[p.set[k]][0]}, ${stage.types[p.type[k]]}${part ? `, ${part}` : ""}`);
  }
  leave() { this.tip.hide(); }
}

function errorTable(stage, by) {
  const of = [...new Set(stage.heads)];
  const names = { head: of.map((h) => [h, (p, c) => stage.heads[c.set] === h]), set: stage.sets.map((s, k) => [s[0], (p, c) => c.set === k]), type: stage.types.map((t, k) => [t, (p, c) => c.type === k]),
    element: stage.elements.map((e) => [e, (p, c) => p.parts[c.part] === "" ? false : p.parts[c.part].split(" ").includes(e)]) }[by];
  const head = html("tr", {}, html("th", { scope: "col", text: WORDS[by] }));
  for (const p of stage.properties) for (const w of ["RMSE", "MAE", "largest"]) head.append(html("th", { scope: "col", text: `${w} ${p.short} / ${p.errorUnit}` }));
  const body = html("tbody", {});
  for (const [name, belongs] of names) {
    const cells = [];
    let any = 0;
    for (const p of stage.properties) {
      const s = sums(p.cells.filter((c) => belongs(p, c) && chosen(p, c.set, c.type, c.part)), 0);
      any += s.count;
      for (const v of s.count ? [rmse(s), mae(s), s.largest] : [NaN, NaN, NaN]) cells.push(html("td", { text: number(1000 * v) }));
    }
    if (any) body.append(html("tr", {}, html("td", { text: name }), ...cells));
  }
  return html("div", { class: "scroll tall", tabindex: "0" }, html("table", {}, html("caption", { class: "unseen", text: `errors by ${WORDS[by]}` }), html("thead", {}, head), body));
}

function build() {
  const stage = data.stages[choice.stage], controls = html("div", { class: "controls" }), grid = html("div", { class: "panels" }), tables = html("div", {});
  const panels = stage.properties.map((property) => new PropertyPanel(property));
  const change = (key) => (value) => { choice[key] = value; update(); };
  const legend = html("p", { class: "soft" });
  const sets = stage.sets.map((s, k) => [k, ...s]).filter(([k]) => isChosenHead(stage.heads[k]));
  for (const role of Object.keys(ROLES)) if (sets.some((s) => s[2] === role))
    legend.append(html("span", { class: "swatch dot", style: `color: var(--${role})` }), `${ROLES[role]} \u00a0 `);
  const tell = () => document.dispatchEvent(new CustomEvent("stage", { detail: choice.stage }));
  if (!sets.length) {
    legend.textContent = "Errors of this head were not measured, because --skip_evaluate_heads leaves it out.";
    place.replaceChildren(legend);
    return tell();
  }
  const update = () => {
    panels.forEach((panel) => panel.select());
    const counts = { head: heads.chosen ? 1 : new Set(stage.heads).size, set: 2, type: stage.types.length, element: stage.elements.length };
    tables.replaceChildren(...Object.keys(WORDS).filter((by) => counts[by] > 1).map((by) => {
      const kept = tables.querySelector(`details[data-by=${by}]`);
      return html("details", { "data-by": by, ...(kept?.open ?? (by === "set" || by === "head") ? { open: "" } : {}) }, html("summary", { text: `Errors by ${WORDS[by]}` }), errorTable(stage, by));
    }));
  };
  if (data.stages.length > 1) controls.append(chooser("model", data.stages.map((s, k) => [String(k), `stage ${s.stage}, epoch ${s.epoch}`]), String(choice.stage), (v) => { choice.stage = Number(v); build(); }));
  const roles = Object.entries(ROLES).filter(([role]) => sets.filter((s) => s[2] === role).length > 1).map(([role, word]) => [role, `all ${word} sets`]);
  controls.append(chooser("set", [["all", "all sets"], ...roles, ...sets.map((s) => [`set ${s[0]}`, s[1]])], choice.set, change("set")));
  if (stage.types.length > 1) controls.append(chooser("config_type", [["all", "all types"], ...stage.types.map((t, k) => [String(k), t])], choice.type, change("type")));
  if (stage.elements.length > 1) controls.append(chooser("element", [["all", "all elements"], ...stage.elements.map((e) => [e, e])], choice.element, change("element")));
  grid.append(...panels.map((panel) => panel.figure));
  place.replaceChildren(controls, legend, grid, tables);
  if (stage.properties.some((p) => p.parts.includes(""))) place.append(html("p", { class: "soft", text: "There are too many compositions to divide properties of structures by element; forces are." }));
  update();
  tell();
}
if (data && place) {
  choice.stage = data.stages.length - 1;
  document.addEventListener("head", () => { choice.set = "all"; build(); });
  build();
}

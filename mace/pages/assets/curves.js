// Learning curves: lines over epochs with a cross hair, a legend that switches, and the numbers as a table.
const { html, svg, number, ticks, logTicks, Tip, onRedraw, dataOf, switches, isChosenHead } = window.mace;
const LEFT = 52, RIGHT = 12, BOTTOM = 30, HEIGHT = 240, COLORS = 9, ROW = 11, DENSE = 200;

class LinePanel {
  constructor(panel, view) {
    this.panel = panel; this.view = view; this.hidden = new Set(); this.at = null; this.swatches = [];
    const unit = panel.unit ? ` (${panel.unit})` : "";
    this.figure = html("figure", {}, html("figcaption", { text: panel.title + unit }));
    this.plot = html("div", { class: "plot" });
    this.tip = new Tip(this.plot);
    this.figure.append(this.plot, this.legend(), this.table());
    onRedraw(this.plot, () => this.draw());
  }
  legend() {
    const legend = html("div", { class: "legend" });
    if (this.panel.series.length === 1 && !this.panel.series[0].label) return legend;
    this.panel.series.forEach((series, place) => {
      const swatch = html("span", { class: `swatch pattern${series.pattern}`, style: `color: var(--c${series.color % COLORS})` });
      this.swatches.push(swatch);
      legend.append(html("button", { type: "button", "aria-pressed": "true", ...(series.head ? { "data-head": series.head } : {}), onclick: (event) => {
        const shown = this.hidden.delete(place);
        if (!shown) this.hidden.add(place);
        event.currentTarget.setAttribute("aria-pressed", String(shown));
        this.draw();
      } }, swatch, series.label));
    });
    return legend;
  }
  table() {
    const details = html("details", {}, html("summary", { text: "Numbers" }));
    const fill = () => {
      details.querySelector(".scroll")?.remove();
      if (!details.open) return;
      const shown = this.panel.series.filter((s) => isChosenHead(s.head));
      const xs = [...new Set(shown.flatMap((s) => s.x))].sort((a, b) => a - b);
      const every = Math.max(1, Math.ceil(xs.length / 60));
      const head = html("tr", {}, html("th", { scope: "col", text: "epochs done" }), ...shown.map((s) => html("th", { scope: "col", text: s.label || this.panel.title })));
      const body = html("tbody", {});
      xs.forEach((x, place) => {
        if ((xs.length - 1 - place) % every) return;
        const cells = shown.map((s) => { const k = s.x.indexOf(x); return html("td", { text: k < 0 ? "" : number(s.y[k], 5) }); });
        body.append(html("tr", {}, html("td", { text: number(x) }), ...cells));
      });
      details.append(html("div", { class: "scroll tall", tabindex: "0" }, html("table", {}, html("thead", {}, head), body)));
    };
    details.addEventListener("toggle", fill);
    document.addEventListener("head", fill);
    return details;
  }
  visible() {
    return this.panel.series.map((series, place) => {
      if (this.hidden.has(place) || !isChosenHead(series.head)) return [];
      return series.x.map((x, k) => [x, series.y[k]]).filter(([x, y]) => x >= this.view.from && y !== null && (!this.log || y > 0));
    });
  }
  range(points) {
    const xs = points.flat().map((p) => p[0]), ys = points.flat().map((p) => p[1]);
    let [x0, x1] = xs.length ? [Math.min(...xs), Math.max(...xs)] : [0, 1];
    let [y0, y1] = ys.length ? [Math.min(...ys), Math.max(...ys)] : [0, 1];
    if (x1 === x0) { x0 -= 0.5; x1 += 0.5; }
    if (this.log) { const grow = Math.max((y1 / y0) ** 0.04, 1.03); y0 /= grow; y1 *= grow; }
    else { const grow = (y1 - y0) * 0.05 || Math.abs(y1) * 0.1 || 1; y0 = y0 >= 0 ? Math.max(0, y0 - grow) : y0 - grow; y1 += grow; }
    return { x0, x1, y0, y1 };
  }
  draw() {
    const width = this.plot.clientWidth;
    if (!width) return;
    this.log = this.view.log && this.panel.series.some((s) => s.y.some((y) => y > 0));
    const points = this.visible(), { x0, x1, y0, y1 } = this.range(points);
    const place = (y) => (this.log ? Math.log(y / y0) / Math.log(y1 / y0) : (y - y0) / (y1 - y0));
    const words = this.arrange(width, x0, x1), TOP = 10 + ROW * words.rows;
    this.top = TOP;
    this.across = (x) => LEFT + ((x - x0) / (x1 - x0)) * (width - LEFT - RIGHT);
    this.up = (y) => HEIGHT - BOTTOM - place(y) * (HEIGHT - TOP - BOTTOM);
    const root = svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, height: HEIGHT, role: "img", tabindex: "0", "aria-label": this.words(points) });
    for (const y of this.log ? logTicks(y0, y1) : ticks(y0, y1, 5)) {
      root.append(svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: this.up(y), y2: this.up(y) }));
      root.append(svg("text", { x: LEFT - 6, y: this.up(y) + 4, "text-anchor": "end", text: number(y, 3) }));
    }
    for (const x of ticks(x0, x1, Math.max(2, Math.floor(width / 80)))) {
      root.append(svg("line", { class: "axis", x1: this.across(x), x2: this.across(x), y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM + 4 }));
      root.append(svg("text", { x: this.across(x), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle", text: number(x) }));
    }
    root.append(svg("line", { class: "axis", x1: LEFT, x2: width - RIGHT, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM }));
    for (const mark of words.marks) {
      root.append(svg("line", { class: "mark", x1: mark.at, x2: mark.at, y1: ROW * (mark.row + 1), y2: HEIGHT - BOTTOM }));
      root.append(svg("text", { class: "word", x: mark.x, y: ROW * (mark.row + 1) - 3, "text-anchor": "middle", text: mark.word }));
    }
    points.forEach((line, k) => {
      if (!line.length) return;
      const series = this.panel.series[k], stroke = `var(--c${series.color % COLORS})`;
      // dashes of a line with many bends run together
      const style = series.pattern ? ` pattern${series.pattern}` : line.length > DENSE ? " dense" : series.dashed ? " dashed" : "";
      this.swatches[k]?.classList.toggle("dashed", style === " dashed");
      const path = line.map(([x, y], n) => (n ? (series.steps ? `V${this.up(y).toFixed(1)}H${this.across(x).toFixed(1)}` : `L${this.across(x).toFixed(1)} ${this.up(y).toFixed(1)}`) : `M${this.across(x).toFixed(1)} ${this.up(y).toFixed(1)}`)).join("");
      root.append(svg("path", { class: `curve${style}`, d: path, style: `stroke: ${stroke}` }));
      if (line.length <= 40 && !series.steps) for (const [x, y] of line) root.append(svg("circle", { cx: this.across(x), cy: this.up(y), r: 2.3, style: `fill: ${stroke}` }));
    });
    this.cross = svg("g", {});
    root.append(this.cross);
    root.addEventListener("pointermove", (event) => this.point(event.clientX - root.getBoundingClientRect().left));
    root.addEventListener("pointerdown", (event) => this.point(event.clientX - root.getBoundingClientRect().left));
    root.addEventListener("pointerleave", () => this.leave());
    root.addEventListener("blur", () => this.leave());
    root.addEventListener("keydown", (event) => this.key(event));
    const focused = this.root && this.root === document.activeElement;
    this.plot.querySelector("svg")?.remove();
    this.plot.prepend(root);
    this.root = root; this.points = points;
    if (focused) root.focus();
  }
  // words at vertical lines, in rows so that none lies on another
  arrange(width, x0, x1) {
    const marks = [], ends = [];
    for (const [x, word] of [...this.panel.marks].sort((a, b) => a[0] - b[0])) {
      if (x < x0 || x > x1) continue;
      const at = LEFT + ((x - x0) / (x1 - x0)) * (width - LEFT - RIGHT), half = word.length * 2.8 + 4;
      const middle = Math.max(half, Math.min(width - half, at));
      let row = ends.findIndex((end) => middle - half > end);
      if (row < 0) row = ends.length;
      if (row > 3) continue;
      ends[row] = middle + half;
      marks.push({ at, x: middle, row, word });
    }
    return { marks, rows: ends.length };
  }
  words(points) {
    const said = points.map((line, k) => {
      if (!line.length) return "";
      const last = line[line.length - 1], low = line.reduce((a, b) => (b[1] < a[1] ? b : a));
      return `${this.panel.series[k].label || "curve"}: last ${number(last[1])} after ${number(last[0])} epochs, lowest ${number(low[1])} after ${number(low[0])}`;
    });
    return `${this.panel.title}, ${this.panel.unit || "no unit"}. ${said.filter(Boolean).join("; ")}. Arrow keys go through the epochs.`;
  }
  times() { return [...new Set(this.points.flat().map((p) => p[0]))].sort((a, b) => a - b); }
  point(x) {
    const times = this.times();
    if (!times.length) return;
    this.show(times.reduce((best, t) => (Math.abs(this.across(t) - x) < Math.abs(this.across(best) - x) ? t : best)));
  }
  key(event) {
    const times = this.times(), step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!times.length || !(step || event.key === "Home" || event.key === "End" || event.key === "Escape")) return;
    event.preventDefault();
    if (event.key === "Escape") return this.leave();
    const now = this.at === null ? (step > 0 ? -1 : times.length) : times.indexOf(this.at);
    const next = event.key === "Home" ? 0 : event.key === "End" ? times.length - 1 : Math.max(0, Math.min(times.length - 1, now + step));
    this.show(times[next]);
  }
  show(time) {
    this.at = time;
    this.cross.replaceChildren(svg("line", { class: "cross", x1: this.across(time), x2: this.across(time), y1: this.top, y2: HEIGHT - BOTTOM }));
    const lines = [`${number(time)} epochs done`];
    this.points.forEach((line, k) => {
      if (!line.length) return;
      const near = line.reduce((best, p) => (Math.abs(p[0] - time) < Math.abs(best[0] - time) ? p : best));
      if (Math.abs(near[0] - time) > 0.51) return;
      const series = this.panel.series[k];
      this.cross.append(svg("circle", { cx: this.across(near[0]), cy: this.up(near[1]), r: 4, style: `fill: var(--c${series.color % COLORS})` }));
      lines.push(`${series.label ? `${series.label}: ` : ""}${number(near[1])} ${this.panel.unit}`);
    });
    this.tip.show(this.across(time), this.top + 10, lines.join("\n"));
  }
  leave() { this.at = null; this.tip.hide(); this.cross.replaceChildren(); }
}

const data = dataOf("curves-data"), place = document.getElementById("curves");
if (data && place) {
  const view = { log: true, from: 0, measure: "rmse" };
  const measures = data.measures.filter(([key]) => data.panels.some((p) => p.measure === key));
  const controls = html("div", { class: "controls" }), grid = html("div", { class: "panels" });
  const panels = data.panels.map((panel) => new LinePanel(panel, view));
  const choose = () => panels.forEach((p) => {
    const isOther = Boolean(p.panel.measure) && p.panel.measure !== view.measure;
    p.figure.hidden = isOther || !p.panel.series.some((s) => isChosenHead(s.head));
  });
  const redraw = () => panels.forEach((p) => p.draw());
  if (measures.length > 1) controls.append(switches("errors", measures, view.measure, (key) => { view.measure = key; choose(); redraw(); }));
  controls.append(switches("vertical axis", [["log", "log"], ["linear", "linear"]], "log", (key) => { view.log = key === "log"; redraw(); }));
  if (data.last > 5) {
    const start = html("input", { type: "range", min: "0", max: String(Math.floor(data.last * 0.95)), value: "0" });
    const said = html("span", { text: "from epoch 0" });
    start.addEventListener("input", () => { view.from = Number(start.value); said.textContent = `from epoch ${start.value}`; redraw(); });
    controls.append(html("label", {}, said, start));
  }
  grid.append(...panels.map((p) => p.figure));
  place.append(controls, grid);
  document.addEventListener("head", () => { choose(); redraw(); });
  choose();
}

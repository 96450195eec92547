// What all plots share: elements, numbers in words, ticks, colors of the present theme, a box that says values.
const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "text") node.textContent = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  for (const child of children) if (child) node.append(child);
  return node;
}
function html(tag, attributes, ...children) { return fill(document.createElement(tag), attributes, children); }
function svg(tag, attributes, ...children) { return fill(document.createElementNS(SVG, tag), attributes, children); }

function number(value, digits = 4) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "\u2013";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3) return value.toExponential(Math.min(digits - 1, 2)).replace("e+", "e");
  return String(Number(value.toPrecision(digits)));
}
function ticks(low, high, most) {
  if (!(high > low)) return [low];
  const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((f) => f * power).find((s) => s >= rough * (1 - 1e-9));
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) found.push(Number((k * step).toPrecision(12)));
  return found;
}
function logTicks(low, high) {
  const decades = Math.log10(high / low), factors = decades < 1.2 ? [1, 2, 3, 5, 7] : decades < 3 ? [1, 2, 5] : [1];
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
    for (const factor of factors) {
      const value = factor * 10 ** power;
      if (value >= low * 0.999 && value <= high * 1.001) found.push(Number(value.toPrecision(3)));
    }
  const most = 7, every = Math.ceil(found.length / most);
  return found.length > 1 ? found.filter((_, place) => place % every === 0) : ticks(low, high, 3);
}
// canvases need colors as such: what a name means in the present theme is read from an element
function color(name) {
  const probe = html("span", { style: `color: var(--${name})` });
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}
function unpack(text, type) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return new type(bytes.buffer);
}
class Tip {
  constructor(around) { this.around = around; this.box = null; }
  show(x, y, text) {
    if (!this.box) { this.box = html("div", { class: "tip", role: "status" }); this.around.append(this.box); }
    this.box.textContent = text;
    this.box.hidden = false;
    const width = this.around.clientWidth, own = this.box.offsetWidth;
    this.box.style.left = `${Math.max(0, Math.min(width - own, x + 14 + own > width ? x - own - 14 : x + 14))}px`;
    this.box.style.top = `${Math.max(0, y - 12)}px`;
  }
  hide() { if (this.box) this.box.hidden = true; }
}
// what is to be drawn anew when the theme or the width changes
const drawn = [];
function onRedraw(element, draw) {
  let width = 0;
  drawn.push(draw);
  new ResizeObserver(() => { if (element.clientWidth !== width) { width = element.clientWidth; draw(); } }).observe(element);
}
function redrawAll() { for (const draw of drawn) draw(); }

function dataOf(name) { const found = document.getElementById(name); return found ? JSON.parse(found.textContent) : null; }
function chooser(label, entries, chosen, change) {
  const list = html("select", { "aria-label": label, onchange: () => change(list.value) });
  for (const [value, word] of entries) list.append(html("option", { value, text: word }));
  list.value = chosen;
  return html("label", {}, html("span", { text: label }), list);
}
function switches(label, entries, chosen, change) {
  const group = html("span", { class: "group", role: "group", "aria-label": label });
  for (const [value, word] of entries)
    group.append(html("button", { type: "button", "aria-pressed": String(value === chosen), text: word, onclick(event) {
      for (const other of group.children) other.setAttribute("aria-pressed", String(other === event.currentTarget));
      change(value);
    } }));
  return html("label", {}, html("span", { text: label }), group);
}
// which of several heads is looked at, one choice for the whole page; empty for all
const heads = { all: dataOf("heads") || [], chosen: "" };
function isChosenHead(head) { return !heads.chosen || !head || head === heads.chosen; }
window.mace = { heads, isChosenHead, html, svg, number, ticks, logTicks, color, unpack, Tip, onRedraw, redrawAll, dataOf, chooser, switches };

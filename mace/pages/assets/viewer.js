// Balls, bonds and cell of a structure on a canvas, turned by dragging, touch or arrow keys.
const { html, color, onRedraw } = window.mace;
const HEIGHT = 400, BOND = 1.2;

class Viewer {
  constructor() {
    this.canvas = html("canvas", { tabindex: "0", role: "img" });
    this.arrows = true;
    this.element = html("div", { class: "plot" }, this.canvas);
    this.reset();
    this.pointers = new Map();
    const on = (name, handle) => this.canvas.addEventListener(name, handle);
    on("pointerdown", (event) => { this.canvas.setPointerCapture(event.pointerId); this.pointers.set(event.pointerId, [event.clientX, event.clientY]); });
    on("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"]) on(name, (event) => this.pointers.delete(event.pointerId));
    on("wheel", (event) => { event.preventDefault(); this.zoomBy(Math.exp(-event.deltaY / 500)); });
    on("keydown", (event) => this.key(event));
    onRedraw(this.element, () => this.draw());
  }
  // look along the direction in which the structure is flattest
  reset() {
    const spread = [0, 1, 2].map((d) => {
      const values = (this.atoms || []).map((p) => p[d]), mean = values.reduce((a, b) => a + b, 0) / (values.length || 1);
      return values.reduce((sum, v) => sum + (v - mean) ** 2, 0);
    });
    const flattest = spread.indexOf(Math.min(...spread));
    this.turn = [1, 2, 0].map((shift) => [0, 1, 2].map((d) => (d === (flattest + shift) % 3 ? 1 : 0)));
    this.zoom = 1;
    this.rotate(0.4, 0.3);
  }
  // {numbers, positions, cell, errors}: elements by number in `kinds`, Angstrom, rows of lattice vectors or null, eV/Angstrom
  show(structure, kinds, words) {
    this.structure = structure; this.kinds = kinds;
    const { positions, cell } = structure, corners = cell ? this.corners(cell) : [];
    this.atoms = [];
    for (let k = 0; k < positions.length; k += 3) this.atoms.push([positions[k], positions[k + 1], positions[k + 2]]);
    const all = [...this.atoms, ...corners];
    const low = [0, 1, 2].map((d) => all.reduce((a, p) => Math.min(a, p[d]), Infinity)), high = [0, 1, 2].map((d) => all.reduce((a, p) => Math.max(a, p[d]), -Infinity));
    if (structure !== this.seenFirst) { this.seenFirst = structure; this.reset(); }
    this.center = low.map((v, d) => (v + high[d]) / 2);
    this.radius = Math.max(1.5, ...all.map((p) => Math.hypot(...p.map((v, d) => v - this.center[d])))) + 0.6;
    this.edges = cell ? [[0, 1], [0, 2], [0, 4], [1, 3], [1, 5], [2, 3], [2, 6], [4, 5], [4, 6], [3, 7], [5, 7], [6, 7]].map(([a, b]) => [corners[a], corners[b]]) : [];
    this.bonds = this.findBonds();
    const errors = structure.errors;
    this.longest = 0;
    if (errors) for (let k = 0; k < errors.length; k += 3) this.longest = Math.max(this.longest, Math.hypot(errors[k], errors[k + 1], errors[k + 2]) || 0);
    this.canvas.setAttribute("aria-label", `${words}. Arrow keys turn it, plus and minus zoom, 0 resets.`);
    this.draw();
  }
  corners(cell) {
    return [0, 1, 2, 3, 4, 5, 6, 7].map((c) => [0, 1, 2].map((d) => (c & 1) * cell[d] + ((c >> 1) & 1) * cell[3 + d] + ((c >> 2) & 1) * cell[6 + d]));
  }
  findBonds() {
    const n = this.atoms.length, found = [];
    if (n > 1500) return found;
    for (let i = 0; i < n; i++)
      for (let j = 0; j < i; j++) {
        const far = Math.hypot(...this.atoms[i].map((v, d) => v - this.atoms[j][d]));
        if (far < BOND * (this.kind(i).radius + this.kind(j).radius)) found.push([i, j]);
      }
    return found;
  }
  kind(atom) { return this.kinds[this.structure.numbers[atom]]; }
  rotate(across, up) {
    const [ca, sa, cu, su] = [Math.cos(across), Math.sin(across), Math.cos(up), Math.sin(up)];
    const step = [[ca, 0, sa], [su * sa, cu, -su * ca], [-cu * sa, su, cu * ca]];
    this.turn = step.map((row) => [0, 1, 2].map((c) => row.reduce((sum, v, k) => sum + v * this.turn[k][c], 0)));
  }
  zoomBy(factor) { this.zoom = Math.max(0.3, Math.min(12, this.zoom * factor)); this.draw(); }
  move(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    if (this.pointers.size === 2) {
      const other = [...this.pointers].find(([id]) => id !== event.pointerId)[1];
      const far = (p) => Math.hypot(p[0] - other[0], p[1] - other[1]) || 1;
      this.zoomBy(far([event.clientX, event.clientY]) / far(before));
    } else this.rotate((event.clientX - before[0]) / 120, (event.clientY - before[1]) / 120);
    this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
    this.draw();
  }
  key(event) {
    const turn = { ArrowLeft: [-0.15, 0], ArrowRight: [0.15, 0], ArrowUp: [0, -0.15], ArrowDown: [0, 0.15] }[event.key];
    if (turn) this.rotate(...turn);
    else if (event.key === "+" || event.key === "=") this.zoom *= 1.15;
    else if (event.key === "-") this.zoom /= 1.15;
    else if (event.key === "0") this.reset();
    else return;
    event.preventDefault();
    this.draw();
  }
  draw() {
    const width = this.element.clientWidth;
    if (!width || !this.structure) return;
    const canvas = this.canvas, context = canvas.getContext("2d"), ratio = window.devicePixelRatio || 1, height = Math.min(HEIGHT, width);
    canvas.width = width * ratio; canvas.height = height * ratio; canvas.style.height = `${height}px`;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    const scale = (Math.min(width, height) / 2 / this.radius) * this.zoom, turn = this.turn;
    const flat = (p) => {
      const v = p.map((x, d) => x - this.center[d]);
      const [x, y, z] = turn.map((row) => row[0] * v[0] + row[1] * v[1] + row[2] * v[2]);
      return { x: width / 2 + x * scale, y: height / 2 - y * scale, z };
    };
    const seen = this.atoms.map(flat);
    context.lineWidth = 1; context.strokeStyle = color("soft");
    for (const [a, b] of this.edges) { const p = flat(a), q = flat(b); context.beginPath(); context.moveTo(p.x, p.y); context.lineTo(q.x, q.y); context.stroke(); }
    const things = seen.map((p, k) => ({ z: p.z, draw: () => this.ball(context, p, k, scale) }));
    const bond = color("soft");
    for (const [i, j] of this.bonds) things.push({ z: (seen[i].z + seen[j].z) / 2 - 0.05, draw: () => this.stick(context, seen[i], seen[j], scale, bond) });
    if (this.arrows && this.structure.errors && this.longest > 0) {
      const red = color("error");
      seen.forEach((p, k) => things.push({ z: p.z + 0.6, draw: () => this.arrow(context, p, k, flat, red) }));
    }
    things.sort((a, b) => a.z - b.z).forEach((thing) => thing.draw());
  }
  ball(context, p, k, scale) {
    const kind = this.kind(k), r = Math.max(2, kind.radius * 0.45 * scale);
    const shade = context.createRadialGradient(p.x - r * 0.35, p.y - r * 0.4, r * 0.1, p.x, p.y, r);
    shade.addColorStop(0, "#ffffff"); shade.addColorStop(0.35, kind.color); shade.addColorStop(1, kind.dark);
    context.fillStyle = shade; context.strokeStyle = kind.dark; context.lineWidth = 0.8;
    context.beginPath(); context.arc(p.x, p.y, r, 0, 7); context.fill(); context.stroke();
  }
  stick(context, p, q, scale, stroke) {
    context.strokeStyle = stroke; context.lineWidth = Math.max(1.5, 0.14 * scale); context.lineCap = "round";
    context.beginPath(); context.moveTo(p.x, p.y); context.lineTo(q.x, q.y); context.stroke();
  }
  arrow(context, p, k, flat, stroke) {
    const e = this.structure.errors.subarray(3 * k, 3 * k + 3);
    if (!(Math.hypot(...e) > 0.04 * this.longest)) return;
    const tip = flat(this.atoms[k].map((v, d) => v + (e[d] / this.longest) * 1.6)), angle = Math.atan2(tip.y - p.y, tip.x - p.x);
    context.strokeStyle = stroke; context.fillStyle = stroke; context.lineWidth = 2;
    context.beginPath(); context.moveTo(p.x, p.y); context.lineTo(tip.x, tip.y); context.stroke();
    context.beginPath(); context.moveTo(tip.x + 3 * Math.cos(angle), tip.y + 3 * Math.sin(angle));
    for (const side of [2.5, -2.5]) context.lineTo(tip.x + 7 * Math.cos(angle + side), tip.y + 7 * Math.sin(angle + side));
    context.fill();
  }
}
window.mace.Viewer = Viewer;

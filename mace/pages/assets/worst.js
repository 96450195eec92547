// The worst structures: a list by property and set, and the chosen one to be turned.
const { html, number, unpack, dataOf, chooser, switches, Viewer, heads, isChosenHead } = window.mace;
const data = dataOf("errors-data"), place = document.getElementById("worst");
const ROLES = { train: "training", valid: "validation", test: "test" }, MOST = 20;

function build(stage) {
  const among = (name) => (stage.worst[name] || []).map((k) => stage.suspects[k]).filter((s) => isChosenHead(s.head));
  const properties = stage.properties.filter((p) => among(p.name).length);
  if (!properties.length) return place.replaceChildren(html("p", { class: "soft", text: "No structure with labels was measured." }));
  const choice = { property: properties.some((p) => p.name === "forces") ? "forces" : properties[0].name, role: "all" };
  const viewer = new Viewer(), about = html("p", { class: "soft", "aria-live": "polite" }), list = html("div", { class: "scroll", tabindex: "0" });
  const roles = Object.keys(ROLES).filter((role) => stage.suspects.some((s) => s.role === role && isChosenHead(s.head)));
  const controls = html("div", { class: "controls" },
    chooser("rank by error of", properties.map((p) => [p.name, p.short === "F" ? "forces (largest of an atom)" : p.name]), choice.property, (v) => { choice.property = v; update(); }),
    roles.length > 1 ? chooser("among", [["all", "all sets"], ...roles.map((r) => [r, ROLES[r]])], "all", (v) => { choice.role = v; update(); }) : null);
  const buttons = html("div", { class: "controls" },
    ...[["turn left", "ArrowLeft", "\u2190"], ["turn right", "ArrowRight", "\u2192"], ["turn up", "ArrowUp", "\u2191"], ["turn down", "ArrowDown", "\u2193"], ["zoom in", "+", "+"], ["zoom out", "-", "\u2212"], ["reset", "0", "reset"]].map(
      ([label, key, sign]) => html("button", { type: "button", "aria-label": label, text: sign, onclick: () => viewer.key({ key, preventDefault() {} }) })),
    html("button", { type: "button", "aria-pressed": "true", text: "force errors", onclick(event) {
      viewer.arrows = !viewer.arrows;
      event.currentTarget.setAttribute("aria-pressed", String(viewer.arrows));
      viewer.draw();
    } }));
  const ofHead = (s, before) => (heads.all.length > 1 ? before + s.head : "");
  const says = (p, s) => (s.errors[p.name] === undefined ? "\u2013" : number(1000 * s.errors[p.name], 3));
  const show = (suspect, row) => {
    for (const other of list.querySelectorAll("tr[aria-selected]")) other.removeAttribute("aria-selected");
    row.setAttribute("aria-selected", "true");
    const words = `${suspect.where}: ${suspect.formula}, ${ROLES[suspect.role]}, ${suspect.type}${ofHead(suspect, ", head ")}`;
    about.textContent = `${words}. ${properties.map((p) => `${p.short} ${says(p, suspect)} ${p.errorUnit}`).join(", ")}${suspect.positions ? "" : ". There was no room to draw it."}`;
    viewer.element.hidden = buttons.hidden = !suspect.positions;
    if (!suspect.positions) return;
    suspect.unpacked ??= { numbers: unpack(suspect.numbers, Uint8Array), positions: unpack(suspect.positions, Float32Array), cell: suspect.cell,
      errors: suspect.forces ? unpack(suspect.forces, Float32Array) : null };
    viewer.show(suspect.unpacked, data.elements, words);
  };
  const update = () => {
    const found = among(choice.property).filter((s) => choice.role === "all" || s.role === choice.role).slice(0, MOST);
    const head = html("tr", {}, html("th", { scope: "col", text: "structure" }), ...properties.map((p) => html("th", { scope: "col", text: `${p.short} / ${p.errorUnit}` })), html("th", { scope: "col", text: "atoms" }));
    const rows = found.map((suspect) => {
      const row = html("tr", { onclick: () => show(suspect, row) }, html("td", {}, html("button", { type: "button", text: suspect.where }), html("br"), `${suspect.formula} \u00b7 ${ROLES[suspect.role]} \u00b7 ${suspect.type}${ofHead(suspect, " \u00b7 ")}`),
        ...properties.map((p) => html("td", { text: says(p, suspect) })), html("td", { text: String(suspect.atoms) }));
      return row;
    });
    list.replaceChildren(html("table", {}, html("caption", { class: "unseen", text: "worst structures" }), html("thead", {}, head), html("tbody", {}, ...rows)));
    if (rows.length) show(found[0], rows[0]);
  };
  const side = html("div", { class: "viewer" }, viewer.element, buttons, about);
  place.replaceChildren(controls, html("div", { class: "worst" }, list, side),
    html("p", { class: "soft", text: "Forces: length of the largest error of an atom; energies: error per atom, with its sign; others: root mean square. Arrows are errors of forces, the longest as long as 1.6 \u00c5." }));
  update();
}
if (data && place) {
  for (const kind of Object.values(data.elements)) {
    const parts = [1, 3, 5].map((k) => Math.round(parseInt(kind.color.slice(k, k + 2), 16) * 0.55));
    kind.dark = `rgb(${parts.join(",")})`;
  }
  document.addEventListener("stage", (event) => build(data.stages[event.detail]));
  build(data.stages[data.stages.length - 1]);
}

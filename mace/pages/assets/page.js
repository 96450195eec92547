// The choice of a head, the switch of the theme, buttons that copy, and how old the page is.
const { html, redrawAll, heads, chooser } = window.mace;
const root = document.documentElement, dark = window.matchMedia("(prefers-color-scheme: dark)");

const theme = document.querySelector(".theme");
if (theme) {
  const now = () => root.dataset.theme || (dark.matches ? "dark" : "light");
  const say = () => { theme.textContent = now() === "dark" ? "Light" : "Dark"; theme.setAttribute("aria-label", `Switch to the ${now() === "dark" ? "light" : "dark"} theme`); };
  theme.addEventListener("click", () => { root.dataset.theme = now() === "dark" ? "light" : "dark"; say(); redrawAll(); });
  dark.addEventListener("change", () => { say(); redrawAll(); });
  theme.hidden = false;
  say();
}
const links = document.querySelector("nav");
if (links && heads.all.length > 1) {
  links.prepend(chooser("head", [["", "all heads"], ...heads.all.map((head) => [head, head])], "", (head) => {
    heads.chosen = head;
    for (const part of document.querySelectorAll("[data-head]")) part.hidden = Boolean(head) && part.dataset.head !== head;
    document.dispatchEvent(new CustomEvent("head"));
  }));
}
// canvases hold colors, not names of colors: on paper they are those of the light theme
let before;
window.addEventListener("beforeprint", () => { before = root.dataset.theme; root.dataset.theme = "light"; redrawAll(); });
window.addEventListener("afterprint", () => { if (before) root.dataset.theme = before; else delete root.dataset.theme; redrawAll(); });

for (const button of document.querySelectorAll("button.copy")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const text = button.closest(".command").querySelector("pre");
    try {
      await navigator.clipboard.writeText(text.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(text);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}
const age = document.querySelector("[data-written]");
if (age) {
  const minutes = (Date.now() - Number(age.dataset.written)) / 60000, limit = Math.max(10, 5 * Number(age.dataset.every));
  const words = minutes < 1 ? "less than a minute" : minutes < 120 ? `${Math.round(minutes)} minutes` : `${Math.round(minutes / 60)} hours`;
  age.textContent = `This page was written ${words} ago.${minutes > limit ? " A run that goes on writes more often: it may have been killed." : " Load it again for the present state."}`;
}

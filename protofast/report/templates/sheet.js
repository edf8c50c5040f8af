"use strict";
// What every report's page does: light and dark, and marking in the contents where one is.
const one = (selector, within = document) => within.querySelector(selector);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
(() => {
  // ----- light and dark -----
  const root = document.documentElement;
  const theme = one("#theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const stored = () => { try { return localStorage.getItem("protofast-theme"); } catch { return null; } };
  const isDark = () => (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const label = () => { theme.textContent = isDark() ? "Light page" : "Dark page"; };
  if (["dark", "light"].includes(stored())) root.dataset.theme = stored();
  theme.hidden = false;
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("protofast-theme", root.dataset.theme); } catch { /* private window */ }
    label();
  });
  system.addEventListener("change", label);
  label();

  // ----- where we are -----
  const links = new Map(all(".rail nav a").map((link) => [link.hash.slice(1), link]));
  const watch = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const link = links.get(entry.target.id);
      if (entry.isIntersecting) {
        for (const other of links.values()) other.removeAttribute("aria-current");
        link.setAttribute("aria-current", "true");
      }
    }
  }, { rootMargin: "-20% 0px -75% 0px" });
  all("main > section[id]").forEach((section) => watch.observe(section));
})();

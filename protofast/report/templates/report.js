// The report works without this script, but for searching, enlarging and switching heat maps on.
(() => {
  // ----- predictions -----
  for (const article of all(".prediction")) {
    const buttons = all(".here", article);
    const spots = all(".spot", article);
    let chosen = buttons[0]?.dataset.heat;
    const show = (key, heated) => {
      chosen = key;
      article.classList.toggle("heated", heated);
      for (const spot of spots) spot.toggleAttribute("hidden", spot.dataset.spot !== key);
      for (const button of buttons) button.setAttribute("aria-pressed", String(heated && button.dataset.heat === key));
    };
    for (const button of buttons) {
      button.addEventListener("click", () => {
        show(button.dataset.heat, button.getAttribute("aria-pressed") !== "true");
      });
    }
    article.addEventListener("heat", (event) => show(chosen, event.detail));
  }
  const everyHeat = one("#heat-predictions");
  if (everyHeat) {
    everyHeat.hidden = false;
    everyHeat.addEventListener("click", () => {
      const on = everyHeat.getAttribute("aria-pressed") !== "true";
      everyHeat.setAttribute("aria-pressed", String(on));
      for (const article of all(".prediction")) article.dispatchEvent(new CustomEvent("heat", { detail: on }));
    });
  }
  for (const group of all(".predictions")) {
    const more = one(".more", group);
    if (!more) continue;
    const further = all(".further", group);
    const text = more.textContent;
    const open = (wanted) => {
      for (const item of further) item.hidden = !wanted;
      more.setAttribute("aria-expanded", String(wanted));
      more.textContent = wanted ? "Show fewer" : text;
    };
    more.hidden = false;
    more.addEventListener("click", () => open(more.getAttribute("aria-expanded") !== "true"));
    open(false);
    addEventListener("beforeprint", () => open(true));
  }
  if (matchMedia("(max-width: 40rem)").matches) {
    all(".cases .case + .case").forEach((details) => details.removeAttribute("open"));
  }

  // ----- gallery -----
  const gallery = one("#gallery");
  const cards = all(".prototype");
  const visible = () => all(".prototype", gallery).filter((card) => !card.hidden);
  if (gallery) {
    const heads = all(".class", gallery);
    const [search, chosen, order] = ["#search", "#class", "#order"].map((id) => one(id));
    const flagged = one("#flagged");
    const number = (card, key) => Number(card.dataset[key]);
    const orders = {
      number: (a, b) => number(a, "number") - number(b, "number"),
      weight: (a, b) => number(b, "weight") - number(a, "weight"),
      wins: (a, b) => number(b, "wins") - number(a, "wins"),
      foreign: (a, b) => number(b, "foreign") - number(a, "foreign"),
    };
    const original = [...gallery.children];
    const sort = () => {
      const compare = orders[order.value];
      gallery.classList.toggle("flat", Boolean(compare));
      gallery.append(...(compare ? [...cards].sort((a, b) => compare(a, b) || orders.number(a, b)) : original));
    };
    const filter = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      // A number is meant whole: 7 is neither 17 nor 70.
      const fitting = words.map((word) => /^\d+$/.test(word)
        ? (text) => text.match(/\d+/g)?.includes(word)
        : (text) => text.includes(word));
      const shown = new Map();
      let count = 0;
      for (const card of cards) {
        const fits = (!chosen.value || card.dataset.class === chosen.value)
          && (!flagged || !flagged.checked || card.dataset.flagged === "1")
          && fitting.every((fits) => fits(card.dataset.search));
        card.hidden = !fits;
        count += fits;
        if (fits) shown.set(card.dataset.class, true);
      }
      for (const head of heads) head.hidden = !shown.has(head.dataset.class);
      const whole = `${cards.length} prototype${cards.length === 1 ? "" : "s"}`;
      one("#shown").textContent = count === cards.length ? whole : `${count} of ${whole}`;
      one("#nothing").hidden = count > 0;
    };
    search.addEventListener("input", filter);
    chosen.addEventListener("change", filter);
    flagged?.addEventListener("change", filter);
    order.addEventListener("change", sort);
    one("#tools").addEventListener("submit", (event) => event.preventDefault());
    one("#reset").addEventListener("click", () => {
      search.value = "";
      chosen.value = "";
      if (flagged) flagged.checked = false;
      filter();
      search.focus();
    });
    const heat = one("#heat");
    heat.addEventListener("click", () => {
      const on = heat.getAttribute("aria-pressed") !== "true";
      heat.setAttribute("aria-pressed", String(on));
      gallery.classList.toggle("heated", on);
    });
    one("#tools").hidden = false;
    sort();
    filter();
  }

  // ----- one prototype, enlarged -----
  const dialog = one("#detail");
  const body = one("#detail-body");
  let current = null;
  const open = (card) => {
    current = card;
    body.replaceChildren(one("template", card).content.cloneNode(true));
    const toggle = one("[data-toggle-heat]", body);
    toggle?.addEventListener("click", () => {
      const on = toggle.getAttribute("aria-pressed") !== "true";
      toggle.setAttribute("aria-pressed", String(on));
      one(".portrait", body).classList.toggle("heated", on);
    });
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
    one("#detail-title").focus();
  };
  const step = (by) => {
    const among = visible().includes(current) ? visible() : cards;
    open(among[(among.indexOf(current) + by + among.length) % among.length]);
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (event.target === dialog) dialog.close();
    if (!button) return;
    if (button.dataset.open) open(one(`#prototype-${button.dataset.open}`));
    if (button.dataset.step) step(Number(button.dataset.step));
    if ("close" in button.dataset) dialog.close();
  });
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });

  // ----- the confusion matrix of many classes -----
  const field = one("#field");
  if (field) {
    const size = field.viewBox.baseVal.width;
    const names = all("#per-class tbody th").map((cell) => cell.textContent);
    const counts = new Map(all("[data-n]", field).map((dot) => [`${dot.getAttribute("y")},${dot.getAttribute("x")}`, dot.dataset.n]));
    const cursor = one("#field-cursor");
    let [row, column] = [0, 0];
    const read = () => {
      cursor.removeAttribute("hidden");
      cursor.setAttribute("x", column);
      cursor.setAttribute("y", row);
      const images = counts.get(`${row},${column}`) || "0";
      const what = row === column ? "named rightly" : `taken for ${names[column]}`;
      one("#field-text").textContent = `${names[row]}: ${images} ${images === "1" ? "image" : "images"} ${what}.`;
    };
    const inside = (value) => Math.min(size - 1, Math.max(0, value));
    field.addEventListener("pointermove", (event) => {
      const place = field.getBoundingClientRect();
      column = inside(Math.floor((event.clientX - place.left) / place.width * size));
      row = inside(Math.floor((event.clientY - place.top) / place.height * size));
      read();
    });
    field.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      if (!by) return;
      event.preventDefault();
      row = inside(row + by[0]);
      column = inside(column + by[1]);
      read();
    });
  }
})();

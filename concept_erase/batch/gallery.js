"use strict";
// Search, filter and sort. Without this the page shows everything in the order of the list.
(() => {
  const at = (id) => document.getElementById(id);
  const list = at("cards");
  if (!list) return;
  const plain = (text) => text.normalize("NFD").replace(/\p{M}/gu, "").toLowerCase();
  const number = (text) => (text === undefined ? null : Number(text));
  const cards = Array.from(list.children, (element, row) => ({
    element,
    row,
    name: element.dataset.name,
    ua: number(element.dataset.ua),
    ira: number(element.dataset.ira),
    chips: new Set(element.dataset.chips.split("\n")),
    text: plain(element.dataset.name + " " + element.querySelector(".becomes").textContent),
  }));
  const chips = Array.from(document.querySelectorAll("[data-chip]"));
  const names = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });
  const ways = {
    row: (a, b) => a.row - b.row,
    name: (a, b) => names.compare(a.name, b.name),
    ua: by("ua", 1), "-ua": by("ua", -1), ira: by("ira", 1), "-ira": by("ira", -1),
  };

  function by(key, way) { // what was not scored comes last, either way
    return (a, b) =>
      (a[key] === null) - (b[key] === null) || way * (a[key] - b[key]) || a.row - b.row;
  }

  function show() {
    const parts = plain(at("find").value).split(/\s+/).filter(Boolean);
    const wanted = chips.filter((chip) => chip.getAttribute("aria-pressed") === "true").map((chip) => chip.dataset.chip);
    let count = 0;
    for (const card of cards) {
      const fits = parts.every((part) => card.text.includes(part)) && wanted.every((chip) => card.chips.has(chip));
      if (card.element.hidden === fits) card.element.hidden = !fits;
      count += fits;
    }
    at("count").textContent = count === cards.length ? "" : `${count.toLocaleString("en")} of ${cards.length.toLocaleString("en")}`;
    at("nothing").hidden = count > 0;
  }

  function sort() {
    cards.sort(ways[at("sort").value] || ways.row);
    list.append(...cards.map((card) => card.element));
  }

  function clear() {
    at("find").value = "";
    chips.forEach((chip) => chip.setAttribute("aria-pressed", "false"));
    show();
    at("find").focus();
  }

  at("find").addEventListener("input", show);
  at("sort").addEventListener("change", sort);
  at("clear").addEventListener("click", clear);
  chips.forEach((chip) =>
    chip.addEventListener("click", () => {
      chip.setAttribute("aria-pressed", String(chip.getAttribute("aria-pressed") !== "true"));
      show();
    }),
  );
  document.addEventListener("keydown", (event) => {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName);
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      at("find").focus();
    }
    if (event.key === "Escape" && document.activeElement === at("find")) clear();
  });
  at("tools").hidden = false;
  sort(); // a browser may have kept what was typed before the page was loaded again
  show();
})();

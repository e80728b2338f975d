"use strict";
(() => {
  const bar = document.querySelector(".find"), list = document.querySelector(".versions");
  const part = (name) => bar.querySelector(`[data-${name}]`);
  const cards = [...list.children].map((element) => ({
    element,
    text: element.querySelector("h3").textContent.toLowerCase(),
    scores: JSON.parse(element.dataset.scores),
    tags: JSON.parse(element.dataset.tags),
    badge: element.querySelector("[data-gain]"),
  }));
  const value = (name, other) => (part(name) ? part(name).value : other);

  // ---- the order

  const signed = (number) => (number < 0 ? "−" : "+") + Math.abs(number).toFixed(1);
  function gain({ scores }) {
    const before = scores[Number(value("from", 0))], after = scores[Number(value("to", scores.length - 1))];
    return before === null || after === null ? null : after - before;
  }
  const KEYS = { differ: (change) => -Math.abs(change), gain: (change) => -change, loss: (change) => change };
  function sort() {
    const key = KEYS[value("sort", "text")];
    const order = cards.map((card) => ({ card, change: gain(card) })).sort((one, two) => {
      const byText = one.card.text < two.card.text ? -1 : 1;
      if (!key) return byText;
      if (one.change === null || two.change === null) return (one.change === null) - (two.change === null) || byText;
      return key(one.change) - key(two.change) || byText;
    });
    for (const { card, change } of order) {
      list.append(card.element);
      card.badge.hidden = change === null;
      card.badge.textContent = change === null ? "" : signed(change);
      card.badge.className = "tag " + (change > 0.5 ? "good" : change < -0.5 ? "bad" : "");
    }
    document.dispatchEvent(new Event("clipsmoved"));
  }

  // ---- the filter

  function filter() {
    const words = part("words").value.toLowerCase().split(/\s+/).filter(Boolean), tag = value("tag", "");
    let found = 0;
    for (const { element, text, tags } of cards) {
      const fits = words.every((word) => text.includes(word)) && (!tag || tags.includes(tag));
      element.hidden = !fits;
      found += fits;
    }
    part("found").textContent = `${found} of ${cards.length} prompts`;
    document.querySelector("[data-nothing]").hidden = found > 0;
  }

  for (const name of ["sort", "from", "to"]) if (part(name)) part(name).addEventListener("change", sort);
  part("words").addEventListener("input", filter);
  if (part("tag")) part("tag").addEventListener("change", filter);
  bar.hidden = false;
  sort();
  filter();

  // ---- another seed of a prompt

  list.addEventListener("click", (event) => {
    const button = event.target.closest("[data-seed]");
    if (!button) return;
    const card = button.closest(".pair"), index = Number(button.dataset.seed);
    for (const other of card.querySelectorAll("[data-seed]")) other.setAttribute("aria-pressed", String(other === button));
    for (const side of card.querySelectorAll(".side")) {
      const video = side.querySelector("video"), own = side.querySelector("[data-own]");
      video.dataset.clip = video.dataset.clips.split(" ")[index];
      if (own) own.textContent = video.dataset.totals.trim().split(" ")[index];
    }
    card.dispatchEvent(new Event("clipchange"));
  });
})();

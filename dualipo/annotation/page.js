"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const topics = JSON.parse($("topics").textContent);
  const needsReasons = document.body.dataset.reasons === "yes";
  const WORDS = {
    rating: [["good", "Good", "1"], ["normal", "Normal", "2"], ["bad", "Bad", "3"]],
    choice: [["a", "A", "a"], ["b", "B", "b"], ["tie", "Tie", "t"]],
  };
  const HOLD = 350;
  let annotator = "", view = null, active = 0, verdicts = {}, since = 0, busy = false, playing = true, timer = 0;

  // the token does its work once; it need not stay in the address bar.
  if (location.search) history.replaceState(null, "", "/");

  // ---- talking to the server

  async function post(path, content) {
    const response = await fetch(path, {
      method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(content),
    });
    const type = response.headers.get("content-type") || "";
    const answer = type.startsWith("application/json") ? await response.json() : { error: (await response.text()).trim() };
    if (!response.ok) throw new Error(typeof answer.error === "string" ? answer.error : "The server refused that.");
    return answer;
  }

  async function attempt(act) {
    if (busy) return;
    busy = true;
    try {
      await act();
      $("trouble").hidden = true;
    } catch (error) {
      const lost = error instanceof TypeError;
      say(lost ? "The server does not answer. Is `dualipo annotate` still running? Nothing you entered is lost." : error.message);
    } finally {
      busy = false;
    }
  }

  function say(words, wrong = true) {
    const place = $("work").hidden ? $("trouble") : $("message");
    place.textContent = words;
    place.classList.toggle("wrong", wrong);
    place.hidden = false;
  }

  // ---- what is entered and not saved yet outlives a reload

  const draftKey = () => `draft/${annotator}/${view.item.id}`;
  function keepDraft() {
    localStorage.setItem(draftKey(), JSON.stringify({ verdicts, reasons: reasons() }));
  }
  function readDraft() {
    try { return JSON.parse(localStorage.getItem(draftKey())); } catch { return null; }
  }

  // ---- showing

  const boxes = () => [...$("work").querySelectorAll("textarea")];
  const reasons = () => Object.fromEntries(boxes().map((box) => [box.dataset.box, box.value.trim()]));

  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "class") element.className = value; else element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  }

  function reasonBox(name, words) {
    const box = make("textarea", { rows: 1, maxlength: document.body.dataset.longest, "data-box": name, "aria-label": words, placeholder: words, spellcheck: "true" });
    box.addEventListener("input", () => { fit(box); keepDraft(); $("message").textContent = ""; });
    return box;
  }

  function fit(box) {
    box.style.height = "auto";
    box.style.height = `${box.scrollHeight + 2}px`;
  }

  function render(shown) {
    const before = view && view.item && view.item.id;
    view = shown;
    const item = shown.item;
    $("start").hidden = true;
    $("progress").hidden = false;
    $("who").textContent = annotator;
    $("work").hidden = !item;
    $("done").hidden = Boolean(item);
    const total = shown.answered + shown.left;
    $("bar").setAttribute("aria-valuemax", total);
    $("bar").setAttribute("aria-valuenow", shown.answered);
    $("bar").firstElementChild.style.width = `${total ? (100 * shown.answered) / total : 100}%`;
    $("count").textContent = `${shown.answered} of ${total} done`;
    $("message").textContent = "";
    if (!item) { stop(); $("clips").replaceChildren(); $("done").focus(); return; }
    since = performance.now();
    $("work").className = item.kind;
    $("prompt").textContent = item.prompt;
    showClips(item);
    showQuestions(item);
    const entered = readDraft() || item;
    verdicts = { ...entered.verdicts };
    for (const box of boxes()) box.value = entered.reasons[box.dataset.box] || "";
    const past = item.skipped || Object.keys(item.verdicts).length > 0;
    $("past").hidden = !past;
    $("past").textContent = item.skipped ? `Item ${shown.number}: skipped` : `Item ${shown.number}: your earlier answer`;
    $("back").disabled = !shown.back;
    $("forward").disabled = !shown.forward;
    boxes().forEach(fit);
    mark();
    activate(Math.max(item.questions.findIndex((name) => !verdicts[name]), 0));
    if (item.id !== before) { window.scrollTo(0, 0); $("prompt").focus({ preventScroll: true }); }
  }

  function showClips(item) {
    stop();
    $("clips").className = item.clips.length === 2 ? "two" : "one";
    $("clips").replaceChildren(...item.clips.map((clip, index) => {
      const side = item.kind === "choice" ? "ab"[index] : "";
      const video = make("video", { src: clip.url, playsinline: "", preload: "auto", "aria-label": side ? `Clip ${side.toUpperCase()}` : "The clip", disablepictureinpicture: "", tabindex: "-1" });
      video.muted = true;
      if (clip.tiny) video.classList.add("tiny");
      const screen = make("div", { class: "screen" }, video);
      if (side) screen.prepend(make("span", { class: `side ${side}`, "aria-hidden": "true" }, side.toUpperCase()));
      video.addEventListener("error", () => screen.classList.add("failed"));
      video.addEventListener("loadedmetadata", () => figure.style.setProperty("--shape", video.videoWidth / video.videoHeight));
      const figure = make("figure", { class: "clip" }, screen);
      if (side && needsReasons) figure.append(reasonBox(side, `What you see in ${side.toUpperCase()}, by itself`));
      return figure;
    }));
    startTogether();
  }

  function showQuestions(item) {
    $("questions").replaceChildren(...item.questions.map((name, index) => {
      const title = topics[name].title;
      const options = make("div", { class: "options", role: "radiogroup", "aria-label": title },
        ...WORDS[item.kind].map(([word, text, key]) => {
          const button = make("button", { type: "button", role: "radio", "aria-checked": "false", class: word, "data-word": word }, text, " ", make("kbd", {}, key));
          button.addEventListener("click", () => { activate(index); choose(word); });
          return button;
        }));
      const words = make("div", {}, make("div", { class: "title" }, title), make("div", { class: "hint" }, topics[name].hint));
      const row = make("div", { class: "question", "data-question": name }, words, options);
      if (item.kind === "rating" && needsReasons) row.append(reasonBox(name, `Why? What you see of ${title.toLowerCase()}`));
      row.addEventListener("focusin", () => { active = index; mark(); });
      return row;
    }));
  }

  const rows = () => [...document.querySelectorAll(".question")];

  function mark() {
    rows().forEach((row, index) => {
      const verdict = verdicts[row.dataset.question];
      row.classList.toggle("active", index === active);
      row.classList.toggle("answered", Boolean(verdict));
      for (const button of row.querySelectorAll("[role=radio]")) {
        button.setAttribute("aria-checked", String(button.dataset.word === verdict));
      }
    });
  }

  function activate(index) {
    active = Math.min(Math.max(index, 0), view.item.questions.length - 1);
    mark();
    rows()[active].scrollIntoView({ block: "nearest" });
  }

  function focusBox(box) {
    box.focus();
    box.setSelectionRange(box.value.length, box.value.length);
  }

  function choose(word) {
    const item = view.item, name = item.questions[active];
    verdicts[name] = word;
    keepDraft();
    $("message").textContent = "";
    mark();
    const box = rows()[active].querySelector("textarea");
    if (box && !box.value.trim()) { focusBox(box); return; }
    const next = item.questions.findIndex((question) => !verdicts[question]);
    if (next >= 0) activate(next);
    else {
      const empty = boxes().find((other) => !other.value.trim());
      if (empty) focusBox(empty);
    }
  }

  /** The first thing that is still open: focuses it and says so. */
  function open() {
    const item = view.item;
    for (const [index, name] of item.questions.entries()) {
      if (!verdicts[name]) {
        document.activeElement.blur();
        activate(index);
        return `${topics[name].title}: ${item.kind === "rating" ? "1, 2 or 3?" : "a, b or t?"}`;
      }
      const box = rows()[index].querySelector("textarea");
      if (box && !box.value.trim()) { focusBox(box); return "Why? A few words on what you see."; }
    }
    const empty = boxes().find((box) => !box.value.trim());
    if (empty) { focusBox(empty); return "A few words on what you see in this clip."; }
    return "";
  }

  const send = (given) => attempt(async () => {
    const key = draftKey(), seconds = (performance.now() - since) / 1000;
    const past = view.forward;
    let shown = await post("/api/answer", { annotator, item: view.item.id, seconds, ...given });
    localStorage.removeItem(key);
    if (past) shown = await post("/api/item", { annotator, item: past });
    render(shown);
  });

  function save() {
    if (!view || !view.item) return;
    const missing = open();
    if (missing) { say(missing, false); return; }
    send({ verdicts, reasons: reasons() });
  }

  const goTo = (item) => { if (item) attempt(async () => render(await post("/api/item", { annotator, item }))); };
  const back = () => { if (view) goTo(view.back); };
  const forward = () => { if (view) goTo(view.forward); };

  // ---- clips play in step: they start together and wait for each other at the end

  const videos = () => [...document.querySelectorAll("#clips video")];
  function stop() { clearTimeout(timer); for (const video of videos()) video.pause(); }
  function restart() {
    clearTimeout(timer);
    for (const video of videos()) { video.currentTime = 0; video.play().catch(() => {}); }
  }
  function startTogether() {
    const own = videos();
    let ready = 0;
    const alive = () => own.filter((video) => !video.error);
    for (const video of own) {
      video.playbackRate = video.defaultPlaybackRate = $("slow").getAttribute("aria-pressed") === "true" ? 0.4 : 1;
      video.addEventListener("canplaythrough", () => { ready += 1; if (ready === own.length && playing) restart(); }, { once: true });
      video.addEventListener("error", () => { if (playing && alive().length) restart(); });
      video.addEventListener("ended", () => {
        if (!playing || !alive().every((other) => other.ended)) return;
        clearTimeout(timer);
        timer = setTimeout(restart, HOLD);
      });
    }
  }
  function pause() {
    playing = !playing;
    $("play").firstChild.textContent = playing ? "Pause " : "Play ";
    $("play").setAttribute("aria-pressed", String(playing));
    if (!playing) { stop(); return; }
    if (videos().some((video) => video.ended)) restart();
    else for (const video of videos()) video.play().catch(() => {});
  }
  function slow() {
    const on = $("slow").getAttribute("aria-pressed") !== "true";
    $("slow").setAttribute("aria-pressed", String(on));
    for (const video of videos()) video.playbackRate = video.defaultPlaybackRate = on ? 0.4 : 1;
  }
  function guide(on = $("guide").hidden) {
    $("guide").hidden = !on;
    $("guide-button").setAttribute("aria-expanded", String(on));
    localStorage.setItem("guide", on ? "open" : "closed");
  }
  const help = () => $("help").showModal();
  const skip = () => { if (view && view.item) send({ verdicts: {}, reasons: reasons() }); };

  // ---- keys

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || $("help").open) return;
    const target = event.target, writing = target.matches("textarea, input");
    if (target.matches("textarea")) {
      if (event.key === "Escape") { target.blur(); event.preventDefault(); }
      if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); save(); }
    }
    if (writing || event.repeat) return;
    if (event.key === "?") { event.preventDefault(); help(); return; }
    if (event.key.toLowerCase() === "g") { guide(); return; }
    if (!view) return;
    if (event.key === "ArrowLeft") { event.preventDefault(); back(); return; }
    if (event.key === "ArrowRight") { event.preventDefault(); forward(); return; }
    if (!view.item) return;
    const key = event.key.toLowerCase();
    const option = WORDS[view.item.kind].find(([, , own]) => own === key);
    const acts = {
      enter: save, arrowup: () => activate(active - 1), arrowdown: () => activate(active + 1), " ": pause, s: slow, x: skip,
      r: () => { const box = rows()[active].querySelector("textarea") || boxes()[0]; if (box) focusBox(box); },
    };
    // a focused button keeps its own Enter and space.
    if (target.matches("button") && (key === "enter" || key === " ") && !target.matches("[role=radio]")) return;
    if (option) { event.preventDefault(); choose(option[0]); }
    else if (acts[key]) { event.preventDefault(); acts[key](); }
  });

  for (const [id, act] of Object.entries({ back, forward, save, skip, play: pause, slow, "help-button": help, "guide-button": () => guide(), "guide-close": () => guide(false) })) {
    $(id).addEventListener("click", act);
  }

  // ---- beginning

  const begin = () => attempt(async () => {
    const shown = await post("/api/item", { annotator });
    sessionStorage.setItem("annotator", annotator);
    localStorage.setItem("annotator", annotator);
    render(shown);
  });
  $("name-form").addEventListener("submit", (event) => {
    event.preventDefault();
    attempt(async () => { annotator = (await post("/api/name", { annotator: $("name").value })).name; }).then(() => { if (annotator) begin(); });
  });
  guide(localStorage.getItem("guide") === "open" || (!localStorage.getItem("guide") && innerWidth >= 1500));
  annotator = sessionStorage.getItem("annotator") || "";
  if (annotator) begin();
  else { $("start").hidden = false; $("name").value = localStorage.getItem("annotator") || ""; $("name").focus(); }
})();

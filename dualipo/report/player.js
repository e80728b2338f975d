"use strict";
(() => {
  // Clips in sight share one clock: they start together, wait until all have ended, and start again together, so they
  // cannot drift apart. Clips out of sight are let go, since a browser plays only some dozens at once.
  const HOLD = 350, SLOW = 0.4, APART = 0.25, PATIENCE = 1500;
  const controls = document.querySelector("[data-player]");
  const groups = [...document.querySelectorAll(".pair")].map((element) => ({
    element, videos: [...element.querySelectorAll("video")], visible: false,
  })).filter(({ videos }) => videos.length);
  if (!controls || !groups.length) return;
  const part = (name) => controls.querySelector(`[data-${name}]`);
  const toggle = part("toggle"), slow = part("slow"), slider = part("frame"), at = part("at");

  const fps = (video) => Number(video.dataset.fps);
  const every = groups.flatMap(({ videos }) => videos);
  const rate = Math.max(...every.map(fps));
  const frames = Math.max(...every.map((video) => Math.round(video.dataset.frames * rate / fps(video))));
  // The middle of a frame, where rounding cannot show its neighbour; a shorter clip stays at its last.
  const moment = (video, frame) => Math.min((frame + 0.5) / rate, (video.dataset.frames - 0.5) / fps(video));

  let playing = !matchMedia("(prefers-reduced-motion: reduce)").matches;
  let frame = 0, turn = 0, timer = 0;

  const sleep = (time) => new Promise((done) => setTimeout(done, time));
  const event = (video, name) => new Promise((done) => video.addEventListener(name, done, { once: true }));
  const live = () => groups.filter(({ visible }) => visible).flatMap(({ videos }) => videos);
  // a seek takes a clip back to knowing its metadata alone.
  const ready = () => live().filter((video) => video.readyState >= 1);
  const lead = () => ready().find((video) => !video.ended) || ready()[0];

  const seek = (video, time) => {
    const done = event(video, "seeked");
    video.currentTime = time;
    return Promise.race([done, sleep(PATIENCE)]);
  };
  const play = (video) => {
    video.playbackRate = slow.getAttribute("aria-pressed") === "true" ? SLOW : 1;
    video.play().catch(() => {});
  };
  const attach = async (video) => {
    const clip = video.dataset.clip;
    if (clip !== undefined && video.dataset.held !== clip) {
      video.dataset.held = clip;
      video.src = "data:video/mp4;base64," + document.getElementById(`clip-${clip}`).textContent;
    }
    if (video.readyState < 2) await Promise.race([event(video, "loadeddata"), sleep(4 * PATIENCE)]);
  };
  const release = (video) => {
    video.pause();
    if (video.dataset.held === undefined) return;
    delete video.dataset.held;
    video.removeAttribute("src");
    video.load();
  };

  // ---- what everything does together

  const tell = (now) => {
    frame = Math.min(Math.max(now, 0), frames - 1);
    slider.value = frame;
    at.textContent = `frame ${frame + 1} of ${frames}`;
  };
  const label = () => { toggle.textContent = playing ? "Pause all" : "Play all"; };

  async function start(from) {
    const mine = ++turn;
    clearTimeout(timer);
    timer = 0;
    const videos = ready();
    for (const video of videos) video.pause();
    await Promise.all(videos.map((video) => seek(video, from ? moment(video, from) : 0)));
    if (mine === turn && playing) for (const video of videos) play(video);
  }
  function show(now) {
    turn += 1;
    clearTimeout(timer);
    timer = 0;
    playing = false;
    label();
    tell(now);
    for (const video of ready()) {
      video.pause();
      video.currentTime = moment(video, frame);
    }
  }
  const current = () => {
    const first = lead();
    return first ? Math.floor(first.currentTime * rate + 0.01) : frame;
  };
  function turnOver() {
    if (playing) return show(current());
    playing = true;
    label();
    start(frame >= frames - 1 ? 0 : frame);
  }

  // ---- in sight and out of sight

  async function join(group) {
    await Promise.all(group.videos.map(attach));
    if (!group.visible) return;
    const others = ready().filter((video) => !group.videos.includes(video));
    const first = others.find((video) => !video.paused && !video.ended);
    if (playing && !first) {
      // at the end the others wait for their next start.
      if (!timer) start(0);
      return;
    }
    for (const video of group.videos) {
      video.currentTime = playing ? first.currentTime : moment(video, frame);
      if (playing) play(video);
    }
  }
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const group = groups.find(({ element }) => element === entry.target);
      if (group.visible === entry.isIntersecting) continue;
      group.visible = entry.isIntersecting;
      if (group.visible) join(group);
      else group.videos.forEach(release);
    }
  }, { rootMargin: "120px 0px" });
  for (const group of groups) {
    seen.observe(group.element);
    group.element.addEventListener("clipchange", () => { if (group.visible) join(group); });
    for (const video of group.videos) {
      video.loop = false;
      video.addEventListener("ended", () => {
        if (!playing || timer || !ready().every((other) => other.ended || other.paused)) return;
        timer = setTimeout(() => start(0), HOLD);
      });
    }
  }
  // a clip that is moved within the page stops.
  document.addEventListener("clipsmoved", () => { if (playing) start(frame); });
  setInterval(() => {
    const first = lead();
    if (!playing || !first) return;
    tell(current());
    if (first.ended || first.seeking) return;
    for (const video of ready()) {
      const apart = Math.abs(video.currentTime - Math.min(first.currentTime, video.duration));
      if (apart > APART && !video.ended && !video.seeking) video.currentTime = first.currentTime;
    }
  }, 60);

  // ---- buttons and keys

  controls.hidden = false;
  slider.max = frames - 1;
  tell(0);
  label();
  const acts = {
    " ": turnOver,
    "ArrowLeft": () => show((playing ? current() : frame) - 1),
    "ArrowRight": () => show((playing ? current() : frame) + 1),
    "Home": () => show(0),
    "End": () => show(frames - 1),
    "s": () => slow.click(),
  };
  toggle.addEventListener("click", turnOver);
  part("back").addEventListener("click", acts.ArrowLeft);
  part("on").addEventListener("click", acts.ArrowRight);
  slider.addEventListener("input", () => show(Number(slider.value)));
  slow.addEventListener("click", () => {
    const on = slow.getAttribute("aria-pressed") !== "true";
    slow.setAttribute("aria-pressed", String(on));
    for (const video of ready()) video.playbackRate = on ? SLOW : 1;
  });
  document.addEventListener("keydown", (pressed) => {
    const act = acts[pressed.key.length === 1 ? pressed.key.toLowerCase() : pressed.key];
    if (!act || pressed.ctrlKey || pressed.metaKey || pressed.altKey || !ready().length) return;
    const own = pressed.target.closest("input, select, textarea, [contenteditable]");
    const presses = pressed.key === " " && pressed.target.closest("button, summary, a");
    if (presses || (own && (own !== slider || !"s ".includes(pressed.key)))) return;
    pressed.preventDefault();
    act();
  });
})();

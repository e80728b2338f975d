"use strict";
(() => {
  // Both clips of a pair start together, wait for each other at the end, and start again: they cannot drift apart.
  const HOLD = 350;
  const controls = document.querySelector(".controls");
  const pairs = [...document.querySelectorAll(".pair")].map((element) => ({
    element, videos: [...element.querySelectorAll("video")], visible: false, timer: 0,
  }));
  if (!controls || !pairs.length) return;
  controls.hidden = false;
  const toggle = controls.querySelector("[data-toggle]");
  const slow = controls.querySelector("[data-slow]");
  let playing = !matchMedia("(prefers-reduced-motion: reduce)").matches;

  const restart = (pair) => {
    clearTimeout(pair.timer);
    for (const video of pair.videos) {
      video.currentTime = 0;
      video.play().catch(() => {});
    }
  };
  const apply = (pair) => {
    clearTimeout(pair.timer);
    for (const video of pair.videos) video.pause();
    if (!playing || !pair.visible) return;
    if (pair.videos.some((video) => video.ended)) restart(pair);
    else for (const video of pair.videos) video.play().catch(() => {});
  };
  for (const pair of pairs) {
    for (const video of pair.videos) {
      video.loop = false;
      video.addEventListener("ended", () => {
        if (!playing || !pair.videos.every((other) => other.ended)) return;
        clearTimeout(pair.timer);
        pair.timer = setTimeout(() => restart(pair), HOLD);
      });
    }
  }
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const pair = pairs.find(({ element }) => element === entry.target);
      pair.visible = entry.isIntersecting;
      apply(pair);
    }
  });
  pairs.forEach(({ element }) => seen.observe(element));

  const label = () => { toggle.textContent = playing ? "Pause all" : "Play all"; };
  toggle.addEventListener("click", () => { playing = !playing; label(); pairs.forEach(apply); });
  slow.addEventListener("click", () => {
    const on = slow.getAttribute("aria-pressed") !== "true";
    slow.setAttribute("aria-pressed", String(on));
    for (const { videos } of pairs) for (const video of videos) video.playbackRate = on ? 0.4 : 1;
  });
  label();
})();

/* Follows a training run: asks for its progress every two seconds, and reloads the page when the run
   is over, because then it has more to show. */
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const root = document.querySelector("[data-progress-url]");
  if (!root) return;

  const show = (progress) => {
    for (const element of root.querySelectorAll("[data-field]")) {
      const text = progress[element.dataset.field] ?? "";
      if (element.textContent !== text) element.textContent = text;
    }
    const bar = root.querySelector("progress");
    if (progress.fraction === null) bar.removeAttribute("value");
    else bar.value = progress.fraction;
    const chart = root.querySelector("[data-figure]");
    if (chart && progress.figure) window.lyraCharts.draw(chart, progress.figure);
    const log = root.querySelector("pre.log");
    if (log) log.scrollTop = log.scrollHeight;
  };

  const follow = async () => {
    if (document.hidden) return;
    const notice = root.querySelector("[data-notice]");
    try {
      const response = await fetch(root.dataset.progressUrl, {
        headers: { Accept: "application/json" },
      });
      if (!response.ok) throw new Error(String(response.status));
      const progress = await response.json();
      notice.hidden = true;
      if (progress.status !== root.dataset.status) window.location.reload();
      else show(progress);
    } catch {
      notice.hidden = false;
    }
  };

  setInterval(follow, 2000);
});

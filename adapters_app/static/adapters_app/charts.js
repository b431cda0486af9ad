/* Draws the figures a page carries as JSON. A colour written as “--name” is the page's own CSS
   variable, so a figure follows light and dark like everything around it. */
"use strict";

(() => {
  const drawn = new Map();

  const themed = (value, style) => {
    if (typeof value === "string" && value.startsWith("--")) {
      return style.getPropertyValue(value).trim();
    }
    if (Array.isArray(value)) return value.map((item) => themed(item, style));
    if (value && typeof value === "object") {
      return Object.fromEntries(
        Object.entries(value).map(([key, item]) => [key, themed(item, style)]),
      );
    }
    return value;
  };

  const draw = (element, figure) => {
    drawn.set(element, figure);
    const { data, layout } = themed(figure, getComputedStyle(document.documentElement));
    Plotly.react(element, data, layout, { displayModeBar: false, responsive: true });
  };

  const redraw = () => drawn.forEach((figure, element) => draw(element, figure));

  document.addEventListener("DOMContentLoaded", () => {
    for (const element of document.querySelectorAll("[data-figure]")) {
      draw(element, JSON.parse(document.getElementById(element.dataset.figure).textContent));
    }
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
    new MutationObserver(redraw).observe(document.documentElement, {
      attributeFilter: ["data-theme"],
    });
    for (const details of document.querySelectorAll("details")) {
      details.addEventListener("toggle", redraw);
    }
  });

  window.lyraCharts = { draw };
})();

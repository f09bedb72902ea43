// Draws the charts of a page: each <div class="chart" data-kind="scatter"> holds its data as JSON, and the SVG goes in beside.
//
// What the charts of a page share (the paths of photos) is in the element #shared.

"use strict";

(() => {
  const shared = JSON.parse(document.getElementById("shared").textContent);

  function prepare(place) {
    const data = {...shared, ...JSON.parse(place.querySelector("script").textContent)};
    let width = 0;
    return () => {
      const now = Math.floor(place.clientWidth);
      if (!now || now === width) return;
      width = now;
      place.querySelector("svg")?.remove();
      place.append(charts[place.dataset.kind](data, width));
    };
  }

  // One after another, each in a task of its own: a page of a hundred charts answers while it is drawn.
  const todo = new Map([...document.querySelectorAll(".chart")].map((place) => [place, prepare(place)]));
  const watcher = new ResizeObserver((changes) => {
    for (const {target} of changes) setTimeout(todo.get(target));
  });
  for (const place of todo.keys()) watcher.observe(place);
})();

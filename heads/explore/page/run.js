// A run: predicted against given, its worst errors as photos; or two runs, photo by photo.
"use strict";

(() => {
  const { h, said } = Explore;
  const WORST = 24;

  const figure = (run, task) => {
    const found = run.figures.find((each) => each.task === task);
    if (!found || found.mean === null) return "";
    const interval = found.low === null || found.low === undefined ? "" : ` (95 %: ${said(found.low)} to ${said(found.high)})`;
    return `${found.metric} ${said(found.mean)}${interval}`;
  };

  const scatterOf = (a, b, axes, diagonal, say) => {
    const photos = d3.range(Explore.study.n).filter((photo) => typeof a.values[photo] === "number" && typeof b.values[photo] === "number");
    if (!photos.length) return { photos, element: h("p", { class: "quiet" }, "No photo has both.") };
    const accent = d3.rgb(Explore.ink("--accent"));
    const scatter = Explore.scatter({
      points: { photos, xs: photos.map((photo) => a.values[photo]), ys: photos.map((photo) => b.values[photo]) },
      colour: () => accent,
      axes,
      diagonal,
      height: 420,
      say,
      onPick: (photo) => (location.hash = `#photo/${photo}`),
      label: `${axes.y} against ${axes.x}, ${Explore.counted(photos.length, "photo")}. Arrow keys go from photo to photo, Enter opens one.`,
    });
    Explore.scattered = scatter;
    return { photos, element: scatter.element };
  };

  /** Given classes down, predicted classes across: how many photos. */
  const confusion = (given, predicted) => {
    const { study } = Explore;
    const names = [...new Set([...given.names, ...predicted.names])];
    const counts = new Map();
    for (let photo = 0; photo < study.n; photo++) {
      const key = JSON.stringify([study.value(given, photo), study.value(predicted, photo)]);
      counts.set(key, (counts.get(key) ?? 0) + 1);
    }
    const cell = (row, column) => counts.get(JSON.stringify([row, column])) ?? 0;
    return h(
      "table",
      {},
      h("caption", {}, "Photos by what people said (down) and what the run predicts (across)"),
      h("thead", {}, h("tr", {}, h("th", {}, ""), names.map((name) => h("th", { scope: "col", class: "number" }, name)))),
      h("tbody", {}, names.map((row) => h("tr", {}, h("th", { scope: "row" }, row), names.map((column) => h("td", { class: "number" }, cell(row, column) || "·"))))),
    );
  };

  Explore.run = (view, params, go) => {
    const { study } = Explore;
    if (!study.runs.length) {
      view.replaceChildren(h("h2", {}, "Run"), h("p", {}, "There is no run here: start with --run RUN."));
      return;
    }
    const number = study.runs[params.get("run") ?? 0] ? Number(params.get("run") ?? 0) : 0;
    const run = study.runs[number];
    const task = run.tasks.includes(params.get("task")) ? params.get("task") : run.tasks[0];
    const others = study.runs.map((each, other) => [other, each.name]).filter(([other]) => other !== number && study.runs[other].tasks.includes(task));
    const other = others.some(([each]) => String(each) === params.get("with")) ? Number(params.get("with")) : null;
    const label = study.with("label", { task })[0];
    const predicted = study.with("prediction", { task, run: number })[0];
    const error = study.with("error", { task, run: number })[0];

    const parts = [];
    if (other === null) {
      parts.push(h("p", {}, run.title, figure(run, task) ? `. ${task}: ${figure(run, task)}` : ""));
      if (run.caveats.length) parts.push(h("p", { class: "quiet" }, run.caveats.join(" ")));
      if (label && predicted && predicted.kind === "text" && label.kind === "text") parts.push(confusion(label, predicted));
      else if (label && predicted && label.kind === "number") {
        const say = (photo) => `given ${Explore.valueOf(label, photo)}, predicted ${Explore.valueOf(predicted, photo)}`;
        parts.push(scatterOf(label, predicted, { x: "given", y: "predicted" }, true, say).element);
      } else parts.push(h("p", { class: "quiet" }, "The labels of this run are not among those of the page."));
      if (error) {
        const known = d3.range(study.n).filter((photo) => error.values[photo] !== null);
        const worst = study.sorted(known, error, true).slice(0, WORST);
        const below = (photo) => `${label ? `given ${Explore.valueOf(label, photo)}, ` : ""}predicted ${Explore.valueOf(predicted, photo)}`;
        parts.push(h("h3", {}, "Where it is most wrong"), Explore.grid(worst.map((photo) => Explore.tile(photo, below(photo))), { label: "Worst predictions", small: true }));
      }
    } else {
      const theirs = study.with("error", { task, run: other })[0];
      const rival = study.runs[other];
      const say = (photo) => `off by ${Explore.valueOf(error, photo)} (${run.name}), ${Explore.valueOf(theirs, photo)} (${rival.name})`;
      const { photos, element } = scatterOf(error, theirs, { x: `error of ${run.name}`, y: `error of ${rival.name}` }, true, say);
      const gap = (photo) => theirs.values[photo] - error.values[photo];
      const ordered = photos.slice().sort((a, b) => gap(b) - gap(a));
      const better = ordered.filter((photo) => gap(photo) > 0);
      const worse = ordered.filter((photo) => gap(photo) < 0).reverse();
      const half = (title, list) => h("section", {}, h("h3", {}, title), Explore.grid(list.slice(0, 12).map((photo) => Explore.tile(photo, say(photo))), { label: title, small: true }));
      parts.push(
        h("p", {}, `${task}: ${run.name} ${figure(run, task)}; ${rival.name} ${figure(rival, task)}. ${run.name} is nearer on ${better.length.toLocaleString("en")} of ${Explore.counted(photos.length, "photo")}. `, h("span", { class: "quiet" }, "Whether that is more than chance: heads compare.")),
        element,
        h("div", { class: "two" }, half(`${run.name} is nearer`, better), half(`${rival.name} is nearer`, worse)),
      );
    }
    view.replaceChildren(
      h("h2", { class: "unseen" }, "Run"),
      h(
        "div",
        { class: "bar" },
        Explore.choice("Run", study.runs.map((each, i) => [i, each.name]), number, (value) => go({ run: value, with: "" })),
        Explore.choice("Of", run.tasks.map((each) => [each, each]), task, (value) => go({ task: value })),
        others.length ? Explore.choice("Beside", [["", "(what people said)"], ...others], other ?? "", (value) => go({ with: value })) : null,
      ),
      ...parts,
    );
  };
})();

// A class or a rating, and the photos that have most of it: as a run predicts them from photos it has not seen, beside
// what people said.
"use strict";

(() => {
  const { h } = Explore;
  const MOST = 60;

  /** What can be picked: classes of a run or of a label, and ratings. */
  const things = () => {
    const { study } = Explore;
    const found = new Map();
    // A class by its task, too: two tasks may have a class of the same name.
    const add = (task, of, more) => {
      const key = JSON.stringify([task, of]);
      found.set(key, { ...found.get(key), task, name: of || task, ...more });
    };
    for (const column of study.with("label")) {
      if (column.kind === "text") for (const [c, name] of column.names.entries()) add(column.task, name, { label: column, is: c });
      else add(column.task, "", { label: column });
    }
    for (const column of study.columns) {
      if (column.role === "probability") add(column.task, column.of, { [`run${column.run}`]: column });
      if (column.role === "prediction" && column.kind === "number") add(column.task, "", { [`run${column.run}`]: column });
    }
    const all = [...found.values()];
    const many = d3.rollup(all, (same) => same.length, (each) => each.name);
    return all.map((each) => ({ ...each, name: many.get(each.name) > 1 ? `${each.name} (${each.task})` : each.name }));
  };

  Explore.emotion = (view, params, go) => {
    const { study } = Explore;
    const all = things();
    if (!all.length) {
      view.replaceChildren(h("h2", {}, "Most and least"), h("p", {}, "There are no labels and no runs here: start with --labels or --run."));
      return;
    }
    const thing = all.find((each) => each.name === params.get("of")) ?? all[0];
    const runs = study.runs.map((run, number) => [number, run.name]).filter(([number]) => thing[`run${number}`]);
    const number = runs.some(([each]) => String(each) === params.get("run")) ? Number(params.get("run")) : runs[0]?.[0];
    const predicted = number === undefined ? null : thing[`run${number}`];
    const least = params.get("least") === "1";

    const column = (title, photos, below, why) =>
      h(
        "section",
        {},
        h("h3", {}, title),
        photos.length ? Explore.grid(photos.slice(0, MOST).map((photo) => Explore.tile(photo, below(photo))), { label: title, small: true }) : h("p", { class: "quiet" }, why),
      );

    const photos = d3.range(study.n);
    const by = predicted ? study.sorted(photos, predicted, !least).filter((photo) => predicted.values[photo] !== null) : [];
    let said = [];
    let belowLabel = () => "";
    if (thing.label && thing.is !== undefined) {
      // Photos of the class, those first that the run is surest of: a class by itself has no order.
      said = photos.filter((photo) => (thing.label.values[photo] === thing.is) !== least && thing.label.values[photo] !== null);
      if (predicted) said = study.sorted(said, predicted, !least);
      belowLabel = (photo) => study.value(thing.label, photo);
    } else if (thing.label) {
      said = study.sorted(photos, thing.label, !least).filter((photo) => thing.label.values[photo] !== null);
      belowLabel = (photo) => Explore.valueOf(thing.label, photo);
    }
    const isClass = predicted?.role === "probability";
    const belowRun = (photo) => (isClass ? `chance ${Explore.valueOf(predicted, photo)}` : Explore.valueOf(predicted, photo));
    const word = least ? "Least" : "Most";
    view.replaceChildren(
      h("h2", { class: "unseen" }, "Most and least"),
      h(
        "div",
        { class: "bar" },
        Explore.choice("Photos with the", [["", "most"], ["1", "least"]], least ? "1" : "", (value) => go({ least: value })),
        Explore.choice("of", all.map((each) => [each.name, each.name]), thing.name, (value) => go({ of: value })),
        runs.length > 1 ? Explore.choice("as predicted by", runs, number, (value) => go({ run: value })) : null,
      ),
      h(
        "div",
        { class: "two tight" },
        column(
          predicted ? `${word} ${thing.name}, predicted by ${study.runs[number].name}` : "Predictions",
          by,
          belowRun,
          "No run predicts it: start with --run.",
        ),
        column(
          thing.is !== undefined ? `${least ? "Not" : "Said to be"} ${thing.name} by the labels` : `${word} ${thing.name} by the labels`,
          said,
          belowLabel,
          "The labels do not say it.",
        ),
      ),
      h("p", { class: "quiet" }, "Predictions are out of fold: by models that had not seen the photo."),
    );
  };
})();

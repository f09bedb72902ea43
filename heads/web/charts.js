// The charts of our pages: each is a function of its data and a width in pixels that returns an SVG element.
//
// They need d3 and Observable Plot (heads/web/__init__.py). Colours are variables of the page, so that a chart follows
// its light and dark mode. All words (names of photos, tasks, runs) are put in as text, never as markup.
//
//   charts.scatter({paths, given, predicted}, 300)
//
// `label` in the data says what is drawn, for whoever cannot see it. Numbers that are not known are null.

"use strict";

const charts = (() => {
  const INK = "var(--ink)", QUIET = "var(--quiet)", LINE = "var(--line)", ACCENT = "var(--accent)", MARK = "var(--mark)";
  const LONGEST = 44;  // letters of a name in a tip: more would be wider than a phone

  const number = (x) => x === null ? "–" : d3.format(".4~g")(x).replace("−", "-");
  const signed = (x) => (x > 0 ? "+" : "") + x.toFixed(3);
  const square = (width) => width - 44 + 64;  // the height of a plot whose axes are as long as each other
  const short = (name) => name.length > LONGEST ? "…" + name.slice(1 - LONGEST) : name;  // the end tells photos apart

  /** A plot in the page's own type and colours. */
  function plot({label, ...options}) {
    const svg = Plot.plot({
      ariaLabel: label,
      style: {fontSize: "12px", fontFamily: "inherit", color: QUIET, background: "none", overflow: "visible"},
      marginTop: 26,
      marginBottom: 38,
      ...options,
    });
    svg.setAttribute("role", "img");
    return svg;
  }

  /** A tip beside the nearest of `data` that says `title`; `over` places it: {x, y, fx, fy}. */
  const tip = (data, over, title, pointer = Plot.pointer) =>
    Plot.tip(data, pointer({...over, title, stroke: LINE, fill: "var(--paper)", pathFilter: "none", fontSize: 12, lineHeight: 1.3, lineWidth: 40}));

  /** Both ends of some numbers, with a little room around them. */
  function ends(values) {
    const [low, high] = d3.extent(values);
    const room = 0.05 * (high - low) || 0.5;
    return [low - room, high + room];
  }

  /** One dot for each photo: what is predicted by what is given, with the line where both are equal. */
  function scatter({paths, given, predicted, label}, width) {
    const known = d3.range(paths.length).filter((i) => given[i] !== null && predicted[i] !== null);
    const domain = ends([...known.map((i) => given[i]), ...known.map((i) => predicted[i])]);
    const at = {x: (i) => given[i], y: (i) => predicted[i]};
    return plot({
      label, width, height: square(width), marginLeft: 36, marginRight: 8,
      x: {domain, ticks: 5, label: "given"},
      y: {domain, ticks: 5, label: "predicted"},
      marks: [
        Plot.line([domain, domain].map((_, end) => [domain[end], domain[end]]), {stroke: LINE, strokeWidth: 1.5}),
        Plot.dot(known, {...at, r: 2.2, fill: ACCENT, fillOpacity: Math.min(0.65, 20 / Math.sqrt(known.length))}),
        Plot.dot(known, Plot.pointer({...at, r: 4, stroke: INK, strokeWidth: 1.5})),
        tip(known, at, (i) => `${short(paths[i])}\ngiven ${number(given[i])}\npredicted ${number(predicted[i])}`),
      ],
    });
  }

  /** Precision by recall as the threshold falls; `base` is where guessing would be. */
  function precision({recall, precision, threshold, base, label}, width) {
    const points = d3.range(recall.length), at = {x: (i) => recall[i], y: (i) => precision[i]};
    return plot({
      label, width, height: square(width), marginLeft: 36, marginRight: 8,
      x: {domain: [0, 1], ticks: 5, label: "recall"},
      y: {domain: [0, 1], ticks: 5, label: "precision"},
      marks: [
        Plot.ruleY([base], {stroke: LINE, strokeWidth: 1.5}),
        Plot.line(points, {...at, curve: "step-before", stroke: ACCENT, strokeWidth: 1.6}),
        Plot.dot(points, Plot.pointerX({...at, r: 4, stroke: INK, strokeWidth: 1.5})),
        tip(points, at, (i) => `probability from ${number(threshold[i])}\nrecall ${number(recall[i])}\n` +
          `precision ${number(precision[i])}`, Plot.pointerX),
      ],
    });
  }

  /** A loss by epoch: a line for each model, a dot where its weights were kept, and what saying the mean loses. */
  function curves({models, steep, baseline, label}, width) {
    const points = models.flatMap(({name, from, loss, kept}) =>
      loss.map((y, i) => ({name, x: from + i, y, kept: kept.includes(from + i)})).filter(({y}) => y !== null));
    const losses = points.map(({y}) => y), [low, high] = d3.extent(losses);
    // Of the baseline only what is near: a line far above would press the curves flat.
    const near = baseline !== null && baseline < high + (high - low) && baseline > low - (high - low);
    const drawn = near ? [...losses, baseline] : losses;
    return plot({
      label, width, height: Math.min(300, 0.62 * width + 40), marginLeft: 52, marginRight: 10,
      x: {label: "epoch", ticks: Math.min(8, d3.max(points, ({x}) => x) || 1), tickFormat: "d"},
      y: {label: "loss", domain: steep ? [low / 1.1, d3.max(drawn) * 1.1] : ends(drawn), type: steep ? "log" : "linear",
          ticks: 5, tickFormat: "~g"},
      marks: [
        near ? Plot.ruleY([baseline], {stroke: QUIET, strokeDasharray: "3 3"}) : null,
        near ? Plot.text([baseline], {y: (y) => y, text: () => "saying the mean", frameAnchor: "right", textAnchor: "end",
                                      lineAnchor: "bottom", dy: -4, fill: QUIET, stroke: "var(--paper)", strokeWidth: 4}) : null,
        Plot.line(points, {x: "x", y: "y", z: "name", stroke: ACCENT, strokeOpacity: Math.max(0.25, 1 / Math.sqrt(models.length)),
                           strokeWidth: 1.3}),
        Plot.dot(points.filter(({kept}) => kept), {x: "x", y: "y", r: 2.6, fill: MARK}),
        // The model under the pointer, whole and in front.
        Plot.dot(points, Plot.pointer({x: "x", y: "y", r: 4, stroke: INK, strokeWidth: 1.5})),
        tip(points, {x: "x", y: "y"}, ({name, x, y, kept}) => `${short(name)}\nepoch ${x}: ${number(y)}${kept ? "\nkept" : ""}`),
      ],
    });
  }

  /** Differences to the first run with their intervals, by task, beside a line at 0. */
  function differences({rows, label}, width) {
    const several = new Set(rows.map(({run}) => run)).size > 1;
    const name = ({task, run}) => several ? `${task}, ${run}` : task;
    const letters = Math.min(several ? 34 : 26, Math.floor(width / 17));
    const cut = (text) => text.length > letters ? text.slice(0, letters - 1) + "…" : text;
    const known = rows.map((row, i) => ({...row, place: String(i)})).filter(({difference}) => difference !== null);
    const names = new Map(known.map((row) => [row.place, cut(name(row))]));
    const domain = ends([0, ...known.flatMap(({low, high}) => [low, high])]);
    const at = {x: "difference", y: "place"};
    return plot({
      label, width, height: 52 + 30 * known.length, marginTop: 8, marginBottom: 42, marginRight: 12,
      marginLeft: 14 + 7 * Math.max(...[...names.values()].map((text) => text.length)),
      x: {domain, ticks: Math.min(7, Math.max(2, (width - 7 * letters) / 90)), label: "difference"},
      y: {type: "band", domain: known.map(({place}) => place), tickFormat: (place) => names.get(place), label: null, tickSize: 0},
      marks: [
        Plot.ruleX([0], {stroke: INK, strokeWidth: 1}),
        Plot.ruleY(known, {x1: "low", x2: "high", y: "place", stroke: ACCENT, strokeWidth: 5, strokeOpacity: 0.4, strokeLinecap: "round"}),
        Plot.dot(known, {...at, r: 5, fill: (d) => d.real ? "real" : "not", stroke: ACCENT, strokeWidth: 1.8}),
        tip(known, at, (d) => `${short(name(d))}\n${signed(d.difference)}, 95 %: ${signed(d.low)} to ${signed(d.high)}\n` +
          `p ${d.p.toFixed(4)}, adjusted`, Plot.pointerY),
      ],
      color: {domain: ["real", "not"], range: [ACCENT, "var(--paper)"]},
    });
  }

  /** One dot for each photo: the error of one run by that of another, with the line where both are equal. */
  function errors({paths, given, said, first, second, runs, label}, width) {
    const known = d3.range(paths.length).filter((i) => first[i] !== null && second[i] !== null);
    const domain = [0, 1.05 * d3.max(known, (i) => Math.max(first[i], second[i])) || 1];
    const at = {x: (i) => first[i], y: (i) => second[i]};
    return plot({
      label, width, height: square(width), marginLeft: 36, marginRight: 8,
      x: {domain, ticks: 5, label: `error of ${short(runs[0])}`},
      y: {domain, ticks: 5, label: `error of ${short(runs[1])}`},
      marks: [
        Plot.line([[0, 0], [domain[1], domain[1]]], {stroke: LINE, strokeWidth: 1.5}),
        Plot.dot(known, {...at, r: 2.2, fill: ACCENT, fillOpacity: Math.min(0.65, 20 / Math.sqrt(known.length))}),
        Plot.dot(known, Plot.pointer({...at, r: 4, stroke: INK, strokeWidth: 1.5})),
        tip(known, at, (i) => `${short(paths[i])}\ngiven ${given[i]}\n${short(runs[0])}: ${said[0][i]}\n${short(runs[1])}: ${said[1][i]}`),
      ],
    });
  }

  return {scatter, precision, curves, differences, errors};
})();

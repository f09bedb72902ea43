// One photo: large, with a head's attention over it; its labels and predictions; and the photos nearest to it, by each
// backbone side by side.
"use strict";

(() => {
  const { h, said } = Explore;

  const facts = (photo) => {
    const { study } = Explore;
    const rows = [];
    const tasks = [...new Set(study.columns.filter((column) => column.task).map((column) => column.task))];
    for (const task of tasks) {
      const label = study.with("label", { task })[0];
      const cells = study.runs.map((run, number) => {
        const predicted = study.with("prediction", { task, run: number })[0];
        if (!predicted || predicted.values[photo] === null) return h("td", { class: "number" }, "–");
        let text = said(study.value(predicted, photo));
        if (Object.hasOwn(run.off, task)) text += ` ± ${said(run.off[task], 2)}`;
        const chance = study.with("probability", { task, run: number }).find((column) => column.of === study.value(predicted, photo));
        if (chance) text += ` (${said(study.value(chance, photo))})`;
        return h("td", { class: "number" }, text);
      });
      rows.push(h("tr", {}, h("th", { scope: "row" }, task), h("td", { class: "number" }, label ? Explore.valueOf(label, photo) : "–"), cells));
    }
    const others = study.columns.filter((column) => ["group", "fold", "state"].includes(column.role));
    const list = others.map((column) => h("tr", {}, h("th", { scope: "row" }, column.title), h("td", {}, Explore.valueOf(column, photo))));
    const off = study.runs.some((run) => Object.keys(run.off).length);
    return [
      tasks.length
        ? h(
            "table",
            {},
            h("caption", {}, "What people said, and what models predict that had not seen the photo", off ? "; ±: nine of ten predictions are off by no more" : ""),
            h(
              "thead",
              {},
              h("tr", {}, h("th", { scope: "col" }, ""), h("th", { scope: "col", class: "number" }, "given"), study.runs.map((run) => h("th", { scope: "col", class: "number" }, run.name))),
            ),
            h("tbody", {}, rows),
          )
        : "",
      list.length ? h("table", {}, h("caption", {}, "Where it belongs"), h("tbody", {}, list)) : "",
    ];
  };

  /** Draws weights of blocks over a photo: what counts little is darkened, so that what counts is seen as it is. */
  const drawAttention = (canvas, { grid, weights, glimpses }, photo) => {
    const context = canvas.getContext("2d");
    const { width, height } = canvas;
    context.clearRect(0, 0, width, height);
    const row = weights[photo];
    if (row && grid) {
      const top = Math.max(...row);
      const [rows, columns] = grid;
      row.forEach((weight, i) => {
        const x = (i % columns) * (width / columns), y = Math.floor(i / columns) * (height / rows);
        context.fillStyle = `rgb(0 0 0 / ${0.75 * (1 - weight / top)})`;
        context.fillRect(x, y, width / columns + 1, height / rows + 1);
      });
    }
    (glimpses[photo] ?? []).forEach(([left, top, right, bottom], i) => {
      context.strokeStyle = "#ffd166";
      context.lineWidth = 3;
      context.strokeRect(left * width, top * height, (right - left) * width, (bottom - top) * height);
      context.fillStyle = "#ffd166";
      context.font = "bold 16px system-ui, sans-serif";
      context.fillText(String(i + 1), left * width + 4, top * height + 17);
    });
  };

  const neighbours = async (photo) => {
    const { study, source } = Explore;
    if (!study.features) return [];
    const found = (await source.photo(photo))?.neighbours;
    if (!found) return [h("p", { class: "quiet" }, "This page was written without neighbours: there are too many photos.")];
    if (!found.length) return [h("p", { class: "quiet" }, `The photo has no features in ${study.features.tensor}.`)];
    return found.map(({ backbone, photos, likeness, apart }) => {
      const tiles = photos.map((near, i) => {
        const alike = likeness[i] >= study.alike;
        const where = apart[i].length ? `, in another fold of ${apart[i].join(", ")}` : "";
        return Explore.tile(near, `${likeness[i].toFixed(2)}${where}`, { badge: alike ? "near-duplicate" : "" });
      });
      return h("section", {}, h("h3", {}, `Nearest by ${backbone} (likeness, 1 at most)`), Explore.grid(tiles, { label: `Nearest by ${backbone}`, small: true }));
    });
  };

  Explore.photo = async (view, params, go, rest) => {
    const { study, source } = Explore;
    const photo = Number(rest);
    if (!Number.isInteger(photo) || photo < 0 || photo >= study.n) {
      view.replaceChildren(h("h2", {}, "Photo"), h("p", {}, `There is no photo ${rest}: the last is ${study.n - 1}.`));
      return;
    }
    const order = Explore.order?.includes(photo) ? Explore.order : d3.range(study.n);
    const here = order.indexOf(photo);
    const to = (step) => order[here + step];
    const link = (text, step, key) =>
      to(step) === undefined ? h("button", { disabled: true }, text) : h("button", { click: () => (location.hash = `#photo/${to(step)}`), "aria-keyshortcuts": key }, text);

    const picture = h("img", { src: study.pictured(photo) ? source.large(photo) : "data:,", alt: study.name(photo) });
    const canvas = h("canvas", { hidden: true, width: 800, height: 600 });
    const fit = h("span", { class: "fit" }, picture, canvas);
    const stage = h("div", { class: "stage" }, fit);
    const why = study.errors[photo];
    picture.addEventListener("error", () => stage.replaceChildren(h("span", { class: "missing" }, why ? `This photo could not be read: ${why}` : `${study.name(photo)}: the photo is not where it was`)));
    picture.addEventListener("load", () => {
      canvas.width = picture.naturalWidth;
      canvas.height = picture.naturalHeight;
      show();
    });

    const attentive = study.runs.map((run, number) => [String(number), `attention of ${run.name}`]).filter(([number]) => study.runs[number].attention);
    let shown = params.get("attention") ?? "";
    const show = async () => {
      if (shown !== "") drawAttention(canvas, await source.get(`attention-${shown}`), photo);
      canvas.hidden = shown === "";
    };
    const overlay = attentive.length
      ? Explore.choice("Over the photo", [["", "nothing"], ...attentive], shown, (value) => {
          shown = value;
          show();
        })
      : null;

    const below = h("div", {}, study.features ? h("p", { class: "quiet" }, "Looking for its neighbours…") : "");
    view.replaceChildren(
      h(
        "div",
        { class: "bar" },
        link("← before", -1, "ArrowLeft"),
        link("next →", 1, "ArrowRight"),
        study.features ? h("button", { click: () => (location.hash = `#gallery?sort=like&like=${photo}&down=1`) }, "All photos by likeness to it") : null,
        overlay,
      ),
      h("h2", {}, study.paths[photo]),
      h("div", { class: "photo" }, stage, h("div", {}, facts(photo))),
      below,
    );
    Explore.onKey = (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step && to(step) !== undefined) location.hash = `#photo/${to(step)}`;
    };
    Explore.announce(`Photo ${study.name(photo)}`);
    below.replaceChildren(...(await neighbours(photo)));
  };
})();

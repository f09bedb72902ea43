// Every photo as a point, photos alike near each other; a box takes some of them out.
"use strict";

(() => {
  const { h } = Explore;
  const NAMES = { pca: "two principal components", tsne: "t-SNE", umap: "UMAP" };

  Explore.map = async (view, params, go) => {
    const { study, source } = Explore;
    if (!study.features) {
      view.replaceChildren(h("h2", {}, "Map"), h("p", {}, "The store has no features: `featstore extract` computes them."));
      return;
    }
    view.replaceChildren(h("p", { class: "quiet" }, "Reading the features of all photos…"));
    const { how, photos, places } = await source.get("map");
    if (!photos.length) {
      view.replaceChildren(h("h2", {}, "Map"), h("p", {}, `No photo has features in ${study.features.tensor}.`));
      return;
    }
    const columns = study.columns.map((column) => [column.number, column.title]);
    const first = study.with("label")[0] ?? study.with("prediction")[0];
    const number = params.get("colour") ?? String(first?.number ?? "");
    const column = study.columns[number === "" ? -1 : number];
    const colours = Explore.colours(column, photos);
    const chosen = h("section", { "aria-live": "polite" });
    const select = (inside) => {
      Explore.selection = inside;
      const some = inside.slice(0, 48);
      const about = `${Explore.counted(inside.length, "photo")} in the box`;
      chosen.replaceChildren(
        h("h3", {}, about, inside.length > some.length ? `, ${some.length} of them here` : ""),
        inside.length ? h("p", {}, h("a", { href: "#gallery?only=selected" }, "Show them in the gallery")) : "",
        Explore.grid(some.map((photo) => Explore.tile(photo, column ? Explore.valueOf(column, photo) : "")), { label: about, small: true }),
      );
    };
    const scatter = Explore.scatter({
      points: { photos, xs: places.map((place) => place[0]), ys: places.map((place) => place[1]) },
      colour: colours.of,
      height: Math.max(320, Math.min(680, window.innerHeight - 260)),
      say: (photo) => (column ? `${column.title}: ${Explore.valueOf(column, photo)}` : ""),
      onPick: (photo) => (location.hash = `#photo/${photo}`),
      onSelect: select,
      label: `Map of ${Explore.counted(photos.length, "photo")}. Arrow keys go from photo to photo, Enter opens one.`,
    });
    const box = h("button", { "aria-pressed": "false", id: "box" }, "Box");
    box.addEventListener("click", () => {
      const on = box.getAttribute("aria-pressed") !== "true";
      box.setAttribute("aria-pressed", String(on));
      scatter.select(on);
    });
    view.replaceChildren(
      h("h2", { class: "unseen" }, "Map"),
      h(
        "div",
        { class: "bar" },
        Explore.choice("Colour by", [["", "(one colour)"], ...columns], number, (value) => go({ colour: value })),
        h("button", { click: () => scatter.zoomBy(1.6), "aria-label": "Zoom in" }, "+"),
        h("button", { click: () => scatter.zoomBy(1 / 1.6), "aria-label": "Zoom out" }, "−"),
        h("button", { click: () => scatter.reset() }, "Whole map"),
        box,
      ),
      scatter.element,
      column ? Explore.legend(colours, column) : "",
      h(
        "p",
        { class: "quiet" },
        `${study.features.tensor}: ${NAMES[how]} of ${study.features.backbones.join(", ")}. Drag to move, wheel to zoom; `,
        "drag with ",
        h("kbd", {}, "Shift"),
        ", or after “Box”, to take photos out.",
      ),
      chosen,
    );
    Explore.scattered = scatter;
  };
})();

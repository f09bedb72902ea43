// All photos as tiles: sorted by any column or by likeness to a photo, filtered, a page at a time.
"use strict";

(() => {
  const { h } = Explore;
  const PAGE = 200;

  /** Photos by likeness to one: the cosine of their components. */
  const byLikeness = async (photo) => {
    const found = await Explore.source.get("components");
    const { n, d, values } = Explore.ridge.unpacked(found);
    const place = found.photos.indexOf(photo);
    const likeness = new Map();
    if (place < 0) return likeness;
    const here = values.subarray(place * d, place * d + d);
    for (let i = 0; i < n; i++) {
      let both = 0, there = 0, mine = 0;
      for (let k = 0; k < d; k++) {
        const value = values[i * d + k];
        both += value * here[k];
        there += value * value;
        mine += here[k] * here[k];
      }
      likeness.set(found.photos[i], both / (Math.sqrt(there * mine) || 1));
    }
    return likeness;
  };

  const filtered = (params) => {
    const { study } = Explore;
    let photos = Explore.selection && params.get("only") === "selected" ? Explore.selection : d3.range(study.n);
    const words = (params.get("find") || "").toLowerCase();
    if (words) photos = photos.filter((photo) => study.paths[photo].toLowerCase().includes(words));
    const column = study.columns[params.get("filter") ?? -1];
    if (column?.kind === "text" && params.get("is")) {
      const wanted = Number(params.get("is"));
      photos = photos.filter((photo) => column.values[photo] === wanted);
    } else if (column) {
      const end = (name) => (params.get(name) ? Number(params.get(name)) : null);
      const [low, high] = [end("min"), end("max")];
      if (low !== null) photos = photos.filter((photo) => column.values[photo] !== null && column.values[photo] >= low);
      if (high !== null) photos = photos.filter((photo) => column.values[photo] !== null && column.values[photo] <= high);
    }
    return photos;
  };

  const bar = (params, go) => {
    const { study } = Explore;
    const columns = study.columns.map((column) => [column.number, column.title]);
    const sort = params.get("sort") ?? "";
    const ways = [["", "as in the store"], ...columns];
    if (study.paths[params.get("like")] !== undefined) ways.push(["like", `likeness to ${study.name(Number(params.get("like")))}`]);
    const column = study.columns[params.get("filter") ?? -1];
    const parts = [
      Explore.choice("Sort by", ways, sort, (value) => go({ sort: value, down: "1", page: "" })),
      h(
        "button",
        { click: () => go({ down: params.get("down") ? "" : "1", page: "" }), "aria-label": "Turn the order around" },
        sort === "" ? (params.get("down") ? "last to first" : "first to last") : params.get("down") ? "highest first ↓" : "lowest first ↑",
      ),
      Explore.choice("Only photos whose", [["", "(all)"], ...columns], params.get("filter") ?? "", (value) =>
        go({ filter: value, is: "", min: "", max: "", page: "" }),
      ),
    ];
    if (column?.kind === "text") {
      const names = [["", "(any)"], ...column.names.map((name, c) => [c, name])];
      parts.push(Explore.choice("is", names, params.get("is") ?? "", (value) => go({ is: value, page: "" })));
    } else if (column) {
      for (const [name, words] of [["min", "is at least"], ["max", "at most"]]) {
        const input = h("input", { type: "number", step: "any", value: params.get(name) ?? "" });
        input.addEventListener("change", () => go({ [name]: input.value, page: "" }));
        parts.push(h("label", {}, words, input));
      }
    }
    const find = h("input", { type: "search", value: params.get("find") ?? "" });
    find.addEventListener("change", () => go({ find: find.value, page: "" }));
    parts.push(h("label", {}, "Name has", find));
    return h("div", { class: "bar" }, parts);
  };

  Explore.gallery = async (view, params, go) => {
    const { study } = Explore;
    let photos = filtered(params);
    let below = () => "";
    const down = Boolean(params.get("down"));
    if (params.get("sort") === "like" && study.features) {
      const likeness = await byLikeness(Number(params.get("like")));
      photos = photos.filter((photo) => likeness.has(photo)).sort((a, b) => (likeness.get(b) - likeness.get(a)) * (down ? 1 : -1));
      below = (photo) => `likeness ${likeness.get(photo).toFixed(2)}`;
    } else {
      const column = study.columns[params.get("sort") || -1];
      if (column) {
        photos = study.sorted(photos, column, down);
        below = (photo) => Explore.valueOf(column, photo);
      } else if (down) photos = photos.slice().reverse();
    }
    Explore.order = photos;
    const pages = Math.max(1, Math.ceil(photos.length / PAGE));
    const page = Math.min(pages, Math.max(1, Number(params.get("page")) || 1));
    const shown = photos.slice((page - 1) * PAGE, page * PAGE);
    const turn = (label, to) => h("button", { disabled: to < 1 || to > pages, click: () => go({ page: String(to) }) }, label);
    const about = `${Explore.counted(photos.length, "photo")}${photos.length < study.n ? ` of ${study.n.toLocaleString("en")}` : ""}`;
    const tiles = shown.map((photo) => Explore.tile(photo, below(photo)));
    view.replaceChildren(
      h("h2", { class: "unseen" }, "Gallery"),
      bar(params, go),
      h("p", { class: "quiet" }, about),
      tiles.length ? Explore.grid(tiles, { label: about }) : h("p", {}, "No photo is like that."),
      pages > 1 ? h("div", { class: "pages" }, turn("← before", page - 1), `page ${page} of ${pages}`, turn("next →", page + 1)) : "",
    );
    Explore.announce(about);
  };
})();

// Rate photos with a keyboard. After every rating a personal head is fitted, the gallery below is sorted by what it
// predicts, and the photo that it is least sure of comes next. A rating is kept before the next photo is shown.
"use strict";

(() => {
  const { h, said } = Explore;
  const CANDIDATES = 1500; // photos among which the next one is looked for
  const SHOWN = 40;
  let space = null; // {n, d, values, photos, place}

  const load = async () => {
    if (space || !Explore.study.features) return;
    const found = await Explore.source.get("components");
    space = { ...Explore.ridge.unpacked(found), photos: found.photos, place: new Map(found.photos.map((photo, i) => [photo, i])) };
  };

  /** Ratings of one rater, as photo -> rating. */
  const ratingsOf = async (rater) => {
    const { ratings } = await Explore.source.ratings();
    return new Map(ratings.filter((each) => each.rater === rater).map((each) => [each.photo, each.rating]));
  };

  const learn = (mine) => {
    if (!space) return null;
    const rated = [...mine].filter(([photo]) => space.place.has(photo));
    const rows = rated.map(([photo]) => space.place.get(photo));
    const given = rated.map(([, rating]) => rating);
    const started = performance.now();
    const fitted = Explore.ridge.fit(space, rows, given);
    return fitted && { ...fitted, r: Explore.ridge.pearson(given, fitted.left), m: rows.length, took: performance.now() - started };
  };

  /** Numbers in 0..1 that look random and are the same every time. */
  const shuffled = (seed) => {
    let state = seed >>> 0;
    return () => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      return state / 2 ** 32;
    };
  };

  /** The photo to rate next: among some that are not rated, the one that the head is least sure of; at first any. */
  const next = (mine, skipped, fitted) => {
    const { study } = Explore;
    const open = d3.range(study.n).filter((photo) => !mine.has(photo) && !skipped.has(photo) && !study.errors[photo]);
    if (!open.length) return null;
    const random = shuffled(mine.size * 7919 + skipped.size);
    const some = open.length <= CANDIDATES ? open : d3.range(CANDIDATES).map(() => open[Math.floor(random() * open.length)]);
    if (!fitted) return some[Math.floor(random() * some.length)];
    const known = some.filter((photo) => space.place.has(photo));
    return d3.greatest(known.length ? known : some, (photo) => (space.place.has(photo) ? fitted.unsure(space.place.get(photo)) : 0));
  };

  const csv = (ratings) => {
    const cell = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    const rows = ratings.map((each) => [Explore.study.paths[each.photo], each.rater, String(each.rating), each.time].map(cell).join(","));
    return ["path,rater,rating,time", ...rows].join("\n") + "\n";
  };

  const begin = (view, go) => {
    const name = h("input", { name: "rater", autocomplete: "off", maxlength: 60, required: true });
    const form = h("form", { class: "bar" }, h("label", {}, "Your name, as it stands beside your ratings", name), h("button", { class: "main" }, "Begin"));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (name.value.trim()) go({ rater: name.value });
    });
    view.replaceChildren(h("h2", {}, "Rate photos"), form);
    name.focus();
  };

  Explore.mine = async (view, params, go) => {
    const { study, source } = Explore;
    const rater = (params.get("rater") ?? "").trim().replace(/\s+/g, " "); // as it is kept
    if (!rater) return begin(view, go);
    view.replaceChildren(h("p", { class: "quiet" }, "Reading the features of all photos…"));
    await load();
    const [low, high] = study.scale;
    const steps = d3.range(low, high + 1);
    const likes = low === 0 && high === 1;
    const { file } = await source.ratings();
    const mine = await ratingsOf(rater);
    const skipped = new Set();
    const history = [];
    let busy = false;
    let fitted = learn(mine);
    let current = next(mine, skipped, fitted);

    const stage = h("div", { class: "stage" });
    const buttons = h("div", { class: "ratings", role: "group", "aria-label": "Your rating" });
    const state = h("p", { role: "status" });
    const gallery = h("section", {});
    const trouble = h("p", { class: "warn", role: "alert" });

    const give = async (rating) => {
      if (busy || current === null) return;
      busy = true;
      const photo = current;
      try {
        await source.rate(photo, rater, rating); // on the disk before the next photo shows
        trouble.textContent = "";
        mine.set(photo, rating);
        history.push(photo);
        fitted = learn(mine);
        current = next(mine, skipped, fitted);
        draw();
      } catch (error) {
        trouble.textContent = error.message;
      }
      busy = false;
    };
    const skip = () => {
      if (busy || current === null) return;
      skipped.add(current);
      current = next(mine, skipped, fitted);
      draw();
    };
    const back = async () => {
      if (busy || !history.length) return;
      busy = true;
      const photo = history.pop();
      try {
        await source.rate(photo, rater, null);
        mine.delete(photo);
        fitted = learn(mine);
        current = photo;
        draw();
      } catch (error) {
        history.push(photo);
        trouble.textContent = error.message;
      }
      busy = false;
    };

    const draw = () => {
      const name = current === null ? "" : study.name(current);
      const shown = current;
      // The error of a photo that is no longer shown must not take away the one that is.
      const missing = () => shown === current && stage.replaceChildren(h("span", { class: "missing" }, name));
      stage.replaceChildren(
        current === null
          ? h("span", { class: "missing" }, "No photo is left: you have rated or skipped them all.")
          : h("img", { src: study.pictured(current) ? source.large(current) : "data:,", alt: name, error: missing }),
      );
      buttons.replaceChildren(
        ...steps.map((step) => h("button", { click: () => give(step), "aria-keyshortcuts": likes ? "DL"[step] : String(step), disabled: current === null }, likes ? ["dislike (D)", "like (L)"][step] : String(step))),
        h("button", { click: skip, "aria-keyshortcuts": "S", disabled: current === null }, "skip (S)"),
        h("button", { click: back, "aria-keyshortcuts": "U", disabled: !history.length }, "undo (U)"),
      );
      const count = Explore.counted(mine.size, "rating");
      let words = `${count} by ${rater}.`;
      if (!study.features) words += " The store has no features, so nothing is learned here.";
      else if (!fitted) words += ` A head is fitted from ${Explore.ridge.FEW} ratings on, if they differ.`;
      else if (!fitted.knows) words += " Your head cannot foretell you any better than your average does yet; go on.";
      else {
        words += ` Your head foretells a rating that it was not told within ${said(fitted.error, 2)} as a rule`;
        words += ` (your average: within ${said(fitted.without, 2)}), r = ${fitted.r === null ? "–" : fitted.r.toFixed(2)}.`;
      }
      state.textContent = words;
      Explore.announce(current === null ? words : `${words} Next: ${name}`);
      if (!fitted?.knows) return gallery.replaceChildren();
      const order = d3.range(space.n).sort((a, b) => fitted.predicted[b] - fitted.predicted[a]);
      const tiles = (places) =>
        places.map((place) => {
          const photo = space.photos[place];
          // Of a photo that was rated, the head has been told: only the rating itself says something.
          if (mine.has(photo)) return Explore.tile(photo, "", { badge: `you: ${mine.get(photo)}` });
          return Explore.tile(photo, said(fitted.predicted[place], 2));
        });
      gallery.replaceChildren(
        h("div", { class: "two tight" },
          h("section", {}, h("h3", {}, "You would rate highest"), Explore.grid(tiles(order.slice(0, SHOWN)), { label: "Highest", small: true })),
          h("section", {}, h("h3", {}, "You would rate lowest"), Explore.grid(tiles(order.slice(-SHOWN).reverse()), { label: "Lowest", small: true })),
        ),
      );
    };

    Explore.onKey = (event) => {
      const key = event.key.toLowerCase();
      if (key === "s") skip();
      else if (key === "u") back();
      else if (likes && (key === "l" || key === "d")) give(key === "l" ? 1 : 0);
      else if (!likes && steps.map(String).includes(key)) give(Number(key));
      else return;
      event.preventDefault();
    };
    const download = h("button", {
      click: async () => {
        const { ratings } = await source.ratings();
        const url = URL.createObjectURL(new Blob([csv(ratings)], { type: "text/csv" }));
        h("a", { href: url, download: "ratings.csv" }).click();
        URL.revokeObjectURL(url);
      },
    }, "Save all ratings as a table");
    view.replaceChildren(
      h("h2", {}, study.question || `Rate photos as ${rater}`),
      h("p", { class: "quiet" }, "Keys: ", likes ? [h("kbd", {}, "L"), " like, ", h("kbd", {}, "D"), " dislike"] : [h("kbd", {}, String(low)), " (lowest) to ", h("kbd", {}, String(high)), " (highest)"], ", ", h("kbd", {}, "S"), " skip, ", h("kbd", {}, "U"), " undo. ",
        file ? `Every rating is in ${file} at once.` : "Ratings stay in this browser until you save them.", " ", h("a", { href: "#mine" }, "Another rater")),
      stage, buttons, trouble, state,
      source.fixed ? download : "",
      gallery,
    );
    draw();
  };
})();

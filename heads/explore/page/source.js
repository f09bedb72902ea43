// Where documents come from: the server, or, in a page that was written to a folder, scripts beside it. A page that is
// opened from the disk may not fetch files, but it may load scripts; each calls `explored(name, value)`.
"use strict";

(() => {
  const fixed = document.documentElement.dataset.mode === "static";
  const waiting = new Map();
  const kept = new Map();

  window.explored = (name, value) => waiting.get(name)?.resolve(value);

  const load = (name) =>
    new Promise((resolve, reject) => {
      waiting.set(name, { resolve });
      const script = document.createElement("script");
      script.src = `data/${name}.js`;
      script.onerror = () => reject(new Error(`data/${name}.js is not there: copy the whole folder again`));
      document.head.append(script);
    });

  const ask = async (name) => {
    let answer;
    try {
      answer = await fetch(`data/${name}.json`);
    } catch {
      throw new Error("The server does not answer. Is `heads explore` still running?");
    }
    if (answer.ok) return answer.json();
    const said = await answer.json().catch(() => ({}));
    throw new Error(said.error || `The server answered ${answer.status}.`);
  };

  const CHUNK = 100; // photos whose neighbours are in one file of a static page

  Explore.source = {
    fixed,
    /** A document by name; asked for once. */
    get(name) {
      if (!kept.has(name)) {
        const promise = fixed ? load(name) : ask(name);
        kept.set(name, promise);
        promise.catch(() => kept.delete(name));
      }
      return kept.get(name);
    },
    /** The neighbours of a photo. */
    async photo(photo) {
      if (!fixed) return ask(`photo/${photo}`);
      const many = await this.get(`photos-${Math.floor(photo / CHUNK)}`);
      return many[photo % CHUNK];
    },
    small: (photo) => `small/${photo}.jpg`,
    large: (photo) => `${Explore.study.largest}/${photo}.jpg`,

    /** All ratings that were given: {file, ratings: [{photo, rater, rating}]}. */
    async ratings() {
      if (!fixed) return ask("ratings");
      return { file: null, ratings: JSON.parse(localStorage.getItem(this.place()) || "[]") };
    },
    /** Keeps a rating, or takes it back if it is null; returns when it is kept. */
    async rate(photo, rater, rating) {
      if (fixed) {
        const { ratings } = await this.ratings();
        const others = ratings.filter((each) => each.photo !== photo || each.rater !== rater);
        if (rating !== null) others.push({ photo, rater, rating, time: new Date().toISOString() });
        localStorage.setItem(this.place(), JSON.stringify(others));
        return;
      }
      let answer;
      try {
        answer = await fetch("ratings", {
          method: "POST",
          headers: { "content-type": "application/json" },
          body: JSON.stringify({ photo, rater, rating }),
        });
      } catch {
        throw new Error("The rating is not kept: the server does not answer. Is `heads explore` still running?");
      }
      if (!answer.ok) {
        const said = await answer.json().catch(() => ({}));
        throw new Error(said.error || `The rating is not kept: the server answered ${answer.status}.`);
      }
    },
    place: () => `ratings of ${document.title} at ${location.pathname}`,
  };
})();

// The study: photos and columns, how they are sorted and filtered, and how a photo is shown as a tile.
"use strict";

(() => {
  const { h, said } = Explore;

  class Study {
    constructor(given) {
      Object.assign(this, given);
      this.noPicture = new Set(given.absent);
      this.columns = given.columns.map((column, number) => ({ ...column, number }));
    }

    name(photo) {
      return this.paths[photo].split("/").pop();
    }

    /** Whether a picture of a photo can be asked for. */
    pictured(photo) {
      return this.pictures && !this.errors[photo] && !this.noPicture.has(photo);
    }

    /** A column's value of a photo: a number, a text, or null. */
    value(column, photo) {
      const value = column.values[photo];
      return value === null || value === undefined ? null : column.kind === "text" ? column.names[value] : value;
    }

    with(role, where = {}) {
      return this.columns.filter(
        (column) => column.role === role && Object.entries(where).every(([name, value]) => column[name] === value),
      );
    }

    /** Photos in the order of a column, those without a value last. */
    sorted(photos, column, down) {
      const values = column.values;
      const known = photos.filter((photo) => values[photo] !== null);
      const unknown = photos.filter((photo) => values[photo] === null);
      known.sort((a, b) => (down ? values[b] - values[a] : values[a] - values[b]) || a - b);
      return known.concat(unknown);
    }
  }

  /** A picture, or its name in a grey field where there is no picture. */
  Explore.picture = (photo, { large = false } = {}) => {
    const { study, source } = Explore;
    const frame = h("span", { class: "frame" });
    const missing = () => {
      const why = study.errors[photo];
      frame.replaceChildren(h("span", { class: "missing" }, why ? `${study.name(photo)}: ${why}` : study.name(photo)));
    };
    if (!study.pictured(photo)) missing();
    else {
      const src = large ? source.large(photo) : source.small(photo);
      frame.append(h("img", { src, alt: study.name(photo), loading: "lazy", decoding: "async", error: missing }));
    }
    return frame;
  };

  /** A photo as a link to its own view, with its name and what is said below. */
  Explore.tile = (photo, below = "", { badge = "", href = `#photo/${photo}` } = {}) => {
    const { study } = Explore;
    const frame = Explore.picture(photo);
    if (badge) frame.append(h("span", { class: "badge" }, badge));
    const name = h("span", { class: "name", title: study.paths[photo] }, study.name(photo));
    return h("li", {}, h("a", { class: "tile", href, "data-photo": photo }, frame, name, h("span", { class: "value" }, below)));
  };

  /** Tiles in a grid; arrow keys go from one to the next. */
  Explore.grid = (tiles, { label, small = false }) => {
    const list = h("ul", { class: small ? "grid small" : "grid", "aria-label": label }, tiles);
    list.addEventListener("keydown", (event) => {
      const links = [...list.querySelectorAll("a.tile")];
      const here = links.indexOf(document.activeElement);
      if (here < 0) return;
      const across = links.filter((link) => link.offsetTop === links[0].offsetTop).length;
      const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across }[event.key];
      if (step === undefined || !links[here + step]) return;
      event.preventDefault();
      event.stopPropagation();
      links[here + step].focus();
    });
    return list;
  };

  Explore.valueOf = (column, photo) => said(Explore.study.value(column, photo));
  Explore.Study = Study;
})();

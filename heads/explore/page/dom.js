// Elements by name. Whatever a store or a table says becomes a text node: there is no way from here to markup.
"use strict";

const Explore = {};

/** An element: h("a", {href: "#map"}, "Map"). An attribute that is a function listens to the event of its name. */
Explore.h = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name, value);
    else if (name === "value" || name === "checked") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
};

/** A labelled choice among [value, text] pairs. */
Explore.choice = (label, pairs, chosen, onChange, attributes = {}) => {
  const { h } = Explore;
  const select = h(
    "select",
    { ...attributes, change: () => onChange(select.value) },
    pairs.map(([value, text]) => h("option", { value, selected: String(value) === String(chosen) }, text)),
  );
  return h("label", {}, label, select);
};

/** Says something to a screen reader. */
Explore.announce = (text) => {
  document.getElementById("announce").textContent = text;
};

/** A number as people read it. */
Explore.said = (value, digits = 3) => {
  if (value === null || value === undefined) return "–";
  if (typeof value === "string") return value;
  if (Number.isInteger(value)) return String(value);
  return Math.abs(value) >= 100 ? value.toFixed(1) : value.toPrecision(digits).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");
};

/** A count with its word: 1 photo, 900 photos. */
Explore.counted = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;

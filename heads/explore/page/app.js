// What is shown: the view that the address names after its #, with what was chosen there, so that it can be sent.
"use strict";

(() => {
  const { h } = Explore;
  const VIEWS = [
    ["gallery", "Gallery"],
    ["emotion", "Most and least"],
    ["map", "Map"],
    ["run", "Run"],
    ["mine", "Rate"],
  ];
  const view = document.getElementById("view");
  let turn = 0;
  const CONTROLS = "select, input, button";

  const show = async () => {
    const [path, query = ""] = location.hash.slice(1).split("?");
    const [name, rest = ""] = path.split("/");
    const known = name === "photo" || VIEWS.some(([each]) => each === name) ? name : "gallery";
    const params = new URLSearchParams(query);
    const go = (changes) => {
      for (const [key, value] of Object.entries(changes)) value === "" ? params.delete(key) : params.set(key, value);
      const said = params.toString();
      location.hash = `#${known}${rest ? `/${rest}` : ""}${said ? `?${said}` : ""}`;
    };
    for (const link of document.querySelectorAll("#views a")) {
      if (link.hash === `#${known}`) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    Explore.onKey = null;
    const mine = ++turn;
    const same = document.documentElement.dataset.shown?.split("/")[0] === known;
    const focused = same ? [...view.querySelectorAll(CONTROLS)].indexOf(document.activeElement) : -1;
    // A view that is still loading when another is opened must not draw over it.
    const place = h("div", {});
    view.replaceChildren(place);
    try {
      await Explore[known](place, params, go, rest);
    } catch (error) {
      console.warn(error);
      if (mine === turn) place.replaceChildren(h("p", { class: "warn", role: "alert" }, error.message));
    }
    if (mine !== turn) return;
    // Who works by keyboard stays at the control that was changed, or comes to the top of another view.
    const control = view.querySelectorAll(CONTROLS)[focused];
    if (control) control.focus({ preventScroll: true });
    else if (turn > 1 && !view.contains(document.activeElement)) view.focus({ preventScroll: true });
    document.documentElement.dataset.shown = `${known}${rest ? `/${rest}` : ""}`;
  };

  document.addEventListener("keydown", (event) => {
    const typing = ["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName);
    if (typing || event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.(".grid, canvas")) return;
    Explore.onKey?.(event);
  });

  const start = async () => {
    try {
      Explore.study = new Explore.Study(await Explore.source.get("study"));
    } catch (error) {
      view.replaceChildren(h("p", { class: "warn", role: "alert" }, error.message));
      return;
    }
    const { study } = Explore;
    document.title = `${study.title}: explore`;
    document.getElementById("title").textContent = `${study.title}: ${Explore.counted(study.n, "photo")}`;
    document.getElementById("views").append(...VIEWS.map(([name, text]) => h("a", { href: `#${name}` }, text)));
    const notes = document.getElementById("notes");
    notes.textContent = study.notes.join("; ");
    notes.hidden = !study.notes.length;
    document.querySelector(".skip").addEventListener("click", (event) => {
      event.preventDefault(); // #view in the address would be another view
      view.focus();
    });
    window.addEventListener("hashchange", () => {
      window.scrollTo(0, 0);
      show();
    });
    await show();
  };
  start();
})();

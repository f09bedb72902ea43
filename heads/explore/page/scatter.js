// A scatter of very many points on a canvas: a wheel or two fingers zoom, a hand drags it, a box selects, the mouse says
// what a point is. d3 zooms and finds the nearest point; the points are small squares of one image, so that 100,000 of
// them are drawn in a few milliseconds without a graphics card.
"use strict";

(() => {
  const { h } = Explore;
  const NEAR = 14; // pixels within which a point is the one that is meant
  const EDGE = { left: 46, right: 12, top: 12, bottom: 34 };

  /** Colours of photos by a column: numbers from dark to light, text by name, grey where nothing is known. */
  Explore.colours = (column, photos) => {
    const { study } = Explore;
    const grey = [128, 136, 142];
    if (!column) return { of: () => d3.rgb(Explore.ink("--accent")), legend: null };
    const rgb = (text) => d3.rgb(text);
    if (column.kind === "text") {
      const scheme = column.names.length > 10 ? d3.quantize(d3.interpolateRainbow, column.names.length + 1) : d3.schemeTableau10;
      const found = column.names.map((_, c) => rgb(scheme[c % scheme.length]));
      const of = (photo) => (column.values[photo] === null ? null : found[column.values[photo]]);
      return { of: (photo) => of(photo) || d3.rgb(...grey), legend: { names: column.names.slice(0, 30), colours: found } };
    }
    const known = photos.map((photo) => column.values[photo]).filter((value) => value !== null).sort((a, b) => a - b);
    const low = d3.quantileSorted(known, 0.02) ?? 0;
    const high = d3.quantileSorted(known, 0.98) ?? 1;
    const steps = d3.quantize(d3.interpolateViridis, 256).map(rgb);
    const of = (photo) => {
      const value = column.values[photo];
      if (value === null) return d3.rgb(...grey);
      return steps[Math.max(0, Math.min(255, Math.round((255 * (value - low)) / (high - low || 1))))];
    };
    return { of, legend: { low, high, steps } };
  };

  /** What the colours mean. */
  Explore.legend = ({ legend }, column) => {
    if (!legend) return h("p", { class: "legend" });
    if (legend.names) {
      const names = legend.names.map((name, c) => {
        const dot = h("i", {});
        dot.style.background = legend.colours[c].formatHex();
        return h("span", {}, dot, name);
      });
      return h("p", { class: "legend" }, names);
    }
    const bar = h("canvas", { width: 128, height: 10, role: "img", "aria-label": "from dark for low to light for high" });
    const context = bar.getContext("2d");
    for (let x = 0; x < 128; x++) {
      context.fillStyle = legend.steps[2 * x].formatHex();
      context.fillRect(x, 0, 1, 10);
    }
    const [low, high] = [`to ${Explore.said(legend.low)}`, `from ${Explore.said(legend.high)}`].map((text) => h("span", {}, text));
    return h("p", { class: "legend" }, h("span", {}, `${column.title}:`), low, bar, high);
  };

  Explore.ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  /**
   * points: {photos, xs, ys}; colour: (photo) => d3.rgb; axes: null, or {x, y} titles; diagonal: draws x = y.
   * say: (photo) => text of the tip; onPick(photo); onSelect(photos).
   */
  Explore.scatter = ({ points, colour, axes = null, diagonal = false, height = 560, say, onPick, onSelect, label }) => {
    const { photos, xs, ys } = points;
    const canvas = h("canvas", { tabindex: 0, role: "application", "aria-label": label });
    const tip = h("div", { class: "tip", hidden: true });
    const box = h("div", { class: "scatter" }, canvas, tip);
    box.style.height = `${height}px`;
    if (diagonal) box.style.maxWidth = `${height + EDGE.left + EDGE.right}px`; // so that its line is at 45 degrees
    const context = canvas.getContext("2d");
    const edge = axes ? EDGE : { left: 10, right: 10, top: 10, bottom: 10 };
    const n = photos.length;
    let width = 0, ratio = 1, x0, y0, x, y, tree, transform = d3.zoomIdentity, chosen = -1, brush = null, selecting = false;
    let packed = new Uint32Array(n);
    const paint = (of) => {
      photos.forEach((photo, i) => {
        const { r, g, b } = of(photo);
        packed[i] = (255 << 24) | (b << 16) | (g << 8) | r;
      });
    };
    paint(colour);

    const extent = (values) => {
      let [low, high] = d3.extent(values);
      if (low === undefined) [low, high] = [0, 1];
      const more = 0.04 * (high - low) || 0.5;
      return [low - more, high + more];
    };
    let [xd, yd] = [extent(xs), extent(ys)];
    if (diagonal) xd = yd = [Math.min(xd[0], yd[0]), Math.max(xd[1], yd[1])];

    const resize = () => {
      width = box.clientWidth;
      ratio = Math.min(window.devicePixelRatio || 1, 2);
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
      x0 = d3.scaleLinear(xd, [edge.left, width - edge.right]);
      y0 = d3.scaleLinear(yd, [height - edge.bottom, edge.top]);
      tree = d3.quadtree(d3.range(n), (i) => x0(xs[i]), (i) => y0(ys[i]));
      draw();
    };

    const draw = () => {
      if (!width) return;
      x = transform.rescaleX(x0);
      y = transform.rescaleY(y0);
      const side = Math.max(2, Math.round(ratio * Math.min(9, (n > 20000 ? 1.5 : n > 3000 ? 3 : 5) * Math.sqrt(transform.k))));
      const image = context.createImageData(canvas.width, canvas.height);
      const pixels = new Uint32Array(image.data.buffer);
      const [ax, bx, ay, by] = [x(0) * ratio, (x(1) - x(0)) * ratio, y(0) * ratio, (y(1) - y(0)) * ratio];
      const [left, right] = [edge.left * ratio, (width - edge.right) * ratio - side];
      const [top, bottom] = [edge.top * ratio, (height - edge.bottom) * ratio - side];
      for (let i = 0; i < n; i++) {
        const px = Math.round(ax + bx * xs[i] - side / 2), py = Math.round(ay + by * ys[i] - side / 2);
        if (px < left - side || px > right + side || py < top - side || py > bottom + side) continue;
        const endX = Math.min(px + side, canvas.width), endY = Math.min(py + side, canvas.height);
        for (let row = Math.max(py, 0); row < endY; row++) {
          for (let at = row * canvas.width + Math.max(px, 0); at < row * canvas.width + endX; at++) pixels[at] = packed[i];
        }
      }
      context.setTransform(1, 0, 0, 1, 0, 0);
      context.putImageData(image, 0, 0);
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      if (axes) drawAxes();
      if (chosen >= 0) {
        context.strokeStyle = Explore.ink("--mark");
        context.lineWidth = 2.5;
        context.beginPath();
        context.arc(x(xs[chosen]), y(ys[chosen]), side / ratio / 2 + 5, 0, 7);
        context.stroke();
      }
      if (brush) {
        context.strokeStyle = Explore.ink("--accent");
        context.setLineDash([4, 3]);
        context.strokeRect(brush[0], brush[1], brush[2] - brush[0], brush[3] - brush[1]);
        context.setLineDash([]);
      }
    };

    const drawAxes = () => {
      context.fillStyle = context.strokeStyle = Explore.ink("--quiet");
      context.font = "12px system-ui, sans-serif";
      context.lineWidth = 1;
      if (diagonal) {
        const [low, high] = x.domain();
        context.strokeStyle = Explore.ink("--line");
        context.beginPath();
        context.moveTo(x(low), y(low));
        context.lineTo(x(high), y(high));
        context.stroke();
      }
      context.textAlign = "center";
      const many = Math.max(3, Math.round(width / 110));
      for (const tick of x.ticks(many)) context.fillText(x.tickFormat(many)(tick), x(tick), height - 18);
      context.fillText(axes.x, (edge.left + width - edge.right) / 2, height - 4);
      context.textAlign = "right";
      for (const tick of y.ticks(6)) context.fillText(y.tickFormat(6)(tick), edge.left - 6, y(tick) + 4);
      context.save();
      context.translate(11, (height - edge.bottom) / 2);
      context.rotate(-Math.PI / 2);
      context.textAlign = "center";
      context.fillText(axes.y, 0, 0);
      context.restore();
    };

    const nearest = (px, py) => {
      const [ux, uy] = transform.invert([px, py]);
      const found = tree.find(ux, uy, NEAR / transform.k);
      return found === undefined ? -1 : found;
    };

    const show = (i) => {
      if (i === chosen) return;
      chosen = i;
      tip.hidden = i < 0;
      if (i >= 0) {
        const photo = photos[i];
        tip.replaceChildren(Explore.picture(photo), h("span", {}, Explore.study.name(photo)), h("span", { class: "quiet" }, say(photo)));
        const px = x(xs[i]), py = y(ys[i]);
        tip.style.left = `${Math.max(4, px + 190 > width ? px - 190 : px + 14)}px`;
        tip.style.top = `${Math.max(4, Math.min(py, height - 190))}px`;
        Explore.announce(`${Explore.study.name(photo)}: ${say(photo)}`);
      }
      draw();
    };

    const zoom = d3
      .zoom()
      .scaleExtent([0.8, 200])
      .filter((event) => !selecting && !event.shiftKey && !event.button)
      .on("zoom", (event) => {
        transform = event.transform;
        tip.hidden = true;
        chosen = -1;
        draw();
      });
    d3.select(canvas).call(zoom).on("dblclick.zoom", null);

    const place = (event) => d3.pointer(event, canvas);
    canvas.addEventListener("pointerdown", (event) => {
      if (!(selecting || event.shiftKey) || !onSelect) return;
      const [px, py] = place(event);
      brush = [px, py, px, py];
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      const [px, py] = place(event);
      if (brush) {
        brush[2] = px;
        brush[3] = py;
        draw();
      } else show(nearest(px, py));
    });
    canvas.addEventListener("pointerup", () => {
      if (!brush) return;
      const [ax, bx] = [x.invert(Math.min(brush[0], brush[2])), x.invert(Math.max(brush[0], brush[2]))];
      const [ay, by] = [y.invert(Math.max(brush[1], brush[3])), y.invert(Math.min(brush[1], brush[3]))];
      const inside = photos.filter((_, i) => xs[i] >= ax && xs[i] <= bx && ys[i] >= ay && ys[i] <= by);
      brush = null;
      draw();
      onSelect(inside);
    });
    canvas.addEventListener("pointerleave", () => brush || show(-1));
    canvas.addEventListener("click", (event) => {
      const i = nearest(...place(event));
      if (i >= 0 && !selecting && !event.shiftKey) onPick(photos[i]);
    });
    // The arrows go to the nearest point in their direction; Enter opens it; + and - zoom.
    canvas.addEventListener("keydown", (event) => {
      const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (way) {
        const [cx, cy] = chosen < 0 ? [width / 2, height / 2] : [x(xs[chosen]), y(ys[chosen])];
        let best = -1, least = Infinity;
        for (let i = 0; i < n; i++) {
          const dx = x(xs[i]) - cx, dy = y(ys[i]) - cy;
          const along = dx * way[0] + dy * way[1], aside = Math.abs(dx * way[1]) + Math.abs(dy * way[0]);
          const far = along + 2 * aside;
          if (i !== chosen && (chosen < 0 || along > 0) && (chosen < 0 ? Math.hypot(dx, dy) : far) < least) {
            least = chosen < 0 ? Math.hypot(dx, dy) : far;
            best = i;
          }
        }
        if (best >= 0) show(best);
      } else if (event.key === "Enter" && chosen >= 0) onPick(photos[chosen]);
      else if (event.key === "+" || event.key === "=") d3.select(canvas).call(zoom.scaleBy, 1.5);
      else if (event.key === "-") d3.select(canvas).call(zoom.scaleBy, 1 / 1.5);
      else return;
      event.preventDefault();
    });

    new ResizeObserver(() => box.clientWidth !== width && resize()).observe(box);
    return {
      element: box,
      recolour: (of) => (paint(of), draw()),
      zoomBy: (factor) => d3.select(canvas).call(zoom.scaleBy, factor),
      reset: () => d3.select(canvas).call(zoom.transform, d3.zoomIdentity),
      select: (on) => (selecting = on),
      draw,
      /** Where a photo is on the screen, for tests. */
      where: (photo) => {
        const i = photos.indexOf(photo), { left, top } = canvas.getBoundingClientRect();
        return [left + x(xs[i]), top + y(ys[i])];
      },
    };
  };
})();

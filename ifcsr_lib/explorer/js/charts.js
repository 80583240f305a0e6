// Curves along gamma: one small chart per metric, a line per model, a marker at gamma.

import {decibel, quadratic} from "./numbers.js";
import {clamp, h} from "./util.js";

const COLOURS = ["#2f6fde", "#d9822b", "#2f9e63", "#a24bc4", "#c23b3b", "#4a8d99"];
const colour = line => COLOURS[line.pane % COLOURS.length];
const [WIDTH, HEIGHT, PAD] = [200, 84, 6];

/**
 * The value at gamma on straight pieces between points.
 * @param {number[][]} points [[gamma, value], ...], two or more, gamma rising
 * @param {number} gamma
 */
export function valueAt(points, gamma) {
  const k = clamp(points.findIndex(point => point[0] >= gamma), 1, points.length - 1);
  const [a, b] = [points[k - 1], points[k]];
  return a[1] + (b[1] - a[1]) * (gamma - a[0]) / (b[0] - a[0]);
}

/**
 * What there is to draw of an image: closed forms at 51 gammas, and what Python measured.
 * @returns {Map<string, Object[]>} title: [{pane, points, note}, ...]
 */
export function curvesOf(panes, eps) {
  const charts = new Map(), grid = Array.from({length: 51}, (_, i) => i / 50);
  const add = (title, line) => charts.set(title, [...charts.get(title) ?? [], line]);
  const closed = errors => grid.map(gamma => [gamma, decibel(quadratic(errors, gamma), eps)]);
  for (const [pane, {errors, consistency, curves}] of panes.entries()) {
    if (errors) add("PSNR (dB) ↑", {pane, points: closed(errors)});
    if (consistency) add("LQ consistency (dB) ↑", {pane, points: closed(consistency)});
    for (const [name, {points, note, lower}] of Object.entries(curves || {})) {
      add(`${name} ${lower ? "↓" : "↑"}`, {pane, points, note});
    }
  }
  return charts;
}

/** The folded charts below the status line. */
export class Charts {
  constructor(app, widgets) {
    this.app = app;
    this.marks = []; // functions of gamma
    this.grid = h("div", {class: "ifcsr-charts"});
    this.box = h("details", {class: "ifcsr-curves"}, h("summary", {}, "Curves along γ"), this.grid);
    if (!app.host.live) return;
    const measure = () => {
      app.note("measuring in Python…");
      app.host.action("sweep");
    };
    const title = "measure the curves in Python, once";
    this.box.append(widgets.button("Measure SSIM, lpips-lite and NIQE", title, measure));
  }

  /** Draw the charts of the shown image. */
  draw() {
    const {spec, state, host} = this.app, charts = curvesOf(state.image.panes, spec.eps);
    this.box.hidden = !charts.size && !host.live;
    this.marks = [];
    this.grid.replaceChildren(...[...charts].map(([title, lines]) => this.chart(title, lines)));
    this.move(state.gamma);
  }

  move(gamma) {
    for (const mark of this.marks) mark(gamma);
  }

  chart(title, lines) {
    const drawn = lines.filter(line => line.points && line.points.length > 1), value = h("output", {});
    const caption = h("figcaption", {}, h("span", {}, title), value);
    if (!drawn.length) {
      return h("figure", {class: "ifcsr-chart"}, caption, h("small", {}, lines[0].note || "not measured"));
    }
    const values = drawn.flatMap(line => line.points.map(point => point[1]));
    const low = Math.min(...values), high = Math.max(...values), span = high - low || 1;
    const X = gamma => PAD + gamma * (WIDTH - 2 * PAD);
    const Y = v => HEIGHT - PAD - (v - low) / span * (HEIGHT - 2 * PAD);
    const corner = ([g, v], i) => `${i ? "L" : "M"}${X(g).toFixed(1)} ${Y(v).toFixed(1)}`;
    const path = points => points.map(corner).join("");
    const marker = h("line", {y1: 0, y2: HEIGHT, class: "ifcsr-marker"});
    const dots = drawn.map(line => h("circle", {r: 3.5, fill: colour(line)}));
    const label = `${title} along gamma, from ${low.toPrecision(4)} to ${high.toPrecision(4)}`;
    const svg = h("svg", {viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label},
      ...drawn.map(line => h("path", {d: path(line.points), stroke: colour(line)})), marker, ...dots);
    const digits = high >= 2 ? 2 : 4;
    this.marks.push(gamma => {
      marker.setAttribute("x1", X(gamma));
      marker.setAttribute("x2", X(gamma));
      const now = drawn.map(line => valueAt(line.points, gamma));
      for (const [k, dot] of dots.entries()) {
        dot.setAttribute("cx", X(gamma));
        dot.setAttribute("cy", Y(now[k]));
      }
      value.textContent = now.map(v => v.toFixed(digits)).join(" / ");
    });
    return h("figure", {class: "ifcsr-chart"}, caption, svg, this.legend(drawn));
  }

  /** Which colour is which model; null for one model. */
  legend(lines) {
    const {panes} = this.app.state.image;
    if (panes.length < 2) return null;
    const names = lines.map(line => {
      const name = h("span", {}, `■ ${panes[line.pane].label} `);
      name.style.color = colour(line);
      return name;
    });
    return h("small", {}, ...names);
  }
}

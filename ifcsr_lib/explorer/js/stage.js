// The panes with the pictures: canvases, compared image, overlay, magnifier; zoom; when they are painted.

import {blend} from "./blend.js";
import {HEAT_TOP, hasGPU, heat, Painter2D, PainterGL} from "./painters.js";
import {nearest, place, sampled} from "./sampling.js";
import {clamp, h} from "./util.js";

const ZOOMS = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]; // screen pixels per image pixel, nearest neighbour
const LENS_SIDE = 21; // image pixels
const STAGE_LABEL = "picture: arrow keys move, plus and minus zoom, 0 fits, 1 is one to one, "
  + "C held compares, M magnifies, B brushes";

/** The whole view: what the Fit button sets. */
export const FIT = Object.freeze({x: 0.5, y: 0.5, zoom: 0});

/** What the wipe and the held key can show of an image, "" for nothing. */
export function comparable(image) {
  return ["", ...(image.x_L ? ["bicubic"] : []), ...(image.hr ? ["HR"] : []), "fidelity", "realism"];
}

/** Screen pixels per image pixel of a zoom; 0 fits the canvas. Whole numbers from 1 up. */
export function realZoom({width, height}, canvas, zoom) {
  const s = zoom || Math.min(canvas.width / width, canvas.height / height);
  return s > 0.995 ? Math.max(1, Math.round(s)) : s;
}

/** From the fitting zoom up: steps of a root of two to 1, then whole numbers. */
export function zoomLevels(fit) {
  const below = [];
  for (let zoom = Math.SQRT1_2; zoom > fit * 1.05; zoom *= Math.SQRT1_2) below.unshift(zoom);
  return [fit, ...below, ...ZOOMS.filter(zoom => zoom > fit * 1.05)];
}

/** One pane: a picture of one model, and what lies over it. `app` is asked for the state and the look. */
export class Stage {
  constructor(app, p) {
    this.app = app;
    this.p = p;
    this.canvas = h("canvas", {class: "ifcsr-main"});
    this.over = h("canvas", {hidden: true});
    this.tint = h("canvas", {hidden: true});
    this.lens = h("canvas", {class: "ifcsr-lens", hidden: true, "aria-hidden": "true"});
    this.handle = h("div", {
      class: "ifcsr-wipe", role: "slider", tabindex: 0, "aria-label": "wipe", "aria-valuemin": 0,
      "aria-valuemax": 100, hidden: true,
    }, h("b", {}, "⇔"));
    this.badge = h("span", {class: "ifcsr-badge", hidden: true});
    this.ring = h("i", {class: "ifcsr-ring", hidden: true});
    this.label = h("strong", {});
    this.numbers = h("output", {class: "ifcsr-numbers"});
    this.reading = h("output", {class: "ifcsr-reading", hidden: true});
    this.box = h("div", {class: "ifcsr-stage", tabindex: 0, role: "application", "aria-label": STAGE_LABEL},
      this.canvas, this.over, this.tint, this.badge, this.handle, this.ring, this.lens);
    this.figure = h("figure", {class: "ifcsr-pane"}, this.label, this.box,
      h("figcaption", {}, this.numbers, this.reading));
    const {path} = app;
    const gpu = path === "webgl2" || (path === "auto" && app.state.image.panes.length <= 4 && hasGPU());
    try {
      this.painter = gpu ? new PainterGL(this.canvas) : new Painter2D(this.canvas);
    } catch {
      this.usePlainPath();
    }
    app.on(this.canvas, "webglcontextlost", () => {
      this.usePlainPath();
      app.stages.repaint("show");
    });
  }

  free() {
    this.painter?.free();
  }

  /** A lost or too small GPU: another canvas, painted pixel by pixel. */
  usePlainPath() {
    const canvas = h("canvas", {class: "ifcsr-main"});
    [canvas.width, canvas.height] = [this.canvas.width, this.canvas.height];
    this.canvas.replaceWith(canvas);
    Object.assign(this, {canvas, painter: new Painter2D(canvas), spot: null});
  }

  /** Fit the window's pixels; true if the size changed. */
  resize() {
    const rect = this.box.getBoundingClientRect(), ratio = devicePixelRatio || 1;
    const width = Math.round(rect.width * ratio), height = Math.round(rect.height * ratio);
    if (!width || !height || (this.canvas.width === width && this.canvas.height === height)) return false;
    for (const canvas of [this.canvas, this.over, this.tint]) [canvas.width, canvas.height] = [width, height];
    this.spot = null;
    return true;
  }

  /** Screen pixels per image pixel: of the view, or of another zoom. */
  zoom(zoom = this.app.state.view.zoom) {
    return realZoom(this.app.state.image, this.canvas, zoom);
  }

  /** kind: "gamma", "map" or "show": how much of the picture changed. */
  paint(ends, kind) {
    if (!this.canvas.width || !this.canvas.height) return;
    try {
      this.paintBlend(ends, kind);
    } catch (error) {
      if (this.painter.kind !== "webgl2") throw error;
      this.usePlainPath();
      this.paintBlend(ends, kind);
    }
    this.paintOver();
    this.paintLens(ends);
  }

  paintBlend(ends, kind) {
    const {state} = this.app;
    if (kind === "show" || this.ends !== ends || !this.spot) {
      const spot = place(state.image, this.canvas, {...state.view, zoom: this.zoom()});
      this.painter.show(ends, spot, state.map);
      Object.assign(this, {spot, ends, otherSpot: null, tintSpot: null});
    } else if (kind === "map") {
      this.painter.remap(state.map, ends);
      this.tintSpot = null;
    }
    this.painter.paint(state.gamma);
  }

  /** The other image (cut by the wipe, or whole while held) and the overlay, each drawn once per view. */
  paintOver() {
    const {look, state} = this.app, {spot} = this;
    if (!spot) return;
    const on = Boolean((look.holding || look.against) && look.other);
    this.over.hidden = !on;
    this.badge.hidden = !on;
    this.handle.hidden = !look.against || look.holding;
    if (on) {
      this.badge.textContent = {fidelity: "γ 0", realism: "γ 1"}[look.otherName] ?? look.otherName;
      if (this.otherSpot !== spot) this.paintOther(look.other[this.p] || look.other[0]);
      this.over.style.clipPath = look.holding ? "" : `inset(0 ${100 * (1 - look.wipe)}% 0 0)`;
      this.handle.style.left = `${100 * look.wipe}%`;
      this.handle.setAttribute("aria-valuenow", Math.round(100 * look.wipe));
    }
    this.tint.hidden = !look.tint;
    const moved = look.tint === "map" && this.tintGamma !== state.gamma;
    if (look.tint && (this.tintSpot !== spot || this.tintKind !== look.tint || moved)) this.paintTint();
  }

  paintOther(picture) {
    const {spot} = this, frame = new ImageData(spot.width, spot.height);
    const rgb = sampled(picture, spot, new Uint8Array(3 * spot.width * spot.height));
    blend(rgb, rgb, 0, new Uint32Array(frame.data.buffer));
    this.put(this.over, frame);
    this.otherSpot = spot;
  }

  paintTint() {
    const {look, state} = this.app, frame = new ImageData(this.spot.width, this.spot.height);
    if (look.tint === "difference") this.drawDifference(frame.data);
    else this.drawMap(frame.data);
    this.put(this.tint, frame);
    Object.assign(this, {tintSpot: this.spot, tintKind: look.tint, tintGamma: state.gamma});
  }

  put(canvas, frame) {
    const pen = canvas.getContext("2d");
    pen.clearRect(0, 0, canvas.width, canvas.height);
    pen.putImageData(frame, this.spot.left, this.spot.top);
  }

  drawDifference(out) {
    const {spot, ends} = this, n = spot.width * spot.height;
    const [fid, real] = [ends.fid, ends.real].map(picture => sampled(picture, spot, new Uint8Array(3 * n)));
    const colours = Array.from({length: 766}, (_, sum) => heat(sum / 3));
    for (let k = 0, i = 0; k < n; k++, i += 3) {
      let sum = 0;
      for (let c = 0; c < 3; c++) sum += Math.abs(real[i + c] - fid[i + c]);
      out.set(colours[sum], 4 * k);
      out[4 * k + 3] = 225;
    }
  }

  drawMap(out) {
    const {spot} = this, {map, gamma, image: {width, height}} = this.app.state;
    const cover = map && nearest(map.cover, width, height, spot);
    const paint = map && nearest(map.paint, width, height, spot);
    for (let k = 0; k < spot.width * spot.height; k++) {
      const g = map ? ((255 - cover[k]) * gamma + paint[k]) / 255 : gamma;
      out.set([230 * g + 20, 90, 230 * (1 - g) + 20, 130], 4 * k);
    }
  }

  /** A pixel-exact look at one place: whole screen pixels per image pixel, nearest neighbour. */
  paintLens(ends) {
    const {look, state} = this.app, at = look.cursor;
    this.lens.hidden = this.reading.hidden = !look.lens || !at;
    if (this.lens.hidden) return;
    const patch = this.patch(ends, Math.floor(at.x), Math.floor(at.y)), middle = LENS_SIDE >> 1;
    const shown = new Uint32Array(LENS_SIDE * LENS_SIDE);
    blend(patch.fid, patch.real, state.gamma, shown, patch.map);
    const times = 8 * Math.max(1, Math.round(devicePixelRatio)), side = LENS_SIDE * times;
    if (this.lens.width !== side) this.lens.width = this.lens.height = side;
    const frame = new ImageData(side, side), words = new Uint32Array(frame.data.buffer);
    for (let y = 0, o = 0; y < side; y++) {
      const row = Math.floor(y / times) * LENS_SIDE;
      for (let x = 0; x < side; x++, o++) words[o] = shown[row + Math.floor(x / times)];
    }
    const pen = this.lens.getContext("2d");
    pen.putImageData(frame, 0, 0);
    pen.strokeStyle = "#fff";
    pen.strokeRect(middle * times - 0.5, middle * times - 0.5, times + 1, times + 1);
    const k = middle * LENS_SIDE + middle, v = shown[k];
    const three = values => [values[3 * k], values[3 * k + 1], values[3 * k + 2]].join(" ");
    this.reading.textContent = `x ${Math.floor(at.x)}, y ${Math.floor(at.y)}: ${v & 255} ${v >> 8 & 255} `
      + `${v >> 16 & 255} (γ 0: ${three(patch.fid)}, γ 1: ${three(patch.real)})`;
    this.placeLens(at);
  }

  /** The pixels and the map around (x, y), black outside of the image. */
  patch(ends, x, y) {
    const {map, image: {width, height}} = this.app.state, n = LENS_SIDE * LENS_SIDE, middle = LENS_SIDE >> 1;
    const fid = new Uint8Array(3 * n), real = new Uint8Array(3 * n);
    const part = map && {cover: new Uint8Array(n), paint: new Uint8Array(n)};
    for (let k = 0; k < n; k++) {
      const px = x - middle + k % LENS_SIDE, py = y - middle + Math.floor(k / LENS_SIDE), i = py * width + px;
      if (px < 0 || py < 0 || px >= width || py >= height) continue;
      for (let c = 0; c < 3; c++) {
        fid[3 * k + c] = ends.fid.data[3 * i + c];
        real[3 * k + c] = ends.real.data[3 * i + c];
      }
      if (map) {
        part.cover[k] = map.cover[i];
        part.paint[k] = map.paint[i];
      }
    }
    return {fid, real, map: part};
  }

  placeLens(at) {
    const rect = this.box.getBoundingClientRect(), {spot} = this, ratio = this.canvas.width / rect.width;
    const x = (spot.originX + at.x * spot.zoom) / ratio, y = (spot.originY + at.y * spot.zoom) / ratio;
    const size = this.lens.width / ratio, left = x > rect.width / 2 ? x - size - 20 : x + 20;
    this.lens.style.width = this.lens.style.height = `${size}px`;
    this.lens.style.left = `${clamp(left, 0, Math.max(0, rect.width - size))}px`;
    this.lens.style.top = `${clamp(y - size / 2, 0, Math.max(0, rect.height - size))}px`;
  }

  /** The brush's outline around the cursor. */
  placeRing() {
    const {brush, look} = this.app, {ring, spot} = this;
    ring.hidden = !brush.on || !look.cursor || !spot;
    if (ring.hidden) return;
    const ratio = this.canvas.width / this.box.getBoundingClientRect().width;
    const side = brush.size * spot.zoom / ratio;
    ring.style.width = ring.style.height = `${side}px`;
    ring.style.left = `${(spot.originX + look.cursor.x * spot.zoom) / ratio - side / 2}px`;
    ring.style.top = `${(spot.originY + look.cursor.y * spot.zoom) / ratio - side / 2}px`;
  }
}

const KINDS = ["", "gamma", "map", "show"]; // each includes those before it

/** All panes: their layout, their zoom, and when they are painted. */
export class Stages {
  /** added(stage) is called for each new pane. */
  constructor(app, added) {
    this.app = app;
    this.added = added;
    this.box = h("div", {class: "ifcsr-stages"});
    this.list = [];
    this.pending = "";
    this.frame = 0; // the animation frame that is waited for
    this.observer = new ResizeObserver(app.safe(() => this.resize()));
    this.observer.observe(this.box);
  }

  free() {
    this.observer.disconnect();
    cancelAnimationFrame(this.frame);
    for (const stage of this.list) stage.free();
  }

  /** Size the panes for the shown image, before its pictures are there, so that nothing jumps. */
  layout() {
    const {image} = this.app.state, key = [image.panes.length, image.width, image.height].join();
    if (this.key === key) return;
    if (this.list.length !== image.panes.length) {
      for (const stage of this.list) stage.free();
      this.list = image.panes.map((_, p) => new Stage(this.app, p));
      this.list.forEach(this.added);
      this.box.replaceChildren(...this.list.map(stage => stage.figure));
    }
    const times = image.width < 320 ? Math.ceil(320 / image.width) : 1; // small images: whole multiples
    for (const [p, stage] of this.list.entries()) {
      stage.box.style.aspectRatio = `${image.width} / ${image.height}`;
      stage.figure.style.maxWidth = `${times * image.width}px`;
      stage.label.textContent = image.panes[p].label;
      stage.label.hidden = !image.panes[p].label;
    }
    this.key = key;
  }

  resize(force = false) {
    const changed = this.list.map(stage => stage.resize()).includes(true) || force;
    if (!changed || !this.app.shown) return;
    this.pending = "show"; // at once, in the same frame as the new size: a canvas that was resized is empty
    this.flush();
  }

  /** Paint at once for the first move in a frame, then at most once per frame. */
  repaint(kind) {
    if (KINDS.indexOf(kind) > KINDS.indexOf(this.pending)) this.pending = kind;
    if (this.frame || !this.app.shown) return;
    this.flush();
    this.frame = requestAnimationFrame(this.app.safe(() => {
      this.frame = 0;
      if (this.pending) this.repaint(this.pending);
    }));
  }

  flush() {
    const kind = this.pending, {shown} = this.app;
    this.pending = "";
    if (!kind || !shown) return;
    for (const [p, stage] of this.list.entries()) stage.paint(shown[p], kind);
    this.app.follow();
  }

  markZoomed() {
    for (const {box} of this.list) box.classList.toggle("ifcsr-zoomed", this.app.state.view.zoom > 0);
  }

  /** The next zoom up or down; `at` as in zoomTo. */
  zoomBy(steps, at = null, stage = this.list[0]) {
    const levels = zoomLevels(this.list[0].zoom(0)), now = stage.zoom(), top = levels.length - 1;
    const found = levels.findIndex(zoom => zoom >= now * 0.999), k = found === -1 ? top : found;
    const between = steps < 0 && levels[k] > now * 1.001; // the level below is one step down already
    const next = clamp(k + (between ? steps + 1 : steps), 0, top);
    this.zoomTo(levels[next], at, stage, next === 0);
  }

  /** Zoom so that the image point under `at` (canvas pixels; null: the middle) stays where it is. */
  zoomTo(zoom, at, stage, fit = false) {
    const {canvas, spot} = stage, {state} = this.app, {width, height} = state.image;
    if (fit || !spot) {
      state.setView(FIT);
      return;
    }
    const [px, py] = at || [canvas.width / 2, canvas.height / 2];
    const u = (px - spot.originX) / spot.zoom, v = (py - spot.originY) / spot.zoom;
    const x = (u - (px - canvas.width / 2) / zoom) / width;
    const y = (v - (py - canvas.height / 2) / zoom) / height;
    state.setView({x, y, zoom});
  }

  /** Move by canvas pixels. */
  pan(dx, dy, stage = this.list[0]) {
    const {spot, canvas} = stage, {state} = this.app, {width, height} = state.image;
    if (!state.view.zoom || !spot) return;
    const centre = (origin, total, size) => {
      const whole = size * spot.zoom, half = total / 2 / whole;
      return clamp((total / 2 - origin) / whole, Math.min(0.5, half), Math.max(0.5, 1 - half));
    };
    const x = centre(spot.originX + dx, canvas.width, width);
    const y = centre(spot.originY + dy, canvas.height, height);
    state.setView({x, y, zoom: state.view.zoom});
  }

  paintOver() {
    for (const stage of this.list) stage.paintOver();
  }

  /** Draw the compared image again when it next shows. */
  forgetOther() {
    for (const stage of this.list) stage.otherSpot = null;
  }

  placeRings() {
    for (const stage of this.list) stage.placeRing();
  }

  paintLenses() {
    const {shown} = this.app;
    for (const [p, stage] of this.list.entries()) {
      if (stage.spot && shown) stage.paintLens(shown[p]);
    }
  }

  /** The legend of the difference overlay. */
  static legend() {
    return h("span", {class: "ifcsr-legend", hidden: true}, "0", h("i", {}), `${HEAT_TOP}+ levels of 255`);
  }
}

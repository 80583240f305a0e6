// The brush on the gamma map. A stroke is as strong as its strongest dab, and it mixes with what
// was there when it began.

import {copiedMap, croppedMap, emptyMap} from "./state.js";

/** One stroke over a map of width x height. */
export class Stroke {
  /**
   * @param {?{cover: Uint8Array, paint: Uint8Array}} map painted in place; null starts an empty one
   * @param {number} width
   * @param {number} height
   * @param {{gamma: number, size: number, strength: number, erase: boolean}} settings size in image pixels
   */
  constructor(map, width, height, settings) {
    this.fresh = !map;
    this.map = map || emptyMap(width, height);
    this.base = copiedMap(this.map);
    const {gamma, size, strength, erase} = settings;
    this.settings = {gamma, size, strength, erase};
    this.size = {width, height};
    this.depth = new Uint8Array(width * height); // of the strongest dab so far
    this.rect = [width, height, 0, 0]; // touched: [x0, y0, x1, y1)
    this.last = null;
  }

  /** Is any pixel touched? */
  get touched() {
    return this.rect[2] > this.rect[0];
  }

  /** Draw to (x, y) in image coordinates, from where the last dab ended. */
  dab(x, y) {
    const r = this.settings.size / 2, [fromX, fromY] = this.last || [x, y];
    const steps = Math.max(1, Math.ceil(Math.hypot(x - fromX, y - fromY) / Math.max(1, r / 4)));
    for (let k = 1; k <= steps; k++) {
      this.stamp(fromX + (x - fromX) * k / steps, fromY + (y - fromY) * k / steps, r);
    }
    this.last = [x, y];
  }

  /** One round print: full in the middle, nothing at the rim. */
  stamp(cx, cy, r) {
    const {map, base, depth, rect} = this, {width, height} = this.size;
    const {gamma, strength, erase} = this.settings;
    const x0 = Math.max(0, Math.floor(cx - r)), x1 = Math.min(width - 1, Math.ceil(cx + r));
    const y0 = Math.max(0, Math.floor(cy - r)), y1 = Math.min(height - 1, Math.ceil(cy + r));
    if (x1 < x0 || y1 < y0) return;
    for (let y = y0; y <= y1; y++) {
      for (let x = x0; x <= x1; x++) {
        const d = ((x + 0.5 - cx) ** 2 + (y + 0.5 - cy) ** 2) / (r * r), i = y * width + x;
        if (d >= 1) continue;
        const soft = Math.round(255 * (1 - d * d));
        if (soft <= depth[i]) continue;
        depth[i] = soft;
        const s = soft / 255 * strength, kept = 1 - s;
        map.cover[i] = Math.round(base.cover[i] * kept + (erase ? 0 : 255 * s));
        const paint = Math.round(base.paint[i] * kept + (erase ? 0 : 255 * s * gamma));
        map.paint[i] = Math.min(map.cover[i], paint);
      }
    }
    this.rect = [
      Math.min(rect[0], x0), Math.min(rect[1], y0), Math.max(rect[2], x1 + 1), Math.max(rect[3], y1 + 1),
    ];
  }

  /** What undo needs: {before: {map, rect}, after: {map, rect}}. */
  step() {
    const {rect, size: {width}} = this;
    const before = this.fresh ? {map: null, rect: null} : {map: croppedMap(this.base, width, rect), rect};
    return {before, after: {map: croppedMap(this.map, width, rect), rect}};
  }
}

/** The brush's settings, and the stroke that is being drawn on the state's map. */
export class Brush {
  constructor(state) {
    this.state = state;
    Object.assign(this, {on: false, gamma: 1, size: 40, strength: 0.5, erase: false});
    this.stroke = null;
  }

  start() {
    const {state} = this, {width, height} = state.image;
    this.image = state.index;
    this.stroke = new Stroke(state.map, width, height, this);
    state.maps.set(this.image, this.stroke.map);
  }

  dab(x, y) {
    this.stroke.dab(x, y);
    this.state.emit("stroke");
  }

  /** Forget the stroke: the map is as it was before. */
  drop() {
    const {stroke, state} = this;
    if (stroke.fresh) state.maps.delete(this.image);
    else state.maps.set(this.image, stroke.base);
    this.stroke = null;
    state.emit("stroke");
  }

  /** The stroke is done: one step of undo, unless it touched nothing. */
  end() {
    const {stroke, state} = this;
    this.stroke = null;
    if (!stroke.touched) {
      if (stroke.fresh) state.maps.delete(this.image);
      return;
    }
    state.remember({kind: "map", image: this.image, ...stroke.step()});
    state.mapChanged();
  }
}

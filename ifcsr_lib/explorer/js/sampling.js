// Pictures on a screen's grid: where they lie, and which values the screen's pixels get.

import {clamp} from "./util.js";

/** An image and its halves: {levels: [{width, height, data RGB8}, ...]}, made when a zoom needs them. */
export class Picture {
  /** data: RGB8, height * width * 3 */
  constructor(width, height, data) {
    this.levels = [{width, height, data}];
  }

  get data() {
    return this.levels[0].data;
  }

  /** The picture halved m times. */
  level(m) {
    while (this.levels.length <= m) this.levels.push(halved(this.levels[this.levels.length - 1]));
    return this.levels[m];
  }
}

function halved({width, height, data}) {
  const w = Math.max(1, width >> 1), hh = Math.max(1, height >> 1), out = new Uint8Array(3 * w * hh);
  const right = width > 1 ? 3 : 0, down = height > 1 ? 3 * width : 0;
  for (let y = 0, o = 0; y < hh; y++) {
    for (let x = 0, i = 6 * width * y; x < w; x++, i += 6) {
      for (let c = 0; c < 3; c++, o++) {
        const k = i + c;
        out[o] = (data[k] + data[k + right] + data[k + down] + data[k + right + down] + 2) >> 2;
      }
    }
  }
  return {width: w, height: hh, data: out};
}

/**
 * Where an image lies on a canvas.
 * @param {{width: number, height: number}} image
 * @param {{width: number, height: number}} canvas
 * @param {{x: number, y: number, zoom: number}} view centre as fractions; canvas pixels per image pixel
 * @returns {{left: number, top: number, width: number, height: number, x0: number, y0: number, zoom: number,
 *   originX: number, originY: number}} left to height: the visible part in canvas pixels; x0, y0: the image
 *   coordinates of that part's corner; originX, originY: the image's corner on the canvas, perhaps outside
 */
export function place(image, canvas, view) {
  const {zoom} = view, w = image.width * zoom, hh = image.height * zoom;
  const edge = (total, size, centre) => size <= total ? Math.round((total - size) / 2)
    : Math.round(clamp(total / 2 - centre * size, total - size, 0));
  const left = edge(canvas.width, w, view.x), top = edge(canvas.height, hh, view.y);
  const x = Math.max(left, 0), y = Math.max(top, 0);
  const right = Math.min(Math.round(left + w), canvas.width);
  const bottom = Math.min(Math.round(top + hh), canvas.height);
  return {
    left: x, top: y, width: Math.max(right - x, 1), height: Math.max(bottom - y, 1),
    x0: (x - left) / zoom, y0: (y - top) / zoom, zoom, originX: left, originY: top,
  };
}

/**
 * RGB8 of the visible part: nearest neighbour at whole zooms, else bilinear from the halving just above the
 * screen's size.
 * @param {Picture} picture
 * @param {Object} spot from `place`
 * @param {Uint8Array} out spot.width * spot.height * 3, filled
 * @returns {Uint8Array} out
 */
export function sampled(picture, spot, out) {
  if (spot.zoom >= 1 && Number.isInteger(spot.zoom)) return magnified(picture.level(0), spot, out);
  const m = Math.max(0, Math.floor(-Math.log2(spot.zoom)));
  return interpolated(picture.level(m), 2 ** m, spot, out);
}

function magnified({width, height, data}, spot, out) {
  const {width: w, height: hh, zoom} = spot;
  const column = x => 3 * Math.min(width - 1, Math.floor(spot.x0 + (x + 0.5) / zoom));
  const columns = Int32Array.from({length: w}, (_, x) => column(x));
  for (let y = 0, o = 0; y < hh; y++) {
    const row = 3 * width * Math.min(height - 1, Math.floor(spot.y0 + (y + 0.5) / zoom));
    if (zoom === 1) {
      out.set(data.subarray(row + columns[0], row + columns[0] + 3 * w), o);
      o += 3 * w;
      continue;
    }
    for (let x = 0; x < w; x++, o += 3) {
      const i = row + columns[x];
      out[o] = data[i];
      out[o + 1] = data[i + 1];
      out[o + 2] = data[i + 2];
    }
  }
  return out;
}

/** scale: how many image pixels one pixel of this level is wide; weights in 1/256. */
function interpolated({width, height, data}, scale, spot, out) {
  const {width: w, height: hh, zoom} = spot;
  const left = new Int32Array(w), part = new Int32Array(w);
  const at = (t, size) => clamp(t, 0, size - 1);
  for (let x = 0; x < w; x++) {
    const t = at((spot.x0 + (x + 0.5) / zoom) / scale - 0.5, width);
    const k = Math.min(Math.floor(t), Math.max(width - 2, 0));
    left[x] = 3 * k;
    part[x] = width > 1 ? Math.round(256 * (t - k)) : 0;
  }
  const next = width > 1 ? 3 : 0, below = height > 1 ? 3 * width : 0;
  for (let y = 0, o = 0; y < hh; y++) {
    const t = at((spot.y0 + (y + 0.5) / zoom) / scale - 0.5, height);
    const k = Math.min(Math.floor(t), Math.max(height - 2, 0));
    const v = height > 1 ? Math.round(256 * (t - k)) : 0, row = 3 * width * k;
    for (let x = 0; x < w; x++) {
      const u = part[x];
      for (let c = 0, i = row + left[x]; c < 3; c++, i++, o++) {
        const a = (data[i] << 8) + u * (data[i + next] - data[i]);
        const b = (data[i + below] << 8) + u * (data[i + below + next] - data[i + below]);
        out[o] = ((a << 8) + v * (b - a) + 32768) >> 16;
      }
    }
  }
  return out;
}

/**
 * One plane of the visible part, nearest neighbour at every zoom.
 * @param {Uint8Array} plane height * width
 * @param {number} width
 * @param {number} height
 * @param {Object} spot from `place`
 * @returns {Uint8Array} spot.height * spot.width
 */
export function nearest(plane, width, height, spot) {
  const out = new Uint8Array(spot.width * spot.height);
  const column = x => Math.min(width - 1, Math.floor(spot.x0 + (x + 0.5) / spot.zoom));
  const columns = Int32Array.from({length: spot.width}, (_, x) => column(x));
  for (let y = 0, o = 0; y < spot.height; y++) {
    const row = width * Math.min(height - 1, Math.floor(spot.y0 + (y + 0.5) / spot.zoom));
    for (let x = 0; x < spot.width; x++, o++) out[o] = plane[row + columns[x]];
  }
  return out;
}

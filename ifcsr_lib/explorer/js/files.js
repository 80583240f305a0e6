// Files in and out: pictures, gamma maps, endpoint pairs.

import {openPair} from "./pair.js";
import {decodePNG, encodePNG, rgb8} from "./png.js";
import {h} from "./util.js";

/** A name without what file systems refuse. */
export const fileName = text => text.replace(/[^\w.-]+/g, "_");

/**
 * The map of a picture's red channel, which holds gamma everywhere.
 * @param {{width: number, height: number, channels: number, data: Uint8Array|Uint16Array}} picture
 * @returns {{cover: Uint8Array, paint: Uint8Array}}
 */
export function mapFromGrey(picture) {
  const rgb = rgb8(picture), n = picture.width * picture.height;
  const paint = new Uint8Array(n);
  for (let i = 0; i < n; i++) paint[i] = rgb[3 * i];
  return {cover: new Uint8Array(n).fill(255), paint};
}

/** gamma of each of n pixels in levels of 255, with a map or (null) without. */
export function mapToGrey(map, gamma, n) {
  const grey = new Uint8Array(n);
  for (let i = 0; i < n; i++) {
    grey[i] = Math.round(map ? (255 - map.cover[i]) * gamma + map.paint[i] : 255 * gamma);
  }
  return grey;
}

/**
 * E1 in 16 bit, from the files as they are (8 bit times 257).
 * @param {{data: Uint8Array|Uint16Array}} fid decoded RGB
 * @param {{data: Uint8Array|Uint16Array}} real as fid
 * @param {number} gamma
 * @param {?{cover: Uint8Array, paint: Uint8Array}} map
 * @returns {Uint16Array}
 */
export function blend16(fid, real, gamma, map) {
  const times = fid.data instanceof Uint16Array ? 1 : 257, out = new Uint16Array(fid.data.length);
  for (let k = 0; k < out.length; k++) {
    const n = Math.floor(k / 3), w = map ? ((255 - map.cover[n]) * gamma + map.paint[n]) / 255 : gamma;
    out[k] = Math.round(times * (fid.data[k] + w * (real.data[k] - fid.data[k])));
  }
  return out;
}

/** RGBA pixels without their alpha. */
export function withoutAlpha(rgba) {
  const n = rgba.length / 4, rgb = new Uint8Array(3 * n);
  for (let k = 0; k < n; k++) {
    for (let c = 0; c < 3; c++) rgb[3 * k + c] = rgba[4 * k + c];
  }
  return rgb;
}

/** What the file buttons do. */
export class Files {
  constructor(app) {
    this.app = app;
    const {root} = app;
    app.on(root, "dragover", event => event.preventDefault());
    app.on(root, "drop", async event => {
      event.preventDefault();
      for (const file of [...event.dataTransfer.files]) await this.open(file);
    });
  }

  /** Offer bytes as a download. */
  save(bytes, name, type) {
    const {root} = this.app, href = URL.createObjectURL(new Blob([bytes], {type}));
    const link = h("a", {href, download: fileName(name)});
    root.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(href), 10000); // also after free(): the download may still be read
    this.app.note(`saved: ${link.download}`);
  }

  /** The shown blend of each pane, in Python where there is a kernel. bits: 8 or 16. */
  async exportPNG(bits) {
    const {app} = this, {state, host} = app, {index, gamma, map} = state;
    app.alert("");
    if (host.live) {
      app.note("writing…");
      app.tellNow();
      host.action("export", {bits});
      return;
    }
    const {width, height, panes, name} = state.image;
    for (const [p, pane] of panes.entries()) {
      const texts = {
        Software: app.spec.software, gamma: String(gamma), image: name, model: pane.model, hash: pane.hash,
        "gamma map": map ? "painted" : "none",
      };
      const rgb = bits === 8 ? withoutAlpha(app.pixels(p)) : await this.wide(index, p, gamma, map);
      const file = `${[name, pane.label].filter(Boolean).join("_")}_gamma_${gamma.toFixed(3)}.png`;
      this.save(await encodePNG(width, height, 3, rgb, texts), file, "image/png");
    }
  }

  async wide(i, p, gamma, map) {
    const decoded = async end => decodePNG(await this.app.host.picture(`${i}/${p}/${end}`));
    const [fid, real] = await Promise.all(["fid", "real"].map(decoded));
    return blend16(fid, real, gamma, map);
  }

  async importMap(file) {
    const {app} = this, {width, height} = app.state.image;
    const png = await decodePNG(new Uint8Array(await file.arrayBuffer()), file.name);
    if (png.width !== width || png.height !== height) {
      const came = `${file.name} is ${png.width}x${png.height}`;
      throw new Error(`${came}; allowed: ${width}x${height}, the size of the image`);
    }
    app.alert("");
    app.state.replaceMap(mapFromGrey(png));
  }

  async exportMap() {
    const {state} = this.app, {width, height, name} = state.image;
    const grey = mapToGrey(state.map, state.gamma, width * height);
    this.save(await encodePNG(width, height, 1, grey), `${name}_gamma_map.png`, "image/png");
  }

  /** Add the images of an .ifcsr.zip and show the first of them. */
  async open(file) {
    const {app} = this, {host, state} = app;
    if (!/\.zip$/i.test(file.name)) {
      const map = "a gamma map goes through “Import map”";
      throw new Error(`${file.name}: allowed: .ifcsr.zip files, written by ends.save (${map})`);
    }
    const bytes = new Uint8Array(await file.arrayBuffer()), name = file.name.replace(/(\.ifcsr)?\.zip$/i, "");
    app.alert("");
    if (host.live) {
      app.note(`sending ${file.name} to Python…`);
      host.action("open", {name: file.name}, bytes);
      return;
    }
    if (state.image.panes.length > 1) {
      throw new Error("this page compares models; open the file on a page of one model");
    }
    const images = await openPair(bytes, file.name, name), first = state.images.length;
    for (const image of images) {
      for (const [key, png] of Object.entries(image.bytes)) {
        host.pictures.set(`${state.images.length}/${key}`, png);
      }
      state.addImage(image, image.gamma);
    }
    app.gallery.fill();
    app.note(`opened: ${file.name}`);
    await app.show(first);
    state.setGamma(images[0].gamma);
  }
}

// The pictures of a host, decoded when first asked for.

import {decodePNG, rgb8} from "./png.js";
import {Picture} from "./sampling.js";

const KEPT = 4; // decoded images; the oldest makes room

/** Decodes what host.picture(key) gives: PNG files. */
export class Pictures {
  constructor(host) {
    this.host = host;
    this.decoded = new Map(); // image: [{fid, real} of each pane]
  }

  /**
   * One picture of an image.
   * @param {string} key as in Python: "0/0/fid", "0/HR", ...
   * @param {{name: string, width: number, height: number}} image
   * @returns {Promise<Picture>} rejected if it is damaged or of another size
   */
  async one(key, image) {
    const png = await decodePNG(await this.host.picture(key), `${image.name} (${key})`);
    if (png.width !== image.width || png.height !== image.height) {
      throw new Error(`${key} is ${png.width}x${png.height}; allowed: ${image.width}x${image.height}`);
    }
    return new Picture(png.width, png.height, rgb8(png));
  }

  /** Both endpoints of image i: [{fid: Picture, real: Picture} of each pane]. */
  async endpoints(i, image) {
    if (this.decoded.has(i)) return this.decoded.get(i);
    const panes = await Promise.all(image.panes.map(async (_, p) => {
      const [fid, real] = await Promise.all(["fid", "real"].map(end => this.one(`${i}/${p}/${end}`, image)));
      return {fid, real};
    }));
    if (this.decoded.size >= KEPT) this.decoded.delete(this.decoded.keys().next().value);
    this.decoded.set(i, panes);
    return panes;
  }

  /** The two small pictures of the gallery: [fid, real], each {width, height, data RGB8}. */
  async thumbs(i, image) {
    if (image.thumb) {
      return Promise.all(["fid", "real"].map(async end => {
        const png = await decodePNG(await this.host.picture(`${i}/thumb_${end}`), image.name);
        return {width: png.width, height: png.height, data: rgb8(png)};
      }));
    }
    const [{fid, real}] = await this.endpoints(i, image);
    const halvings = Math.max(0, Math.ceil(Math.log2(Math.max(image.width, image.height) / 96)));
    return [fid.level(halvings), real.level(halvings)];
  }
}

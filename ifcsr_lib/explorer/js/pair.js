// Endpoint pairs, .ifcsr.zip: read as Endpoints.load reads them, with the same errors.

import {crc32, decodePNG, inflate} from "./png.js";

/**
 * The entries of a zip, stored or deflated, checked against their CRC.
 * @param {Uint8Array} bytes
 * @param {string} name of the file, for the errors
 * @returns {Promise<Map<string, Uint8Array>>}
 * @throws {Error} naming the file and what is wrong with it
 */
export async function unzip(bytes, name) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const bad = why => new Error(`${name} is not a whole .ifcsr.zip (${why}); write it again with ends.save`);
  let end = bytes.length - 22;
  while (end >= 0 && view.getUint32(end, true) !== 0x06054b50) end--;
  if (end < 0) throw bad("no zip directory");
  const files = new Map();
  let at = view.getUint32(end + 16, true);
  for (let i = view.getUint16(end + 10, true); i > 0; i--) {
    if (at + 46 > bytes.length || view.getUint32(at, true) !== 0x02014b50) throw bad("damaged directory");
    const method = view.getUint16(at + 10, true), crc = view.getUint32(at + 16, true);
    const size = view.getUint32(at + 20, true), length = view.getUint16(at + 28, true);
    const file = new TextDecoder().decode(bytes.subarray(at + 46, at + 46 + length));
    const local = view.getUint32(at + 42, true);
    if (local + 30 > bytes.length) throw bad("cut short");
    const from = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
    let body = bytes.subarray(from, from + size);
    if (body.length !== size) throw bad(`${file} is cut short`);
    if (method === 8) {
      body = await inflate(body, "deflate-raw").catch(() => {
        throw bad(`${file} does not unpack`);
      });
    } else if (method) throw bad(`${file} is packed by method ${method}`);
    if (crc32(body) !== crc) throw bad(`${file}: checksum`);
    files.set(file, body);
    at += 46 + length + view.getUint16(at + 30, true) + view.getUint16(at + 32, true);
  }
  return files;
}

/**
 * SHA-256 in hexadecimal digits; null where the browser has none (plain http from another machine): the zip's
 * CRC has to do.
 * @param {Uint8Array} bytes
 * @returns {Promise<string|null>}
 */
export async function sha256(bytes) {
  if (!globalThis.crypto || !crypto.subtle) return null;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, value => value.toString(16).padStart(2, "0")).join("");
}

const PART_KEYS = {x_fid: "0/fid", x_real: "0/real", x_L: "bicubic"};

/**
 * The images of an .ifcsr.zip, as the page's spec has them, each with its PNG files.
 * @param {Uint8Array} bytes
 * @param {string} file its name, for the errors
 * @param {string} name of the image; images of one file get a number after it
 * @returns {Promise<Object[]>} [{name, width, height, gamma, panes, ..., bytes: {"0/fid": png, ...}}]
 * @throws {Error} as Endpoints.load gives them
 */
export async function openPair(bytes, file, name) {
  const files = await unzip(bytes, file);
  const bad = why => new Error(`${file}: ${why}; write it again with ends.save`);
  if (!files.has("ifcsr.json")) throw bad("no ifcsr.json in it, so it is no endpoint pair");
  let card;
  try {
    card = JSON.parse(new TextDecoder().decode(files.get("ifcsr.json")));
  } catch {
    throw bad("ifcsr.json is not JSON");
  }
  if (card.format !== "ifcsr endpoints 1") {
    throw bad(`format ${JSON.stringify(card.format)}; allowed: "ifcsr endpoints 1"`);
  }
  const images = [];
  for (const [i, parts] of card.images.entries()) {
    const image = {
      name: card.images.length > 1 ? `${name} ${i}` : name,
      hr: false, x_L: "x_L" in parts, map: false, bytes: {},
    };
    for (const part of Object.keys(PART_KEYS).filter(key => key in parts || key !== "x_L")) {
      const entry = parts[part], data = entry && files.get(entry.file);
      if (!data) throw bad(`${part} of image ${i} is missing`);
      const digest = await sha256(data);
      if (digest !== null && digest !== entry.sha256) {
        throw bad(`${entry.file} is not the one ifcsr.json describes (sha256)`);
      }
      const png = await decodePNG(data, entry.file);
      if (image.width && (image.width !== png.width || image.height !== png.height)) {
        throw bad(`${entry.file} has another size`);
      }
      [image.width, image.height] = [png.width, png.height];
      image.bytes[PART_KEYS[part]] = data;
    }
    image.gamma = typeof card.gamma === "number" && card.gamma >= 0 && card.gamma <= 1 ? card.gamma : 0.5;
    image.panes = [{
      label: "", model: card.model, hash: card.hash,
      errors: null, consistency: null, difference: null, curves: null,
    }];
    images.push(image);
  }
  return images;
}

// PNG, read and written here, not by the browser: 16 bit stays 16 bit, no colour management touches a value.

const CRC = new Uint32Array(256).map((_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

/**
 * CRC-32 of the parts one after another, as PNG and zip use it.
 * @param {...Uint8Array} parts
 * @returns {number} an unsigned 32-bit number
 */
export function crc32(...parts) {
  let crc = -1;
  for (const bytes of parts) {
    for (let i = 0; i < bytes.length; i++) crc = CRC[(crc ^ bytes[i]) & 255] ^ (crc >>> 8);
  }
  return ~crc >>> 0;
}

async function piped(bytes, stream) {
  return new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(stream)).arrayBuffer());
}

/**
 * Unpack bytes.
 * @param {Uint8Array} bytes
 * @param {"deflate"|"deflate-raw"} format zlib's, as in PNG, or bare, as in zip
 * @returns {Promise<Uint8Array>} rejected if they are damaged
 */
export const inflate = (bytes, format) => piped(bytes, new DecompressionStream(format));

const deflate = bytes => piped(bytes, new CompressionStream("deflate"));

function concatenated(parts) {
  const out = new Uint8Array(parts.reduce((total, part) => total + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

/** The IDAT chunks joined; every chunk's checksum is compared. */
function imageData(bytes, view, bad) {
  const data = [];
  let at = 8;
  let ended = false;
  while (at + 12 <= bytes.length && !ended) {
    const length = view.getUint32(at);
    const tag = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    if (at + 12 + length > bytes.length) throw bad("cut short");
    const crc = crc32(bytes.subarray(at + 4, at + 8 + length));
    if (crc !== view.getUint32(at + 8 + length)) throw bad("checksum");
    if (tag === "IDAT") data.push(bytes.subarray(at + 8, at + 8 + length));
    ended = tag === "IEND";
    at += 12 + length;
  }
  if (!ended) throw bad("cut short");
  return concatenated(data);
}

/** Undo a row's filter in place. up: the row above, already undone; step: bytes per pixel. */
function unfilter(filter, line, up, step) {
  const n = line.length;
  if (filter === 1) {
    for (let i = step; i < n; i++) line[i] += line[i - step];
  } else if (filter === 2) {
    for (let i = 0; i < n; i++) line[i] += up[i];
  } else if (filter === 3) {
    for (let i = 0; i < n; i++) line[i] += ((i < step ? 0 : line[i - step]) + up[i]) >> 1;
  } else if (filter === 4) {
    for (let i = 0; i < step; i++) line[i] += up[i];
    for (let i = step; i < n; i++) {
      const a = line[i - step], b = up[i], c = up[i - step];
      const pa = Math.abs(b - c), pb = Math.abs(a - c), pc = Math.abs(a + b - 2 * c);
      line[i] += pa <= pb && pa <= pc ? a : pb <= pc ? b : c;
    }
  }
}

/** Palettes, interlacing and few bits: files of other programs, such as a gamma map. */
async function decodedByBrowser(bytes, bad) {
  const blob = new Blob([bytes], {type: "image/png"});
  const image = await createImageBitmap(blob, {colorSpaceConversion: "none"}).catch(() => {
    throw bad("the browser cannot read it");
  });
  const pen = new OffscreenCanvas(image.width, image.height).getContext("2d");
  pen.drawImage(image, 0, 0);
  const {width, height, data} = pen.getImageData(0, 0, image.width, image.height);
  return {width, height, channels: 4, data: new Uint8Array(data.buffer)};
}

/**
 * The pixels of a PNG.
 * @param {Uint8Array} bytes the file
 * @param {string} name of the file, for the errors
 * @returns {Promise<{width: number, height: number, channels: number, data: Uint8Array|Uint16Array}>}
 *   data: rows from the top, height * width * channels; Uint16Array for 16 bit. Palettes, interlacing and
 *   fewer than 8 bits come as RGBA.
 * @throws {Error} naming the file and what is wrong with it
 */
export async function decodePNG(bytes, name = "the file") {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const bad = why => new Error(`${name} is not a whole PNG image (${why}); get it again`);
  if (bytes.length < 45 || view.getUint32(0) !== 0x89504e47) throw bad("no PNG signature");
  const width = view.getUint32(16), height = view.getUint32(20);
  const [depth, type, , , interlace] = bytes.subarray(24, 29);
  const channels = {0: 1, 2: 3, 4: 2, 6: 4}[type];
  if (!channels || interlace || (depth !== 8 && depth !== 16)) return decodedByBrowser(bytes, bad);
  const step = channels * depth / 8, row = width * step;
  const raw = await inflate(imageData(bytes, view, bad), "deflate").catch(() => {
    throw bad("its data do not unpack");
  });
  if (raw.length !== height * (row + 1)) throw bad("wrong length");
  const out = new Uint8Array(height * row), none = new Uint8Array(row);
  for (let y = 0; y < height; y++) {
    const filter = raw[y * (row + 1)], line = raw.subarray(y * (row + 1) + 1, (y + 1) * (row + 1));
    unfilter(filter, line, y ? out.subarray((y - 1) * row, y * row) : none, step);
    out.set(line, y * row);
  }
  if (depth === 8) return {width, height, channels, data: out};
  const wide = new Uint16Array(out.length / 2);
  for (let i = 0; i < wide.length; i++) wide[i] = (out[2 * i] << 8) | out[2 * i + 1];
  return {width, height, channels, data: wide};
}

/**
 * A decoded picture as RGB8: grey tripled, alpha dropped, 16 bit to the nearest level.
 * @param {{width: number, height: number, channels: number, data: Uint8Array|Uint16Array}} picture
 * @returns {Uint8Array} height * width * 3; the data themselves if they are RGB8
 */
export function rgb8({width, height, channels, data}) {
  const n = width * height, wide = data instanceof Uint16Array, grey = channels < 3;
  if (channels === 3 && !wide) return data;
  const out = new Uint8Array(3 * n);
  for (let i = 0; i < n; i++) {
    for (let c = 0; c < 3; c++) {
      const value = data[i * channels + (grey ? 0 : c)];
      out[3 * i + c] = wide ? ((value + 128) / 257) | 0 : value;
    }
  }
  return out;
}

/**
 * A PNG file.
 * @param {number} width
 * @param {number} height
 * @param {1|2|3} channels grey, grey with alpha, RGB
 * @param {Uint8Array|Uint16Array} pixels height * width * channels, 8 or 16 bit a channel
 * @param {Object<string, string>} texts go into iTXt chunks
 * @returns {Promise<Uint8Array>}
 */
export async function encodePNG(width, height, channels, pixels, texts = {}) {
  const wide = pixels instanceof Uint16Array, row = width * channels * (wide ? 2 : 1);
  let bytes = pixels;
  if (wide) {
    bytes = new Uint8Array(2 * pixels.length);
    for (let i = 0; i < pixels.length; i++) {
      bytes[2 * i] = pixels[i] >> 8;
      bytes[2 * i + 1] = pixels[i] & 255;
    }
  }
  const raw = new Uint8Array(height * (row + 1));
  for (let y = 0; y < height; y++) { // filter 2: the difference to the row above
    const to = y * (row + 1) + 1, from = y * row;
    raw[to - 1] = 2;
    for (let i = 0; i < row; i++) raw[to + i] = bytes[from + i] - (y ? bytes[from + i - row] : 0);
  }
  const head = new Uint8Array(13), view = new DataView(head.buffer);
  const encode = text => new TextEncoder().encode(text);
  view.setUint32(0, width);
  view.setUint32(4, height);
  head.set([wide ? 16 : 8, {1: 0, 2: 4, 3: 2}[channels], 0, 0, 0], 8);
  const chunk = (tag, body) => {
    const ends = new DataView(new ArrayBuffer(8)), name = encode(tag);
    ends.setUint32(0, body.length);
    ends.setUint32(4, crc32(name, body));
    return [new Uint8Array(ends.buffer, 0, 4), name, body, new Uint8Array(ends.buffer, 4, 4)];
  };
  const note = ([key, text]) => chunk("iTXt", encode(`${key}\0\0\0\0\0${text}`));
  const notes = Object.entries(texts).flatMap(note);
  return concatenated([
    new Uint8Array([137, 80, 78, 71, 13, 10, 26, 10]),
    ...chunk("IHDR", head),
    ...notes,
    ...chunk("IDAT", await deflate(raw)),
    ...chunk("IEND", new Uint8Array(0)),
  ]);
}

// The slider's front end: one module for the notebook (anywidget calls `render`) and for the exported page (`page`).
// A host hands over a description of the images and their PNG bytes; everything after that, blending included, happens
// here. No library, no network, no kernel while gamma moves.

const ONE = 65536; // gamma as a 16-bit fraction: within 0.002 of a level of E1 in real numbers
const ZOOMS = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]; // screen pixels per image pixel, nearest neighbour
const STEP = 0.01, PAGE = 0.1;
const COLOURS = ["#2f6fde", "#d9822b", "#2f9e63", "#a24bc4", "#c23b3b", "#4a8d99"];
const PARTS = ["x_fid", "x_real", "x_L"];

const clamp = (v, low, high) => Math.min(Math.max(v, low), high);
const decibel = (mse, eps) => -10 * Math.log10(mse + eps);
const quadratic = ([f, r, c], g) => (1 - g) ** 2 * f + g * g * r + 2 * g * (1 - g) * c;
const readable = error => String((error && error.message) || error);

function checked(g) {
  if (typeof g !== "number" || !(g >= 0 && g <= 1)) throw new RangeError(`gamma=${g}; allowed: numbers from 0 to 1`);
  return g;
}

// bytes ---------------------------------------------------------------------------------------------------------------

const CRC = new Uint32Array(256).map((_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

function crc32(...parts) {
  let c = -1;
  for (const bytes of parts) for (let i = 0; i < bytes.length; i++) c = CRC[(c ^ bytes[i]) & 255] ^ (c >>> 8);
  return ~c >>> 0;
}

async function piped(bytes, stream) {
  return new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(stream)).arrayBuffer());
}
const inflate = (bytes, format) => piped(bytes, new DecompressionStream(format));
const deflate = bytes => piped(bytes, new CompressionStream("deflate"));

function joined(parts) {
  const out = new Uint8Array(parts.reduce((n, p) => n + p.length, 0));
  let at = 0;
  for (const p of parts) { out.set(p, at); at += p.length; }
  return out;
}

// PNG, read here and not by the browser: 16 bit stays 16 bit, and no colour management touches a value.
// Returns {width, height, channels, data: Uint8Array or Uint16Array, height * width * channels}.
async function decodePNG(bytes, name = "the file") {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const bad = why => new Error(`${name} is not a whole PNG image (${why}); get it again`);
  if (bytes.length < 45 || view.getUint32(0) !== 0x89504e47) throw bad("no PNG signature");
  const width = view.getUint32(16), height = view.getUint32(20), [depth, type, , , interlace] = bytes.subarray(24, 29);
  const channels = {0: 1, 2: 3, 4: 2, 6: 4}[type];
  if (!channels || interlace || (depth !== 8 && depth !== 16)) return browserDecode(bytes, bad);
  const data = [];
  let at = 8, ended = false;
  while (at + 12 <= bytes.length && !ended) {
    const length = view.getUint32(at), tag = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    if (at + 12 + length > bytes.length) throw bad("cut short");
    if (crc32(bytes.subarray(at + 4, at + 8 + length)) !== view.getUint32(at + 8 + length)) throw bad("checksum");
    if (tag === "IDAT") data.push(bytes.subarray(at + 8, at + 8 + length));
    ended = tag === "IEND";
    at += 12 + length;
  }
  if (!ended) throw bad("cut short");
  const step = channels * depth / 8, row = width * step;
  const raw = await inflate(joined(data), "deflate").catch(() => { throw bad("its data do not unpack"); });
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

function unfilter(filter, line, up, step) {
  const n = line.length;
  if (filter === 1) for (let i = step; i < n; i++) line[i] += line[i - step];
  else if (filter === 2) for (let i = 0; i < n; i++) line[i] += up[i];
  else if (filter === 3) for (let i = 0; i < n; i++) line[i] += ((i < step ? 0 : line[i - step]) + up[i]) >> 1;
  else if (filter === 4) {
    for (let i = 0; i < step; i++) line[i] += up[i];
    for (let i = step; i < n; i++) {
      const a = line[i - step], b = up[i], c = up[i - step];
      const pa = Math.abs(b - c), pb = Math.abs(a - c), pc = Math.abs(a + b - 2 * c);
      line[i] += pa <= pb && pa <= pc ? a : pb <= pc ? b : c;
    }
  }
}

// Palettes, interlacing and few bits: files of other programs, such as a gamma map.
async function browserDecode(bytes, bad) {
  const image = await createImageBitmap(new Blob([bytes], {type: "image/png"}), {colorSpaceConversion: "none"})
    .catch(() => { throw bad("the browser cannot read it"); });
  const canvas = new OffscreenCanvas(image.width, image.height), pen = canvas.getContext("2d");
  pen.drawImage(image, 0, 0);
  const {width, height, data} = pen.getImageData(0, 0, image.width, image.height);
  return {width, height, channels: 4, data: new Uint8Array(data.buffer)};
}

function rgb8({width, height, channels, data}) {
  const n = width * height, wide = data instanceof Uint16Array, grey = channels < 3;
  if (channels === 3 && !wide) return data;
  const out = new Uint8Array(3 * n);
  for (let i = 0; i < n; i++) {
    for (let c = 0; c < 3; c++) {
      const v = data[i * channels + (grey ? 0 : c)];
      out[3 * i + c] = wide ? ((v + 128) / 257) | 0 : v; // 16 bit to the nearest level
    }
  }
  return out;
}

// pixels: Uint8Array or Uint16Array of height * width * channels; texts go into iTXt chunks.
async function encodePNG(width, height, channels, pixels, texts = {}) {
  const wide = pixels instanceof Uint16Array, row = width * channels * (wide ? 2 : 1);
  let bytes = pixels;
  if (wide) {
    bytes = new Uint8Array(2 * pixels.length);
    for (let i = 0; i < pixels.length; i++) { bytes[2 * i] = pixels[i] >> 8; bytes[2 * i + 1] = pixels[i] & 255; }
  }
  const raw = new Uint8Array(height * (row + 1));
  for (let y = 0; y < height; y++) { // filter "up"
    const to = y * (row + 1) + 1, from = y * row;
    raw[to - 1] = 2;
    for (let i = 0; i < row; i++) raw[to + i] = bytes[from + i] - (y ? bytes[from + i - row] : 0);
  }
  const head = new Uint8Array(13), view = new DataView(head.buffer), encode = s => new TextEncoder().encode(s);
  view.setUint32(0, width);
  view.setUint32(4, height);
  head.set([wide ? 16 : 8, {1: 0, 2: 4, 3: 2}[channels], 0, 0, 0], 8);
  const chunk = (tag, body) => {
    const ends = new DataView(new ArrayBuffer(8)), name = encode(tag);
    ends.setUint32(0, body.length);
    ends.setUint32(4, crc32(name, body));
    return [new Uint8Array(ends.buffer, 0, 4), name, body, new Uint8Array(ends.buffer, 4, 4)];
  };
  const notes = Object.entries(texts).flatMap(([k, v]) => chunk("iTXt", encode(`${k}\0\0\0\0\0${v}`)));
  return joined([new Uint8Array([137, 80, 78, 71, 13, 10, 26, 10]), ...chunk("IHDR", head), ...notes,
    ...chunk("IDAT", await deflate(raw)), ...chunk("IEND", new Uint8Array(0))]);
}

// {name: bytes} of a zip; stored and deflated entries, checked against their CRC.
async function unzip(bytes, name) {
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
    const file = new TextDecoder().decode(bytes.subarray(at + 46, at + 46 + length)), local = view.getUint32(at + 42, true);
    if (local + 30 > bytes.length) throw bad("cut short");
    const from = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
    let body = bytes.subarray(from, from + size);
    if (body.length !== size) throw bad(`${file} is cut short`);
    if (method === 8) body = await inflate(body, "deflate-raw").catch(() => { throw bad(`${file} does not unpack`); });
    else if (method) throw bad(`${file} is packed by method ${method}`);
    if (crc32(body) !== crc) throw bad(`${file}: checksum`);
    files.set(file, body);
    at += 46 + length + view.getUint16(at + 30, true) + view.getUint16(at + 32, true);
  }
  return files;
}

async function sha256(bytes) {
  if (!globalThis.crypto || !crypto.subtle) return null; // plain http from another machine: the zip's CRC has to do
  return Array.from(new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)), v => v.toString(16).padStart(2, "0")).join("");
}

// The images of an .ifcsr.zip: [{name, width, height, ..., bytes: {"0/fid": png, ...}}], errors as Endpoints.load gives.
async function openPair(bytes, file, name) {
  const files = await unzip(bytes, file), bad = why => new Error(`${file}: ${why}; write it again with ends.save`);
  if (!files.has("ifcsr.json")) throw bad("no ifcsr.json in it, so it is no endpoint pair");
  let card;
  try { card = JSON.parse(new TextDecoder().decode(files.get("ifcsr.json"))); } catch { throw bad("ifcsr.json is not JSON"); }
  if (card.format !== "ifcsr endpoints 1") throw bad(`format ${JSON.stringify(card.format)}; allowed: "ifcsr endpoints 1"`);
  const images = [];
  for (const [i, parts] of card.images.entries()) {
    const image = {name: card.images.length > 1 ? `${name} ${i}` : name, hr: false, x_L: "x_L" in parts, map: false, bytes: {}};
    for (const part of PARTS.filter(p => p in parts || p !== "x_L")) {
      const entry = parts[part], data = entry && files.get(entry.file);
      if (!data) throw bad(`${part} of image ${i} is missing`);
      const digest = await sha256(data);
      if (digest !== null && digest !== entry.sha256) throw bad(`${entry.file} is not the one ifcsr.json describes (sha256)`);
      const png = await decodePNG(data, entry.file);
      if (image.width && (image.width !== png.width || image.height !== png.height)) throw bad(`${entry.file} has another size`);
      [image.width, image.height] = [png.width, png.height];
      image.bytes[{x_fid: "0/fid", x_real: "0/real", x_L: "bicubic"}[part]] = data;
    }
    image.gamma = typeof card.gamma === "number" && card.gamma >= 0 && card.gamma <= 1 ? card.gamma : 0.5;
    image.panes = [{label: "", model: card.model, hash: card.hash, errors: null, consistency: null, difference: null, curves: null}];
    images.push(image);
  }
  return images;
}

// pictures on a screen ------------------------------------------------------------------------------------------------

// An image and its halves: {levels: [{width, height, data RGB8}, ...]}, made when a zoom needs them.
class Picture {
  constructor(width, height, data) { this.levels = [{width, height, data}]; }
  get data() { return this.levels[0].data; }
  level(m) {
    while (this.levels.length <= m) this.levels.push(halved(this.levels[this.levels.length - 1]));
    return this.levels[m];
  }
}

function halved({width, height, data}) {
  const w = Math.max(1, width >> 1), h = Math.max(1, height >> 1), out = new Uint8Array(3 * w * h);
  const right = width > 1 ? 3 : 0, down = height > 1 ? 3 * width : 0;
  for (let y = 0, o = 0; y < h; y++) {
    for (let x = 0, i = 6 * width * y; x < w; x++, i += 6) {
      for (let c = 0; c < 3; c++, o++) out[o] = (data[i + c] + data[i + c + right] + data[i + c + down] + data[i + c + right + down] + 2) >> 2;
    }
  }
  return {width: w, height: h, data: out};
}

// Where an image lies on a canvas: left, top, width, height of its visible part in canvas pixels, and x0, y0, the image
// coordinates of that part's corner; zoom in canvas pixels per image pixel.
function place(image, canvas, view) {
  const {zoom} = view, w = image.width * zoom, h = image.height * zoom;
  const edge = (total, size, centre) => size <= total ? Math.round((total - size) / 2)
    : Math.round(clamp(total / 2 - centre * size, total - size, 0));
  const left = edge(canvas.width, w, view.x), top = edge(canvas.height, h, view.y);
  const x = Math.max(left, 0), y = Math.max(top, 0);
  const right = Math.min(Math.round(left + w), canvas.width), bottom = Math.min(Math.round(top + h), canvas.height);
  return {left: x, top: y, width: Math.max(right - x, 1), height: Math.max(bottom - y, 1),
    x0: (x - left) / zoom, y0: (y - top) / zoom, zoom, originX: left, originY: top};
}

// RGB8 of the visible part: nearest neighbour at whole zooms, else bilinear from the halving just above the screen's size.
function sampled(picture, spot, out) {
  const {width: w, height: h, zoom} = spot;
  if (zoom >= 1 && Number.isInteger(zoom)) {
    const {width, height, data} = picture.level(0);
    const columns = Int32Array.from({length: w}, (_, x) => 3 * Math.min(width - 1, Math.floor(spot.x0 + (x + 0.5) / zoom)));
    for (let y = 0, o = 0; y < h; y++) {
      const row = 3 * width * Math.min(height - 1, Math.floor(spot.y0 + (y + 0.5) / zoom));
      if (zoom === 1) { out.set(data.subarray(row + columns[0], row + columns[0] + 3 * w), o); o += 3 * w; continue; }
      for (let x = 0; x < w; x++, o += 3) {
        const i = row + columns[x];
        out[o] = data[i]; out[o + 1] = data[i + 1]; out[o + 2] = data[i + 2];
      }
    }
    return out;
  }
  const m = Math.max(0, Math.floor(-Math.log2(zoom))), {width, height, data} = picture.level(m), scale = 2 ** m;
  const left = new Int32Array(w), part = new Int32Array(w);
  const at = (t, size) => clamp(t, 0, size - 1);
  for (let x = 0; x < w; x++) {
    const t = at((spot.x0 + (x + 0.5) / zoom) / scale - 0.5, width), k = Math.min(Math.floor(t), Math.max(width - 2, 0));
    left[x] = 3 * k;
    part[x] = width > 1 ? Math.round(256 * (t - k)) : 0;
  }
  for (let y = 0, o = 0; y < h; y++) {
    const t = at((spot.y0 + (y + 0.5) / zoom) / scale - 0.5, height), k = Math.min(Math.floor(t), Math.max(height - 2, 0));
    const v = height > 1 ? Math.round(256 * (t - k)) : 0, row = 3 * width * k, below = height > 1 ? 3 * width : 0;
    for (let x = 0; x < w; x++) {
      const u = part[x], next = width > 1 ? 3 : 0;
      for (let c = 0, i = row + left[x]; c < 3; c++, i++, o++) {
        const a = (data[i] << 8) + u * (data[i + next] - data[i]);
        const b = (data[i + below] << 8) + u * (data[i + below + next] - data[i + below]);
        out[o] = ((a << 8) + v * (b - a) + 32768) >> 16;
      }
    }
  }
  return out;
}

function nearest(plane, width, height, spot) {
  const out = new Uint8Array(spot.width * spot.height);
  const columns = Int32Array.from({length: spot.width}, (_, x) => Math.min(width - 1, Math.floor(spot.x0 + (x + 0.5) / spot.zoom)));
  for (let y = 0, o = 0; y < spot.height; y++) {
    const row = width * Math.min(height - 1, Math.floor(spot.y0 + (y + 0.5) / spot.zoom));
    for (let x = 0; x < spot.width; x++, o++) out[o] = plane[row + columns[x]];
  }
  return out;
}

// E1 in 8-bit rounding, RGB8 ends to RGBA. map: {cover, paint} planes, gamma = ((255 - cover) g + paint) / 255.
function blend(fid, real, gamma, out, map = null) {
  const n = out.length, G = Math.round(gamma * ONE);
  if (map) {
    const {cover, paint} = map, scale = ONE / 255;
    for (let k = 0, i = 0; k < n; k++, i += 3) {
      const W = ((255 - cover[k]) * gamma + paint[k]) * scale + 0.5 | 0;
      const r = fid[i], g = fid[i + 1], b = fid[i + 2];
      out[k] = 0xff000000 | ((b << 16) + (real[i + 2] - b) * W + 32768 & 0xff0000)
        | ((g << 16) + (real[i + 1] - g) * W + 32768 >> 8 & 0xff00) | (r << 16) + (real[i] - r) * W + 32768 >> 16;
    }
    return;
  }
  for (let k = 0, i = 0; k < n; k++, i += 3) {
    const r = fid[i], g = fid[i + 1], b = fid[i + 2];
    out[k] = 0xff000000 | ((b << 16) + (real[i + 2] - b) * G + 32768 & 0xff0000)
      | ((g << 16) + (real[i + 1] - g) * G + 32768 >> 8 & 0xff00) | (r << 16) + (real[i] - r) * G + 32768 >> 16;
  }
}

// The plain path: both ends once on the screen's grid, then each gamma is one pass over the visible pixels.
class Painter2D {
  constructor(canvas) {
    this.kind = "2d";
    this.canvas = canvas;
    this.pen = canvas.getContext("2d", {alpha: true, willReadFrequently: true});
  }
  show(ends, spot, map) {
    const n = 3 * spot.width * spot.height;
    if (!this.frame || this.frame.width !== spot.width || this.frame.height !== spot.height) {
      this.frame = new ImageData(spot.width, spot.height);
      this.words = new Uint32Array(this.frame.data.buffer);
      [this.fid, this.real] = [new Uint8Array(n), new Uint8Array(n)];
    }
    sampled(ends.fid, spot, this.fid);
    sampled(ends.real, spot, this.real);
    this.spot = spot;
    this.remap(map, ends);
    this.pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
  }
  remap(map, ends) {
    const {width, height} = ends.fid.levels[0];
    this.map = map && {cover: nearest(map.cover, width, height, this.spot), paint: nearest(map.paint, width, height, this.spot)};
  }
  paint(gamma) {
    blend(this.fid, this.real, gamma, this.words, this.map);
    this.pen.putImageData(this.frame, this.spot.left, this.spot.top);
  }
  read() { return this.pen.getImageData(0, 0, this.canvas.width, this.canvas.height).data; }
  free() {}
}

const VERTEX = `#version 300 es
void main() { gl_Position = vec4(vec2(gl_VertexID & 1, gl_VertexID >> 1) * 4.0 - 1.0, 0.0, 1.0); }`;
const FRAGMENT = `#version 300 es
precision highp float;
precision highp int;
uniform sampler2D fid, real, map;
uniform vec4 box;      // originX, originY, zoom, canvas height
uniform vec2 size;     // of the image
uniform float gamma, mapped;
out vec4 colour;
void main() {
  vec2 p = (vec2(gl_FragCoord.x, box.w - gl_FragCoord.y) - box.xy) / box.z;
  if (p.x < 0.0 || p.y < 0.0 || p.x >= size.x || p.y >= size.y) { colour = vec4(0.0); return; }
  ivec2 k = ivec2(p);
  bool whole = box.z >= 1.0 && box.z == floor(box.z);
  float lod = max(0.0, floor(-log2(box.z)));
  vec3 f = whole ? texelFetch(fid, k, 0).rgb : textureLod(fid, p / size, lod).rgb;
  vec3 r = whole ? texelFetch(real, k, 0).rgb : textureLod(real, p / size, lod).rgb;
  float g = gamma;
  if (mapped > 0.5) { vec2 m = texelFetch(map, k, 0).rg; g = (1.0 - m.r) * gamma + m.g; }
  ivec3 low = ivec3(f * 255.0 + 0.5), high = ivec3(r * 255.0 + 0.5); // the whole numbers of blend()
  colour = vec4(vec3((low * 65536 + (high - low) * int(g * 65536.0 + 0.5) + 32768) >> 16) / 255.0, 1.0);
}`;

// The same on a GPU: ends are textures, a gamma is one uniform.
class PainterGL {
  constructor(canvas) {
    this.kind = "webgl2";
    this.canvas = canvas;
    const gl = this.gl = canvas.getContext("webgl2", {antialias: false, depth: false, preserveDrawingBuffer: true});
    if (!gl) throw new Error("no WebGL2");
    this.program = gl.createProgram();
    for (const [type, text] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(type);
      gl.shaderSource(shader, text);
      gl.compileShader(shader);
      gl.attachShader(this.program, shader);
    }
    gl.linkProgram(this.program);
    if (!gl.getProgramParameter(this.program, gl.LINK_STATUS)) throw new Error(`shader: ${gl.getProgramInfoLog(this.program)}`);
    gl.useProgram(this.program);
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
    this.at = name => gl.getUniformLocation(this.program, name);
    this.textures = ["fid", "real", "map"].map((name, unit) => {
      gl.activeTexture(gl.TEXTURE0 + unit);
      const texture = gl.createTexture();
      gl.bindTexture(gl.TEXTURE_2D, texture);
      for (const axis of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(gl.TEXTURE_2D, axis, gl.CLAMP_TO_EDGE);
      gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, name === "map" ? gl.NEAREST : gl.LINEAR_MIPMAP_NEAREST);
      gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, name === "map" ? gl.NEAREST : gl.LINEAR);
      gl.uniform1i(this.at(name), unit);
      return texture;
    });
  }
  show(ends, spot, map) {
    const {gl} = this, {width, height} = ends.fid.levels[0];
    if (Math.max(width, height) > gl.getParameter(gl.MAX_TEXTURE_SIZE)) throw new Error("larger than a texture of this GPU");
    if (this.ends !== ends) {
      for (const [unit, picture] of [ends.fid, ends.real].entries()) {
        gl.activeTexture(gl.TEXTURE0 + unit);
        gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGB8, width, height, 0, gl.RGB, gl.UNSIGNED_BYTE, picture.data);
        gl.generateMipmap(gl.TEXTURE_2D);
      }
      this.ends = ends;
    }
    this.spot = spot;
    this.remap(map, ends);
    gl.viewport(0, 0, this.canvas.width, this.canvas.height);
    gl.uniform4f(this.at("box"), spot.originX, spot.originY, spot.zoom, this.canvas.height);
    gl.uniform2f(this.at("size"), width, height);
  }
  remap(map, ends) {
    const {gl} = this, {width, height} = ends.fid.levels[0];
    gl.uniform1f(this.at("mapped"), map ? 1 : 0);
    if (!map) return;
    const pairs = new Uint8Array(2 * map.cover.length);
    for (let i = 0; i < map.cover.length; i++) { pairs[2 * i] = map.cover[i]; pairs[2 * i + 1] = map.paint[i]; }
    gl.activeTexture(gl.TEXTURE2);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RG8, width, height, 0, gl.RG, gl.UNSIGNED_BYTE, pairs);
  }
  paint(gamma) {
    this.gl.uniform1f(this.at("gamma"), gamma);
    this.gl.drawArrays(this.gl.TRIANGLES, 0, 3);
  }
  read() {
    const {gl} = this, {width, height} = this.canvas, out = new Uint8ClampedArray(4 * width * height);
    gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, out);
    const flipped = new Uint8ClampedArray(out.length);
    for (let y = 0; y < height; y++) flipped.set(out.subarray(4 * width * y, 4 * width * (y + 1)), 4 * width * (height - 1 - y));
    return flipped;
  }
  free() { this.gl.getExtension("WEBGL_lose_context")?.loseContext(); }
}

// A GPU that is really there; software GL is slower than the plain path.
function hasGPU() {
  const gl = globalThis.OffscreenCanvas && new OffscreenCanvas(1, 1).getContext("webgl2");
  if (!gl) return false;
  const info = gl.getExtension("WEBGL_debug_renderer_info");
  const name = String(info ? gl.getParameter(info.UNMASKED_RENDERER_WEBGL) : gl.getParameter(gl.RENDERER));
  gl.getExtension("WEBGL_lose_context")?.loseContext();
  return !/swiftshader|llvmpipe|softpipe|software|basic render/i.test(name);
}

const HEAT = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]]; // five stops of "inferno"
const HEAT_TOP = 64; // mean |x_real - x_fid| of the three channels, in levels, that is brightest

function heat(v) {
  const t = clamp(v / HEAT_TOP, 0, 1) * 4, k = Math.min(3, Math.floor(t)), u = t - k;
  return HEAT[k].map((a, c) => Math.round(a + u * (HEAT[k + 1][c] - a)));
}

// state and painting ------------------------------------------------------------------------------------------------------------

// h("button", {class: "x", onclick}, ...children): an element; attributes, unless a property of that name is a function
function h(tag, options = {}, ...children) {
  const svg = ["svg", "path", "line", "circle", "text", "title"].includes(tag);
  const element = svg ? document.createElementNS("http:" + "//www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(options)) {
    if (value === true) element.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children.filter(c => c !== null));
  return element;
}

class Scene {
  // host: {live, spec, state, picture(key), changed(state), map(i, png), action(kind, detail), report(text)}
  constructor(host, root, options = {}) {
    this.host = host;
    this.root = root;
    this.path = options.path || "auto";
    this.stop = new AbortController();
    Object.assign(this, {against: "", wipe: 0.5, holding: false, tint: "", lensOn: false, cursor: null, loaded: new Map(), maps: new Map(),
      past: [], future: [], pending: "", painted: false, panes: [], pointers: new Map()});
    this.brush = {on: false, gamma: 1, size: 40, strength: 0.5, erase: false};
    this.spec = host.spec;
    this.take(host.state);
    this.build();
    this.ready = this.pick(this.index);
    this.ready.catch(error => this.say(error));
    new ResizeObserver(this.safe(() => this.resize())).observe(this.stagesBox);
  }

  // errors: shown in the message line, told to the host, never swallowed
  safe(f) {
    return (...args) => {
      try {
        const result = f.apply(this, args);
        if (result && result.catch) result.catch(error => this.say(error));
        return result;
      } catch (error) { this.say(error); }
    };
  }
  on(target, types, f, options = {}) {
    for (const type of types.split(" ")) target.addEventListener(type, this.safe(f), {signal: this.stop.signal, ...options});
  }
  say(error) {
    console.error(error);
    const text = readable(error);
    this.alert(text);
    this.host.report(text);
  }
  alert(text) { this.message.textContent = text; }
  note(text) { this.status.textContent = text; }
  free() {
    this.stop.abort();
    clearTimeout(this.telling);
    for (const pane of this.panes) pane.painter?.free();
  }

  // state
  get image() { return this.spec.images[this.index]; }
  get gamma() { return this.gammas[this.index]; }
  get map() { return this.maps.get(this.index) || null; }
  take({gammas, same_gamma, index, view}) {
    this.same = same_gamma;
    this.index = index;
    this.gammas = [...gammas];
    this.view = {x: view[0], y: view[1], zoom: view[2]};
  }
  // the other side (Python, another view of the same model) moved
  receive(state) {
    const before = this.state();
    if (JSON.stringify(before) === JSON.stringify({...before, ...state})) return;
    this.take(state);
    this.sameBox.checked = this.same;
    this.zoomed();
    if (this.index !== before.index) { this.ready = this.pick(this.index); this.ready.catch(error => this.say(error)); return; }
    this.repaint(JSON.stringify(before.view) === JSON.stringify(state.view) ? "gamma" : "show");
  }
  state() {
    const {x, y, zoom} = this.view;
    return {gamma: this.gamma, gammas: [...this.gammas], same_gamma: this.same, index: this.index, view: [x, y, zoom]};
  }
  tell() { // at most every 80 ms, and the last one always; painting does not wait for it
    this.telling ??= setTimeout(this.safe(() => { this.telling = undefined; this.host.changed(this.state()); }), 80);
  }
  setGamma(g) {
    checked(g);
    this.remember(g);
    this.gammas = this.same ? this.gammas.map(() => g) : this.gammas.with(this.index, g);
    this.repaint("gamma");
    this.tell();
  }
  remember(g) {
    const last = this.past[this.past.length - 1], now = Date.now();
    this.future = [];
    if (last && last.kind === "gamma" && last.image === this.index && now - last.time < 700) { last.time = now; last.after = g; return; }
    this.past.push({kind: "gamma", image: this.index, before: [...this.gammas], after: g, time: now});
    this.past = this.past.slice(-100);
  }
  async undo(forward = false) {
    const [from, to] = forward ? [this.future, this.past] : [this.past, this.future], step = from.pop();
    if (!step) return this.note(forward ? "nothing to redo" : "nothing to undo");
    if (step.image !== this.index) { this.ready = this.pick(step.image); await this.ready; }
    if (step.kind === "gamma") {
      const now = [...this.gammas];
      this.gammas = step.before;
      to.push({...step, before: now, time: 0});
      this.repaint("gamma");
    } else {
      to.push({...step, before: step.after, after: step.before});
      this.setMap(step.before.map, step.before.rect);
    }
    this.tell();
  }

  // pictures
  async pick(i) {
    const image = this.spec.images[i];
    if (!image) throw new Error(`image ${i} does not exist; allowed: 0 to ${this.spec.images.length - 1}`);
    const turn = this.turn = (this.turn || 0) + 1;
    this.index = i;
    this.root.setAttribute("aria-busy", "true");
    if (this.host.live && !this.loaded.has(i)) this.waiting = setTimeout(() => this.note("waiting for the kernel to send the picture; if none runs, run the cell again"), 1500);
    const ready = await this.load(i);
    clearTimeout(this.waiting);
    if (turn !== this.turn) return; // another image was chosen meanwhile
    if (this.status.textContent.startsWith("waiting")) this.note("");
    this.root.removeAttribute("aria-busy");
    this.shown = ready;
    this.layout();
    await this.choose(this.against);
    this.drawGallery();
    this.drawCurves();
    this.resize(true);
    this.tell();
  }
  async load(i) {
    if (this.loaded.has(i)) return this.loaded.get(i);
    const image = this.spec.images[i];
    const panes = await Promise.all(image.panes.map(async (_, p) => {
      const [fid, real] = await Promise.all([this.picture(`${i}/${p}/fid`, image), this.picture(`${i}/${p}/real`, image)]);
      return {fid, real};
    }));
    if (image.map && !this.maps.has(i)) this.maps.set(i, planes(await decodePNG(await this.host.picture(`${i}/map`), "the gamma map")));
    if (this.loaded.size >= 4) this.loaded.delete(this.loaded.keys().next().value);
    this.loaded.set(i, panes);
    return panes;
  }
  async picture(key, image) {
    const png = await decodePNG(await this.host.picture(key), `${image.name} (${key})`);
    if (png.width !== image.width || png.height !== image.height) throw new Error(`${key} is ${png.width}x${png.height}; allowed: ${image.width}x${image.height}`);
    return new Picture(png.width, png.height, rgb8(png));
  }
  // what the wipe and the held key show: "", "bicubic", "HR", "fidelity", "realism"
  others() { return ["", ...(this.image.x_L ? ["bicubic"] : []), ...(this.image.hr ? ["HR"] : []), "fidelity", "realism"]; }
  async choose(name) {
    const allowed = this.others();
    this.against = allowed.includes(name) ? name : "";
    this.againstBox.replaceChildren(...allowed.map(v => h("option", {value: v}, {"": "nothing", fidelity: "fidelity (γ 0)", realism: "realism (γ 1)"}[v] ?? v)));
    this.againstBox.value = this.against;
    const wanted = this.against || allowed[1], i = this.index; // the held key always has something to show
    this.otherName = wanted;
    this.other = wanted === "fidelity" || wanted === "realism" ? this.shown.map(ends => ends[wanted === "realism" ? "real" : "fid"])
      : this.shown.map(((picture) => () => picture)(await this.picture(`${i}/${wanted}`, this.image)));
    this.wipeBox.disabled = !this.against;
    for (const pane of this.panes) pane.otherSpot = null;
    this.repaint("gamma");
  }

  // painting: at once for the first move in a frame, then at most once a frame
  repaint(kind) {
    const order = ["", "gamma", "map", "show"];
    if (order.indexOf(kind) > order.indexOf(this.pending)) this.pending = kind;
    if (this.painted || !this.shown) return;
    this.flush();
    this.painted = true;
    requestAnimationFrame(this.safe(() => { this.painted = false; if (this.pending) this.repaint(this.pending); }));
  }
  flush() {
    const kind = this.pending;
    this.pending = "";
    if (!kind || !this.shown) return;
    for (const [p, pane] of this.panes.entries()) this.paintPane(pane, this.shown[p], kind);
    this.controls();
  }
  zoomOf(canvas, zoom = this.view.zoom) {
    const {width, height} = this.image, fit = Math.min(canvas.width / width, canvas.height / height);
    const s = zoom || fit;
    return s > 0.995 ? Math.max(1, Math.round(s)) : s;
  }
  paintPane(pane, ends, kind) {
    const {canvas} = pane;
    if (!canvas.width || !canvas.height) return;
    const draw = () => {
      const spot = place(this.image, canvas, {...this.view, zoom: this.zoomOf(canvas)});
      if (kind === "show" || pane.ends !== ends || !pane.spot) {
        pane.painter.show(ends, spot, this.map);
        Object.assign(pane, {spot, ends, otherSpot: null, tintSpot: null});
      } else if (kind === "map") { pane.painter.remap(this.map, ends); pane.tintSpot = null; }
      pane.painter.paint(this.gamma);
    };
    try { draw(); } catch (error) {
      if (pane.painter.kind !== "webgl2") throw error;
      this.plain(pane); // a lost or too small GPU: the plain path
      draw();
    }
    this.paintOver(pane);
    this.paintLens(pane, ends);
  }
  plain(pane) {
    const canvas = h("canvas", {class: "ifcsr-main"});
    [canvas.width, canvas.height] = [pane.canvas.width, pane.canvas.height];
    pane.canvas.replaceWith(canvas);
    Object.assign(pane, {canvas, painter: new Painter2D(canvas), spot: null});
  }
  // the other image (cut by the wipe, or whole while held) and the coloured overlay, each drawn once a view
  paintOver(pane) {
    const p = this.panes.indexOf(pane), {over, tint, spot} = pane, on = this.holding || this.against;
    over.hidden = !on;
    pane.badge.hidden = !on;
    pane.handle.hidden = !this.against || this.holding;
    if (on) {
      pane.badge.textContent = {fidelity: "γ 0", realism: "γ 1"}[this.otherName] ?? this.otherName;
      if (pane.otherSpot !== spot) {
        const frame = new ImageData(spot.width, spot.height), rgb = sampled(this.other[p === -1 ? 0 : p] || this.other[0], spot, new Uint8Array(3 * spot.width * spot.height));
        blend(rgb, rgb, 0, new Uint32Array(frame.data.buffer));
        over.getContext("2d").clearRect(0, 0, over.width, over.height);
        over.getContext("2d").putImageData(frame, spot.left, spot.top);
        pane.otherSpot = spot;
      }
      over.style.clipPath = this.holding ? "" : `inset(0 ${100 * (1 - this.wipe)}% 0 0)`;
      pane.handle.style.left = `${100 * this.wipe}%`;
      pane.handle.setAttribute("aria-valuenow", Math.round(100 * this.wipe));
    }
    tint.hidden = !this.tint;
    const stale = pane.tintSpot !== spot || pane.tintKind !== this.tint || (this.tint === "map" && pane.tintGamma !== this.gamma);
    if (this.tint && stale) this.paintTint(pane);
  }
  paintTint(pane) {
    const {tint, spot, ends} = pane, n = spot.width * spot.height, frame = new ImageData(spot.width, spot.height), out = frame.data;
    if (this.tint === "difference") {
      const [fid, real] = [ends.fid, ends.real].map(x => sampled(x, spot, new Uint8Array(3 * n)));
      const table = Array.from({length: 766}, (_, sum) => heat(sum / 3));
      for (let k = 0, i = 0; k < n; k++, i += 3) {
        const sum = Math.abs(real[i] - fid[i]) + Math.abs(real[i + 1] - fid[i + 1]) + Math.abs(real[i + 2] - fid[i + 2]);
        out.set(table[sum], 4 * k);
        out[4 * k + 3] = 225;
      }
    } else {
      const {width, height} = this.image, map = this.map, cover = map && nearest(map.cover, width, height, spot), paint = map && nearest(map.paint, width, height, spot);
      for (let k = 0; k < n; k++) {
        const g = map ? ((255 - cover[k]) * this.gamma + paint[k]) / 255 : this.gamma;
        out.set([230 * g + 20, 90, 230 * (1 - g) + 20, 130], 4 * k);
      }
    }
    tint.getContext("2d").clearRect(0, 0, tint.width, tint.height);
    tint.getContext("2d").putImageData(frame, spot.left, spot.top);
    Object.assign(pane, {tintSpot: spot, tintKind: this.tint, tintGamma: this.gamma});
  }
  // a pixel-exact look at one place: whole screen pixels per image pixel, nearest neighbour
  paintLens(pane, ends) {
    const {lens} = pane, at = this.cursor;
    lens.hidden = pane.reading.hidden = !this.lensOn || !at;
    if (lens.hidden) return;
    const times = 8 * Math.max(1, Math.round(devicePixelRatio)), side = 21, {width, height} = this.image;
    if (lens.width !== side * times) lens.width = lens.height = side * times;
    const pen = lens.getContext("2d"), frame = new ImageData(lens.width, lens.height), words = new Uint32Array(frame.data.buffer);
    const fid = new Uint8Array(3 * side * side), real = new Uint8Array(fid.length), small = new Uint32Array(side * side);
    const map = this.map && {cover: new Uint8Array(side * side), paint: new Uint8Array(side * side)};
    const x0 = Math.floor(at.x) - 10, y0 = Math.floor(at.y) - 10, inside = (x, y) => x >= 0 && y >= 0 && x < width && y < height;
    for (let k = 0; k < side * side; k++) {
      const x = x0 + k % side, y = y0 + Math.floor(k / side), i = y * width + x;
      if (!inside(x, y)) continue;
      for (let c = 0; c < 3; c++) { fid[3 * k + c] = ends.fid.data[3 * i + c]; real[3 * k + c] = ends.real.data[3 * i + c]; }
      if (map) { map.cover[k] = this.map.cover[i]; map.paint[k] = this.map.paint[i]; }
    }
    blend(fid, real, this.gamma, small, map);
    for (let y = 0, o = 0; y < lens.height; y++) for (let x = 0; x < lens.width; x++, o++) words[o] = small[Math.floor(y / times) * side + Math.floor(x / times)];
    pen.putImageData(frame, 0, 0);
    pen.strokeStyle = "#fff";
    pen.strokeRect(10 * times - 0.5, 10 * times - 0.5, times + 1, times + 1);
    const k = 10 * side + 10, v = small[k], three = a => [a[3 * k], a[3 * k + 1], a[3 * k + 2]].join(" ");
    pane.reading.textContent = `x ${Math.floor(at.x)}, y ${Math.floor(at.y)}: ${v & 255} ${v >> 8 & 255} ${v >> 16 & 255} (γ 0: ${three(fid)}, γ 1: ${three(real)})`;
    const box = pane.stage.getBoundingClientRect(), spot = pane.spot, ratio = pane.canvas.width / box.width;
    const px = (spot.originX + at.x * spot.zoom) / ratio, py = (spot.originY + at.y * spot.zoom) / ratio, size = lens.width / ratio;
    lens.style.width = lens.style.height = `${size}px`;
    lens.style.left = `${clamp(px > box.width / 2 ? px - size - 20 : px + 20, 0, Math.max(0, box.width - size))}px`;
    lens.style.top = `${clamp(py - size / 2, 0, Math.max(0, box.height - size))}px`;
  }

  // numbers
  numbers(p) {
    const pane = this.image.panes[p], g = this.gamma, eps = this.spec.eps, parts = [], map = this.map;
    if (pane.errors && !map) {
      const [f, r, c] = pane.errors, width = f + r - 2 * c, best = width > 1e-15 ? clamp((f - c) / width, 0, 1) : 0;
      parts.push(`PSNR ${decibel(quadratic(pane.errors, g), eps).toFixed(2)} dB (best ${decibel(quadratic(pane.errors, best), eps).toFixed(2)} at γ ${best.toFixed(2)})`);
    } else if (pane.errors && this.mapped !== undefined) parts.push(`PSNR ${this.mapped[p].toFixed(2)} dB with the painted map`);
    if (pane.difference !== null) parts.push(`ends differ by ${pane.difference.toFixed(2)} of 255`);
    if (pane.consistency && !map) parts.push(`LQ consistency ${decibel(quadratic(pane.consistency, g), eps).toFixed(2)} dB`);
    return parts.join(" · ");
  }
  // with a painted map there is no closed form: measured from the pixels, once the hand rests
  measure() {
    clearTimeout(this.measuring);
    this.mapped = undefined;
    if (!this.map || !this.image.hr) return;
    this.measuring = setTimeout(this.safe(async () => {
      const i = this.index, hr = (await this.picture(`${i}/HR`, this.image)).data, luma = [65.481 / 255, 128.553 / 255, 24.966 / 255];
      if (i !== this.index || !this.map) return;
      this.mapped = this.shown.map((_, p) => {
        const shown = this.pixels(p), n = shown.length / 4;
        let sum = 0;
        for (let k = 0; k < n; k++) {
          let e = 0;
          for (let c = 0; c < 3; c++) e += luma[c] * (shown[4 * k + c] - hr[3 * k + c]) / 255;
          sum += e * e;
        }
        return decibel(sum / n, this.spec.eps);
      });
      this.controls();
    }), 250);
  }
  pixels(p = 0) { // the shown blend at full size, RGBA
    const {fid, real} = this.shown[p], out = new Uint32Array(this.image.width * this.image.height);
    blend(fid.data, real.data, this.gamma, out, this.map);
    return new Uint8ClampedArray(out.buffer);
  }

  // what follows a move, beside the pixels
  controls() {
    const g = this.gamma, text = g.toFixed(3), near = g === 0 ? "fidelity" : g === 1 ? "realism" : g < 0.5 ? "nearer to fidelity" : g > 0.5 ? "nearer to realism" : "half way";
    if (+this.slider.value !== g) this.slider.value = g;
    if (document.activeElement !== this.typed || +this.typed.value !== g) this.typed.value = String(+text);
    this.slider.setAttribute("aria-valuetext", `gamma ${+text}, ${near}`);
    for (const button of this.presetButtons) button.setAttribute("aria-pressed", String(+button.dataset.gamma === g));
    for (const [p, pane] of this.panes.entries()) {
      const line = this.numbers(p);
      if (pane.numbers.textContent !== line) pane.numbers.textContent = line;
    }
    const zoom = this.panes[0].canvas.width ? this.zoomOf(this.panes[0].canvas) : 1;
    this.zoomText.textContent = `${this.view.zoom ? "" : "fit, "}${Math.round(100 * zoom)} %`;
    this.undoButton.disabled = !this.past.length;
    this.redoButton.disabled = !this.future.length;
    this.heldButton.setAttribute("aria-pressed", String(this.holding));
    this.mapNote.textContent = this.map ? "a painted map holds γ where you painted; the slider moves the rest" : "";
    for (const mark of this.marks || []) mark.move(g);
    const thumb = this.thumbs[this.index];
    if (this.same) this.thumbs.forEach((t, i) => this.drawThumb(t, i)); else if (thumb) this.drawThumb(thumb, this.index);
  }
}

// grey-alpha PNG <-> the two planes of a gamma map
function planes({width, height, channels, data}) {
  const n = width * height, cover = new Uint8Array(n), paint = new Uint8Array(n);
  for (let i = 0; i < n; i++) { cover[i] = data[channels * i]; paint[i] = data[channels * i + 1]; }
  return {cover, paint};
}
function together({cover, paint}) {
  const out = new Uint8Array(2 * cover.length);
  for (let i = 0; i < cover.length; i++) { out[2 * i] = cover[i]; out[2 * i + 1] = paint[i]; }
  return out;
}

// controls and hands --------------------------------------------------------------------------------------------------

class View extends Scene {
  build() {
    const button = (text, label, act, more = {}) => {
      const b = h("button", {type: "button", title: label, "aria-label": label, ...more}, text);
      this.on(b, "click", act);
      return b;
    };
    const range = (label, min, max, step, value, act) => {
      const input = h("input", {type: "range", min, max, step, value, "aria-label": label});
      this.on(input, "input", () => act(+input.value));
      return input;
    };
    const check = (text, act, on = false) => {
      const box = h("input", {type: "checkbox", checked: on});
      this.on(box, "change", () => act(box.checked));
      return [h("label", {class: "ifcsr-check"}, box, text), box];
    };
    const field = (text, control) => h("label", {class: "ifcsr-field"}, h("span", {}, text), control);
    const row = (label, ...children) => h("div", {class: "ifcsr-row", role: "group", "aria-label": label}, ...children);

    this.slider = h("input", {type: "range", min: 0, max: 1, step: 0.001, class: "ifcsr-gamma", "aria-label": "gamma, from fidelity to realism"});
    this.typed = h("input", {type: "number", min: 0, max: 1, step: 0.01, "aria-label": "gamma as a number"});
    this.on(this.slider, "input", () => this.setGamma(+this.slider.value));
    this.on(this.slider, "keydown", e => this.slide(e));
    this.on(this.typed, "change", () => {
      const g = this.typed.value.trim() === "" ? NaN : +this.typed.value;
      if (!(g >= 0 && g <= 1)) { this.typed.value = this.gamma; throw new RangeError("gamma: type a number from 0 to 1"); }
      this.alert("");
      this.setGamma(g);
    });
    this.presetButtons = this.spec.presets.map(g => button(String(g), `gamma ${g}`, () => this.setGamma(g), {"data-gamma": g}));
    this.undoButton = button("↶", "undo (Ctrl+Z)", () => this.undo());
    this.redoButton = button("↷", "redo (Ctrl+Shift+Z)", () => this.undo(true));
    this.heldButton = h("button", {type: "button", "aria-pressed": "false", title: "hold to compare (key C)"}, "Hold to compare");
    this.on(this.heldButton, "pointerdown", e => { this.heldButton.setPointerCapture(e.pointerId); this.hold(true); });
    this.on(this.heldButton, "pointerup pointercancel lostpointercapture blur", () => this.hold(false));
    this.on(this.heldButton, "keydown", e => { if (e.key === " " || e.key === "Enter") { e.preventDefault(); this.hold(true); } });
    this.on(this.heldButton, "keyup", () => this.hold(false));

    this.againstBox = h("select", {"aria-label": "compare with"});
    this.on(this.againstBox, "change", () => this.choose(this.againstBox.value));
    this.wipeBox = range("wipe: how much of the width shows the compared image", 0, 1, 0.001, this.wipe, v => this.setWipe(v));
    this.tintBox = h("select", {"aria-label": "overlay"}, h("option", {value: ""}, "nothing"), h("option", {value: "difference"}, "where the ends differ"), h("option", {value: "map"}, "the γ map"));
    this.on(this.tintBox, "change", () => this.setTint(this.tintBox.value));
    this.legend = h("span", {class: "ifcsr-legend", hidden: true}, "0", h("i", {}), `${HEAT_TOP}+ levels of 255`);
    const [lensLabel, lensBox] = check("magnifier", on => this.setLens(on));
    this.lensBox = lensBox;
    this.zoomText = h("output", {class: "ifcsr-zoom"});
    const zooms = [button("Fit", "fit the window (key 0)", () => this.setView({x: 0.5, y: 0.5, zoom: 0})),
      button("1:1", "one screen pixel per image pixel (key 1)", () => this.setView({...this.view, zoom: 1})),
      button("−", "zoom out (key −)", () => this.zoomBy(-1)), button("+", "zoom in (key +)", () => this.zoomBy(1)), this.zoomText];

    const [brushLabel, brushBox] = check("brush γ", on => this.setBrush(on));
    this.brushBox = brushBox;
    const paint = range("gamma that the brush paints", 0, 1, 0.01, this.brush.gamma, v => { this.brush.gamma = v; paintText.textContent = v.toFixed(2); });
    const paintText = h("output", {}, "1.00");
    this.sizeBox = range("brush size in image pixels", 2, 400, 1, this.brush.size, v => { this.brush.size = v; this.ring(); });
    const [eraseLabel, eraseBox] = check("erase", on => { this.brush.erase = on; });
    this.eraseBox = eraseBox;
    const mapFile = h("input", {type: "file", accept: ".png,image/png", hidden: true});
    this.on(mapFile, "change", async () => { if (mapFile.files[0]) await this.importMap(mapFile.files[0]); mapFile.value = ""; });
    this.mapNote = h("small", {});
    this.brushRow = row("gamma map", field("paints γ", paint), paintText, field("size", this.sizeBox),
      field("strength", range("brush strength", 0.02, 1, 0.01, this.brush.strength, v => { this.brush.strength = v; })), eraseLabel,
      button("Clear", "clear the gamma map", () => this.clearMap()), button("Import map…", "import a gamma map, a grey PNG of the image's size", () => mapFile.click()), mapFile,
      button("Export map", "export the gamma map as a grey PNG", () => this.exportMap()), this.mapNote);
    this.brushRow.hidden = true;
    this.mapFile = mapFile;

    this.bitsBox = h("select", {"aria-label": "bits per channel of the export"}, h("option", {value: 8}, "8 bit"), h("option", {value: 16}, "16 bit"));
    const pairFile = h("input", {type: "file", accept: ".zip", hidden: true});
    this.pairFile = pairFile;
    this.on(pairFile, "change", async () => { for (const file of pairFile.files) await this.open(file); pairFile.value = ""; });
    this.curvesBox = h("div", {class: "ifcsr-charts"});
    this.curves = h("details", {class: "ifcsr-curves"}, h("summary", {}, "Curves along γ"), this.curvesBox);
    if (this.host.live) this.curves.append(button("Measure SSIM and NIQE", "measure the curves in Python, once", () => { this.note("measuring in Python…"); this.host.action("sweep"); }));
    [this.sameLabel, this.sameBox] = check("one γ for all images", on => this.setSame(on), this.same);
    this.gallery = h("div", {class: "ifcsr-gallery", role: "radiogroup", "aria-label": "images"});
    this.thumbs = [];

    this.stagesBox = h("div", {class: "ifcsr-stages"});
    this.message = h("div", {class: "ifcsr-message", role: "alert"});
    this.status = h("div", {class: "ifcsr-status", role: "status"});
    this.root.append(
      h("div", {class: "ifcsr-row ifcsr-top"}, this.gallery, this.sameLabel), this.stagesBox,
      h("div", {class: "ifcsr-row ifcsr-slide"}, h("span", {"aria-hidden": "true"}, "faithful"), this.slider, h("span", {"aria-hidden": "true"}, "realistic"), field("γ", this.typed)),
      row("presets", ...this.presetButtons, this.undoButton, this.redoButton, this.heldButton),
      this.message,
      h("div", {class: "ifcsr-row ifcsr-tools"}, row("view", ...zooms, lensLabel, brushLabel),
        row("compare", field("compare", this.againstBox), field("wipe", this.wipeBox), field("overlay", this.tintBox), this.legend),
        row("files", this.bitsBox, button("Export PNG", "the whole picture as a PNG file", () => this.exportPNG()), button("Open .ifcsr.zip…", "add an endpoint pair", () => pairFile.click()), pairFile)),
      this.brushRow, this.status, this.curves, h("small", {class: "ifcsr-made"}));
    this.made = this.root.lastElementChild;
    this.makeGallery();

    this.on(this.root, "keydown", e => this.key(e));
    this.on(this.root, "keyup", e => { if (e.key === "c" || e.key === "C") this.hold(false); });
    this.on(this.root, "focusout", e => { if (this.holding && !this.root.contains(e.relatedTarget)) this.hold(false); });
    this.on(this.root, "dragover", e => e.preventDefault());
    this.on(this.root, "drop", async e => { e.preventDefault(); for (const file of e.dataTransfer.files) await this.open(file); });
    this.on(document, "wheel", e => { if (!this.stagesBox.contains(e.target)) this.scrolled = e.timeStamp; }, {passive: true, capture: true});
    this.layout();
    this.controls();
  }

  // stages: sized before any picture is there, so that nothing jumps
  layout() {
    const {image} = this, key = [image.panes.length, image.width, image.height].join();
    this.made.textContent = image.panes.map(p => `${p.label ? `${p.label}: ` : ""}model ${p.model}, hash ${p.hash}`).join(" · ");
    if (this.layoutKey === key) return;
    if (this.panes.length !== image.panes.length) {
      for (const pane of this.panes) pane.painter?.free();
      this.panes = image.panes.map((_, p) => this.makePane(p));
      this.stagesBox.replaceChildren(...this.panes.map(pane => pane.figure));
    }
    const small = image.width < 320 ? Math.ceil(320 / image.width) : 1; // small images are shown in whole multiples
    for (const [p, pane] of this.panes.entries()) {
      pane.stage.style.aspectRatio = `${image.width} / ${image.height}`;
      pane.figure.style.maxWidth = `${small * image.width}px`;
      pane.label.textContent = image.panes[p].label;
      pane.label.hidden = !image.panes[p].label;
    }
    this.sizeBox.max = Math.max(50, Math.round(Math.max(image.width, image.height) / 2));
    this.layoutKey = key;
  }
  makePane(p) {
    const pane = {canvas: h("canvas", {class: "ifcsr-main"}), over: h("canvas", {hidden: true}), tint: h("canvas", {hidden: true}), lens: h("canvas", {class: "ifcsr-lens", hidden: true, "aria-hidden": "true"}),
      handle: h("div", {class: "ifcsr-wipe", role: "slider", tabindex: 0, "aria-label": "wipe", "aria-valuemin": 0, "aria-valuemax": 100, hidden: true}, h("b", {}, "⇔")),
      badge: h("span", {class: "ifcsr-badge", hidden: true}), ringBox: h("i", {class: "ifcsr-ring", hidden: true}), label: h("strong", {}),
      numbers: h("output", {class: "ifcsr-numbers"}), reading: h("output", {class: "ifcsr-reading", hidden: true})};
    pane.stage = h("div", {class: "ifcsr-stage", tabindex: 0, role: "application", "aria-label": "picture: arrow keys move, plus and minus zoom, 0 fits, 1 is one to one, C held compares, M magnifies, B brushes"},
      pane.canvas, pane.over, pane.tint, pane.badge, pane.handle, pane.ringBox, pane.lens);
    pane.figure = h("figure", {class: "ifcsr-pane"}, pane.label, pane.stage, h("figcaption", {}, pane.numbers, pane.reading));
    const gpu = this.path === "webgl2" || (this.path === "auto" && this.image.panes.length <= 4 && hasGPU());
    try { pane.painter = gpu ? new PainterGL(pane.canvas) : new Painter2D(pane.canvas); } catch { this.plain(pane); }
    this.on(pane.canvas, "webglcontextlost", () => { this.plain(pane); this.repaint("show"); });
    this.hands(pane);
    return pane;
  }
  resize(force = false) {
    let changed = force;
    for (const pane of this.panes) {
      const box = pane.stage.getBoundingClientRect(), ratio = devicePixelRatio || 1;
      const w = Math.round(box.width * ratio), hh = Math.round(box.height * ratio);
      if (!w || !hh || (pane.canvas.width === w && pane.canvas.height === hh)) continue;
      for (const canvas of [pane.canvas, pane.over, pane.tint]) [canvas.width, canvas.height] = [w, hh];
      pane.spot = null;
      changed = true;
    }
    if (!changed || !this.shown) return;
    this.pending = "show"; // at once, in the same frame as the new size: a canvas that was resized is empty
    this.flush();
  }

  // the gallery
  makeGallery() {
    const {images} = this.spec, many = images.length > 1;
    this.gallery.parentElement.hidden = !many;
    this.thumbs = [];
    this.gallery.replaceChildren(...images.map((image, i) => {
      const canvas = h("canvas", {width: 1, height: 1}), thumb = {canvas};
      const button = h("button", {type: "button", role: "radio", class: "ifcsr-thumb", title: image.name}, canvas, h("span", {}, image.name));
      this.on(button, "click", () => { this.ready = this.pick(i); return this.ready; });
      this.on(button, "keydown", e => {
        const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[e.key];
        if (!step) return;
        e.preventDefault();
        const next = (i + step + images.length) % images.length;
        this.thumbs[next].button.focus();
        this.ready = this.pick(next);
        return this.ready;
      });
      Object.assign(thumb, {button});
      this.thumbs.push(thumb);
      return button;
    }));
    if (many) for (const [i, thumb] of this.thumbs.entries()) this.loadThumb(i, thumb).catch(error => this.say(error));
    this.drawGallery();
  }
  async loadThumb(i, thumb) {
    const image = this.spec.images[i];
    const [fid, real] = image.thumb ? await Promise.all(["fid", "real"].map(async k => decodePNG(await this.host.picture(`${i}/thumb_${k}`), image.name)))
      : (await this.load(i)).slice(0, 1).flatMap(ends => [ends.fid, ends.real].map(x => x.level(Math.max(0, Math.ceil(Math.log2(Math.max(image.width, image.height) / 96))))));
    Object.assign(thumb, {fid: rgb8({channels: 3, ...fid}), real: rgb8({channels: 3, ...real})});
    [thumb.canvas.width, thumb.canvas.height] = [fid.width, fid.height];
    this.drawThumb(thumb, i);
  }
  drawThumb(thumb, i) {
    if (!thumb.fid || thumb.gamma === this.gammas[i]) return;
    const frame = new ImageData(thumb.canvas.width, thumb.canvas.height);
    blend(thumb.fid, thumb.real, this.gammas[i], new Uint32Array(frame.data.buffer));
    thumb.canvas.getContext("2d").putImageData(frame, 0, 0);
    thumb.gamma = this.gammas[i];
  }
  drawGallery() {
    for (const [i, {button}] of this.thumbs.entries()) {
      button.setAttribute("aria-checked", String(i === this.index));
      button.tabIndex = i === this.index ? 0 : -1;
    }
  }
  setSame(on) {
    this.same = on;
    this.sameBox.checked = on;
    if (on) this.gammas = this.gammas.map(() => this.gamma);
    this.repaint("gamma");
    this.tell();
  }

  // view
  setView(view) {
    const [x, y, zoom] = [clamp(view.x, 0, 1), clamp(view.y, 0, 1), view.zoom];
    this.view = {x, y, zoom};
    this.zoomed();
    this.repaint("show");
    this.tell();
  }
  zoomed() { for (const pane of this.panes) pane.stage.classList.toggle("ifcsr-zoomed", this.view.zoom > 0); }
  zooms() { // from the fitting zoom up: in steps of a root of two to 1, then whole numbers
    const {canvas} = this.panes[0], fit = this.zoomOf(canvas, 0), below = [];
    for (let z = Math.SQRT1_2; z > fit * 1.05; z *= Math.SQRT1_2) below.unshift(z);
    return [fit, ...below, ...ZOOMS.filter(z => z > fit * 1.05)];
  }
  zoomBy(steps, at = null, pane = this.panes[0]) {
    const levels = this.zooms(), now = this.zoomOf(pane.canvas);
    let k = levels.findIndex(z => z >= now * 0.999);
    k = clamp((k === -1 ? levels.length - 1 : k) + (steps < 0 && levels[k] > now * 1.001 ? steps + 1 : steps), 0, levels.length - 1);
    this.zoomTo(levels[k], at, pane, k === 0);
  }
  zoomTo(zoom, at, pane, fit = false) { // keeps the image point under `at` (canvas pixels) where it is
    const {canvas, spot} = pane, {width, height} = this.image;
    if (fit || !spot) return this.setView({x: 0.5, y: 0.5, zoom: 0});
    const [px, py] = at || [canvas.width / 2, canvas.height / 2];
    const u = (px - spot.originX) / spot.zoom, v = (py - spot.originY) / spot.zoom;
    this.setView({x: (u - (px - canvas.width / 2) / zoom) / width, y: (v - (py - canvas.height / 2) / zoom) / height, zoom});
  }
  pan(dx, dy, pane = this.panes[0]) { // canvas pixels
    const {spot, canvas} = pane, {width, height} = this.image;
    if (!this.view.zoom || !spot) return;
    const centre = (origin, total, size) => clamp((total / 2 - origin) / (size * spot.zoom), Math.min(0.5, total / 2 / (size * spot.zoom)), Math.max(0.5, 1 - total / 2 / (size * spot.zoom)));
    this.setView({x: centre(spot.originX + dx, canvas.width, width), y: centre(spot.originY + dy, canvas.height, height), zoom: this.view.zoom});
  }
  setWipe(v) { this.wipe = clamp(v, 0, 1); this.wipeBox.value = this.wipe; for (const pane of this.panes) this.paintOver(pane); }
  hold(on) {
    if (this.holding === on) return;
    this.holding = on;
    this.repaint("gamma");
  }
  setTint(kind) {
    this.tint = this.tintBox.value = kind;
    this.legend.hidden = kind !== "difference";
    this.repaint("gamma");
  }
  setLens(on) {
    this.lensOn = this.lensBox.checked = on;
    this.cursor ??= this.centre();
    this.repaint("gamma");
  }
  centre() { return {x: this.image.width * this.view.x, y: this.image.height * this.view.y}; }
  setBrush(on) {
    this.brush.on = this.brushBox.checked = on;
    this.brushRow.hidden = !on;
    for (const pane of this.panes) pane.stage.classList.toggle("ifcsr-brushing", on);
    this.cursor ??= this.centre();
    this.ring();
  }
  ring() {
    for (const pane of this.panes) {
      const {ringBox, spot, canvas, stage} = pane;
      ringBox.hidden = !this.brush.on || !this.cursor || !spot;
      if (ringBox.hidden) continue;
      const ratio = canvas.width / stage.getBoundingClientRect().width, side = this.brush.size * spot.zoom / ratio;
      ringBox.style.width = ringBox.style.height = `${side}px`;
      ringBox.style.left = `${(spot.originX + this.cursor.x * spot.zoom) / ratio - side / 2}px`;
      ringBox.style.top = `${(spot.originY + this.cursor.y * spot.zoom) / ratio - side / 2}px`;
    }
  }

  // keys
  slide(e) {
    const g = this.gamma, to = {ArrowRight: g + STEP, ArrowUp: g + STEP, ArrowLeft: g - STEP, ArrowDown: g - STEP, PageUp: g + PAGE, PageDown: g - PAGE, Home: 0, End: 1}[e.key];
    if (to === undefined || e.ctrlKey || e.metaKey || e.altKey) return;
    e.preventDefault();
    this.setGamma(clamp(Math.round(to * 1000) / 1000, 0, 1));
  }
  key(e) {
    const typing = e.target.matches("input[type=number], select"), {key} = e;
    if ((e.ctrlKey || e.metaKey) && key.toLowerCase() === "z") { e.preventDefault(); return this.undo(e.shiftKey); }
    if ((e.ctrlKey || e.metaKey) && key.toLowerCase() === "y") { e.preventDefault(); return this.undo(true); }
    if (typing || e.ctrlKey || e.metaKey || e.altKey) return;
    if (key.toLowerCase() === "c") return this.hold(true);
    const stage = e.target.closest(".ifcsr-stage"), pane = this.panes.find(q => q.stage === stage);
    if (!pane) return;
    if (e.target === pane.handle) {
      const to = {ArrowRight: this.wipe + 0.02, ArrowUp: this.wipe + 0.02, ArrowLeft: this.wipe - 0.02, ArrowDown: this.wipe - 0.02, Home: 0, End: 1}[key];
      if (to !== undefined) { e.preventDefault(); this.setWipe(to); }
      return;
    }
    const arrows = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[key], far = e.shiftKey ? 5 : 1;
    const acts = {"+": () => this.zoomBy(1), "=": () => this.zoomBy(1), "-": () => this.zoomBy(-1), 0: () => this.setView({x: 0.5, y: 0.5, zoom: 0}),
      1: () => this.setView({...this.view, zoom: 1}), m: () => this.setLens(!this.lensOn), b: () => this.setBrush(!this.brush.on), h: () => this.setTint(this.tint === "difference" ? "" : "difference"),
      "[": () => this.resizeBrush(0.8), "]": () => this.resizeBrush(1.25)};
    if (arrows && (this.brush.on || this.lensOn)) { // the cursor of the brush and the magnifier
      const step = (this.brush.on ? Math.max(1, this.brush.size / 8) : 1) * far, {width, height} = this.image;
      this.cursor = {x: clamp(this.cursor.x + arrows[0] * step, 0, width - 0.5), y: clamp(this.cursor.y + arrows[1] * step, 0, height - 0.5)};
      this.ring();
      this.repaint("gamma");
    } else if (arrows) this.pan(-40 * arrows[0] * far, -40 * arrows[1] * far, pane);
    else if ((key === " " || key === "Enter") && this.brush.on) { this.startStroke(); this.dab(this.cursor.x, this.cursor.y); this.endStroke(); }
    else if (acts[key.toLowerCase()]) acts[key.toLowerCase()]();
    else return;
    e.preventDefault();
  }
  resizeBrush(times) { this.brush.size = clamp(this.brush.size * times, 2, +this.sizeBox.max); this.sizeBox.value = this.brush.size; this.ring(); }

  // pointers: one finger or button pans, wipes or paints; two pinch
  hands(pane) {
    const {stage, handle} = pane;
    const at = e => { // canvas pixels and image coordinates under the pointer
      const box = stage.getBoundingClientRect(), ratio = pane.canvas.width / box.width, c = [(e.clientX - box.left) * ratio, (e.clientY - box.top) * ratio];
      const spot = pane.spot || {originX: 0, originY: 0, zoom: 1};
      return {canvas: c, x: (c[0] - spot.originX) / spot.zoom, y: (c[1] - spot.originY) / spot.zoom, share: (e.clientX - box.left) / box.width};
    };
    this.on(stage, "pointerdown", e => {
      if (e.button > 1 || !this.shown) return;
      const p = at(e);
      stage.focus({preventScroll: true});
      this.pointers.set(e.pointerId, p);
      stage.setPointerCapture(e.pointerId);
      if (handle.contains(e.target)) this.doing = "wipe";
      else if (this.pointers.size === 2) { if (this.doing === "paint") this.dropStroke(); this.doing = "pinch"; }
      else if (this.brush.on && e.button === 0) { this.doing = "paint"; this.cursor = p; this.startStroke(); this.dab(p.x, p.y); }
      else this.doing = "pan";
    });
    this.on(stage, "pointermove", e => {
      const p = at(e), last = this.pointers.get(e.pointerId);
      if (this.brush.on || this.lensOn) {
        const {width, height} = this.image;
        this.cursor = {x: clamp(p.x, 0, width - 0.5), y: clamp(p.y, 0, height - 0.5)};
        this.ring();
        if (this.lensOn) for (const [i, q] of this.panes.entries()) if (q.spot) this.paintLens(q, this.shown[i]);
      }
      if (!last) return;
      if (this.doing === "wipe") this.setWipe(p.share);
      else if (this.doing === "paint") for (const step of e.getCoalescedEvents?.() ?? [e]) { const q = at(step); this.dab(q.x, q.y); }
      else if (this.doing === "pan") this.pan(p.canvas[0] - last.canvas[0], p.canvas[1] - last.canvas[1], pane);
      else if (this.doing === "pinch" && this.pointers.size === 2) {
        const [[, other]] = [...this.pointers].filter(([id]) => id !== e.pointerId);
        const apart = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]), before = apart(last.canvas, other.canvas);
        this.pinch = (this.pinch || this.zoomOf(pane.canvas)) * apart(p.canvas, other.canvas) / Math.max(before, 1);
        const fit = this.zoomOf(pane.canvas, 0), zoom = clamp(this.pinch > 1 ? Math.round(this.pinch) : this.pinch, fit, ZOOMS[ZOOMS.length - 1]);
        this.zoomTo(zoom, [(p.canvas[0] + other.canvas[0]) / 2, (p.canvas[1] + other.canvas[1]) / 2], pane, zoom <= fit);
      }
      this.pointers.set(e.pointerId, p);
    });
    this.on(stage, "pointerup pointercancel", e => {
      if (!this.pointers.delete(e.pointerId)) return;
      if (this.doing === "paint") this.endStroke();
      if (!this.pointers.size) this.doing = this.pinch = null;
    });
    this.on(stage, "pointerleave", () => { if (this.brush.on && !this.pointers.size) pane.ringBox.hidden = true; });
    this.on(stage, "dblclick", e => {
      if (this.brush.on || handle.contains(e.target)) return;
      if (this.view.zoom) this.setView({x: 0.5, y: 0.5, zoom: 0});
      else this.zoomTo(Math.max(1, 2 * (this.zoomOf(pane.canvas) >= 1)), at(e).canvas, pane);
    });
    this.on(stage, "wheel", e => {
      if (e.timeStamp - (this.scrolled ?? -1e9) < 250) { this.scrolled = e.timeStamp; return; } // the page is being scrolled: stay out of the way
      e.preventDefault();
      this.rolled = (this.rolled || 0) + (e.deltaMode ? 40 * e.deltaY : e.deltaY);
      if (Math.abs(this.rolled) < 40) return;
      this.zoomBy(this.rolled < 0 ? 1 : -1, at(e).canvas, pane);
      this.rolled = 0;
    }, {passive: false});
  }

  // the brush: a stroke is as strong as its strongest dab; it mixes with what was there when it began
  startStroke() {
    const {width, height} = this.image, n = width * height, map = this.map;
    if (!map) this.maps.set(this.index, {cover: new Uint8Array(n), paint: new Uint8Array(n)});
    const base = map ? {cover: map.cover.slice(), paint: map.paint.slice()} : {cover: new Uint8Array(n), paint: new Uint8Array(n)};
    this.stroke = {base, fresh: !map, depth: new Uint8Array(n), rect: [width, height, 0, 0], last: null, brush: {...this.brush}};
  }
  dab(x, y) {
    const {stroke} = this, r = stroke.brush.size / 2;
    const steps = stroke.last ? Math.max(1, Math.ceil(Math.hypot(x - stroke.last[0], y - stroke.last[1]) / Math.max(1, r / 4))) : 1;
    const [fromX, fromY] = stroke.last || [x, y];
    for (let k = 1; k <= steps; k++) this.stamp(fromX + (x - fromX) * k / steps, fromY + (y - fromY) * k / steps, r);
    stroke.last = [x, y];
    this.repaint("map");
  }
  stamp(cx, cy, r) {
    const {stroke, map} = this, {width, height} = this.image, {base, depth, rect, brush} = stroke;
    const x0 = Math.max(0, Math.floor(cx - r)), x1 = Math.min(width - 1, Math.ceil(cx + r));
    const y0 = Math.max(0, Math.floor(cy - r)), y1 = Math.min(height - 1, Math.ceil(cy + r));
    if (x1 < x0 || y1 < y0) return;
    for (let y = y0; y <= y1; y++) {
      for (let x = x0; x <= x1; x++) {
        const d = ((x + 0.5 - cx) ** 2 + (y + 0.5 - cy) ** 2) / (r * r), i = y * width + x;
        if (d >= 1) continue;
        const soft = Math.round(255 * (1 - d * d)); // full in the middle, zero at the rim
        if (soft <= depth[i]) continue;
        depth[i] = soft;
        const s = soft / 255 * brush.strength, kept = 1 - s;
        map.cover[i] = Math.round(base.cover[i] * kept + (brush.erase ? 0 : 255 * s));
        map.paint[i] = Math.min(map.cover[i], Math.round(base.paint[i] * kept + (brush.erase ? 0 : 255 * s * brush.gamma)));
      }
    }
    stroke.rect = [Math.min(rect[0], x0), Math.min(rect[1], y0), Math.max(rect[2], x1 + 1), Math.max(rect[3], y1 + 1)];
  }
  dropStroke() {
    const {base, fresh} = this.stroke;
    if (fresh) this.maps.delete(this.index); else this.maps.set(this.index, base);
    this.stroke = null;
    this.repaint("map");
  }
  endStroke() {
    const {base, rect, fresh} = this.stroke;
    this.stroke = null;
    if (rect[2] <= rect[0]) { if (fresh) this.maps.delete(this.index); return; }
    const after = this.crop(this.map, rect), before = fresh ? null : this.crop(base, rect);
    this.past.push({kind: "map", image: this.index, before: {map: before, rect: fresh ? null : rect}, after: {map: after, rect}});
    this.past = this.past.slice(-100);
    this.future = [];
    this.mapChanged();
  }
  crop(map, [x0, y0, x1, y1]) {
    const w = x1 - x0, {width} = this.image, cut = plane => { const out = new Uint8Array(w * (y1 - y0)); for (let y = y0; y < y1; y++) out.set(plane.subarray(y * width + x0, y * width + x1), (y - y0) * w); return out; };
    return {cover: cut(map.cover), paint: cut(map.paint)};
  }
  // a whole map (rect null; null clears), or a part of one
  setMap(map, rect = null) {
    if (!map) this.maps.delete(this.index);
    else if (!rect) this.maps.set(this.index, map);
    else {
      const {width, height} = this.image, n = width * height, [x0, y0, x1, y1] = rect, w = x1 - x0;
      if (!this.map) this.maps.set(this.index, {cover: new Uint8Array(n), paint: new Uint8Array(n)});
      for (const name of ["cover", "paint"]) for (let y = y0; y < y1; y++) this.map[name].set(map[name].subarray((y - y0) * w, (y - y0 + 1) * w), y * width + x0);
    }
    this.mapChanged();
  }
  mapChanged(tell = true) {
    if (this.map && !this.map.cover.some(v => v)) this.maps.delete(this.index); // erased to nothing
    this.repaint("map");
    this.measure();
    if (!tell) return;
    clearTimeout(this.mapping);
    const i = this.index;
    this.mapping = setTimeout(this.safe(async () => {
      const map = this.maps.get(i), {width, height} = this.spec.images[i];
      this.host.map(i, map ? await encodePNG(width, height, 2, together(map)) : null);
    }), 120);
  }
  replaceMap(map) {
    const before = this.map && {cover: this.map.cover.slice(), paint: this.map.paint.slice()};
    this.past.push({kind: "map", image: this.index, before: {map: before, rect: null}, after: {map: map && {cover: map.cover.slice(), paint: map.paint.slice()}, rect: null}});
    this.past = this.past.slice(-100);
    this.future = [];
    this.setMap(map);
  }
  clearMap() { if (this.map) this.replaceMap(null); }
  async importMap(file) {
    const png = await decodePNG(new Uint8Array(await file.arrayBuffer()), file.name), {width, height} = this.image;
    if (png.width !== width || png.height !== height) throw new Error(`${file.name} is ${png.width}x${png.height}; allowed: ${width}x${height}, the size of the image`);
    const rgb = rgb8(png), n = width * height, paint = new Uint8Array(n);
    for (let i = 0; i < n; i++) paint[i] = rgb[3 * i];
    this.alert("");
    this.replaceMap({cover: new Uint8Array(n).fill(255), paint});
  }
  async exportMap() {
    const {width, height} = this.image, n = width * height, grey = new Uint8Array(n), map = this.map, g = this.gamma;
    for (let i = 0; i < n; i++) grey[i] = Math.round(map ? (255 - map.cover[i]) * g + map.paint[i] : 255 * g);
    this.save(await encodePNG(width, height, 1, grey), `${this.image.name}_gamma_map.png`, "image/png");
  }

  // files
  save(bytes, name, type) {
    const url = URL.createObjectURL(new Blob([bytes], {type})), link = h("a", {href: url, download: name.replace(/[^\w.-]+/g, "_")});
    this.root.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
    this.note(`saved: ${link.download}`);
  }
  async exportPNG() {
    const bits = +this.bitsBox.value, i = this.index, g = this.gamma;
    this.alert("");
    if (this.host.live) { this.note("writing…"); this.tellNow(); return this.host.action("export", {bits}); }
    const {width, height, panes, name} = this.image;
    for (const [p, pane] of panes.entries()) {
      const texts = {Software: this.spec.software, gamma: String(g), image: name, model: pane.model, hash: pane.hash, "gamma map": this.map ? "painted" : "none"};
      let rgb;
      if (bits === 8) {
        const rgba = this.pixels(p);
        rgb = new Uint8Array(3 * width * height);
        for (let k = 0; k < width * height; k++) for (let c = 0; c < 3; c++) rgb[3 * k + c] = rgba[4 * k + c];
      } else rgb = await this.wide(i, p);
      this.save(await encodePNG(width, height, 3, rgb, texts), `${[name, pane.label].filter(Boolean).join("_")}_gamma_${g.toFixed(3)}.png`, "image/png");
    }
  }
  async wide(i, p) { // E1 in 16 bit, from the files as they are (8 bit times 257)
    const [f, r] = await Promise.all(["fid", "real"].map(async k => decodePNG(await this.host.picture(`${i}/${p}/${k}`))));
    const times = f.data instanceof Uint16Array ? 1 : 257, out = new Uint16Array(f.data.length), map = this.map, g = this.gamma;
    for (let k = 0; k < out.length; k++) {
      const n = Math.floor(k / 3), w = map ? ((255 - map.cover[n]) * g + map.paint[n]) / 255 : g;
      out[k] = Math.round(times * (f.data[k] + w * (r.data[k] - f.data[k])));
    }
    return out;
  }
  async open(file) {
    if (!/\.zip$/i.test(file.name)) throw new Error(`${file.name}: allowed: .ifcsr.zip files, written by ends.save (a gamma map goes through “Import map”)`);
    const bytes = new Uint8Array(await file.arrayBuffer()), name = file.name.replace(/(\.ifcsr)?\.zip$/i, "");
    this.alert("");
    if (this.host.live) { this.note(`sending ${file.name} to Python…`); return this.host.action("open", {name: file.name}, bytes); }
    if (this.image.panes.length > 1) throw new Error("this page compares models; open the file on a page of one model");
    const images = await openPair(bytes, file.name, name);
    for (const image of images) {
      const i = this.spec.images.length;
      for (const [key, png] of Object.entries(image.bytes)) this.host.pictures.set(`${i}/${key}`, png);
      this.gammas.push(this.same ? this.gamma : image.gamma);
      this.spec.images.push(image);
    }
    this.makeGallery();
    this.note(`opened: ${file.name}`);
    this.ready = this.pick(this.spec.images.length - images.length);
    await this.ready;
    if (!this.past.length || this.spec.images.length > images.length) this.setGamma(images[0].gamma);
  }
  tellNow() { clearTimeout(this.telling); this.telling = undefined; this.host.changed(this.state()); }

  // curves: one small chart a metric, a line a model, a marker at gamma
  drawCurves() {
    const {panes} = this.image, {eps} = this.spec, charts = new Map(), grid = Array.from({length: 51}, (_, i) => i / 50);
    const add = (name, p, points, note) => { if (!charts.has(name)) charts.set(name, []); charts.get(name).push({p, points, note}); };
    for (const [p, pane] of panes.entries()) {
      if (pane.errors) add("PSNR (dB) ↑", p, grid.map(g => [g, decibel(quadratic(pane.errors, g), eps)]));
      if (pane.consistency) add("LQ consistency (dB) ↑", p, grid.map(g => [g, decibel(quadratic(pane.consistency, g), eps)]));
      for (const [name, {points, note, lower}] of Object.entries(pane.curves || {})) add(`${name} ${lower ? "↓" : "↑"}`, p, points, note);
    }
    this.curves.hidden = !charts.size && !this.host.live;
    this.marks = [];
    this.curvesBox.replaceChildren(...[...charts].map(([name, lines]) => this.chart(name, lines)));
    for (const mark of this.marks) mark.move(this.gamma);
  }
  chart(name, lines) {
    const drawn = lines.filter(l => l.points && l.points.length > 1), value = h("output", {}), title = h("figcaption", {}, h("span", {}, name), value);
    if (!drawn.length) return h("figure", {class: "ifcsr-chart"}, title, h("small", {}, lines[0].note || "not measured"));
    const [W, H, pad] = [200, 84, 6], all = drawn.flatMap(l => l.points.map(q => q[1])), low = Math.min(...all), high = Math.max(...all), span = high - low || 1;
    const X = g => pad + g * (W - 2 * pad), Y = v => H - pad - (v - low) / span * (H - 2 * pad);
    const at = (points, g) => { const k = clamp(points.findIndex(q => q[0] >= g), 1, points.length - 1), [a, b] = [points[k - 1], points[k]]; return a[1] + (b[1] - a[1]) * (g - a[0]) / (b[0] - a[0]); };
    const marker = h("line", {y1: 0, y2: H, class: "ifcsr-marker"});
    const dots = drawn.map(l => h("circle", {r: 3.5, fill: COLOURS[l.p % COLOURS.length]}));
    const svg = h("svg", {viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${name} along gamma, from ${low.toPrecision(4)} to ${high.toPrecision(4)}`},
      ...drawn.map(l => h("path", {d: l.points.map(([g, v], i) => `${i ? "L" : "M"}${X(g).toFixed(1)} ${Y(v).toFixed(1)}`).join(""), stroke: COLOURS[l.p % COLOURS.length]})), marker, ...dots);
    const digits = high >= 10 ? 2 : high >= 2 ? 2 : 4;
    this.marks.push({move: g => {
      marker.setAttribute("x1", X(g));
      marker.setAttribute("x2", X(g));
      const values = drawn.map((l, k) => { const v = at(l.points, g); dots[k].setAttribute("cx", X(g)); dots[k].setAttribute("cy", Y(v)); return v.toFixed(digits); });
      value.textContent = values.join(" / ");
    }});
    const legend = this.image.panes.length > 1 ? h("small", {}, ...drawn.map(l => { const s = h("span", {}, `■ ${this.image.panes[l.p].label} `); s.style.color = COLOURS[l.p % COLOURS.length]; return s; })) : null;
    return h("figure", {class: "ifcsr-chart"}, title, svg, legend);
  }
}

// hosts ---------------------------------------------------------------------------------------------------------------

function mount(host, el, options) {
  const root = h("div", {class: "ifcsr", role: "region", "aria-label": "fidelity to realism explorer", "data-lm-suppress-shortcuts": "true"});
  el.append(root);
  const view = new View(host, root, options);
  const api = {
    setGamma: g => view.setGamma(g),
    get gamma() { return view.gamma; },
    get ready() { return view.ready; },
    getPixels: (pane = 0) => view.pixels(pane),
    getShown(pane = 0) { // what is painted: RGBA of the canvas and where the image lies on it
      view.flush();
      const {canvas, painter, spot} = view.panes[pane];
      return {width: canvas.width, height: canvas.height, data: painter.read(), path: painter.kind, spot};
    },
    get state() { return view.state(); },
    setView: (x, y, zoom) => view.setView({x, y, zoom}),
    get map() { return view.map; },
  };
  root.ifcsr = api;
  return {view, api};
}

// The exported page: `data` is {spec, state, pictures: {key: base64 PNG}}.
export function page(data, el) {
  const pictures = new Map(Object.entries(data.pictures));
  const host = {
    live: false, spec: data.spec, state: data.state, pictures,
    async picture(key) {
      const value = pictures.get(key);
      if (value === undefined) throw new Error(`the page has no picture ${key}`);
      if (typeof value === "string") { // decoded once, when first shown
        const text = atob(value), bytes = new Uint8Array(text.length);
        for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
        pictures.set(key, bytes);
      }
      return pictures.get(key);
    },
    changed() {}, map() {}, action() {}, report() {},
  };
  const {view, api} = mount(host, el, {path: new URLSearchParams(location.search).get("path") || "auto"});
  addEventListener("error", event => view.alert(readable(event.error || event.message)));
  addEventListener("unhandledrejection", event => view.alert(readable(event.reason)));
  window.ifcsr = api;
}

const CHUNK = 1 << 20; // a notebook server closes the connection at 10 MB a message

// The notebook: gamma and view are traits, pictures and maps come and go as messages, so that no notebook stores them.
function render({model, el}) {
  const waiting = new Map(), me = `${Date.now()}-${Math.random()}`;
  let sent = 0;
  const send = (content, bytes = null) => {
    const parts = bytes ? Math.max(1, Math.ceil(bytes.length / CHUNK)) : 1, id = `${me}-${sent++}`;
    for (let k = 0; k < parts; k++) model.send({...content, view: me, id, part: k, parts}, undefined, bytes ? [bytes.slice(k * CHUNK, (k + 1) * CHUNK).buffer] : []);
  };
  const keys = ["gammas", "same_gamma", "index", "view"]; // Python keeps gamma = gammas[index]
  let telling = false;
  const now = () => Object.fromEntries(keys.map(k => [k, model.get(k)]));
  const host = {
    live: true, spec: structuredClone(model.get("_spec")), state: now(), pictures: new Map(),
    picture(key) {
      if (!waiting.has(key)) {
        let settle;
        const promise = new Promise((yes, no) => { settle = {yes, no}; });
        waiting.set(key, {promise, ...settle});
        send({kind: "picture", key});
      }
      return waiting.get(key).promise;
    },
    changed(state) {
      const moved = ["gamma", ...keys].filter(k => JSON.stringify(model.get(k)) !== JSON.stringify(state[k]));
      telling = true; // each `set` fires an event in the middle of the change
      try { for (const k of moved) model.set(k, state[k]); } finally { telling = false; }
      if (moved.length) model.save_changes();
    },
    map(i, png) { send({kind: "map", image: i, clear: !png}, png); },
    action(kind, detail = {}, bytes = null) { send({...detail, kind}, bytes); },
    report(text) { model.set("error", text); model.save_changes(); },
  };
  const {view} = mount(host, el, {path: model.get("_path")});
  const received = view.safe(async (content, buffers) => {
    const bytes = buffers && buffers.length ? new Uint8Array(buffers[0].buffer ?? buffers[0], buffers[0].byteOffset ?? 0, buffers[0].byteLength) : null;
    if (content.kind === "picture" && waiting.has(content.key)) {
      const {yes, no} = waiting.get(content.key);
      waiting.delete(content.key);
      content.error ? no(new Error(content.error)) : yes(bytes);
    } else if (content.kind === "map" && content.view !== me) {
      const map = bytes ? planes(await decodePNG(bytes, "the gamma map")) : null;
      if (map) view.maps.set(content.image, map); else view.maps.delete(content.image);
      if (content.image === view.index) view.mapChanged(false);
    } else if (content.kind === "note") view.note(content.text);
  });
  const changes = view.safe(() => { if (!telling) view.receive(now()); });
  const failed = () => view.alert(model.get("error"));
  const respec = view.safe(() => {
    const count = view.spec.images.length;
    view.spec = structuredClone(model.get("_spec"));
    if (view.spec.images.length !== count) view.makeGallery();
    view.layout();
    view.controls();
    view.drawCurves();
  });
  model.on("msg:custom", received);
  model.on("change:_spec", respec);
  model.on("change:error", failed);
  for (const k of keys) model.on(`change:${k}`, changes);
  if (model.get("error")) failed();
  return () => {
    model.off("msg:custom", received);
    model.off("change:_spec", respec);
    model.off("change:error", failed);
    for (const k of keys) model.off(`change:${k}`, changes);
    view.free();
  };
}

export default {render};

// E1 in whole numbers, so that the plain path, the GPU and Python agree to the level.

const ONE = 65536; // gamma as a 16-bit fraction: within 0.002 of a level of E1 in real numbers

/**
 * E1 in 8-bit rounding: RGB8 endpoints to opaque RGBA.
 * @param {Uint8Array} fid 3 values per pixel
 * @param {Uint8Array} real as fid
 * @param {number} gamma 0 to 1
 * @param {Uint32Array} out a word per pixel, 0xAABBGGRR, filled
 * @param {?{cover: Uint8Array, paint: Uint8Array}} map then gamma of a pixel is
 *   ((255 - cover) gamma + paint) / 255
 */
export function blend(fid, real, gamma, out, map = null) {
  const n = out.length;
  if (map) {
    const {cover, paint} = map, scale = ONE / 255;
    for (let k = 0, i = 0; k < n; k++, i += 3) {
      const W = ((255 - cover[k]) * gamma + paint[k]) * scale + 0.5 | 0;
      const r = fid[i], g = fid[i + 1], b = fid[i + 2];
      out[k] = 0xff000000 | ((b << 16) + (real[i + 2] - b) * W + 32768 & 0xff0000)
        | ((g << 16) + (real[i + 1] - g) * W + 32768 >> 8 & 0xff00)
        | (r << 16) + (real[i] - r) * W + 32768 >> 16;
    }
    return;
  }
  const G = Math.round(gamma * ONE);
  for (let k = 0, i = 0; k < n; k++, i += 3) {
    const r = fid[i], g = fid[i + 1], b = fid[i + 2];
    out[k] = 0xff000000 | ((b << 16) + (real[i + 2] - b) * G + 32768 & 0xff0000)
      | ((g << 16) + (real[i + 1] - g) * G + 32768 >> 8 & 0xff00)
      | (r << 16) + (real[i] - r) * G + 32768 >> 16;
  }
}

// The explorer's engine: networks, exact denoisers, schedules and solvers of the package, in plain JavaScript.
//
// A plain script without imports and without a page: it runs in a document, in a Blob worker (whose source is
// `createEngine.toString()`) and in Node. Specs are the JSON of `ddpmlab.explorer.export`. Points are Float32Arrays of
// n rows of `dim`. The inner loops stand in kernel.ts, compiled to WebAssembly with SIMD, and below in JavaScript for
// where there is none. Every error says what is wrong and what to do.
"use strict";

function createEngine(options = {}) {
  const WASM =
    "AGFzbQEAAAABMQVgBn9/f39/fwBgCH9/f39/f39/AGAJf39/f39/f39/AGAGf39/f39/AXxgA39/fwADBgUAAQIDBAUDAQAABzkGCGFjdGl2YXRlAAQGbGluZWFyAAIEbm9ybQAABW5vZGVzAAEJZGlzdGFuY2VzAAMGbWVtb3J5AgAKoRwF7AIDBX8CewJ9IAVBA2pBfHEiBkECdCEHIAYgBWuyIQ4DQCAEIAhKBEAgByAIbCIGIABqIQkgAyAGaiEK/QwAAAAAAAAAAAAAAAAAAAAAIQtBACEGA0AgBiAHSQRAIAsgBiAJav0ABAD95AEhCyAGQRBqIQYMAQsLIAv9HwAgC/0fAZIgC/0fAiAL/R8DkpIgBbKVIg39EyEM/QwAAAAAAAAAAAAAAAAAAAAAIQtBACEGA0AgBiAHSQRAIAsgBiAJav0ABAAgDP3lASILIAv95gH95AEhCyAGQRBqIQYMAQsLQwAAgD8gC/0fACAL/R8BkiAL/R8CIAv9HwOSkiAOIA2UIA2UkyAFspVDrMUnN5KRlf0TIQtBACEGA0AgBiAHSQRAIAYgCmogBiAJav0ABAAgDP3lASAL/eYBIAEgBmr9AAQA/eYBIAIgBmr9AAQA/eQB/QsEACAGQRBqIQYMAQsLIAhBAWohCAwBCwsLoQgDB3sFfwJ8IAdBAnQhECABIAdBA3QiESAGbGohEgNAIAUgD0oEQP0MAAAAAAAA8P8AAAAAAADw/yEJIAAgBiAPbEEDdGoiB/0KAwAhCiAHQQhBACAGQQFKG2r9CgMAIQsgB0EQQQAgBkECShtq/QoDACEMQQAhBwNAIAcgEUkEQCACIAdq/QAEACAKIAEgB2r9AAQA/fIB/fABIQggBkEBSgRAIAggCyABIBFqIAdq/QAEAP3yAf3wASEICyAGQQJKBEAgCCAMIAEgEUEBdGogB2r9AAQA/fIB/fABIQgLIAMgB2ogCP0LBAAgCSAI/fUBIQkgB0EQaiEHDAELCyAJ/SEAIAn9IQGlIhX9FCEM/QwAAAAAAAAAAAAAAAAAAAAAIQr9DAAAAAAAAAAAAAAAAAAAAAAhC/0MAAAAAAAAAAAAAAAAAAAAACEJ/QwAAAAAAAAAAAAAAAAAAAAAIQhBACEHA0AgByAQSQRAIAMgB0EBdGoiE/0ABAAgDP3xAf1eIBP9AAQQIAz98QH9Xv0NAAECAwQFBgcQERITFBUWFyIN/QwAACDCAAAgwgAAIMIAACDC/UT9UwRAIA39DAAArsIAAK7CAACuwgAArsL96QEiDf0MO6q4PzuquD87qrg/O6q4P/3mAf1qIQ4gCv0MZ2lQOWdpUDlnaVA5Z2lQOSANIA79DACAMT8AgDE/AIAxPwCAMT/95gH95QEgDv0Mg4BeOYOAXjmDgF45g4BeOf3mAf3kASIK/eYB/QzOQ7c6zkO3Os5DtzrOQ7c6/eQBIAr95gH9DAiJCDwIiQg8CIkIPAiJCDz95AEgCv3mAf0MwakqPcGpKj3BqSo9wakqPf3kASAK/eYB/Qyqqio+qqoqPqqqKj6qqio+/eQBIAr95gH9DAAAAD8AAAA/AAAAPwAAAD/95AEgCv3mASAK/eYBIAr95AH9DAAAgD8AAIA/AACAPwAAgD/95AEgDv34Af0MfwAAAH8AAAB/AAAAfwAAAP2uAUEX/asB/eYBIg395AEhCiALIA0gByASav0ABAD95gH95AEhCyAGQQFKBEAgCSANIBAgEmogB2r9AAQA/eYB/eQBIQkLIAZBAkoEQCAIIA0gEiAQQQF0aiAHav0ABAD95gH95AEhCAsLIAdBEGohBwwBCwsgBCAPIAZBAmpsQQN0aiIHIAv9HwAgC/0fAZIgC/0fAiAL/R8DkpK7IAr9HwAgCv0fAZIgCv0fAiAK/R8DkpK7IhSjOQMAIAZBAUoEQCAHIAn9HwAgCf0fAZIgCf0fAiAJ/R8DkpK7IBSjOQMICyAGQQJKBEAgByAI/R8AIAj9HwGSIAj9HwIgCP0fA5KSuyAUozkDEAsgByAGQQN0aiIHIBQ5AwAgByAVOQMIIA9BAWohDwwBCwsL3gcCDXsMfyABQQJ0IRogB0ECdCEXA0AgGEEIaiAHTARAIAMgGEECdGoiAf0ABAAhDiAB/QAEECEPIAIgBiAYbEECdGohFkEAIRsDQCAFIBtKBEAgBCAXIBtsaiAYQQJ0aiEhIA8iCiEQIA4iCSELIAkiDCERIAoiDSESIBogACAaIBtsaiIZaiIdIBpqIh4gGmohHyAWIQEgGSAGQQJ0aiEgA0AgGSAgSQRAIAkgGf0JAgAiFCAB/QAEACIT/eYB/eQBIQkgCiAUIAH9AAQQIhT95gH95AEhCiALIB39CQIAIhUgE/3mAf3kASELIBAgFSAU/eYB/eQBIRAgDCAe/QkCACIVIBP95gH95AEhDCANIBUgFP3mAf3kASENIBEgH/0JAgAiFSAT/eYB/eQBIREgEiAVIBT95gH95AEhEiAZQQRqIRkgHUEEaiEdIB5BBGohHiAfQQRqIR8gAUEgaiEBDAELCyAhIAgEeyAJICH9AAQA/eQBBSAJC/0LBAAgISAIBHsgCiAh/QAEEP3kAQUgCgv9CwQQIBcgIWoiASAIBHsgCyAB/QAEAP3kAQUgCwv9CwQAIBcgIWoiASAIBHsgECAB/QAEEP3kAQUgEAv9CwQQICEgF0EBdGoiASAIBHsgDCAB/QAEAP3kAQUgDAv9CwQAICEgF0EBdGoiASAIBHsgDSAB/QAEEP3kAQUgDQv9CwQQICEgF0EDbGoiASAIBHsgESAB/QAEAP3kAQUgEQv9CwQAICEgF0EDbGoiASAIBHsgEiAB/QAEEP3kAQUgEgv9CwQQIBtBBGohGwwBCwsgGEEIaiEYDAELCyAHIBhKBEAgAyAYQQJ0av0ABAAhDCACIAYgGGxBAnRqIQIDQCAFIBxKBEAgBCAXIBxsaiAYQQJ0aiEbIAwiCSEKIAkiCyEQIBogGiAAIBogHGxqIgdqIhYgGmoiA2ohGSACIQEgByAGQQJ0aiEdA0AgByAdSQRAIAkgB/0JAgAgAf0ABAAiDf3mAf3kASEJIAogFv0JAgAgDf3mAf3kASEKIAsgA/0JAgAgDf3mAf3kASELIBAgGf0JAgAgDf3mAf3kASEQIAdBBGohByAWQQRqIRYgA0EEaiEDIBlBBGohGSABQRBqIQEMAQsLIBsgCAR7IAkgG/0ABAD95AEFIAkL/QsEACAXIBtqIgEgCAR7IAogAf0ABAD95AEFIAoL/QsEACAbIBdBAXRqIgEgCAR7IAsgAf0ABAD95AEFIAsL/QsEACAbIBdBA2xqIgEgCAR7IBAgAf0ABAD95AEFIBAL/QsEACAcQQRqIRwMAQsLCwuoAgMCewF8BH8gA0ECdCELA0AgASAKSgRAIAAgBSAKbEECdGohDP0MAAAAAAAAAAAAAAAAAAAAACEH/QwAAAAAAAAAAAAAAAAAAAAAIQZBACEJA0AgCSALSQRA/QwAAAAAAAAAAAAAAAAAAAAAIQZBACEDA0AgAyAFSARAIAYgDCADQQJ0av0JAgAgAiADIAtsaiAJav0ABAD95QEiBiAG/eYB/eQBIQYgA0EBaiEDDAELCyAHIAb94wEiBv3kASEHIAlBEGohCQwBCwsgCCAH/R8AIAf9HwGSIAf9HwIgB/0fA5KSu6AiCCAG/R8Du6EgCCAEQQBKGyIIIAb9HwK7oSAIIARBAUobIgggBv0fAbuhIAggBEECShshCCAKQQFqIQoMAQsLIAgLgwcBA3sgACABQQJ0aiEBA0AgACABSQRAIAACeyAA/QAEACID/QwAAAAAAAAAAAAAAAAAAAAA/ekBIAJBAUYNABogAkECRgRAIAP94QH9DAAAsEIAALBCAACwQgAAsEL96AH9DAAArsIAAK7CAACuwgAArsL96QEiBP0MO6q4PzuquD87qrg/O6q4P/3mAf1qIQUgA/0MAACAPwAAgD8AAIA/AACAP/0MZ2lQOWdpUDlnaVA5Z2lQOSAEIAX9DACAMT8AgDE/AIAxPwCAMT/95gH95QEgBf0Mg4BeOYOAXjmDgF45g4BeOf3mAf3kASID/eYB/QzOQ7c6zkO3Os5DtzrOQ7c6/eQBIAP95gH9DAiJCDwIiQg8CIkIPAiJCDz95AEgA/3mAf0MwakqPcGpKj3BqSo9wakqPf3kASAD/eYB/Qyqqio+qqoqPqqqKj6qqio+/eQBIAP95gH9DAAAAD8AAAA/AAAAPwAAAD/95AEgA/3mASAD/eYBIAP95AH9DAAAgD8AAIA/AACAPwAAgD/95AEgBf34Af0MfwAAAH8AAAB/AAAAfwAAAP2uAUEX/asB/eYB/eQB/ecBDAELIAJBA0YEQCAD/QzzBDU/8wQ1P/MENT/zBDU//eYB/QwAAIBAAACAQAAAgEAAAIBA/egB/QwAAIDAAACAwAAAgMAAAIDA/ekBIgQgBP3mASEFIAP9DAAAAD8AAAA/AAAAPwAAAD/95gH9DAAAgD8AAIA/AACAPwAAgD8gBP0MC9+Vrwvfla8L35WvC9+VryAF/eYB/Qzu/+0y7v/tMu7/7TLu/+0y/eQBIAX95gH9DFH/DLZR/wy2Uf8MtlH/DLb95AEgBf3mAf0M0sJuuNLCbrjSwm640sJuuP3kASAF/eYB/QxjrEC6Y6xAumOsQLpjrEC6/eQBIAX95gH9DPahQbv2oUG79qFBu/ahQbv95AEgBf3mAf0M1NuDvNTbg7zU24O81NuDvP3kAf3mAf0MzWB0t81gdLfNYHS3zWB0tyAF/eYB/QwpvV+5Kb1fuSm9X7kpvV+5/eQBIAX95gH9DE6S3LpOkty6TpLcuk6S3Lr95AEgBf3mAf0M+Jvxu/ib8bv4m/G7+Jvxu/3kASAF/eYB/Qyntmm8p7ZpvKe2abyntmm8/eQB/ecB/eQB/eYBDAELIAML/QsEACAAQRBqIQAMAQsLCw=="; // of kernel.ts 41d49b67370961ac
  const BLOCK = 64; // points that go through a network together: their activations stay in the first-level cache
  const ACTIVATIONS = { relu: 1, silu: 2, gelu: 3 };
  const MOST_FITTED = 1000; // of more points every second, third, ... is fitted
  const SPACINGS = ["leading", "linspace", "trailing"];
  const PARAMETERISATIONS = ["epsilon", "x0", "v", "edm", "flow"];
  const SAMPLERS = ["ddpm", "ddim", "euler", "heun", "dpmpp_2m", "unipc"];
  const VARIANCES = ["posterior", "beta"];
  const LOG_2PI = Math.log(2 * Math.PI);
  const f32 = Math.fround;

  // ------------------------------------------------------------------------------------------------ errors, decoding

  const fail = (what, remedy) => {
    throw new Error(`${what}; ${remedy}`);
  };
  const pad4 = (n) => (n + 3) & ~3;
  const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

  function oneOf(value, allowed, what) {
    if (!allowed.includes(value))
      fail(`unknown ${what} ${JSON.stringify(value)}`, `choose one of: ${allowed.join(", ")}`);
    return value;
  }

  function finite(values, what, remedy) {
    let bad = 0;
    for (let i = 0; i < values.length; i++) if (!Number.isFinite(values[i])) bad++;
    if (bad) fail(`${what} holds ${bad} of ${values.length} values that are NaN or infinite`, remedy);
    return values;
  }

  function fromBase64(text, what) {
    let binary;
    try {
      binary = atob(text);
    } catch {
      fail(`${what} is not base64`, "export it again with ddpmlab.explorer.export");
    }
    const bytes = new Uint8Array(binary.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
    return bytes;
  }

  function fromHalf(bits) {
    const sign = bits & 0x8000 ? -1 : 1,
      exponent = (bits >> 10) & 31,
      fraction = bits & 1023;
    if (exponent === 0) return sign * fraction * 2 ** -24;
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  }

  /** The numbers of {shape, f32 | f16: base64} or {shape, values: [...]}, checked against the shape. */
  function tensor(spec, what) {
    const remedy = "export it again with ddpmlab.explorer.export";
    if (!isObject(spec) || !Array.isArray(spec.shape)) fail(`${what} is no tensor`, "give {shape, f32: base64}");
    const size = spec.shape.reduce((a, b) => a * b, 1);
    let values;
    if (typeof spec.f32 === "string") {
      const bytes = fromBase64(spec.f32, what);
      if (bytes.length !== 4 * size) {
        fail(`${what} has ${bytes.length} bytes, its shape ${spec.shape.join(" x ")} needs ${4 * size}`, remedy);
      }
      values = new Float32Array(bytes.buffer);
    } else if (typeof spec.f16 === "string") {
      const bytes = fromBase64(spec.f16, what);
      if (bytes.length !== 2 * size) {
        fail(`${what} has ${bytes.length} bytes, its shape ${spec.shape.join(" x ")} needs ${2 * size}`, remedy);
      }
      values = Float32Array.from(new Uint16Array(bytes.buffer), fromHalf);
    } else if (Array.isArray(spec.values)) {
      values = Float32Array.from(spec.values.flat(Infinity), (value) => (typeof value === "number" ? value : NaN));
      if (values.length !== size) fail(`${what} has ${values.length} values, its shape asks for ${size}`, remedy);
    } else fail(`${what} holds no numbers`, "give f32 or f16 as base64, or values as a list");
    return {
      shape: spec.shape,
      values: finite(values, what, "train or export it again: a diverged network cannot run"),
    };
  }

  function checkPoints(x, n, dim, what = "x") {
    if (!x || x.length !== n * dim || n < 1) {
      fail(`${what} has ${x ? x.length : 0} numbers`, `give ${n} points of ${dim} coordinates, at least one point`);
    }
    return finite(x, what, "start from finite points");
  }

  // ---------------------------------------------------------------------------------------------------------- kernels

  // GELU for the plain kernel: between 512 nodes a unit it is a straight line to 5e-7, beyond +-8 it is 0 or x to the bit
  const NODES = 512,
    EDGE = 8;
  let geluTable = null;
  function geluNodes() {
    if (!geluTable) {
      const count = 2 * EDGE * NODES;
      geluTable = new Float64Array(count + 1);
      for (let i = 0; i <= count; i++) {
        const x = i / NODES - EDGE;
        geluTable[i] = 0.5 * x * (1 + erf(x * Math.SQRT1_2));
      }
    }
    return geluTable;
  }

  /**
   * Plain JavaScript twins of kernel.ts; pointers are byte offsets there, and here too: four of F, eight of D. All
   * numbers are doubles, as JavaScript computes: single precision would be widened at each load.
   */
  function plainKernel(F, D) {
    function gelu(first, last) {
      const table = geluNodes(),
        shift = EDGE * NODES,
        most = 2 * shift;
      for (let i = first; i < last; i++) {
        const u = F[i] * NODES + shift;
        if (u > 0 && u < most) {
          const k = u | 0,
            low = table[k];
          F[i] = low + (u - k) * (table[k + 1] - low);
        } else if (!(u >= most)) F[i] = u <= 0 ? 0 : NaN;
      }
    }
    function activate(values, count, kind) {
      const first = values >> 2,
        last = first + count;
      if (kind === 1) for (let i = first; i < last; i++) F[i] = F[i] > 0 ? F[i] : 0;
      else if (kind === 2) for (let i = first; i < last; i++) F[i] = F[i] / (1 + Math.exp(-F[i]));
      else if (kind === 3) gelu(first, last);
    }
    function linear(x, stride, w, b, out, n, nin, nout, add) {
      x >>= 2;
      w >>= 2;
      b >>= 2;
      out >>= 2;
      for (let j = 0; j < nout; j += 4) {
        const width = nout - (j & ~7) >= 8 ? 8 : 4,
          panel = w + (j & ~7) * nin + (width === 8 ? j & 4 : 0);
        for (let i = 0; i < n; i += 2) {
          let a0 = F[b + j],
            a1 = F[b + j + 1],
            a2 = F[b + j + 2],
            a3 = F[b + j + 3];
          let c0 = a0,
            c1 = a1,
            c2 = a2,
            c3 = a3;
          for (let k = 0, p = x + i * stride, r = p + stride, q = panel; k < nin; k++, q += width) {
            const u = F[p + k],
              v = F[r + k],
              w0 = F[q],
              w1 = F[q + 1],
              w2 = F[q + 2],
              w3 = F[q + 3];
            a0 += u * w0;
            a1 += u * w1;
            a2 += u * w2;
            a3 += u * w3;
            c0 += v * w0;
            c1 += v * w1;
            c2 += v * w2;
            c3 += v * w3;
          }
          const o = out + i * nout + j,
            s = o + nout;
          if (add) {
            F[o] += a0;
            F[o + 1] += a1;
            F[o + 2] += a2;
            F[o + 3] += a3;
            F[s] += c0;
            F[s + 1] += c1;
            F[s + 2] += c2;
            F[s + 3] += c3;
          } else {
            F[o] = a0;
            F[o + 1] = a1;
            F[o + 2] = a2;
            F[o + 3] = a3;
            F[s] = c0;
            F[s + 1] = c1;
            F[s + 2] = c2;
            F[s + 3] = c3;
          }
        }
      }
    }
    function norm(h, gamma, beta, out, n, width) {
      h >>= 2;
      gamma >>= 2;
      beta >>= 2;
      out >>= 2;
      const padded = pad4(width);
      for (let i = 0; i < n; i++, h += padded, out += padded) {
        // in doubles one pass is exact enough; the rows are padded with zeros to a multiple of 4
        let a0 = 0,
          a1 = 0,
          s0 = 0,
          s1 = 0;
        for (let k = 0; k < padded; k += 2) {
          const u = F[h + k],
            v = F[h + k + 1];
          a0 += u;
          a1 += v;
          s0 += u * u;
          s1 += v * v;
        }
        const mean = (a0 + a1) / width,
          variance = Math.max(0, (s0 + s1) / width - mean * mean),
          scale = 1 / Math.sqrt(variance + 1e-5);
        for (let k = 0; k < width; k++) F[out + k] = (F[h + k] - mean) * scale * F[gamma + k] + F[beta + k];
        for (let k = width; k < padded; k++) F[out + k] = 0;
      }
    }
    function nodes(p, centres, q, logits, out, n, dim, m) {
      const sums = [0, 0, 0];
      p >>= 3;
      centres >>= 3;
      q >>= 3;
      logits >>= 3;
      out >>= 3;
      for (let i = 0; i < n; i++, p += dim, out += dim + 2) {
        let top = -Infinity,
          mass = 0;
        const p0 = D[p],
          p1 = dim > 1 ? D[p + 1] : 0,
          p2 = dim > 2 ? D[p + 2] : 0;
        const second = centres + (dim > 1 ? m : 0),
          third = centres + (dim > 2 ? 2 * m : 0);
        for (let j = 0; j < m; j++) {
          const l = D[q + j] + p0 * D[centres + j] + p1 * D[second + j] + p2 * D[third + j];
          D[logits + j] = l;
          if (l > top) top = l;
        }
        sums.fill(0);
        for (let j = 0; j < m; j++) {
          const l = D[logits + j] - top;
          if (l < -40) continue;
          const w = Math.exp(l);
          mass += w;
          sums[0] += w * D[centres + j];
          sums[1] += w * D[second + j];
          sums[2] += w * D[third + j];
        }
        for (let d = 0; d < dim; d++) D[out + d] = sums[d] / mass;
        D[out + dim] = mass;
        D[out + dim + 1] = top;
      }
    }
    function distances(x, n, y, m, spare, dim) {
      let sum = 0;
      x >>= 2;
      y >>= 2;
      for (let i = 0; i < n; i++, x += dim) {
        for (let j = 0; j < m - spare; j++) {
          let square = 0;
          for (let d = 0; d < dim; d++) square += (F[x + d] - F[y + d * m + j]) ** 2;
          sum += Math.sqrt(square);
        }
      }
      return sum;
    }
    return { activate, linear, norm, nodes, distances };
  }

  // Eigen's rational approximation, as in kernel.ts
  function erf(x) {
    const z = Math.max(-4, Math.min(4, x)),
      s = z * z;
    let p = -2.72614225801306e-10,
      q = -1.45660718464996e-5;
    p = p * s + 2.77068142495902e-8;
    p = p * s - 2.10102402082508e-6;
    p = p * s - 5.69250639462346e-5;
    p = p * s - 7.34990630326855e-4;
    p = p * s - 2.95459980854025e-3;
    p = p * s - 1.60960333262415e-2;
    q = q * s - 2.13374055278905e-4;
    q = q * s - 1.68282697438203e-3;
    q = q * s - 7.37332916720468e-3;
    q = q * s - 1.42647390514189e-2;
    return (z * p) / q;
  }

  let module = null;
  if (options.kernel !== "js") {
    try {
      module = new WebAssembly.Module(fromBase64(WASM, "the kernel"));
    } catch (error) {
      if (options.kernel === "wasm") {
        fail(`the WebAssembly kernel does not start (${error.message})`, 'omit kernel, or ask for kernel: "js"');
      }
    }
  }

  const BASE = 16384; // below lie the module's own constants

  /** Lays out float and double arrays, then opens a memory of that size with its kernel. */
  function layout() {
    let size = BASE;
    const take = (bytes) => {
      const at = size;
      size = (size + bytes + 15) & ~15;
      return at;
    };
    return {
      floats: (n) => take(4 * n),
      doubles: (n) => take(8 * n),
      open() {
        if (!module) {
          const [F, D] = [new Float64Array(size >> 2), new Float64Array(size >> 3)];
          return { kernel: plainKernel(F, D), F, D };
        }
        const kernel = new WebAssembly.Instance(module, {}).exports;
        const missing = Math.ceil((size - kernel.memory.buffer.byteLength) / 65536);
        if (missing > 0) kernel.memory.grow(missing);
        const { buffer } = kernel.memory;
        return { kernel, F: new Float32Array(buffer), D: new Float64Array(buffer) };
      },
    };
  }

  // ------------------------------------------------------------------------------------------------------------ noise

  /** Threefry-2x32 with 20 rounds (Salmon et al. 2011): two words of key and counter to two random words. */
  function threefry(key0, key1, counter0, counter1, out) {
    const key2 = 0x1bd11bda ^ key0 ^ key1,
      keys = [key0, key1, key2];
    let a = (counter0 + key0) | 0,
      b = (counter1 + key1) | 0;
    for (let round = 0; round < 5; round++) {
      const even = (round & 1) === 0;
      a = (a + b) | 0;
      b = (even ? (b << 13) | (b >>> 19) : (b << 17) | (b >>> 15)) ^ a;
      a = (a + b) | 0;
      b = (even ? (b << 15) | (b >>> 17) : (b << 29) | (b >>> 3)) ^ a;
      a = (a + b) | 0;
      b = (even ? (b << 26) | (b >>> 6) : (b << 16) | (b >>> 16)) ^ a;
      a = (a + b) | 0;
      b = (even ? (b << 6) | (b >>> 26) : (b << 24) | (b >>> 8)) ^ a;
      a = (a + keys[(round + 1) % 3]) | 0;
      b = (b + keys[(round + 2) % 3] + round + 1) | 0;
    }
    out[0] = a >>> 0;
    out[1] = b >>> 0;
    return out;
  }

  const checkSeed = (seed) =>
    Number.isSafeInteger(seed) && seed >= 0 ? seed : fail(`seed = ${seed}`, "give a whole number of at least 0");

  /** Uniform numbers on (0, 1), `width` per point: those of a point do not depend on how many points there are. */
  function uniforms(seed, n, width, stream) {
    checkSeed(seed);
    const out = new Float64Array(n * width),
      words = [0, 0];
    const key0 = seed >>> 0,
      key1 = Math.floor(seed / 4294967296) >>> 0,
      pairs = (width + 1) >> 1;
    for (let i = 0; i < n; i++) {
      for (let k = 0; k < pairs; k++) {
        threefry(key0 | 0, key1 | 0, i * pairs + k, stream, words);
        out[i * width + 2 * k] = (words[0] + 0.5) / 4294967296;
        if (2 * k + 1 < width) out[i * width + 2 * k + 1] = (words[1] + 0.5) / 4294967296;
      }
    }
    return out;
  }

  const LAW_STREAM = 1 << 20;

  /** Standard normal numbers of a seed, n x dim; the stream sets apart the start (0) and the steps (1, 2, ...). */
  function noise(seed, n, dim, stream = 0) {
    const pairs = (dim + 1) >> 1,
      u = uniforms(seed, n, 2 * pairs, stream),
      out = new Float32Array(n * dim);
    for (let i = 0; i < n; i++) {
      for (let k = 0; k < dim; k++) {
        const at = 2 * (i * pairs + (k >> 1)),
          radius = Math.sqrt(-2 * Math.log(u[at])),
          turn = 2 * Math.PI * u[at + 1];
        out[i * dim + k] = radius * (k & 1 ? Math.sin(turn) : Math.cos(turn));
      }
    }
    return out;
  }

  // -------------------------------------------------------------------------------------------------------- schedules

  const rint = (x) => {
    const low = Math.floor(x),
      rest = x - low; // halves go to the even neighbour, as numpy rounds
    return rest > 0.5 || (rest === 0.5 && low % 2) ? low + 1 : low;
  };
  const linspace = (from, to, n) =>
    Float64Array.from({ length: n }, (_, i) => (i && i === n - 1 ? to : from + i * ((to - from) / Math.max(1, n - 1))));
  const sigmoid = (x) => 1 / (1 + Math.exp(-x));
  const clamp = (x, low, high) => Math.min(Math.max(x, low), high);

  function number(spec, name, what, test, bound) {
    const value = spec[name];
    if (typeof value !== "number" || !test(value)) fail(`${what}: ${name} = ${JSON.stringify(value)}`, `need ${bound}`);
    return value;
  }

  function discrete(spec) {
    const known = spec.alpha_bars;
    if (!Array.isArray(known) || !known.length) {
      fail("this discrete schedule has no alpha_bars", "give those of t = 1, ..., T, decreasing, in [0, 1)");
    }
    const bars = [1, ...known],
      tMax = known.length;
    for (let t = 1; t <= tMax; t++) {
      if (!(bars[t] >= 0 && bars[t] < bars[t - 1])) {
        fail(`alpha_bars[${t - 1}] = ${bars[t]} after ${bars[t - 1]}`, "they must decrease from below 1, none below 0");
      }
    }
    const logLevel = (t) => 0.5 * Math.log((1 - bars[t]) / bars[t]);
    return {
      tMax,
      tMin: 1,
      discrete: true,
      pair(t) {
        if (Number.isInteger(t)) return [Math.sqrt(bars[t]), Math.sqrt(1 - bars[t])];
        if (t > 0 && t < 1) fail(`t = ${t}`, "t = 0 is clean and t = 1 the first step: between them there is no level");
        const low = Math.floor(t),
          level = logLevel(low) + (t - low) * (logLevel(low + 1) - logLevel(low));
        return [Math.sqrt(sigmoid(-2 * level)), Math.sqrt(sigmoid(2 * level))];
      },
      timeOf(level) {
        const wanted = Math.log(level);
        if (!(wanted > logLevel(1))) return 1;
        if (wanted >= logLevel(tMax)) return tMax;
        let low = 1,
          high = tMax;
        while (high - low > 1) {
          const middle = (low + high) >> 1;
          if (logLevel(middle) <= wanted) low = middle;
          else high = middle;
        }
        return low + (wanted - logLevel(low)) / (logLevel(low + 1) - logLevel(low));
      },
      noisy(n, spacing) {
        if (spacing === "trailing") return Float64Array.from({ length: n }, (_, i) => rint(tMax - (i * tMax) / n));
        if (spacing === "linspace") return linspace(tMax, 1, n).map(rint);
        return Float64Array.from({ length: n }, (_, i) => 1 + (n - 1 - i) * Math.floor(tMax / n));
      },
    };
  }

  const continuous = (tMin) => ({
    tMax: 1,
    tMin,
    discrete: false,
    noisy(n, spacing) {
      if (spacing === "trailing") return Float64Array.from({ length: n }, (_, i) => 1 - i / n);
      if (spacing === "linspace") return linspace(1, tMin, n);
      return Float64Array.from({ length: n }, (_, i) => tMin + ((1 - tMin) * (n - 1 - i)) / n);
    },
  });

  function vpCosine(spec) {
    const snr = number(
      spec,
      "terminal_snr",
      "vp_cosine",
      (v) => v >= 0 && v < Infinity,
      "a finite value of at least 0",
    );
    const tMin = number(spec, "t_min", "vp_cosine", (v) => v > 0 && v < 1, "0 < t_min < 1");
    const last = Math.sqrt(snr / (1 + snr));
    return {
      ...continuous(tMin),
      pair(t) {
        const drop = 2 * (1 - last) * Math.sin((Math.PI / 4) * t) ** 2;
        return [last + (1 - last) * Math.sin((Math.PI / 2) * (1 - t)), Math.sqrt(drop * (2 - drop))];
      },
      timeOf(level) {
        const cos = clamp((1 / Math.sqrt(1 + level ** 2) - last) / (1 - last), -1, 1);
        const fall = level < 1e-3 ? level ** 2 / 2 : 1 - 1 / Math.hypot(level, 1);
        const half = Math.asin(Math.sqrt(clamp(fall / (1 - last) / 2, 0, 1)));
        return clamp(cos > 0.9 ? (4 / Math.PI) * half : (2 / Math.PI) * Math.acos(cos), tMin, 1);
      },
    };
  }

  function rectified(spec) {
    const snr = number(spec, "terminal_snr", "rectified", (v) => v >= 0 && v < 1, "0 <= terminal_snr < 1");
    const tMin = number(spec, "t_min", "rectified", (v) => v > 0 && v < 1, "0 < t_min < 1"),
      fall = 1 - Math.sqrt(snr);
    return {
      ...continuous(tMin),
      pair: (t) => [1 - fall * t, t],
      timeOf: (level) => clamp(1 / (1 / level + fall), tMin, 1),
    };
  }

  function ve(spec) {
    const high = number(spec, "sigma_max", "ve", (v) => v > 0 && v < Infinity, "a finite sigma_max above 0");
    const low = number(spec, "sigma_min", "ve", (v) => v > 0 && v < high, "0 < sigma_min < sigma_max");
    const rho = number(spec, "rho", "ve", (v) => v > 0 && v < Infinity, "rho above 0");
    const tMin = (low / high) ** (1 / rho);
    return {
      ...continuous(tMin),
      pair: (t) => [1, high * t ** rho],
      timeOf: (level) => clamp(Math.max(level / high, 0) ** (1 / rho), tMin, 1),
    };
  }

  /** A forward process: scales, times, noise levels, as `ddpmlab.schedules`. */
  function schedule(spec) {
    if (!isObject(spec)) fail(`schedule is ${JSON.stringify(spec)}`, "give one of ddpmlab.explorer.export.schedule");
    const kinds = { discrete, vp_cosine: vpCosine, rectified, ve };
    const own = kinds[oneOf(spec.kind, Object.keys(kinds), "kind of schedule")](spec);
    const spacing = oneOf(spec.spacing ?? (spec.kind === "ve" ? "linspace" : "trailing"), SPACINGS, "spacing");
    const scales = (t) =>
      t >= 0 && t <= own.tMax ? own.pair(t) : fail(`t = ${t}`, `this schedule has times in [0, ${own.tMax}]`);
    return {
      spec,
      name: spec.name ?? spec.kind,
      tMax: own.tMax,
      tMin: own.tMin,
      discrete: own.discrete,
      spacing,
      scales,
      noiseLevel(t) {
        const [alpha, sigma] = scales(t);
        return sigma / alpha;
      },
      timeOf: own.timeOf,
      times(nSteps, asked) {
        const n = nSteps ?? (own.discrete ? own.tMax : fail("nSteps is missing", "a continuous schedule needs it"));
        const limit = own.discrete ? own.tMax : Infinity;
        if (!Number.isInteger(n) || n < 1 || n > limit) {
          fail(
            `nSteps = ${n}`,
            `this schedule samples in 1 to ${limit === Infinity ? "any number of" : limit} whole steps`,
          );
        }
        const noisy = own.noisy(n, oneOf(asked ?? spacing, SPACINGS, "spacing"));
        const times = new Float64Array(n + 1);
        times.set(noisy);
        return times;
      },
    };
  }

  // --------------------------------------------------------------------------------------------------------- networks

  /** A network's weights by name; tells which are missing, which do not fit and which nobody asked for. */
  function weightsOf(spec, title) {
    const what = `network ${JSON.stringify(title)}`,
      remedy = "export it again with ddpmlab.explorer.export.network";
    if (!isObject(spec.weights)) fail(`${what} has no weights`, remedy);
    const left = new Set(Object.keys(spec.weights));
    function get(name, ...shape) {
      if (!(name in spec.weights)) {
        fail(
          `${what} lacks the weight ${name} (${shape.join(" x ")}); it has ${Object.keys(spec.weights).join(", ")}`,
          remedy,
        );
      }
      left.delete(name);
      const { shape: found, values } = tensor(spec.weights[name], `${what}: weight ${name}`);
      if (found.length !== shape.length || found.some((size, k) => shape[k] !== null && size !== shape[k])) {
        const wanted = shape.map((size) => size ?? "any").join(" x ");
        fail(`${what}: weight ${name} has shape ${found.join(" x ")}, the rest of the network needs ${wanted}`, remedy);
      }
      return { values, shape: found };
    }
    return {
      what,
      get,
      has: (name) => name in spec.weights,
      shape: (name) => (isObject(spec.weights[name]) && spec.weights[name].shape) || [],
      indices: (pattern) =>
        Object.keys(spec.weights)
          .map((name) => pattern.exec(name))
          .filter(Boolean)
          .map((m) => +m[1])
          .sort((a, b) => a - b),
      done() {
        if (left.size) fail(`${what} has weights that its kind does not use: ${[...left].join(", ")}`, remedy);
      },
    };
  }

  function activation(name, what) {
    return ACTIVATIONS[oneOf(name, Object.keys(ACTIVATIONS), `activation of ${what}`)];
  }

  function scalarActivation(kind, x) {
    if (kind === 1) return x > 0 ? x : 0;
    if (kind === 2) return x / (1 + Math.exp(-x));
    return kind === 3 ? 0.5 * x * (1 + erf(x * Math.SQRT1_2)) : x;
  }

  /** What a network sees besides the point: its time embedding and its class, as one vector for all points. */
  function conditionOf(spec, weights, kind) {
    const time = oneOf(
      spec.time ?? "scalar",
      ["scalar", "sinusoidal", "fourier", "none"],
      `time embedding of ${weights.what}`,
    );
    let frequency = null,
      size = time === "none" ? 0 : 1;
    if (time === "sinusoidal" || time === "fourier") {
      const found =
        time === "fourier" ? weights.get("time.0.frequency", 1, null) : weights.get("time.0.frequency", null);
      frequency = found.values;
      size = 2 * frequency.length;
    }
    const layers = weights.indices(/^time\.(\d+)\.weight$/).map((index) => {
      const w = weights.get(`time.${index}.weight`, null, size),
        nin = size;
      size = w.shape[0];
      return { w: w.values, b: weights.get(`time.${index}.bias`, size).values, nin, nout: size };
    });
    let classes = null;
    if (weights.has("classes.weight")) {
      const [rows, width] = weights.get("classes.weight", null, null).shape;
      classes = { rows, width, values: weights.get("classes.weight", null, null).values };
    }
    if (spec.label !== undefined && spec.label !== null) {
      if (!classes) fail(`${weights.what} has no classes`, "omit label, or train it with n_classes");
      if (!Number.isInteger(spec.label) || spec.label < 0 || spec.label >= classes.rows) {
        fail(
          `label = ${spec.label}`,
          `${weights.what} has classes 0 to ${classes.rows - 2}, and ${classes.rows - 1} for none`,
        );
      }
    }
    return {
      size: size + (classes ? classes.width : 0),
      vector(c) {
        let e = time === "none" ? [] : [f32(c)];
        if (time === "sinusoidal") {
          const phase = Array.from(frequency, (f) => f32(f32(1000 * f32(c)) * f));
          e = [...phase.map((p) => f32(Math.sin(p))), ...phase.map((p) => f32(Math.cos(p)))];
        } else if (time === "fourier") {
          const phase = Array.from(frequency, (f) => f32(f32(2 * Math.PI) * f32(f32(c) * f)));
          e = [...phase.map((p) => f32(Math.cos(p))), ...phase.map((p) => f32(Math.sin(p)))];
        }
        layers.forEach(({ w, b, nin, nout }, index) => {
          e = Array.from({ length: nout }, (_, j) => {
            let sum = b[j];
            for (let k = 0; k < nin; k++) sum += w[j * nin + k] * e[k];
            return index < layers.length - 1 ? scalarActivation(kind, sum) : sum;
          });
        });
        if (classes) {
          const row = spec.label ?? classes.rows - 1;
          e = [...e, ...classes.values.subarray(row * classes.width, (row + 1) * classes.width)];
        }
        return e;
      },
    };
  }

  /** W (nout x nin, rows of `stride`) in the panels of the kernel's `linear`, written to F at `at` (floats). */
  function pack(F, at, values, nout, nin, stride) {
    const padded = pad4(nout);
    for (let j = 0; j < padded; j++) {
      const panel = j & ~7,
        width = padded - panel >= 8 ? 8 : 4;
      for (let k = 0; k < nin; k++) {
        F[at + panel * nin + k * width + (j - panel)] = j < nout ? values[j * stride + k] : 0;
      }
    }
  }

  /** A network ready to run: `run(scaled points, n, c)` is its output F, n x dim. */
  function network(spec, title = "network") {
    if (!isObject(spec)) fail(`network ${JSON.stringify(title)} is missing`, "give ddpmlab.explorer.export.network");
    oneOf(spec.kind, ["mlp", "residual_mlp"], "kind of network");
    const weights = weightsOf(spec, title),
      what = weights.what;
    if (!Array.isArray(spec.shape) || !spec.shape.every((size) => Number.isInteger(size) && size > 0)) {
      fail(`${what}: shape = ${JSON.stringify(spec.shape)}`, "give the shape of a point, such as [2]");
    }
    const dim = spec.shape.reduce((a, b) => a * b, 1),
      kind = activation(spec.activation ?? "relu", what);
    const after = spec.output_activation ? activation(spec.output_activation, what) : 0;
    const condition = conditionOf(spec, weights, kind);
    const fourier = weights.has("fourier.frequency") ? weights.get("fourier.frequency", dim, null).values : null;
    const half = fourier ? fourier.length / dim : 0,
      nPoint = dim + 2 * half;
    const plan = layout(),
      pending = [];
    let widest = pad4(nPoint);

    function linear(name, nout, nin, { point = nin, bias = null } = {}) {
      const w = weights.get(`${name}.weight`, nout, nin),
        rows = w.shape[0],
        padded = pad4(rows);
      const b = weights.get(`${name}.bias`, rows).values;
      const layer = { nin: point, nout: rows, padded, w: plan.floats(padded * point), b: plan.floats(padded), bias: b };
      widest = Math.max(widest, padded);
      if (point < nin) layer.rest = { values: w.values, from: point, stride: nin };
      pending.push((F) => {
        pack(F, layer.w >> 2, w.values, rows, point, nin);
        F.set(b, layer.b >> 2);
      });
      if (bias) bias.push(layer);
      return layer;
    }
    function normalise(name, width) {
      const gamma = weights.get(`${name}.weight`, width).values,
        beta = weights.get(`${name}.bias`, width).values;
      const layer = { width, gamma: plan.floats(pad4(width)), beta: plan.floats(pad4(width)), shift: beta };
      pending.push((F) => {
        F.set(gamma, layer.gamma >> 2);
        F.set(beta, layer.beta >> 2);
      });
      return layer;
    }

    let prepare, forward; // prepare: fold the condition, the same for all points, into biases
    const input = plan.floats(BLOCK * pad4(nPoint));
    let buffers = [],
      memory = null;
    if (spec.kind === "mlp") {
      const indices = weights.indices(/^layers\.(\d+)\.weight$/),
        layers = [];
      if (indices.length < 2)
        fail(`${what} has ${indices.length} layers`, "an MLP has at least one hidden layer and an output");
      let width = nPoint + condition.size;
      for (const index of indices) {
        const last = index === indices[indices.length - 1],
          first = !layers.length;
        const layer = linear(`layers.${index}`, last ? dim : null, width, first ? { point: nPoint } : {});
        layers.push(layer);
        width = layer.nout;
      }
      prepare = (e, { F }) => {
        const { bias, nout, b, rest } = layers[0];
        for (let j = 0; j < nout; j++) {
          let sum = bias[j];
          for (let k = 0; k < e.length; k++) sum += rest.values[j * rest.stride + rest.from + k] * e[k];
          F[(b >> 2) + j] = sum;
        }
      };
      forward = (rows, { kernel }) => {
        let from = input,
          stride = pad4(nPoint),
          to = 0;
        layers.forEach((layer, index) => {
          to = buffers[index & 1];
          kernel.linear(from, stride, layer.w, layer.b, to, rows, layer.nin, layer.padded, 0);
          const phi = index < layers.length - 1 ? kind : after;
          if (phi) kernel.activate(to, rows * layer.padded, phi);
          from = to;
          stride = layer.padded;
        });
        return to;
      };
    } else {
      const inlet = linear("inlet", null, nPoint),
        width = inlet.nout;
      const blocks = weights.indices(/^blocks\.(\d+)\.layers\.0\.weight$/).map((index) => {
        const name = `blocks.${index}`;
        return {
          norms: [normalise(`${name}.norms.0`, width), normalise(`${name}.norms.1`, width)],
          layers: [linear(`${name}.layers.0`, width, width), linear(`${name}.layers.1`, width, width)],
          u: condition.size ? weights.get(`${name}.condition.weight`, width, condition.size).values : null,
          v: condition.size ? weights.get(`${name}.condition.bias`, width).values : null,
        };
      });
      if (!blocks.length)
        fail(`${what} has no blocks`, "a residual MLP has weights blocks.0.layers.0.weight and so on");
      const last = normalise("outlet.0", width),
        outlet = linear("outlet.2", dim, width);
      prepare = (e, { F }) => {
        for (const { norms, u, v } of e.length ? blocks : []) {
          for (let j = 0; j < width; j++) {
            let sum = norms[0].shift[j] + v[j];
            for (let k = 0; k < e.length; k++) sum += u[j * e.length + k] * e[k];
            F[(norms[0].beta >> 2) + j] = sum;
          }
        }
      };
      forward = (rows, { kernel }) => {
        const [h, a, b] = buffers,
          padded = inlet.padded;
        const apply = (layer, from, to, add) =>
          kernel.linear(from, padded, layer.w, layer.b, to, rows, layer.nin, layer.padded, add);
        const activated = (layer, from) => {
          kernel.norm(from, layer.gamma, layer.beta, a, rows, width);
          kernel.activate(a, rows * padded, kind);
        };
        kernel.linear(input, pad4(nPoint), inlet.w, inlet.b, h, rows, inlet.nin, padded, 0);
        for (const { norms, layers } of blocks) {
          activated(norms[0], h);
          apply(layers[0], a, b, 0);
          activated(norms[1], b);
          apply(layers[1], a, h, 1);
        }
        activated(last, h);
        apply(outlet, a, b, 0);
        if (after) kernel.activate(b, rows * outlet.padded, after);
        return b;
      };
    }
    weights.done();
    buffers = [0, 1, 2].map(() => plan.floats(BLOCK * widest));
    let parameters = 0;
    for (const name of Object.keys(spec.weights)) {
      if (!name.endsWith("frequency")) parameters += weights.shape(name).reduce((a, b) => a * b, 1);
    }

    function run(x, n, c) {
      if (!memory) {
        memory = plan.open();
        for (const fill of pending) fill(memory.F);
      }
      const { F } = memory,
        out = new Float32Array(n * dim),
        stride = pad4(nPoint),
        start = input >> 2;
      const turn = f32(2 * Math.PI),
        padded = pad4(dim);
      prepare(condition.vector(c), memory);
      for (let first = 0; first < n; first += BLOCK) {
        const size = Math.min(BLOCK, n - first),
          rows = pad4(size);
        for (let i = 0; i < rows; i++) {
          const row = start + i * stride,
            from = (first + Math.min(i, size - 1)) * dim;
          for (let k = 0; k < dim; k++) F[row + k] = x[from + k];
          for (let f = 0; f < half; f++) {
            let product = 0;
            for (let k = 0; k < dim; k++) product += x[from + k] * fourier[k * half + f];
            const phase = f32(turn * f32(product));
            F[row + dim + f] = Math.cos(phase);
            F[row + dim + half + f] = Math.sin(phase);
          }
        }
        const result = forward(rows, memory) >> 2;
        for (let i = 0; i < size; i++) {
          for (let k = 0; k < dim; k++) out[(first + i) * dim + k] = F[result + i * padded + k];
        }
      }
      return out;
    }
    return { dim, parameters, run };
  }

  // ------------------------------------------------------------------------------------------------------------- laws

  const LEGENDRE = [
    [0.1834346424956498, 0.362683783378362],
    [0.525532409916329, 0.31370664587788727],
    [0.7966664774136267, 0.22238103445337448],
    [0.9602898564975363, 0.10122853629037626],
  ];

  /** Composite Gauss-Legendre rule of order 8 on (0, 1). */
  function legendre(panels) {
    const u = [],
      w = [];
    for (let p = 0; p < panels; p++) {
      for (const [node, weight] of [...LEGENDRE].reverse()) {
        u.push((p + (1 - node) / 2) / panels);
        w.push(weight / 2 / panels);
      }
      for (const [node, weight] of LEGENDRE) {
        u.push((p + (1 + node) / 2) / panels);
        w.push(weight / 2 / panels);
      }
    }
    return [u, w];
  }

  /** Marginal of nodes shared by all points: `rule(alpha, sigmas)` gives centres (rows), log weights and the noise s. */
  function sharedNodes(dim, rule) {
    if (dim > 3) fail(`a law of ${dim} dimensions`, "the page computes exact denoisers in up to 3");
    const ROWS = 256;
    let memory = null,
      at = null,
      loaded = null;
    return (x, n, alpha, sigmas) => {
      const { centres, logWeights, noise, key } = rule(alpha, sigmas),
        count = logWeights.length,
        m = pad4(count);
      if (!at || at.m < m) {
        const plan = layout();
        at = {
          m,
          p: plan.doubles(ROWS * dim),
          centres: plan.doubles(m * dim * 1.5 + 2),
          q: plan.doubles(m),
          logits: plan.doubles(m),
          out: plan.doubles(ROWS * (dim + 2)),
        };
        memory = plan.open();
        loaded = null;
      }
      const { D, F, kernel } = memory,
        c = at.centres >> 3,
        q = at.q >> 3;
      if (loaded !== key) {
        const narrow = (at.centres >> 2) + 2 * m * dim;
        for (let d = 0; d < dim; d++) {
          for (let j = 0; j < m; j++) {
            D[c + d * m + j] = j < count ? centres[j * dim + d] : 0;
            F[narrow + d * m + j] = D[c + d * m + j];
          }
        }
        loaded = key;
      }
      const variance = sigmas.map((sigma) => alpha ** 2 * noise ** 2 + sigma ** 2);
      for (let j = 0; j < m; j++) {
        let value = j < count ? logWeights[j] : -1e300;
        for (let d = 0; d < dim; d++) value -= (0.5 * (alpha * D[c + d * m + j]) ** 2) / variance[d];
        D[q + j] = value;
      }
      const mean = new Float64Array(n * dim),
        logProb = new Float64Array(n);
      for (let first = 0; first < n; first += ROWS) {
        const rows = Math.min(ROWS, n - first),
          p = at.p >> 3,
          out = at.out >> 3;
        for (let i = 0; i < rows; i++) {
          for (let d = 0; d < dim; d++) D[p + i * dim + d] = (x[(first + i) * dim + d] * alpha) / variance[d];
        }
        kernel.nodes(at.p, at.centres, at.q, at.logits, at.out, rows, dim, m);
        for (let i = 0; i < rows; i++) {
          const o = out + i * (dim + 2);
          let log = D[o + dim + 1] + Math.log(D[o + dim]);
          for (let d = 0; d < dim; d++) {
            const value = x[(first + i) * dim + d];
            log -= 0.5 * (value ** 2 / variance[d] + Math.log(variance[d]) + LOG_2PI);
            mean[(first + i) * dim + d] = (sigmas[d] ** 2 * D[o + d] + alpha * noise ** 2 * value) / variance[d];
          }
          logProb[first + i] = log;
        }
      }
      return { mean, logProb };
    };
  }

  /** Arcs blurred by isotropic noise, as `ddpmlab.data.laws._Curve`. */
  function curve(dim, arcs, length, noise, nArcs) {
    const rules = new Map();
    return sharedNodes(dim, (alpha, sigmas) => {
      const width = Math.hypot(noise, Math.min(...sigmas) / alpha);
      const panels = Math.max(16, Math.ceil(length / (2 * width)));
      if (!rules.has(panels)) {
        const [u, w] = legendre(panels),
          centres = [],
          logWeights = [];
        for (let arc = 0; arc < nArcs; arc++) {
          u.forEach((value, j) => {
            centres.push(...arcs(value, arc));
            logWeights.push(Math.log(w[j] / nArcs));
          });
        }
        rules.set(panels, { centres, logWeights, noise, key: panels });
      }
      return rules.get(panels);
    });
  }

  const boxMuller = (u, at) => {
    const radius = Math.sqrt(-2 * Math.log(u[at])),
      turn = 2 * Math.PI * u[at + 1];
    return [radius * Math.cos(turn), radius * Math.sin(turn)];
  };

  const noiseOf = (spec, own) =>
    spec.noise === undefined ? own : number(spec, "noise", spec.name, (v) => v > 0 && v < Infinity, "noise above 0");

  function twoMoons(spec) {
    const arcs = (u, arc) => {
      const cos = Math.cos(Math.PI * u),
        sin = Math.sin(Math.PI * u);
      return arc ? [1 - cos, 0.5 - sin] : [cos, sin];
    };
    const s = noiseOf(spec, 0.05);
    return {
      dim: 2,
      exact: true,
      marginal: curve(2, arcs, Math.PI, s, 2),
      draw(n, seed) {
        const u = uniforms(seed, n, 4, LAW_STREAM),
          out = new Float64Array(n * 2);
        for (let i = 0; i < n; i++) {
          const [x, y] = arcs(u[4 * i + 1], u[4 * i] < 0.5 ? 0 : 1),
            [a, b] = boxMuller(u, 4 * i + 2);
          out[2 * i] = x + s * a;
          out[2 * i + 1] = y + s * b;
        }
        return out;
      },
    };
  }

  function helix(spec) {
    const arcs = (u) => [Math.cos(14 * (u - 2)), Math.sin(14 * (u - 2)), u - 2],
      s = noiseOf(spec, 0.03);
    return {
      dim: 3,
      exact: true,
      marginal: curve(3, arcs, Math.hypot(14, 1), s, 1),
      draw(n, seed) {
        const u = uniforms(seed, n, 6, LAW_STREAM),
          out = new Float64Array(n * 3);
        for (let i = 0; i < n; i++) {
          const z = [...boxMuller(u, 6 * i + 2), boxMuller(u, 6 * i + 4)[0]];
          arcs(u[6 * i]).forEach((value, d) => (out[3 * i + d] = value + s * z[d]));
        }
        return out;
      },
    };
  }

  function sin55(spec) {
    const surface = (r, x, y) => (1 - r) * Math.sin(5 * x) * Math.cos(5 * y),
      s = noiseOf(spec, 0.01);
    return {
      dim: 3,
      exact: false,
      draw(n, seed) {
        const u = uniforms(seed, n, 4, LAW_STREAM),
          out = new Float64Array(n * 3);
        for (let i = 0; i < n; i++) {
          const r = Math.sqrt(u[4 * i]),
            x = r * Math.cos(2 * Math.PI * u[4 * i + 1]);
          const y = r * Math.sin(2 * Math.PI * u[4 * i + 1]);
          out.set([x, y, surface(r, x, y) + s * boxMuller(u, 4 * i + 2)[0]], 3 * i);
        }
        return out;
      },
      logDensity(x, n) {
        return Float64Array.from({ length: n }, (_, i) => {
          const [a, b, c] = x.subarray(3 * i, 3 * i + 3),
            r = Math.hypot(a, b);
          if (r > 1) return -Infinity;
          return -Math.log(Math.PI) - 0.5 * ((c - surface(r, a, b)) / s) ** 2 - Math.log(s) - 0.5 * LOG_2PI;
        });
      },
    };
  }

  /** L with L L^T = A, for a symmetric d x d matrix in rows. */
  function cholesky(A, d, what) {
    const L = new Float64Array(d * d);
    for (let i = 0; i < d; i++) {
      for (let j = 0; j <= i; j++) {
        let sum = A[i * d + j];
        for (let k = 0; k < j; k++) sum -= L[i * d + k] * L[j * d + k];
        if (i === j && !(sum > 0))
          fail(`${what} has a covariance that is not positive definite`, "give positive scales");
        L[i * d + j] = i === j ? Math.sqrt(sum) : sum / L[j * d + j];
      }
    }
    return L;
  }

  function inverseFrom(L, d) {
    const inverse = new Float64Array(d * d),
      column = new Float64Array(d);
    let logDet = 0;
    for (let c = 0; c < d; c++) {
      logDet += 2 * Math.log(L[c * d + c]);
      for (let i = 0; i < d; i++) {
        let sum = i === c ? 1 : 0;
        for (let k = 0; k < i; k++) sum -= L[i * d + k] * column[k];
        column[i] = sum / L[i * d + i];
      }
      for (let i = d - 1; i >= 0; i--) {
        let sum = column[i];
        for (let k = i + 1; k < d; k++) sum -= L[k * d + i] * inverse[k * d + c];
        inverse[i * d + c] = sum / L[i * d + i];
      }
    }
    return [inverse, logDet];
  }

  /** Gaussian mixture in closed form; `scales` (diagonal, as in the package) or `covariances` (full). */
  function mixture(spec) {
    const means = Array.from(Array.isArray(spec.means) ? spec.means : []),
      what = "this Gaussian mixture";
    if (!means.length || !means.every(Array.isArray))
      fail(`${what} has no means`, "give K x dim");
    const K = means.length,
      d = means[0].length;
    if (!d || means.some((mean) => mean.length !== d))
      fail(`${what}: means of different sizes`, "give K x dim numbers");
    finite(means.flat(), `${what}: means`, "give finite ones");
    const weight = spec.weights ?? Array(K).fill(1);
    if (!Array.isArray(weight) || weight.length !== K || !weight.every((w) => w > 0 && w < Infinity)) {
      fail(`${what} has ${K} means and weights ${JSON.stringify(weight)}`, `give ${K} positive weights`);
    }
    const total = weight.reduce((a, b) => a + b, 0),
      logWeights = weight.map((w) => Math.log(w / total));
    const covariances = means.map((_, k) => {
      if (spec.covariances) {
        const rows = spec.covariances[k];
        if (!Array.isArray(rows) || rows.flat().length !== d * d)
          fail(`${what}: covariance ${k}`, `give ${d} x ${d} numbers`);
        return Float64Array.from(finite(rows.flat(), `${what}: covariance ${k}`, "give finite ones"));
      }
      const own = typeof spec.scales === "number" ? Array(d).fill(spec.scales) : (spec.scales ?? [])[k];
      if (!Array.isArray(own) || own.length !== d || !own.every((s) => s > 0 && s < Infinity)) {
        fail(`${what}: scales of component ${k} are ${JSON.stringify(own)}`, `give ${d} positive numbers`);
      }
      const matrix = new Float64Array(d * d);
      own.forEach((s, i) => (matrix[i * d + i] = s * s));
      return matrix;
    });
    const roots = covariances.map((matrix) => cholesky(matrix, d, what));
    return {
      dim: d,
      exact: true,
      marginal(x, n, alpha, sigmas) {
        const parts = covariances.map((matrix, k) => {
          const V = matrix.map((value) => alpha ** 2 * value);
          for (let i = 0; i < d; i++) V[i * d + i] += sigmas[i] ** 2;
          const [inverse, logDet] = inverseFrom(cholesky(V, d, what), d),
            gain = new Float64Array(d * d);
          for (let i = 0; i < d; i++) {
            for (let j = 0; j < d; j++) {
              for (let l = 0; l < d; l++) gain[i * d + j] += alpha * matrix[i * d + l] * inverse[l * d + j];
            }
          }
          return { inverse, gain, constant: logWeights[k] - 0.5 * (logDet + d * LOG_2PI), mean: means[k] };
        });
        const mean = new Float64Array(n * d),
          logProb = new Float64Array(n),
          logits = new Float64Array(K);
        const gap = new Float64Array(K * d);
        for (let i = 0; i < n; i++) {
          let top = -Infinity,
            mass = 0;
          for (let k = 0; k < K; k++) {
            const { inverse, constant, mean: m } = parts[k];
            let form = 0;
            for (let a = 0; a < d; a++) gap[k * d + a] = x[i * d + a] - alpha * m[a];
            for (let a = 0; a < d; a++) {
              for (let b = 0; b < d; b++) form += gap[k * d + a] * inverse[a * d + b] * gap[k * d + b];
            }
            logits[k] = constant - 0.5 * form;
            if (logits[k] > top) top = logits[k];
          }
          for (let k = 0; k < K; k++) {
            const w = Math.exp(logits[k] - top),
              { gain, mean: m } = parts[k];
            mass += w;
            if (w === 0) continue;
            for (let a = 0; a < d; a++) {
              let value = m[a];
              for (let b = 0; b < d; b++) value += gain[a * d + b] * gap[k * d + b];
              mean[i * d + a] += w * value;
            }
          }
          for (let a = 0; a < d; a++) mean[i * d + a] /= mass;
          logProb[i] = top + Math.log(mass);
        }
        return { mean, logProb };
      },
      draw(n, seed) {
        const u = uniforms(seed, n, 1, LAW_STREAM),
          z = noise(seed, n, d, LAW_STREAM + 1),
          out = new Float64Array(n * d);
        for (let i = 0; i < n; i++) {
          let k = 0,
            sum = weight[0] / total;
          while (sum < u[i] && k < K - 1) sum += weight[++k] / total;
          for (let a = 0; a < d; a++) {
            let value = means[k][a];
            for (let b = 0; b <= a; b++) value += roots[k][a * d + b] * z[i * d + b];
            out[i * d + a] = value;
          }
        }
        return out;
      },
    };
  }

  /** A law known by points alone: sampled from them, no density. */
  function cloud(spec) {
    const { shape, values } = tensor(spec.points, `law ${JSON.stringify(spec.name)}: points`);
    if (shape.length !== 2 || shape[0] < 1) fail(`points of shape ${shape.join(" x ")}`, "give n x dim, n at least 1");
    const [count, dim] = shape;
    return {
      dim,
      exact: false,
      draw(n, seed) {
        const order = Uint32Array.from({ length: count }, (_, i) => i),
          out = new Float64Array(n * dim);
        const u = uniforms(seed, Math.max(n, 1), 1, LAW_STREAM);
        for (let i = 0; i < n; i++) {
          const at = i % count; // without repetition as far as the points go
          const other = at + Math.floor(u[i] * (count - at));
          [order[at], order[other]] = [order[other], order[at]];
          for (let d = 0; d < dim; d++) out[i * dim + d] = values[order[at] * dim + d];
        }
        return out;
      },
    };
  }

  /** A law in the units of its spec: standardised by `mean` and `scale` if it has them. */
  function law(spec) {
    if (!isObject(spec)) fail(`law is ${JSON.stringify(spec)}`, "give one of ddpmlab.explorer.export.law");
    const known = { two_moons: twoMoons, helix, sin_5_5: sin55, gaussian_mixture: mixture };
    if (!(spec.name in known) && !spec.points) {
      fail(
        `law ${JSON.stringify(spec.name)} is not known here and has no points`,
        `add points, or choose one of: ${Object.keys(known).join(", ")}`,
      );
    }
    const own = spec.points && !(spec.name in known) ? cloud(spec) : known[spec.name](spec),
      { dim } = own;
    if (spec.dim !== undefined && spec.dim !== dim)
      fail(`law ${spec.name} has dim = ${spec.dim}`, `its points have ${dim}`);
    const mean = spec.mean ?? Array(dim).fill(0),
      scale = spec.scale ?? Array(dim).fill(1);
    if (mean.length !== dim || scale.length !== dim || !scale.every((s) => s > 0 && s < Infinity)) {
      fail(
        `law ${spec.name}: mean ${JSON.stringify(mean)}, scale ${JSON.stringify(scale)}`,
        `give ${dim} of each, scales positive`,
      );
    }
    finite(mean, `law ${spec.name}: mean`, "give finite numbers");
    const jacobian = scale.reduce((sum, s) => sum + Math.log(s), 0);
    function marginal(x, n, alpha, sigma) {
      if (!own.marginal) {
        fail(
          `the exact denoiser of ${spec.name} is not computed in the page`,
          "compare with a network, or use two_moons, helix or a Gaussian mixture",
        );
      }
      checkPoints(x, n, dim);
      const inner = new Float64Array(n * dim);
      for (let i = 0; i < n * dim; i++) inner[i] = scale[i % dim] * x[i] + alpha * mean[i % dim];
      const result = own.marginal(
        inner,
        n,
        alpha,
        scale.map((s) => s * sigma),
      );
      for (let i = 0; i < n * dim; i++) result.mean[i] = (result.mean[i] - mean[i % dim]) / scale[i % dim];
      for (let i = 0; i < n; i++) result.logProb[i] += jacobian;
      return result;
    }
    return {
      spec,
      name: spec.name,
      dim,
      exact: own.exact,
      marginal,
      sample(n, seed = 0) {
        if (!Number.isInteger(n) || n < 1) fail(`cannot draw ${n} points`, "n must be a whole number of at least 1");
        return Float32Array.from(own.draw(n, checkSeed(seed)), (value, i) => (value - mean[i % dim]) / scale[i % dim]);
      },
      logProb(x, n) {
        if (!own.logDensity) return marginal(x, n, 1, 0).logProb;
        const inner = Float64Array.from(checkPoints(x, n, dim), (value, i) => scale[i % dim] * value + mean[i % dim]);
        return own.logDensity(inner, n).map((value) => value + jacobian);
      },
    };
  }

  // -------------------------------------------------------------------------------------------------------- denoisers

  function checkDenoise(x, n, dim, t, forward) {
    if (typeof t !== "number" || Number.isNaN(t)) fail(`t = ${t}`, "give one time");
    checkPoints(x, n, dim);
    return forward.scales(t);
  }

  function networkDenoiser(spec, forward) {
    const title = spec.title ?? "network",
      net = network(spec.network, title),
      { dim } = net;
    const kind = oneOf(spec.parameterisation, PARAMETERISATIONS, `parameterisation of ${JSON.stringify(title)}`);
    if (kind === "epsilon" && forward.scales(forward.tMax)[0] === 0) {
      fail(`${JSON.stringify(title)} predicts noise and its schedule ends at an SNR of 0`, "choose x0, v, edm or flow");
    }
    return {
      dim,
      parameters: net.parameters,
      denoise(x, n, t) {
        const [alpha, sigma] = checkDenoise(x, n, dim, t, forward).map(f32),
          scale = Math.sqrt(alpha ** 2 + sigma ** 2);
        const c =
          kind === "edm"
            ? f32(0.25 * f32(Math.log(clamp(f32(sigma / alpha), f32(1e-5), f32(1e5)))))
            : f32(t / forward.tMax);
        const scaled = new Float32Array(n * dim);
        for (let i = 0; i < scaled.length; i++) scaled[i] = x[i] / scale;
        const out = net.run(scaled, n, c),
          s2 = scale * scale;
        let a = 0,
          b = 1; // D = a x + b F
        if (kind === "epsilon") [a, b] = [1 / alpha, -sigma / alpha];
        else if (kind === "v") [a, b] = [alpha / s2, -sigma / s2];
        else if (kind === "flow") [a, b] = [1 / (alpha + sigma), -sigma / (alpha + sigma)];
        else if (kind === "edm") [a, b] = [alpha / s2, sigma / scale];
        if (kind !== "x0") for (let i = 0; i < out.length; i++) out[i] = a * x[i] + b * out[i];
        return out;
      },
      output: (x, n, c) => net.run(x, n, c),
    };
  }

  function exactDenoiser(spec, forward) {
    const own = law(spec.law);
    if (!own.exact) {
      fail(
        `${own.name} has no exact denoiser in the page`,
        "compare with a network, or use two_moons, helix or a Gaussian mixture",
      );
    }
    return {
      dim: own.dim,
      denoise(x, n, t) {
        const [alpha, sigma] = checkDenoise(x, n, own.dim, t, forward);
        return Float32Array.from(own.marginal(x, n, Math.max(alpha, 1e-12), sigma).mean);
      },
    };
  }

  /** The best denoiser of a finite set of points: it remembers them. */
  function empiricalDenoiser(spec, forward) {
    const { shape, values } = tensor(spec.points, "points");
    if (shape.length !== 2 || shape[0] < 1) fail(`points of shape ${shape.join(" x ")}`, "give n x dim, n at least 1");
    const rule = {
      centres: values,
      logWeights: new Float64Array(shape[0]).fill(-Math.log(shape[0])),
      noise: 0,
      key: 1,
    };
    const marginal = sharedNodes(shape[1], () => rule);
    return {
      dim: shape[1],
      denoise(x, n, t) {
        const [alpha, sigma] = checkDenoise(x, n, shape[1], t, forward);
        if (sigma === 0) return Float32Array.from(x);
        return Float32Array.from(marginal(x, n, Math.max(alpha, 1e-12), Array(shape[1]).fill(sigma)).mean);
      },
    };
  }

  /** E[x0 | x_t] of a network, of a law or of a set of points, with its schedule. */
  function denoiser(spec) {
    if (!isObject(spec)) fail(`denoiser is ${JSON.stringify(spec)}`, "give one of ddpmlab.explorer.export.denoiser");
    if (spec.type === "remote")
      fail("a remote denoiser is evaluated by the kernel", "open the notebook, or choose another");
    const types = { network: networkDenoiser, exact: exactDenoiser, empirical: empiricalDenoiser };
    oneOf(spec.type, Object.keys(types), "type of denoiser");
    const forward = schedule(spec.schedule);
    return { spec, title: spec.title ?? spec.type, schedule: forward, ...types[spec.type](spec, forward) };
  }

  // ---------------------------------------------------------------------------------------------------------- solvers

  const halfLogSNR = (alpha, sigma) => (sigma === 0 ? Infinity : alpha > 0 ? Math.log(alpha / sigma) : -Infinity);

  function combine(...terms) {
    const used = terms.filter(([factor]) => factor !== 0),
      out = new Float32Array(terms[0][1].length);
    for (let i = 0; i < out.length; i++) {
      let sum = 0;
      for (let k = 0; k < used.length; k++) sum += used[k][0] * used[k][1][i];
      out[i] = sum;
    }
    return out;
  }

  /** One step of each solver; `run` carries the denoiser, fresh noise and what multistep solvers remember. */
  const STEPS = {
    ddpm(run, x, t, s) {
      const [at, st] = run.scales(t),
        [as, ss] = run.scales(s),
        ratio = at / as;
      const forward = Math.max(st ** 2 - ratio ** 2 * ss ** 2, 0),
        data = run.denoise(x, t);
      const mean = combine([(ratio * ss ** 2) / st ** 2, x], [(as * forward) / st ** 2, data]);
      if (s === 0) return mean;
      const variance = run.sampler.variance === "beta" ? forward : (ss ** 2 * forward) / st ** 2;
      return combine([1, mean], [Math.sqrt(variance), run.noise()]);
    },
    ddim(run, x, t, s) {
      const [at, st] = run.scales(t),
        [as, ss] = run.scales(s),
        data = run.denoise(x, t);
      const forward = Math.max(st ** 2 - (at / as) ** 2 * ss ** 2, 0);
      const fresh = ((run.sampler.eta ?? 0) * ss * Math.sqrt(forward)) / st;
      const kept = Math.sqrt(Math.max(ss ** 2 - fresh ** 2, 0)) / st;
      const next = [
        [as - kept * at, data],
        [kept, x],
      ];
      return fresh > 0 ? combine(...next, [fresh, run.noise()]) : combine(...next);
    },
    euler(run, x, t, s) {
      const [at, st] = run.scales(t),
        [as, ss] = run.scales(s),
        data = run.denoise(x, t);
      return combine([as - (ss / st) * at, data], [ss / st, x]);
    },
    heun(run, x, t, s) {
      const [at, st] = run.scales(t),
        [as, ss] = run.scales(s),
        data = run.denoise(x, t);
      const guess = combine([as - (ss / st) * at, data], [ss / st, x]);
      if (s === 0 || at === 0) return guess;
      const next = run.denoise(guess, s),
        h = (as * (ss / as - st / at)) / 2;
      return combine([as / at + h / st, x], [(-h * at) / st, data], [h / ss, guess], [(-h * as) / ss, next]);
    },
    dpmpp_2m(run, x, t, s) {
      const [at, st] = run.scales(t),
        [as, ss] = run.scales(s),
        now = halfLogSNR(at, st),
        then = halfLogSNR(as, ss);
      const data = run.denoise(x, t),
        h = then - now,
        gain = -as * Math.expm1(-h),
        before = run.history;
      run.history = [now, data];
      if (!before || !Number.isFinite(h)) return combine([ss / st, x], [gain, data]);
      const half = h / (now - before[0]) / 2;
      return combine([ss / st, x], [gain * (1 + half), data], [-gain * half, before[1]]);
    },
    unipc(run, x, t, s) {
      const [at, st] = run.scales(t),
        [as, ss] = run.scales(s),
        now = halfLogSNR(at, st),
        then = halfLogSNR(as, ss);
      const data = run.denoise(x, t);
      if (run.memory) x = correct(run.memory, data, at, st, now);
      const h = then - now,
        gain = -as * Math.expm1(-h),
        before = run.history;
      let next = [
          [ss / st, x],
          [gain, data],
        ],
        order = 1;
      if (before && Number.isFinite(h) && Number.isFinite(before[0])) {
        const slope = (0.5 * gain * h) / (before[0] - now);
        next = [
          [ss / st, x],
          [gain - slope, data],
          [slope, before[1]],
        ];
        order = 2;
      }
      run.memory = { x, sigma: st, start: now, first: data, order, before };
      run.history = [now, data];
      return combine(...next);
    },
  };

  function correct({ x, sigma: st, start, first, order, before }, data, alpha, sigma, now) {
    const h = now - start,
      e = Math.expm1(-h);
    if (order === 2 && Number.isFinite(h)) {
      const r = (before[0] - start) / h,
        phi2 = e / -h - 1,
        phi3 = phi2 / -h - 0.5;
      const b = [phi2 / e, (2 * phi3) / e],
        rho = (b[1] - b[0]) / (r - 1),
        own = b[0] - rho;
      return combine(
        [sigma / st, x],
        [-alpha * e * (1 - rho / r - own), first],
        [(-alpha * e * rho) / r, before[1]],
        [-alpha * e * own, data],
      );
    }
    return combine([sigma / st, x], [-0.5 * alpha * e, first], [-0.5 * alpha * e, data]);
  }

  function checkSampler(sampler) {
    if (!isObject(sampler))
      fail(`sampler is ${JSON.stringify(sampler)}`, "give one of ddpmlab.explorer.export.sampler");
    oneOf(sampler.name, SAMPLERS, "sampler");
    if (sampler.variance !== undefined) oneOf(sampler.variance, VARIANCES, "variance");
    if (sampler.eta !== undefined && !(sampler.eta >= 0 && sampler.eta <= 1))
      fail(`eta = ${sampler.eta}`, "need 0 <= eta <= 1");
  }

  /** Evaluations that a sampler spends on a denoiser. */
  function evaluations(d, sampler) {
    const forward = (d.denoise ? d : denoiser(d)).schedule;
    const times = forward.times(sampler.n_steps ?? undefined, sampler.spacing ?? undefined),
      steps = times.length - 1;
    if (sampler.name !== "heun") return steps;
    return 2 * steps - 1 - (steps > 1 && forward.scales(times[0])[0] === 0 ? 1 : 0);
  }

  /**
   * States from noise to clean data: {k, t, x, nfe}, k = 0 .. nSteps.
   * x: start from these states; otherwise n points of the seed's noise at the marginal's scale.
   * noises: the noise of each step that asks for some, in order, in place of the seed's.
   */
  function* sample(d, sampler, { x, n, seed = 0, noises } = {}) {
    const own = d.denoise ? d : denoiser(d),
      { dim, schedule: forward } = own;
    checkSampler(sampler);
    checkSeed(seed);
    const times = forward.times(sampler.n_steps ?? undefined, sampler.spacing ?? undefined);
    if (x) n = n ?? x.length / dim;
    if (!Number.isInteger(n) || n < 1)
      fail(`n = ${n}`, "give how many points to draw, at least 1, or x, the states to start from");
    if (x) x = Float32Array.from(checkPoints(x, n, dim));
    else x = noise(seed, n, dim).map((value) => value * Math.hypot(...forward.scales(times[0])));
    let nfe = 0,
      drawn = 0,
      k = 0;
    const run = {
      sampler,
      scales: forward.scales,
      denoise(state, t) {
        nfe++;
        return own.denoise(state, n, t);
      },
      noise() {
        const fixed = noises ? noises[drawn] : noise(seed, n, dim, k + 1);
        drawn++;
        if (!fixed) fail(`noises has ${noises.length} arrays`, "give one for every step that adds noise");
        return checkPoints(fixed, n, dim, `noise ${drawn}`);
      },
    };
    yield { k: 0, t: times[0], x, nfe };
    for (; k < times.length - 1; k++) {
      x = STEPS[sampler.name](run, x, times[k], times[k + 1]);
      let bad = 0;
      for (let i = 0; i < x.length; i++) if (!Number.isFinite(x[i])) bad++;
      if (bad) {
        fail(
          `${bad} of ${x.length} coordinates are not finite after step ${k + 1} of ${times.length - 1} of ${own.title}`,
          "take more steps, another solver or another schedule",
        );
      }
      yield { k: k + 1, t: times[k + 1], x, nfe };
    }
  }

  // ----------------------------------------------------------------------------------------------------------- scores

  function distanceSum(x, n, y, m, dim) {
    const plan = layout(),
      padded = pad4(m),
      at = { x: plan.floats(n * dim), y: plan.floats(padded * dim) };
    const { kernel, F } = plan.open();
    F.set(x.subarray(0, n * dim), at.x >> 2);
    for (let d = 0; d < dim; d++) for (let j = 0; j < m; j++) F[(at.y >> 2) + d * padded + j] = y[j * dim + d];
    return kernel.distances(at.x, n, at.y, padded, padded - m, dim);
  }

  /** Squared energy distance, the unbiased U-statistic: 2 E|X - Y| - E|X - X'| - E|Y - Y'|. */
  function energyDistance(x, n, y, m, dim) {
    if (n < 2 || m < 2) fail(`samples of ${n} and ${m} points`, "an energy distance needs at least 2 of each");
    x = Float32Array.from(checkPoints(x, n, dim, "x"));
    y = Float32Array.from(checkPoints(y, m, dim, "y"));
    const cross = distanceSum(x, n, y, m, dim) / (n * m);
    return 2 * cross - distanceSum(x, n, x, n, dim) / (n * (n - 1)) - distanceSum(y, m, y, m, dim) / (m * (m - 1));
  }

  /** Energy distance of a perfect sampler (mean and sd over repeats) and of pure noise, at n points each. */
  function floorAndCeiling(spec, n, repeats = 8, seed = 0) {
    const own = spec.sample ? spec : law(spec),
      values = [],
      ceilings = [];
    for (let r = 0; r < repeats; r++) {
      const real = own.sample(n, seed + 2 * r),
        other = own.sample(n, seed + 2 * r + 1);
      values.push(energyDistance(real, n, other, n, own.dim));
      ceilings.push(energyDistance(noise(seed + r, n, own.dim), n, real, n, own.dim));
    }
    const mean = (list) => list.reduce((a, b) => a + b, 0) / list.length;
    const floor = mean(values),
      sd = Math.sqrt(values.reduce((a, v) => a + (v - floor) ** 2, 0) / Math.max(1, repeats - 1));
    return { floor, sd, ceiling: mean(ceilings), n, repeats };
  }

  // -------------------------------------------------------------------------------------------------- mixture by EM

  /**
   * A Gaussian mixture fitted to points by EM (Dempster et al. 1977) from k-means++ centres.
   * components: how many; if omitted the number with the least BIC. covariance: "full" or "diagonal".
   */
  function fitMixture(points, n, dim, { components, covariance = "full", seed = 0, iterations = 60 } = {}) {
    checkPoints(points, n, dim, "points");
    oneOf(covariance, ["full", "diagonal"], "covariance");
    if (components !== undefined && !(Number.isInteger(components) && components >= 1)) {
      fail(`components = ${components}`, "need a whole number of at least 1");
    }
    if (n < dim + 1) fail(`${n} points`, `draw at least ${dim + 1}`);
    const step = Math.max(1, Math.ceil(n / MOST_FITTED)),
      rows = Math.ceil(n / step),
      x = new Float64Array(rows * dim);
    const centre = new Float64Array(dim);
    for (let i = 0; i < rows; i++)
      for (let d = 0; d < dim; d++) centre[d] += (x[i * dim + d] = points[i * step * dim + d]) / rows;
    let size = 0;
    for (let i = 0; i < rows * dim; i++) size += (x[i] -= centre[i % dim]) ** 2 / rows / dim;
    const least = Math.max(1e-4 * size, 1e-12),
      corner = (dim * (dim + 1)) / 2,
      stride = 1 + dim + corner;

    // per component, in rows of `stride`: log weight and normalisation, mean, lower triangle of the inverse covariance
    function once(K) {
      const u = uniforms(seed, K + 1, 1, LAW_STREAM + 2),
        nearest = new Float64Array(rows).fill(Infinity);
      const means = [],
        weights = Array(K).fill(1 / K),
        own = Math.max(least, size / K ** (2 / dim));
      let next = Math.min(rows - 1, Math.floor(u[0] * rows));
      for (let k = 0; k < K; k++) {
        means.push(Array.from(x.subarray(next * dim, (next + 1) * dim)));
        let total = 0;
        for (let i = 0; i < rows; i++) {
          let square = 0;
          for (let d = 0; d < dim; d++) square += (x[i * dim + d] - means[k][d]) ** 2;
          nearest[i] = Math.min(nearest[i], square);
          total += nearest[i];
        }
        let left = u[k + 1] * total;
        for (next = 0; next < rows - 1 && left > nearest[next]; next++) left -= nearest[next];
      }
      const matrices = means.map(() => Float64Array.from({ length: dim * dim }, (_, i) => (i % (dim + 1) ? 0 : own)));
      const parts = new Float64Array(K * stride),
        sums = new Float64Array(K * stride),
        share = new Float64Array(K);
      let logLikelihood = -Infinity;
      for (let round = 0; round < iterations; round++) {
        for (let k = 0; k < K; k++) {
          const [inverse, logDet] = inverseFrom(cholesky(matrices[k], dim, "the fitted mixture"), dim);
          let at = k * stride;
          parts[at++] = Math.log(weights[k]) - 0.5 * (logDet + dim * LOG_2PI);
          for (let a = 0; a < dim; a++) parts[at++] = means[k][a];
          for (let a = 0; a < dim; a++)
            for (let b = 0; b <= a; b++) parts[at++] = (a === b ? 0.5 : 1) * inverse[a * dim + b];
        }
        let total = 0;
        sums.fill(0);
        for (let i = 0; i < rows; i++) {
          const row = i * dim;
          let top = -Infinity,
            mass = 0;
          for (let k = 0; k < K; k++) {
            const mean = k * stride + 1;
            let l = parts[mean - 1],
              at = mean + dim;
            for (let a = 0; a < dim; a++) {
              const gap = x[row + a] - parts[mean + a];
              for (let b = 0; b <= a; b++) l -= gap * (x[row + b] - parts[mean + b]) * parts[at++];
            }
            share[k] = l;
            if (l > top) top = l;
          }
          for (let k = 0; k < K; k++) mass += share[k] = share[k] - top < -30 ? 0 : Math.exp(share[k] - top);
          total += top + Math.log(mass);
          for (let k = 0; k < K; k++) {
            if (share[k] === 0) continue;
            const w = share[k] / mass;
            let at = k * stride;
            sums[at++] += w;
            for (let a = 0; a < dim; a++) sums[at++] += w * x[row + a];
            for (let a = 0; a < dim; a++) for (let b = 0; b <= a; b++) sums[at++] += w * x[row + a] * x[row + b];
          }
        }
        const done = total - logLikelihood < 2e-4 * rows;
        logLikelihood = total;
        if (done) break;
        for (let k = 0; k < K; k++) {
          const mass = sums[k * stride];
          if (mass < 1e-3) return null; // a component died: a smaller number says the same
          weights[k] = mass / rows;
          for (let a = 0; a < dim; a++) means[k][a] = sums[k * stride + 1 + a] / mass;
          let at = k * stride + 1 + dim;
          for (let a = 0; a < dim; a++) {
            for (let b = 0; b <= a; b++, at++) {
              let value = sums[at] / mass - means[k][a] * means[k][b];
              if (a === b) value = Math.max(value, 0) + least;
              else if (covariance === "diagonal") value = 0;
              matrices[k][a * dim + b] = matrices[k][b * dim + a] = value;
            }
          }
        }
      }
      const each = dim + (covariance === "full" ? corner : dim);
      const bic = (K * each + K - 1) * Math.log(rows) - 2 * logLikelihood;
      return {
        means: means.map((mean) => mean.map((value, d) => value + centre[d])),
        weights,
        matrices,
        logLikelihood,
        bic,
      };
    }

    let best = null,
      worse = 0;
    const tried = components ? [components] : [1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40];
    for (const K of tried) {
      if (K > rows / 2 && K > 1 && !components) break;
      const fit = once(K);
      if (fit && (!best || fit.bic < best.bic)) [best, worse] = [fit, 0];
      else if (++worse === 3) break;
    }
    if (!best)
      fail(`${components} components for ${n} points: one is left without points`, "ask for fewer, or omit components");
    const spec = {
      name: "gaussian_mixture",
      dim,
      means: best.means,
      weights: best.weights,
      components: best.means.length,
      bic: best.bic,
      log_likelihood: best.logLikelihood,
    };
    if (covariance === "diagonal")
      spec.scales = best.matrices.map((m) => Array.from({ length: dim }, (_, i) => Math.sqrt(m[i * dim + i])));
    else
      spec.covariances = best.matrices.map((m) =>
        Array.from({ length: dim }, (_, i) => Array.from(m.subarray(i * dim, (i + 1) * dim))),
      );
    return spec;
  }

  // ----------------------------------------------------------------------------------------------- answering a client

  /** A server of `createClient`, in a worker or on the spot: messages in, answers to `post`; `pause` lets others speak. */
  function serve(post, pause) {
    const known = new Map(),
      running = new Set();
    function lookUp(id, spec) {
      if (!known.has(id)) {
        if (known.size >= 24) known.delete(known.keys().next().value);
        known.set(id, denoiser(spec));
      }
      return known.get(id);
    }
    const methods = {
      denoise(spec, x, n, t, id) {
        const own = id === undefined ? denoiser(spec) : lookUp(id, spec);
        return finite(own.denoise(x, n, t), `the output of ${own.title}`, "choose another network or noise level");
      },
      sampleLaw: (spec, n, seed) => law(spec).sample(n, seed),
      logProb: (spec, x, n) => law(spec).logProb(x, n),
      noise,
      energyDistance,
      fitMixture,
      floorAndCeiling,
    };
    async function run({ id, denoiser: spec, denoiserId, sampler, n, seed, x, noises }) {
      running.add(id);
      const start = performance.now();
      let busy = 0,
        nfe = 0,
        last = start;
      try {
        const own = lookUp(denoiserId, spec),
          states = sample(own, sampler, { n, seed, x, noises });
        const nSteps = own.schedule.times(sampler.n_steps ?? undefined, sampler.spacing ?? undefined).length - 1;
        for (;;) {
          const begun = performance.now(),
            { value, done } = states.next();
          busy += performance.now() - begun;
          if (done) break;
          nfe = value.nfe;
          post({ id, state: { ...value, nSteps } });
          if (performance.now() - last > 8) {
            await pause();
            last = performance.now();
          }
          if (!running.has(id)) return;
        }
        post({ id, done: { nfe, ms: busy, elapsed: performance.now() - start, kernel: engine.kernel } });
      } catch (error) {
        post({ id, error: error.message });
      }
      running.delete(id);
    }
    return function receive(message) {
      if (message.type === "cancel") running.delete(message.id);
      else if (message.type === "run") run(message);
      else {
        try {
          const method = methods[oneOf(message.method, Object.keys(methods), "method")];
          post({ id: message.id, result: method(...message.args) });
        } catch (error) {
          post({ id: message.id, error: error.message });
        }
      }
    };
  }

  const engine = {
    kernel: module ? "wasm" : "js",
    schedule,
    network,
    denoiser,
    law,
    noise,
    threefry,
    sample,
    evaluations,
    energyDistance,
    floorAndCeiling,
    fitMixture,
    serve,
  };
  return engine;
}

// What a worker does; its source is this function's text behind that of `createEngine`.
function explorerWorker(createEngine, options) {
  const channel = new MessageChannel(),
    waiting = [];
  channel.port1.onmessage = () => waiting.shift()();
  const pause = () =>
    new Promise((resolve) => {
      waiting.push(resolve);
      channel.port2.postMessage(0);
    });
  const engine = createEngine(options),
    receive = engine.serve((message) => self.postMessage(message), pause);
  self.onmessage = (event) => receive(event.data);
  self.postMessage({ ready: engine.kernel });
}

/**
 * Runs an engine without blocking the page: in Blob workers, or in slices on the spot where none can start.
 *
 * run(key, {denoiser, sampler, n, seed, x, noises}, onState, onDone, onError): a new run of the same key cancels the
 * old one. onState({k, t, x, nfe, nSteps}), onDone({nfe, ms, elapsed, kernel}); onError(message), or onDone({error}).
 * call(method, ...args): a promise of denoise(spec, x, n, t), sampleLaw(spec, n, seed), logProb(spec, x, n),
 * noise(seed, n, dim), energyDistance(x, n, y, m, dim), fitMixture(points, n, dim, options) or
 * floorAndCeiling(spec, n, repeats, seed).
 */
function createClient(createEngine, { workers = 2, kernel } = {}) {
  const engine = createEngine({ kernel }),
    waiting = new Map(),
    runs = new Map(),
    ids = new WeakMap();
  let counter = 0,
    denoisers = 0,
    closed = false;

  function deliver(message) {
    const job = waiting.get(message.id);
    if (!job) return;
    if (message.state) {
      job.onState(message.state);
      return;
    }
    waiting.delete(message.id);
    job.server.load--;
    if (message.error !== undefined) job.onError(message.error);
    else if (message.done) job.onDone(message.done);
    else job.onDone(message.result);
  }

  const onTheSpot = () => {
    const pause = () => new Promise((resolve) => setTimeout(resolve, 0));
    const receive = engine.serve((message) => setTimeout(() => deliver(message), 0), pause);
    return (message) => setTimeout(() => receive(message), 0);
  };

  function start() {
    const server = { load: 0, kind: "worker", pending: [], send: (message) => server.pending.push(message) };
    const settle = (send, kind) => {
      if (server.settled) return;
      server.settled = true;
      clearTimeout(server.timer);
      server.kind = kind;
      server.send = send;
      for (const message of server.pending.splice(0)) send(message);
    };
    const fallBack = () => {
      if (server.settled) return;
      if (server.worker) server.worker.terminate();
      server.worker = null;
      settle(onTheSpot(), "page");
    };
    try {
      const setting = JSON.stringify({ kernel });
      const source = `"use strict";(${explorerWorker})(${createEngine}, ${setting});`;
      const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
      server.worker = new Worker(url);
      server.worker.onmessage = ({ data }) => {
        if (data.ready === undefined) deliver(data);
        else {
          URL.revokeObjectURL(url);
          settle((message) => server.worker && server.worker.postMessage(message), "worker");
        }
      };
      server.worker.onerror = (event) => {
        if (!server.settled) {
          fallBack();
          return;
        }
        for (const [id, job] of waiting) {
          if (job.server === server)
            deliver({ id, error: `the worker failed (${event.message}); try again, or reload the page` });
        }
      };
      server.timer = setTimeout(fallBack, 4000); // a policy may block the worker without a word
    } catch {
      fallBack();
    }
    return server;
  }

  const servers = Array.from({ length: Math.max(1, workers) }, start),
    places = new Map();
  const send = (server, message, job) => {
    if (closed) throw new Error("this client is closed; create another");
    server.load++;
    waiting.set(message.id, { ...job, server });
    server.send(message);
  };
  const idOf = (spec) => {
    if (spec === null || typeof spec !== "object") return -1;
    if (!ids.has(spec)) ids.set(spec, ++denoisers);
    return ids.get(spec);
  };

  function cancel(key) {
    const id = runs.get(key),
      job = waiting.get(id);
    runs.delete(key);
    if (!job) return;
    waiting.delete(id);
    job.server.load--;
    job.server.send({ type: "cancel", id });
  }

  function run(key, { denoiser, sampler, n, seed = 0, x, noises }, onState = () => {}, onDone = () => {}, onError) {
    cancel(key);
    if (!places.has(key)) places.set(key, servers[places.size % servers.length]);
    const id = ++counter;
    runs.set(key, id);
    const message = { type: "run", id, denoiser, denoiserId: idOf(denoiser), sampler, n, seed, x, noises };
    send(places.get(key), message, { onState, onDone, onError: onError ?? ((error) => onDone({ error })) });
    return { cancel: () => runs.get(key) === id && cancel(key) };
  }

  function call(method, ...args) {
    return new Promise((resolve, reject) => {
      const server = servers.reduce((a, b) => (b.load < a.load ? b : a));
      if (method === "denoise") args = [...args.slice(0, 4), idOf(args[0])];
      send(
        server,
        { type: "call", id: ++counter, method, args },
        { onDone: resolve, onError: (error) => reject(new Error(error)) },
      );
    });
  }

  return {
    kernel: engine.kernel,
    engine,
    run,
    call,
    cancel,
    where: () => servers.map((server) => server.kind),
    close() {
      closed = true;
      waiting.clear();
      for (const server of servers) {
        server.settled = true;
        clearTimeout(server.timer);
        if (server.worker) server.worker.terminate();
        server.worker = null;
      }
    },
  };
}

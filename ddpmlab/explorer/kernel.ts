// The inner loops of the explorer's engine, in AssemblyScript with SIMD; `build_kernel.py` compiles them into engine.js.
// Pointers are byte offsets into the module's memory, multiples of 16. Rows come in fours, widths in multiples of 4.

const EXP_LOW: v128 = f32x4.splat(-87.0);

// erf(x), Eigen's rational approximation on [-4, 4]: a few units in the last place
// @ts-ignore: decorator
@inline
function erf(x: v128): v128 {
  const z = f32x4.max(f32x4.min(x, f32x4.splat(4.0)), f32x4.splat(-4.0));
  const s = f32x4.mul(z, z);
  let p = f32x4.splat(-2.72614225801306e-10);
  p = f32x4.add(f32x4.mul(p, s), f32x4.splat(2.77068142495902e-8));
  p = f32x4.add(f32x4.mul(p, s), f32x4.splat(-2.10102402082508e-6));
  p = f32x4.add(f32x4.mul(p, s), f32x4.splat(-5.69250639462346e-5));
  p = f32x4.add(f32x4.mul(p, s), f32x4.splat(-7.34990630326855e-4));
  p = f32x4.add(f32x4.mul(p, s), f32x4.splat(-2.95459980854025e-3));
  p = f32x4.add(f32x4.mul(p, s), f32x4.splat(-1.60960333262415e-2));
  let q = f32x4.splat(-1.45660718464996e-5);
  q = f32x4.add(f32x4.mul(q, s), f32x4.splat(-2.13374055278905e-4));
  q = f32x4.add(f32x4.mul(q, s), f32x4.splat(-1.68282697438203e-3));
  q = f32x4.add(f32x4.mul(q, s), f32x4.splat(-7.37332916720468e-3));
  q = f32x4.add(f32x4.mul(q, s), f32x4.splat(-1.42647390514189e-2));
  return f32x4.div(f32x4.mul(z, p), q);
}

// exp(x) for x <= 88: Cephes' reduction to [-ln 2 / 2, ln 2 / 2] and polynomial
// @ts-ignore: decorator
@inline
function exp(x: v128): v128 {
  const z = f32x4.max(x, EXP_LOW);
  const n = f32x4.nearest(f32x4.mul(z, f32x4.splat(1.44269504088896341)));
  let r = f32x4.sub(z, f32x4.mul(n, f32x4.splat(0.693359375)));
  r = f32x4.add(r, f32x4.mul(n, f32x4.splat(2.12194440e-4)));
  let p = f32x4.splat(1.9875691500e-4);
  p = f32x4.add(f32x4.mul(p, r), f32x4.splat(1.3981999507e-3));
  p = f32x4.add(f32x4.mul(p, r), f32x4.splat(8.3334519073e-3));
  p = f32x4.add(f32x4.mul(p, r), f32x4.splat(4.1665795894e-2));
  p = f32x4.add(f32x4.mul(p, r), f32x4.splat(1.6666665459e-1));
  p = f32x4.add(f32x4.mul(p, r), f32x4.splat(5.0000001201e-1));
  p = f32x4.add(f32x4.add(f32x4.mul(f32x4.mul(p, r), r), r), f32x4.splat(1.0));
  const scale = i32x4.shl(i32x4.add(i32x4.trunc_sat_f32x4_s(n), i32x4.splat(127)), 23);
  return f32x4.mul(p, scale);
}

// kind: 0 identity, 1 ReLU, 2 SiLU, 3 GELU
// @ts-ignore: decorator
@inline
function phi(kind: i32, x: v128): v128 {
  if (kind == 1) return f32x4.max(x, f32x4.splat(0));
  if (kind == 2) {
    const low = f32x4.min(f32x4.neg(x), f32x4.splat(88.0));
    return f32x4.div(x, f32x4.add(f32x4.splat(1), exp(low)));
  }
  if (kind == 3) {
    const e = erf(f32x4.mul(x, f32x4.splat(0.70710678118654752)));
    return f32x4.mul(f32x4.mul(x, f32x4.splat(0.5)), f32x4.add(f32x4.splat(1), e));
  }
  return x;
}

// values (count floats, a multiple of 4) = phi(values)
export function activate(values: usize, count: i32, kind: i32): void {
  const end = values + (<usize>count << 2);
  for (; values < end; values += 16) v128.store(values, phi(kind, v128.load(values)));
}

// out (n x nout) = x (n x nin, row length stride) W + b, or out + that for add = 1.
// W lies in panels of 8 columns (the last of 4 where nout asks for it), each nin x 8.
export function linear(
  x: usize, stride: i32, w: usize, b: usize, out: usize, n: i32, nin: i32, nout: i32, add: i32
): void {
  const row: usize = <usize>stride << 2, result: usize = <usize>nout << 2;
  let j = 0;
  for (; j + 8 <= nout; j += 8) {
    const bias0 = v128.load(b + (<usize>j << 2)), bias1 = v128.load(b + (<usize>j << 2), 16);
    const panel = w + (<usize>(j * nin) << 2);
    for (let i = 0; i < n; i += 4) {
      const o = out + <usize>i * result + (<usize>j << 2);
      let a0 = bias0, a1 = bias1, b0 = bias0, b1 = bias1, c0 = bias0, c1 = bias1, d0 = bias0, d1 = bias1;
      let p0 = x + <usize>i * row, p1 = p0 + row, p2 = p1 + row, p3 = p2 + row, q = panel;
      const end = p0 + (<usize>nin << 2);
      while (p0 < end) {
        const w0 = v128.load(q), w1 = v128.load(q, 16);
        let s = v128.load_splat<f32>(p0);
        a0 = f32x4.add(a0, f32x4.mul(s, w0)); a1 = f32x4.add(a1, f32x4.mul(s, w1));
        s = v128.load_splat<f32>(p1);
        b0 = f32x4.add(b0, f32x4.mul(s, w0)); b1 = f32x4.add(b1, f32x4.mul(s, w1));
        s = v128.load_splat<f32>(p2);
        c0 = f32x4.add(c0, f32x4.mul(s, w0)); c1 = f32x4.add(c1, f32x4.mul(s, w1));
        s = v128.load_splat<f32>(p3);
        d0 = f32x4.add(d0, f32x4.mul(s, w0)); d1 = f32x4.add(d1, f32x4.mul(s, w1));
        p0 += 4; p1 += 4; p2 += 4; p3 += 4; q += 32;
      }
      store(o, a0, add); store(o + 16, a1, add);
      store(o + result, b0, add); store(o + result + 16, b1, add);
      store(o + 2 * result, c0, add); store(o + 2 * result + 16, c1, add);
      store(o + 3 * result, d0, add); store(o + 3 * result + 16, d1, add);
    }
  }
  if (j < nout) {
    const bias = v128.load(b + (<usize>j << 2)), panel = w + (<usize>(j * nin) << 2);
    for (let i = 0; i < n; i += 4) {
      const o = out + <usize>i * result + (<usize>j << 2);
      let a = bias, b = bias, c = bias, d = bias;
      let p0 = x + <usize>i * row, p1 = p0 + row, p2 = p1 + row, p3 = p2 + row, q = panel;
      const end = p0 + (<usize>nin << 2);
      while (p0 < end) {
        const w0 = v128.load(q);
        a = f32x4.add(a, f32x4.mul(v128.load_splat<f32>(p0), w0));
        b = f32x4.add(b, f32x4.mul(v128.load_splat<f32>(p1), w0));
        c = f32x4.add(c, f32x4.mul(v128.load_splat<f32>(p2), w0));
        d = f32x4.add(d, f32x4.mul(v128.load_splat<f32>(p3), w0));
        p0 += 4; p1 += 4; p2 += 4; p3 += 4; q += 16;
      }
      store(o, a, add); store(o + result, b, add);
      store(o + 2 * result, c, add); store(o + 3 * result, d, add);
    }
  }
}

// @ts-ignore: decorator
@inline
function store(o: usize, value: v128, add: i32): void {
  if (add) value = f32x4.add(value, v128.load(o));
  v128.store(o, value);
}

// @ts-ignore: decorator
@inline
function total(v: v128): f32 {
  return (f32x4.extract_lane(v, 0) + f32x4.extract_lane(v, 1)) + (f32x4.extract_lane(v, 2) + f32x4.extract_lane(v, 3));
}

// out = layer norm of the rows of h, with gamma and beta; width as trained, rows of that many rounded up to 4
export function norm(h: usize, gamma: usize, beta: usize, out: usize, n: i32, width: i32): void {
  const padded = (width + 3) & ~3, bytes = <usize>padded << 2, spare = <f32>(padded - width);
  for (let i = 0; i < n; i++) {
    const row = h + <usize>i * bytes, o = out + <usize>i * bytes;
    let sum = f32x4.splat(0);
    for (let k: usize = 0; k < bytes; k += 16) sum = f32x4.add(sum, v128.load(row + k));
    const mean = total(sum) / <f32>width, m = f32x4.splat(mean);
    sum = f32x4.splat(0);
    for (let k: usize = 0; k < bytes; k += 16) {
      const d = f32x4.sub(v128.load(row + k), m);
      sum = f32x4.add(sum, f32x4.mul(d, d));
    }
    // the padding holds zeros: each adds mean^2 too much
    const variance = (total(sum) - spare * mean * mean) / <f32>width;
    const scale = f32x4.splat(1 / Mathf.sqrt(variance + 1e-5));
    for (let k: usize = 0; k < bytes; k += 16) {
      const z = f32x4.mul(f32x4.sub(v128.load(row + k), m), scale);
      v128.store(o + k, f32x4.add(f32x4.mul(z, v128.load(gamma + k)), v128.load(beta + k)));
    }
  }
}

// Posterior means over m shared nodes (a multiple of 4). Per point p (dim doubles): logit_j = q_j + sum_d p_d c_dj.
// centres: dim arrays of m doubles, then the same as floats; out per point, dim + 2 doubles: sum_j w_j c_j / sum_j w_j
// with w_j = exp(logit_j - top), then sum_j w_j and top, the largest logit.
export function nodes(p: usize, centres: usize, q: usize, logits: usize, out: usize, n: i32, dim: i32, m: i32): void {
  const wide = <usize>m << 3, narrow = <usize>m << 2, floats = centres + <usize>dim * wide;
  for (let i = 0; i < n; i++) {
    const point = p + (<usize>(i * dim) << 3);
    let top = f64x2.splat(-Infinity);
    const p0 = v128.load_splat<f64>(point), p1 = v128.load_splat<f64>(point + (dim > 1 ? 8 : 0));
    const p2 = v128.load_splat<f64>(point + (dim > 2 ? 16 : 0));
    for (let k: usize = 0; k < wide; k += 16) {
      let l = f64x2.add(v128.load(q + k), f64x2.mul(p0, v128.load(centres + k)));
      if (dim > 1) l = f64x2.add(l, f64x2.mul(p1, v128.load(centres + wide + k)));
      if (dim > 2) l = f64x2.add(l, f64x2.mul(p2, v128.load(centres + 2 * wide + k)));
      v128.store(logits + k, l);
      top = f64x2.max(top, l);
    }
    const highest = Math.max(f64x2.extract_lane(top, 0), f64x2.extract_lane(top, 1));
    const shift = f64x2.splat(highest), least = f32x4.splat(-40.0);
    let mass = f32x4.splat(0), s0 = mass, s1 = mass, s2 = mass;
    for (let k: usize = 0; k < narrow; k += 16) {
      const low = f64x2.sub(v128.load(logits + 2 * k), shift), high = f64x2.sub(v128.load(logits + 2 * k, 16), shift);
      const l = v128.shuffle<f32>(f32x4.demote_f64x2_zero(low), f32x4.demote_f64x2_zero(high), 0, 1, 4, 5);
      if (!v128.any_true(f32x4.gt(l, least))) continue;
      const w = exp(l);
      mass = f32x4.add(mass, w);
      s0 = f32x4.add(s0, f32x4.mul(w, v128.load(floats + k)));
      if (dim > 1) s1 = f32x4.add(s1, f32x4.mul(w, v128.load(floats + narrow + k)));
      if (dim > 2) s2 = f32x4.add(s2, f32x4.mul(w, v128.load(floats + 2 * narrow + k)));
    }
    const o = out + (<usize>(i * (dim + 2)) << 3), sum = <f64>total(mass);
    f64.store(o, <f64>total(s0) / sum);
    if (dim > 1) f64.store(o + 8, <f64>total(s1) / sum);
    if (dim > 2) f64.store(o + 16, <f64>total(s2) / sum);
    f64.store(o + (<usize>dim << 3), sum);
    f64.store(o + (<usize>dim << 3), highest, 8);
  }
}

// Sum of Euclidean distances between the n points x (rows of dim floats) and the m points y (dim arrays of m floats,
// m a multiple of 4, of which the last `spare` do not count).
export function distances(x: usize, n: i32, y: usize, m: i32, spare: i32, dim: i32): f64 {
  let sum: f64 = 0;
  const bytes = <usize>m << 2;
  for (let i = 0; i < n; i++) {
    const point = x + (<usize>(i * dim) << 2);
    let part = f32x4.splat(0), last = part;
    for (let k: usize = 0; k < bytes; k += 16) {
      let square = f32x4.splat(0);
      for (let d = 0; d < dim; d++) {
        const gap = f32x4.sub(v128.load_splat<f32>(point + (<usize>d << 2)), v128.load(y + <usize>d * bytes + k));
        square = f32x4.add(square, f32x4.mul(gap, gap));
      }
      last = f32x4.sqrt(square);
      part = f32x4.add(part, last);
    }
    sum += <f64>total(part);
    if (spare > 0) sum -= <f64>f32x4.extract_lane(last, 3);
    if (spare > 1) sum -= <f64>f32x4.extract_lane(last, 2);
    if (spare > 2) sum -= <f64>f32x4.extract_lane(last, 1);
  }
  return sum;
}

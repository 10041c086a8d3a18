// The view of the trajectory explorer: state, controls, and the picture on one canvas. No dependencies.
//
// Joined behind engine.js into one ES module (see page.py), which also puts the style sheet into STYLE. Everything is drawn
// inside the element given to render, style included, so that it also works in a shadow tree.
//
// Points are drawn in units of their own noise level, z = x_t / sqrt(alpha^2 + sigma^2), where data have unit variance at
// every level: variance-exploding and variance-preserving schedules then fit one picture, and both sides start at the
// same z.

const explorerView = (() => {
  "use strict";

  const SIDES = ["a", "b"];
  const SOLVERS = {
    ddpm: "DDPM (ancestral)",
    ddim: "DDIM",
    euler: "Euler",
    heun: "Heun",
    dpmpp_2m: "DPM-Solver++(2M)",
    unipc: "UniPC",
  };
  const SPACINGS = { default: "default", leading: "leading", linspace: "linspace", trailing: "trailing" };
  const SPEEDS = [0.25, 0.5, 1, 2, 4];
  const MOST_PICKS = 12;
  const SECONDS = 6; // of playback at speed 1
  const EXTENT = 2.9; // half of the picture, in standard deviations
  const ENERGY_POINTS = 1000;
  const ERROR_POINTS = 512;
  const OWN = "own"; // the reader's own law

  // ---------------------------------------------------------------- state

  const choice = (values) => (value) => {
    if (!values.includes(value)) throw new Error(`choose one of: ${values.join(", ")}`);
    return value;
  };
  const number = (low, high, whole = false) => (value) => {
    const given = value;
    if (typeof value === "string" && value.trim() !== "") value = Number(value);
    if (typeof value !== "number" || !Number.isFinite(value) || value < low || value > high)
      throw new Error(`need a ${whole ? "whole number" : "number"} from ${low} to ${high}, got ${JSON.stringify(given)}`);
    if (whole && !Number.isInteger(value)) throw new Error(`need a whole number, got ${given}`);
    return value;
  };
  const flag = (value) => {
    if (value === true || value === 1 || value === "1" || value === "true") return true;
    if (value === false || value === 0 || value === "0" || value === "false") return false;
    throw new Error("need 1 or 0");
  };
  const numbers = (check, most, least = 0) => (value) => {
    if (typeof value === "string") value = value === "" ? [] : value.split("_");
    if (!Array.isArray(value) || value.length > most || value.length < least)
      throw new Error(`need ${least === most ? most : `at most ${most}`} numbers`);
    return value.map(check);
  };
  const text = (value) => {
    if (typeof value !== "string" || !value) throw new Error("need a name");
    return value;
  };

  /** A Gaussian mixture: weights, means, and scales (diagonal) or covariances; in an address `dim[f]~w_m.._s..~...`. */
  function mixture(value) {
    if (value === null || value === "" || (typeof value === "object" && !Object.keys(value).length)) return null;
    const corner = (d) => (d * (d + 1)) / 2;
    if (typeof value === "string") {
      const [head, ...parts] = value.split("~");
      const full = head.endsWith("f");
      const d = number(1, 3, true)(head.replace(/f$/, ""));
      const rows = parts.map((part) => part.split("_").map(number(-1e6, 1e6)));
      if (!rows.length || rows.some((row) => row.length !== 1 + d + (full ? corner(d) : d)))
        throw new Error("a component lacks numbers");
      value = { weights: rows.map((row) => row[0]), means: rows.map((row) => row.slice(1, 1 + d)) };
      const spread = rows.map((row) => row.slice(1 + d));
      if (full)
        value.covariances = spread.map((low) =>
          Array.from({ length: d }, (_, a) => Array.from({ length: d }, (_, b) => low[corner(Math.max(a, b)) + Math.min(a, b)])),
        );
      else value.scales = spread;
    }
    const { weights, means, scales, covariances } = value || {};
    const spread = covariances || scales;
    const lists = [weights, means, spread];
    if (!lists.every(Array.isArray) || !weights.length || lists.some((list) => list.length !== weights.length))
      throw new Error("need equally many weights, means, and scales or covariances, at least one");
    const d = means[0].length;
    const fits = (rows, low) => rows.every((row) => row.length === d && row.every((v) => Number.isFinite(v) && v > low));
    const positive = (m) =>
      m.length === d && fits(m, -Infinity) && m.every((row, a) => row[a] > 0 && row.every((v, b) => v === m[b][a] && (a === b || v * v < row[a] * m[b][b])));
    if (
      !(d >= 1 && d <= 3) ||
      !fits(means, -Infinity) ||
      !(covariances ? covariances.every(positive) : fits(scales, 0)) ||
      !weights.every((w) => w > 0)
    )
      throw new Error("need finite means, weights above 0, and scales above 0 or positive definite covariances, in 1 to 3 dimensions");
    return covariances ? { weights, means, covariances } : { weights, means, scales };
  }

  const sideFields = (side) => ({
    [`${side}_model`]: text,
    [`${side}_schedule`]: text,
    [`${side}_solver`]: choice(Object.keys(SOLVERS)),
    [`${side}_steps`]: number(1, 1000, true),
    [`${side}_spacing`]: choice(Object.keys(SPACINGS)),
    [`${side}_eta`]: number(0, 1),
    [`${side}_variance`]: choice(["posterior", "beta"]),
    [`${side}_seed`]: number(-1, 4294967295, true),
  });
  const FIELDS = {
    law: text,
    n: number(10, 5000, true),
    seed: number(0, 4294967295, true),
    progress: number(0, 1),
    speed: (value) => choice(SPEEDS)(Number(value)),
    playing: flag,
    compare: flag,
    pictures: choice(["side", "overlay"]),
    target: choice(["off", "clean", "level"]),
    samples: flag,
    paths: choice(["off", "picked", "many"]),
    field: choice(["off", "field", "error"]),
    picked: numbers(number(0, 4999, true), MOST_PICKS),
    camera: numbers(number(-1e3, 1e3), 5, 5),
    mixture,
    ...sideFields("a"),
    ...sideFields("b"),
  };
  const DEFAULTS = {
    law: "",
    n: 1000,
    seed: 1,
    progress: 1,
    speed: 1,
    playing: false,
    compare: true,
    pictures: "side",
    target: "clean",
    samples: true,
    paths: "picked",
    field: "off",
    picked: [0, 1, 2, 3, 4, 5],
    camera: [0.6, 0.4, 1, 0, 0],
    mixture: null,
    ...Object.fromEntries(
      SIDES.flatMap((side) => [
        [`${side}_model`, "exact"],
        [`${side}_schedule`, "own"],
        [`${side}_solver`, "dpmpp_2m"],
        [`${side}_steps`, 20],
        [`${side}_spacing`, "default"],
        [`${side}_eta`, 0],
        [`${side}_variance`, "posterior"],
        [`${side}_seed`, -1],
      ]),
    ),
  };
  const PREFIX = "#explorer?";
  const NOT_IN_ADDRESS = ["playing"];
  const round = (value, digits) => Number(value.toFixed(digits));

  function encode(key, value) {
    if (value === null) return "";
    if (typeof value === "boolean") return value ? "1" : "0";
    if (key === "mixture") {
      const spread = (k) => (value.covariances ? value.covariances[k].flatMap((row, a) => row.slice(0, a + 1)) : value.scales[k]);
      const rows = value.weights.map((w, k) => [w, ...value.means[k], ...spread(k)].join("_"));
      return [`${value.means[0].length}${value.covariances ? "f" : ""}`, ...rows].join("~");
    }
    return Array.isArray(value) ? value.join("_") : String(value); // all digits: a link shows the same picture
  }

  function toAddress(state, base) {
    const pairs = Object.keys(FIELDS)
      .filter((key) => !NOT_IN_ADDRESS.includes(key))
      .map((key) => [key, encode(key, state[key]), encode(key, base[key])])
      .filter(([, value, initial]) => value !== initial)
      .map(([key, value]) => `${key}=${encodeURIComponent(value)}`);
    return PREFIX + pairs.join("&");
  }

  function fromAddress(hash) {
    const state = {};
    const problems = [];
    for (const [key, value] of new URLSearchParams(hash.slice(PREFIX.length))) {
      if (!FIELDS[key]) problems.push(`'${key}' is not a setting of the explorer`);
      else {
        try {
          state[key] = FIELDS[key](value);
        } catch (error) {
          problems.push(`${key} = ${value.slice(0, 40)}: ${error.message}`);
        }
      }
    }
    return { state, problems };
  }

  // ---------------------------------------------------------------- small things

  function h(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value === true) node.setAttribute(name, "");
      else if (value !== false && value !== undefined && value !== null) node.setAttribute(name, value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  }
  const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);
  const format = (value) => {
    if (value === null || value === undefined || Number.isNaN(value)) return "–";
    if (!Number.isFinite(value)) return "∞";
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size >= 1e6 || size < 1e-4) return value.toExponential(1).replace("-", "−");
    return Number(value.toPrecision(3)).toLocaleString("en", { maximumFractionDigits: 8 }).replace("-", "−");
  };
  const count = (value) => value.toLocaleString("en");
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

  function download(name, blob) {
    const url = URL.createObjectURL(blob);
    const link = h("a", { href: url, download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  }

  /** Rows of numbers of a CSV text. Throws an Error that names the line. */
  function parseCSV(source) {
    const lines = source.split(/\r\n|\r|\n/).map((line) => line.trim());
    const rows = [];
    let width = 0;
    lines.forEach((line, index) => {
      if (!line || line.startsWith("#")) return;
      const cells = line.split(/[,;\t ]+/).filter((cell) => cell !== "");
      const values = cells.map(Number);
      if (values.some(Number.isNaN)) {
        if (!rows.length) return; // a header
        const bad = cells[values.findIndex(Number.isNaN)];
        throw new Error(`line ${index + 1}: '${bad.slice(0, 30)}' is not a number`);
      }
      if (!values.every(Number.isFinite)) throw new Error(`line ${index + 1} holds an infinite number`);
      width = width || values.length;
      if (values.length !== width)
        throw new Error(`line ${index + 1} has ${values.length} numbers, those before it ${width}`);
      rows.push(values);
    });
    if (!rows.length) throw new Error("there is no line of numbers in it; write one point a line, as x,y");
    if (width !== 2 && width !== 3) throw new Error(`its lines have ${width} numbers; a point here has 2 or 3`);
    if (rows.length < 20) throw new Error(`it has ${rows.length} points; a mixture needs at least 20`);
    return rows;
  }

  // ---------------------------------------------------------------- colours

  const probe = () => {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 1;
    return canvas.getContext("2d", { willReadFrequently: true });
  };
  let colourProbe = null;

  /** Red, green, blue in 0..255 and alpha in 0..1 of any CSS colour. */
  function rgba(colour) {
    colourProbe = colourProbe || probe();
    if (!colourProbe) return [255, 255, 255, 1];
    colourProbe.clearRect(0, 0, 1, 1);
    colourProbe.fillStyle = "#0000"; // what stays where the colour cannot be read, as of an element in no document
    if (colour) colourProbe.fillStyle = colour;
    colourProbe.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = colourProbe.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  }
  const luminance = (colour) => {
    const [r, g, b] = colour.slice(0, 3).map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (one, other) => {
    const [low, high] = [luminance(one), luminance(other)].sort((x, y) => x - y);
    return (high + 0.05) / (low + 0.05);
  };
  const mix = (one, other, share) => one.slice(0, 3).map((v, i) => Math.round(v + (other[i] - v) * share));
  const css = (colour) => `rgb(${colour.slice(0, 3).join(", ")})`;

  /** The colour that lies behind an element: its own and its ancestors' backgrounds, one on the other. */
  function backgroundOf(node) {
    const layers = [];
    while (node) {
      if (node instanceof Element) {
        const layer = rgba(getComputedStyle(node).backgroundColor);
        if (layer[3] > 0) layers.push(layer);
        if (layer[3] >= 0.999) break;
      }
      node = node.parentNode || node.host;
    }
    return layers.reverse().reduce((below, layer) => mix(below, layer, layer[3]), [255, 255, 255]);
  }

  function palette(host) {
    const background = backgroundOf(host);
    const black = [16, 20, 24];
    const white = [240, 242, 245];
    const dark = contrast(white, background) > contrast(black, background);
    const end = dark ? [255, 255, 255] : [0, 0, 0];
    // a shade of its own for panels, on the side where text stays readable
    const raised = mix(background, end, 0.05);
    const surface = contrast(end, raised) >= 4.6 ? raised : mix(background, dark ? [0, 0, 0] : [255, 255, 255], 0.05);
    const readable = (colour, least = 4.6) => {
      for (let share = 0; share < 1; share += 0.05) {
        const shifted = mix(colour, end, share);
        if (Math.min(contrast(shifted, background), contrast(shifted, surface)) >= least) return shifted;
      }
      return end;
    };
    const ink = readable(dark ? white : black, 7);
    return {
      dark,
      background: css(background),
      surface: css(surface),
      ink: css(ink),
      muted: css(readable(mix(ink, background, 0.4))),
      line: css(mix(background, ink, 0.28)),
      control: css(readable(mix(background, ink, 0.5), 3.1)),
      faint: css(mix(background, ink, 0.12)),
      a: css(readable([0, 114, 178])),
      b: css(readable([176, 58, 138])),
      target: css(readable([0, 128, 92])),
      warning: css(readable([180, 60, 0])),
    };
  }

  // ---------------------------------------------------------------- the widget

  let instances = 0;
  let addressOwner = null;

  function mount(model, el) {
    const id = `ddx${++instances}`;
    const catalogue = model.get("catalogue");
    if (!catalogue || typeof catalogue !== "object" || !catalogue.laws || !Object.keys(catalogue.laws).length)
      throw new Error("its state holds no catalogue of laws and denoisers; build the page again, or run the cell again");
    catalogue.denoisers = catalogue.denoisers || {};
    catalogue.schedules = catalogue.schedules || {};
    const isStatic = model.get("host") === "static";
    const stops = model.get("stops") || [];
    const engine = createEngine({ kernel: "js" }); // on this thread: schedules and starting noise only
    const client = createClient(createEngine, { workers: 2 });
    const still = window.matchMedia ? window.matchMedia("(prefers-reduced-motion: reduce)") : { matches: false };
    const undo = []; // what to do when the widget goes
    const listen = (target, name, handler, options) => {
      target.addEventListener(name, handler, options);
      undo.push(() => target.removeEventListener(name, handler, options));
    };
    const root = h("section", { class: "ddx", "aria-label": "Trajectory explorer", id });
    root.append(h("style", {}, typeof STYLE === "string" ? STYLE : ""));
    let colours = palette(el);
    let alive = true;

    // ------------------------------------------------------------ messages

    const problems = new Map();
    const messages = h("div", { class: "ddx-messages", role: "alert" });
    function showProblems() {
      messages.replaceChildren(
        ...[...problems].map(([key, [words, grave]]) =>
          h(
            "div",
            { class: grave ? "ddx-message ddx-grave" : "ddx-message", "data-key": key },
            h("p", {}, words),
            h("button", { type: "button", "aria-label": "Dismiss this message", onclick: () => clear(key) }, "Dismiss"),
          ),
        ),
      );
    }
    function problem(key, words, grave = true) {
      if (problems.has(key) && problems.get(key)[0] === words) return;
      problems.set(key, [words, grave]);
      showProblems();
    }
    function clear(key) {
      if (problems.delete(key)) showProblems();
    }

    // ------------------------------------------------------------ what there is

    const own = { json: "", spec: null };
    function lawSpec(key = state.law) {
      if (key !== OWN) return catalogue.laws[key];
      const json = JSON.stringify(state.mixture);
      if (own.json !== json) {
        own.json = json;
        own.spec = state.mixture && {
          name: "gaussian_mixture",
          title: "Your own law",
          dim: state.mixture.means[0].length,
          ...state.mixture,
        };
      }
      return own.spec;
    }
    const dimOf = (law) => law.dim || (law.shape || [2]).reduce((x, y) => x * y, 1);
    const isExact = (law) => law.exact !== false;
    const networksOf = (law) =>
      Object.entries(catalogue.denoisers).filter(([, spec]) => spec.type !== "exact" && (spec.law || firstLaw) === law);
    const firstLaw = Object.keys(catalogue.laws)[0];
    const titleOf = (spec, key) => spec.title || spec.name || key;
    const familyOf = (spec, key) => spec.family || titleOf(spec, key);

    const specs = new Map(); // the same object for the same thing, so that a client may remember it
    const remember = (key, parts, make) => {
      const known = specs.get(key);
      if (known && known.parts.every((part, i) => part === parts[i])) return known.value;
      const value = make();
      specs.set(key, { parts, value });
      return value;
    };

    /** The denoiser of a side with the schedule that it runs on, or an Error that says why there is none. */
    function resolve(side) {
      const law = lawSpec();
      if (!law) throw new Error("your own law is not drawn yet; draw it below, or choose another law");
      const key = state[`${side}_model`];
      const wanted = state[`${side}_schedule`];
      const other = side === "a" ? "b" : "a";
      if (wanted !== "own" && !catalogue.schedules[wanted])
        throw new Error(`there is no schedule '${wanted}' here; choose one of: own, ${Object.keys(catalogue.schedules).join(", ")}`);
      if (key === "exact") {
        if (!isExact(law))
          throw new Error(
            `${titleOf(law, state.law)} has no density, so its exact denoiser is not known; choose a network on this side`,
          );
        const neighbour = catalogue.denoisers[state[`${other}_model`]];
        let schedule = catalogue.schedules[wanted];
        let reference = wanted;
        if (!schedule && neighbour && neighbour.schedule) {
          schedule = neighbour.schedule;
          reference = `own:${state[`${other}_model`]}`;
        }
        if (!schedule) {
          const [name, spec] = networksOf(state.law)[0] || [];
          if (spec && spec.schedule) [schedule, reference] = [spec.schedule, `own:${name}`];
        }
        if (!schedule) [reference, schedule] = usualSchedule() || [];
        if (!schedule) throw new Error("there is no schedule for the exact denoiser in this page's state");
        const remote = state.law !== OWN && (law.exact === "remote" || schedule.remote === true);
        const spec = remember(`exact ${side}`, [law, schedule], () => ({ type: "exact", title: "Exact", law, schedule }));
        return { key, spec, schedule, law, remote, reference, title: "Exact denoiser" };
      }
      const spec = catalogue.denoisers[key];
      const names = networksOf(state.law).map(([name]) => name);
      if (!spec || !names.includes(key))
        throw new Error(
          `there is no network '${key}' for this law; choose one of: ${[...(isExact(law) ? ["exact"] : []), ...names].join(", ")}`,
        );
      const title = spec.stage ? `${familyOf(spec, key)} after ${spec.stage}` : titleOf(spec, key);
      const base = { key, law, title, remote: spec.type === "remote", reference: `own:${key}` };
      if (wanted === "own") return { ...base, spec, schedule: spec.schedule };
      if (spec.parameterisation !== "edm" || base.remote)
        throw new Error(
          `${title} is told the time of its own schedule, not the noise level, so it cannot run on another; ` +
            "choose its own schedule, or an EDM network",
        );
      const schedule = catalogue.schedules[wanted];
      return { ...base, schedule, spec: remember(`${key} ${wanted}`, [spec, schedule], () => ({ ...spec, schedule })) };
    }

    /** For an exact denoiser of a law without networks: a schedule that ends at noise, a continuous one if there is one. */
    function usualSchedule() {
      const known = Object.entries(catalogue.schedules);
      const ends = known.filter(([, spec]) => {
        const map = scheduleOf(spec);
        const [alpha, sigma] = map.scales(map.tMax);
        return alpha ** 2 < 1e-3 * (alpha ** 2 + sigma ** 2);
      });
      return ends.find(([, spec]) => spec.kind !== "discrete") || ends[0] || known[0];
    }

    const schedules = new Map();
    function scheduleOf(spec) {
      if (!schedules.has(spec)) schedules.set(spec, engine.schedule(spec));
      return schedules.get(spec);
    }

    // ------------------------------------------------------------ state

    const state = { ...DEFAULTS, law: firstLaw };
    const stateProblems = [];
    for (const key of Object.keys(FIELDS)) {
      const given = model.get(key);
      if (given === undefined || (given === null && key !== "mixture")) continue;
      try {
        state[key] = FIELDS[key](given);
      } catch (error) {
        stateProblems.push(`${key}: ${error.message}`);
      }
    }
    state.camera = [...state.camera];
    if (!catalogue.laws[state.law] && state.law !== OWN) {
      stateProblems.push(`law: there is no '${state.law}'; choose one of: ${Object.keys(catalogue.laws).join(", ")}`);
      state.law = firstLaw;
    }
    const initial = { ...state }; // what an empty address means
    const usesAddress = isStatic && addressOwner === null && model.get("address") !== false;
    if (usesAddress) {
      addressOwner = id;
      undo.push(() => (addressOwner = null));
    }
    if (stateProblems.length) problem("state", `Settings that do not fit are left at their defaults: ${stateProblems.join("; ")}.`);

    /** Complete a wanted state: models that fit the law, and so on. Returns the whole patch. */
    function completed(patch) {
      const next = { ...state, ...patch };
      if (next.law === OWN && !next.mixture) {
        problem("law", "The address or state names your own law but holds no mixture; the first law is shown. Draw yours below.");
        patch = { ...patch, law: firstLaw };
        next.law = firstLaw;
      }
      if (next.law !== OWN && !catalogue.laws[next.law]) {
        problem("law", `There is no law '${next.law}' here; choose one of: ${Object.keys(catalogue.laws).join(", ")}.`);
        patch = { ...patch, law: state.law };
        next.law = state.law;
      }
      if (patch.law !== undefined && patch.law !== state.law) {
        const names = networksOf(next.law).map(([name]) => name);
        const exact = next.law === OWN || isExact(catalogue.laws[next.law]);
        SIDES.forEach((side, i) => {
          const key = `${side}_model`;
          if (patch[key] !== undefined) return;
          if (next[key] === "exact" ? !exact : !names.includes(next[key]))
            patch = { ...patch, [key]: names.length && (i === 0 || !exact) ? names[names.length - 1] : "exact" };
          if (patch[`${side}_schedule`] === undefined && next[key] !== "exact") patch = { ...patch, [`${side}_schedule`]: "own" };
        });
      }
      return patch;
    }

    let saving = null;
    function save() {
      if (saving) return;
      saving = setTimeout(() => {
        saving = null;
        if (alive) model.save_changes();
      }, 150);
    }

    function update(patch) {
      patch = completed(patch);
      const changed = Object.keys(patch).filter((key) => !same(patch[key], state[key]));
      for (const key of changed) state[key] = patch[key];
      for (const key of changed) model.set(key, state[key]);
      if (changed.length) save();
      react(changed);
    }

    for (const key of Object.keys(FIELDS)) {
      const changed = () => {
        const given = model.get(key);
        if (given === undefined || same(given, state[key])) return;
        try {
          const value = FIELDS[key](given);
          clear("state");
          update({ [key]: value });
        } catch (error) {
          problem("state", `${key} was set to a value that does not fit: ${error.message}. It stays ${JSON.stringify(state[key])}.`);
          model.set(key, state[key]);
          save();
        }
      };
      model.on(`change:${key}`, changed);
      undo.push(() => model.off(`change:${key}`, changed));
    }

    const RUN_KEYS = ["model", "schedule", "solver", "steps", "spacing", "eta", "variance", "seed"];
    function react(changed) {
      if (!changed.length) return;
      const has = (...keys) => keys.some((key) => changed.includes(key));
      const all = has("law", "n", "seed", "mixture");
      if (has("law", "mixture", "n")) reference();
      for (const side of SIDES) {
        const others = side === "a" ? "b" : "a";
        const lent = state[`${side}_model`] === "exact" && state[`${side}_schedule`] === "own" && has(`${others}_model`);
        if (all || lent || has(...RUN_KEYS.map((key) => `${side}_${key}`)) || (has("compare") && state.compare)) start(side);
      }
      if (has("n")) {
        const kept = state.picked.filter((index) => index < state.n);
        if (kept.length !== state.picked.length) update({ picked: kept });
      }
      if (has("playing")) {
        lastFrame = null;
        if (state.playing && state.progress >= 1) update({ progress: 0 });
      }
      if (changed.some((key) => !["progress", "camera"].includes(key))) showControls();
      redraw();
      describe();
      writeAddress();
    }

    // ------------------------------------------------------------ address

    let writing = null;
    function writeAddress() {
      if (!usesAddress) return;
      clearTimeout(writing);
      writing = setTimeout(() => {
        if (!alive || state.playing) return;
        const hash = toAddress(state, initial);
        const plain = hash === PREFIX;
        if (plain && !location.hash.startsWith("#explorer")) return;
        try {
          history.replaceState(history.state, "", plain ? location.pathname + location.search : hash);
        } catch {
          /* a host that has no address of its own */
        }
      }, 300);
    }
    function readAddress() {
      if (!usesAddress || !location.hash.startsWith(PREFIX)) return;
      const read = fromAddress(location.hash);
      if (read.problems.length)
        problem(
          "state",
          `The address holds settings that cannot be read, which are left as they are: ${read.problems.join("; ")}. ` +
            "Correct the link, or choose below and copy a new one.",
        );
      else clear("state");
      return read.state;
    }
    listen(window, "hashchange", () => {
      const read = readAddress();
      if (read) update({ ...initial, ...read });
    });

    // ------------------------------------------------------------ runs

    const runs = Object.fromEntries(SIDES.map((side) => [side, { id: 0, states: [], nSteps: 0 }]));
    let runIds = 0;
    const remoteCalls = new Map();

    function samplerOf(side, schedule) {
      const name = state[`${side}_solver`];
      let steps = state[`${side}_steps`];
      const spec = schedule.spec;
      if (spec.kind === "discrete" && steps > schedule.map.tMax) {
        problem(
          `steps ${side}`,
          `${side.toUpperCase()}: this schedule has ${schedule.map.tMax} steps, fewer than the ${steps} asked for; all of them are taken.`,
          false,
        );
        steps = schedule.map.tMax;
      } else clear(`steps ${side}`);
      const sampler = { name, n_steps: steps };
      const spacing = state[`${side}_spacing`];
      if (spacing !== "default") sampler.spacing = spacing;
      if (name === "ddim") sampler.eta = state[`${side}_eta`];
      if (name === "ddpm") sampler.variance = state[`${side}_variance`];
      return sampler;
    }

    function start(side) {
      const run = { id: ++runIds, side, states: [], nSteps: 0, done: false, nfe: null, ms: null, problem: null };
      runs[side] = run;
      if (side === "b" && !state.compare) return;
      const failed = (error) => {
        if (runs[side] !== run || !alive) return;
        run.problem = (error && error.message) || String(error);
        problem(`side ${side}`, `${side.toUpperCase()}: ${run.problem}.`.replace(/\.\.$/, "."));
        redraw();
        describe();
      };
      try {
        const what = resolve(side);
        const map = scheduleOf(what.schedule);
        const sampler = samplerOf(side, { spec: what.schedule, map });
        const dim = dimOf(what.law);
        const seed = state[`${side}_seed`] < 0 ? state.seed : state[`${side}_seed`];
        const x = engine.noise(seed, state.n, dim);
        if (!what.remote) {
          const [alpha, sigma] = map.scales(map.times(sampler.n_steps, sampler.spacing || what.schedule.spacing)[0]);
          const scale = Math.hypot(alpha, sigma);
          for (let i = 0; i < x.length; i++) x[i] *= scale;
        }
        Object.assign(run, { what, map, sampler, dim, n: state.n, seed, nSteps: sampler.n_steps });
        const onState = ({ k, t, x: points, nSteps, scales }) => {
          if (runs[side] !== run || !alive) return;
          run.nSteps = nSteps || run.nSteps;
          const [alphaT, sigmaT] = scales || map.scales(t);
          let lost = 0;
          for (let i = 0; i < points.length; i++) if (!Number.isFinite(points[i])) lost++;
          if (lost) run.lost = lost;
          run.states[k] = { t, x: points, alpha: alphaT, sigma: sigmaT, scale: Math.hypot(alphaT, sigmaT) };
          redraw();
        };
        const onDone = ({ nfe, ms }) => {
          if (runs[side] !== run || !alive) return;
          Object.assign(run, { done: true, nfe, ms });
          clear(`side ${side}`);
          if (run.lost)
            problem(
              `lost ${side}`,
              `${side.toUpperCase()}: coordinates of some points are no longer finite; they are left out. Take more steps or another solver.`,
            );
          else clear(`lost ${side}`);
          hand(run);
          redraw();
          describe();
        };
        if (what.remote) {
          if (isStatic)
            throw new Error("this denoiser lives in a Python kernel and was not exported; open the notebook and run it");
          ask("run", { side, denoiser: what.key, reference: what.reference, sampler, seed, n: state.n }, x, {
            state: onState,
            done: onDone,
            error: failed,
          });
        } else client.run(side, { denoiser: what.spec, sampler, n: state.n, seed, x }, onState, onDone, failed);
      } catch (error) {
        failed(error);
      }
    }

    /** Ask the kernel. Its answers come as custom messages with the same number. */
    function ask(kind, content, x, handlers) {
      const number = ++runIds;
      if (kind === "run") {
        for (const [known, call] of remoteCalls) if (call.side === content.side) remoteCalls.delete(known);
      }
      remoteCalls.set(number, { ...handlers, side: content.side });
      const bytes = x.buffer.slice(x.byteOffset, x.byteOffset + x.byteLength);
      model.send({ kind, number, ...content }, undefined, [bytes]);
    }
    const floats = (view) => {
      const bytes = view.buffer ? new Uint8Array(view.buffer, view.byteOffset, view.byteLength) : new Uint8Array(view);
      return new Float32Array(bytes.slice().buffer);
    };
    const answered = (content, buffers) => {
      const call = content && remoteCalls.get(content.number);
      if (!call || !alive) return;
      if (content.kind === "state") call.state({ ...content, x: floats(buffers[0]) });
      else {
        remoteCalls.delete(content.number);
        if (content.kind === "done") call.done(content);
        else if (content.kind === "denoised") call.done(floats(buffers[0]));
        else call.error(new Error(content.message || "the kernel sent an answer that cannot be read"));
      }
    };
    model.on("msg:custom", answered);
    undo.push(() => model.off("msg:custom", answered));

    /** Give a finished trajectory to the kernel, where there is one. */
    function hand(run) {
      if (isStatic || run.what.remote) return;
      const size = run.n * run.dim;
      if (size * run.states.length > 8e6) return;
      const all = new Float32Array(size * run.states.length);
      run.states.forEach(({ x }, k) => all.set(x, k * size));
      const times = run.states.map(({ t }) => t);
      model.send({ kind: "trajectory", side: run.side, times, n: run.n, dim: run.dim }, undefined, [all.buffer]);
    }

    function denoise(run, spec, x, n, t) {
      if (spec === run.what.spec && run.what.remote)
        return new Promise((done, error) =>
          ask("denoise", { denoiser: run.what.key, reference: run.what.reference, n, t }, x, { done, error }),
        );
      if (spec.type === "exact" && (run.what.law.exact === "remote" || run.what.remote || run.what.schedule.remote))
        return new Promise((done, error) =>
          ask("denoise", { denoiser: "exact", reference: run.what.reference, n, t }, x, { done, error }),
        );
      return client.call("denoise", spec, x, n, t);
    }
    const exactBeside = (run) =>
      remember(`beside ${run.side}`, [run.what.law, run.what.schedule], () => ({
        type: "exact",
        law: run.what.law,
        schedule: run.what.schedule,
      }));

    // ------------------------------------------------------------ the target, and scores against it

    const target = { id: 0, points: null, noise: null, floor: null };
    async function reference() {
      const mine = ++target.id;
      Object.assign(target, { points: null, noise: null, floor: null, problem: null });
      const law = lawSpec();
      if (!law) return;
      const dim = dimOf(law);
      try {
        const points = await client.call("sampleLaw", law, state.n, 20_231);
        if (target.id !== mine || !alive) return;
        target.points = points;
        target.n = Math.floor(points.length / dim);
        target.dim = dim;
        target.noise = engine.noise(20_232, target.n, dim);
        clear("target");
        redraw();
        const size = Math.min(ENERGY_POINTS, target.n);
        const floor = await client.call("floorAndCeiling", law, size, 8, 20_233);
        if (target.id !== mine || !alive) return;
        target.floor = { floorMean: floor.floorMean ?? floor.floor, floorSd: floor.floorSd ?? floor.sd, ceiling: floor.ceiling, size };
        redraw();
        describe();
      } catch (error) {
        if (target.id !== mine || !alive) return;
        target.problem = error.message;
        problem("target", `The points of this law cannot be drawn: ${error.message}.`.replace(/\.\.$/, "."));
      }
    }

    const shownStep = (run) => {
      const last = run.states.length - 1;
      return Math.min(last, Math.floor(state.progress * run.nSteps + 1e-9));
    };

    /** Energy distance of the shown points, and the denoiser's error at them; one computation at a time on each side. */
    async function score(run) {
      const k = shownStep(run);
      if (k < 0 || run.busy) return;
      const now = run.states[k];
      const wantsEnergy = target.floor && target.dim === run.dim && run.energyAt !== `${target.id} ${k}`;
      const exact = run.what.key !== "exact" && isExact(run.what.law);
      const wantsError = exact && run.errorAt !== errorStep(run, k) && (!state.playing || run.errorAt === undefined);
      if (!wantsEnergy && !wantsError) return;
      run.busy = true;
      try {
        if (wantsEnergy) {
          const size = Math.min(target.floor.size, run.n);
          const z = new Float32Array(size * run.dim);
          for (let i = 0; i < z.length; i++) z[i] = now.x[i] / now.scale;
          const key = `${target.id} ${k}`;
          const reals = target.points.slice(0, target.floor.size * run.dim);
          const finite = z.every(Number.isFinite);
          run.energy = finite ? await client.call("energyDistance", z, size, reals, target.floor.size, run.dim) : NaN;
          run.energyAt = key;
        }
        if (wantsError) {
          const at = errorStep(run, k);
          const { x, t } = run.states[at];
          const n = Math.min(ERROR_POINTS, run.n);
          const part = x.slice(0, n * run.dim);
          const [ours, best] = [
            await denoise(run, run.what.spec, part.slice(), n, t),
            await denoise(run, exactBeside(run), part.slice(), n, t),
          ];
          let total = 0;
          for (let i = 0; i < ours.length; i++) total += (ours[i] - best[i]) ** 2;
          run.error = Math.sqrt(total / n);
          run.errorAt = at;
        }
      } catch (error) {
        run.energyAt = run.energyAt || `${target.id} ${k}`;
        run.errorAt = errorStep(run, k);
        run.error = null;
        if (runs[run.side] === run && alive) problem(`score ${run.side}`, `${run.side.toUpperCase()}: a score failed: ${error.message}`);
      } finally {
        run.busy = false;
      }
      if (runs[run.side] === run && alive) {
        showNumbers();
        describe();
        setTimeout(() => alive && score(run), 0);
      }
    }
    // at t = 0 there is nothing to denoise: the last noisy state stands for it
    const errorStep = (run, k) => (k >= run.nSteps ? Math.max(0, Math.min(k, run.nSteps - 1)) : k);

    /** Arrows of the denoiser, or of its error, on a grid (2-D) or at the points themselves (3-D). */
    async function arrows(run, panel) {
      if (state.field === "off" || !run.what || run.arrowsBusy) return;
      const shown = shownStep(run);
      if (shown < 0) return;
      const k = errorStep(run, shown);
      const { t, x, scale } = run.states[k];
      const key = [k, state.field, run.dim === 2 ? [panel.w, panel.h, ...state.camera.slice(2)].map((v) => round(v, 2)) : ""].join();
      if (run.arrowsAt === key) return;
      run.arrowsBusy = true;
      run.arrowsAt = key;
      try {
        if (state.field === "error" && !isExact(run.what.law))
          throw new Error(`${titleOf(run.what.law)} has no density: there is no exact denoiser to compare with`);
        let z;
        if (run.dim === 2) {
          const cells = Math.max(7, Math.round(Math.min(panel.w, panel.h) / 24));
          const wide = Math.round((cells * panel.w) / Math.min(panel.w, panel.h));
          const high = Math.round((cells * panel.h) / Math.min(panel.w, panel.h));
          z = new Float32Array(wide * high * 2);
          for (let j = 0; j < high; j++)
            for (let i = 0; i < wide; i++) {
              const [u, v] = unproject(panel, panel.x + ((i + 0.5) / wide) * panel.w, panel.y + ((j + 0.5) / high) * panel.h);
              z[2 * (j * wide + i)] = u;
              z[2 * (j * wide + i) + 1] = v;
            }
        } else {
          z = x.slice(0, Math.min(run.n, 300) * run.dim).map((v) => v / scale);
        }
        const n = z.length / run.dim;
        const xs = z.map((v) => v * scale);
        const estimate = await denoise(run, run.what.spec, xs.slice(), n, t);
        let vectors;
        if (state.field === "field") vectors = estimate.map((v, i) => v - z[i]);
        else {
          const best = run.what.key === "exact" ? estimate : await denoise(run, exactBeside(run), xs.slice(), n, t);
          vectors = estimate.map((v, i) => v - best[i]);
        }
        const sizes = new Float32Array(n);
        for (let i = 0; i < n; i++) sizes[i] = Math.hypot(...vectors.subarray(i * run.dim, (i + 1) * run.dim));
        run.arrows = { z, vectors, sizes, n, kind: state.field, most: sizes.reduce((m, v) => Math.max(m, v), 0) };
        clear(`field ${run.side}`);
      } catch (error) {
        run.arrows = null;
        if (runs[run.side] === run && alive) problem(`field ${run.side}`, `${run.side.toUpperCase()}: no arrows: ${error.message}.`);
      } finally {
        run.arrowsBusy = false;
      }
      if (runs[run.side] === run && alive) redraw();
    }

    // ------------------------------------------------------------ picture

    const canvas = h("canvas", {
      class: "ddx-canvas",
      tabindex: "0",
      role: "application",
      "aria-roledescription": "interactive picture",
      "aria-label": "Points on their way from noise to data",
      "aria-describedby": `${id}-caption ${id}-keys`,
    });
    const context = canvas.getContext("2d");
    if (!context) throw new Error("this browser gives no 2-D canvas to draw on; try another browser");
    const figure = h("figure", { class: "ddx-figure" }, canvas);
    let panels = [];
    let width = 0;
    let height = 0;
    let dirty = true;
    let frame = null;
    let lastFrame = null;
    let frames = 0;
    let drawing = null; // the board of the reader's own law: { strokes, cursor, pen }

    function layout() {
      const room = figure.clientWidth;
      const two = drawing || (state.compare && state.pictures === "side");
      const stacked = two && room < 560;
      const each = two && !stacked ? room / 2 : room;
      const tall = Math.round(stacked ? each * 0.82 : clamp(each, 240, two ? 460 : 520));
      width = room;
      height = stacked ? 2 * tall : tall;
      if (room < 60 || figure.getBoundingClientRect().width < 60) {
        problem(
          "size",
          `The picture has no room: its box is ${Math.round(room)} pixels wide. Widen the box or the window; it is drawn as soon as it has 60 pixels.`,
        );
        return false;
      }
      clear("size");
      const ratio = Math.min(3, window.devicePixelRatio || 1);
      if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
        canvas.width = Math.round(width * ratio);
        canvas.height = Math.round(height * ratio);
        canvas.style.height = `${height}px`;
      }
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      panels = [];
      const add = (x, y, w, hh, show) => panels.push({ x, y, w, h: hh, show });
      const first = drawing ? ["board"] : ["a"];
      const second = drawing ? ["a"] : ["b"];
      if (!two) add(0, 0, width, height, state.compare ? ["a", "b"] : ["a"]);
      else if (stacked) {
        add(0, 0, width, tall, first);
        add(0, tall, width, tall, second);
      } else {
        add(0, 0, width / 2, height, first);
        add(width / 2, 0, width / 2, height, second);
      }
      for (const panel of panels) {
        panel.scale = (Math.min(panel.w, panel.h) / 2 / EXTENT) * (panel.show[0] === "board" ? 1 : state.camera[2]);
        panel.cx = panel.x + panel.w / 2;
        panel.cy = panel.y + panel.h / 2;
        panel.panX = panel.show[0] === "board" ? 0 : state.camera[3];
        panel.panY = panel.show[0] === "board" ? 0 : state.camera[4];
      }
      return true;
    }
    const unproject = (panel, px, py) => [
      (px - panel.cx) / panel.scale - panel.panX,
      -(py - panel.cy) / panel.scale - panel.panY,
    ];

    /** Screen positions (and depths) of points, from coordinates `(n, dim)`. */
    function project(panel, z, n, dim, out) {
      const { cx, cy, scale, panX, panY } = panel;
      if (dim <= 2) {
        for (let i = 0; i < n; i++) {
          out[3 * i] = cx + (z[dim * i] + panX) * scale;
          // one dimension: spread over the height by a fixed rule, so that points can be told apart
          const second = dim === 2 ? z[2 * i + 1] : ((i * 0.618034) % 1) * 4 - 2;
          out[3 * i + 1] = cy - (second + panY) * scale;
          out[3 * i + 2] = 0;
        }
        return out;
      }
      const [yaw, pitch] = state.camera;
      const [cosY, sinY, cosP, sinP] = [Math.cos(yaw), Math.sin(yaw), Math.cos(pitch), Math.sin(pitch)];
      for (let i = 0; i < n; i++) {
        const [x, y, up] = [z[dim * i], z[dim * i + 1], z[dim * i + 2]];
        const right = cosY * x + sinY * y;
        const away = -sinY * x + cosY * y; // into the picture
        const height3 = cosP * up + sinP * away;
        const depth = cosP * away - sinP * up;
        const perspective = 9 / Math.max(1, 9 + depth);
        out[3 * i] = cx + (right * perspective + panX) * scale;
        out[3 * i + 1] = cy - (height3 * perspective + panY) * scale;
        out[3 * i + 2] = depth;
      }
      return out;
    }

    /** Where the points of a run are at the shown progress, `(n, dim)`: between two states on a straight line. */
    function positions(run) {
      const last = run.states.length - 1;
      if (last < 0) return null;
      const place = Math.min(last, state.progress * run.nSteps);
      const k = Math.min(last, Math.floor(place + 1e-9));
      let share = k < last ? place - k : 0;
      if (still.matches) share = 0;
      const key = `${k} ${share}`;
      if (run.placed === key) return run.z;
      const [one, next] = [run.states[k], run.states[Math.min(last, k + 1)]];
      run.z = run.z && run.z.length === one.x.length ? run.z : new Float32Array(one.x.length);
      const [u, v] = [(1 - share) / one.scale, share / next.scale];
      for (let i = 0; i < run.z.length; i++) run.z[i] = one.x[i] * u + (share ? next.x[i] * v : 0);
      run.placed = key;
      return run.z;
    }

    let scratch = new Float32Array(3);
    const screen = (n) => (scratch.length >= 3 * n ? scratch : (scratch = new Float32Array(3 * n)));

    /** Points as squares, or as crosses, so that two clouds differ by more than their colour; how many lie outside. */
    function drawPoints(panel, z, n, dim, colour, size, alpha, crosses = false) {
      const at = project(panel, z, n, dim, screen(n));
      context.fillStyle = colour;
      const [left, right, top, bottom] = [panel.x, panel.x + panel.w, panel.y, panel.y + panel.h];
      let outside = 0;
      const passes = dim > 2 ? 4 : 1;
      for (let pass = 0; pass < passes; pass++) {
        // far points first, smaller and fainter
        const near = passes === 1 ? 1 : (pass + 1) / passes;
        const [from, to] = passes === 1 ? [-Infinity, Infinity] : [[1, Infinity], [0, 1], [-1, 0], [-Infinity, -1]][pass];
        context.globalAlpha = alpha * (0.4 + 0.6 * near);
        const side = size * (0.75 + 0.35 * near);
        for (let i = 0; i < n; i++) {
          const depth = at[3 * i + 2];
          if (depth < from || depth >= to) continue;
          const [px, py] = [at[3 * i], at[3 * i + 1]];
          if (!(px >= left && px <= right && py >= top && py <= bottom)) {
            outside++;
            continue;
          }
          if (crosses) {
            context.fillRect(px - side, py - side / 5, 2 * side, 0.4 * side);
            context.fillRect(px - side / 5, py - side, 0.4 * side, 2 * side);
          } else context.fillRect(px - side / 2, py - side / 2, side, side);
        }
      }
      context.globalAlpha = 1;
      return outside;
    }

    function drawPath(panel, run, index, until) {
      const k = Math.min(run.states.length - 1, Math.floor(until + 1e-9));
      const one = new Float32Array(run.dim);
      const at = new Float32Array(3);
      context.beginPath();
      for (let j = 0; j <= k; j++) {
        const { x, scale } = run.states[j];
        for (let d = 0; d < run.dim; d++) one[d] = x[index * run.dim + d] / scale;
        project(panel, one, 1, run.dim, at);
        if (!Number.isFinite(at[0])) break;
        if (j) context.lineTo(at[0], at[1]);
        else context.moveTo(at[0], at[1]);
      }
      for (let d = 0; d < run.dim; d++) one[d] = run.z[index * run.dim + d];
      project(panel, one, 1, run.dim, at);
      context.lineTo(at[0], at[1]);
      context.stroke();
      return [at[0], at[1]];
    }

    function drawArrows(panel, run, colour) {
      const field = run.arrows;
      if (!field || field.kind !== state.field || !field.most) return;
      const ends = new Float32Array(field.z.length);
      const sorted = Float32Array.from(field.sizes).sort();
      const usual = sorted[Math.floor(0.9 * (sorted.length - 1))] || field.most;
      const cell = run.dim === 2 ? 22 / panel.scale : 0.5;
      // arrows of the field reach towards the estimate; errors are enlarged so that they can be seen
      const gain = field.kind === "field" ? Math.min(0.4, (1.1 * cell) / usual) : cell / usual;
      for (let i = 0; i < field.n; i++)
        for (let d = 0; d < run.dim; d++) {
          const j = i * run.dim + d;
          ends[j] = field.z[j] + field.vectors[j] * gain * Math.min(1, (1.6 * usual) / (field.sizes[i] || 1));
        }
      const from = Float32Array.from(project(panel, field.z, field.n, run.dim, screen(field.n)).subarray(0, 3 * field.n));
      const to = project(panel, ends, field.n, run.dim, screen(field.n));
      context.strokeStyle = colour;
      context.lineWidth = 1.1;
      context.globalAlpha = 0.85;
      context.beginPath();
      for (let i = 0; i < field.n; i++) {
        const [x0, y0, x1, y1] = [from[3 * i], from[3 * i + 1], to[3 * i], to[3 * i + 1]];
        const length = Math.hypot(x1 - x0, y1 - y0);
        if (!(length > 0.7)) continue;
        context.moveTo(x0, y0);
        context.lineTo(x1, y1);
        const head = Math.min(4, length * 0.4) / length;
        const [ux, uy] = [(x1 - x0) * head, (y1 - y0) * head];
        context.moveTo(x1 - ux - 0.6 * uy, y1 - uy + 0.6 * ux);
        context.lineTo(x1, y1);
        context.lineTo(x1 - ux + 0.6 * uy, y1 - uy - 0.6 * ux);
      }
      context.stroke();
      context.globalAlpha = 1;
    }

    /** Lines to read distances by; what they measure, in words. */
    function drawFrame(panel, dim) {
      let unit;
      context.fillStyle = colours.background;
      context.fillRect(panel.x, panel.y, panel.w, panel.h);
      context.strokeStyle = colours.faint;
      context.lineWidth = 1;
      context.beginPath();
      if (dim <= 2) {
        const [left, top] = unproject(panel, panel.x, panel.y);
        const [right, bottom] = unproject(panel, panel.x + panel.w, panel.y + panel.h);
        const every = [0.1, 0.2, 0.5, 1, 2, 5, 10, 50, 100].find((step) => step * panel.scale > 40) || 1000;
        unit = `a square is ${every} sd wide`;
        for (let v = Math.ceil(left / every) * every; v <= right; v += every) {
          const px = Math.round(panel.cx + (v + panel.panX) * panel.scale) + 0.5;
          context.moveTo(px, panel.y);
          context.lineTo(px, panel.y + panel.h);
        }
        for (let v = Math.ceil(bottom / every) * every; v <= top; v += every) {
          const py = Math.round(panel.cy - (v + panel.panY) * panel.scale) + 0.5;
          context.moveTo(panel.x, py);
          context.lineTo(panel.x + panel.w, py);
        }
      } else {
        const s = 1.7;
        unit = `the box is ${2 * s} sd wide`;
        const corners = [];
        for (let c = 0; c < 8; c++) corners.push(c & 1 ? s : -s, c & 2 ? s : -s, c & 4 ? s : -s);
        const at = project(panel, Float32Array.from(corners), 8, 3, new Float32Array(24));
        for (let c = 0; c < 8; c++)
          for (const bit of [1, 2, 4])
            if (!(c & bit)) {
              context.moveTo(at[3 * c], at[3 * c + 1]);
              context.lineTo(at[3 * (c | bit)], at[3 * (c | bit) + 1]);
            }
      }
      context.stroke();
      return unit;
    }

    function write(panel, words, top, colour) {
      context.globalAlpha = 0.85;
      context.fillStyle = colours.background;
      context.fillRect(panel.x + 4, top, context.measureText(words).width + 8, 18);
      context.globalAlpha = 1;
      context.fillStyle = colour;
      context.fillText(words, panel.x + 8, top + 2);
    }

    /** Words over a panel from a line on, broken where they must be; the next free line. */
    function label(panel, words, line, colour, strong = false) {
      context.font = `${strong ? "600 " : ""}13px ${fontFamily}`;
      context.textBaseline = "top";
      context.textAlign = "left";
      const rows = [];
      for (const word of words.split(" ")) {
        const longer = rows.length ? `${rows[rows.length - 1]} ${word}` : word;
        if (rows.length && context.measureText(longer).width <= panel.w - 16) rows[rows.length - 1] = longer;
        else rows.push(word);
      }
      if (rows.length > 3) rows.splice(3, rows.length, "…"); // a long message stands in its box, too
      for (const row of rows) write(panel, row, panel.y + 4 + 18 * line++, colour);
      return line;
    }

    const headline = (run) =>
      `${run.side.toUpperCase()}: ${run.what.title} · ${SOLVERS[run.sampler.name]}, ${run.nSteps} ${run.nSteps === 1 ? "step" : "steps"}`;
    let fontFamily = "sans-serif";

    function targetAt(run) {
      if (state.target !== "level" || !run) return target.points;
      const k = shownStep(run);
      if (k < 0) return target.points;
      const { alpha, sigma, scale } = run.states[k];
      return target.points.map((v, i) => (alpha * v + sigma * target.noise[i]) / scale);
    }

    function draw() {
      if (!root.isConnected) return; // a host may put it into its page later; the observer of its size calls again
      dirty = false;
      if (!themed) applyTheme();
      if (!layout()) return;
      const law = lawSpec();
      const dim = law ? dimOf(law) : 2;
      for (const panel of panels) {
        context.save();
        context.beginPath();
        context.rect(panel.x, panel.y, panel.w, panel.h);
        context.clip();
        const board = panel.show[0] === "board";
        const unit = drawFrame(panel, board ? 2 : dim);
        if (board) drawBoard(panel);
        else {
          const shown = panel.show.map((side) => runs[side]);
          if (state.target !== "off" && target.points && target.dim === dim)
            drawPoints(panel, targetAt(shown.find((run) => run.states.length)), target.n, dim, colours.target, 2.6, 0.8, true);
          shown.forEach((run) => {
            run.outside = 0;
            if (!run.states.length || run.dim !== dim) return;
            const z = positions(run);
            const colour = colours[run.side];
            if (state.samples) run.outside = drawPoints(panel, z, run.n, dim, colour, 2.6, 0.8);
            else run.outside = 0;
            if (state.field !== "off") drawArrows(panel, run, shown.length > 1 ? colour : colours.ink);
            const until = Math.min(run.states.length - 1, state.progress * run.nSteps);
            if (state.paths === "many") {
              context.strokeStyle = colour;
              context.globalAlpha = 0.25;
              context.lineWidth = 0.8;
              for (let i = 0; i < Math.min(run.n, 150); i++) drawPath(panel, run, i, until);
              context.globalAlpha = 1;
            }
            if (state.paths !== "off")
              state.picked.forEach((index, i) => {
                if (index >= run.n) return;
                context.strokeStyle = colours.background;
                context.lineWidth = 4;
                drawPath(panel, run, index, until);
                context.strokeStyle = shown.length > 1 ? colour : colours.ink;
                context.lineWidth = 1.6;
                const [px, py] = drawPath(panel, run, index, until);
                if (!Number.isFinite(px)) return;
                context.fillStyle = colours.background;
                context.strokeStyle = shown.length > 1 ? colour : colours.ink;
                context.beginPath();
                context.arc(px, py, 7, 0, 2 * Math.PI);
                context.fill();
                context.stroke();
                context.fillStyle = colours.ink;
                context.font = `600 10px ${fontFamily}`;
                context.textAlign = "center";
                context.textBaseline = "middle";
                context.fillText(String(i + 1), px, py + 0.5);
              });
          });
          if (shown.length > 1 && shown.every((run) => run.states.length && run.dim === dim) && paired()) {
            const n = Math.min(shown[0].n, shown[1].n, 400);
            const from = Float32Array.from(project(panel, shown[0].z, n, dim, screen(n)).subarray(0, 3 * n));
            const to = project(panel, shown[1].z, n, dim, screen(n));
            context.strokeStyle = colours.ink;
            context.globalAlpha = 0.35;
            context.lineWidth = 0.8;
            context.beginPath();
            for (let i = 0; i < n; i++) {
              context.moveTo(from[3 * i], from[3 * i + 1]);
              context.lineTo(to[3 * i], to[3 * i + 1]);
            }
            context.stroke();
            context.globalAlpha = 1;
          }
          let line = 0;
          for (const run of shown) {
            if (run.problem) line = label(panel, `${run.side.toUpperCase()}: ${run.problem}`, line, colours.warning, true);
            else if (!run.what) line = label(panel, `${run.side.toUpperCase()}: waiting`, line, colours.muted);
            else line = label(panel, headline(run), line, colours[run.side], true);
          }
          for (const run of shown)
            if (run.arrows && state.field !== "off" && run.arrows.kind === state.field)
              line = label(
                panel,
                state.field === "field"
                  ? "arrows: towards the estimate of the clean point"
                  : `arrows: error against exact, longest ${format(run.arrows.most)} sd`,
                line,
                colours.muted,
              );
          context.font = `11px ${fontFamily}`;
          write(panel, unit, panel.y + panel.h - 20, colours.muted);
        }
        context.restore();
      }
      context.strokeStyle = colours.line;
      context.lineWidth = 1;
      for (const panel of panels) context.strokeRect(panel.x + 0.5, panel.y + 0.5, panel.w - 1, panel.h - 1);
      frames++;
      showNumbers();
      showTime();
      const begun = (side) => runs[side] && runs[side].what && runs[side].states.length;
      for (const side of sides().filter(begun)) score(runs[side]);
      for (const panel of panels) for (const side of panel.show.filter(begun)) arrows(runs[side], panel);
    }

    function redraw() {
      dirty = true;
      if (frame === null && alive) frame = requestAnimationFrame(tick);
    }
    function tick(now) {
      frame = null;
      if (!alive) return;
      try {
        if (state.playing) {
          const passed = lastFrame === null ? 0 : Math.min(0.25, (now - lastFrame) / 1000);
          lastFrame = now;
          state.progress = round(Math.min(1, state.progress + (passed * state.speed) / SECONDS), 5);
          model.set("progress", state.progress);
          save();
          dirty = true;
          if (state.progress >= 1) update({ playing: false });
        }
        if (dirty) draw();
        clear("picture");
      } catch (error) {
        problem("picture", `The picture cannot be drawn: ${error.message}. Change a setting, or reset them all below.`);
      }
      if (state.playing) frame = frame === null ? requestAnimationFrame(tick) : frame;
    }

    // ------------------------------------------------------------ the reader's own law

    let ownPoints = null; // rows, as drawn or imported
    let drawnStrokes = [];

    function strokePoints(strokes) {
      const lengths = strokes.map((stroke) =>
        stroke.slice(1).reduce((sum, [x, y], i) => sum + Math.hypot(x - stroke[i][0], y - stroke[i][1]), 0),
      );
      const weights = lengths.map((length) => Math.max(length, 0.3));
      const total = weights.reduce((x, y) => x + y, 0);
      const rows = [];
      strokes.forEach((stroke, s) => {
        const n = Math.max(20, Math.round((1200 * weights[s]) / total));
        const jitter = engine.noise(500 + s, n, 2);
        const width = lengths[s] < 0.3 ? 0.15 : 0.06;
        let segment = 0;
        let passed = 0;
        for (let i = 0; i < n; i++) {
          const at = ((i + 0.5) / n) * lengths[s];
          let [x, y] = stroke[0];
          while (segment < stroke.length - 1) {
            const [p, q] = [stroke[segment], stroke[segment + 1]];
            const length = Math.hypot(q[0] - p[0], q[1] - p[1]);
            if (passed + length < at) {
              passed += length;
              segment++;
              continue;
            }
            const share = length ? (at - passed) / length : 0;
            [x, y] = [p[0] + share * (q[0] - p[0]), p[1] + share * (q[1] - p[1])];
            break;
          }
          rows.push([x + width * jitter[2 * i], y + width * jitter[2 * i + 1]]);
        }
      });
      return rows;
    }

    let fitting = 0;
    async function fitOwn(rows, what) {
      const mine = ++fitting;
      try {
        const dim = rows[0].length;
        const used = rows.length > 4000 ? rows.filter((_, i) => i % Math.ceil(rows.length / 4000) === 0) : rows;
        const mean = rows[0].map((_, d) => used.reduce((sum, row) => sum + row[d], 0) / used.length);
        const sd = mean.map((m, d) => Math.sqrt(used.reduce((sum, row) => sum + (row[d] - m) ** 2, 0) / used.length));
        const flat = sd.findIndex((s) => !(s > 1e-9 * (1 + Math.abs(mean[0]))));
        if (flat >= 0) throw new Error(`coordinate ${flat + 1} is the same for all points; a law needs spread in each`);
        const points = new Float32Array(used.length * dim);
        used.forEach((row, i) => row.forEach((v, d) => (points[i * dim + d] = (v - mean[d]) / sd[d])));
        say(`Fitting a mixture to ${count(used.length)} points.`);
        const law = await client.call("fitMixture", points, used.length, dim, {});
        if (mine !== fitting || !alive) return;
        const keep = (row) => row.map((v) => round(v, 5));
        const positive = (row) => row.map((v) => Math.max(0.0001, round(v, 5)));
        const spread = law.covariances
          ? { covariances: law.covariances.map((rows) => rows.map((row, a) => row.map((v, b) => round(v, 5) + (a === b ? 2e-5 : 0)))) }
          : { scales: law.scales.map(positive) };
        for (const rows of spread.covariances || []) for (const row of rows) row.forEach((v, b) => (row[b] = round(v, 5)));
        const fitted = mixture({ weights: positive(law.weights), means: law.means.map(keep), ...spread });
        ownPoints = rows;
        clear("own");
        update({ law: OWN, mixture: fitted, a_model: "exact", b_model: "exact", picked: state.picked });
        const words = `${what}: ${count(used.length)} points, a mixture of ${fitted.weights.length} Gaussians, in units of their standard deviation.`;
        say(words);
        ownStatus.textContent = words;
      } catch (error) {
        if (mine === fitting && alive) problem("own", `${what}: ${error.message}.`.replace(/\.\.$/, "."));
      }
    }

    function openBoard() {
      drawing = { cursor: [0, 0], pen: false, stroke: null };
      canvas.style.touchAction = "none";
      update({ playing: false });
      showControls();
      redraw();
      canvas.focus();
      say("Drawing board open. Draw with a pointer, or move the pen with the arrow keys and press Space to set it down or lift it.");
    }
    function closeBoard() {
      endStroke();
      drawing = null;
      canvas.style.touchAction = "";
      showControls();
      redraw();
    }
    function addStroke(point) {
      drawing.stroke = [point];
      drawnStrokes.push(drawing.stroke);
      redraw();
    }
    function endStroke() {
      if (!drawing || !drawing.stroke) return;
      drawing.stroke = null;
      drawing.pen = false;
      fitOwn(strokePoints(drawnStrokes), "Your drawing");
    }
    function clearBoard() {
      drawnStrokes = [];
      ownPoints = null;
      redraw();
      say("The drawing board is empty.");
    }
    function drawBoard(panel) {
      if (ownPoints && ownPoints[0].length === 2 && drawnStrokes.length)
        drawPoints(panel, Float32Array.from(ownPoints.flat()), ownPoints.length, 2, colours.target, 2, 0.6);
      context.strokeStyle = colours.ink;
      context.lineWidth = 2.5;
      context.lineCap = context.lineJoin = "round";
      for (const stroke of drawnStrokes) {
        const at = project(panel, Float32Array.from(stroke.flat()), stroke.length, 2, new Float32Array(3 * stroke.length));
        context.beginPath();
        for (let i = 0; i < stroke.length; i++)
          if (i) context.lineTo(at[3 * i], at[3 * i + 1]);
          else context.moveTo(at[0], at[1]);
        if (stroke.length === 1) context.lineTo(at[0] + 0.1, at[1]);
        context.stroke();
      }
      const at = project(panel, Float32Array.from(drawing.cursor), 1, 2, new Float32Array(3));
      context.strokeStyle = drawing.pen ? colours.warning : colours.muted;
      context.lineWidth = 1.5;
      context.beginPath();
      context.moveTo(at[0] - 8, at[1]);
      context.lineTo(at[0] + 8, at[1]);
      context.moveTo(at[0], at[1] - 8);
      context.lineTo(at[0], at[1] + 8);
      context.stroke();
      label(panel, drawnStrokes.length ? "Your drawing; add strokes" : "Draw here: strokes become a law", 0, colours.ink, true);
    }

    // ------------------------------------------------------------ pointers and keys

    const pointers = new Map();
    let moved = 0;
    let pinch = null;
    const place = (event) => {
      const box = canvas.getBoundingClientRect();
      return [((event.clientX - box.left) * width) / box.width, ((event.clientY - box.top) * height) / box.height];
    };
    const panelAt = ([px, py]) => panels.find((p) => px >= p.x && px < p.x + p.w && py >= p.y && py < p.y + p.h);
    const onBoard = (point) => drawing && panelAt(point) && panelAt(point).show[0] === "board";

    listen(canvas, "pointerdown", (event) => {
      const at = place(event);
      pointers.set(event.pointerId, at);
      moved = 0;
      pinch = null;
      if (canvas.setPointerCapture)
        try {
          canvas.setPointerCapture(event.pointerId);
        } catch {
          /* a pointer that is gone already */
        }
      if (onBoard(at)) {
        drawing.cursor = unproject(panelAt(at), ...at);
        drawing.pen = true;
        addStroke(drawing.cursor);
      }
    });
    listen(canvas, "pointermove", (event) => {
      if (!pointers.has(event.pointerId)) return;
      const before = pointers.get(event.pointerId);
      const at = place(event);
      pointers.set(event.pointerId, at);
      if (drawing && drawing.stroke && pointers.size === 1) {
        const panel = panels[0];
        const point = unproject(panel, clamp(at[0], panel.x, panel.x + panel.w), clamp(at[1], panel.y, panel.y + panel.h));
        const last = drawing.stroke[drawing.stroke.length - 1];
        if (Math.hypot(point[0] - last[0], point[1] - last[1]) > 0.02) drawing.stroke.push(point);
        drawing.cursor = point;
        redraw();
        return;
      }
      if (pointers.size === 2) {
        const [p, q] = [...pointers.values()];
        const now = { size: Math.hypot(p[0] - q[0], p[1] - q[1]) };
        if (pinch) zoom(now.size / pinch.size);
        pinch = now;
        moved += 10;
        return;
      }
      const [dx, dy] = [at[0] - before[0], at[1] - before[1]];
      moved += Math.abs(dx) + Math.abs(dy);
      if (moved > 4) turn(dx, dy, event.shiftKey);
    });
    const released = (event) => {
      const at = pointers.get(event.pointerId);
      pointers.delete(event.pointerId);
      pinch = null;
      if (drawing && drawing.stroke) return endStroke();
      if (at && event.type === "pointerup" && moved <= 4) pick(at);
    };
    listen(canvas, "pointerup", released);
    listen(canvas, "pointercancel", released);
    listen(
      canvas,
      "wheel",
      (event) => {
        const root_ = canvas.getRootNode();
        if (!(event.ctrlKey || root_.activeElement === canvas)) return; // the page scrolls until the picture has focus
        event.preventDefault();
        zoom(Math.exp(-event.deltaY / 500));
      },
      { passive: false },
    );

    const is3d = () => lawSpec() && dimOf(lawSpec()) > 2;
    function turn(dx, dy, pan = false) {
      const camera = [...state.camera];
      if (is3d() && !pan) {
        camera[0] = round((camera[0] - dx * 0.008) % (2 * Math.PI), 4); // what is near goes with the hand
        camera[1] = round(clamp(camera[1] + dy * 0.008, -1.57, 1.57), 4);
      } else {
        const { scale } = panels[panels.length - 1] || { scale: 60 };
        camera[3] = round(clamp(camera[3] + dx / scale, -50, 50), 4);
        camera[4] = round(clamp(camera[4] - dy / scale, -50, 50), 4);
      }
      update({ camera });
    }
    function zoom(factor) {
      const camera = [...state.camera];
      camera[2] = round(clamp(camera[2] * factor, 0.05, 40), 4);
      update({ camera });
    }

    function pick(at) {
      const panel = panelAt(at);
      if (!panel || panel.show[0] === "board") return;
      let [best, distance] = [-1, 14];
      for (const side of panel.show) {
        const run = runs[side];
        if (!run.states.length) continue;
        const where = project(panel, positions(run), run.n, run.dim, screen(run.n));
        for (let i = 0; i < run.n; i++) {
          // a picked point is easier to hit
          const d = Math.hypot(where[3 * i] - at[0], where[3 * i + 1] - at[1]) - (state.picked.includes(i) ? 3 : 0);
          if (d < distance) [best, distance] = [i, d];
        }
      }
      if (best < 0) return;
      if (state.picked.includes(best)) update({ picked: state.picked.filter((index) => index !== best) });
      else if (state.picked.length < MOST_PICKS)
        update({ picked: [...state.picked, best], paths: state.paths === "off" ? "picked" : state.paths });
      else say(`${MOST_PICKS} points are picked already; click one of them to let it go.`);
    }
    function pickMore(n) {
      const picked = [...state.picked];
      for (let tries = 0; n > 0 && picked.length < MOST_PICKS && tries < 1000; tries++) {
        const index = Math.floor(Math.random() * state.n);
        if (!picked.includes(index)) {
          picked.push(index);
          n--;
        }
      }
      update({ picked, paths: state.paths === "off" ? "picked" : state.paths });
    }

    listen(canvas, "keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const arrow = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      const act = {
        "+": () => zoom(1.2),
        "=": () => zoom(1.2),
        "-": () => zoom(1 / 1.2),
        0: () => update({ camera: [...DEFAULTS.camera] }),
        " ": () => play(),
        "[": () => stepBy(-1),
        "]": () => stepBy(1),
        ",": () => stepBy(-1),
        ".": () => stepBy(1),
        Home: () => update({ progress: 0, playing: false }),
        End: () => update({ progress: 1, playing: false }),
        n: () => pickMore(1),
        Escape: () => update({ picked: [] }),
      };
      if (drawing) {
        Object.assign(act, {
          " ": () => {
            if (drawing.stroke) endStroke();
            else {
              drawing.pen = true;
              addStroke([...drawing.cursor]);
            }
            say(drawing.stroke ? "Pen down." : "Pen up.");
          },
          Enter: () => endStroke(),
          Escape: () => closeBoard(),
        });
        if (arrow) {
          drawing.cursor = [clamp(drawing.cursor[0] + 0.12 * arrow[0], -3, 3), clamp(drawing.cursor[1] - 0.12 * arrow[1], -3, 3)];
          if (drawing.stroke) drawing.stroke.push([...drawing.cursor]);
          redraw();
          event.preventDefault();
          return;
        }
      }
      if (arrow) turn(12 * arrow[0], 12 * arrow[1], event.shiftKey);
      else if (act[event.key]) act[event.key]();
      else return;
      event.preventDefault();
    });

    // ------------------------------------------------------------ time

    function play() {
      if (state.playing) update({ playing: false });
      else update({ playing: true, progress: state.progress >= 1 ? 0 : state.progress });
    }
    function stepBy(direction) {
      const most = Math.max(...SIDES.map((side) => (side === "a" || state.compare ? runs[side].nSteps || 0 : 0)), 1);
      const at = state.progress * most;
      const next = direction > 0 ? Math.floor(at + 1e-6) + 1 : Math.ceil(at - 1e-6) - 1;
      update({ playing: false, progress: clamp(next / most, 0, 1) });
    }
    const levelOf = (now) => (now.alpha > 0 ? now.sigma / now.alpha : Infinity);
    const alphaBar = (now) => now.alpha ** 2 / (now.alpha ** 2 + now.sigma ** 2);
    const timeWords = (side) => {
      const run = runs[side];
      const k = shownStep(run);
      if (k < 0) return `${side.toUpperCase()}: not computed yet`;
      const now = run.states[k];
      return `${side.toUpperCase()}: step ${k} of ${run.nSteps}, ᾱ ${format(alphaBar(now))}, noise level ${format(levelOf(now))}`;
    };
    const sides = () => SIDES.filter((side) => side === "a" || state.compare);

    // ------------------------------------------------------------ controls

    const controls = {}; // key -> show(value)
    const button = (words, onclick, more = {}) => h("button", { type: "button", onclick, ...more }, words);
    const labelled = (words, control, more = {}) => h("label", more, h("span", {}, words), control);

    function selectFor(key, options, parse = (value) => value) {
      const select = h("select", { "data-key": key, onchange: () => update({ [key]: parse(select.value) }) });
      const fill = (list) => {
        if (same(select.dataset.list, JSON.stringify(list))) return;
        select.dataset.list = JSON.stringify(list);
        select.replaceChildren(...list.map(([value, words]) => h("option", { value }, words)));
      };
      fill(options);
      controls[key] = (value) => (select.value = String(value));
      select.fill = fill;
      return select;
    }
    function numberFor(key, attributes) {
      const input = h("input", {
        type: "number",
        inputmode: "decimal",
        "data-key": key,
        ...attributes,
        onchange: () => {
          try {
            const value = FIELDS[key](input.value);
            input.removeAttribute("aria-invalid");
            clear(`input ${key}`);
            update({ [key]: value });
          } catch (error) {
            input.setAttribute("aria-invalid", "true");
            problem(`input ${key}`, `${attributes["data-name"] || key}: ${error.message}. It stays ${state[key]}.`);
          }
        },
      });
      controls[key] = (value) => {
        input.value = String(value);
        input.removeAttribute("aria-invalid");
      };
      return input;
    }
    function checkFor(key, words) {
      const input = h("input", { type: "checkbox", "data-key": key, onchange: () => update({ [key]: input.checked }) });
      controls[key] = (value) => (input.checked = value);
      return h("label", { class: "ddx-check" }, input, h("span", {}, words));
    }

    // the guide
    const stopText = h(
      "p",
      { class: "ddx-stop-text", "aria-live": "polite" },
      "Each dot is a point on its way from noise to data; A and B start from the same noise, and green crosses are the data. " +
        "Press Play under the picture, or choose a stop above.",
    );
    const stopButtons = stops.map((stop, i) =>
      button(`${i + 1}. ${stop.title}`, () => goTo(i), { "aria-pressed": "false", class: "ddx-stop" }),
    );
    function goTo(i) {
      const stop = stops[i];
      stopButtons.forEach((node, j) => node.setAttribute("aria-pressed", String(i === j)));
      stopText.textContent = stop.text;
      if (drawing) closeBoard();
      const given = {};
      for (const [key, value] of Object.entries(stop.state || {})) {
        try {
          given[key] = FIELDS[key](value);
        } catch (error) {
          problem("state", `Stop ${i + 1}: ${key}: ${error.message}.`);
        }
      }
      update({ ...initial, ...given, playing: false });
      if (stop.play && !still.matches) update({ progress: 0, playing: true });
      if (stop.board) openBoard();
    }
    const guide = stops.length
      ? h("nav", { class: "ddx-guide", "aria-label": "Guided stops" }, h("div", { class: "ddx-stops" }, ...stopButtons), stopText)
      : null;

    // the whole
    const lawSelect = selectFor("law", []);
    const newNoise = button("New noise", () => update({ seed: Math.floor(Math.random() * 1e6) }));
    const compareBox = checkFor("compare", "Two at a time");
    const picturesSelect = selectFor("pictures", [
      ["side", "side by side"],
      ["overlay", "one on the other"],
    ]);
    const shared = h(
      "div",
      { class: "ddx-row", role: "group", "aria-label": "What is shown" },
      labelled("Law", lawSelect),
      labelled("Points", numberFor("n", { min: 10, max: 5000, step: 10, "data-name": "Points" })),
      labelled("Seed of the noise", numberFor("seed", { min: 0, max: 4294967295, step: 1, "data-name": "Seed" })),
      newNoise,
      compareBox,
      labelled("Pictures", picturesSelect),
    );

    // time
    const slider = h("input", {
      type: "range",
      min: 0,
      max: 1,
      step: 0.001,
      "data-key": "progress",
      "aria-label": "Time, from noise to data",
      oninput: () => update({ progress: Number(slider.value), playing: false }),
    });
    const playButton = button("Play", play, { class: "ddx-play" });
    const speedSelect = selectFor("speed", SPEEDS.map((v) => [String(v), `${v} ×`]), Number);
    const timeText = h("p", { class: "ddx-time" });
    const playback = h(
      "div",
      { class: "ddx-playback", role: "group", "aria-label": "Playback" },
      h(
        "div",
        { class: "ddx-row" },
        playButton,
        button("To noise", () => update({ progress: 0, playing: false })),
        button("‹ Step", () => stepBy(-1), { "aria-label": "One step back" }),
        button("Step ›", () => stepBy(1), { "aria-label": "One step on" }),
        button("To data", () => update({ progress: 1, playing: false })),
        labelled("Speed", speedSelect),
      ),
      h("div", { class: "ddx-slider" }, h("span", { "aria-hidden": "true" }, "noise"), slider, h("span", { "aria-hidden": "true" }, "data")),
      timeText,
    );

    // a side
    const sideParts = {};
    function sideControls(side) {
      const name = side.toUpperCase();
      const family = h("select", {
        "data-key": `${side}_family`,
        onchange: () => {
          const found = networksOf(state.law).filter(([key, spec]) => familyOf(spec, key) === family.value);
          const key = family.value === "exact" ? "exact" : found[found.length - 1][0];
          const spec = catalogue.denoisers[key];
          const bound = spec && spec.parameterisation !== "edm" ? { [`${side}_schedule`]: "own" } : {};
          update({ [`${side}_model`]: key, ...bound });
        },
      });
      const stage = h("select", {
        "data-key": `${side}_stage`,
        onchange: () => update({ [`${side}_model`]: stage.value }),
      });
      const schedule = selectFor(`${side}_schedule`, []);
      const stepsInput = numberFor(`${side}_steps`, { min: 1, max: 1000, step: 1, "data-name": `${name}: steps` });
      const eta = labelled("Eta (0 deterministic)", numberFor(`${side}_eta`, { min: 0, max: 1, step: 0.1, "data-name": `${name}: eta` }));
      const variance = labelled(
        "Variance",
        selectFor(`${side}_variance`, [
          ["posterior", "posterior"],
          ["beta", "beta"],
        ]),
      );
      const seedInput = h("input", {
        type: "number",
        min: 0,
        step: 1,
        "data-key": `${side}_seed`,
        placeholder: "as above",
        onchange: () => {
          try {
            update({ [`${side}_seed`]: seedInput.value.trim() === "" ? -1 : number(0, 4294967295, true)(seedInput.value) });
            clear(`input ${side}_seed`);
          } catch (error) {
            problem(`input ${side}_seed`, `${name}: seed: ${error.message}. Leave it empty for the seed above.`);
          }
        },
      });
      controls[`${side}_seed`] = (value) => (seedInput.value = value < 0 ? "" : String(value));
      const terms = {};
      const entry = (key, words) => {
        terms[key] = h("dd", { "data-number": `${side}_${key}` }, "–");
        return [h("dt", {}, words), terms[key]];
      };
      const needle = h("i", { class: "ddx-needle" });
      const band = h("i", { class: "ddx-band" });
      const meter = h(
        "div",
        { class: "ddx-meter", role: "meter", "aria-label": `${name}: energy distance`, "aria-valuemin": "0", "aria-valuemax": "1", "aria-valuenow": "0" },
        band,
        needle,
      );
      const meterText = h("p", { class: "ddx-meter-text", "data-number": `${side}_energy` });
      sideParts[side] = { family, stage, schedule, eta, variance, terms, meter, needle, band, meterText, stepsInput };
      const node = h(
        "fieldset",
        { class: `ddx-side ddx-${side}` },
        h("legend", {}, name),
        h(
          "div",
          { class: "ddx-grid" },
          labelled("Denoiser", family, { class: "ddx-wide" }),
          labelled("Stage of training", stage),
          labelled("Schedule", schedule),
          labelled("Solver", selectFor(`${side}_solver`, Object.entries(SOLVERS)), { class: "ddx-wide" }),
          labelled("Steps", stepsInput),
          labelled("Spacing", selectFor(`${side}_spacing`, Object.entries(SPACINGS))),
          eta,
          variance,
          labelled("Own seed", seedInput),
        ),
        h(
          "dl",
          { class: "ddx-numbers" },
          ...entry("step", "step"),
          ...entry("t", "time t"),
          ...entry("alpha_bar", "ᾱ, signal left"),
          ...entry("level", "noise level σ/α"),
          ...entry("nfe", "evaluations"),
          ...entry("ms", "computed in"),
          ...entry("error", "denoiser's rms error here"),
        ),
        meter,
        meterText,
      );
      sideParts[side].node = node;
      return node;
    }
    const sidesNode = h("div", { class: "ddx-sides" }, ...SIDES.map(sideControls));
    const difference = h("p", { class: "ddx-difference", "data-number": "difference" });

    // what to draw
    const overlays = h(
      "fieldset",
      {},
      h("legend", {}, "In the picture"),
      h(
        "div",
        { class: "ddx-row" },
        labelled(
          "Target",
          selectFor("target", [
            ["off", "hidden"],
            ["clean", "clean data"],
            ["level", "data at this noise level"],
          ]),
        ),
        checkFor("samples", "Samples"),
        labelled(
          "Paths",
          selectFor("paths", [
            ["off", "hidden"],
            ["picked", "of picked points"],
            ["many", "of many points"],
          ]),
        ),
        labelled(
          "Arrows",
          selectFor("field", [
            ["off", "hidden"],
            ["field", "the denoiser's field"],
            ["error", "its error against exact"],
          ]),
        ),
        button("Pick a point", () => pickMore(1)),
        button("Let all go", () => update({ picked: [] })),
        button("Zoom in", () => zoom(1.25)),
        button("Zoom out", () => zoom(0.8)),
        button("Whole picture", () => update({ camera: [...DEFAULTS.camera] })),
      ),
    );

    // own law
    const ownStatus = h("p", { class: "ddx-note" });
    const file = h("input", {
      type: "file",
      accept: ".csv,text/csv,text/plain",
      class: "ddx-file",
      "aria-label": "CSV file of points",
      onchange: async () => {
        const [chosen] = file.files;
        if (!chosen) return;
        const name = `'${chosen.name}'`;
        try {
          if (chosen.size > 20e6) throw new Error("it is larger than 20 MB; take fewer points");
          const rows = parseCSV(await chosen.text());
          drawnStrokes = [];
          if (drawing) closeBoard();
          await fitOwn(rows, name);
        } catch (error) {
          problem("own", `${name} cannot be used: ${error.message}.`);
        }
        file.value = "";
      },
    });
    const boardButton = button("Draw a law", () => (drawing ? closeBoard() : openBoard()), { "aria-pressed": "false" });
    const ownLaw = h(
      "fieldset",
      {},
      h("legend", {}, "Your own law"),
      h(
        "div",
        { class: "ddx-row" },
        boardButton,
        button("Clear the drawing", clearBoard),
        h("label", { class: "ddx-upload" }, h("span", {}, "Import points (CSV)"), file),
        button("Export points (CSV)", exportPoints),
      ),
      ownStatus,
    );

    // take away
    const linkStatus = h("p", { class: "ddx-note", role: "status" });
    const outputs = h(
      "fieldset",
      {},
      h("legend", {}, "Take away"),
      h(
        "div",
        { class: "ddx-row" },
        button("Picture (PNG)", savePicture),
        button("Trajectories (CSV)", exportTrajectories),
        usesAddress ? button("Copy link to this view", copyLink) : null,
        button("Reset all", () => update({ ...initial, playing: false })),
      ),
      linkStatus,
    );

    function savePicture() {
      draw();
      canvas.toBlob((blob) => {
        if (blob) download("trajectories.png", blob);
        else problem("picture", "The browser could not make a PNG of a picture without size; widen the box.");
      });
    }
    function csvOf(rows) {
      return new Blob([rows.join("\n"), "\n"], { type: "text/csv" });
    }
    const AXES = ["x", "y", "z"];
    function exportTrajectories() {
      const done = sides()
        .map((side) => runs[side])
        .filter((run) => run.states.length);
      if (!done.length) return problem("export", "There is no trajectory to export yet; wait until one is computed.");
      clear("export");
      const axes = Array.from({ length: done[0].dim }, (_, d) => AXES[d] || `x${d + 1}`);
      const rows = [`side,step,t,alpha,sigma,point,${axes.join(",")}`];
      for (const run of done)
        run.states.forEach(({ t, x, alpha, sigma }, k) => {
          for (let i = 0; i < run.n; i++)
            rows.push(
              [run.side, k, t, alpha, sigma, i, ...x.subarray(i * run.dim, (i + 1) * run.dim)]
                .map((v) => (typeof v === "number" ? Number(v.toPrecision(7)) : v))
                .join(","),
            );
        });
      download("trajectories.csv", csvOf(rows));
    }
    function exportPoints() {
      const dim = ownPoints ? ownPoints[0].length : target.dim;
      if (!dim) return problem("export", "There are no points to export yet.");
      const rows = ownPoints || Array.from({ length: target.n }, (_, i) => [...target.points.subarray(i * dim, (i + 1) * dim)]);
      const lines = rows.map((row) => row.map((v) => Number(v.toPrecision(7))).join(","));
      download("points.csv", csvOf([Array.from({ length: dim }, (_, d) => AXES[d] || `x${d + 1}`).join(","), ...lines]));
    }
    async function copyLink() {
      const link = location.href.split("#")[0] + toAddress(state, initial);
      try {
        history.replaceState(history.state, "", toAddress(state, initial));
      } catch {
        /* no address of its own */
      }
      try {
        await navigator.clipboard.writeText(link);
        linkStatus.textContent = "The link is copied.";
      } catch {
        linkStatus.textContent = "The link stands in the address bar.";
      }
    }

    const caption = h("figcaption", { id: `${id}-caption`, class: "ddx-caption", "aria-live": "polite" });
    const announcer = h("p", { class: "ddx-hidden", "aria-live": "polite" });
    const say = (words) => (announcer.textContent = words);
    const keys = h(
      "p",
      { id: `${id}-keys`, class: "ddx-note" },
      "Keys on the picture: arrows turn or move it, + and − zoom, 0 shows all, Space plays, [ and ] step, N picks a point, Escape lets go. A click picks a point; with the picture in focus the wheel zooms.",
    );
    const about = h("p", { class: "ddx-note" });
    figure.append(playback, caption);

    root.append(
      ...[messages, guide, shared, figure, sidesNode, difference, overlays, ownLaw, outputs, keys, about, announcer].filter(
        Boolean,
      ),
    );

    function showControls() {
      const list = Object.entries(catalogue.laws).map(([key, spec]) => [key, titleOf(spec, key)]);
      if (state.mixture) list.push([OWN, "Your own law"]);
      lawSelect.fill(list);
      for (const side of SIDES) {
        const { family, stage, schedule, eta, variance, node } = sideParts[side];
        const networks = networksOf(state.law);
        const law = lawSpec();
        const exact = law && isExact(law);
        const families = [...new Set(networks.map(([key, spec]) => familyOf(spec, key)))];
        const wanted = JSON.stringify([families, exact]);
        if (family.dataset.list !== wanted) {
          family.dataset.list = wanted;
          family.replaceChildren(
            ...families.map((name) => h("option", { value: name }, name)),
            h("option", { value: "exact", disabled: !exact }, exact ? "Exact denoiser" : "Exact: this law has no density"),
          );
        }
        const key = state[`${side}_model`];
        const spec = catalogue.denoisers[key];
        const shownFamily = key === "exact" ? "exact" : spec ? familyOf(spec, key) : "";
        family.value = shownFamily;
        const members = networks.filter(([name, member]) => familyOf(member, name) === shownFamily);
        const stages = members.map(([name, member]) => [name, member.stage || "trained"]);
        const stageList = JSON.stringify(stages);
        if (stage.dataset.list !== stageList) {
          stage.dataset.list = stageList;
          stage.replaceChildren(
            ...(stages.length ? stages : [["exact", "needs none"]]).map(([value, words]) => h("option", { value }, words)),
          );
        }
        stage.value = key;
        stage.disabled = stages.length < 2;
        const free = key === "exact" || (spec && spec.parameterisation === "edm" && spec.type !== "remote");
        const beside = catalogue.denoisers[state[`${side === "a" ? "b" : "a"}_model`]];
        const ownName = spec && spec.schedule ? spec.schedule.title || spec.schedule.name || spec.schedule.kind : "";
        schedule.fill([
          ["own", key === "exact" ? (beside && beside.schedule ? "as the other side" : "default") : `as trained${ownName ? ` (${ownName})` : ""}`],
          ...Object.entries(catalogue.schedules).map(([name, item]) => [name, titleOf(item, name)]),
        ]);
        schedule.disabled = !free;
        schedule.title = free ? "" : "This network is told the time of its own schedule, so it cannot run on another.";
        eta.hidden = state[`${side}_solver`] !== "ddim";
        variance.hidden = state[`${side}_solver`] !== "ddpm";
        node.hidden = side === "b" && !state.compare;
      }
      for (const [key, show] of Object.entries(controls)) show(state[key]);
      picturesSelect.disabled = !state.compare;
      playButton.textContent = state.playing ? "Pause" : "Play";
      boardButton.textContent = drawing ? "Close the board" : "Draw a law";
      boardButton.setAttribute("aria-pressed", String(Boolean(drawing)));
      root.dataset.playing = String(state.playing);
    }

    function showTime() {
      if (slider.value !== String(state.progress)) slider.value = String(state.progress);
      const words = sides().map(timeWords);
      timeText.textContent = words.join(" · ");
      if (!state.playing) slider.setAttribute("aria-valuetext", words.join("; "));
    }

    const paired = () => {
      const [one, other] = SIDES.map((side) => runs[side]);
      return one.n === other.n && one.dim === other.dim && one.seed === other.seed;
    };
    function distance(one, other, x, y) {
      let [total, most] = [0, 0];
      let n = 0;
      for (let i = 0; i < one.n; i++) {
        let square = 0;
        for (let d = 0; d < one.dim; d++) square += (x[i * one.dim + d] - y[i * one.dim + d]) ** 2;
        const length = Math.sqrt(square);
        if (!Number.isFinite(length)) continue;
        total += length;
        n++;
        most = Math.max(most, length);
      }
      return [n ? total / n : NaN, most];
    }
    function endDifference() {
      if (!state.compare) return "";
      const [one, other] = SIDES.map((side) => runs[side]);
      if (!one.done || !other.done) return "";
      if (!paired()) return "The sides start from different noise: their points are not pairs.";
      const key = `${one.id} ${other.id}`;
      if (endDifference.key !== key) {
        const last = [one, other].map((run) => run.states[run.nSteps]);
        if (last.some((now) => !now)) return "";
        endDifference.value = distance(one, other, last[0].x, last[1].x);
        endDifference.key = key;
      }
      const [mean, most] = endDifference.value;
      return `From the same starting noise the end points of A and B lie ${format(mean)} apart on average, at most ${format(most)} (standard deviations of the data).`;
    }

    const rough = (value) => format(Number(value.toPrecision(2)));
    const floorTop = () => target.floor.floorMean + 2 * target.floor.floorSd;
    /** The energy distance of the shown points, and where it stands between real points and pure noise. */
    function energyWords(run) {
      if (run.energy === undefined || !target.floor) return "energy distance: being computed";
      const level = run.energy <= floorTop() ? ": level with real points" : run.energy > target.floor.ceiling ? ": worse than pure noise" : "";
      return `energy distance ${Number.isFinite(run.energy) ? rough(run.energy) : "not finite"}${level}`;
    }
    const bandWords = () =>
      target.floor ? `Real points read up to ${rough(floorTop())}, pure noise ${rough(target.floor.ceiling)}.` : "";

    function showNumbers() {
      for (const side of sides()) {
        const run = runs[side];
        const { terms, meter, needle, band, meterText } = sideParts[side];
        const k = shownStep(run);
        const now = run.states[k];
        const put = (key, words) => {
          if (terms[key].textContent !== words) terms[key].textContent = words;
        };
        put("step", now ? `${k} of ${run.nSteps}` : "–");
        put("t", now ? format(now.t) : "–");
        put("alpha_bar", now ? format(alphaBar(now)) : "–");
        put("level", now ? format(levelOf(now)) : "–");
        put("nfe", run.nfe === null || run.nfe === undefined ? "–" : count(run.nfe));
        put("ms", run.ms === null || run.ms === undefined ? (run.problem ? "–" : "…") : `${Math.round(run.ms)} ms`);
        const best = run.what && run.what.key === "exact";
        const known = run.what && isExact(run.what.law);
        put("error", best ? "0, it is exact" : !known ? "not known" : run.errorAt === undefined ? "…" : `${format(run.error)} sd`);
        const words = run.problem ? "" : `${energyWords(run)}. ${bandWords()}`;
        if (meterText.textContent !== words) meterText.textContent = words;
        if (target.floor && run.energy !== undefined) {
          const { ceiling } = target.floor;
          // the distance is a square: its root spreads the low end
          const share = (value) => clamp(Math.sqrt(Math.max(0, value) / Math.max(ceiling, 1e-12)), 0, 1);
          needle.style.left = `${100 * share(run.energy)}%`;
          band.style.width = `${100 * share(floorTop())}%`;
          meter.setAttribute("aria-valuenow", String(round(share(run.energy), 3)));
          meter.setAttribute("aria-valuetext", words);
        }
      }
      const words = endDifference();
      if (difference.textContent !== words) difference.textContent = words;
    }

    let describing = null;
    function describe() {
      if (describing) return;
      describing = setTimeout(() => {
        describing = null;
        if (!alive || state.playing) return;
        const law = lawSpec();
        const parts = [`${law ? titleOf(law, state.law) : "No law"}, ${count(state.n)} points in units of their noise level.`];
        for (const side of sides()) {
          const run = runs[side];
          if (run.problem) parts.push(`${side.toUpperCase()} cannot be shown: ${run.problem}.`.replace(/\.\.$/, "."));
          else if (run.what && run.states.length) {
            parts.push(`${headline(run)}; ${timeWords(side).slice(3)}; ${energyWords(run)}.`);
            if (run.outside) parts.push(`${count(run.outside)} of its points lie outside the picture.`);
          }
        }
        const shown = [
          state.target === "clean" && "green crosses: the data",
          state.target === "level" && "green crosses: the data at the same noise level",
          state.paths !== "off" && state.picked.length && `numbered: ${state.picked.length} picked points with their paths`,
          state.field !== "off" && (state.field === "field" ? "arrows: the denoiser's field" : "arrows: its error against the exact one"),
        ].filter(Boolean);
        if (shown.length) parts.push(`In the picture, ${shown.join("; ")}.`);
        if (bandWords()) parts.push(`By the energy distance, ${bandWords()[0].toLowerCase()}${bandWords().slice(1)}`);
        const end = endDifference();
        if (end) parts.push(end);
        const words = parts.join(" ");
        if (caption.textContent !== words) caption.textContent = words;
        const kernel = { wasm: "WebAssembly", js: "JavaScript" }[client.kernel] || client.kernel;
        about.textContent = kernel ? `Computed in this page, by ${kernel}.` : "Computed in this page.";
      }, 250);
    }

    let themed = false;
    function applyTheme() {
      themed = root.isConnected;
      colours = palette(el);
      for (const [name, value] of Object.entries(colours)) if (typeof value === "string") root.style.setProperty(`--ddx-${name}`, value);
      root.style.colorScheme = colours.dark ? "dark" : "light";
      root.dataset.theme = colours.dark ? "dark" : "light";
      fontFamily = getComputedStyle(root).fontFamily || "sans-serif";
      redraw();
    }

    // ------------------------------------------------------------ life

    el.append(root);
    applyTheme();
    if (typeof WebAssembly === "undefined")
      problem(
        "wasm",
        "This browser has no WebAssembly, so plain JavaScript computes: everything works, several times slower. Fewer points help.",
        false,
      );
    if (window.ResizeObserver) {
      const observer = new ResizeObserver(() => redraw());
      observer.observe(figure);
      undo.push(() => observer.disconnect());
    } else listen(window, "resize", redraw);
    if (window.MutationObserver) {
      // a page changes its theme by an attribute of its root or body; transitions of colour end a little later
      const changed = () => [0, 350].forEach((delay) => setTimeout(() => alive && applyTheme(), delay));
      const observer = new MutationObserver(changed);
      for (const node of [document.documentElement, document.body])
        if (node) observer.observe(node, { attributes: true, attributeFilter: ["class", "style", "data-theme", "data-mode", "data-jp-theme-light"] });
      undo.push(() => observer.disconnect());
      if (window.matchMedia) {
        const scheme = window.matchMedia("(prefers-color-scheme: dark)");
        if (scheme.addEventListener) listen(scheme, "change", changed);
      }
    }
    const unknown = readAddress();
    if (unknown && Object.keys(unknown).length) {
      const patch = completed(unknown);
      Object.assign(state, patch);
      for (const key of Object.keys(patch)) model.set(key, state[key]);
    }
    showControls();
    reference();
    sides().forEach(start);
    redraw();
    describe();

    const api = {
      get frames() {
        return frames;
      },
      /** Whether all that was asked for is computed and drawn. */
      get settled() {
        const over = (run) => run.problem || (run.done && !run.busy && !run.arrowsBusy && scored(run));
        const scored = (run) => !target.floor || target.dim !== run.dim || run.energyAt === `${target.id} ${shownStep(run)}`;
        const known = target.floor || target.problem || !lawSpec();
        return Boolean(!dirty && frame === null && describing === null && known && sides().every((side) => over(runs[side])));
      },
      state,
      runs,
      target,
      /** The target as it is drawn beside a side: clean, or with the noise of its level. */
      targetAt: (side) => targetAt(runs[side]),
      draw,
    };
    root.explorer = api; // for tests and for the curious
    return () => {
      alive = false;
      cancelAnimationFrame(frame);
      [saving, writing, describing].forEach(clearTimeout);
      undo.forEach((step) => step());
      client.close();
      root.remove();
    };
  }

  function render({ model, el }) {
    try {
      return mount(model, el);
    } catch (error) {
      const box = document.createElement("p");
      box.setAttribute("role", "alert");
      box.className = "ddx-fatal";
      box.style.cssText = "border: 2px solid; padding: 0.8em; margin: 0.5em 0";
      box.textContent = `The explorer cannot start: ${(error && error.message) || error}.`;
      el.replaceChildren(box);
      return () => box.remove();
    }
  }

  return { render };
})();

export default explorerView;

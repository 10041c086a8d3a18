// A pad to play on: two pictures, a mixing slider, a depth slider; frames come from one sprite, readings from a table.
// A plain script without imports: createPad(host, state) builds everything inside `host` and asks nothing from outside.
function createPad(host, state) {
  "use strict";
  const STYLE = `
    .pad { --pad-ink: var(--pst-color-text-base, CanvasText); --pad-line: var(--pst-color-border, GrayText);
      --pad-accent: var(--pst-color-primary, #0072b2); color: var(--pad-ink); display: grid; gap: 0.7rem;
      max-width: 44rem; margin: 0.5rem 0; font-size: 0.9rem; line-height: 1.4; }
    .pad * { box-sizing: border-box; }
    .pad fieldset { border: 1px solid var(--pad-line); border-radius: 6px; padding: 0.3rem 0.6rem 0.6rem; margin: 0; min-width: 0; }
    .pad legend { font-size: 0.9rem; font-weight: 600; padding: 0 0.3rem; width: auto; margin: 0; float: none; border: 0; }
    .pad-shirts { display: flex; flex-wrap: wrap; gap: 0.3rem; }
    .pad-shirts label { position: relative; cursor: pointer; margin: 0; line-height: 0; }
    .pad-shirts input { position: absolute; opacity: 0; width: 100%; height: 100%; margin: 0; cursor: pointer; }
    .pad-shirts canvas { border: 3px solid transparent; border-radius: 4px; }
    .pad-shirts input:checked + canvas { border-color: var(--pad-accent); }
    .pad-shirts input:focus-visible + canvas { outline: 3px solid var(--pad-ink); outline-offset: 1px; }
    .pad canvas { image-rendering: pixelated; background: #000; }
    .pad-stage { display: flex; flex-wrap: wrap; gap: 0.8rem; align-items: flex-end; justify-content: center; }
    .pad-stage figure { margin: 0; text-align: center; }
    .pad-stage figcaption { font-size: 0.85rem; margin: 0.2rem 0 0; font-variant-numeric: tabular-nums; text-align: center; }
    .pad-main canvas { width: 224px; height: 224px; }
    .pad-end canvas { width: 84px; height: 84px; }
    .pad-bar { position: relative; height: 0.9rem; border: 1px solid var(--pad-line); border-radius: 3px; margin-top: 0.3rem; }
    .pad-fill { position: absolute; inset: 0 auto 0 0; background: var(--pad-accent); border-radius: 2px; }
    .pad-mark { position: absolute; top: -3px; bottom: -3px; width: 2px; background: var(--pad-ink); }
    .pad-slider { display: grid; grid-template-columns: 9rem 1fr 5.5rem; gap: 0.6rem; align-items: center; margin: 0; }
    .pad-slider input, .pad-slider select { width: 100%; min-width: 0; margin: 0; accent-color: var(--pad-accent); font: inherit; }
    .pad-slider output { text-align: right; font-variant-numeric: tabular-nums; }
    @media (max-width: 32rem) { .pad-slider { grid-template-columns: 1fr 5.5rem; } .pad-slider span { grid-column: 1 / -1; } }`;
  const { size, columns, weights, ways, firsts, lasts } = state;
  const chosen = { first: 0, last: 0, way: state.start.way, depth: state.start.depth, weight: state.start.weight };

  function add(parent, name, attributes, text) {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    parent.appendChild(node);
    return node;
  }
  host.textContent = "";
  const pad = add(host, "div", { class: "pad" });
  add(pad, "style", {}, STYLE);

  // frames lie in the sprite row by row: first both groups of shirts, then way, depth, first, last, weight
  const sprite = new Image();
  function draw(canvas, index) {
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, size, size);
    context.drawImage(sprite, (index % columns) * size, Math.floor(index / columns) * size, size, size, 0, 0, size, size);
  }
  function tile(parent, label) {
    return add(parent, "canvas", { width: size, height: size, role: "img", "aria-label": label });
  }
  let offset = firsts.length + lasts.length;
  const offsets = ways.map((way) => {
    const start = offset;
    offset += way.depths.length * firsts.length * lasts.length * weights.length;
    return start;
  });
  function place() {
    const { first, last, depth, weight } = chosen;
    return ((depth * firsts.length + first) * lasts.length + last) * weights.length + weight;
  }

  const thumbnails = [];
  function shirts(title, key, group, shift) {
    const box = add(pad, "fieldset");
    add(box, "legend", {}, title);
    const row = add(box, "div", { class: "pad-shirts" });
    const name = "pad-" + key + "-" + Math.random().toString(36).slice(2);
    group.forEach((reading, k) => {
      const label = add(row, "label");
      const words = `${title} ${k + 1}, sleeve length ${reading.toFixed(2)}`;
      const input = add(label, "input", { type: "radio", name, value: k, "aria-label": words });
      input.checked = k === chosen[key];
      input.addEventListener("change", () => { chosen[key] = k; show(); });
      const canvas = add(label, "canvas", { width: size, height: size, "aria-hidden": "true" });
      canvas.style.width = canvas.style.height = "52px";
      thumbnails.push([canvas, shift + k]);
    });
  }
  shirts(state.titles[0], "first", firsts, 0);
  shirts(state.titles[1], "last", lasts, firsts.length);

  const stage = add(pad, "div", { class: "pad-stage" });
  function figure(kind) {
    const node = add(stage, "figure", { class: kind });
    return [tile(node, ""), add(node, "figcaption")];
  }
  const [left, leftText] = figure("pad-end");
  const middle = add(stage, "figure", { class: "pad-main" });
  const main = tile(middle, "");
  const caption = add(middle, "figcaption");
  const reading = add(caption, "div", { class: "pad-reading", "aria-live": "polite" });
  const bar = add(caption, "div", { class: "pad-bar", "aria-hidden": "true" });
  const fill = add(bar, "div", { class: "pad-fill" });
  const mark = add(bar, "div", { class: "pad-mark" });
  const [right, rightText] = figure("pad-end");

  function control(words, node) {
    const label = add(pad, "label", { class: "pad-slider" });
    add(label, "span", {}, words);
    label.appendChild(node);
    return [node, add(label, "output")];
  }
  function slider(words, key, max) {
    const input = document.createElement("input");
    for (const [name, value] of Object.entries({ type: "range", min: 0, max, step: 1 })) input.setAttribute(name, value);
    input.value = chosen[key];
    input.className = "pad-" + key;
    input.addEventListener("input", () => { chosen[key] = Number(input.value); show(); });
    return control(words, input);
  }
  const [mixing, mixingText] = slider("Mix", "weight", weights.length - 1);
  const [depths, depthText] = slider("Depth (noise level)", "depth", ways[chosen.way].depths.length - 1);
  const select = document.createElement("select");
  select.className = "pad-way";
  ways.forEach((way, k) => { add(select, "option", { value: k }, way.title); });
  select.value = chosen.way;
  select.addEventListener("change", () => {
    const level = ways[chosen.way].depths[chosen.depth];
    chosen.way = Number(select.value);
    const known = ways[chosen.way].depths, distance = known.map((d) => Math.abs(Math.log((d + 1e-3) / (level + 1e-3))));
    chosen.depth = distance.indexOf(Math.min(...distance));
    depths.max = known.length - 1;
    depths.value = chosen.depth;
    show();
  });
  if (ways.length > 1) control("Way", select);

  function show() {
    const way = ways[chosen.way], at = place(), w = weights[chosen.weight];
    draw(left, chosen.first);
    draw(right, firsts.length + chosen.last);
    draw(main, offsets[chosen.way] + at);
    const length = way.readings[at], ghost = way.ghosts[at];
    const wanted = (1 - w) * firsts[chosen.first] + w * lasts[chosen.last];
    reading.textContent = `sleeve length ${length.toFixed(2)} (asked ${wanted.toFixed(2)}), ` +
      (ghost === null ? "no sleeves" : `ghost index ${ghost.toFixed(2)}`);
    fill.style.width = 100 * Math.min(1, length) + "%";
    mark.style.left = 100 * Math.min(1, wanted) + "%";
    main.setAttribute("aria-label", `frame ${chosen.weight + 1} of ${weights.length}, sleeve length ${length.toFixed(2)}`);
    [[left, leftText, firsts[chosen.first]], [right, rightText, lasts[chosen.last]]].forEach(([canvas, text, value]) => {
      text.textContent = value.toFixed(2);
      canvas.setAttribute("aria-label", "end, sleeve length " + value.toFixed(2));
    });
    mixingText.textContent = w.toFixed(2);
    mixing.setAttribute("aria-valuetext", "mix " + w.toFixed(2));
    depthText.textContent = way.depths[chosen.depth] ? String(way.depths[chosen.depth]) : "none";
    depths.setAttribute("aria-valuetext", "noise level " + depthText.textContent);
    depths.disabled = way.depths.length < 2;
  }
  sprite.addEventListener("load", () => {
    thumbnails.forEach(([canvas, index]) => draw(canvas, index));
    show();
    pad.setAttribute("data-ready", "true");
  });
  sprite.addEventListener("error", () => { pad.textContent = "The pad cannot start: its pictures cannot be read. Build the page again."; });
  sprite.src = state.sprite;
}

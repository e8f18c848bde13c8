// The page's sections, each from its part of the data; one that has none is taken away.
const page = JSON.parse(document.getElementById("data").textContent);
const section = (id) => document.getElementById(id);

// ---- attention ----

// A head's attention as a view: over a text all queries and keys, over an image what one query sees of the patches.
function headView(map, maps, layer, head, query, entry) {
  const number = layer * map.heads + head, high = maps.high[number];
  const named = `layer ${map.layers[layer]}, ${map.grid && head === map.heads - 1 ? "rollout" : `head ${head}`}`;
  const shared = { scale: map.grid ? "heat" : "map", curve: 0.5, ends: ["0 %", percent(high)], title: named };
  if (!map.grid) {
    const [rows, columns] = [map.queries.length, map.keys.length];
    return { ...shared, rows, columns, names: map.names, share: (row, column) => maps.share(number, row, column),
      describe: (row, column) => `${named}: “${map.queries[row]}” looks at “${map.keys[column]}”: `
        + percent(maps.value(number, row, column)) };
  }
  const side = map.grid, first = maps.columns - side * side, key = (row, column) => first + row * side + column;
  const patch = (place) => `the patch in row ${Math.floor(place / side)}, column ${place % side}`;
  const value = (row, column) => percent(maps.value(number, query, key(row, column)));
  const chosen = query ? map.queries[query - 1] : null;
  // The scale is the query's own: what is pooled and single patches see very unevenly.
  const shares = maps.bytes.subarray((number * maps.rows + query) * maps.columns + first).subarray(0, side * side);
  const most = shares.reduce((one, other) => Math.max(one, other)) || 1;
  const from = chosen === null ? `the ${map.pooled}` : patch(chosen);
  return { ...shared, rows: side, columns: side, picture: entry.image, ends: ["0 %", percent((high * most) / 255)],
    chosen: chosen === null ? null : [Math.floor(chosen / side), chosen % side],
    share: (row, column) => (255 * maps.share(number, query, key(row, column))) / most,
    describe: (row, column) => `${named}: ${from} looks at ${patch(row * side + column)}: ${value(row, column)}` };
}

function attention() {
  const isImage = page.family === "vit";
  section("attention-lead").textContent = isImage
    ? "Choose a head: the map shows where it looks from one place of the image. Click a patch to look from there."
    : "Choose a head: each row of the map says how its token spreads its attention over the tokens of the columns.";
  let entry, map, maps, layer, head, query;
  const view = (...place) => headView(map, maps, ...place, query, entry);
  const hint = "Point at the map, or move over it with the arrow keys, to read a value.";
  const large = new LargeMap(hint, isImage && lookFrom);
  const kinds = make("div"), caption = make("p", { class: "caption" }), note = make("p", { class: "note" });
  const whole = make("img", { class: "whole", alt: "the image" });
  const heads = make("div", { class: "heads", role: "group", "aria-label": "layers and heads" });
  const pooled = make("button", { type: "button", onclick: () => look(0) });

  function choose(newLayer, newHead) {
    [layer, head] = [newLayer, newHead];
    for (const button of heads.querySelectorAll("button")) {
      const chosen = +button.dataset.layer === layer && +button.dataset.head === head;
      button.setAttribute("aria-pressed", chosen);
      button.tabIndex = chosen ? 0 : -1;
    }
    large.show(view(layer, head));
  }
  function look(newQuery) {
    query = newQuery;
    for (const button of heads.querySelectorAll("button")) {
      paint(button.firstChild, view(+button.dataset.layer, +button.dataset.head));
    }
    pooled.hidden = query === 0;
    choose(layer, head);
  }
  // Not every patch is a query where they are many: the nearest one is taken.
  function lookFrom(row, column) {
    const far = (place) => Math.hypot(Math.floor(place / map.grid) - row, (place % map.grid) - column);
    look(map.queries.indexOf(map.queries.reduce((one, other) => (far(other) < far(one) ? other : one))) + 1);
  }
  function showMap(newMap) {
    map = newMap;
    maps = new Maps(map.maps);
    map.heads = maps.count / map.layers.length;
    map.names ??= map.grid ? null : [map.queries, map.keys];
    const names = Array.from({ length: map.heads }, (_, n) => (map.grid && n === map.heads - 1 ? "rollout" : `${n}`));
    heads.style.cssText = `--heads: ${map.heads}; --shape: ${map.grid ? 1 : map.keys.length / map.queries.length}`;
    heads.replaceChildren(make("span", {}, "head"), ...names.map((name) => make("span", {}, name)));
    map.layers.forEach((number, row) => heads.append(make("span", {}, `layer ${number}`), ...names.map((name, column) =>
      make("button", { type: "button", "data-layer": row, "data-head": column, onclick: () => choose(row, column),
        "aria-label": `layer ${number}, ${name === "rollout" ? name : `head ${name}`}` }, make("canvas")))));
    note.textContent = map.note ?? "";
    pooled.textContent = `Look from the ${map.pooled}`;
    [layer, head] = [clamp(layer ?? map.layers.length, map.layers.length), clamp(head ?? 0, map.heads)];
    look(0);
  }
  function showEntry(number) {
    entry = page.inputs[number];
    caption.textContent = entry.caption ?? "";
    whole.hidden = !entry.image;
    if (entry.image) whole.src = entry.image;
    kinds.hidden = entry.maps.length === 1;
    const names = entry.maps.map(({ name, title }) => `${name}: ${title}`);
    kinds.replaceChildren(choices("attention", names, (kind) => showMap(entry.maps[kind])));
    showMap(entry.maps[0]);
  }
  heads.addEventListener("keydown", (event) => {
    const step = ARROWS[event.key];
    if (!step) return;
    event.preventDefault();
    choose(clamp(layer + step[0], map.layers.length), clamp(head + step[1], map.heads));
    heads.querySelector('[aria-pressed="true"]').focus();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => look(query));
  section("attention").append(
    choices("input", page.inputs.map(({ title }) => title), showEntry), kinds, caption,
    make("div", { class: "explorer" }, make("div", {}, make("div", { class: "scroll" }, heads), note, whole),
      make("div", {}, large.box, make("div", { class: "chips" }, pooled))));
  showEntry(0);
}

// ---- masked words and patches ----

// A table of names, each with a share from 0 to 1 as a bar, and its text; the right name is set off.
function bars(title, rows, right) {
  const bar = (share) => make("div", { class: "bar", style: `width: ${100 * Math.max(share, 0)}%` });
  return make("table", {}, make("caption", {}, title), ...rows.map(([name, share, text]) =>
    make("tr", { class: name === right && "right" }, make("td", {}, name), make("td", {}, bar(share)),
      make("td", {}, text))));
}

function masked() {
  const box = section("masked");
  if (page.unmasked) return box.append(make("p", {}, page.unmasked));
  if (page.masked) {
    box.append(make("p", {}, page.target));
    const named = (sources) => ["image", "what is seen", "with what is predicted"].map((name, n) =>
      make("figure", {}, make("img", { src: sources[n], alt: name }), make("figcaption", {}, name)));
    return box.append(make("div", { class: "gallery" }, ...page.masked.flatMap(named)));
  }
  box.append(make("p", {}, "Each word was masked in turn, with all of its tokens. The stronger the line below a word, "
    + "the more probable the model finds it in its place. Choose a word for what the model would put there."));
  const predictions = make("div", { class: "predictions", "aria-live": "polite" });
  const buttons = page.inputs.map((entry) => entry.words.map(({ tokens }) => {
    const text = tokens.map(({ label }, n) => (n ? label.replace(/^##/, "") : label.replace(/^_(?=.)/, ""))).join("");
    if (!tokens[0].predicted) return make("span", {}, text);
    const own = Math.min(...tokens.map((token) => token.own));
    return make("button", { type: "button", "aria-pressed": "false", "data-own": own, style: `--own: ${100 * own}%`,
      onclick: (event) => {
        box.querySelector('[aria-pressed="true"]')?.setAttribute("aria-pressed", "false");
        event.currentTarget.setAttribute("aria-pressed", "true");
        predictions.replaceChildren(...tokens.map(({ label, own, predicted }) => bars(
          `in place of ${label} (${percent(own)})`,
          predicted.map(([name, share]) => [name, share, percent(share)]), label)));
      } }, text);
  }));
  box.append(...buttons.map((words) => make("div", { class: "words" }, ...words)), predictions);
  const own = (button) => +button.dataset.own * (/\p{L}{3}/u.test(button.textContent) ? 1 : 0.001);
  [...box.querySelectorAll(".words button")].sort((one, other) => own(other) - own(one))[0]?.click();
}

// ---- tokens ----

function tokenTable({ title, labels, dimensions, bytes, reduction, examples }) {
  const values = new Int8Array(bytesOf(bytes).buffer);
  const numbers = new Map(labels.map((label, number) => [label, number]));
  const row = (number) => values.subarray(number * dimensions, (number + 1) * dimensions);
  const lengths = labels.map((_, number) => Math.hypot(...row(number)) || 1); // padding's row is 0
  const find = (word) => [word, `_${word}`, word.toLowerCase(), `_${word.toLowerCase()}`]
    .find((name) => numbers.has(name));

  // The ten rows with the largest cosines to the sum of unit rows, [sign, number] each; these are left out.
  function nearest(terms) {
    const sum = new Float64Array(dimensions);
    for (const [sign, number] of terms) row(number).forEach((x, d) => (sum[d] += (sign * x) / lengths[number]));
    const length = Math.hypot(...sum) || 1, own = new Set(terms.map(([, number]) => number));
    const product = (number) => row(number).reduce((total, x, d) => total + x * sum[d], 0);
    const cosines = labels.map((_, number) => product(number) / lengths[number] / length);
    return [...cosines.keys()].filter((n) => !own.has(n)).sort((one, other) => cosines[other] - cosines[one])
      .slice(0, 10).map((n) => [labels[n], cosines[n]]);
  }
  function answer(text) {
    let sign = 1;
    const terms = [];
    for (const word of text.trim().split(/\s+/)) {
      if (terms.length && /^[-−+]$/.test(word)) sign = word === "+" ? 1 : -1;
      else if (find(word) === undefined) {
        const alike = labels.filter((label) => label.replace("_", "").startsWith(word.slice(0, 3))).slice(0, 8);
        const others = alike.length ? ` There are: ${alike.join(", ")}.` : "";
        return make("p", {}, `“${word}” is no single token of this table.${others}`);
      } else {
        terms.push([sign, numbers.get(find(word))]);
        sign = 1;
      }
    }
    const sum = terms.map(([sign, number], place) => (sign < 0 ? "− " : place ? "+ " : "") + labels[number]);
    const rows = nearest(terms).map(([name, cosine]) => [name, cosine, cosine.toFixed(3)]);
    return bars(`cosines to ${sum.join(" ")}`, rows);
  }
  const results = make("div", { class: "results", "aria-live": "polite" });
  const show = () => results.replaceChildren(input.value.trim() ? answer(input.value) : "");
  const input = make("input", { type: "text", "aria-label": `a word, or a - b + c, of the ${title}`, spellcheck: "false",
    autocomplete: "off", autocapitalize: "off", value: examples[0] ?? "", oninput: show });
  const chips = examples.map((text) => make("button", { type: "button", onclick: () => {
    input.value = text;
    show();
  } }, text));
  show();
  const size = `${labels.length.toLocaleString("en")} ${title}, ${dimensions} dimensions in one byte each`;
  return make("div", {}, make("h3", {}, title), input, make("div", { class: "chips" }, ...chips), results,
    make("p", { class: "note" }, `${size}${reduction ? `: ${reduction}` : ""}.`));
}

// ---- positions, kernels ----

function similarities({ title, grid, every, maps: packed }) {
  const maps = new Maps(packed), count = maps.rows;
  const near = (one, other) => (one === other ? "1 (it is the same)" : maps.value(0, one, other).toFixed(3));
  const shared = { scale: "map", curve: 1, ends: [maps.low[0].toFixed(2), maps.high[0].toFixed(2)], title };
  const large = new LargeMap("Point at the map to read a cosine.", grid && show);
  function show(down, across) {
    const from = down * grid + across;
    large.show({ ...shared, rows: grid, columns: grid, chosen: [down, across],
      share: (row, column) => maps.share(0, from, row * grid + column),
      describe: (row, column) =>
        `row ${down}, column ${across} and row ${row}, column ${column}: ${near(from, row * grid + column)}` });
  }
  if (grid) show(Math.floor(grid / 2), Math.floor(grid / 2));
  else large.show({ ...shared, rows: count, columns: count, share: (row, column) => maps.share(0, row, column),
    describe: (row, column) => `positions ${row * every} and ${column * every}: ${near(row, column)}` });
  return make("div", {}, make("h3", {}, title), large.box);
}

attention();
masked();
if (page.tables) section("tokens").append(make("div", { class: "side" }, ...page.tables.map(tokenTable)));
else section("tokens").remove();
section("positions-lead").textContent = page.family === "vit"
  ? "How alike the marked patch's position is to every other's: the cosine of their embeddings. Click another patch."
  : "How alike two positions are: the cosine of their embeddings."
    + (page.positions[0].every > 1 ? ` One position in ${page.positions[0].every} is shown.` : "");
section("positions").append(make("div", { class: "side" }, ...page.positions.map(similarities)));
if (page.kernels) section("kernels").append(make("div", { class: "tiles" }, ...page.kernels.map(({ image, share }) =>
  make("figure", {}, make("img", { src: image, alt: `component of ${percent(share)} of the variance` }),
    make("figcaption", {}, percent(share))))));
else section("kernels").remove();
document.querySelector("main").hidden = false; // all at once: nothing that is read moves

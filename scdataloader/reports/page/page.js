// Sections of the page, made from the contents of the report.
"use strict";
const Page = (() => {
  const { el, figure, table, lines, decades, histogram, ranges, heatmap, number, percent, plural } = Charts;
  const data = JSON.parse(document.getElementById("contents").textContent);
  const section = (id, title, ...content) =>
    document.getElementById("sections").append(el("section", { id, "aria-labelledby": `${id}-title` }, el("h2", { id: `${id}-title` }, title), ...content));
  const paragraph = (...content) => el("p", {}, ...content);
  const leftOut = (n, cells, what) => (n ? `${number(n)} more ${what} with ${number(cells)} cells are not listed.` : "");

  function summary() {
    section("summary", "Data", el("dl", {}, ...data.summary.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])));
  }

  function sources() {
    const { columns, rows, n_left_out: n, cells_left_out: cells } = data.sources;
    const place = columns.indexOf("cells");
    const most = Math.max(...rows.map((row) => row[place]));
    const shown = columns.map((title, at) => ({ title, value: (row) => (at === place ? number(row[at]) : row[at]), bar: at === place ? (row) => row[at] / most : null }));
    section("sources", "Cells per source", table("", shown, rows), paragraph(leftOut(n, cells, "sources")));
  }

  const PARTS = [["train", "training", "first"], ["val", "validation", "second"], ["test", "test", "third"]];
  function labels() {
    const charts = data.labels.map((labelled) => {
      const rows = labelled.names.map((name, place) => ({ name, place }));
      const most = Math.max(...labelled.cells.all);
      const used = PARTS.filter(([part]) => labelled.cells[part].some((n) => n));
      const columns = [
        { title: labelled.column, value: (row) => row.name },
        { title: "cells", value: (row) => number(labelled.cells.all[row.place]), bar: (row) => labelled.cells.all[row.place] / most },
        ...(used.length > 1 ? used.map(([part, title]) => ({ title, value: (row) => labelled.cells[part][row.place] })) : []),
      ];
      const unknown = labelled.unknown ? `${number(labelled.unknown)} cells are of unknown label. ` : "";
      return figure(labelled.column, plural(labelled.names.length + labelled.n_left_out, "label"), table("", columns, rows, 12),
        paragraph(unknown + leftOut(labelled.n_left_out, labelled.cells_left_out, "labels")));
    });
    section("labels", "Cells per label and organism", el("div", { class: "columns" }, ...charts));
  }

  // ------------------------------------------------------------------------------------------------------- weights

  function control(name, input, output) {
    return el("label", {}, `${name} `, input, output ? el("output", {}) : null);
  }

  function weights() {
    const classes = data.classes;
    if (!classes) {
      section("weights", "Class weights", paragraph("The plan draws all cells alike, or does not describe its classes. Name columns in by, as in --by cell_type, to weight classes."), measured());
      return () => {};
    }
    const top = Math.log10(Math.max(10, classes.sizes[0])) + 1;
    const scheme = el("select", { id: "scheme" }, ...[...(classes.scheme ? [] : ["as configured"]), "natural", "uniform", "power", "saturating", ...(classes.tree ? ["tree"] : [])].map((name) => el("option", {}, name)));
    const tau = el("input", { type: "range", id: "tau", min: 0, max: 1, step: 0.01, value: classes.tau });
    const saturation = el("input", { type: "range", id: "saturation", min: 0, max: top.toFixed(2), step: 0.01, value: Math.log10(classes.saturation).toFixed(2) });
    const draws = el("input", { type: "number", id: "draws", min: 1, step: 1, value: classes.num_samples });
    const replacement = el("input", { type: "checkbox", id: "replacement", checked: classes.replacement });
    const controls = [control("Scheme", scheme), control("τ of power", tau, true), control("s of saturating, in cells", saturation, true), control("Draws per epoch", draws), control("With replacement", replacement)];
    const out = el("div", { id: "shares", "aria-live": "polite" });
    const followers = [];
    const update = () => {
      const how = { scheme: scheme.value, tau: Number(tau.value), saturation: 10 ** Number(saturation.value), unknown: classes.unknown_share };
      controls[1].querySelector("output").textContent = how.tau.toFixed(2);
      controls[2].querySelector("output").textContent = number(Math.round(how.saturation));
      const target = sharesOf(classes, how);
      out.replaceChildren(...pictured(classes, target, Math.max(1, Number(draws.value) || 1), replacement.checked));
      followers.forEach((follow) => follow(target));
    };
    scheme.value = classes.scheme || "as configured";
    tau.addEventListener("input", () => { scheme.value = "power"; });
    saturation.addEventListener("input", () => { scheme.value = "saturating"; });
    [scheme, tau, saturation, draws, replacement].forEach((input) => input.addEventListener("input", update));
    const unknown = classes.unknown ? `${number(classes.unknown)} cells of unknown label get ${percent(classes.unknown_share)} of the draws. ` : "";
    section("weights", "Class weights",
      paragraph(`${number(summed(classes.times))} classes${classes.columns.length ? ` by ${classes.columns.join(", ")}` : ""}; configured: ${classes.plan}, after any curriculum. ${unknown}Change the scheme or its parameter to see the shares that follow.`),
      el("form", { class: "controls" }, ...controls), out, measured());
    document.querySelector("#weights form").addEventListener("submit", (event) => event.preventDefault());
    update();
    return (follow) => { followers.push(follow); update(); };
  }

  const summed = (values, times) => values.reduce((sum, value, place) => sum + value * (times ? times[place] : 1), 0);
  const least = (shares) => shares.reduce((low, share) => (share > 0 && share < low ? share : low), 1);

  function sharesOf(classes, how) {
    if (how.scheme === "as configured") return classes.target;
    if (how.scheme === "tree") return classes.tree.map((share) => share * (1 - how.unknown));
    return Formulas.shares(classes.sizes, classes.times, how);
  }

  function pictured(classes, target, n, replacement) {
    const { sizes, times } = classes;
    const even = classes.even ? [...classes.even, 1] : null;
    const epoch = Formulas.epoch([...sizes, classes.unknown], [...times, 1], [...target, classes.unknown_share], n, replacement, even);
    const total = summed(sizes, times);
    const natural = sizes.map((c) => c / total);
    const low = Math.min(0.1, least(natural), least(target));
    const height = (share) => (share > 0 ? 1 - Math.log10(share) / Math.log10(low) : 0);
    const n_classes = summed(times);
    const step = Math.ceil(sizes.length / 400);
    let rank = 0;
    const ranks = times.map((several) => (rank += several) - several); // of the first class of each group
    const points = (shares) => shares.map((share, place) => [ranks[place] / Math.max(1, n_classes - 1), height(share)]).filter((_, place) => place % step === 0 || place === shares.length - 1);
    const most = Math.max(...natural.slice(0, 1000), ...target.slice(0, 1000));
    const rows = classes.names.map((name, place) => ({ name, place }));
    const [repeats, effective] = ["repeated", "effective"].map((name) => epoch[name]);
    return [
      el("dl", { class: "numbers" },
        el("dt", {}, "effective sample size"), el("dd", { id: "effective" }, `${number(Math.round(effective))} cells`),
        el("dt", {}, "repeated draws in an epoch"), el("dd", { id: "repeated" }, `${classes.even ? "at least " : ""}${percent(repeats)}`)),
      figure("Share of the draws by rank of the class", "classes from most to fewest cells; logarithmic share",
        lines("Share of the draws of each class, natural and target", { title: "class, by number of cells", ticks: [[0, "1"], [1, number(n_classes)]] },
          { title: "share", ticks: decades(low, 1, (share) => percent(share)) },
          [{ name: "natural (share of the cells)", kind: "first", points: points(natural) }, { name: "target (share of the draws)", kind: "second", points: points(target) }])),
      table("Largest classes", [
        { title: "class", value: (row) => row.name },
        { title: "cells", value: (row) => classes.sizes[row.place] },
        { title: "natural share", value: (row) => percent(natural[row.place]), bar: (row) => natural[row.place] / most },
        { title: "target share", value: (row) => percent(target[row.place]), bar: (row) => target[row.place] / most, kind: "second" },
        { title: "draws per cell and epoch", value: (row) => (classes.sizes[row.place] ? (n * target[row.place]) / classes.sizes[row.place] : 0) },
      ], rows, 20),
      paragraph(leftOut(n_classes - rows.length, total - summed(sizes.slice(0, rows.length)), "classes")),
    ];
  }

  function measured() {
    const { num_samples: n, n_draws: drawn, repeated, effective } = data.epoch;
    const part = drawn < n ? `the first ${number(drawn)} of ` : "";
    return paragraph(`Measured on ${part}${number(n)} draws of an epoch as configured: ${percent(repeated)} repeated, ${number(Math.round(effective))} effective cells.`);
  }

  // ---------------------------------------------------------------------------------------------------------- tree

  function tree(follow) {
    const found = data.classes && data.classes.terms;
    if (!found) return;
    const n = found.ids.length;
    const ofRows = (values) => {
      const own = new Array(n).fill(0);
      data.classes.row.forEach((row, place) => { own[row] += values[place] * data.classes.times[place]; });
      return Formulas.withBelow(own, found.levels).sums;
    };
    const cells = ofRows(data.classes.sizes);
    const { parents } = Formulas.withBelow(cells, found.levels);
    const children = new Map();
    parents.forEach((parent, row) => children.set(parent, [...(children.get(parent) || []), row]));
    const open = new Set(children.get(-1));
    const list = el("div", { role: "list", "aria-label": found.title });
    const path = el("nav", { "aria-label": "Terms above" });
    let root = -1;
    let shares = ofRows(data.classes.target);
    const total = cells.reduce((sum, c, row) => sum + (parents[row] < 0 ? c : 0), 0) || 1;

    function item(row, level) {
      const below = children.get(row) || [];
      const toggle = below.length
        ? el("button", { type: "button", class: "toggle", "aria-expanded": String(open.has(row)), "aria-label": `terms below ${found.names[row]}`, onclick: () => { if (!open.delete(row)) open.add(row); draw(); } }, open.has(row) ? "▾" : "▸")
        : el("span", { class: "toggle" }, "");
      const zoom = below.length ? el("button", { type: "button", class: "zoom", title: "show only this term and those below it", onclick: () => { root = row; open.add(row); draw(); } }, "zoom") : null;
      const scale = root < 0 ? 1 : Math.max(cells[root] / total, shares[root]) || 1;
      const bar = (share, kind) => el("span", { class: "bar" }, el("span", { class: `fill ${kind}`, style: `width:${Math.min(100, (100 * share) / scale).toFixed(2)}%` }), el("span", { class: "value" }, percent(share)));
      const line = el("div", { role: "listitem", class: "term", style: `padding-left:${level}em` },
        toggle, el("span", { class: "name" }, `${found.names[row]} `, el("small", {}, found.ids[row])), zoom, el("span", { class: "count" }, number(cells[row])), bar(cells[row] / total, "first"), bar(shares[row], "second"));
      return [line, ...(open.has(row) ? below.flatMap((child) => item(child, level + 1)) : [])];
    }
    function draw() {
      const above = [];
      for (let row = root; row >= 0; row = parents[row]) above.unshift(row);
      path.replaceChildren(...[-1, ...above].map((row) => el("button", { type: "button", disabled: row === root, onclick: () => { root = row; draw(); } }, row < 0 ? "all terms" : found.names[row])));
      list.replaceChildren(...(root < 0 ? children.get(-1) : [root]).flatMap((row) => item(row, 0)));
    }
    section("tree", "Ontology", paragraph(`${found.title}: cells, their share, and the share of the draws of each term together with all terms below it. A term with several parents is placed below one of them.`),
      el("p", { class: "legend" }, el("span", { class: "key first" }), " share of the cells ", el("span", { class: "key second" }), " share of the draws"), path, list);
    draw();
    follow((target) => { shares = ofRows(target); draw(); });
  }

  // --------------------------------------------------------------------------------------------- genes, sizes, leaks

  function genes() {
    const { names, n_sources: several, n_lists: n, shared } = data.genes;
    const titles = names.map((name, place) => (several[place] > 1 ? `${name} and ${several[place] - 1} more` : name));
    const either = (row, column) => shared[row][row] + shared[column][column] - shared[row][column];
    if (n === 1) {
      section("genes", "Genes that sources share", paragraph(`All sources have the same ${number(shared[0][0])} genes of the vocabulary.`));
      return;
    }
    const sampled = n > names.length ? ` Of ${number(n)} different lists of genes, the ${names.length} of most cells are shown.` : "";
    section("genes", "Genes that sources share",
      figure("Shared genes", `as a share of the genes that either has (Jaccard); sources with the same genes are one row; similar lists are neighbours.${sampled}`,
        heatmap("Shared genes of each two lists of genes", titles, (row, column) => shared[row][column] / (either(row, column) || 1),
          (row, column) => `${titles[row]} (${number(shared[row][row])} genes) and ${titles[column]} (${number(shared[column][column])}): ${number(shared[row][column])} shared`)));
  }

  function sizes() {
    const { names, n_cells: n, n_sources: all } = data.sizes;
    const total = n.reduce((sum, some) => sum + some, 0);
    const choice = el("select", { id: "source" }, el("option", { value: -1 }, "all sources shown"), ...names.map((name, place) => el("option", { value: place }, name)));
    const out = el("div", { class: "columns" });
    const draw = () => {
      const place = Number(choice.value);
      const counts = (measure) => (place < 0 ? measure.histograms.reduce((sum, some) => sum.map((count, bin) => count + some[bin])) : measure.histograms[place]);
      out.replaceChildren(...[["counts", "counts per cell"], ["genes", "genes per cell, of the vocabulary"]].map(([key, title]) =>
        figure(title, "", histogram(title, `${title} (logarithmic)`, "sampled cells", counts(data.sizes[key]), data.sizes[key].top))));
    };
    choice.addEventListener("input", draw);
    draw();
    const strips = [["counts", "counts per cell"], ["genes", "genes per cell, of the vocabulary"]].map(([key, title]) => {
      const order = names.map((_, place) => place).sort((a, b) => data.sizes[key].quantiles[b][2] - data.sizes[key].quantiles[a][2]);
      return figure(`${title} by source`, "range of 90 % of the cells, of half of them, and the median", ranges(`${title} by source`, `${title} (logarithmic)`, order.map((place) => names[place]), order.map((place) => data.sizes[key].quantiles[place]), data.sizes[key].top));
    });
    const sampled = all > names.length ? ` of the ${names.length} sources of most cells, out of ${number(all)}` : "";
    section("sizes", "Counts and genes per cell", paragraph(`A sample of ${number(total)} cells${sampled}, at even distances.`), el("form", { class: "controls" }, control("Source", choice)), out, el("div", { class: "columns" }, ...strips));
  }

  function leaks() {
    const found = data.leaks;
    if (!found) {
      section("leaks", "Leaks between splits", paragraph("All cells train: there is no split. Name one, as in --split val=0.1 by=donor_id."));
      return;
    }
    const told = (part) => (part.of_cells ? `${number(part.shared)} of ${number(part.groups)} (${number(part.cells)} cells)` : "no cells");
    const isLeak = (row) => row.val.shared + row.test.shared > 0;
    const columns = [
      { title: "column", value: (row) => row.column + (row.column === found.by ? " (split by this)" : "") },
      { title: "groups", value: (row) => row.n_groups },
      { title: "of validation, also in training", value: (row) => told(row.val) },
      { title: "of test, also in training", value: (row) => told(row.test) },
      { title: "", value: (row) => (isLeak(row) ? "⚠ shared" : "✓ separate") },
    ];
    const { cells } = found;
    const limit = cells && cells.n_compared < cells.n_pairs ? ` Only ${number(cells.n_compared)} of ${number(cells.n_pairs)} pairs of the same name were compared.` : "";
    const same = cells
      ? `Of ${number(cells.sampled)} of the ${number(cells.of)} validation and test cells, ${number(cells.same)} are also training cells, with the same name and the same counts${cells.same ? ": ⚠ leak" : ""}.${limit}`
      : "Cells have no names, so the same cell is not looked for in training.";
    const copies = found.not_primary ? `⚠ ${number(found.not_primary)} cells are marked as copies of cells of other datasets (is_primary_data is false); select others with --where is_primary_data=true.` : "";
    section("leaks", "Leaks between splits", paragraph(same), copies ? paragraph(copies) : "", table("Groups, such as donors, in both training and validation or test", columns, found.groups),
      paragraph("Groups of one name in several sources count as one."));
  }

  function run() {
    const found = data.run;
    if (!found) return;
    const x = { title: "epoch", ticks: found.epochs.map((epoch, place) => [found.epochs.length > 1 ? place / (found.epochs.length - 1) : 0, epoch]).filter((_, place) => place % Math.ceil(found.epochs.length / 12) === 0) };
    const chart = (title, note, values, kind, show) => {
      const shown = values && values.some((value) => value !== null);
      if (!shown) return figure(title, "", paragraph("The run has no metrics.csv with this value; Lightning's CSVLogger writes one."));
      const most = Math.max(...values.filter((value) => value !== null)) || 1;
      const points = values.map((value, place) => [x.ticks.length && values.length > 1 ? place / (values.length - 1) : 0, value === null ? null : value / most]).filter(([, y]) => y !== null);
      return figure(title, note, lines(title, x, { title: note, ticks: [0, 0.5, 1].map((share) => [share, show(share * most)]) }, [{ name: title, kind, points }]));
    };
    const rows = found.last.names.map((name, place) => ({ name, place }));
    const most = Math.max(...found.last.target.map((share) => share || 0), ...found.last.observed);
    section("run", "Training run", paragraph(found.folder), el("div", { class: "columns" },
      chart("Time waited for data", "share of the training time", found.waiting, "first", percent),
      chart("Speed", "cells per second", found.cells_per_s, "first", number),
      chart("Distance of observed from target shares", "total variation, 0 is equal", found.share_error, "second", percent),
      chart("Repeated draws", "share of the draws of an epoch", found.repeated, "first", percent)),
      table(`Epoch ${found.epochs[found.epochs.length - 1]}: classes of most draws`, [
        { title: "class", value: (row) => row.name },
        { title: "target share", value: (row) => percent(found.last.target[row.place]), bar: (row) => (found.last.target[row.place] || 0) / most },
        { title: "observed share", value: (row) => percent(found.last.observed[row.place]), bar: (row) => found.last.observed[row.place] / most, kind: "second" },
      ], rows, 20));
  }

  summary();
  sources();
  labels();
  const follow = weights();
  tree(follow);
  genes();
  sizes();
  leaks();
  run();
  const contents = [...document.querySelectorAll("section")].map((part) => el("a", { href: `#${part.id}` }, part.querySelector("h2").textContent));
  document.getElementById("menu").append(...contents);
})();

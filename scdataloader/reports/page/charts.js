// Elements of the page and charts in SVG. Text is only ever set as text, never parsed as HTML.
"use strict";
const Charts = (() => {
  const SVG = "http://www.w3.org/2000/svg";
  const number = (value) => (Number.isInteger(value) ? value : Number(value.toPrecision(4))).toLocaleString("en");
  const percent = (share) => (share === null || Number.isNaN(share) ? "" : `${(100 * share).toPrecision(3)} %`);

  const plural = (n, noun) => `${number(n)} ${noun}${n === 1 ? "" : "s"}`;

  function filled(made, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
    }
    made.append(...(children || []).filter((child) => child !== null));
    return made;
  }
  const el = (tag, attributes, ...children) => filled(document.createElement(tag), attributes, children);
  const svg = (tag, attributes, ...children) => filled(document.createElementNS(SVG, tag), attributes, children);
  const text = (x, y, content, attributes) => svg("text", { x, y, ...attributes }, String(content));

  function figure(title, note, ...content) {
    return el("figure", {}, el("figcaption", {}, el("strong", {}, title), note ? el("span", { class: "note" }, ` ${note}`) : null), ...content);
  }

  // A table whose columns are {title, value(row), bar: share of the width, kind}; the first `limit` rows, and a button.
  function table(caption, columns, rows, limit = 25) {
    const body = el("tbody", {});
    const cell = (column, row) => {
      const value = column.value(row);
      if (!column.bar) return el("td", { class: typeof value === "number" ? "number" : null }, typeof value === "number" ? number(value) : value);
      const width = `width:${Math.min(100, 100 * column.bar(row)).toFixed(2)}%`;
      return el("td", { class: "bar" }, el("span", { class: `fill ${column.kind || "first"}`, style: width }), el("span", { class: "value" }, value));
    };
    const add = (some) => body.append(...some.map((row) => el("tr", {}, ...columns.map((column, place) =>
      place ? cell(column, row) : el("th", { scope: "row" }, column.value(row))))));
    add(rows.slice(0, limit));
    const all = rows.length > limit
      ? el("button", { type: "button", onclick: () => { add(rows.slice(limit)); all.remove(); } }, `show all ${number(rows.length)}`)
      : null;
    const isNumber = (column) => rows.length && !column.bar && typeof column.value(rows[0]) === "number";
    const head = el("tr", {}, ...columns.map((column) => el("th", { scope: "col", class: isNumber(column) ? "number" : null }, column.title)));
    return el("div", { class: "scroll" }, el("table", {}, caption ? el("caption", {}, caption) : null, el("thead", {}, head), body), all);
  }

  const WIDTH = 720;
  const HEIGHT = 280;
  const LEFT = 76;
  const BOTTOM = 44;

  function axes(name, x, y) { // x and y are {title, ticks: [[place from 0 to 1, label]]}
    const chart = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": name });
    for (const [at, label] of y.ticks) {
      const place = 10 + (1 - at) * (HEIGHT - BOTTOM - 10);
      chart.append(svg("line", { x1: LEFT, x2: WIDTH - 10, y1: place, y2: place, class: "grid" }), text(LEFT - 6, place + 4, label, { "text-anchor": "end" }));
    }
    for (const [at, label] of x.ticks) chart.append(text(LEFT + at * (WIDTH - LEFT - 10), HEIGHT - BOTTOM + 16, label, { "text-anchor": "middle" }));
    chart.append(text((LEFT + WIDTH) / 2, HEIGHT - 6, x.title, { "text-anchor": "middle", class: "axis" }));
    chart.append(text(14, HEIGHT / 2, y.title, { transform: `rotate(-90 14 ${HEIGHT / 2})`, "text-anchor": "middle", class: "axis" }));
    return chart;
  }
  const at = (x, y) => [LEFT + x * (WIDTH - LEFT - 10), 10 + (1 - y) * (HEIGHT - BOTTOM - 10)];

  // Ticks 1, 10, 100 … of a logarithmic axis from `low` to `high`.
  function decades(low, high, show = number) {
    const span = Math.log10(high / low) || 1;
    const ticks = [];
    for (let power = Math.ceil(Math.log10(low) - 1e-9); power <= Math.log10(high) + 1e-9; power++) ticks.push([(power - Math.log10(low)) / span, show(10 ** power)]);
    const every = Math.ceil(ticks.length / 8);
    return ticks.filter((_, place) => place % every === 0);
  }

  // Lines of {name, kind, points: [[x, y]]}, with x and y from 0 to 1.
  function lines(name, x, y, series) {
    const chart = axes(name, x, y);
    for (const line of series) {
      const points = line.points.map((point) => at(...point).map((place) => place.toFixed(1)).join(",")).join(" ");
      chart.append(svg("polyline", { points, class: `line ${line.kind}` }));
      if (line.points.length < 60) for (const point of line.points) {
        const [cx, cy] = at(...point);
        chart.append(svg("circle", { cx, cy, r: 3, class: `fill ${line.kind}` }));
      }
    }
    return el("div", {}, chart, legend(series));
  }

  function legend(series) {
    return el("p", { class: "legend" }, ...series.map((line) => el("span", {}, el("span", { class: `key ${line.kind}` }), ` ${line.name} `)));
  }

  function histogram(name, xTitle, yTitle, counts, top) {
    const most = Math.max(1, ...counts);
    const chart = axes(name, { title: xTitle, ticks: decades(1, top) }, { title: yTitle, ticks: [0, 0.5, 1].map((share) => [share, number(Math.round(share * most))]) });
    counts.forEach((count, bin) => {
      const [x, y] = at(bin / counts.length, count / most);
      const [next, base] = at((bin + 1) / counts.length, 0);
      const range = [bin, bin + 1].map((edge) => number(Math.round(top ** (edge / counts.length)))).join(" to ");
      chart.append(svg("rect", { x: x + 0.5, y, width: Math.max(0.5, next - x - 1), height: Math.max(0, base - y), class: "fill first" }, svg("title", {}, `${range}: ${number(count)}`)));
    });
    return chart;
  }

  // One row for each source: the range from the 5 % to the 95 % quantile, the half in the middle, the median.
  function ranges(name, xTitle, names, quantiles, top) {
    const step = 18;
    const left = 230;
    const height = names.length * step + 40;
    const x = (value) => left + (Math.log(Math.max(1, value)) / Math.log(top)) * (WIDTH - left - 10);
    const chart = svg("svg", { viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": name });
    for (const [place, label] of decades(1, top)) {
      const at_ = left + place * (WIDTH - left - 10);
      chart.append(svg("line", { x1: at_, x2: at_, y1: 0, y2: height - 34, class: "grid" }), text(at_, height - 20, label, { "text-anchor": "middle" }));
    }
    names.forEach((source, row) => {
      const [low, first, middle, third, high] = quantiles[row];
      const y = row * step + step / 2;
      chart.append(
        svg("g", {}, svg("title", {}, `${source}: median ${number(middle)}, half from ${number(first)} to ${number(third)}, 90 % from ${number(low)} to ${number(high)}`),
          text(left - 8, y + 4, shortened(source, 28), { "text-anchor": "end" }),
          svg("line", { x1: x(low), x2: x(high), y1: y, y2: y, class: "line first" }),
          svg("rect", { x: x(first), y: y - 4, width: Math.max(1, x(third) - x(first)), height: 8, class: "fill first" }),
          svg("line", { x1: x(middle), x2: x(middle), y1: y - 6, y2: y + 6, class: "line second" })));
    });
    chart.append(text((left + WIDTH) / 2, height - 4, xTitle, { "text-anchor": "middle", class: "axis" }));
    return chart;
  }
  const shortened = (name, length) => (name.length > length ? `…${name.slice(1 - length)}` : name);

  // Colours from dark blue over grey to yellow, as of cividis, which people with and without colour vision can order.
  const SCALE = [[0, 32, 76], [59, 73, 109], [112, 113, 115], [170, 158, 112], [255, 233, 69]];
  function colour(share) {
    const place = Math.min(Math.max(share, 0), 0.9999) * (SCALE.length - 1);
    const [low, high] = [SCALE[Math.floor(place)], SCALE[Math.floor(place) + 1]];
    return `rgb(${low.map((value, channel) => Math.round(value + (place % 1) * (high[channel] - value))).join(",")})`;
  }

  // A square of shares; `told(row, column)` is the text of a field.
  function heatmap(name, names, share, told) {
    const left = 230;
    const side = Math.min(24, (WIDTH - left - 10) / names.length);
    const height = names.length * side + 44;
    const chart = svg("svg", { viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": name });
    names.forEach((source, row) => {
      chart.append(text(left - 6, row * side + side / 2 + 3, shortened(source, 30), { "text-anchor": "end", style: `font-size:${Math.min(13, side + 1).toFixed(1)}px` }));
      names.forEach((_, column) => chart.append(svg("rect", { x: left + column * side, y: row * side, width: side, height: side, fill: colour(share(row, column)) }, svg("title", {}, told(row, column)))));
    });
    for (let step = 0; step < 50; step++) chart.append(svg("rect", { x: left + step * 4, y: height - 32, width: 4.5, height: 10, fill: colour(step / 49) }));
    for (const at_ of [0, 0.5, 1]) chart.append(text(left + at_ * 200, height - 10, percent(at_).replace(/\.0+(?= )/, ""), { "text-anchor": "middle" }));
    return chart;
  }

  return { el, figure, table, lines, decades, histogram, ranges, heatmap, number, percent, plural };
})();

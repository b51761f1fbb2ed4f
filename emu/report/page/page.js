// SPDX-License-Identifier: MIT
// The report's page: draws plots, changes light and dark, sorts and filters the table of cells.
"use strict";
(() => {
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const narrow = window.matchMedia("(max-width: 500px)");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const shown = new Map(); // element of a plot that is drawn -> its variant

  const element = (name, text, attributes = {}) => {
    const made = document.createElement(name);
    made.textContent = text;
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };

  // ---- light and dark ----

  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const button = document.getElementById("theme");

  function themeChanged() {
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Change to ${button.textContent.toLowerCase()} colours`);
    for (const [plot, variant] of shown) draw(plot, variant);
  }

  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try {
      localStorage.setItem("emu-theme", root.dataset.theme);
    } catch {
      // Some browsers keep nothing for files; the choice then holds for this view.
    }
    themeChanged();
  });

  // ---- plots ----

  // Paper: what is saved as a picture, with a legend and on white.
  function laidOut(variant, paper = false) {
    const style = getComputedStyle(root);
    const light = { text: "#000000", grid: "#e4e7eb", line: "#8a8f98", panel: "#ffffff" };
    const colour = (name) => (paper ? light[name] : style.getPropertyValue(`--${name}`).trim());
    const axis = ({ says, ...given }) => ({
      ...given,
      title: given.title && { ...given.title, standoff: 8 },
      automargin: true,
      gridcolor: colour("grid"),
      linecolor: colour("line"),
      zerolinecolor: colour("line"),
      fixedrange: narrow.matches, // a finger scrolls the page
    });
    const { tall, square, ...layout } = variant.layout;
    const wide = Math.min(root.clientWidth, 640) - 60;
    return {
      ...layout,
      height: tall || (square ? Math.max(320, Math.min(460, wide)) : 380),
      xaxis: axis(layout.xaxis),
      yaxis: axis(layout.yaxis),
      paper_bgcolor: paper ? "#ffffff" : "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: colour("text"), family: "system-ui, sans-serif", size: 12 },
      hoverlabel: { bgcolor: colour("panel"), font: { color: colour("text") }, namelength: -1 },
      margin: { l: 12, r: 14, t: narrow.matches || paper ? 10 : 32, b: 12 },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("weak"), activecolor: colour("accent") },
      showlegend: paper && !square,
      legend: { traceorder: "normal" },
    };
  }

  // What a figure says that an axis is of, as people say it.
  const SAYS = {
    time: (ns) => {
      const [unit, size] = [["s", 1e9], ["ms", 1e6], ["\u00b5s", 1e3]].find(([, n]) => ns >= n)
        ?? ["ns", 1];
      return `${+(ns / size).toPrecision(4)} ${unit}`;
    },
    share: (part) => `${(100 * part).toFixed(2)}%`,
    percentile: (inverse) => {
      const digits = Math.max(1, Math.floor(Math.log10(inverse) + 1e-9));
      return `${+(100 * (1 - 1 / inverse)).toFixed(digits)}%`;
    },
  };

  function said(axis, value) {
    if (typeof value !== "number") return value;
    const say = SAYS[axis?.says];
    const digits = Math.abs(value) < 100 ? 3 : 0;
    return say ? say(value) : value.toLocaleString("en", { maximumFractionDigits: digits });
  }

  // By the tick that is there, if one is.
  function ticked(axis, at) {
    const tick = (axis.tickvals || []).indexOf(at);
    return tick < 0 ? said(axis, at) : axis.ticktext[tick];
  }

  function draw(plot, variant) {
    shown.set(plot, variant);
    const layout = laidOut(variant);
    plot.style.height = `${layout.height}px`;
    const { xaxis, yaxis } = variant.layout;
    const pointed = (trace) => ({
      customdata: trace.y.map((y, n) => `${ticked(xaxis, trace.x[n])}: ${said(yaxis, y)}`),
      hovertemplate: "%{customdata}<extra>%{fullData.name}</extra>",
    });
    const traces = variant.traces.map((trace) => ({
      ...structuredClone(trace),
      ...(yaxis.says === "time" ? pointed(trace) : {}),
      visible: !plot.away?.has(trace.name),
    }));
    return Plotly.react(plot, traces, layout, {
      responsive: true,
      displaylogo: false,
      displayModeBar: narrow.matches ? false : "hover",
      modeBarButtons: [["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
    });
  }

  function save(plot) {
    const variant = shown.get(plot);
    if (!variant) return;
    const data = variant.traces.filter((trace) => !plot.away.has(trace.name));
    const layout = laidOut(variant, true);
    const picture = { data: structuredClone(data), layout };
    const size = { width: 900, height: Math.max(360, layout.height) };
    Plotly.downloadImage(picture, { format: "svg", filename: plot.id, ...size });
  }

  const SIGNS = {
    circle: "\u25cf", square: "\u25a0", diamond: "\u25c6", "triangle-up": "\u25b2",
    x: "\u2716", cross: "\u271a", star: "\u2605", hexagon: "\u2b22",
  };
  const DASHES = { dash: "6 3", dot: "2 3", dashdot: "6 3 2 3" };

  // A button for each trace, that takes it away and brings it back.
  function legend(plot, variant, list) {
    const buttons = variant.traces.filter((trace) => trace.name).map((trace) => {
      const made = element("button", "", { type: "button" });
      const colour = trace.line?.color ?? trace.marker.color;
      const sign = element("span", SIGNS[trace.marker?.symbol] ?? "", { "aria-hidden": "true" });
      sign.className = "sign";
      sign.style.color = colour;
      if (trace.line) {
        const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
        const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
        const values = { x1: 0, x2: 26, y1: 5, y2: 5, stroke: colour, "stroke-width": 2 };
        values["stroke-dasharray"] = DASHES[trace.line.dash] ?? "";
        for (const [key, value] of Object.entries(values)) line.setAttribute(key, value);
        svg.append(line);
        sign.prepend(svg);
      } else {
        sign.textContent = SIGNS.square;
      }
      made.append(sign, decoded(trace.name));
      const look = () => made.setAttribute("aria-pressed", String(!plot.away.has(trace.name)));
      made.addEventListener("click", () => {
        if (!plot.away.delete(trace.name)) plot.away.add(trace.name);
        look();
        draw(plot, variant);
      });
      look();
      return made;
    });
    list.replaceChildren(...(buttons.length > 1 ? buttons : []));
  }

  function decoded(text) {
    return new DOMParser().parseFromString(String(text), "text/html").documentElement.textContent;
  }

  // The same as numbers, for who cannot see or wants to copy them.
  function numbers(variant) {
    const table = element("table", "");
    const head = table.createTHead().insertRow();
    const body = table.createTBody();
    const [first] = variant.traces;
    if (first.type === "heatmap") {
      head.append(element("th", "to \\ from", { scope: "col" }));
      first.z[0].forEach((_, from) => head.append(element("th", from, { scope: "col" })));
      first.z.forEach((row, to) => {
        const line = body.insertRow();
        const cells = row.map((lines) => element("td", said(null, lines)));
        line.append(element("th", to, { scope: "row" }), ...cells);
      });
      return table;
    }
    const across = first.orientation === "h" ? "y" : "x";
    const value = across === "y" ? "x" : "y";
    const axis = variant.layout[`${across}axis`];
    const values = variant.layout[`${value}axis`];
    const columns = [...new Set(variant.traces.flatMap((trace) => trace[across]))];
    if (across === "x") columns.sort((a, b) => a - b);
    head.append(element("th", across === "x" ? axis.title.text : "", { scope: "col" }));
    for (const trace of variant.traces) {
      head.append(element("th", decoded(trace.name), { scope: "col" }));
    }
    for (const at of columns) {
      const line = body.insertRow();
      line.append(element("th", decoded(ticked(axis, at)), { scope: "row" }));
      for (const trace of variant.traces) {
        const found = trace[value][trace[across].indexOf(at)];
        line.append(element("td", found === undefined || found === null ? "-" : said(values, found)));
      }
    }
    return table;
  }

  function show(figure) {
    const plot = figure.querySelector(".plot");
    const variants = figures[plot.id];
    const selects = [...figure.querySelectorAll("select")];
    const wanted = () =>
      variants.find((v) => selects.every((select) => v.choice[select.name] === select.value));
    const details = figure.querySelector("details");
    const list = figure.querySelector(".legend");
    plot.away = new Set(); // names of traces that the reader does not want
    const region = details.querySelector(".scroll");
    const fill = () => {
      const found = shown.get(plot);
      if (details.open) region.replaceChildren(found ? numbers(found) : "");
    };
    const update = () => {
      const found = wanted();
      plot.hidden = !found;
      figure.querySelector(".none").hidden = Boolean(found);
      list.hidden = !found;
      if (found) {
        legend(plot, found, list);
        draw(plot, found);
      } else shown.delete(plot);
      fill();
    };
    for (const select of selects) select.addEventListener("change", update);
    details.addEventListener("toggle", fill);
    figure.querySelector(".save").addEventListener("click", () => save(plot));
    update();
  }

  // A section is drawn when it is opened for the first time.
  for (const sweep of document.querySelectorAll("details.sweep")) {
    const open = () => {
      if (!sweep.open || sweep.dataset.drawn) return;
      sweep.dataset.drawn = "yes";
      for (const figure of sweep.querySelectorAll("figure")) show(figure);
    };
    sweep.addEventListener("toggle", open);
    open();
  }
  for (const link of document.querySelectorAll("nav a")) {
    link.addEventListener("click", () => {
      const target = document.querySelector(link.hash);
      if (target && target.matches("details")) target.open = true;
    });
  }

  // ---- the table of cells ----

  const table = document.getElementById("table");
  const body = table.tBodies[0];
  const text = document.getElementById("filter");
  const selects = [...document.querySelectorAll(".filters select")];

  function filter() {
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    let visible = 0;
    for (const row of body.rows) {
      const content = [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase();
      const fits =
        words.every((word) => content.includes(word)) &&
        selects.every((s) => !s.value || row.cells[s.dataset.column].textContent === s.value);
      row.hidden = !fits;
      visible += fits;
    }
    document.getElementById("count").textContent = `${visible} of ${body.rows.length} cells`;
  }

  function sort(heading) {
    const column = heading.cellIndex;
    const down = heading.getAttribute("aria-sort") === "ascending";
    const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const numeric = heading.classList.contains("number");
    const compare = (a, b) =>
      numeric
        ? (key(a) === "" ? -1 : Number(key(a))) - (key(b) === "" ? -1 : Number(key(b)))
        : key(a).localeCompare(key(b));
    const rows = [...body.rows].sort((a, b) => (down ? -compare(a, b) : compare(a, b)));
    body.append(...rows);
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  }

  for (const heading of table.tHead.rows[0].cells) {
    heading.querySelector("button").addEventListener("click", () => sort(heading));
  }
  text.addEventListener("input", filter);
  for (const select of selects) select.addEventListener("change", filter);
  document.getElementById("clear").addEventListener("click", () => {
    text.value = "";
    for (const select of selects) select.value = "";
    filter();
  });
  filter();

  dark.addEventListener("change", themeChanged);
  narrow.addEventListener("change", themeChanged);
  try {
    const chosen = localStorage.getItem("emu-theme");
    if (chosen === "dark" || chosen === "light") root.dataset.theme = chosen;
  } catch {
    // As above.
  }
  themeChanged();
})();
